"""The drain of a destination: send due deliveries from the ledger over one association."""

import contextlib
import os
import time
import uuid
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import redis
import structlog

from ingest.audit.alerts import SecurityAlerts
from ingest.clock import WallClockSteps, unix_ms
from ingest.config.model import Destination
from ingest.dicom.padding import has_odd_value
from ingest.dicom.priority import Priority, find_request_priority
from ingest.errors import (
    AssociationError,
    Cause,
    LeaseLostError,
    LedgerError,
    PeerError,
    RewriteError,
    StoreAwayError,
    StoreError,
)
from ingest.ledger import Delivery, Ledger
from ingest.ledger.group_choice import GroupTerms
from ingest.ledger.group_leases import GroupMember
from ingest.ledger.lease_order import AGED_PLACE, find_wait_ms
from ingest.metrics import families
from ingest.metrics.board import current_board
from ingest.outgoing.data_set import OutgoingDataSet
from ingest.outgoing.plan import AS_STORED, OutgoingPlan, StoredDataSet
from ingest.requestor.store_scu import (
    Context,
    Remote,
    StoreSCU,
    Timeouts,
    make_proposals,
    make_read_error,
    plan_associations,
)
from ingest.tls.identity import read_identity
from ingest.tls.observed_certificates import ObservedCertificates
from ingest.workers.fault_attribution import is_shortage
from ingest.workers.forward.breaker import PAUSE_LOOK_MS, CircuitBreaker, Hold
from ingest.workers.forward.circuit import FailureKind
from ingest.workers.forward.destination_slots import DestinationSlot
from ingest.workers.forward.leases import Leases
from ingest.workers.forward.retry_policy import (
    PROPOSAL_CAUSES,
    AssociationBroken,
    ContextNotAccepted,
    Dead,
    DeathCause,
    FileUnusable,
    NotRewritable,
    Outcome,
    Renegotiate,
    ResponseReceived,
    Retry,
    RetryPolicy,
    TitlesRefused,
    backoff_ms,
    decide_delivery,
)
from ingest.workers.forward.titles import TitleRule, Titles, describe_refused_titles, group_by_titles
from ingest.workers.span_export import SpanExporter
from ingest.workers.store.filesystem import FileStore

SLICE_SECONDS: Final = 30.0
"""Longest duration of a drain. Then the worker is free for other destinations."""

SLOT_RENEW_SECONDS: Final = 1.0
POLL_SECONDS: Final = 0.02
BLOCKED_SECONDS: Final = 0.2
"""Pause if all due deliveries belong to series that other workers have leased."""
OTHERS_SECONDS: Final = 0.1
"""Pause between two checks for wake-ups of other destinations."""

URGENT_SECONDS: Final = 0.5
"""Pause between two looks for urgent deliveries, while others are being sent."""

UNREADABLE_PAUSE_ATTEMPTS: Final = 4
"""A file that the disk cannot read now waits as long as after this number of attempts."""

log = structlog.get_logger()


AUTHENTICATION_CAUSES: Final = frozenset(
    {
        Cause.UNTRUSTED,
        Cause.EXPIRED,
        Cause.REVOKED,
        Cause.NAME,
        Cause.NO_CERTIFICATE,
        Cause.UNBOUND,
        Cause.OURS_UNTRUSTED,
        Cause.OURS_EXPIRED,
        Cause.OURS_REFUSED,
        Cause.OURS_MISSING,
    }
)
"""Causes for which the audit trail gets an alert: one side did not accept the certificate of the other."""


