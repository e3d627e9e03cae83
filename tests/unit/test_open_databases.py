"""The guard of the tests against connections that nobody closes, and how a ledger closes its own."""

import contextlib
import gc
import os
import re
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

from ingest.ledger import Ledger
from tests.support import open_databases
from tests.support.ledgers import row

TESTS = """
import sqlite3
from ingest.ledger import Ledger

def test_leaves_a_ledger_open(tmp_path):
    Ledger(f"sqlite:///{tmp_path}/ledger.db").migrate()

def test_comes_next():
    pass

def test_closes(tmp_path):
    sqlite3.connect(tmp_path / "a.db").close()

def test_fails_and_leaves_one_open(tmp_path):
    connection = sqlite3.connect(tmp_path / "a.db")
    assert connection is None

def test_comes_last():
    pass
"""


def test_connection_that_nobody_closed_is_named_with_its_opener(tmp_path: Path) -> None:
    count = open_databases.count_opened()
    with contextlib.closing(sqlite3.connect(tmp_path / "kept.db")):
        sqlite3.connect(tmp_path / "left.db")
        (opener,) = open_databases.take_abandoned(count)
    assert opener.startswith(f"opened by tests/unit/{Path(__file__).name}:")
    assert open_databases.take_abandoned(count) == []


def test_test_that_leaves_a_connection_open_fails_and_not_the_next_one(tmp_path: Path) -> None:
    root = open_databases.REPOSITORY
    (tmp_path / "test_leaks.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-c", root / "pyproject.toml", "--rootdir", tmp_path]
    result = subprocess.run(
        [*command, "-p", "tests.conftest", "-p", "no:cacheprovider", tmp_path / "test_leaks.py"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
    )
    ended = re.findall(r"^(ERROR|FAILED) .*::(\w+)", result.stdout, re.MULTILINE)
    assert ended == [
        ("ERROR", "test_leaves_a_ledger_open"),
        ("FAILED", "test_fails_and_leaves_one_open"),
    ], result.stdout
    assert "4 passed" in result.stdout


def test_ledger_that_is_closed_while_a_thread_reads_keeps_no_connection(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ledger = Ledger(f"sqlite:///{path}")
    ledger.migrate()
    ledger.instances.record([row(1)])
    reading, closed, found = threading.Event(), threading.Event(), []

    def read() -> None:
        with ledger.database.begin_read() as connection:
            reading.set()
            closed.wait(10)
            found.append(connection.exec_driver_sql("SELECT count(*) FROM instances").scalar())

    thread = threading.Thread(target=read)
    thread.start()
    gc.disable()
    try:
        assert reading.wait(10)
        ledger.close()
        closed.set()
        thread.join(10)
        assert found == [1], "the reader was not disturbed"
        assert not [fd for fd in os.listdir("/proc/self/fd") if _leads_to(fd, path)]
    finally:
        gc.enable()


def _leads_to(fd: str, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.readlink(f"/proc/self/fd/{fd}").startswith(str(path))
    return False
