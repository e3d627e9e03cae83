"""The leases of one drain: lease due deliveries of a destination, and write their results to the ledger.

Each leased delivery either gets a result (delivered, retry, dead) or is released. The leases of a worker that
dies expire by themselves.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Final

import structlog

from ingest.clock import unix_ms
from ingest.errors import LeaseLostError, LedgerError
from ingest.ledger import Delivery, DeliveryResult, DeliveryState, Ledger
from ingest.ledger.group_leases import GroupMember
from ingest.metrics import families
from ingest.metrics.board import current_board
from ingest.workers.forward.retry_policy import Dead, Delivered, DeliveryDecision, Retry
from ingest.workers.forward.titles import TitleRule
from ingest.workers.span_export import SpanExporter

BATCH: Final = 64
LEASE_MS: Final = 10_000
RENEW_SECONDS: Final = 3.0
LEDGER_RETRY_SECONDS: Final = 1.0

SUSPECT_MS: Final = 10_000
"""Time that a suspect, once due, waits for a moment in which no other worker sends."""

OVERDUE_MS: Final = 30_000
"""Time that a suspect, once due, waits while other deliveries are due without pause."""

SUSPECT_CHECK_SECONDS: Final = 5.0
"""Pause between two checks for an overdue suspect by a worker that always has other deliveries."""

WRITE_SECONDS: Final = 0.5
"""Longest time that a result waits for others, to be written with them in one transaction."""

log = structlog.get_logger()


class Leases:
    """The leases of one drain.

    A *suspect* is a delivery during which an association has broken. It is sent alone, and after all others.

    Attributes:
        name: Name of the destination or group.
        rows: Leased deliveries without a result, by id.
        is_blocked: Whether deliveries were due, but all of series that other workers have leased.
        counts: Number of results by state.
        study: With `one_study`, the study of which deliveries are leased now; None between two studies.
    """

    def __init__(
        self,
        ledger: Ledger,
        destination: str,
        owner: str,
        workers: int,
        *,
        spans: SpanExporter | None = None,
        titles: TitleRule | None = None,
        wants_commitment: bool = False,
        one_study: bool = False,
        group: GroupMember | None = None,
        find_closed: Callable[[Collection[str], int], frozenset[str]] = lambda _names, _ms: frozenset(),
    ) -> None:
        """Start without leases.

        Args:
            ledger: The ledger.
            destination: Name of the destination or group that the deliveries have.
            owner: Unique name of this drain.
            workers: Number of workers that may drain the destination at a time.
            spans: Takes a span for each result; None without traces.
            titles: Chooses the AE titles of each delivery; None for the configured ones.
            wants_commitment: Whether the destination is asked to commit to what was delivered.
            one_study: Whether to lease deliveries of one study, until it has no due one any more.
            group: The group and the member that the drain sends to; None for a destination.
            find_closed: Returns those of several destinations whose hours are over.
        """
        self._find_closed = find_closed
        self._group = group
        self._one_study = one_study
        self.study: str | None = None
        self._titles = titles
        self._wants_commitment = wants_commitment
        self.rows: dict[int, Delivery] = {}
        self.is_blocked = False
        self.counts: Counter[DeliveryState] = Counter()
        self._ledger = ledger
        self.name = destination
        self._owner = owner
        self._workers = workers
        self._results: list[DeliveryResult] = []
        self._started: dict[int, float] = {}
        self._spans = spans
        self._expire_at = self._renew_at = self._write_at = 0.0
        self._check_suspect_at = time.monotonic() + SUSPECT_CHECK_SECONDS

    def has_due_delivery(self) -> bool:
        """Return whether a delivery is due now. Raises LedgerError while the ledger is away."""
        due_ms = self._ledger.deliveries.find_next_due_ms(self.name)
        return due_ms is not None and due_ms <= self._ledger.unix_ms()

    def lease_due_deliveries(self, *, careful: bool) -> list[Delivery]:
        """Lease a batch of due deliveries in order of arrival, or one suspect if no other delivery is due.

        Args:
            careful: Whether an instance broke an association, and the remote has responded for none since.

        Raises:
            LedgerError: The ledger is away.
        """
        self.is_blocked = False
        if not self.has_due_delivery():
            self.study = None
            return []
        now = time.monotonic()
        if self._one_study:
            return self._note_leased(self._lease_study(), now)
        rows = [] if careful else self._lease_overdue_suspect(now)
        rows = rows or self._ledger.deliveries.lease_due(
            self.name,
            self._owner,
            BATCH,
            self._ledger.unix_ms(),
            LEASE_MS,
            self._workers,
            careful=careful,
            group=self._group_now(),
        )
        return self._note_leased(rows or self._lease_suspect(), now)

    def _lease_study(self) -> list[Delivery]:
        """Lease more of the study. If it has nothing more, return nothing; the next call finds another."""
        ledger, had_study = self._ledger, self.study is not None
        rows = ledger.deliveries.lease_study(
            self.name, self._owner, BATCH, ledger.unix_ms(), LEASE_MS, self.study, self._group_now()
        )
        self.study = rows[0].study_uid if rows else None
        return rows if rows or had_study else self._lease_suspect()

    def find_study_contexts(self) -> list[tuple[str, str]]:
        """Return SOP classes and transfer syntaxes of the study that is leased now."""
        if self.study is None:
            return []
        return self._ledger.deliveries.find_study_contexts(self.name, self.study)

    def _note_leased(self, rows: list[Delivery], now: float) -> list[Delivery]:
        self.rows = {row.id: row for row in rows}
        self._started.clear()
        self.is_blocked = not rows
        self._note_renewal(now)
        return rows

    def _group_now(self) -> GroupMember | None:
        """Return the group with the members whose hours are over now."""
        if self._group is None:
            return None
        terms = self._group.terms
        closed = self._find_closed(terms.members, self._ledger.unix_ms())
        return replace(self._group, terms=replace(terms, closed=closed))

    def expire_overdue(self, before_ms: int, reason: str) -> int:
        """Let deliveries that are too old die, and return how many. Raises LedgerError while it is away."""
        return self._ledger.deliveries.expire_overdue(
            self.name, before_ms, reason, self._ledger.unix_ms(), self._group_now()
        )

    def has_untried_delivery(self) -> bool:
        """Return whether a due delivery was never tried. Raises LedgerError while the ledger is away."""
        if any(row.attempts == 1 for row in self.rows.values()):
            return True
        return self._ledger.deliveries.has_untried(self.name, self._ledger.unix_ms())

    def has_urgent(self) -> bool:
        """Return whether an urgent delivery waits; False while the ledger is away."""
        try:
            return self._ledger.deliveries.has_urgent(self.name)
        except LedgerError:
            return False

    def note_start(self, row: Delivery) -> None:
        """Note that the first byte of a delivery is sent now."""
        self._started[row.id] = time.monotonic()

    def add_result(self, row: Delivery, decision: DeliveryDecision) -> None:
        """Add the result of a delivery. `write_results` writes it."""
        if row.id not in self.rows:
            return
        del self.rows[row.id]
        if not self._results:
            self._write_at = time.monotonic() + WRITE_SECONDS
        result = self._make_result(row, decision)
        self._results.append(result)
        self.counts[result.state] += 1
        self._count_result(row, result)
        if isinstance(decision, Dead):
            # INVARIANT 9: an error comment may contain patient data. The ledger keeps it, the log does not.
            said = decision.reason if decision.status is None else f"answered {decision.status:04X}H"
            member = {} if self._group is None else {"member": self._group.name}
            log.warning(
                "delivery_dead",
                destination=self.name,
                **member,
                sop_instance=row.sop_instance_uid,
                reason=said,
            )

    def _count_result(self, row: Delivery, result: DeliveryResult) -> None:
        if self._spans is not None:
            self._spans.add_attempt(row, result, result.duration_ms)
        board, name = current_board(), self.name
        board.add(families.DELIVERY_RESULTS, name, result.state)
        if result.state is DeliveryState.DELIVERED:
            board.add(families.DELIVERED_BYTES, name, value=row.size)
            board.observe(families.DELIVERY_SECONDS, (unix_ms() - row.created_at) / 1000, name)

    def write_and_renew(self) -> None:
        """Write results and renew leases if it is time. Called often, also during one large instance.

        Raises:
            LeaseLostError: The leases have expired while the ledger was away.
        """
        now = time.monotonic()
        if self._results and now >= self._write_at:
            try:
                self.write_results()
            except LedgerError as error:
                log.warning("ledger_away", error=str(error))
                self._write_at = time.monotonic() + LEDGER_RETRY_SECONDS
        if self.rows and now >= self._renew_at:
            self._renew(now)

    def write_results(self) -> None:
        """Write all results in one transaction. Raises LedgerError while the ledger is away, keeping them."""
        if self._results:
            member = "" if self._group is None else self._group.name
            self._ledger.deliveries.record_results(self.name, self._results, self._ledger.unix_ms(), member)
            self._results = []

    def release_untried(self) -> None:
        """Release the deliveries that were not tried. Raises LedgerError while the ledger is away."""
        if self.rows:
            self._ledger.deliveries.release_leases(list(self.rows), self._owner)
            self.rows = {}

    def close(self) -> None:
        """Write all results and release the rest. Tries again until the leases expire.

        INVARIANT 2: a result that cannot be written causes a second transfer, and never a lost delivery.
        """
        while True:
            try:
                self.write_results()
                self.release_untried()
            except LedgerError as error:
                if time.monotonic() >= self._expire_at:
                    log.warning("ledger_away", error=str(error), results_lost=len(self._results))
                    return
                time.sleep(0.1)
            else:
                return

    def _lease_overdue_suspect(self, now: float) -> list[Delivery]:
        """Lease a suspect that has waited too long for a moment without other due deliveries."""
        if now < self._check_suspect_at:
            return []
        self._check_suspect_at = now + SUSPECT_CHECK_SECONDS
        due_ms = self._ledger.deliveries.find_next_suspect_ms(self.name)
        if due_ms is None or due_ms > self._ledger.unix_ms() - OVERDUE_MS:
            return []
        return self._lease_suspect()

    def _lease_suspect(self) -> list[Delivery]:
        found = self._ledger.deliveries.lease_suspect(
            self.name, self._owner, self._ledger.unix_ms(), LEASE_MS, SUSPECT_MS, self._group_now()
        )
        return [found] if found is not None else []

    def _note_renewal(self, now: float) -> None:
        # Use the time before the request, so that we never believe in a lease longer than the ledger does.
        self._expire_at = now + LEASE_MS / 1000
        self._renew_at = now + RENEW_SECONDS

    def _renew(self, now: float) -> None:
        try:
            unix_ms = self._ledger.unix_ms()
            renewed = self._ledger.deliveries.renew_leases(list(self.rows), self._owner, unix_ms, LEASE_MS)
        except LedgerError as error:
            if time.monotonic() >= self._expire_at:
                self.rows = {}
                raise LeaseLostError from error
            self._renew_at = time.monotonic() + LEDGER_RETRY_SECONDS
            return
        self._note_renewal(now)
        self.rows = {number: row for number, row in self.rows.items() if number in renewed}

    def _make_result(self, row: Delivery, decision: DeliveryDecision) -> DeliveryResult:
        breaks, suspect_since, is_attempt = row.breaks, 0, True
        started = self._started.pop(row.id, None)
        match decision:
            case Delivered(status, remark):
                state, next_at = DeliveryState.DELIVERED, 0
            case Retry(after_ms, remark, status, new_breaks, is_attempt):
                state, next_at, breaks = DeliveryState.RETRY, self._ledger.unix_ms() + after_ms, new_breaks
                if new_breaks:
                    suspect_since = row.suspect_since or self._ledger.unix_ms()
            case Dead(_, remark, status, new_breaks):
                state, next_at, breaks = DeliveryState.DEAD, 0, max(breaks, new_breaks)
        titles = self._titles
        calling_ae, called_ae = titles.choose_titles(row) if titles and titles.passed else ("", "")
        return DeliveryResult(
            id=row.id,
            owner=self._owner,
            state=state,
            last_status=status,
            last_error=remark,
            next_at=next_at,
            size=row.size,
            breaks=breaks,
            suspect_since=suspect_since,
            attempted=is_attempt,
            duration_ms=None if started is None else round((time.monotonic() - started) * 1000),
            calling_ae=calling_ae,
            called_ae=called_ae,
            wants_commitment=self._wants_commitment,
        )
