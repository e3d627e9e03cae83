"""Entrants take turns, round by round, and every run is measured and its storage checked."""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.accounting import Peak
from benchmarks.load import Load, run
from benchmarks.receivers import Durability, Factory, Facts, Pki, Receiver, Unavailable
from benchmarks.storescu import Files, send
from benchmarks.workloads import Entrant, Work

LEAST_ROUNDS = 3
WARM_INSTANCES = 8
PEAK_SECONDS = 0.05

Sample = dict[str, float]
"""Of one run; its keys are in `MEASURES`, and beside them "round", "instances", "failed" and "missing"."""

MEASURES = {
    "rate": "instances/s",
    "mb_s": "MB/s",
    "cpu_s_gb": "CPU s/GB",
    "cpu_ms": "CPU ms/instance",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "seconds": "wall s",
    "backlog_middle": "backlog in the middle",
    "backlog_end": "at the end",
}
LESS_IS_BETTER = {"cpu_s_gb", "cpu_ms", "p50_ms", "p99_ms", "seconds"}


@dataclass
class Taken:
    """What one entrant did.

    Attributes:
        facts: Who it is; None where it could not run.
        unavailable: Why it could not.
        counted_by: How its CPU time was counted, such as "cgroup v1".
        pss_mb: Largest memory of all its processes together, in a run that is not counted.
        pss_largest_mb: Of its largest process then.
        samples: One of each counted run.
    """

    facts: Facts | None = None
    unavailable: str = ""
    counted_by: str = ""
    pss_mb: float = 0.0
    pss_largest_mb: float = 0.0
    samples: list[Sample] = field(default_factory=list)


@dataclass
class Setting:
    """Where and with what a work is measured.

    Attributes:
        factories: Of the receivers by name.
        keys: Key material of both sides.
        memory: Folder for works in memory.
        disk: Folder for works on a disk; nothing in it is removed before the end.
        deadline: `time.monotonic()` after which no round begins, but for the first three.
        step: Called before each run with what it is: (round or -1 to warm up, label).
    """

    factories: Mapping[str, Factory]
    keys: Pki
    memory: Path
    disk: Path
    deadline: float = float("inf")
    step: Callable[[int, str], None] = lambda _round, _label: None


def nothing_yet(work: Work) -> dict[str, Taken]:
    """Return empty results by label of the entrant, which `measure` fills."""
    return {entrant.label: Taken() for entrant in work.entrants}


def measure(work: Work, setting: Setting, taken: dict[str, Taken]) -> None:
    """All rounds of a work.

    Raises:
        LoadError: A receiver broke off; what was measured before is in `taken`.
        NotStartedError: A receiver did not start.
    """
    rounds = _in_memory if work.place == "memory" else _on_disk
    rounds(work, setting, taken)


def order(entrants: tuple[Entrant, ...], number: int) -> list[Entrant]:
    """Who runs in round `number`, each round another first: nobody always follows the same one."""
    present = [entrant for entrant in entrants if number % entrant.every == 0]
    shift = number % len(present)
    return present[shift:] + present[:shift]


def _goes_on(number: int, work: Work, setting: Setting) -> bool:
    return number < work.pairs and (number < LEAST_ROUNDS or time.monotonic() < setting.deadline)


def _in_memory(work: Work, setting: Setting, taken: dict[str, Taken]) -> None:
    """All receivers stay up; what they kept is removed after each run, and its pages are used again."""
    with contextlib.ExitStack() as stack:
        running: dict[str, Receiver] = {}
        present = []
        for number, entrant in enumerate(work.entrants):
            base = setting.memory / f"receiver-{number}"
            stack.callback(shutil.rmtree, base, ignore_errors=True)
            receiver = _started(stack, entrant, base, work.durability, setting, taken)
            if receiver is not None:
                running[entrant.label] = receiver
                present.append(entrant)
        files = _files(stack, work, setting.memory)
        for entrant in present:
            setting.step(-1, entrant.label)
            with _watched(running[entrant.label], taken[entrant.label]):
                _one(entrant, running[entrant.label], files)
            running[entrant.label].clear()
        number = 0
        while present and _goes_on(number, work, setting):
            for entrant in order(tuple(present), number):
                setting.step(number, entrant.label)
                sample = _one(entrant, running[entrant.label], files)
                taken[entrant.label].samples.append({"round": number, **sample})
                running[entrant.label].clear()
            number += 1


