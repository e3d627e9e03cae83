"""The accept gate: the least loaded accepts, and no mistake can hold a connection back."""

from pathlib import Path

import pytest

from ingest.acceptor.accept_gate import MAX_PASSES, PENDING_COUNTED, STALE_MS, AcceptGate
from ingest.acceptor.scoreboard import (
    ACCEPTING,
    ACTIVE,
    BOOTING,
    DRAINING,
    HEARTBEAT,
    PENDING,
    STATE,
    Scoreboard,
)
from ingest.clock import monotonic_ms


@pytest.fixture
def board(tmp_path: Path) -> Scoreboard:
    return Scoreboard.create(tmp_path / "scoreboard")


def listener(board: Scoreboard, row: int, active: int, *, state: int = ACCEPTING, age: int = 0) -> AcceptGate:
    board.set(row, STATE, state)
    board.set(row, ACTIVE, active)
    board.set(row, HEARTBEAT, monotonic_ms() - age)
    return AcceptGate(board, row)


def test_a_listener_alone_accepts(board: Scoreboard) -> None:
    assert listener(board, 0, 100).may_accept()


def test_the_least_loaded_accepts_and_the_others_leave_it_to_it(board: Scoreboard) -> None:
    busy, idle = listener(board, 0, 2), listener(board, 1, 1)
    assert not busy.may_accept()
    assert idle.may_accept()


def test_equally_loaded_ones_all_try(board: Scoreboard) -> None:
    assert listener(board, 0, 3).may_accept()
    assert listener(board, 200, 3).may_accept()


def pending(board: Scoreboard, row: int, count: int) -> AcceptGate:
    """A listener with five associations and so many connections that have none yet."""
    board.set(row, PENDING, count)
    return listener(board, row, 5 + count)


def test_connections_that_stall_are_no_load_to_be_spread(board: Scoreboard) -> None:
    stalled = pending(board, 0, 250)
    assert pending(board, 1, PENDING_COUNTED).may_accept()
    assert stalled.may_accept()
    listener(board, 0, 5 + 250 + 1)  # an association more
    assert not stalled.may_accept()


def test_senders_that_come_together_are_spread_before_they_have_associations(board: Scoreboard) -> None:
    first = pending(board, 0, PENDING_COUNTED)
    assert pending(board, 1, PENDING_COUNTED - 1).may_accept()
    assert not first.may_accept()


@pytest.mark.parametrize("state", [BOOTING, DRAINING])
def test_one_that_does_not_accept_is_not_waited_for(state: int, board: Scoreboard) -> None:
    busy = listener(board, 0, 5)
    listener(board, 1, 0, state=state)
    assert busy.may_accept()


def test_one_that_is_dead_or_stopped_is_not_waited_for(board: Scoreboard) -> None:
    busy = listener(board, 0, 5)
    listener(board, 1, 0, age=STALE_MS + 1000)
    assert busy.may_accept()


def test_a_connection_that_nobody_takes_is_taken_after_a_few_passes(board: Scoreboard) -> None:
    busy = listener(board, 0, 5)
    listener(board, 1, 0)  # it lives, and does not come
    assert [busy.may_accept() for _ in range(MAX_PASSES + 1)] == [False] * MAX_PASSES + [True]
    assert not busy.may_accept(), "the next connection is another decision"


def test_a_connection_that_somebody_took_does_not_count_for_the_next(board: Scoreboard) -> None:
    busy = listener(board, 0, 5)
    listener(board, 1, 0)
    for _ in range(MAX_PASSES - 1):
        assert not busy.may_accept()
    busy.reset_passes()
    assert [busy.may_accept() for _ in range(MAX_PASSES)] == [False] * MAX_PASSES


def test_associations_that_come_one_after_the_other_spread_evenly(board: Scoreboard) -> None:
    gates = [listener(board, row, 0) for row in range(4)]
    for number in range(30):
        # The worst order of wake-ups: always the same listener first.
        taker = next(row for row, gate in enumerate(gates) if gate.may_accept())
        board.set(taker, ACTIVE, board.get(taker, ACTIVE) + 1)
        for gate in gates:
            gate.reset_passes()
        counts = [board.get(row, ACTIVE) for row in range(4)]
        assert max(counts) - min(counts) <= 1, number
