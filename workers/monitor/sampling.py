"""The task of the monitor that takes a sample of the node's counters and gauges every 20 seconds."""

from typing import Any, Final

from ingest.clock import unix_ms
from ingest.config.model import Config
from ingest.ledger import Ledger
from ingest.ledger.samples import NAMES_MAX, StoredSample
from ingest.metrics import families
from ingest.metrics.board import Histogram, MetricsBoard, merge_samples
from ingest.metrics.board_file import read_boards
from ingest.operations.charts import find_sample_source
from ingest.status import gathered_metrics
from ingest.status.part_reader import PartReaders

PERIOD_SECONDS: Final = 20.0

_HISTOGRAMS: Final = {
    "receive": families.RECEIVE_SECONDS,
    "commit": families.COMMIT_SECONDS,
    "queue": families.QUEUE_SECONDS,
}
_GAUGES: Final = {
    gathered_metrics.SPOOL_ENTRIES: "spool_entries",
    gathered_metrics.SPOOL_OLDEST: "spool_oldest_seconds",
    gathered_metrics.QUEUE_ENTRIES: "queue_entries",
    gathered_metrics.QUEUE_OLDEST: "queue_oldest_seconds",
    gathered_metrics.ASSOCIATIONS_OPEN: "associations",
}
_PARTS: Final = tuple(
    part for part in gathered_metrics.PARTS if part.name in {"node", "spool", "queue", "ledger", "disks"}
)
_OPEN_STATES: Final = ("waiting", "sending", "retry")


class Sampler:
    """Takes samples of one node and keeps them in the ledger."""

    def __init__(self, config: Config, ledger: Ledger) -> None:
        """Prepare without reading anything."""
        self._config = config
        self._ledger = ledger
        self._source = find_sample_source(config)
        self._readers = PartReaders(config, _PARTS)
        self._minute = 0

    def take_sample(self) -> None:
        """Take one sample. What cannot be read now is left out of it.

        Raises:
            LedgerError: The ledger is away. The next sample has the same counters, so only gauges are lost.
        """
        at_ms = unix_ms()
        content = compose_counters(read_boards(self._config.run_dir)) | self._compose_gauges()
        is_minute = at_ms // 60_000 != self._minute
        self._ledger.samples.add_sample(self._source, StoredSample(at_ms, content), is_minute=is_minute)
        self._minute = at_ms // 60_000

    def _compose_gauges(self) -> dict[str, Any]:
        gauges: dict[str, Any] = {}
        backlogs: dict[str, int] = {}
        ages: dict[str, float] = {}
        free: dict[str, int] = {}
        for sample in self._readers.read_parts():
            if sample.family in _GAUGES:
                gauges[_GAUGES[sample.family]] = round(sample.value, 1)
            elif sample.family is gathered_metrics.DISK_FREE:
                free[sample.labels[0]] = round(sample.value)
            elif sample.family is gathered_metrics.DELIVERY_OLDEST:
                ages[sample.labels[0]] = round(sample.value, 1)
            elif sample.family is gathered_metrics.DELIVERIES and sample.labels[1] in _OPEN_STATES:
                name = sample.labels[0]
                backlogs[name] = backlogs.get(name, 0) + round(sample.value)
        if backlogs:
            largest = sorted(backlogs, key=lambda name: -backlogs[name])[:NAMES_MAX]
            gauges["backlog"] = sum(backlogs.values())
            gauges["delivery_oldest_seconds"] = max(ages.values(), default=0.0)
            gauges["backlogs"] = {name: [backlogs[name], ages.get(name, 0.0)] for name in largest}
        return gauges | ({"free": free} if free else {})


def compose_counters(boards: dict[str, MetricsBoard]) -> dict[str, Any]:
    """Return the counters of the boards as values for JSON; empty without a board."""
    if not boards:
        return {}
    received, received_bytes = (
        {labels[0]: value for labels, value in merge_samples(boards.values(), family).items()}
        for family in (families.INSTANCES, families.RECEIVED_BYTES)
    )
    delivered: dict[str, int] = {}
    for labels, value in merge_samples(boards.values(), families.DELIVERY_RESULTS).items():
        if labels[1] == "delivered" and not isinstance(value, Histogram):
            delivered[labels[0]] = int(value)
    delivered_bytes = sum(
        int(value)
        for value in merge_samples(boards.values(), families.DELIVERED_BYTES).values()
        if not isinstance(value, Histogram)
    )
    times = {name: list(_read_histogram(boards, family)) for name, family in _HISTOGRAMS.items()}
    times["delivery"] = list(_read_histogram(boards, families.DELIVERY_SECONDS))
    return {
        "received": sum(map(_to_int, received.values())),
        "received_bytes": sum(map(_to_int, received_bytes.values())),
        "delivered": sum(delivered.values()),
        "delivered_bytes": delivered_bytes,
        "refused": sum(map(_to_int, merge_samples(boards.values(), families.INSTANCES_REFUSED).values())),
        "callers": _keep_largest({name: _to_int(value) for name, value in received.items()}),
        "destinations": _keep_largest(delivered),
        "times": times,
    }


def _to_int(value: float | Histogram) -> int:
    return value.count if isinstance(value, Histogram) else int(value)


def _keep_largest(counts: dict[str, int]) -> dict[str, int]:
    largest = sorted(counts.items(), key=lambda item: -item[1])[:NAMES_MAX]
    return {name: count for name, count in largest if count}


def _read_histogram(boards: dict[str, MetricsBoard], family: families.Family) -> list[int]:
    """Return the counts of a histogram, added up over all its labels."""
    found = merge_samples(boards.values(), family).values()
    counts = [value.counts for value in found if isinstance(value, Histogram)]
    return [sum(each) for each in zip(*counts, strict=True)]
