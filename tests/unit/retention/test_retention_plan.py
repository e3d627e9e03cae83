"""What goes, decided without a store: the order of studies, the limits, and what is owed."""

import os
import random
from collections.abc import Iterator, Sequence

import pytest

from ingest.config.model import Config
from ingest.config.rules import SectionNames, check_rules
from ingest.ledger.retention import StoredInstance, StoredStudy
from ingest.supervisor.generation import ALL_ROLES, plan_worker_slots
from ingest.workers.retention.policy import (
    DAY_MS,
    RetentionDecision,
    RetentionGoal,
    RetentionReason,
    compute_cutoff_ms,
    compute_disk_excess,
    order_by_age,
    plan_removals,
)
from ingest.workers.store.removal import LINK_SLACK_MS, UNRECORDED_MS, may_be_unrecorded

AGE, BYTES, DISK = RetentionReason.AGE, RetentionReason.BYTES, RetentionReason.DISK


def study(name: str, newest_at: int, size: int = 10, owed: int = 0) -> StoredStudy:
    return StoredStudy(study_uid=name, newest_at=newest_at, instances=1, size=size, owed=owed)


OLDEST, HELD, YOUNG = study("a", 100), study("b", 200, owed=1), study("c", 300)
ALL = (OLDEST, HELD, YOUNG)


@pytest.mark.parametrize(
    ("goal", "expected"),
    [
        (RetentionGoal(), []),
        (RetentionGoal(before_ms=100), []),
        (RetentionGoal(before_ms=101), [(OLDEST, AGE, True)]),
        (RetentionGoal(before_ms=201), [(OLDEST, AGE, True), (HELD, AGE, False)]),
        (RetentionGoal(before_ms=201, only_delivered=False), [(OLDEST, AGE, True), (HELD, AGE, True)]),
        (RetentionGoal(excess_bytes=1), [(OLDEST, BYTES, True)]),
        (RetentionGoal(excess_bytes=10), [(OLDEST, BYTES, True)]),
        # What is held back frees nothing: the next one goes in its place.
        (RetentionGoal(excess_bytes=11), [(OLDEST, BYTES, True), (HELD, BYTES, False), (YOUNG, BYTES, True)]),
        (RetentionGoal(excess_bytes=11, only_delivered=False), [(OLDEST, BYTES, True), (HELD, BYTES, True)]),
        (RetentionGoal(disk_excess_bytes=1), [(OLDEST, DISK, True)]),
        (
            RetentionGoal(excess_bytes=5, disk_excess_bytes=15),
            [(OLDEST, BYTES, True), (HELD, DISK, False), (YOUNG, DISK, True)],
        ),
        (RetentionGoal(before_ms=101, excess_bytes=1), [(OLDEST, AGE, True)]),
        (
            RetentionGoal(before_ms=101, excess_bytes=11),
            [(OLDEST, AGE, True), (HELD, BYTES, False), (YOUNG, BYTES, True)],
        ),
        (
            RetentionGoal(excess_bytes=10**9),
            [(OLDEST, BYTES, True), (HELD, BYTES, False), (YOUNG, BYTES, True)],
        ),
    ],
)
def test_oldest_studies_go_until_every_limit_is_kept(
    goal: RetentionGoal, expected: list[tuple[StoredStudy, RetentionReason, bool]]
) -> None:
    assert list(plan_removals(ALL, goal)) == [RetentionDecision(*one) for one in expected]


def pieces(rows: Sequence[StoredInstance], size: int, read: list[int]) -> Iterator[Sequence[StoredInstance]]:
    for start in range(0, len(rows), size):
        read.append(start)
        yield rows[start : start + size]


