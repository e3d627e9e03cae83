"""The metrics of a node in the text format of Prometheus.

What the processes count comes from the metrics board (`ingest.metrics`). What stands in spool, queue, ledger
and on disks is read when somebody asks (`ingest.status.gathered_metrics`). A scrape never hangs: every part
is read by a thread of its own, and a part that does not come within the deadline is left out and counted. A
thread that hangs in a dead mount is not started a second time.
"""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
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
from ingest.status.gathered_metrics import PARTS, GatheredSample, Part

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

DEADLINE_SECONDS: Final = 4.0
"""Time for all parts of one scrape. Prometheus itself waits 10 s by default."""

COST_FACTOR: Final = 10
"""The samples of a part are used for this many times the duration of its reading, if that is longer."""

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


class PartReader:
    """Reads one part in a thread, and keeps its samples for a while."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.seconds = 0.0
        self._thread: threading.Thread | None = None
        self._samples: Sequence[GatheredSample] | None = None
        self._fresh_until = 0.0

    def begin(self, config: Config) -> None:
        """Begin to read, unless the samples are fresh or an earlier reading has not ended."""
        is_reading = self._thread is not None and self._thread.is_alive()
        if is_reading or time.monotonic() < self._fresh_until:
            return
        self._samples = None
        self._thread = threading.Thread(
            target=self._read, args=(config,), name=f"scrape-{self.part.name}", daemon=True
        )
        self._thread.start()

    def wait(self, deadline: float) -> Sequence[GatheredSample] | None:
        """Return the samples; None if the part cannot be read, or not until a monotonic time."""
        if self._thread is not None:
            self._thread.join(max(0.0, deadline - time.monotonic()))
            if self._thread.is_alive():
                return None
        return self._samples

    def _read(self, config: Config) -> None:
        began = time.monotonic()
        # Whatever happens here, the part is left out. `ingest status` and the log say why.
        with contextlib.suppress(Exception):
            self._samples = list(self.part.read(config))
        self.seconds = time.monotonic() - began
        if self._samples is not None:
            self._fresh_until = time.monotonic() + max(self.part.fresh_seconds, COST_FACTOR * self.seconds)


class NodeCollector(Collector):
    """Collects all metrics of one node. It may be asked by several threads."""

    def __init__(
        self, config: Config, parts: Iterable[Part] = PARTS, deadline_seconds: float = DEADLINE_SECONDS
    ) -> None:
        """Prepare without reading anything."""
        self.config = config
        self._readers = [PartReader(part) for part in parts]
        self._deadline_seconds = deadline_seconds
        self._errors: Counter[str] = Counter()
        self._lock = threading.Lock()

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics, within the deadline."""
        with self._lock:
            yield from _convert_boards(read_boards(self.config.run_dir).values())
            yield from self._collect_parts()

    def _collect_parts(self) -> Iterator[Metric]:
        deadline = time.monotonic() + self._deadline_seconds
        for reader in self._readers:
            reader.begin(self.config)
        found: dict[str, Any] = {}
        for reader in self._readers:
            samples = reader.wait(deadline)
            if samples is None:
                self._errors[reader.part.name] += 1
            for sample in samples or ():
                family = sample.family
                metric = found.setdefault(family.name, _begin_metric(family))
                metric.add_metric(sample.labels, float(sample.value))
        yield from found.values()
        errors, seconds = _begin_metric(SCRAPE_ERRORS), _begin_metric(SCRAPE_SECONDS)
        for reader in self._readers:
            name = reader.part.name
            errors.add_metric((name,), self._errors[name])
            seconds.add_metric((name,), reader.seconds)
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

    Several calls share what was read shortly before.
    """
    with _collectors_lock:
        collector = _collectors.get(str(config.run_dir))
        if collector is None or collector.config != config:
            collector = _collectors[str(config.run_dir)] = NodeCollector(config)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return generate_latest(registry)
