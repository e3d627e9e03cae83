"""When a study is complete: a table, and what must hold for every one."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.ledger.receptions import Reception, SpoolMark
from ingest.workers.monitor.completion_rule import find_low_water, judge_completion

IDLE = 300
SILENT = 5000


def received(due_at: int, seen_at: int | None = None) -> Reception:
    return Reception("1.2", "", 1, 100, due_at - 60, 5, due_at, seen_at)


@pytest.mark.parametrize(
    ("reception", "low_water", "is_complete"),
    [
        (received(1000), 1000, True),
        (received(1001), 1001, False),
        # An entry of 999 waits in the spool, and may belong to the study.
        (received(1000), 999, False),
        (received(900), 950, True),
        (received(900, seen_at=1000), 1000, False),
        (received(900, seen_at=701), 1000, False),
        (received(900, seen_at=700), 1000, True),
    ],
)
def test_table_of_completion(reception: Reception, low_water: int, is_complete: bool) -> None:
    assert judge_completion(reception, low_water, 1000, IDLE) is is_complete


@pytest.mark.parametrize(
    ("marks", "low_water"),
    [
        ([], 9000),
        ([SpoolMark("a", 8999, 9000)], 8999),
        ([SpoolMark("a", 8000, 8500), SpoolMark("b", 7000, 8600)], 7000),
        ([SpoolMark("a", 8000, 4001)], 8000),
        ([SpoolMark("a", 8000, 4000)], 9000),
        ([SpoolMark("a", 9999, 9000)], 9000),
    ],
)
def test_table_of_low_water(marks: list[SpoolMark], low_water: int) -> None:
    assert find_low_water(marks, 9000, SILENT) == low_water


times = st.integers(0, 20_000)


@given(
    times,
    st.none() | times,
    st.lists(st.builds(SpoolMark, st.just("s"), times, times), max_size=3),
    times,
)
def test_nothing_completes_while_something_may_come_and_everything_does_at_last(
    due_at: int, seen_at: int | None, marks: Sequence[SpoolMark], now: int
) -> None:
    reception = received(due_at, seen_at)
    low_water = find_low_water(marks, now, SILENT)
    if judge_completion(reception, low_water, now, IDLE):
        assert due_at <= now
        assert all(due_at <= mark.low_water for mark in marks if mark.seen_at > now - SILENT)
        assert seen_at is None or now - seen_at >= IDLE
    late = max(due_at, seen_at or 0, now) + IDLE
    assert judge_completion(reception, late, late, IDLE)
    # What is complete stays so, for as long as nothing comes.
    if judge_completion(reception, low_water, now, IDLE):
        assert judge_completion(reception, low_water + 1, now + 1, IDLE)
