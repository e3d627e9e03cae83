"""Accounting of the benchmarks: real processes of known CPU time, counted in every way there is here."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks import accounting
from benchmarks.accounting import Group, Kind, Peak
from tests.support.nodes import eventually

BURN = "import time, sys\nend = time.process_time() + {0}\nwhile time.process_time() < end: pass\n"
DOUBLE_FORK = """
import os, time
{0}
if os.fork() == 0:
    if os.fork() == 0:  # an orphan as soon as its parent has gone
        end = time.process_time() + 0.3
        while time.process_time() < end: pass
        print("burnt", flush=True)
    os._exit(0)
time.sleep(60)
"""


IGNORED = "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)"


@pytest.fixture(params=["cgroup v2", "cgroup v1", "rusage"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kind]:
    """One way of counting; skips what the machine does not have or allow."""
    wanted: Kind = request.param
    own = [pair for pair in accounting._own_groups() if pair[0] == wanted]
    monkeypatch.setattr(accounting, "_own_groups", lambda: iter(own))
    with Group("probe") as group:
        if group.kind != wanted:
            pytest.skip(f"no {wanted} here")
    return wanted


def python(group: Group, source: str) -> "subprocess.Popen[str]":
    return group.popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True)


def ended(pid: int) -> bool:
    """Also when nobody has waited for it yet."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_cpu_time_of_a_living_process_is_counted(kind: Kind) -> None:
    with Group("t") as group:
        process = python(group, BURN.format(0.3) + "print('burnt', flush=True); time.sleep(60)")
        assert line(process) == "burnt\n"
        assert 0.25 <= group.cpu_seconds() <= 1.0
        assert group.kind == kind


@pytest.mark.parametrize(
    ("kind", "before"),
    # Not "rusage" with children that are ignored: the kernel adds their time to nobody, as the report says.
    [("cgroup v2", ""), ("cgroup v1", ""), ("rusage", ""), ("cgroup v2", IGNORED), ("cgroup v1", IGNORED)],
    indirect=["kind"],
)
def test_cpu_time_of_orphans_that_ended_is_counted(kind: Kind, before: str) -> None:
    with Group("t") as group:
        process = python(group, DOUBLE_FORK.format(before))
        assert line(process) == "burnt\n"
        eventually(lambda: len(group.pids()) == 1, what="only the program is left")
        assert 0.25 <= group.cpu_seconds() <= 1.0


def test_groups_count_apart(kind: Kind) -> None:
    with Group("a") as busy, Group("b") as idle:
        one = python(busy, BURN.format(0.5) + "print('burnt', flush=True); time.sleep(60)")
        two = python(idle, "import time; print('up', flush=True); time.sleep(60)")
        assert line(two) == "up\n"
        before = idle.cpu_seconds()
        line(one)
        assert busy.cpu_seconds() >= 0.45
        assert idle.cpu_seconds() - before < 0.1


def test_pids_names_and_memory_are_those_of_the_program(kind: Kind) -> None:
    with Group("t") as group:
        held = 32 << 20
        process = python(group, f"import time; x = b'1' * {held}; print('up', flush=True); time.sleep(60)")
        line(process)
        (pid,) = group.pids()
        assert psutil.Process(pid).cmdline()[1] == "-c"
        assert list(group.by_name()) == [psutil.Process(pid).name()]
        assert held < group.pss() < held + (64 << 20)
        assert group.pss_each().keys() == {pid}


def test_leaving_ends_everything_and_removes_the_group(kind: Kind) -> None:
    with Group("t") as group:
        process = python(group, DOUBLE_FORK.format("").replace("0.3", "600"))
        eventually(lambda: len(group.pids()) >= 2, what="the orphan runs")
        pids = group.pids()
        folder = group._folder
    assert process.returncode is not None
    assert all(ended(pid) for pid in pids)
    assert folder is None or not folder.exists()


def test_a_program_that_ignores_term_is_killed(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "END_SECONDS", 0.5)
    with Group("t") as group:
        process = python(
            group,
            "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "print('up', flush=True); time.sleep(60)",
        )
        line(process)
        (pid,) = group.pids()
    eventually(lambda: ended(pid), what="it is gone")


def test_a_missing_program_is_said_at_once(kind: Kind) -> None:
    with Group("t") as group, pytest.raises(FileNotFoundError, match="no-such-program"):
        group.popen(["no-such-program"])


def test_where_no_group_can_be_made_it_says_how_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a folder that is no hierarchy of control groups: files appear in it, but nothing counts
    monkeypatch.setattr(accounting, "_own_groups", lambda: iter([("cgroup v2", tmp_path)]))
    with Group("t") as group:
        assert group.kind == "rusage"


def test_the_peak_is_remembered_after_the_memory_is_given_back() -> None:
    with Group("t") as group:
        with Peak(group, 0.02) as peak:
            process = python(
                group,
                "import time; x = b'1' * (64 << 20); print('up', flush=True); time.sleep(0.4); del x\n"
                "print('down', flush=True); time.sleep(60)",
            )
            line(process), line(process)
        assert peak.total >= peak.largest >= 64 << 20
        assert group.pss() < 48 << 20


def test_the_reaper_passes_signals_and_exit_codes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "_own_groups", lambda: iter(()))
    with Group("t") as group:
        assert python(group, "raise SystemExit(7)").wait(20) == 7
        process = python(group, "import time; print('up', flush=True); time.sleep(60)")
        line(process)
        started = time.monotonic()
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
        assert time.monotonic() - started < 10
