"""Apply a decision to several instances in quarantine: `ingest quarantine release`, `retry` and `drop`.

The functions return the outcome for each instance. They print nothing.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from ingest.alarms import QUARANTINE_FULL, clear_alarm
from ingest.config.model import Config
from ingest.errors import NotQuarantinedError
from ingest.ledger import Ledger
from ingest.ledger.announcements import build_announcer
from ingest.operations.deliveries import notify_workers
from ingest.workers.quarantine.decisions import QuarantineDecisions, open_quarantine

RETRIED_MAX: Final = 100_000
"""Instances that one `ingest quarantine retry --all` stores again."""


@dataclass(frozen=True, slots=True)
class DecisionResult:
    """What became of one instance.

    Attributes:
        id: Id of its row.
        outcome: "released" or "stored" with new deliveries; "removed" by a retry, because the same object is
            stored already; "dropped"; "failed".
        destinations: Names of the destinations that get it.
        error: Why the decision failed, for a person to read; otherwise empty.
    """

    id: int
    outcome: Literal["released", "stored", "removed", "dropped", "failed"]
    destinations: tuple[str, ...] = ()
    error: str = ""

    def to_json(self) -> dict[str, object]:
        """Return the result for JSON."""
        return {
            "id": self.id,
            "outcome": self.outcome,
            "destinations": list(self.destinations),
            "error": self.error,
        }


@dataclass(frozen=True, slots=True)
class DecisionResults:
    """The results of one decision for several instances.

    Attributes:
        results: One for each instance, in their order.
        queue_error: Why no forward worker could be notified; empty if all were. Workers find new deliveries
            by themselves within seconds.
    """

    results: tuple[DecisionResult, ...]
    queue_error: str = ""

    @property
    def failures(self) -> tuple[DecisionResult, ...]:
        """The instances for which the decision failed."""
        return tuple(each for each in self.results if each.outcome == "failed")


def ignore_result(_result: DecisionResult) -> None:
    """Do nothing: the default of `progress` below."""


def release_instances(
    config: Config, ids: Sequence[int], progress: Callable[[DecisionResult], None] = ignore_result
) -> DecisionResults:
    """Release instances from quarantine, and wake their destinations.

    Args:
        config: The configuration.
        ids: Ids of their rows.
        progress: Called with each result as soon as it is known.
    """

    def release(decisions: QuarantineDecisions, number: int) -> DecisionResult:
        return DecisionResult(number, "released", tuple(decisions.release(number)))

    return _apply_to_each(config, lambda _: ids, release, progress)


def retry_instances(
    config: Config, ids: Sequence[int], progress: Callable[[DecisionResult], None] = ignore_result
) -> DecisionResults:
    """Store acknowledged instances again, and wake their destinations.

    Args:
        config: The configuration.
        ids: Ids of their rows; all acknowledged instances in quarantine if there are none.
        progress: Called with each result as soon as it is known.
    """

    def retry(decisions: QuarantineDecisions, number: int) -> DecisionResult:
        destinations = decisions.retry(number)
        if destinations is None:
            return DecisionResult(number, "removed")
        return DecisionResult(number, "stored", tuple(destinations))

    return _apply_to_each(
        config, lambda ledger: ids or ledger.quarantine.list_acknowledged_ids(RETRIED_MAX), retry, progress
    )


def drop_instances(
    config: Config, ids: Sequence[int], progress: Callable[[DecisionResult], None] = ignore_result
) -> DecisionResults:
    """Remove instances from quarantine for good.

    Args:
        config: The configuration.
        ids: Ids of their rows.
        progress: Called with each result as soon as it is known.
    """

    def drop(decisions: QuarantineDecisions, number: int) -> DecisionResult:
        decisions.drop(number)
        return DecisionResult(number, "dropped")

    results = _apply_to_each(config, lambda _: ids, drop, progress)
    _clear_alarm_if_below_limit(config)
    return results


def _open_ledger(config: Config) -> Ledger:
    return Ledger(config.ledger_url, announcer=build_announcer(config))


def _clear_alarm_if_below_limit(config: Config) -> None:
    """Clear the alarm of a full quarantine, if the quarantine may take refused copies again."""
    with contextlib.closing(_open_ledger(config)) as ledger:
        limit = config.receive.quarantine_max_bytes
        if not limit or ledger.quarantine.sum_refused_bytes() < limit:
            clear_alarm(config.run_dir, QUARANTINE_FULL)


def _apply_to_each(
    config: Config,
    find_ids: Callable[[Ledger], Sequence[int]],
    decide: Callable[[QuarantineDecisions, int], DecisionResult],
    progress: Callable[[DecisionResult], None],
) -> DecisionResults:
    """Apply a decision to each instance. A failure does not stop the others."""
    results: list[DecisionResult] = []
    with contextlib.closing(_open_ledger(config)) as ledger:
        ledger.require_schema()
        with open_quarantine(config, ledger) as decisions:
            for number in dict.fromkeys(find_ids(ledger)):
                results.append(_decide(decisions, number, decide))
                progress(results[-1])
    # INVARIANT 2: Redis is a hint. The ledger has the deliveries.
    destinations = {name for each in results for name in each.destinations}
    return DecisionResults(tuple(results), notify_workers(config, sorted(destinations)))


def _decide(
    decisions: QuarantineDecisions, number: int, decide: Callable[[QuarantineDecisions, int], DecisionResult]
) -> DecisionResult:
    try:
        return decide(decisions, number)
    except NotQuarantinedError as error:
        return DecisionResult(number, "failed", error=str(error))
    except OSError as error:
        text = f"{number}: its file cannot be read or kept now: {error}; try again later"
        return DecisionResult(number, "failed", error=text)