def totals(rows: Sequence[StoredInstance], uids: Sequence[str]) -> list[StoredStudy]:
    return [study(uid, max(row.stored_at for row in rows if row.study_uid == uid)) for uid in uids]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_studies_come_in_the_order_of_their_last_instances(size: int) -> None:
    random.seed(size)
    # Many at the same time, studies that lie within each other, studies that grow for ever.
    rows = [
        StoredInstance(stored_at=number // 3, id=number, study_uid=f"1.{random.randrange(40)}")
        for number in range(300)
    ]
    found = list(order_by_age(pieces(rows, size, []), lambda uids: totals(rows, uids)))
    assert [one.newest_at for one in found] == sorted(one.newest_at for one in found)
    assert {one.study_uid for one in found} == {row.study_uid for row in rows}
    assert len(found) == len({one.study_uid for one in found})


def test_no_more_rows_are_read_than_studies_are_asked_for() -> None:
    rows = [
        StoredInstance(stored_at=number, id=number, study_uid=f"1.{number // 5}") for number in range(1000)
    ]
    read: list[int] = []
    studies = order_by_age(pieces(rows, 10, read), lambda uids: totals(rows, uids))
    assert [one.study_uid for one, _ in zip(studies, range(3), strict=False)] == ["1.0", "1.1", "1.2"]
    assert read[-1] <= 20


@pytest.mark.parametrize(
    ("days", "now", "expected"),
    [(0.0, DAY_MS, 0), (1.0, 3 * DAY_MS, 2 * DAY_MS), (0.5, DAY_MS, DAY_MS // 2), (9.0, DAY_MS, 0)],
)
def test_days_become_a_time(days: float, now: int, expected: int) -> None:
    assert compute_cutoff_ms(days, now) == expected


def disk(blocks: int, free: int, available: int) -> os.statvfs_result:
    return os.statvfs_result((4096, 512, blocks, free, available, 0, 0, 0, 0, 255))


@pytest.mark.parametrize(
    ("facts", "high", "low", "blocks"),
    [
        ((1000, 100, 100), 0.0, 0.0, 0),
        ((1000, 100, 100), 0.9, 0.8, 0),
        ((1000, 99, 99), 0.9, 0.8, 101),
        # 100 blocks are root's: of 900 that can be in use 850 are.
        ((1000, 150, 50), 0.9, 0.8, 130),
        ((1000, 150, 50), 0.95, 0.8, 0),
        ((0, 0, 0), 0.9, 0.8, 0),
    ],
)
def test_watermarks_are_shares_of_what_can_be_in_use(
    facts: tuple[int, int, int], high: float, low: float, blocks: int
) -> None:
    assert compute_disk_excess(disk(*facts), high, low) == blocks * 512


@pytest.mark.parametrize(
    ("changed", "now", "another"),
    [
        (1000, 1000, False),
        (1000 + LINK_SLACK_MS, 1000 + LINK_SLACK_MS, False),
        (1001 + LINK_SLACK_MS, 1001 + LINK_SLACK_MS, True),
        (1001 + LINK_SLACK_MS, 1000 + LINK_SLACK_MS + UNRECORDED_MS, True),
        (1001 + LINK_SLACK_MS, 1001 + LINK_SLACK_MS + UNRECORDED_MS, False),
    ],
)
def test_file_that_is_younger_than_its_row_is_left_for_a_while(changed: int, now: int, another: bool) -> None:
    assert may_be_unrecorded(changed, 1000, now) is another


@pytest.mark.parametrize(
    ("section", "roles", "expected"),
    [
        ({}, ALL_ROLES, []),
        ({"keep_days": 1, "max_bytes": 1, "high_watermark": 0.9, "low_watermark": 0.9}, ALL_ROLES, []),
        ({"high_watermark": 0.8, "low_watermark": 0.9}, ALL_ROLES, ["low_watermark: 0.9 is above"]),
        ({"high_watermark": 0.8}, ALL_ROLES, ["low_watermark: is missing"]),
        ({"low_watermark": 0.8}, ALL_ROLES, ["high_watermark: is missing"]),
        ({"keep_days": 9, "ledger_keep_days": 8}, ALL_ROLES, ["ledger_keep_days: 8 is less than"]),
        ({"max_bytes": 1, "at_max_bytes": "refuse"}, {"retain"}, []),
        ({"at_max_bytes": "refuse", "keep_days": 1}, ALL_ROLES, ['at_max_bytes: is "refuse", but']),
        ({"at_max_bytes": "remove"}, ALL_ROLES, []),
        ({}, {"retain"}, ["retention: nothing is ever removed"]),
        ({"ledger_keep_days": 8}, {"retain"}, []),
    ],
)
def test_contradictions_are_faults(
    section: dict[str, float | str], roles: frozenset[str], expected: list[str]
) -> None:
    config = Config.model_validate({"retention": section})
    names = SectionNames(frozenset(), frozenset())
    found = [fault for fault in check_rules(config, names, roles) if fault.key.startswith("retention")]
    assert len(found) == len(expected)
    for fault, text in zip(found, expected, strict=True):
        assert text in str(fault)
        assert fault.remedy


@pytest.mark.parametrize(
    ("section", "count"),
    [
        ({}, 0),
        ({"keep_days": 1}, 1),
        ({"max_bytes": 1}, 1),
        ({"max_bytes": 1, "at_max_bytes": "refuse"}, 1),
        ({"high_watermark": 0.9, "low_watermark": 0.8}, 1),
        ({"ledger_keep_days": 1}, 1),
        ({"only_delivered": False, "check_seconds": 1}, 0),
    ],
)
def test_node_has_one_remover_where_something_is_to_be_removed(
    section: dict[str, float | str], count: int
) -> None:
    places = plan_worker_slots(Config.model_validate({"retention": section}), ALL_ROLES)
    assert [place.role for place in places].count("retain") == count
