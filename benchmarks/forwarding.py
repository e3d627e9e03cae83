"""Node to node: what a receiver that forwards everything gets through to our node, durably on both sides.

A short run as fast as answers come tells how many instances a second arrive at the second node. The counted
load is a little below that and lasts; whether the backlog between the two grows is looked at meanwhile. Where
it does, what arrived in that run tells what to offer in the next one.
"""

import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from benchmarks import peers, rounds
from benchmarks.load import Load, Result, run
from benchmarks.node import Node, whole
from benchmarks.orthanc import orthanc_forwarding
from benchmarks.path import GROWTH, growth
from benchmarks.receivers import Durability, Pki, Receiver, Target, Unavailable
from benchmarks.workloads import Entrant, Work

OFFERED: Final = 0.9
"""Share of what the short run got through: at all of it, any hiccup would leave a backlog for good."""

TRIES: Final = 3
"""Runs with less and less, until the backlog does not grow."""

OPERATIONS: Final = 16
"""What our node asks another one for, as `async_operations`; without it each answer is waited for."""

OTHERS_SHARE: Final = 0.1
"""Of the short run's instances, for those that would take minutes for it."""

LOOK_SECONDS: Final = 0.5
DRAIN_SECONDS: Final = 300
LOG_CHARACTERS: Final = 1000


class Forwarder(Protocol):
    """A factory of a receiver that sends on whatever it stores."""

    def __call__(
        self, base: Path, keys: Pki, *, durability: Durability, to: Target
    ) -> AbstractContextManager[Receiver]:
        """As `receivers.Factory`, with whom to send it to."""
        ...


FORWARDERS: Final[dict[str, Forwarder]] = {
    "ours": partial(whole, operations=OPERATIONS),
    "ours-one-by-one": whole,
    "orthanc-nodelay": orthanc_forwarding,
    "pynetdicom": peers.pynetdicom,
}


def measure(work: Work, setting: rounds.Setting, taken: dict[str, rounds.Taken]) -> None:
    """All rounds of a work whose entrants forward; each run has two new nodes on the disk.

    Raises:
        LoadError: One of them broke off.
        NotStartedError: One did not start.
        TimeoutError: Not everything arrived.
    """
    for number in range(work.pairs):
        if number >= rounds.LEAST_ROUNDS and time.monotonic() > setting.deadline:
            return
        for entrant in rounds.order(work.entrants, number):
            own = taken[entrant.label]
            if own.unavailable:
                continue
            setting.step(number, entrant.label)
            base = setting.disk / f"forward-{number}-{entrant.receiver}"
            try:
                own.samples.append({"round": number, **_one(entrant, work.lasts, base, setting.keys, own)})
            except Unavailable as error:
                own.unavailable = str(error)
            finally:
                shutil.rmtree(base, ignore_errors=True)  # two copies of all, in each run


def _one(entrant: Entrant, seconds: float, base: Path, keys: Pki, own: rounds.Taken) -> rounds.Sample:
    with ExitStack() as stack:
        second = stack.enter_context(whole(base / "second", keys, durability="fsync"))
        factory = FORWARDERS[entrant.receiver]
        first = stack.enter_context(factory(base / "first", keys, durability="fsync", to=second.target))
        own.facts, own.counted_by = first.facts, first.group.kind
        rate = _through(first, second, _trial(entrant))
        for _ in range(TRIES):
            sample = _kept_up(first, second, entrant.load, OFFERED * rate, seconds)
            if not sample["growing"]:
                break
            rate = sample["rate"]
        return sample


def _kept_up(first: Receiver, second: Node, load: Load, offered: float, seconds: float) -> rounds.Sample:
    """Send a number of instances a second for a time; end when all have arrived."""
    each = max(1, round(offered * seconds / load.associations))
    lasting = replace(load, instances=each, per_second=offered)
    backlog: list[tuple[float, int]] = []
    before, used, begun = second.recorded(), first.group.cpu_seconds(), time.perf_counter()

    def look(answered: int) -> None:
        now = time.perf_counter() - begun
        if not backlog or now - backlog[-1][0] >= LOOK_SECONDS:
            backlog.append((now, answered - (second.recorded() - before)))

    result = run(first.target, lasting, progress=look)
    arrived = second.recorded() - before
    wait_for(lambda: second.recorded() - before >= result.instances, second)
    cpu = first.group.cpu_seconds() - used
    return summed(result, arrived, backlog, cpu, len(second.missing(result.acknowledged())))


def _trial(entrant: Entrant) -> Load:
    """Return the load of a trial that lasts a few seconds."""
    share = 1 if entrant.receiver.startswith("ours") else OTHERS_SHARE
    return replace(entrant.load, instances=max(4, round(entrant.load.instances * share)))


def _through(first: Receiver, second: Node, trial: Load) -> float:
    """Instances a second from the first byte until all are at the second node."""
    begun = time.perf_counter()
    result = run(first.target, trial)
    wait_for(lambda: second.recorded() >= result.instances, second)
    return result.instances / (time.perf_counter() - begun)


def wait_for(arrived: Callable[[], bool], second: Node) -> None:
    """Wait until everything is at the second node.

    Raises:
        TimeoutError: It is not, after long.
    """
    deadline = time.monotonic() + DRAIN_SECONDS
    while not arrived():
        if time.monotonic() > deadline:
            said = [log.read_text(errors="replace")[-LOG_CHARACTERS:] for log in _logs(second.folder.parent)]
            raise TimeoutError("\n".join([f"only {second.recorded()} instances arrived", *said]))
        time.sleep(0.05)


def _logs(folder: Path) -> list[Path]:
    """Find the log and output files of the nodes. Their folder is removed at the end."""
    return sorted(path for name in ("log", "output") for path in folder.glob(f"*/{name}"))


def summed(
    result: Result, arrived: int, backlog: list[tuple[float, int]], cpu: float, missing: int
) -> rounds.Sample:
    """One run.

    Args:
        result: Of the load.
        arrived: Instances in the second node's ledger when the load was over.
        backlog: (seconds, answered by the first and not in the second's ledger).
        cpu: Seconds of the first node, until all had arrived.
        missing: Answered by the first and not stored by the second.
    """
    size = result.bytes / max(result.instances, 1)
    rate = arrived / result.seconds
    return {
        "instances": arrived,
        "rate": rate,
        "mb_s": rate * size / 1e6,
        "cpu_s_gb": cpu / max(result.bytes, 1) * 1e9,
        "cpu_ms": cpu / max(result.instances, 1) * 1e3,
        "growing": float(growth(backlog) > GROWTH * rate),
        "backlog_middle": float(backlog[len(backlog) // 2][1]) if backlog else 0.0,
        "backlog_end": float(backlog[-1][1]) if backlog else 0.0,
        "failed": result.failed,
        "missing": missing,
    }