@dataclass(slots=True)
class ForwardResources:
    """The connections, functions and memory that all drains of one worker share.

    Attributes:
        other_destinations: Returns the names of all destinations but one.
        slots: Number of workers that one destination may keep busy.
        security_alerts: Records remotes that fail authentication; None in tests.
        spans: Takes the spans of attempts; None without traces.
        groups: The groups that a destination is a member of, by its name.
        find_closed: Returns those of several destinations whose hours are over.
        plans: Changes of data sets, by destination. A destination without a plan changes nothing.
        clock_steps: Steps of the wall clock since the worker started.
        recent_contexts: Contexts that were needed lately, by destination. They are proposed again, so one
            association serves more than one batch.
        expects_urgent: Whether the configuration may make urgent deliveries.
        doubted_contexts: Contexts of proposals at which a remote ended the association, by destination.
    """

    ledger: Ledger
    store: FileStore
    observed_certificates: ObservedCertificates
    client: redis.Redis
    is_stopping: Callable[[], bool]
    rng: Callable[[], float]
    other_destinations: Callable[[str], Sequence[str]]
    slots: int
    security_alerts: SecurityAlerts | None = None
    spans: SpanExporter | None = None
    groups: Mapping[str, Sequence[GroupTerms]] = field(default_factory=dict)
    find_closed: Callable[[Collection[str], int], frozenset[str]] = lambda _names, _ms: frozenset()
    plans: Mapping[str, OutgoingPlan] = field(default_factory=dict)
    expects_urgent: bool = False
    clock_steps: WallClockSteps = field(default_factory=WallClockSteps)
    recent_contexts: dict[str, tuple[Context, ...]] = field(default_factory=dict)
    doubted_contexts: dict[str, set[Context]] = field(default_factory=dict)


