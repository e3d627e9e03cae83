"""The retention policy: which studies leave the store, oldest first, until every limit is kept. Without I/O.

The age of a study is that of its last instance, because a study that still grows is not old.

INVARIANT 10: decisions are pure.
"""

import heapq
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from ingest.ledger.retention import StoredInstance, StoredStudy

DAY_MS: Final = 86_400_000


class RetentionReason(StrEnum):
    """The `[retention]` key that causes the removal of a study."""

    AGE = "keep_days"
    BYTES = "max_bytes"
    DISK = "high_watermark"


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionGoal:
    """The goal of a retention run.

    Attributes:
        before_ms: A study whose last instance was stored before this Unix time in milliseconds goes.
        aged_max_bytes: Limit on the bytes that go for their age, but at least one study goes; None is no
            limit.
        excess_bytes: Bytes of the store beyond `max_bytes`.
        disk_excess_bytes: Bytes to free on the file system of the store.
        only_delivered: Whether a study stays that is owed to a destination.
        only_committed: Whether a study stays while a destination has not answered whether it commits.
    """

    before_ms: int = 0
    aged_max_bytes: int | None = None
    excess_bytes: int = 0
    disk_excess_bytes: int = 0
    only_delivered: bool = True
    only_committed: bool = False


@dataclass(frozen=True, slots=True)
class RetentionDecision:
    """The decision about a study that is old enough to be removed.

    Attributes:
        is_removable: False if the study is held back, because some of it is owed to a destination.
    """

    study: StoredStudy
    reason: RetentionReason
    is_removable: bool


def compute_cutoff_ms(keep_days: float, unix_ms: int) -> int:
    """Compute `RetentionGoal.before_ms` for a number of days; 0 for none."""
    return max(0, int(unix_ms - keep_days * DAY_MS)) if keep_days else 0


def compute_disk_excess(disk: os.statvfs_result, high: float, low: float) -> int:
    """Compute the bytes to free until no more than `low` of a file system is used.

    The result is 0 while the use is not above `high`.

    Args:
        disk: The file system. Use and size are counted as df(1) does, without the reserve of root.
        high: A share of the usable blocks; 0 disables this limit.
        low: A share of the usable blocks.
    """
    used = disk.f_blocks - disk.f_bfree
    usable = used + disk.f_bavail
    if not high or used <= high * usable:
        return 0
    return int((used - low * usable) * disk.f_frsize)


def order_by_age(
    rows: Iterable[Sequence[StoredInstance]], summarize: Callable[[Sequence[str]], Iterable[StoredStudy]]
) -> Iterator[StoredStudy]:
    """Yield studies in the order of their last instances. Reads no more rows than the caller needs.

    Args:
        rows: Instances of the store, oldest first, in chunks.
        summarize: Returns the studies with the given Study Instance UIDs.
    """
    seen: set[str] = set()
    waiting: list[tuple[int, str, StoredStudy]] = []
    for chunk in rows:
        new = {row.study_uid for row in chunk} - seen
        seen |= new
        for study in summarize(sorted(new)) if new else ():
            heapq.heappush(waiting, (study.newest_at, study.study_uid, study))
        # A study that begins after this chunk also ends after it.
        while waiting and waiting[0][0] < chunk[-1].stored_at:
            yield heapq.heappop(waiting)[2]
    while waiting:
        yield heapq.heappop(waiting)[2]


def plan_removals(studies: Iterable[StoredStudy], goal: RetentionGoal) -> Iterator[RetentionDecision]:
    """Decide about studies, until every limit is kept.

    Args:
        studies: In the order of their last instances. No more are read than needed.
        goal: The goal of the run.
    """
    freed = aged = 0
    for study in studies:
        is_below_limit = goal.aged_max_bytes is None or not aged or aged < goal.aged_max_bytes
        if study.newest_at < goal.before_ms and is_below_limit:
            reason = RetentionReason.AGE
        elif freed < goal.excess_bytes:
            reason = RetentionReason.BYTES
        elif freed < goal.disk_excess_bytes:
            reason = RetentionReason.DISK
        else:
            return
        is_owed = goal.only_delivered and study.owed > 0
        is_removable = not is_owed and not (goal.only_committed and study.uncommitted)
        if is_removable:
            freed += study.size
            aged += study.size if reason is RetentionReason.AGE else 0
        yield RetentionDecision(study, reason, is_removable)
