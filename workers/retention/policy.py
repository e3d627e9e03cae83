"""What goes from the store, without I/O: studies, the oldest first, until every limit is kept.

The age of a study is that of its last instance: one that still grows is not old.
"""

import heapq
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from ingest.ledger.retention import StoredInstance, StoredStudy

DAY_MS: Final = 86_400_000


class Reason(StrEnum):
    """Which key of `[retention]` wants a study gone."""

    AGE = "keep_days"
    BYTES = "max_bytes"
    DISK = "high_watermark"


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What is to be reached.

    Attributes:
        before: Studies whose last instance was stored before this time go, in Unix milliseconds.
        aged_most: At most so many bytes go for their age, and one study at least; None is no bound.
        over: Bytes that the store holds beyond `max_bytes`.
        disk_over: Bytes to free on its file system.
        only_delivered: Whether a study that is owed to a destination stays.
    """

    before: int = 0
    aged_most: int | None = None
    over: int = 0
    disk_over: int = 0
    only_delivered: bool = True


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a study that is old enough to go.

    Attributes:
        goes: False where it is held back, because a destination is still owed some of it.
    """

    study: StoredStudy
    reason: Reason
    goes: bool


def cutoff(keep_days: float, now_ms: int) -> int:
    """`Goal.before` for a number of days; 0 for none."""
    return max(0, int(now_ms - keep_days * DAY_MS)) if keep_days else 0


def disk_over(disk: os.statvfs_result, high: float, low: float) -> int:
    """Bytes to free so that no more than `low` of a file system is in use; 0 while that is not above `high`.

    Args:
        disk: What is in use, and what can be, is counted as df(1) does: root's reserve is neither.
        high: A share of what can be in use; 0 is never.
        low: Likewise.
    """
    used = disk.f_blocks - disk.f_bfree
    usable = used + disk.f_bavail
    if not high or used <= high * usable:
        return 0
    return int((used - low * usable) * disk.f_frsize)


def oldest_first(
    rows: Iterable[Sequence[StoredInstance]], studies: Callable[[Sequence[str]], Iterable[StoredStudy]]
) -> Iterator[StoredStudy]:
    """Studies in the order of their last instances; reads no further than is asked for.

    Args:
        rows: What the store holds, oldest first, in pieces.
        studies: What it holds of some studies.
    """
    seen: set[str] = set()
    waiting: list[tuple[int, str, StoredStudy]] = []
    for piece in rows:
        fresh = {row.study_uid for row in piece} - seen
        seen |= fresh
        for study in studies(sorted(fresh)) if fresh else ():
            heapq.heappush(waiting, (study.newest_at, study.study_uid, study))
        # What begins after this piece ends after it, too.
        while waiting and waiting[0][0] < piece[-1].stored_at:
            yield heapq.heappop(waiting)[2]
    while waiting:
        yield heapq.heappop(waiting)[2]


def decide(studies: Iterable[StoredStudy], goal: Goal) -> Iterator[Decision]:
    """What becomes of studies, until every limit is kept.

    Args:
        studies: In the order of their last instances; asked for no longer than is needed.
        goal: What is to be reached.
    """
    freed = aged = 0
    for study in studies:
        if study.newest_at < goal.before and (goal.aged_most is None or not aged or aged < goal.aged_most):
            reason = Reason.AGE
        elif freed < goal.over:
            reason = Reason.BYTES
        elif freed < goal.disk_over:
            reason = Reason.DISK
        else:
            return
        goes = not (goal.only_delivered and study.owed)
        if goes:
            freed += study.size
            aged += study.size if reason is Reason.AGE else 0
        yield Decision(study, reason, goes)
