"""Series for charts, made from the samples in the ledger (`ingest.ledger.samples`)."""

import contextlib
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from ingest.clock import unix_ms
from ingest.config.model import Config
from ingest.ext.shared_counters import DURATION_BOUNDS_NS
from ingest.ledger import Ledger
from ingest.ledger.samples import NAMES_MAX, StoredSample

SPANS: Final = {"hour": (3600, 30), "day": (24 * 3600, 300)}
"""Length of a chart and of one step in it, in seconds, by name."""

GAP_SECONDS: Final = 180
"""Samples that lie further apart have a gap between them: the monitor did not run."""

_RATES: Final = {
    "received": "received_per_second",
    "received_bytes": "received_bytes_per_second",
    "delivered": "delivered_per_second",
    "delivered_bytes": "delivered_bytes_per_second",
    "refused": "refused_per_second",
}
_GAUGES: Final = (
    "spool_entries",
    "spool_oldest_seconds",
    "queue_entries",
    "queue_oldest_seconds",
    "associations",
    "backlog",
    "delivery_oldest_seconds",
)
_TIMES: Final = ("receive", "commit", "queue", "delivery")
_QUANTILES: Final = {"p50": 0.5, "p99": 0.99}

Column = list[float | None]


@dataclass(frozen=True, slots=True)
class Charts:
    """The series of one span. All columns have the length of `times`; None where nothing is known.

    Attributes:
        span: "hour" or "day".
        step_seconds: Time between two points.
        times: End of each step, in Unix seconds.
        series: Columns of the whole node by name: `received_per_second`, `received_bytes_per_second`,
            `delivered_per_second`, `delivered_bytes_per_second`, `refused_per_second`; `spool_entries`,
            `spool_oldest_seconds`, `queue_entries`, `queue_oldest_seconds`, `associations`, `backlog`,
            `delivery_oldest_seconds`; `receive_p50_seconds`, `receive_p99_seconds`, and the same for
            `commit`, `queue` and `delivery`; `free_spool_bytes`, `free_store_bytes`, `free_data_bytes`.
        callers: Received instances per second, by calling AE title.
        destinations: Delivered instances per second, by destination.
        backlogs: Open deliveries, by destination.
    """

    span: str
    step_seconds: int
    times: list[int]
    series: dict[str, Column] = field(default_factory=dict)
    callers: dict[str, Column] = field(default_factory=dict)
    destinations: dict[str, Column] = field(default_factory=dict)
    backlogs: dict[str, Column] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the values for JSON."""
        return asdict(self)


def find_sample_source(config: Config) -> str:
    """Return the name under which the samples of this node stand in its ledger."""
    return f"{socket.gethostname()}:{config.data_dir}"


def show_charts(config: Config, span: str = "hour") -> Charts:
    """Return the series of the last hour or day; see `read_charts`."""
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        return read_charts(config, ledger, span)


def read_charts(config: Config, ledger: Ledger, span: str = "hour", now_ms: int | None = None) -> Charts:
    """Return the series of the last hour or day.

    Args:
        config: The configuration.
        ledger: Its ledger.
        span: A name of SPANS.
        now_ms: End of the charts, in Unix milliseconds; None means now.

    Raises:
        KeyError: There is no such span.
        LedgerError: The ledger is away.
    """
    length_seconds, step_seconds = SPANS[span]
    now = (unix_ms() if now_ms is None else now_ms) // 1000
    end = now // step_seconds * step_seconds
    since_ms = (end - length_seconds - GAP_SECONDS) * 1000
    found = ledger.samples.read_samples(find_sample_source(config), since_ms)
    times = list(range(end - length_seconds + step_seconds, end + 1, step_seconds))
    charts = Charts(span, step_seconds, times)
    for index, (before, after) in enumerate(_choose_pairs(found, times, step_seconds)):
        if after is not None:
            _fill_gauges(charts, index, after)
        if (
            after is not None
            and before is not None
            and "times" in after.content
            and "times" in before.content
        ):
            _fill_rates(charts, index, before, after)
    return charts


def _choose_pairs(
    samples: Sequence[StoredSample], times: Sequence[int], step_seconds: int
) -> list[tuple[StoredSample | None, StoredSample | None]]:
    """Return for each step the last sample before it and the last one within it; None where there is none."""
    pairs: list[tuple[StoredSample | None, StoredSample | None]] = []
    at, before = 0, None
    for time in times:
        while at < len(samples) and samples[at].at_ms <= (time - step_seconds) * 1000:
            before = samples[at]
            at += 1
        last = None
        ahead = at
        while ahead < len(samples) and samples[ahead].at_ms <= time * 1000:
            last = samples[ahead]
            ahead += 1
        if (
            before is not None
            and last is not None
            and last.at_ms - before.at_ms > GAP_SECONDS * 1000 + (step_seconds * 1000)
        ):
            before = None
        pairs.append((before, last))
    return pairs


def _fill_gauges(charts: Charts, index: int, after: StoredSample) -> None:
    new = after.content
    for name in _GAUGES:
        if name in new:
            _put(charts, charts.series, name, index, new[name])
    for use, free_bytes in new.get("free", {}).items():
        _put(charts, charts.series, f"free_{use}_bytes", index, free_bytes)
    for name, (backlog, _) in new.get("backlogs", {}).items():
        _put(charts, charts.backlogs, name, index, backlog)


def _fill_rates(charts: Charts, index: int, before: StoredSample, after: StoredSample) -> None:
    new, old, seconds = after.content, before.content, (after.at_ms - before.at_ms) / 1000
    for counter, name in _RATES.items():
        _put(charts, charts.series, name, index, _subtract(new[counter], old[counter]) / seconds)
    for columns, key in ((charts.callers, "callers"), (charts.destinations, "destinations")):
        for name, count in new[key].items():
            # In a full list a missing name may have had any count.
            if name in old[key] or len(old[key]) < NAMES_MAX:
                _put(charts, columns, name, index, _subtract(count, old[key].get(name, 0)) / seconds)
    for name in _TIMES:
        counts = _subtract_all(new["times"][name], old["times"][name])
        for suffix, quantile in _QUANTILES.items():
            found = estimate_quantile(counts, quantile)
            if found is not None:
                _put(charts, charts.series, f"{name}_{suffix}_seconds", index, found)


def _put(charts: Charts, columns: dict[str, Column], name: str, index: int, value: float) -> None:
    column = columns.get(name)
    if column is None:
        column = columns[name] = [None] * len(charts.times)
    column[index] = round(value, 6)


def _subtract(new: float, old: float) -> float:
    """Return the increase of a counter; a counter that became smaller was reset to zero."""
    return new - old if new >= old else new


def _subtract_all(new: Sequence[int], old: Sequence[int]) -> list[int]:
    if len(old) != len(new) or any(each < known for each, known in zip(new, old, strict=True)):
        return list(new)
    return [each - known for each, known in zip(new, old, strict=True)]


def estimate_quantile(counts: Sequence[int], quantile: float) -> float | None:
    """Estimate a quantile in seconds from the counts of a histogram; None if it is empty.

    Durations are taken as spread evenly between two bounds. Beyond the last bound nothing is known, so that
    bound is returned.
    """
    total = sum(counts)
    if not total:
        return None
    rank, below = quantile * total, 0
    for at, count in enumerate(counts[: len(DURATION_BOUNDS_NS)]):
        if count and below + count >= rank:
            low = DURATION_BOUNDS_NS[at - 1] if at else 0
            return (low + (DURATION_BOUNDS_NS[at] - low) * (rank - below) / count) / 1e9
        below += count
    return DURATION_BOUNDS_NS[-1] / 1e9