def _on_disk(work: Work, setting: Setting, taken: dict[str, Taken]) -> None:
    """Start a receiver for each run in a new folder. File systems create slowly after deleting."""
    with contextlib.ExitStack() as outer:
        files = _files(outer, work, setting.memory)
        number = 0
        while _goes_on(number, work, setting):
            for entrant in order(work.entrants, number):
                if taken[entrant.label].unavailable:
                    continue
                setting.step(number, entrant.label)
                base = setting.disk / f"{len(list(setting.disk.iterdir()))}-{entrant.receiver}"
                with contextlib.ExitStack() as stack:
                    receiver = _started(stack, entrant, base, work.durability, setting, taken)
                    if receiver is None:
                        continue
                    warm = replace(entrant, load=_warming(entrant.load))
                    with _watched(receiver, taken[entrant.label]):
                        _one(warm, receiver, None)
                    sample = _one(entrant, receiver, files)
                    taken[entrant.label].samples.append({"round": number, **sample})
            number += 1


def _started(  # noqa: PLR0917 - a part of the two above
    stack: contextlib.ExitStack,
    entrant: Entrant,
    base: Path,
    durability: Durability,
    setting: Setting,
    taken: dict[str, Taken],
) -> Receiver | None:
    own = taken[entrant.label]
    try:
        factory = setting.factories[entrant.receiver]
        receiver = stack.enter_context(factory(base, setting.keys, durability=durability))
    except Unavailable as error:
        own.unavailable = str(error)
        return None
    own.facts, own.counted_by = receiver.facts, receiver.group.kind
    return receiver


def _warming(load: Load) -> Load:
    return replace(load, instances=min(load.instances, WARM_INSTANCES), root="")


def _files(stack: contextlib.ExitStack, work: Work, folder: Path) -> Files | None:
    if work.sender != "storescu":
        return None
    load = work.entrants[0].load
    return stack.enter_context(Files.made(folder / "files", load.size, load.instances))


@contextlib.contextmanager
def _watched(receiver: Receiver, own: Taken) -> Iterator[None]:
    """Look at the memory meanwhile: in a run that is not counted, since looking costs."""
    with Peak(receiver.group, PEAK_SECONDS) as peak:
        yield
    own.pss_mb = max(own.pss_mb, peak.total / 1e6)
    own.pss_largest_mb = max(own.pss_largest_mb, peak.largest / 1e6)


def _one(entrant: Entrant, receiver: Receiver, files: Files | None) -> Sample:
    """One run, measured; whether all that was acknowledged is stored is looked up after it."""
    before = receiver.group.cpu_seconds()
    if files is not None:
        seconds = send(files, receiver.target)
        cpu = receiver.group.cpu_seconds() - before
        missing = receiver.missing(files.uids)
        sample = _figures(seconds, len(files.uids), files.data_bytes, cpu)
        return {**sample, "failed": 0, "missing": len(missing)}
    result = run(receiver.target, entrant.load)
    cpu = receiver.group.cpu_seconds() - before
    missing = receiver.missing(result.acknowledged())
    return {
        **_figures(result.seconds, result.instances, result.bytes, cpu),
        "p50_ms": result.latency(0.5) * 1e3,
        "p99_ms": result.latency(0.99) * 1e3,
        "operations": result.operations,
        "failed": result.failed,
        "missing": len(missing),
    }


def _figures(seconds: float, instances: int, data_bytes: int, cpu: float) -> Sample:
    counted = max(instances, 1)
    return {
        "seconds": seconds,
        "instances": instances,
        "rate": instances / seconds,
        "mb_s": data_bytes / seconds / 1e6,
        "cpu_s_gb": cpu / max(data_bytes, 1) * 1e9,
        "cpu_ms": cpu / counted * 1e3,
    }


def as_values(work: Work, taken: dict[str, Taken]) -> dict[str, Any]:
    """Return a work with its outcome, for JSON and the report."""
    return {
        "name": work.name,
        "durability": work.durability,
        "place": work.place,
        "sender": work.sender,
        "claims": [asdict(claim) for claim in work.claims],
        "entrants": {
            entrant.label: {"load": asdict(entrant.load), **asdict(taken[entrant.label])}
            for entrant in work.entrants
        },
    }
