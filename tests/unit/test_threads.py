"""Threads of the node: none ends without ending its process, and none is started in any other way."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from ingest.threads import THREAD_EXIT

ROOT = Path(__file__).parents[2]
NOT_OURS_TO_START = {"Thread", "Timer", "start_new_thread"}


def run(code: str) -> "subprocess.CompletedProcess[str]":
    """Python in a process of its own, which would go on for a minute."""
    program = f"import time\nfrom ingest import threads\n{code}\ntime.sleep(60)"
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=50, check=False
    )


@pytest.mark.parametrize(
    "body",
    [
        "def body(): raise ValueError('odd')",
        "def body(): raise SystemExit(0)",
        "def body(): raise MemoryError",
        "def body(): return",
    ],
)
def test_thread_that_ends_unasked_ends_its_process(body: str) -> None:
    ended = run(f"{body}\nthreads.start_guarded('handoff', body, lambda: False)")
    assert ended.returncode == THREAD_EXIT
    assert "thread_died" in ended.stdout + ended.stderr


def test_thread_that_was_told_to_end_ends_alone() -> None:
    ended = run(
        "import sys\nthread = threads.start_guarded('one', lambda: None, lambda: True)\n"
        "thread.join()\nsys.exit(0)"
    )
    assert ended.returncode == 0


def test_short_task_that_fails_is_logged_and_ends_nothing() -> None:
    ended = run("import sys\nthreads.start_task('close', lambda: 1 / 0).join()\nsys.exit(7)")
    assert ended.returncode == 7
    assert "task_failed" in ended.stdout + ended.stderr
    assert "ZeroDivisionError" in ended.stdout + ended.stderr
    assert "division by zero" not in ended.stdout + ended.stderr, "a message may hold values of patients"


def _started_elsewhere(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in NOT_OURS_TO_START:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} starts a thread by {name}")
    return found


def test_every_thread_is_started_by_the_one_construct() -> None:
    files = [path for folder in ("ingest", "workers") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 100
    others = [path for path in files if path != ROOT / "ingest" / "threads.py"]
    assert [fault for path in others for fault in _started_elsewhere(path)] == []
