"""The suite: all workloads within a number of minutes, and the places that they are measured in."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import (
    forwarding,
    idle,
    instructions,
    judged,
    machine,
    path,
    peers,
    rounds,
    sending,
    transit,
    workloads,
)
from benchmarks.floor import floor
from benchmarks.load import Load, LoadError
from benchmarks.node import ours
from benchmarks.orthanc import orthanc, orthanc_nodelay
from benchmarks.receivers import Factory, NotStartedError, Pki, Unavailable, make_pki
from benchmarks.workloads import KB, MB, Work

RECEIVERS: dict[str, Factory] = {
    "ours": ours,
    "ours-segments": partial(ours, segments=64 << 10),
    "floor": floor,
    "dcmtk": peers.dcmtk,
    "dcmtk-nodelay": peers.dcmtk_nodelay,
    "orthanc": orthanc,
    "orthanc-nodelay": orthanc_nodelay,
    "pynetdicom": peers.pynetdicom,
    "dcm4che": peers.dcm4che,
}
MEASURED: Final = {
    "load": rounds.measure,
    "storescu": rounds.measure,
    "alone": sending.measure,
    "forward": forwarding.measure,
    "transit": transit.measure,
}
PATH_SIZES = (8 * KB, 512 * KB)
BUSY = Load(8 * KB, 500, 4)
PATH_SECONDS, IDLE_SECONDS, COUNT_SECONDS = 36.0, 18.0, 8.0
PATH_OVERHEAD = 6.0
LEAST_PATH_SECONDS = 5.0
RESERVE = 0.94
IDLE_ASSOCIATIONS = 1000

Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are measured: `memory` for CPU figures, `disk` for those with fsync."""

    memory: Path
    disk: Path
    keys: Pki


@contextlib.contextmanager
def places(memory: Path | None = None, disk: Path | None = None) -> Iterator[Places]:
    """Make new folders below these, or below the system's. All are removed at the end only."""
    with contextlib.ExitStack() as stack:
        made = []
        for parent in (memory or machine.memory_folder(), disk or machine.disk_folder()):
            folder = Path(tempfile.mkdtemp(prefix="ingest-bench-", dir=parent))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            made.append(folder)
        yield Places(made[0], made[1], make_pki(made[0] / "pki"))


class Watch:
    """Progress bars: one for all, one for the work at hand.

    They are drawn between runs and not by a thread: senders are forked, and a fork copies held locks.
    """

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            auto_refresh=False,
            transient=True,
        )
        self._all = self._bars.add_task("suite")
        self._work = self._bars.add_task("")

    def __enter__(self) -> "Watch":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def begin(self, name: str, steps: int, at: int, of: int) -> None:
        """Announce a work of so many steps, number `at` of `of`."""
        self._bars.update(self._all, completed=at, total=of)
        self._bars.reset(self._work, description=name, total=steps)
        self._bars.refresh()

    def step(self, text: str) -> None:
        """One more step of it is about to be done."""
        self._bars.update(self._work, description=text, advance=1)
        self._bars.refresh()


@dataclass
class Budget:
    """Shares what is left of the time among what is left to do, by weight."""

    ends: float
    weights: list[float]

    def next(self) -> float:
        """Seconds for the next one."""
        left = max(0.0, self.ends - time.monotonic())
        share = left * self.weights[0] / sum(self.weights)
        del self.weights[0]
        return share


