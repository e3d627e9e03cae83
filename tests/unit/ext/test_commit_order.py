"""Group commit as the kernel sees it: nothing is said to be durable before it is."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.traces import Trace, strace

GROUP = 64
ROOT = Path(__file__).parents[3]

ORDER = """
import os, select, sys, threading
from ingest.ext.group_commit import Committer
partial, ready = (os.open(f"{sys.argv[1]}/{name}", os.O_RDONLY) for name in ("partial", "ready"))
count, durable, threads = int(sys.argv[2]), sys.argv[3] == "durable", int(sys.argv[4])
committer = Committer(partial, ready, durable=durable)
done = []
def told(name, error):
    os.write(1, f"done {name} {error}\\n".encode())
    done.append(name)
for _ in range(count):
    entry = committer.begin()
    os.write(entry.fd, b"data")
    committer.commit(entry, 0, lambda error, name=entry.name: told(name, error))
for _ in range(threads):
    threading.Thread(target=committer.run, daemon=True).start()
while len(done) < count:
    select.select([committer.wakeup], [], [])
    assert committer.collect() == []
"""


def traced(folder: Path, count: int, kind: str, threads: int) -> Trace:
    """What a committer asks of the kernel whose threads start when so many entries wait."""
    for name in ("partial", "ready"):
        (folder / name).mkdir()
    trace = folder / "trace"
    command = [sys.executable, "-c", ORDER, str(folder), str(count), kind, str(threads)]
    subprocess.run([*strace(trace), *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=120)
    return Trace.read(trace)


def told(trace: Trace) -> list[tuple[str, int]]:
    """Entries and when it was said of them that they are durable."""
    lines = [
        (call.arguments.split('"done ')[1].split()[0], call.end)
        for call in trace.calls("write")
        if '"done ' in call.arguments
    ]
    assert len({name for name, _ in lines}) == len(lines)
    return lines


@pytest.mark.parametrize("threads", [1, 4])
def test_bytes_then_name_then_folder_are_durable_before_it_is_said(threads: int, tmp_path: Path) -> None:
    trace = traced(tmp_path, 200, "durable", threads)
    said = told(trace)
    assert len(said) == 200
    for name, line in said:
        assert trace.promised(name, "/ready") < line


def test_what_waits_is_made_durable_in_groups(tmp_path: Path) -> None:
    trace = traced(tmp_path, 200, "durable", 1)
    # Half of what waits, at most 64: 64, 64, 36, 18, 9, 5, 2, 1, 1.
    assert len(trace.calls("fsync")) == 9
    calls = [call.name for call in trace.calls("fdatasync", "renameat", "fsync")]
    assert calls[: 2 * GROUP + 1] == ["fdatasync"] * GROUP + ["renameat"] * GROUP + ["fsync"]
    assert len(trace.calls("fdatasync")) == 200


def test_page_cache_syncs_nothing(tmp_path: Path) -> None:
    trace = traced(tmp_path, 20, "cached", 0)
    assert trace.calls("fsync", "fdatasync") == []
    said = told(trace)
    assert len(said) == 20
    for name, line in said:
        assert trace.one("renameat", name).end < line
