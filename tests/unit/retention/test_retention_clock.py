"""Which time studies are aged by, and how much one pass may remove for their age."""

import pytest

from ingest.ledger.retention import StoredStudy
from ingest.workers.retention.clock import (
    ClockReading,
    compute_retention_ms,
    measure_jump_ms,
    read_clocks,
    read_mark,
    write_mark,
)
from ingest.workers.retention.policy import DAY_MS, RetentionGoal, RetentionReason, plan_removals

HOUR_MS = 3_600_000
MARK = ClockReading(1_000 * DAY_MS, 50 * HOUR_MS, "a")


@pytest.mark.parametrize(
    ("wall", "boot", "boot_id", "ahead"),
    [
        (HOUR_MS, HOUR_MS, "a", 0),
        (2 * HOUR_MS, HOUR_MS, "a", 0),
        (365 * DAY_MS, 365 * DAY_MS, "a", 0),
        (365 * DAY_MS, HOUR_MS, "a", 365 * DAY_MS - 2 * HOUR_MS),
        (-DAY_MS, HOUR_MS, "a", 0),
        (6 * DAY_MS, -49 * HOUR_MS, "b", 0),
        (365 * DAY_MS, -49 * HOUR_MS, "b", 358 * DAY_MS),
        (8 * DAY_MS, 0, "b", DAY_MS),
    ],
)
def test_a_clock_is_ahead_where_less_time_has_gone_by(wall: int, boot: int, boot_id: str, ahead: int) -> None:
    now = ClockReading(MARK.wall_ms + wall, MARK.boot_ms + boot, boot_id)
    assert measure_jump_ms(MARK, now) == ahead
    assert measure_jump_ms(None, now) == 0, "the first pass believes the clock"


def test_a_mark_is_read_as_it_was_left(tmp_path) -> None:
    assert read_mark(tmp_path) is None
    now = read_clocks()
    write_mark(tmp_path, now)
    assert read_mark(tmp_path) == now
    (tmp_path / "retention_clock.json").write_text("{")
    assert read_mark(tmp_path) is None
    write_mark(tmp_path / "missing", now)


def test_studies_are_aged_by_no_time_long_after_the_newest_instance() -> None:
    assert compute_retention_ms(10 * DAY_MS, None) == 10 * DAY_MS
    assert compute_retention_ms(10 * DAY_MS, 10 * DAY_MS - 5) == 10 * DAY_MS
    assert compute_retention_ms(375 * DAY_MS, 10 * DAY_MS) == 11 * DAY_MS


def studies(count: int) -> list[StoredStudy]:
    return [
        StoredStudy(study_uid=str(number), newest_at=number, instances=1, size=100, owed=0)
        for number in range(count)
    ]


@pytest.mark.parametrize(("most", "gone"), [(None, 10), (0, 1), (100, 1), (101, 2), (250, 3), (5000, 10)])
def test_a_pass_removes_no_more_than_its_share_for_age(most: int | None, gone: int) -> None:
    found = list(plan_removals(studies(10), RetentionGoal(before_ms=1000, aged_max_bytes=most)))
    assert [one.study.study_uid for one in found] == [str(number) for number in range(gone)]
    assert {one.reason for one in found} == {RetentionReason.AGE}


def test_limits_of_bytes_hold_whatever_the_share_for_age_is() -> None:
    found = list(
        plan_removals(studies(10), RetentionGoal(before_ms=1000, aged_max_bytes=100, excess_bytes=500))
    )
    assert [one.reason for one in found] == [RetentionReason.AGE, *[RetentionReason.BYTES] * 4]
