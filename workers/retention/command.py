"""One retention run, or its plan, as `ingest retention` asks for them."""

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ingest.config.model import Config
from ingest.errors import ClockJumpError
from ingest.ledger import Ledger
from ingest.operations.times import format_iso_time
from ingest.workers.retention.policy import RetentionDecision
from ingest.workers.retention.remover import Remover, RetentionClock, RetentionReport


@dataclass(frozen=True, slots=True)
class RetentionPlan:
    """The removals that a retention run would make.

    Attributes:
        removed: Studies that it would remove.
        held: Studies that it would keep, because a destination does not have them yet.
        kept_bytes: Bytes in the store now.
    """

    removed: Sequence[RetentionDecision]
    held: Sequence[RetentionDecision]
    kept_bytes: int

    @property
    def left_bytes(self) -> int:
        """Bytes in the store after the run."""
        return self.kept_bytes - sum(one.study.size for one in self.removed)

    def to_json(self) -> dict[str, Any]:
        """Return the plan for JSON."""
        return {
            "go": [_decision_to_json(one) for one in self.removed],
            "held": [_decision_to_json(one) for one in self.held],
            "kept_bytes": self.kept_bytes,
            "left_bytes": self.left_bytes,
        }


@dataclass(frozen=True, slots=True)
class RetentionRun:
    """The result of a retention run.

    Attributes:
        report: The numbers of the remover.
        kept_bytes: Bytes in the store after the run.
    """

    report: RetentionReport
    kept_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return the numbers for JSON."""
        return {**asdict(self.report), "kept_bytes": self.kept_bytes}


def plan_retention(config: Config) -> RetentionPlan:
    """List the studies that a retention run would remove, and change nothing.

    Raises:
        LedgerError: The ledger is unavailable, or has another schema version.
    """
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        ledger.require_schema()
        decisions = list(Remover(config, ledger).plan())
        kept_bytes = ledger.retention.sum_stored_bytes()
    removed = [one for one in decisions if one.is_removable]
    return RetentionPlan(removed, [one for one in decisions if not one.is_removable], kept_bytes)


def run_retention(config: Config, *, accept_clock: bool = False) -> RetentionRun:
    """Remove instances and rows once.

    Args:
        config: The configuration.
        accept_clock: Whether a person confirms the clock, although it jumped ahead.

    Raises:
        ClockJumpError: The clock has jumped ahead.
        RetentionBusyError: Another process runs retention on this store.
        LedgerError: The ledger is unavailable, or has another schema version.
        StoreError: The store is not there.
    """
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        ledger.require_schema()
        ahead_ms = RetentionClock(config, ledger).check(accept=accept_clock)
        if ahead_ms:
            hours = ahead_ms / 3_600_000
            raise ClockJumpError(
                f"the clock is {hours:.0f} hours ahead of what is plausible: nothing was removed; "
                "correct the clock, or confirm it with --accept-clock"
            )
        report = Remover(config, ledger).run()
        return RetentionRun(report, ledger.retention.sum_stored_bytes())


def _decision_to_json(one: RetentionDecision) -> dict[str, Any]:
    return {
        **asdict(one.study),
        "newest_at": format_iso_time(one.study.newest_at),
        "reason": one.reason.value,
    }
