"""The metrics board: names and words, processes that count at once, and the copy that others read."""

import os
import signal
from pathlib import Path

import pytest

from ingest.ext import shared_counters
from ingest.ext.shared_counters import DURATION_BOUNDS_NS, HISTOGRAM_WORDS
from ingest.metrics import families
from ingest.metrics.board import BOARD_BYTES, Histogram, MetricsBoard, merge_samples
from ingest.metrics.board_file import BoardFile, read_boards
from ingest.metrics.families import FAMILIES, Kind


@pytest.fixture
def board() -> MetricsBoard:
    return MetricsBoard.create()


def values(board: MetricsBoard, family: families.Family) -> dict[tuple[str, ...], float | Histogram]:
    return {sample.labels: sample.value for sample in board.read(family)}


def test_no_two_time_series_share_a_word(board: MetricsBoard) -> None:
    board.add_names(families.CALLING_AE, [f"CT{number}" for number in range(255)])
    board.add_names(families.DESTINATION, [f"PACS{number}" for number in range(127)])
    taken: set[int] = set()
    for family in FAMILIES:
        size = HISTOGRAM_WORDS if family.kind is Kind.HISTOGRAM else 1
        cells: list[tuple[str, ...]] = [()]
        for label in family.labels:
            cells = [(*cell, value) for cell in cells for value in board.list_names(label)]
        for cell in cells:
            at = board.find_word(family, *cell)
            words = set(range(at, at + size))
            assert not words & taken, (family.name, cell)
            taken |= words
    assert max(taken) < BOARD_BYTES // 8


def test_children_add_at_the_same_time_and_a_killed_one_loses_nothing(board: MetricsBoard) -> None:
    board.add_names(families.DESTINATION, ["PACS"])
    word, pids = board.find_word(families.DELIVERY_RESULTS, "PACS", "delivered"), []
    waiting, go = os.pipe()
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            os.close(go)
            os.read(waiting, 1)
            for _ in range(300_000):  # in the shortest loop: an addition that is not atomic would lose some
                shared_counters.add(board.words, word, 1)
            for _ in range(1_000):
                board.observe(families.SEND_SECONDS, 0.002, "PACS")
            os.kill(os.getpid(), signal.SIGKILL)
        pids.append(pid)
    os.close(go)  # all begin at once
    os.close(waiting)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [-signal.SIGKILL] * 4
    assert values(board, families.DELIVERY_RESULTS)["PACS", "delivered"] == 1_200_000
    found = values(board, families.SEND_SECONDS)["PACS",]
    assert isinstance(found, Histogram)
    assert found.count == 4_000
    assert found.sum_seconds == pytest.approx(8.0)


def test_a_duration_counts_in_the_bucket_whose_bound_it_does_not_pass(board: MetricsBoard) -> None:
    first, second = DURATION_BOUNDS_NS[:2]
    for duration_ns in (0, first, first + 1, second, DURATION_BOUNDS_NS[-1] + 1):
        shared_counters.observe(board.words, board.find_word(families.COMMIT_SECONDS), duration_ns)
    board.observe(families.COMMIT_SECONDS, -3.0, count=5)
    found = values(board, families.COMMIT_SECONDS)[()]
    assert isinstance(found, Histogram)
    assert (found.counts[:2], found.counts[-1], found.count) == ((7, 2), 1, 10)


def test_words_outside_of_the_board_are_refused(board: MetricsBoard) -> None:
    count = len(board.words)
    with pytest.raises(IndexError):
        shared_counters.add(board.words, count, 1)
    with pytest.raises(IndexError):
        shared_counters.observe(board.words, count - HISTOGRAM_WORDS + 1, 1)


def test_names_are_appended_bounded_and_all_others_count_as_other(board: MetricsBoard) -> None:
    board.add_names(families.CALLING_AE, ["CT1"])
    board.add(families.INSTANCES, "CT1")
    board.add_names(families.CALLING_AE, ["CT1", *(f"MR{number}" for number in range(400)), "X" * 17])
    for stranger in ("MR399", "X" * 17, "EVIL", ""):
        board.add(families.INSTANCES, stranger)
    found = values(board, families.INSTANCES)
    assert len(found) == families.CALLING_AE.size
    assert (found["CT1",], found["MR0",], found["other",]) == (1, 0, 4)


def test_readers_see_names_and_values_in_the_file(tmp_path: Path, board: MetricsBoard) -> None:
    file = BoardFile(board, tmp_path, "node")
    board.add_names(families.DESTINATION, ["PACS"])
    board.add(families.DELIVERED_BYTES, "PACS", value=1 << 40)
    file.write()
    pid = os.fork()  # a record lock does not exclude its own process
    if pid == 0:
        found = read_boards(tmp_path)
        is_right = list(found) == ["node"] and values(found["node"], families.DELIVERED_BYTES) == {
            ("PACS",): 1 << 40
        }
        os._exit(0 if is_right else 1)
    assert os.waitpid(pid, 0)[1] == 0
    file.close()
    assert read_boards(tmp_path) == {}, "its supervisor has ended"


def test_supervisors_of_one_folder_have_files_of_their_own(tmp_path: Path) -> None:
    first_ready, first_go = os.pipe()
    pid = os.fork()
    if pid == 0:
        board = MetricsBoard.create()
        file = BoardFile(board, tmp_path, "persist")
        board.add(families.PERSISTED, "stored", value=3)
        file.write()
        os.write(first_go, b".")
        signal.pause()
    os.read(first_ready, 1)
    try:
        own = MetricsBoard.create()
        own.add(families.PERSISTED, "stored", value=4)
        second = BoardFile(own, tmp_path, "persist")
        second.write()
        assert sorted(path.name for path in (tmp_path / "metrics").iterdir()) == ["persist", "persist-2"]
        boards = [*read_boards(tmp_path).values()]
        assert merge_samples([*boards, own], families.PERSISTED)["stored",] == 7
        second.close()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(first_ready)
        os.close(first_go)


def test_a_folder_that_cannot_be_written_costs_only_the_file(tmp_path: Path, board: MetricsBoard) -> None:
    (tmp_path / "metrics").write_text("")
    BoardFile(board, tmp_path, "node").write()
    assert read_boards(tmp_path) == {}
