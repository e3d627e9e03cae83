"""The scoreboard: one file, many writers with a row each, readers in other processes."""

import errno
import os
from pathlib import Path

import pytest

from ingest.acceptor.scoreboard import (
    ACCEPTING,
    ACTIVE,
    BOOTING,
    BYTES,
    DRAINING,
    ENTRIES,
    HEARTBEAT,
    INSTANCES,
    PID,
    ROWS,
    STATE,
    Scoreboard,
    digest_caller,
)
from ingest.clock import monotonic_ms
from ingest.config.model import MAX_ASSOCIATIONS


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "scoreboard"


def test_a_new_scoreboard_is_empty(path: Path) -> None:
    board = Scoreboard.create(path)
    assert board.list_listeners() == []
    assert board.find_free_row() == 0


def test_a_reader_sees_what_is_written(path: Path) -> None:
    board = Scoreboard.create(path)
    reader = Scoreboard.open_reader(path)
    assert reader is not None
    for field, value in ((PID, 42), (STATE, ACCEPTING), (ACTIVE, 3), (HEARTBEAT, monotonic_ms())):
        board.set(7, field, value)
    board.add(7, INSTANCES)
    board.add(7, INSTANCES)
    board.add(7, BYTES, 5 << 40)
    board.set(7, HEARTBEAT, monotonic_ms())  # shows what was counted since the last one
    [row] = reader.list_listeners()
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
    board.clear_row(5)
    assert all(board.get(5, field) == 0 for field in range(9))
    assert all(
        board.get(row, field) == row * 100 + field + 1
        for row in range(ROWS)
        if row != 5
        for field in range(9)
    )
    assert board.find_free_row() == 5


def test_associations_of_all_listeners_are_counted_by_caller(path: Path) -> None:
    board = Scoreboard.create(path)
    ct, mr = digest_caller("CT1", "10.1.1.1"), digest_caller("MR1", "10.1.1.1")
    entries = [board.claim_association(row, caller) for row in (0, 7, ROWS - 1) for caller in (ct, ct, mr)]
    assert board.count_associations(ct) == (9, 6)
    assert board.count_associations(mr) == (9, 3)
    assert entries[0] is not None
    board.release_association(entries[0])
    assert board.count_associations(ct) == (8, 5)
    assert board.claim_association(3, ct) == entries[0], "the first that is free"
    board.set(3, HEARTBEAT, monotonic_ms())
    reader = Scoreboard.open_reader(path)
    assert reader is not None
    assert reader.count_associations(ct) == (9, 6)


def test_a_row_whose_process_has_ended_holds_no_association(path: Path) -> None:
    board = Scoreboard.create(path)
    caller = digest_caller("CT1", "10.1.1.1")
    for row in (0, 4, 5, 4, 6):
        board.claim_association(row, caller)
    board.clear_row(4)
    assert board.count_associations(caller) == (3, 3)


def test_a_table_that_is_full_takes_no_more(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = Scoreboard.create(path)
    monkeypatch.setattr(board, "_entries", board._entries[:4])
    assert [board.claim_association(0, 1) for _ in range(4)] == [1, 2, 3, None]
    assert board.count_associations(1) == (3, 3)
    assert ENTRIES == MAX_ASSOCIATIONS


def test_a_count_that_somebody_wrote_over_leads_no_one_out_of_the_table(path: Path) -> None:
    board = Scoreboard.create(path)
    board._entries[0] = 2**64 - 1
    assert board.count_associations() == (0, 0)
    board.clear_row(0)
    with pytest.raises(ValueError, match="does not fit"):
        board.claim_association(5000, 0)


def test_processes_that_claim_at_once_never_get_one_entry_twice(path: Path) -> None:
    board, each = Scoreboard.create(path), 3000
    children = []
    for row in range(4):
        pid = os.fork()
        if pid == 0:
            for _ in range(each):
                entry = board.claim_association(row, row)
                if entry is not None and entry % 3 == row % 3:
                    board.release_association(entry)
                    board.claim_association(row, row)
            os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)
    assert board.count_associations() == (4 * each, each)
    for row in range(4):
        assert board.count_associations(row)[1] == each
        board.clear_row(row)
    assert board.count_associations() == (0, 0)


def test_when_all_rows_are_taken_there_is_none(path: Path) -> None:
    board = Scoreboard.create(path)
    for row in range(ROWS):
        board.set(row, STATE, BOOTING)
    assert board.find_free_row() is None


def test_a_new_node_begins_with_a_new_board_and_leaves_the_readers_of_the_old_one_theirs(path: Path) -> None:
    old = Scoreboard.create(path)
    old.set(0, STATE, ACCEPTING)
    new = Scoreboard.create(path)
    assert new.list_listeners() == []
    assert len(old.list_listeners()) == 1
    assert [entry.name for entry in path.parent.iterdir()] == ["scoreboard"]


@pytest.mark.parametrize("content", [None, b"", b"x" * 10, b"x" * 100_000])
def test_what_is_no_scoreboard_is_none(content: bytes | None, path: Path) -> None:
    if content is not None:
        path.write_bytes(content)
    assert Scoreboard.open_reader(path) is None


def test_a_file_that_is_cut_short_ends_nobody_and_is_made_whole_with_the_next_change(path: Path) -> None:
    board = Scoreboard.create(path)
    board.set(3, STATE, ACCEPTING)
    reader = Scoreboard.open_reader(path)
    assert reader is not None
    os.truncate(path, 0)
    pid = os.fork()
    if pid == 0:
        board.add(3, INSTANCES)
        entry = board.claim_association(3, 1)
        os._exit(entry or 0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1, "no SIGBUS"
    os.truncate(path, 1000)
    assert (reader.exists, reader.list_listeners(), reader.count_associations()) == (False, [], (0, 0))
    assert Scoreboard.open_reader(path) is None
    board.set(3, HEARTBEAT, monotonic_ms())
    [row] = reader.list_listeners()
    assert (row.row, row.instances, reader.count_associations(1)) == (3, 1, (1, 1))


@pytest.mark.parametrize("name", ["pwrite", "open", "fstat"])
def test_a_full_or_failing_disk_keeps_no_node_from_its_counters(
    name: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(os.listdir("/proc/self/fd"))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, name, full)
    board = Scoreboard.create(path)
    board.set(3, STATE, ACCEPTING)
    board.set(3, HEARTBEAT, monotonic_ms())
    assert board.get(3, STATE) == ACCEPTING
    monkeypatch.undo()
    assert Scoreboard.open_reader(path) is None
    del board
    assert len(os.listdir("/proc/self/fd")) == before
