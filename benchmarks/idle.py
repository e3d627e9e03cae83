"""A thousand associations that say nothing, alone and beside busy ones."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.load import Load, Result, run
from benchmarks.load_idle import idle_associations
from benchmarks.receivers import Factory, Pki, Receiver

ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Idle:
    """What came of it.

    Attributes:
        receiver: Its name.
        associations: That were idle.
        pss_before_mb: Of all its processes, after a first load.
        pss_idle_mb: With the idle ones.
        cpu_percent: Of one core, while nobody says anything.
        cpu_ms_alone: CPU milliseconds an instance of the busy ones, without idle ones: of each run.
        cpu_ms_beside: With them.
        p99_ms_alone: Latency without them.
        p99_ms_beside: With them.
        missing: Instances that were acknowledged and not stored.
    """

    receiver: str
    associations: int
    pss_before_mb: float
    pss_idle_mb: float
    cpu_percent: float
    cpu_ms_alone: list[float]
    cpu_ms_beside: list[float]
    p99_ms_alone: list[float]
    p99_ms_beside: list[float]
    missing: int


def measure(
    factory: Factory, base: Path, keys: Pki, *, associations: int = 1000, seconds: float = 5, busy: Load
) -> dict[str, object]:
    """Measure one receiver.

    Raises:
        LoadError: It did not take that many.
        Unavailable: It cannot run here.
    """
    with factory(base, keys, durability="page-cache") as receiver:
        _busy(receiver, busy)
        before = receiver.group.pss()
        alone = [_busy(receiver, busy) for _ in range(ROUNDS)]
        with idle_associations(receiver.target, associations):
            time.sleep(1)  # what the handshakes have left to do
            pss = receiver.group.pss()
            used, begun = receiver.group.cpu_seconds(), time.perf_counter()
            time.sleep(seconds)
            percent = (receiver.group.cpu_seconds() - used) / (time.perf_counter() - begun) * 100
            beside = [_busy(receiver, busy) for _ in range(ROUNDS)]
        return asdict(
            Idle(
                receiver=receiver.facts.name,
                associations=associations,
                pss_before_mb=before / 1e6,
                pss_idle_mb=pss / 1e6,
                cpu_percent=percent,
                cpu_ms_alone=[cpu for cpu, _, _ in alone],
                cpu_ms_beside=[cpu for cpu, _, _ in beside],
                p99_ms_alone=[result.latency(0.99) * 1e3 for _, result, _ in alone],
                p99_ms_beside=[result.latency(0.99) * 1e3 for _, result, _ in beside],
                missing=sum(missing for _, _, missing in (*alone, *beside)),
            )
        )


def _busy(receiver: Receiver, load: Load) -> tuple[float, Result, int]:
    """CPU milliseconds an instance, the result, and how many of its instances are not stored."""
    before = receiver.group.cpu_seconds()
    result = run(receiver.target, load)
    cpu = receiver.group.cpu_seconds() - before
    missing = len(receiver.missing(result.acknowledged())) + result.failed
    receiver.clear()
    return cpu / max(result.instances, 1) * 1e3, result, missing
