"""Draining one destination: due deliveries out of the ledger, over one association, until nothing follows."""

import contextlib
import os
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import redis
import structlog

from ingest.clock import unix_ms
from ingest.config.model import Destination
from ingest.dicom.dimse import Status
from ingest.dicom.padding import has_odd_value
from ingest.errors import (
    AssociationError,
    Cause,
    LeaseLostError,
    LedgerError,
    PeerError,
    StoreAwayError,
    StoreError,
)
from ingest.ledger import Delivery, Ledger
from ingest.requestor.store_scu import Context, Remote, StoreSCU, Timeouts, make_proposals, plan_associations
from ingest.tls.identity import read_identity
from ingest.tls.observed_certificates import ObservedCertificates
from ingest.workers.fault_attribution import is_shortage
from ingest.workers.forward.breaker import Breaker
from ingest.workers.forward.circuit import Trouble
from ingest.workers.forward.clock_steps import WallClock
from ingest.workers.forward.destination_slots import Turn
from ingest.workers.forward.leases import Leases
from ingest.workers.forward.retry_policy import (
    Answered,
    Broken,
    Dead,
    Limits,
    NotAccepted,
    Outcome,
    Renegotiate,
    Retry,
    Unreadable,
    decide,
    pause_ms,
)
from ingest.workers.store.filesystem import FileStore

SLICE_SECONDS: Final = 30.0
"""After so long the worker is free for other destinations."""

PLACE_SECONDS: Final = 1.0
POLL_SECONDS: Final = 0.02
BLOCKED_SECONDS: Final = 0.2
"""How long who finds only series that others have in hand waits before looking again."""
OTHERS_SECONDS: Final = 0.1

ASIDE: Final = 4
"""A file that cannot be read now waits as long as after so many attempts."""

OF_THE_OFFER: Final = frozenset(
    {None, Cause.CLOSED, Cause.ABORTED, Cause.REJECTED, Cause.PROTOCOL_ERROR, Cause.NO_RESPONSE}
)
"""How an association ends that the remote does not want, or dies of: by A-ABORT, by an A-ASSOCIATE-RJ for no
reason that concerns us, or without a word."""

log = structlog.get_logger()


@dataclass(slots=True)
class Tools:
    """What all drains of one worker use.

    Attributes:
        others: All destinations besides the given one.
        places: How many workers one destination may keep busy.
        recent: Contexts needed lately, by destination; they are offered again, so that an association serves
            more than the batch that it was opened for.
        doubted: Contexts of offers that a remote ended the association at, by destination.
    """

    ledger: Ledger
    store: FileStore
    sightings: ObservedCertificates
    client: redis.Redis
    stopping: Callable[[], bool]
    rng: Callable[[], float]
    others: Callable[[str], list[str]]
    places: int
    clock: WallClock = field(default_factory=WallClock)
    recent: dict[str, tuple[Context, ...]] = field(default_factory=dict)
    doubted: dict[str, set[Context]] = field(default_factory=dict)


