"""The script of docs/how-to/back-up.md beside a node at work, and its restore into a new folder."""

import contextlib
import getpass
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.watch import receive
from tests.support.nodes import Node, eventually
from tests.support.pages import DOCS, read_blocks
from tests.support.peers import require_program
from tests.support.senders import Modality, kept_whole

ROOT = Path(__file__).parents[2]

SCRIPT_SECONDS = 45
"""The script needs one or two. A copy that begins again at each change of the ledger does not end."""


def run_page(heading: str, node: Node, backup: Path) -> None:
    """Run the commands below a heading with these folders in place of those of a package."""
    require_program("rsync")
    require_program("sqlite3")
    (script,) = [block.text for block in read_blocks(DOCS / "how-to/back-up.md", heading) if block.remark]
    for before, after in (
        ("/backup", str(backup)),
        ("/var/lib/dicom-ingest", str(node.data)),
        ("/etc/dicom-ingest/ingest.toml", str(node.config_path)),
        ("dicom-ingest:", f"{getpass.getuser()}:"),
        ("systemctl stop dicom-ingest", ":"),
    ):
        script = script.replace(before, after)
    done = subprocess.run(
        ["sh", "-eux", "-c", script], capture_output=True, text=True, timeout=SCRIPT_SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@contextlib.contextmanager
def busy_ledger(node: Node) -> Iterator[None]:
    """Give the ledger the size of some days, and change it all the time, as a busy node does."""
    ended = threading.Event()

    def change() -> None:
        with contextlib.closing(sqlite3.connect(node.data / "ledger.db", timeout=30)) as ledger:
            while not ended.wait(0.005):
                with ledger:
                    ledger.execute("INSERT INTO weight VALUES ('')")

    with contextlib.closing(sqlite3.connect(node.data / "ledger.db", timeout=30)) as ledger, ledger:
        ledger.execute("CREATE TABLE weight (content BLOB)")
        ledger.executemany("INSERT INTO weight VALUES (zeroblob(?))", [(1 << 20,)] * 60)
    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("segment_max_bytes", [0, 65536], ids=["files", "segments"])
def test_backup_of_a_node_at_work_holds_all_that_was_acknowledged_before_it(
    make_node: Callable[..., Node], tmp_path: Path, segment_max_bytes: int
) -> None:
    sections = {"receive": receive(segment_max_bytes=segment_max_bytes)}
    node = make_node("node", **sections).start()
    with Modality(node, tmp_path / "sender", associations=2, pause=0.005) as modality:
        modality.until(10)
        eventually(node.stored, 30, "the ledger is in use")
        with busy_ledger(node):
            run_page("Back up", node, tmp_path / "backup")  # that of the day before
            modality.until(60)
            promised = dict(modality.acknowledged)
            run_page("Back up", node, tmp_path / "backup")
        modality.until(20)
    assert node.stop() == 0
    assert (tmp_path / "backup").stat().st_mode & 0o077 == 0, "the ledger has attributes of patients"

    restored = make_node("restored", **sections)
    run_page("Restore", restored, tmp_path / "backup")
    rebuilt = subprocess.run(
        [sys.executable, "-m", "ingest.cli", "ledger", "rebuild", "-c", str(restored.config_path)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert rebuilt.returncode == 0, rebuilt.stdout + rebuilt.stderr
    restored.start()
    eventually(lambda: kept_whole(restored, promised), 30, "all that was acknowledged before the backup")
    eventually(lambda: restored.spooled() == [], 30, "the restored spool is empty")
    assert restored.events("quarantined") == []
    keys = [key for (key,) in restored.query("SELECT store_key FROM instances WHERE state = 'stored'")]
    assert len(keys) == len(set(keys)) == len(list(restored.store.rglob("*.dcm")))
