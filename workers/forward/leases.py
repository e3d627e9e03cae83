"""What one worker has leased of one destination, and what it has to write about it.

What is leased is either concluded (delivered, to be tried again, dead) or given back; a worker that dies
leaves leases that end by themselves.
"""

import time
from collections import Counter
from typing import Final

import structlog

from ingest.errors import LeaseLostError, LedgerError
from ingest.ledger import Delivery, DeliveryResult, DeliveryState, Ledger
from ingest.workers.forward.retry_policy import Dead, Decision, Delivered, Retry

BATCH: Final = 64
LEASE_MILLISECONDS: Final = 10_000
RENEW_SECONDS: Final = 3.0
RETRY_SECONDS: Final = 1.0

SUSPECT_MILLISECONDS: Final = 10_000
"""How long a suspect waits after its time for a moment in which nobody else sends."""

OVERDUE_MILLISECONDS: Final = 30_000
"""How long a suspect waits after its time while others are due all the time."""

SUSPECT_SECONDS: Final = 5.0
"""How often a worker that always has something else to send looks for a suspect that waits too long."""

FINISH_SECONDS: Final = 0.5
"""Results wait for others at most so long before they are written together."""

log = structlog.get_logger()


class Leases:
    """The leases of one turn.

    Attributes:
        rows: What is leased and not concluded, by id.
        blocked: Whether there was something due, of series that others have in hand.
        counts: How many were concluded, by state.
    """

    def __init__(self, ledger: Ledger, destination: str, owner: str, workers: int) -> None:
        """Begin with nothing.

        Args:
            ledger: The ledger.
            destination: Its name.
            owner: Unique to this turn.
            workers: How many may drain the destination at a time.
        """
        self.rows: dict[int, Delivery] = {}
        self.blocked = False
        self.counts: Counter[DeliveryState] = Counter()
        self._ledger = ledger
        self._destination = destination
        self._owner = owner
        self._workers = workers
        self._results: list[DeliveryResult] = []
        self._ends = self._renew_at = self._finish_at = 0.0
        self._suspect_at = time.monotonic() + SUSPECT_SECONDS

    def due(self) -> bool:
        """Whether there is something to lease now; LedgerError while the ledger is away."""
        when = self._ledger.deliveries.find_next_due_ms(self._destination)
        return when is not None and when <= self._ledger.unix_ms()

    def take(self, *, careful: bool) -> list[Delivery]:
        """Lease what is due, in order of arrival, at most a batch, or one suspect where nothing else is due.

        Args:
            careful: Whether an instance broke an association and none has been answered for since.

        Raises:
            LedgerError: The ledger is away.
        """
        self.blocked = False
        if not self.due():
            return []
        now = time.monotonic()
        rows = self._overdue_suspect(now) if not careful else []
        rows = rows or self._ledger.deliveries.lease_due(
            self._destination,
            self._owner,
            BATCH,
            self._ledger.unix_ms(),
            LEASE_MILLISECONDS,
            self._workers,
            careful=careful,
        )
        rows = rows or self._suspect()
        self.rows = {row.id: row for row in rows}
        self.blocked = not rows
        self._leased_at(now)
        return rows

    def untried_left(self) -> bool:
        """Whether there is something due that was not tried yet; LedgerError while the ledger is away."""
        return any(row.attempts == 1 for row in self.rows.values()) or self._ledger.deliveries.has_untried(
            self._destination, self._ledger.unix_ms()
        )

    def conclude(self, row: Delivery, decision: Decision) -> None:
        """Note what became of a delivery; `finish` writes it."""
        if row.id not in self.rows:
            return
        del self.rows[row.id]
        if not self._results:
            self._finish_at = time.monotonic() + FINISH_SECONDS
        result = self._result(row, decision)
        self._results.append(result)
        self.counts[result.state] += 1
        if isinstance(decision, Dead):
            # A remote's comment may hold what is a patient's: it goes into the ledger, not into the log.
            said = decision.reason if decision.status is None else f"answered {decision.status:04X}H"
            log.warning(
                "delivery_dead", destination=self._destination, sop_instance=row.sop_instance_uid, reason=said
            )

    def tick(self) -> None:
        """Often, also while an instance is on its way: write what waits, renew what is held.

        Raises:
            LeaseLostError: The leases have ended, for the ledger could not be asked.
        """
        now = time.monotonic()
        if self._results and now >= self._finish_at:
            try:
                self.finish()
            except LedgerError as error:
                log.warning("ledger_away", error=str(error))
                self._finish_at = time.monotonic() + RETRY_SECONDS
        if self.rows and now >= self._renew_at:
            self._renew(now)

    def finish(self) -> None:
        """Write what waits, in one transaction; LedgerError while the ledger is away, and it waits on."""
        if self._results:
            self._ledger.deliveries.record_results(self._destination, self._results, self._ledger.unix_ms())
            self._results = []

    def give_back(self) -> None:
        """Give back what was not attempted; LedgerError while the ledger is away."""
        if self.rows:
            self._ledger.deliveries.release_leases(list(self.rows), self._owner)
            self.rows = {}

    def end(self) -> None:
        """Write and give back what there is, insisting for as long as the leases last.

        What cannot be written then is sent once more by somebody else, which the remote can bear.
        """
        while True:
            try:
                self.finish()
                self.give_back()
            except LedgerError as error:
                if time.monotonic() >= self._ends:
                    log.warning("ledger_away", error=str(error), results_lost=len(self._results))
                    return
                time.sleep(0.1)
            else:
                return

    def _overdue_suspect(self, now: float) -> list[Delivery]:
        """A suspect that has waited too long for a moment in which nothing else is due."""
        if now < self._suspect_at:
            return []
        self._suspect_at = now + SUSPECT_SECONDS
        due = self._ledger.deliveries.find_next_suspect_ms(self._destination)
        return (
            self._suspect()
            if due is not None and due <= self._ledger.unix_ms() - OVERDUE_MILLISECONDS
            else []
        )

    def _suspect(self) -> list[Delivery]:
        found = self._ledger.deliveries.lease_suspect(
            self._destination, self._owner, self._ledger.unix_ms(), LEASE_MILLISECONDS, SUSPECT_MILLISECONDS
        )
        return [found] if found is not None else []

    def _leased_at(self, now: float) -> None:
        self._ends = now + LEASE_MILLISECONDS / 1000
        self._renew_at = now + RENEW_SECONDS

    def _renew(self, now: float) -> None:
        try:
            kept = self._ledger.deliveries.renew_leases(
                list(self.rows), self._owner, self._ledger.unix_ms(), LEASE_MILLISECONDS
            )
        except LedgerError as error:
            if time.monotonic() >= self._ends:
                self.rows = {}
                raise LeaseLostError from error
            self._renew_at = time.monotonic() + RETRY_SECONDS
            return
        self._leased_at(now)
        self.rows = {number: row for number, row in self.rows.items() if number in kept}

    def _result(self, row: Delivery, decision: Decision) -> DeliveryResult:
        breaks, since, attempted = row.breaks, 0, True
        match decision:
            case Delivered(status, remark):
                state, at = DeliveryState.DELIVERED, 0
            case Retry(after_ms, remark, status, broken, attempted):
                state, at = DeliveryState.RETRY, self._ledger.unix_ms() + after_ms
                breaks, since = broken, (row.suspect_since or self._ledger.unix_ms()) if broken else 0
            case Dead(remark, status, broken):
                state, at, breaks = DeliveryState.DEAD, 0, max(breaks, broken)
        return DeliveryResult(
            id=row.id,
            owner=self._owner,
            state=state,
            last_status=status,
            last_error=remark,
            next_at=at,
            size=row.size,
            breaks=breaks,
            suspect_since=since,
            attempted=attempted,
        )
