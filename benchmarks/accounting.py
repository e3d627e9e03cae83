"""CPU time and memory of a receiver's whole process tree, processes that have ended included.

A control group counts every process in it exactly, to the nanosecond or microsecond, also those that nobody
waited for. Where no group can be made (an unprivileged container), a small parent that adopts orphans counts
what its descendants used, in clock ticks of 10 ms; `Group.kind` says which of them it was.
"""

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import psutil

Kind = Literal["cgroup v2", "cgroup v1", "rusage"]

END_SECONDS = 10.0
_NUMBERS = itertools.count()
# In a shell, not in preexec_fn: callers have threads, and a fork of theirs may copy a lock that is held.
_JOIN = 'echo 0 >"$0" && exec "$@"'


class Group:
    """Processes that are counted together; a context manager.

    Attributes:
        kind: How they are counted. "rusage" leaves out processes whose parent ignores SIGCHLD, and short
            ones are rounded to clock ticks.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.kind: Kind = "rusage"
        self._folder: Path | None = None
        self._started: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> Self:
        name = f"ingest-bench-{self.name}-{os.getpid()}-{next(_NUMBERS)}"
        for kind, own in _own_groups():
            folder = own / name
            if _make(folder, kind):
                self.kind, self._folder = kind, folder
                break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        if self._folder is not None:
            _remove(self._folder)

    def popen(self, argv: Sequence[str | os.PathLike[str]], **options: Any) -> "subprocess.Popen[Any]":
        """Start a program in the group; its children are born into it. Options are those of Popen.

        Raises:
            FileNotFoundError: There is no such program.
        """
        program = shutil.which(argv[0], path=options.get("env", os.environ).get("PATH"))
        if program is None:
            raise FileNotFoundError(f"{os.fspath(argv[0])} is not on the PATH")
        command = [program, *(os.fspath(word) for word in argv[1:])]
        if self._folder is not None:
            command = ["/bin/sh", "-c", _JOIN, str(self._folder / "cgroup.procs"), *command]
        else:
            command = [sys.executable, str(Path(__file__).with_name("reaper.py")), *command]
        process = subprocess.Popen(command, **options)
        self._started.append(process)
        return process

    def cpu_seconds(self) -> float:
        """CPU time used until now, of living and ended processes.

        Without a control group, those are not counted whose program, as `popen` started it, has ended.
        """
        if self._folder is None:
            return sum(_family_seconds(process) for process in self._processes())
        if self.kind == "cgroup v1":
            return int((self._folder / "cpuacct.usage").read_text()) / 1e9
        fields = dict(line.split() for line in (self._folder / "cpu.stat").read_text().splitlines())
        return int(fields["usage_usec"]) / 1e6

    def pids(self) -> list[int]:
        """Process ids of the living."""
        if self._folder is None:
            reapers = {process.pid for process in self._started}
            return [p.pid for p in self._processes() if p.pid not in reapers and not _is_over(p)]
        return [int(line) for line in (self._folder / "cgroup.procs").read_text().split()]

    def by_name(self) -> dict[str, float]:
        """CPU seconds of the living processes by name ("ingest-listen", "valkey-server" …).

        Of processes that ended meanwhile nothing is left in it; steady processes are what it is for.
        """
        totals: dict[str, float] = {}
        for pid in self.pids():
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                times = process.cpu_times()
                totals[process.name()] = totals.get(process.name(), 0.0) + times.user + times.system
        return totals

    def pss(self) -> int:
        """Proportional set size of all of it together, bytes."""
        return sum(self.pss_each().values())

    def pss_each(self) -> dict[int, int]:
        """Proportional set size by process id, bytes."""
        sizes = {}
        for pid in self.pids():
            # What has ended since, or is a zombie, has none.
            with contextlib.suppress(OSError):
                sizes[pid] = _pss(Path(f"/proc/{pid}/smaps_rollup").read_text())
        return sizes

    def end(self) -> None:
        """End what runs in it: TERM, and after some seconds KILL."""
        for process in self._started:
            process.terminate()
        if not self._wait_empty(END_SECONDS):
            for pid in self.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
            self._wait_empty(END_SECONDS)
        for process in self._started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()

    def _wait_empty(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while True:
            for process in self._started:
                process.poll()
            if not self.pids():
                return True
            if all(process.returncode is not None for process in self._started):
                for pid in self.pids():  # left behind by a parent that has gone
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, 15)
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)

    def _processes(self) -> Iterator[psutil.Process]:
        """Without a control group: the reapers and everything below them."""
        for started in self._started:
            with contextlib.suppress(psutil.Error):
                if started.poll() is None:
                    reaper = psutil.Process(started.pid)
                    yield from (reaper, *reaper.children(recursive=True))


@dataclass
class Peak:
    """The largest memory of a group while in the block, looked at every `seconds` by a thread.

    Attributes:
        total: Largest sum of the processes' PSS, bytes.
        largest: Largest PSS of one process, bytes.
    """

    group: Group
    seconds: float = 0.5
    total: int = 0
    largest: int = 0
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch, name="peak", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def look(self) -> None:
        """Look once."""
        sizes = self.group.pss_each().values()
        self.total = max(self.total, sum(sizes))
        self.largest = max(self.largest, *sizes, 0)

    def _watch(self) -> None:
        self.look()
        while not self._over.wait(self.seconds):
            self.look()


def _own_groups() -> Iterator[tuple[Kind, Path]]:
    """Return the groups of this process in the hierarchies that count CPU time."""
    paths = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        paths["" if number == "0" else controllers] = path
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        root, mount = before.split()[3:5]
        system, _, options = after.split()[:3]
        if system == "cgroup2" and "" in paths:
            yield "cgroup v2", _below(mount, root, paths[""])
        elif system == "cgroup":
            for controllers, path in paths.items():
                if "cpuacct" in controllers.split(",") and "cpuacct" in options.split(","):
                    yield "cgroup v1", _below(mount, root, path)


def _below(mount: str, root: str, path: str) -> Path:
    """Where a group lies whose mount may show a part of the hierarchy only (a container's)."""
    with contextlib.suppress(ValueError):
        return Path(mount) / Path(path).relative_to(root)
    return Path(mount)


def _make(folder: Path, kind: Kind) -> bool:
    """Make a group; false where we may not, or where it does not count."""
    try:
        folder.mkdir()
    except OSError:
        return False
    counter = folder / ("cpu.stat" if kind == "cgroup v2" else "cpuacct.usage")
    try:
        joined = subprocess.run(
            ["/bin/sh", "-c", _JOIN, str(folder / "cgroup.procs"), "true"],
            stderr=subprocess.DEVNULL,
            check=False,
        )
        if joined.returncode == 0 and counter.exists():
            return True
    except OSError:
        pass
    with contextlib.suppress(OSError):
        folder.rmdir()
    return False


def _remove(folder: Path) -> None:
    """Remove a group; the kernel lets go of the last process a moment after it was waited for."""
    for _ in range(100):
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.02)
        else:
            return


def _family_seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system + times.children_user + times.children_system)


def _is_over(process: psutil.Process) -> bool:
    """Whether it has ended, be it that nobody has waited for it yet."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return True


def _pss(rollup: str) -> int:
    for line in rollup.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0
