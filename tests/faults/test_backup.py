"""A backup of a node at work, in the documented order, and its restore into a new folder."""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.watch import receive
from tests.support.nodes import Node, eventually
from tests.support.senders import Modality, kept_whole

ROOT = Path(__file__).parents[2]


def copy_tree(source: Path, target: Path) -> None:
    """As `rsync -a` does: what goes between the listing and the copying is left out."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            to = target / path.relative_to(source)
            if path.is_dir():
                to.mkdir(parents=True, exist_ok=True)
            elif path.is_file():
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, to)


def back_up(node: Node, target: Path) -> None:
    """In the order of docs/how-to/back-up.md: ledger, spool, store."""
    target.mkdir(parents=True)
    with (
        contextlib.closing(sqlite3.connect(node.data / "ledger.db")) as ledger,
        contextlib.closing(sqlite3.connect(target / "ledger.db")) as copy,
    ):
        ledger.backup(copy)
    for slot in sorted(node.spool.glob("L*")):
        for part in ("ready", "segments"):
            if (slot / part).is_dir():
                copy_tree(slot / part, target / "spool" / slot.name / part)
    shutil.copy2(node.spool / "id", target / "spool" / "id")
    copy_tree(node.store, target / "store")
    if (node.data / "quarantine").is_dir():
        copy_tree(node.data / "quarantine", target / "quarantine")


@pytest.mark.parametrize("segment_max_bytes", [0, 65536], ids=["files", "segments"])
def test_backup_of_a_node_at_work_holds_all_that_was_acknowledged_before_it(
    make_node: Callable[..., Node], tmp_path: Path, segment_max_bytes: int
) -> None:
    sections = {"receive": receive(segment_max_bytes=segment_max_bytes)}
    node = make_node("node", **sections).start()
    with Modality(node, tmp_path / "sender", associations=2, pause=0.005) as modality:
        modality.until(60)
        promised = dict(modality.acknowledged)
        back_up(node, tmp_path / "restored" / "var")
        modality.until(20)
    assert node.stop() == 0

    restored = make_node("restored", **sections)
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
