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

from ingest.config.model import Destination
from ingest.errors import AssociationError, StoreAwayError, StoreError
from ingest.ledger import Delivery, Ledger
from ingest.scu import Association, Context, Remote, Timeouts, plan, proposals
from workers.leases import LeaseLostError, Leases
from workers.retry import (
    Answered,
    Away,
    Broken,
    Decision,
    Limits,
    NotAccepted,
    Outcome,
    Refused,
    Unreachable,
    Unreadable,
    decide,
    pause_ms,
)
from workers.store import FileStore
from workers.turns import Turn

SLICE_SECONDS: Final = 30.0
"""After so long the worker is free for other destinations."""

PLACE_SECONDS: Final = 1.0
POLL_SECONDS: Final = 0.02
OTHERS_SECONDS: Final = 0.1
BROKEN_MAX: Final = 3
"""Associations that end early, one after the other, before the destination is left alone for a while."""

log = structlog.get_logger()


@dataclass(slots=True)
class Tools:
    """What all drains of one worker use.

    Attributes:
        others: All destinations besides the given one.
        recent: Contexts needed lately, by destination; they are offered again, so that an association serves
            more than the batch that it was opened for.
        failures: Associations in a row that could not be made or ended early, by destination.
        away: Destinations of which it was said that they are away.
    """

    ledger: Ledger
    store: FileStore
    client: redis.Redis
    stopping: Callable[[], bool]
    rng: Callable[[], float]
    others: Callable[[str], list[str]]
    recent: dict[str, tuple[Context, ...]] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    away: set[str] = field(default_factory=set)


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
        self._turn = Turn(tools.client, self._name, destination.associations, unique)
        self._leases = Leases(tools.ledger, self._name, unique)
        self._association: Association | None = None
        self._hold_ms = 0
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
            self._work()
        except LeaseLostError:
            log.warning("leases_lost", destination=self._name, remedy="somebody else will take them")
        finally:
            self._end()
        return not self._hold_ms and not self._tools.stopping() and self._leases.due()

    def _work(self) -> None:
        quiet_since = time.monotonic()
        while not self._over():
            rows = self._leases.take()
            if rows:
                self._send(deque(rows))
                self._leases.give_back()
                self._leases.finish()
                quiet_since = time.monotonic()
            elif self._association is None or not self._association.check() or self._lingered(quiet_since):
                return
            else:
                time.sleep(POLL_SECONDS)
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
        try:
            return self._turn.others_wait(self._tools.others(self._name))
        except redis.RedisError:
            return False

    def _end(self) -> None:
        self._leases.end()
        if self._association is not None:
            self._association.release()
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

    def _send(self, waiting: deque[Delivery]) -> None:
        """Send what was leased; what is not attempted stays leased."""
        while waiting and not self._over():
            row = waiting.popleft()
            if row.id not in self._leases.rows:
                continue
            association = self._associated(row, waiting)
            if association is None:
                return
            self._leases.conclude(row, self._decide(self._attempt(association, row), row))
            self._tick()

    def _decide(self, outcome: Outcome, row: Delivery) -> Decision:
        return decide(outcome, row.attempts, self._limits, self._tools.rng)

    def _attempt(self, association: Association, row: Delivery) -> Outcome:
        if association.accepted(row.sop_class_uid, row.transfer_syntax_uid) is None:
            return NotAccepted(f"no context accepted for {row.sop_class_uid} in {row.transfer_syntax_uid}")
        try:
            fd = self._tools.store.open(row.store_key)
        except FileNotFoundError:
            return Unreadable("its file is gone from the store")
        except StoreAwayError as error:
            self._hold_ms = pause_ms(1, self._limits, self._tools.rng)
            return Away(str(error))
        except StoreError as error:
            return Unreadable(str(error))
        try:
            if os.fstat(fd).st_size != row.size:
                return Unreadable("its file in the store is not the one that the ledger has")
            return self._store(association, row, fd)
        finally:
            os.close(fd)

    def _store(self, association: Association, row: Delivery, fd: int) -> Outcome:
        try:
            response = association.store(
                fd,
                row.data_set_offset,
                row.size - row.data_set_offset,
                sop_class=row.sop_class_uid,
                sop_instance=row.sop_instance_uid,
                transfer_syntax=row.transfer_syntax_uid,
            )
        except AssociationError as error:
            failures = self._failed()
            if failures >= BROKEN_MAX:
                self._hold_ms = pause_ms(failures - BROKEN_MAX + 1, self._limits, self._tools.rng)
            return Broken(str(error))
        except StoreError as error:
            return Unreadable(str(error))
        self._tools.failures.pop(self._name, None)
        return Answered(response.status, response.error_comment)

    def _associated(self, row: Delivery, rest: deque[Delivery]) -> Association | None:
        """An association that was offered what `row` needs, or None where there is none to be had."""
        context = row.sop_class_uid, row.transfer_syntax_uid
        association, self._association = self._association, None
        if association is not None:
            if association.check() and context in association.proposed:
                self._association = association
                return association
            association.release()
        needed = [context, *((other.sop_class_uid, other.transfer_syntax_uid) for other in rest)]
        offered = plan([*needed, *self._tools.recent.get(self._name, ())])[0]
        self._tools.recent[self._name] = offered
        timeouts = Timeouts(self._destination.connect_seconds, self._destination.response_seconds)
        try:
            self._association = Association.open(
                self._remote, proposals(offered), timeouts=timeouts, on_tick=self._tick
            )
        except AssociationError as error:
            self._not_associated(error)
            return None
        if self._name in self._tools.away:
            self._tools.away.discard(self._name)
            log.info("destination_back", destination=self._name)
        return self._association

    def _not_associated(self, error: AssociationError) -> None:
        """All that was leased shares one failed attempt; the destination is left alone until the next one."""
        failures = self._failed()
        if self._name not in self._tools.away:
            self._tools.away.add(self._name)
            event = "destination_refuses" if error.permanent else "destination_away"
            log.warning(event, destination=self._name, error=str(error))
        outcome = Refused(str(error)) if error.permanent else Unreachable(str(error))
        rows = list(self._leases.rows.values())
        step = 32 if error.permanent else max(failures, *(row.attempts for row in rows), 1)
        self._hold_ms = pause_ms(step, self._limits, self._tools.rng)
        for row in rows:
            self._leases.conclude(row, self._decide(outcome, row))

    def _failed(self) -> int:
        count = self._tools.failures.get(self._name, 0) + 1
        self._tools.failures[self._name] = count
        return count

    def _tick(self) -> None:
        """At least twice a second, also while an instance is on its way."""
        now = time.monotonic()
        if now >= self._place_at:
            self._place_at = now + PLACE_SECONDS
            # The place is a hint; while Redis is away the leases are what counts.
            with contextlib.suppress(redis.RedisError):
                self._evicted = not self._turn.renew()
        self._leases.tick()