class DestinationDrain:
    """One drain of one destination by one worker.

    The drain leases deliveries of the destination and of the groups that it is a member of, a batch of each
    in turn. All of them go over its associations.
    """

    def __init__(
        self, resources: ForwardResources, destination: Destination, remote: Remote, owner: str
    ) -> None:
        """Prepare without any I/O.

        Args:
            resources: Resources of the worker.
            destination: Configuration of the destination.
            remote: Acceptor of the association.
            owner: Name of the worker.
        """
        self._resources = resources
        self._destination = destination
        self._name = destination.name
        self._remote = remote
        self._plan = resources.plans.get(destination.name, AS_STORED)
        self._policy = RetryPolicy.from_destination(destination)
        drain_name = f"{owner}-{uuid.uuid4().hex[:8]}"
        self._slots = min(destination.associations, resources.slots)
        self._slot = DestinationSlot(resources.client, destination, self._slots, drain_name)
        self._titles = TitleRule.from_destination(destination, remote)
        # Titles of senders that the remote refused during this drain, with the reason for a person.
        self._refused_titles: dict[Titles, str] = {}
        groups = (GroupMember(terms, self._name) for terms in resources.groups.get(self._name, ()))
        self._sources = deque(
            Leases(
                resources.ledger,
                self._name if group is None else group.terms.name,
                drain_name,
                self._slots,
                spans=resources.spans,
                titles=self._titles,
                wants_commitment=destination.commitment,
                one_study=destination.one_association_per_study,
                group=group,
                find_closed=resources.find_closed,
            )
            for group in (None, *groups)
        )
        self._leases = self._sources[0]
        self._breaker = CircuitBreaker(
            resources.ledger, destination, remote, resources.rng, resources.is_stopping
        )
        self._association: StoreSCU | None = None
        self._association_titles = self._titles.own
        self._association_study = ""
        self._in_flight: dict[int, Delivery] = {}
        self._sent_at: dict[int, float] = {}  # monotonic seconds, by message ID
        self._notes: dict[int, str] = {}  # changes of data sets in flight, by delivery
        self._offers: dict[Context, tuple[Context, ...]] = {}  # by the context of the stored data set
        # Contexts to propose without any other: all of them, those still to be proposed, those refused so.
        self._sole_contexts: set[Context] = set()
        self._pending_sole_contexts: set[Context] = set()
        self._refused_contexts: set[Context] = set()
        self._doubted_contexts = resources.doubted_contexts.setdefault(self._name, set())
        self._hold = Hold(0)
        # Whether an association has broken since deliveries were leased last.
        self._is_broken = False
        self._has_lost_slot = False
        self._started_at = time.monotonic()
        self._renew_slot_at = self._started_at + SLOT_RENEW_SECONDS
        self._check_others_at = self._check_urgent_at = 0.0

    def run(self) -> bool:
        """Drain the destination. Returns whether it has more due deliveries now.

        Raises:
            redis.RedisError: Redis is away. No delivery was leased.
            LedgerError: The ledger is away. Leases expire by themselves.
        """
        if not self._slot.acquire():
            return False
        try:
            self._hold = self._find_closed()
            if not self._hold.milliseconds:
                self._hold = self._breaker.request_permission(self._tick)
            self._send_due_deliveries()
        except LeaseLostError:
            log.warning("leases_lost", destination=self._name, remedy="somebody else will take them")
        finally:
            self._finish()
        # Other workers continue with the series that they have leased. `LedgerWatch` finds the rest.
        if self._hold.milliseconds or self._resources.is_stopping():
            return False
        return any(not source.is_blocked and source.has_due_delivery() for source in self._sources)

    def _find_closed(self) -> Hold:
        """Return a hold outside the hours of the destination."""
        if not self._destination.hours:
            return Hold(0)
        now_ms = self._resources.ledger.unix_ms()
        opening_ms = self._destination.find_opening_ms(now_ms)
        return Hold(min(opening_ms - now_ms, PAUSE_LOOK_MS))

    def _is_closed_for(self, row: Delivery) -> bool:
        """Return whether a leased delivery must not begin: the hours of its routes have ended meanwhile."""
        return bool(row.hours) and find_wait_ms(row.hours, self._resources.ledger.unix_ms()) > 0

    def _send_due_deliveries(self) -> None:
        idle_since = time.monotonic()
        while not self._must_stop():
            rows = self._lease_batch()
            if rows:
                self._send_batch(deque(group_by_titles(rows, self._titles)))
                self._leases.release_untried()
                self._leases.write_results()
                idle_since = time.monotonic()
                if self._is_broken and self._has_waiting_destination():
                    return
                self._is_broken = False
            elif self._has_study_ended():
                self._release_association()
            elif not self._may_linger(idle_since):
                return
            else:
                is_blocked = any(source.is_blocked for source in self._sources)
                time.sleep(BLOCKED_SECONDS if is_blocked else POLL_SECONDS)
                self._tick()

    def _lease_batch(self) -> list[Delivery]:
        """Lease a batch of the destination or of one of its groups, each in turn, but a study to its end."""
        if self._leases.study is not None:
            return self._leases.lease_due_deliveries(careful=self._breaker.has_unanswered_break)
        for _ in range(len(self._sources)):
            self._leases = self._sources[0]
            self._sources.rotate(-1)
            rows = self._leases.lease_due_deliveries(careful=self._breaker.has_unanswered_break)
            if rows:
                return rows
        return []

    def _must_stop(self) -> bool:
        # A slice ends between two studies if each has an association of its own.
        is_slice_over = time.monotonic() - self._started_at > SLICE_SECONDS and self._leases.study is None
        if not self._hold.milliseconds:
            self._hold = self._find_closed()
        is_held = self._hold.milliseconds > 0
        return is_slice_over or is_held or self._has_lost_slot or self._resources.is_stopping()

    def _has_study_ended(self) -> bool:
        """Whether the association was for one study, of which nothing is due any more."""
        return self._destination.one_association_per_study and self._association is not None

    def _release_association(self) -> None:
        if self._association is not None:
            self._association.release()
            self._association = None

    def _may_linger(self, idle_since: float) -> bool:
        """Return whether to keep an idle association: up to `linger_seconds`, while no destination waits."""
        if self._association is None or not self._association.check_established():
            return False
        now = time.monotonic()
        if now - idle_since >= self._destination.linger_seconds:
            return False
        if now < self._check_others_at:
            return True
        self._check_others_at = now + OTHERS_SECONDS
        return not self._has_waiting_destination()

    def _has_waiting_destination(self) -> bool:
        try:
            return self._slot.has_wakeup_for(self._resources.other_destinations(self._name))
        except redis.RedisError:
            return False

    def _finish(self) -> None:
        for source in self._sources:
            source.close()
        if self._association is not None and self._in_flight:
            self._association.abort()
        elif self._association is not None:
            self._association.release()
        if self._hold.unreachable:
            self._expire_old_deliveries()
        try:
            if self._hold.milliseconds:
                self._slot.release_with_hold(self._hold.milliseconds)
            else:
                self._slot.release()
        except redis.RedisError:
            log.debug("place_not_given_back", destination=self._name)  # The slot expires by itself.
        seconds = round(time.monotonic() - self._started_at, 3)
        for source in self._sources:
            counts = {state.value: count for state, count in source.counts.items()}
            group = {} if source.name == self._name else {"group": source.name}
            if counts:
                log.info("drained", destination=self._name, **group, seconds=seconds, **counts)

    def _expire_old_deliveries(self) -> None:
        """Let deliveries to an unreachable destination die of their age, although they were not tried now."""
        reason = self._policy.describe_expiry(self._hold.unreachable)
        try:
            now_ms = self._resources.ledger.unix_ms()
            before_ms = self._policy.find_expiry_ms(now_ms, self._resources.clock_steps.forward_ms())
            count = sum(source.expire_overdue(before_ms, reason) for source in self._sources)
        except LedgerError as error:
            log.warning("ledger_away", error=str(error))  # The next failure expires them.
            return
        if count:
            log.error("deliveries_given_up", destination=self._name, count=count, reason=reason)

    # --- sending

    def _send_batch(self, waiting: deque[Delivery]) -> None:
        """Send leased deliveries. Those that are not tried stay leased."""
        begun = 0
        while waiting and not self._is_broken and not self._must_stop():
            if begun > AGED_PLACE and self._must_yield(waiting):
                break
            row = waiting.popleft()
            begun += 1
            if row.id not in self._leases.rows or self._is_closed_for(row):
                continue  # lost, or its hours have ended: it is given back
            association = self._association_for(row, waiting)
            if association is None:
                if not self._postpone_refused_titles(row, waiting):
                    return
                continue
            try:
                outcome = self._send_delivery(association, row)
            except StoreAwayError as error:
                self._postpone_for_store(association, row, error)
                break
            if outcome is not None:
                self._apply_outcome(row, outcome, waiting)
            elif len(self._in_flight) >= association.window:
                self._receive_response(association, waiting)
            self._tick()
        self._receive_all_responses(waiting)

    def _must_yield(self, waiting: deque[Delivery]) -> bool:
        """Return whether the rest of a batch gives way to urgent deliveries, with which the next begins."""
        now = time.monotonic()
        if now < self._check_urgent_at or not self._resources.expects_urgent:
            return False
        if self._leases.study is not None:
            return False
        if waiting[0].priority == Priority.URGENT:
            return False
        self._check_urgent_at = now + URGENT_SECONDS
        return any(source.has_urgent() for source in self._sources)

    def _send_delivery(self, association: StoreSCU, row: Delivery) -> Outcome | None:
        """Send one instance. Returns an outcome, or None if its response is still to come.

        Raises:
            StoreAwayError: The store is away, or its disk fails.
        """
        offers = self._offers_of(_context_of(row))
        accepted = [syntax for each, syntax in offers if association.accepted_context_id(each, syntax)]
        if not accepted:
            is_sole = _context_of(row) in self._refused_contexts or len(association.proposed) == len(offers)
            return ContextNotAccepted(_describe_refusal(offers), is_sole)
        try:
            fd = self._open_store_file(row)
        except StoreAwayError:
            raise
        except StoreError as error:
            return FileUnusable(str(error))
        self._leases.note_start(row)
        began_at = time.monotonic()
        try:
            message_id = self._send_file(association, row, fd, accepted)
        except RewriteError as error:
            self._forget_aborted(association)
            return NotRewritable(str(error))
        except AssociationError as error:
            self._record_break(str(error), row)
            return None
        except StoreAwayError:
            raise
        except StoreError as error:
            self._forget_aborted(association)
            return FileUnusable(str(error))
        finally:
            os.close(fd)
        self._in_flight[message_id] = row
        self._sent_at[message_id] = began_at
        return None

    def _send_file(self, association: StoreSCU, row: Delivery, fd: int, accepted: Sequence[str]) -> int:
        """Send the data set of a file, changed as the plan says, and return the message ID."""
        is_changed = bool(self._plan.rewrites) or accepted[0] != row.transfer_syntax_uid
        data_set = self._make_data_set(row, fd, accepted) if is_changed else None
        priority = find_request_priority(Priority(row.priority))
        if data_set is None:
            return association.send_instance(
                fd,
                row.data_set_offset,
                row.size - row.data_set_offset,
                sop_class=row.sop_class_uid,
                sop_instance=row.sop_instance_uid,
                transfer_syntax=row.transfer_syntax_uid,
                priority=priority,
            )
        self._notes[row.id] = data_set.note
        return association.send_data_set(data_set, priority)

    def _make_data_set(self, row: Delivery, fd: int, accepted: Sequence[str]) -> OutgoingDataSet | None:
        stored = StoredDataSet(
            fd,
            row.data_set_offset,
            row.size - row.data_set_offset,
            row.sop_class_uid,
            row.sop_instance_uid,
            row.transfer_syntax_uid,
            row.stored_at,
        )
        try:
            return self._plan.make_data_set(stored, self._tick, accepted)
        except OSError as error:
            raise make_read_error(row.sop_instance_uid, error) from error

    def _forget_aborted(self, association: StoreSCU) -> None:
        """After an abort of ours in the midst of a data set, release what is in flight without counting."""
        if not association.is_established:
            self._in_flight = {}

    def _postpone_refused_titles(self, row: Delivery, waiting: deque[Delivery]) -> bool:
        """Return whether the remote refuses the AE titles of this sender, and postpone the delivery then.

        Deliveries of other senders go on.
        """
        reason = self._refused_titles.get(self._titles.choose_titles(row))
        if reason is not None:
            self._apply_outcome(row, TitlesRefused(reason), waiting)
            self._tick()
        return reason is not None

    def _postpone_for_store(self, association: StoreSCU, row: Delivery, error: StoreAwayError) -> None:
        """Pause the destination, because our store is away. No delivery and no remote is blamed for it.

        Deliveries in flight are sent again if the association was aborted. A file that alone may be damaged
        waits longer, so that the others are sent before it.
        """
        # INVARIANT 11: our faults quarantine no image
        log.warning("store_away", error=str(error), remedy="deliveries wait; see to the store's disk")
        self._hold = Hold(backoff_ms(1, self._policy, self._resources.rng))
        self._forget_aborted(association)
        if isinstance(error.__cause__, OSError) and not is_shortage(error):
            pause_ms = backoff_ms(UNREADABLE_PAUSE_ATTEMPTS, self._policy, self._resources.rng)
            self._leases.add_result(row, Retry(pause_ms, str(error), breaks=row.breaks, is_attempt=False))

    def _open_store_file(self, row: Delivery) -> int:
        try:
            fd = self._resources.store.open_file(row.store_key)
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

    def _receive_response(self, association: StoreSCU, waiting: deque[Delivery]) -> None:
        try:
            message_id, response = association.receive_response()
        except AssociationError as error:
            self._record_break(str(error))
            return
        row = self._in_flight.pop(message_id)
        seconds = time.monotonic() - self._sent_at.pop(message_id)
        current_board().observe(families.SEND_SECONDS, seconds, self._name)
        is_renegotiated = _context_of(row) in self._sole_contexts
        outcome = ResponseReceived(
            response.status, response.error_comment, is_renegotiated, self._note_of(row)
        )
        self._apply_outcome(row, outcome, waiting)
        self._breaker.record_response()

    def _receive_all_responses(self, waiting: deque[Delivery]) -> None:
        while self._in_flight and self._association is not None:
            self._receive_response(self._association, waiting)
            self._tick()

    def _apply_outcome(self, row: Delivery, outcome: Outcome, waiting: deque[Delivery]) -> None:
        decision = decide_delivery(
            outcome, row.attempts, self._age_ms(row), self._policy, self._resources.rng
        )
        if isinstance(decision, Renegotiate):
            self._sole_contexts.add(_context_of(row))
            self._pending_sole_contexts.add(_context_of(row))
            waiting.appendleft(row)
            return
        if isinstance(decision, Dead) and decision.cause is DeathCause.CONTEXT:
            self._refused_contexts.add(_context_of(row))
        self._leases.add_result(row, decision)

    def _age_ms(self, row: Delivery) -> int:
        """Return the age of a delivery. A step of the wall clock makes no delivery older."""
        return unix_ms() - row.created_at - self._resources.clock_steps.forward_ms()

    def _record_break(self, reason: str, sent: Delivery | None = None) -> None:
        """Record that the association broke. Each delivery without a response may be the cause.

        Args:
            reason: Text for a person.
            sent: The delivery that was being sent, if it was not sent completely.
        """
        lost = [*self._in_flight.values(), *([sent] if sent is not None else [])]
        self._in_flight = {}
        self._is_broken = True
        self._count_association("broken")
        self._breaker.refresh()
        for row in lost:
            log.warning(
                "association_broken",
                destination=self._name,
                sop_instance=row.sop_instance_uid,
                breaks=row.breaks + 1,
                error=reason,
            )
            others_pass = self._breaker.has_response_since(row.suspect_since)
            self._apply_outcome(row, AssociationBroken(reason, row.breaks + 1, others_pass), deque())
        # Among several deliveries any may be the cause. A single one that has done so before is the cause.
        is_suspect = len(lost) == 1 and lost[0].breaks > 0
        self._hold = self._breaker.record_break(
            reason, self._tick, is_suspect=is_suspect, others_wait=self._has_untried_delivery()
        )

    def _has_untried_delivery(self) -> bool:
        return any(source.has_untried_delivery() for source in self._sources)

    def _note_of(self, row: Delivery) -> str:
        """Return the change of the data set during transmission, or an empty text."""
        is_odd = has_odd_value(row.size - row.data_set_offset, row.transfer_syntax_uid)
        padded = "its data set has an odd length, and was padded for this remote" if is_odd else ""
        return "; ".join(filter(None, (self._notes.pop(row.id, ""), padded)))

    # --- association

    def _association_for(self, row: Delivery, rest: deque[Delivery]) -> StoreSCU | None:
        """Return an association that offers what `row` needs; None if none can be opened."""
        context, titles = _context_of(row), self._titles.choose_titles(row)
        offers = self._offers_of(_context_of(row))
        if titles in self._refused_titles:
            return None
        association = self._association
        is_sole = context in self._sole_contexts and context not in self._refused_contexts
        must_renegotiate = context in self._pending_sole_contexts
        self._pending_sole_contexts.discard(context)
        if association is not None:
            is_usable = association.check_established() and association.proposed.issuperset(offers)
            is_usable = is_usable and titles == self._association_titles
            is_usable = is_usable and self._may_carry(row)
            is_alone = len(association.proposed) == len(offers)
            if is_usable and not must_renegotiate and (not is_sole or is_alone):
                return association
            self._receive_all_responses(rest)
            self._release_association()
            if self._must_stop():
                return None
        if is_sole or not self._doubted_contexts.isdisjoint(offers):
            return self._open_association(offers, row)
        recent = self._resources.recent_contexts.get(self._name, ())
        if self._leases.study is not None:
            # All contexts of the study, so that its last instance needs no other association.
            of_study = self._leases.find_study_contexts()
            recent = tuple(each for one in of_study for each in self._offers_of(one))
        alike = (other for other in rest if self._titles.choose_titles(other) == titles)
        needed = [
            *offers,
            *(each for other in alike for each in self._offers_of(_context_of(other))),
            *recent,
        ]
        contexts = plan_associations([each for each in needed if each not in self._doubted_contexts])[0]
        self._resources.recent_contexts[self._name] = contexts
        return self._open_association(contexts, row)

    def _may_carry(self, row: Delivery) -> bool:
        """Whether the study of a delivery may go over the open association."""
        if not self._destination.one_association_per_study:
            return True
        return row.study_uid == self._association_study

    def _open_association(
        self, contexts: tuple[Context, ...], row: Delivery, *, has_answered_echo: bool = False
    ) -> StoreSCU | None:
        """Open an association that proposes these contexts; None if that fails.

        A remote may abort or crash when a SOP class is only proposed. One such instance would then block all
        deliveries of the destination. A proposal at which an association ended is therefore doubted: its
        contexts are proposed one by one, each after a C-ECHO. If the remote answers the C-ECHO and still ends
        the association, the instance that needs this context counts as the cause of the break.

        Args:
            contexts: Contexts to propose.
            row: The delivery to send first.
            has_answered_echo: Whether the remote has answered a C-ECHO just now.
        """
        destination, titles = self._destination, self._titles.choose_titles(row)
        offers = self._offers_of(_context_of(row))
        if not has_answered_echo and not self._doubted_contexts.isdisjoint(offers):
            has_answered_echo = self._breaker.answers_echo(self._tick)
        try:
            self._association = StoreSCU.open(
                replace(self._remote, calling_ae=titles.calling, called_ae=titles.called),
                make_proposals(contexts),
                timeouts=Timeouts(destination.connect_seconds, destination.response_seconds),
                async_operations=destination.async_operations,
                bytes_per_second=self._find_rate(),
                on_tick=self._tick,
            )
        except AssociationError as error:
            if self._titles.is_refusal(titles, error):
                self._note_refused_titles(titles, error)
                return None
            if error.cause in PROPOSAL_CAUSES:
                self._resources.recent_contexts.pop(self._name, None)
                self._doubted_contexts.update(contexts)
                if has_answered_echo:
                    self._record_break(f"{error} (at the proposal of {_context_of(row)[0]})", row)
                    return None
                if self._breaker.answers_echo(self._tick):
                    return self._open_association(offers, row, has_answered_echo=True)
            self._record_failure(error)
            return None
        self._association_titles = titles
        self._association_study = row.study_uid
        self._doubted_contexts.difference_update(contexts)
        self._breaker.record_association()
        self._count_association("opened")
        self._note_certificate(self._association.peer_certificate())
        return self._association

    def _offers_of(self, stored: Context) -> tuple[Context, ...]:
        """Return the contexts in which instances of a stored one can be sent, the best first."""
        found = self._offers.get(stored)
        if found is None:
            sop_class, syntax = stored
            found = tuple((sop_class, each) for each in self._plan.list_offers(syntax))
            self._offers[stored] = found
        return found

    def _note_refused_titles(self, titles: Titles, error: AssociationError) -> None:
        """Note that the remote refuses the AE titles of one sender. The circuit of the destination stays."""
        self._refused_titles[titles] = describe_refused_titles(titles, self._titles.passed, str(error))
        self._count_association("refused")
        log.warning(
            "titles_refused",
            destination=self._name,
            calling_ae=titles.calling,
            called_ae=titles.called,
            error=str(error),
            remedy="add the AE title at the remote, or change pass_through of the destination",
        )

    def _find_rate(self) -> float:
        """Return the limit of one association in bytes per second; 0 means no limit."""
        return self._destination.find_bandwidth_mb_per_s(self._resources.ledger.unix_ms()) * 1e6 / self._slots

    def _record_failure(self, error: AssociationError) -> None:
        """Record that no association was established. No instance is the cause, and no attempt is counted."""
        alerts = self._resources.security_alerts
        if alerts is not None and error.cause in AUTHENTICATION_CAUSES:
            alerts.report(self._destination.host, self._destination.ae_title, str(error))
        kind = FailureKind.REFUSED if error.permanent else FailureKind.UNREACHABLE
        self._count_association("refused" if error.permanent else "unreachable")
        unreachable = self._hold.unreachable if error.permanent else str(error)
        self._hold = Hold(self._breaker.record_failure(kind, str(error)), unreachable)

    def _count_association(self, result: str) -> None:
        current_board().add(families.DESTINATION_ASSOCIATIONS, self._name, result)

    def _note_certificate(self, der: bytes | None) -> None:
        with contextlib.suppress(PeerError):  # OpenSSL is less strict, and has accepted the certificate.
            if der is not None:
                self._resources.observed_certificates.record("destination", self._name, read_identity(der))

    def _tick(self) -> None:
        """Renew slot and leases that are due. Called at least twice a second, also during one instance."""
        now = time.monotonic()
        if now >= self._renew_slot_at:
            self._renew_slot_at = now + SLOT_RENEW_SECONDS
            # INVARIANT 2: the slot is a hint. While Redis is away, the leases alone count.
            with contextlib.suppress(redis.RedisError):
                self._has_lost_slot = not self._slot.renew()
            if not self._hold.milliseconds:
                self._hold = self._breaker.find_pause()
            if self._association is not None and self._destination.bandwidth_by_hours:
                self._association.limit_rate(self._find_rate())
        self._leases.write_and_renew()


def _context_of(row: Delivery) -> Context:
    return row.sop_class_uid, row.transfer_syntax_uid


def _describe_refusal(offers: Sequence[Context]) -> str:
    """Say which transfer syntaxes a remote refuses."""
    (sop_class, first), others = offers[0], [syntax for _, syntax in offers[1:]]
    return f"no context accepted for {sop_class} in {' nor in '.join([first, *others])}"