class Drain:
    """One turn at one destination."""

    def __init__(self, tools: Tools, destination: Destination, remote: Remote, owner: str) -> None:
        """Describe it; nothing is asked yet.

        Args:
            tools: Of the worker.
            destination: What the configuration says of it.
            remote: Whom to associate with.
            owner: Name of the worker.
        """
        self._tools = tools
        self._destination = destination
        self._name = destination.name
        self._remote = remote
        self._limits = Limits.of(destination)
        unique = f"{owner}-{uuid.uuid4().hex[:8]}"
        self._places = min(destination.associations, tools.places)
        self._turn = Turn(tools.client, destination, self._places, unique)
        self._leases = Leases(tools.ledger, self._name, unique, self._places)
        self._breaker = Breaker(tools.ledger, destination, remote, tools.rng, tools.stopping)
        self._association: StoreSCU | None = None
        self._flying: dict[int, Delivery] = {}
        # Contexts that are offered without any other, those of them still to be, and those refused so.
        self._alone: set[Context] = set()
        self._anew: set[Context] = set()
        self._refused: set[Context] = set()
        self._doubted = tools.doubted.setdefault(self._name, set())
        self._hold_ms = 0
        self._unreachable = ""
        # Whether an association has ended with an instance in hand since rows were leased last.
        self._broke = False
        self._evicted = False
        self._began = time.monotonic()
        self._place_at = self._began + PLACE_SECONDS
        self._others_at = 0.0

    def run(self) -> bool:
        """Drain; returns whether there is more to do for this destination at once.

        Raises:
            redis.RedisError: Redis is away; nothing was done.
            LedgerError: The ledger is away. Leases end by themselves.
        """
        if not self._turn.take():
            return False
        try:
            self._hold_ms, self._unreachable = self._breaker.enter(self._tick)
            self._work()
        except LeaseLostError:
            log.warning("leases_lost", destination=self._name, remedy="somebody else will take them")
        finally:
            self._end()
        # What others have in hand they go on with by themselves; the watch finds what they leave.
        held = self._hold_ms or self._leases.blocked
        return not held and not self._tools.stopping() and self._leases.due()

    def _work(self) -> None:
        quiet_since = time.monotonic()
        while not self._over():
            rows = self._leases.take(careful=self._breaker.is_careful)
            if rows:
                self._send(deque(rows))
                self._leases.give_back()
                self._leases.finish()
                quiet_since = time.monotonic()
                if self._broke and self._others_wait():
                    return
                self._broke = False
            elif (
                self._association is None
                or not self._association.check_established()
                or self._lingered(quiet_since)
            ):
                return
            else:
                time.sleep(BLOCKED_SECONDS if self._leases.blocked else POLL_SECONDS)
                self._tick()

    def _over(self) -> bool:
        slice_over = time.monotonic() - self._began > SLICE_SECONDS
        return slice_over or self._hold_ms > 0 or self._evicted or self._tools.stopping()

    def _lingered(self, quiet_since: float) -> bool:
        now = time.monotonic()
        if now - quiet_since >= self._destination.linger_seconds:
            return True
        if now < self._others_at:
            return False
        self._others_at = now + OTHERS_SECONDS
        return self._others_wait()

    def _others_wait(self) -> bool:
        """Whether another destination waits for a worker."""
        try:
            return self._turn.others_wait(self._tools.others(self._name))
        except redis.RedisError:
            return False

    def _end(self) -> None:
        self._leases.end()
        if self._association is not None and self._flying:
            self._association.abort()
        elif self._association is not None:
            self._association.release()
        if self._unreachable:
            self._give_up_old()
        try:
            if self._hold_ms:
                self._turn.hold_off(self._hold_ms)
            else:
                self._turn.give_back()
        except redis.RedisError:
            log.debug("place_not_given_back", destination=self._name)  # it ends by itself
        counts = {state.value: count for state, count in self._leases.counts.items()}
        if counts:
            seconds = round(time.monotonic() - self._began, 3)
            log.info("drained", destination=self._name, seconds=seconds, **counts)

    def _give_up_old(self) -> None:
        reason = self._limits.given_up(self._unreachable)
        try:
            now = self._tools.ledger.unix_ms()
            owed_since = now - self._limits.give_up_ms - self._tools.clock.set_forward_ms()
            dead = self._tools.ledger.deliveries.expire_overdue(self._name, owed_since, reason, now)
        except LedgerError as error:
            log.warning("ledger_away", error=str(error))  # the next failure gives them up
            return
        if dead:
            log.error("deliveries_given_up", destination=self._name, count=dead, reason=reason)

    def _send(self, waiting: deque[Delivery]) -> None:
        """Send what was leased; what is not attempted stays leased."""
        while waiting and not self._broke and not self._over():
            row = waiting.popleft()
            if row.id not in self._leases.rows:
                continue
            association = self._associated(row, waiting)
            if association is None:
                return
            try:
                outcome = self._submit(association, row)
            except StoreAwayError as error:
                self._store_away(association, row, error)
                break
            if outcome is not None:
                self._conclude(row, outcome, waiting)
            elif len(self._flying) >= association.window:
                self._collect(association, waiting)
            self._tick()
        self._land(waiting)

    def _submit(self, association: StoreSCU, row: Delivery) -> Outcome | None:
        """Send one instance; what became of it where no answer is to be waited for.

        Raises:
            StoreAwayError: The store is away, or its disk is failing.
        """
        context = _context(row)
        if association.accepted_context_id(*context) is None:
            alone = context in self._refused or len(association.proposed) == 1
            return NotAccepted(f"no context accepted for {context[0]} in {context[1]}", alone)
        try:
            fd = self._file(row)
        except StoreAwayError:
            raise
        except StoreError as error:
            return Unreadable(str(error))
        try:
            number = association.send_instance(
                fd,
                row.data_set_offset,
                row.size - row.data_set_offset,
                sop_class=row.sop_class_uid,
                sop_instance=row.sop_instance_uid,
                transfer_syntax=row.transfer_syntax_uid,
            )
        except AssociationError as error:
            self._broken(str(error), row)
            return None
        except StoreAwayError:
            raise
        except StoreError as error:
            if not association.is_established:
                self._lose()
            return Unreadable(str(error))
        finally:
            os.close(fd)
        self._flying[number] = row
        return None

    def _store_away(self, association: StoreSCU, row: Delivery, error: StoreAwayError) -> None:
        """Stop for a while: trouble of our disk counts against no delivery, nor against the remote.

        What had no answer when an association ended so is given back, and sent once more. Where the trouble
        may be this file's alone, the others go before it next time.
        """
        log.warning("store_away", error=str(error), remedy="deliveries wait; see to the store's disk")
        self._hold_ms = pause_ms(1, self._limits, self._tools.rng)
        if not association.is_established:
            self._flying = {}
        if isinstance(error.__cause__, OSError) and not is_shortage(error):
            later = pause_ms(ASIDE, self._limits, self._tools.rng)
            self._leases.conclude(row, Retry(later, str(error), breaks=row.breaks, attempted=False))

    def _file(self, row: Delivery) -> int:
        try:
            fd = self._tools.store.open_file(row.store_key)
        except FileNotFoundError:
            raise StoreError("its file is gone from the store") from None
        try:
            size = os.fstat(fd).st_size
        except OSError as error:
            os.close(fd)
            raise StoreAwayError(f"the store cannot give {row.store_key}: {error.strerror}") from error
        if size != row.size:
            os.close(fd)
            raise StoreError("its file in the store is not the one that the ledger has")
        return fd

    def _collect(self, association: StoreSCU, waiting: deque[Delivery]) -> None:
        """Wait for one answer."""
        try:
            number, response = association.receive_response()
        except AssociationError as error:
            self._broken(str(error))
            return
        row = self._flying.pop(number)
        answer = Answered(
            response.status, response.error_comment, _context(row) in self._alone, _note_of(row)
        )
        self._conclude(row, answer, waiting)
        self._breaker.answered()

    def _age_ms(self, row: Delivery) -> int:
        """For how long a delivery has been owed; a clock that is set forward makes none older."""
        return unix_ms() - row.created_at - self._tools.clock.set_forward_ms()

    def _land(self, waiting: deque[Delivery]) -> None:
        """Wait for all answers that are to come."""
        while self._flying and self._association is not None:
            self._collect(self._association, waiting)
            self._tick()

    def _conclude(self, row: Delivery, outcome: Outcome, waiting: deque[Delivery]) -> None:
        decision = decide(outcome, row.attempts, self._age_ms(row), self._limits, self._tools.rng)
        if isinstance(decision, Renegotiate):
            self._alone.add(_context(row))
            self._anew.add(_context(row))
            waiting.appendleft(row)
            return
        if isinstance(outcome, NotAccepted) or (
            isinstance(decision, Dead) and decision.status == Status.SOP_CLASS_NOT_SUPPORTED
        ):
            self._refused.add(_context(row))
        self._leases.conclude(row, decision)

    def _broken(self, reason: str, sent: Delivery | None = None) -> None:
        """The association ended; of what has no answer nothing is known, and any of it may be to blame.

        Args:
            reason: In words.
            sent: The instance that was being sent, if it had not been sent whole.
        """
        lost = [*self._flying.values(), *([sent] if sent is not None else [])]
        self._flying = {}
        self._broke = True
        self._breaker.look()
        for row in lost:
            log.warning(
                "association_broken",
                destination=self._name,
                sop_instance=row.sop_instance_uid,
                breaks=row.breaks + 1,
                error=reason,
            )
            cleared = self._breaker.cleared(row.suspect_since)
            self._conclude(row, Broken(reason, row.breaks + 1, cleared), deque())
        # Among several it may be any; one that was alone, and has done so before, is to blame itself.
        is_suspect = len(lost) == 1 and lost[0].breaks > 0
        self._hold_ms, self._unreachable = self._breaker.broken(
            reason, self._tick, is_suspect=is_suspect, others_wait=self._leases.untried_left()
        )

    def _lose(self) -> None:
        """We ended the association; what was on its way is given back, and was no attempt."""
        self._flying = {}

    def _associated(self, row: Delivery, rest: deque[Delivery]) -> StoreSCU | None:
        """An association that was offered what `row` needs, or None where there is none to be had."""
        context = _context(row)
        association = self._association
        alone = context in self._alone and context not in self._refused
        anew = context in self._anew
        self._anew.discard(context)
        offers = (
            association is not None and association.check_established() and context in association.proposed
        )
        if association is not None and offers and not anew and (not alone or len(association.proposed) == 1):
            return association
        if association is not None:
            self._land(rest)
            association.release()
            self._association = None
            if self._over():
                return None
        if alone or context in self._doubted:
            return self._associate((context,), row)
        needed = [context, *(_context(other) for other in rest), *self._tools.recent.get(self._name, ())]
        offered = plan_associations([each for each in needed if each not in self._doubted])[0]
        self._tools.recent[self._name] = offered
        return self._associate(offered, row)

    def _associate(
        self, offered: tuple[Context, ...], row: Delivery, *, is_there: bool = False
    ) -> StoreSCU | None:
        """An association that offers these contexts, or None.

        A remote may abort or crash at the mere proposal of a SOP class. Nothing would ever arrive then while
        one instance of it is due. So an offer that ended an association is doubted: its contexts are offered
        one by one, each after a C-ECHO. If that is answered and the offer still ends the association, the
        instance that needs this context has broken it, as with its data set.

        Args:
            offered: The contexts.
            row: The delivery that it is opened for.
            is_there: Whether the remote has answered a C-ECHO just now.
        """
        settings = self._destination
        if not is_there and _context(row) in self._doubted:
            is_there = self._breaker.is_there(self._tick)
        try:
            self._association = StoreSCU.open(
                self._remote,
                make_proposals(offered),
                timeouts=Timeouts(settings.connect_seconds, settings.response_seconds),
                async_operations=settings.async_operations,
                bytes_per_second=settings.bandwidth_mb_per_s * 1e6 / self._places,
                on_tick=self._tick,
            )
        except AssociationError as error:
            if error.cause in OF_THE_OFFER:
                self._tools.recent.pop(self._name, None)
                self._doubted.update(offered)
                if is_there:
                    self._broken(f"{error} (at the proposal of {_context(row)[0]})", row)
                    return None
                if self._breaker.is_there(self._tick):
                    return self._associate((_context(row),), row, is_there=True)
            # No instance is to blame: what was leased is given back, and was not attempted.
            if not error.permanent:
                self._unreachable = str(error)
            trouble = Trouble.REFUSED if error.permanent else Trouble.UNREACHABLE
            self._hold_ms = self._breaker.failed(trouble, str(error))
            return None
        self._doubted.difference_update(offered)
        self._breaker.reached()
        self._note_certificate(self._association.peer_certificate())
        return self._association

    def _note_certificate(self, der: bytes | None) -> None:
        with contextlib.suppress(PeerError):  # OpenSSL is less strict, and has taken it
            if der is not None:
                self._tools.sightings.record("destination", self._name, read_identity(der))

    def _tick(self) -> None:
        """At least twice a second, also while an instance is on its way."""
        now = time.monotonic()
        if now >= self._place_at:
            self._place_at = now + PLACE_SECONDS
            # The place is a hint; while Redis is away the leases are what counts.
            with contextlib.suppress(redis.RedisError):
                self._evicted = not self._turn.renew()
        self._leases.tick()


def _note_of(row: Delivery) -> str:
    """What was done to an instance's data set on its way."""
    if has_odd_value(row.size - row.data_set_offset, row.transfer_syntax_uid):
        return "its data set has an odd length, and was padded for this remote"
    return ""


def _context(row: Delivery) -> Context:
    return row.sop_class_uid, row.transfer_syntax_uid
