"""The whole path under a lasting load: listeners, queue, persist worker and ledger, with fsync."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.load import Load, Result, run
from benchmarks.node import Node, whole
from benchmarks.receivers import Pki

LOOK_SECONDS = 0.5
DRAIN_SECONDS = 300
GROWTH = 0.01
PERSIST = "ingest-persist"


@dataclass(frozen=True, slots=True)
class Sustained:
    """What came of it.

    Attributes:
        name: Of the load.
        seconds: That the load lasted.
        rate: Instances a second that were answered with Success; `mb_s` their data sets.
        drained_seconds: From the last answer until everything was in the store.
        through_rate: Instances a second from the first byte until then.
        queue: (seconds since the start, instances received and not yet in the store).
        growth: Instances a second by which the queue grew over the second half.
        growing: Whether that is more than 1% of the rate.
        cpu_ms: CPU milliseconds an instance, by name of process.
        persist_ms: That of the persist worker.
        p50_ms: Latency; `p99_ms` likewise.
        failed: Instances that were refused.
        missing: Acknowledged and neither in spool nor store.
    """

    name: str
    seconds: float
    rate: float
    mb_s: float
    drained_seconds: float
    through_rate: float
    queue: list[tuple[float, int]]
    growth: float
    growing: bool
    cpu_ms: dict[str, float]
    persist_ms: float
    p50_ms: float
    p99_ms: float
    failed: int
    missing: int


def measure(
    base: Path,
    keys: Pki,
    load: Load,
    name: str,
    *,
    seconds: float = 60,
    step: Callable[[float], None] = lambda _share: None,
) -> dict[str, object]:
    """Find the rate with `load`, then keep the node busy for `seconds` or so.

    Args:
        base: Where the node keeps its data; on the disk that is to be measured.
        keys: Key material.
        load: What to send, for a second or two.
        name: For people.
        seconds: How long.
        step: Called with the share that is done.

    Raises:
        LoadError: The node broke off.
        TimeoutError: The queue did not become empty.
    """
    with whole(base, keys, durability="fsync") as node:
        first = run(node.target, load)
        drain(node)
        each = max(1, round(first.instances / first.seconds * seconds / load.associations))
        lasting = replace(load, instances=each)
        queue: list[tuple[float, int]] = []
        begun = time.perf_counter()
        total = each * load.associations

        def look(answered: int) -> None:
            now = time.perf_counter() - begun
            if not queue or now - queue[-1][0] >= LOOK_SECONDS:
                queue.append((now, node.waiting()))
                step(answered / total)

        before = node.group.by_name()
        result = run(node.target, lasting, progress=look)
        queue.append((time.perf_counter() - begun, node.waiting()))
        drained = drain(node)
        used = {key: value - before.get(key, 0.0) for key, value in node.group.by_name().items()}
        missing = len(node.missing(result.acknowledged()))
        return asdict(_summed(name, result, queue, drained, used, missing))


def growth(queue: list[tuple[float, int]]) -> float:
    """Instances a second by which the queue grew over its second half, by least squares."""
    half = queue[len(queue) // 2 :]
    if len(half) < 2:
        return 0.0
    seconds, waiting = np.asarray(half, dtype=float).T
    return float(np.polyfit(seconds, waiting, 1)[0])


def drain(node: Node) -> float:
    begun = time.monotonic()
    while node.waiting():
        if time.monotonic() - begun > DRAIN_SECONDS:
            raise TimeoutError(f"{node.waiting()} instances are still in the spool; see {node.folder}")
        time.sleep(0.05)
    return time.monotonic() - begun


def _summed(  # noqa: PLR0917 - one call
    name: str,
    result: Result,
    queue: list[tuple[float, int]],
    drained: float,
    used: dict[str, float],
    missing: int,
) -> Sustained:
    rate = result.instances / result.seconds
    grown = growth(queue)
    cpu_ms = {key: value / result.instances * 1e3 for key, value in used.items()}
    return Sustained(
        name=name,
        seconds=result.seconds,
        rate=rate,
        mb_s=result.bytes / result.seconds / 1e6,
        drained_seconds=drained,
        through_rate=result.instances / (result.seconds + drained),
        queue=queue,
        growth=grown,
        growing=grown > GROWTH * rate,
        cpu_ms=cpu_ms,
        persist_ms=cpu_ms.get(PERSIST, 0.0),
        p50_ms=result.latency(0.5) * 1e3,
        p99_ms=result.latency(0.99) * 1e3,
        failed=result.failed,
        missing=missing,
    )
