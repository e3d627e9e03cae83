"""The scoreboard: one file, many writers with a row each, readers in other processes."""

import errno
import os
from pathlib import Path

import pytest

from ingest.node import scoreboard
from ingest.node.scoreboard import (
    ACCEPTING,
    ACTIVE,
    BOOTING,
    BYTES,
    DRAINING,
    HEARTBEAT,
    INSTANCES,
    PID,
    ROWS,
    STATE,
    Scoreboard,
    now_ms,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "scoreboard"


def test_a_new_scoreboard_is_empty(path: Path) -> None:
    board = Scoreboard.create(path)
    assert board.rows() == []
    assert board.free_row() == 0


def test_a_reader_sees_what_is_written(path: Path) -> None:
    board = Scoreboard.create(path)
    reader = Scoreboard.attach(path)
    assert reader is not None
    for field, value in ((PID, 42), (STATE, ACCEPTING), (ACTIVE, 3), (HEARTBEAT, now_ms())):
        board.set(7, field, value)
    board.add(7, INSTANCES)
    board.add(7, INSTANCES)
    board.add(7, BYTES, 5 << 40)
    [row] = reader.rows()
    assert (row.row, row.pid, row.state, row.active) == (7, 42, ACCEPTING, 3)
    assert (row.instances, row.bytes, row.failed, row.refused) == (2, 5 << 40, 0, 0)
    assert 0 <= row.age_ms < 5000


def test_a_forked_child_writes_into_the_same_rows(path: Path) -> None:
    board = Scoreboard.create(path)
    pid = os.fork()
    if pid == 0:
        board.set(1, STATE, DRAINING)
        board.set(1, ACTIVE, 9)
        os._exit(0)
    os.waitpid(pid, 0)
    assert (board.get(1, STATE), board.get(1, ACTIVE)) == (DRAINING, 9)
    assert board.get(0, STATE) == board.get(2, STATE) == 0


def test_rows_do_not_touch_each_other(path: Path) -> None:
    board = Scoreboard.create(path)
    for row in range(ROWS):
        for field in range(9):
            board.set(row, field, row * 100 + field + 1)
    board.clear(5)
    assert all(board.get(5, field) == 0 for field in range(9))
    assert all(
        board.get(row, field) == row * 100 + field + 1
        for row in range(ROWS)
        if row != 5
        for field in range(9)
    )
    assert board.free_row() == 5


def test_when_all_rows_are_taken_there_is_none(path: Path) -> None:
    board = Scoreboard.create(path)
    for row in range(ROWS):
        board.set(row, STATE, BOOTING)
    assert board.free_row() is None


def test_a_new_node_begins_with_a_new_board_and_leaves_the_readers_of_the_old_one_theirs(path: Path) -> None:
    old = Scoreboard.create(path)
    old.set(0, STATE, ACCEPTING)
    new = Scoreboard.create(path)
    assert new.rows() == []
    assert len(old.rows()) == 1
    assert [entry.name for entry in path.parent.iterdir()] == ["scoreboard"]


@pytest.mark.parametrize("content", [None, b"", b"x" * 10, b"x" * 100_000])
def test_what_is_no_scoreboard_is_none(content: bytes | None, path: Path) -> None:
    if content is not None:
        path.write_bytes(content)
    assert Scoreboard.attach(path) is None


def test_a_reader_cannot_write(path: Path) -> None:
    Scoreboard.create(path)
    reader = Scoreboard.attach(path)
    assert reader is not None
    with pytest.raises(TypeError):
        reader.set(0, STATE, ACCEPTING)


def test_its_blocks_are_reserved_so_that_a_full_disk_cannot_kill_a_writer(path: Path) -> None:
    Scoreboard.create(path)
    facts = path.stat()
    assert facts.st_blocks * 512 >= facts.st_size


def test_a_full_disk_is_said_when_it_is_made(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(scoreboard.os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        Scoreboard.create(path)
    assert len(os.listdir("/proc/self/fd")) == before
