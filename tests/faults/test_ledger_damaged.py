"""A ledger that is damaged, removed or exchanged under a running node, and a data folder that is."""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.caller import Caller, new_uid
from tests.support.instances import Made
from tests.support.nodes import Node, eventually

ROOT = Path(__file__).parents[2]


@pytest.fixture
def node(make_node: Callable[..., Node]) -> Node:
    return make_node("node").start()


def send(node: Node, count: int = 1) -> list[str]:
    """Have so many instances acknowledged; their SOP instance UIDs."""
    uids = [new_uid() for _ in range(count)]
    with Caller.plain(node) as caller:
        caller.associate()
        for uid in uids:
            assert caller.store(Made(sop=uid)).status == 0
        caller.release()
    return uids


def stored(node: Node, *uids: str) -> None:
    eventually(lambda: set(uids) <= set(node.stored()), 30, "all of it is in store and ledger")


def say(node: Node, *command: str) -> tuple[int, str]:
    """Run a command of `ingest`; exit code and what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "ingest.cli", *command, "-c", str(node.config_path)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "400"},
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


def workers(node: Node) -> set[int]:
    return {child.pid for child in node.children("ingest-") if child.name() != "ingest-listen"}


def lose(node: Node) -> None:
    for path in node.data.glob("ledger.db*"):
        path.unlink()


def garbage(path: Path) -> None:
    path.write_bytes(b"this is no database" * 1000)


def damaged_pages(path: Path) -> None:
    # All but the first page, which says what the tables are.
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))


@contextlib.contextmanager
def stopped_for(node: Node) -> Iterator[None]:
    assert node.stop() == 0
    yield
    node.start()


@pytest.mark.parametrize("damage", [garbage, damaged_pages])
def test_malformed_ledger_is_named_and_rebuilt_and_no_worker_dies_of_it(
    node: Node, damage: Callable[[Path], None]
) -> None:
    first = send(node, 3)
    stored(node, *first)
    with stopped_for(node):
        with contextlib.closing(sqlite3.connect(node.data / "ledger.db")) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        damage(node.data / "ledger.db")
    second = send(node, 2)  # receiving goes on
    eventually(lambda: node.events("ledger_away"), 20, "a worker says so")
    before = workers(node)
    code, said = say(node, "check")
    assert (code, "malformed" in said, "ingest ledger rebuild" in said) == (1, True, True), said
    code, said = say(node, "status")
    assert (code, "malformed" in said, "ingest ledger rebuild" in said) == (2, True, True), said
    for command in (("instances",), ("ledger", "verify")):
        code, said = say(node, *command)
        assert (code, "malformed" in said) == (1, True), said
    assert workers(node) == before
    assert node.events("child_died") == []

    with stopped_for(node):
        lose(node)
        code, said = say(node, "ledger", "rebuild")
        assert code == 0, said
    stored(node, *first, *second)
    eventually(lambda: say(node, "ledger", "verify", "--store")[0] == 0, 20, "rows and files agree")


def test_ledger_that_is_removed_under_a_running_node_takes_no_more_rows(node: Node) -> None:
    first = send(node, 2)
    stored(node, *first)
    lose(node)
    second = send(node, 2)
    eventually(lambda: node.events("ledger_away"), 20, "a worker says so")
    assert len(node.spooled()) == 2
    assert not (node.data / "ledger.db").exists()
    with stopped_for(node):
        code, said = say(node, "ledger", "rebuild")
        assert code == 0, said
    stored(node, *first, *second)
    assert node.events("child_died") == []


def test_ledger_that_is_exchanged_under_a_running_node_is_used_at_once(node: Node) -> None:
    first = send(node, 2)
    stored(node, *first)
    copy = node.data / "copy.db"
    with (
        contextlib.closing(sqlite3.connect(node.data / "ledger.db")) as one,
        contextlib.closing(sqlite3.connect(copy)) as other,
    ):
        one.backup(other)
    for name in ("ledger.db-wal", "ledger.db-shm"):
        (node.data / name).unlink(missing_ok=True)
    copy.rename(node.data / "ledger.db")
    second = send(node, 2)
    stored(node, *first, *second)


@pytest.mark.parametrize("how", ["moved", "replaced", "removed"])
def test_node_ends_when_its_data_folder_is_replaced(node: Node, how: str) -> None:
    uids = send(node, 2)
    stored(node, *uids)
    away = node.data.with_name("away")
    node.data.rename(away)
    if how == "replaced":
        shutil.copytree(away, node.data, ignore=shutil.ignore_patterns("queue"))
    if how == "removed":
        shutil.rmtree(away)
    assert node.process is not None
    assert node.process.wait(20) == 1
    [event] = node.events("data_dir_replaced")
    assert "put the folder back" in str(event["remedy"])
    if how == "moved":
        node._wait(1)
        assert not list(node.data.glob("ledger.db*")) + list(node.data.glob("store/*"))
        shutil.rmtree(node.data, ignore_errors=True)
        away.rename(node.data)
        node.start()
        stored(node, *uids, *send(node))