def measure(
    works: Sequence[Work],
    where: Places,
    watch: Watch,
    *,
    minutes: float = float("inf"),
    rest: bool = False,
) -> Values:
    """Measure these works, and with `rest` also idle associations, instructions and the whole path."""
    extras = [IDLE_SECONDS, COUNT_SECONDS, *(PATH_SECONDS for _ in PATH_SIZES)] if rest else []
    budget = Budget(time.monotonic() + minutes * 60 * RESERVE, [*(work.seconds for work in works), *extras])
    found: Values = {
        "machine": machine_of(where),
        "works": [],
        "broken": [],
    }
    of = len(works) + len(extras)
    for at, work in enumerate(works):
        watch.begin(work.name, (work.pairs + 1) * len(work.entrants), at, of)
        found["works"].append(one(work, where, watch, budget.next()))
    if rest:
        watch.begin("idle associations", 1, len(works), of)
        budget.next()
        found["idle"] = tried(found, "idle associations", lambda: idle_beside(where))
        watch.begin("instructions", 1, len(works) + 1, of)
        budget.next()
        found["instructions"] = tried(found, "instructions", counted)
        found["path"] = []
        for at, size in enumerate(PATH_SIZES, len(works) + 2):
            seconds = max(LEAST_PATH_SECONDS, budget.next() - PATH_OVERHEAD)
            measured = partial(sustained, where, watch, path_load(size), seconds, at, of)
            found["path"] += tried(found, "whole path", measured)
    return judged.complete(found)


def machine_of(where: Places) -> Values:
    """Describe the machine and the file systems of both folders."""
    return machine.describe({"memory": where.memory, "disk": where.disk})


def path_load(size: int) -> Load:
    """Return the load that finds the rate of the whole path: a second or two."""
    return Load(size, max(4, min(1000, (40 * MB) // size)), 4)


def one(work: Work, where: Places, watch: Watch, seconds: float) -> Values:
    """One work, with its time limited; a receiver that breaks off ends it, not the suite."""

    def step(number: int, label: str) -> None:
        turn = "warm-up" if number < 0 else f"round {number + 1}"
        watch.step(f"{work.name}: {turn}, {label}")

    deadline = time.monotonic() + seconds
    setting = rounds.Setting(RECEIVERS, where.keys, where.memory, where.disk, deadline, step)
    taken, broken, begun = rounds.nothing_yet(work), "", time.monotonic()
    try:
        MEASURED[work.sender](work, setting, taken)
    except Unavailable as error:  # the sender: receivers say it for themselves
        for own in taken.values():
            own.unavailable = own.unavailable or str(error)
    except (LoadError, NotStartedError, TimeoutError) as error:
        broken = f"{type(error).__name__}: {error}"
    took = time.monotonic() - begun
    return {**rounds.as_values(work, taken), "broken": broken, "took_seconds": round(took, 1)}


def idle_beside(where: Places, associations: int = IDLE_ASSOCIATIONS) -> list[dict[str, object]]:
    """Measure a thousand idle associations on our node."""
    base = where.memory / "idle"
    try:
        return [idle.measure(ours, base, where.keys, associations=associations, busy=BUSY)]
    finally:
        shutil.rmtree(base, ignore_errors=True)


def counted() -> list[Values]:
    """Instructions of the parser; none where valgrind is not installed."""
    try:
        return instructions.as_values(instructions.count_all())
    except Unavailable:
        return []


def tried(found: Values, what: str, measured: Callable[[], list[Values]]) -> list[Values]:
    """Run `measured`. A failure is named in `found` and ends nothing else."""
    try:
        return measured()
    except (LoadError, NotStartedError, Unavailable, instructions.CountError, TimeoutError) as error:
        found["broken"].append(f"{what}: {type(error).__name__}: {error}")
        return []


def sustained(  # noqa: PLR0917 - one call in two places
    where: Places, watch: Watch, load: Load, seconds: float, at: int = 0, of: int = 1
) -> list[Values]:
    """Measure the whole path with one load: one outcome."""
    name = f"{workloads.size_name(load.size)} × {load.associations}"
    watch.begin(f"whole path, {name}", 100, at, of)
    done = 0

    def step(share: float) -> None:
        nonlocal done
        while done < share * 100:
            done += 1
            watch.step(f"whole path, {name}")

    base = where.disk / f"path-{load.size}"
    return [path.measure(base, where.keys, load, name, seconds=seconds, step=step)]
