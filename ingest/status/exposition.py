"""The metrics of a node in the text format of Prometheus.

What the processes count comes from the metrics board (`ingest.metrics`). What stands in spool, queue, ledger
and on disks is read when somebody asks (`ingest.status.gathered_metrics`), within a deadline.
"""

import threading
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ingest.config.model import Config
from ingest.ext.shared_counters import DURATION_BOUNDS_NS
from ingest.metrics.board import Histogram, MetricsBoard, merge_samples
from ingest.metrics.board_file import read_boards
from ingest.metrics.families import FAMILIES, Choice, Family, Kind
from ingest.status.gathered_metrics import PARTS, Part
from ingest.status.part_reader import DEADLINE_SECONDS, PartReaders

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

SCRAPE_ERRORS: Final = Family(
    "scrape_errors",
    Kind.COUNTER,
    "Parts that a scrape left out, because they could not be read in time or at all.",
    (Choice("part", tuple(part.name for part in PARTS)),),
)
SCRAPE_SECONDS: Final = Family(
    "scrape_part_seconds",
    Kind.GAUGE,
    "Duration of the last reading of a part.",
    (Choice("part", tuple(part.name for part in PARTS)),),
)

_BOUNDS: Final = (*(repr(bound / 1e9) for bound in DURATION_BOUNDS_NS), "+Inf")


class NodeCollector(Collector):
    """Collects all metrics of one node. It may be asked by several threads."""

    def __init__(
        self, config: Config, parts: Iterable[Part] = PARTS, deadline_seconds: float = DEADLINE_SECONDS
    ) -> None:
        """Prepare without reading anything."""
        self.config = config
        self._readers = PartReaders(config, parts, deadline_seconds)
        self._lock = threading.Lock()

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics, within the deadline."""
        with self._lock:
            yield from _convert_boards(read_boards(self.config.run_dir).values())
            yield from self._collect_parts()

    def _collect_parts(self) -> Iterator[Metric]:
        found: dict[str, Any] = {}
        for sample in self._readers.read_parts():
            metric = found.setdefault(sample.family.name, _begin_metric(sample.family))
            metric.add_metric(sample.labels, float(sample.value))
        yield from found.values()
        errors, seconds = _begin_metric(SCRAPE_ERRORS), _begin_metric(SCRAPE_SECONDS)
        for part, duration in self._readers.seconds.items():
            errors.add_metric((part,), self._readers.errors[part])
            seconds.add_metric((part,), duration)
        yield from (errors, seconds)


def _convert_boards(boards: Iterable[MetricsBoard]) -> Iterator[Metric]:
    boards = list(boards)
    for family in FAMILIES if boards else ():
        metric = _begin_metric(family)
        for labels, value in merge_samples(boards, family).items():
            if isinstance(value, Histogram):
                buckets = list(zip(_BOUNDS, accumulate(value.counts), strict=True))
                metric.add_metric(labels, buckets, value.sum_seconds)
            else:
                metric.add_metric(labels, value)
        yield metric


def _begin_metric(family: Family) -> Any:
    labels = [label.name for label in family.labels]
    kind = {
        Kind.COUNTER: CounterMetricFamily,
        Kind.GAUGE: GaugeMetricFamily,
        Kind.HISTOGRAM: HistogramMetricFamily,
    }[family.kind]
    return kind(f"dicom_ingest_{family.name}", family.text, labels=labels)


_collectors: dict[str, NodeCollector] = {}
_collectors_lock: Final = threading.Lock()


def render_metrics(config: Config) -> bytes:
    """Return the metrics of the node with this configuration, with the content type CONTENT_TYPE.

    Several calls share one recent reading.
    """
    with _collectors_lock:
        collector = _collectors.get(str(config.run_dir))
        if collector is None or collector.config != config:
            collector = _collectors[str(config.run_dir)] = NodeCollector(config)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return generate_latest(registry)
