"""The order in which due deliveries of a destination are leased, by priority. Without I/O.

A row that waits has no time of its own. Its `next_at` holds its priority instead: -1 if it is urgent, 0 if it
is normal, 1 if it is bulk. All of them are in the past, so the row is due, and the one index of due rows has
urgent rows before normal ones, and these before bulk ones. A ledger without priorities pays nothing for it.

**Aging.** Urgent rows that arrive without pause must not keep the others for ever. One in `AGED_SHARE` places
of a batch, beginning with the second place, is for the row of a lower priority that has waited longest, if it
has waited for `AGED_MS`. A worker breaks a batch off for new urgent rows only after the second place.
Therefore each batch sends at least one aged row, and every row is sent at some time.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

from ingest.config.hours import find_delivery_opening_ms
from ingest.dicom.priority import Priority

AGED_SHARE: Final = 8
"""One in this number of places of a batch is for aged rows."""

RETRIES_SHARE: Final = 8
"""One in this number of deliveries of a batch is a retry, even if many deliveries were never tried."""

AGED_PLACE: Final = 1
"""The first place of an aged row, counted from 0."""

AGED_MS: Final = 60_000
"""A row of a lower priority that has waited this long is an aged row."""

LAST_FIRST_DUE: Final = max(Priority) - 1
"""The largest `next_at` that is a priority and no time."""

WAITING_RANGES: Final = (
    *((priority - 1, priority - 1) for priority in Priority),
    (LAST_FIRST_DUE + 1, 1 << 62),
)
"""Ranges of `next_at` of rows that wait: each priority, and the rows that wait for a time."""

R = TypeVar("R", bound=Mapping[str, Any])


def find_first_due(priority: Priority, opening_ms: int = 0) -> int:
    """Return `next_at` of a row that waits. `ingest.ledger.schema.FIRST_DUE` is the same in SQL.

    Args:
        priority: Its priority.
        opening_ms: When its hours begin; 0 if it need not wait for them. Rows that wait for the same time are
            also ordered by their priority.
    """
    return opening_ms + priority - 1


def find_wait_ms(hours: str, unix_ms: int) -> int:
    """Return when the hours of a delivery begin; 0 if it may be sent now."""
    opening_ms = find_delivery_opening_ms(hours, unix_ms)
    return opening_ms if opening_ms > unix_ms else 0


def find_time_ms(next_at: int) -> int:
    """Return the time in `next_at`; 0 if it holds a priority, so that the row is due at once."""
    return next_at if next_at > LAST_FIRST_DUE else 0


def arrange_due(fresh: Sequence[R], again: Sequence[R], limit: int, workers: int, unix_ms: int) -> list[R]:
    """Choose the rows of a batch among due ones.

    Args:
        fresh: Rows that were never tried.
        again: Retries.
        limit: Maximum number of rows.
        workers: How many workers lease from the destination. Some series are left for the others.
        unix_ms: Current time.
    """
    fresh, again = (
        sorted(rows, key=lambda row: (int(row["priority"]), int(row["instance_id"])))
        for rows in (fresh, again)
    )
    if workers > 1:
        series = list(dict.fromkeys(row["series_uid"] for row in fresh + again))
        share = set(series[: -(-len(series) // workers)])
        fresh, again = ([row for row in rows if row["series_uid"] in share] for rows in (fresh, again))
    priorities = {row["priority"] for row in fresh + again}
    if len(priorities) < 2:
        return _mix_retries(fresh, again, limit)
    rows: list[R] = []
    for priority in sorted(priorities):
        own = [[row for row in part if row["priority"] == priority] for part in (fresh, again)]
        rows += _mix_retries(own[0], own[1], limit)
    return arrange_batch(rows, limit, unix_ms)


def _mix_retries(fresh: Sequence[R], again: Sequence[R], limit: int) -> list[R]:
    """Return rows that were never tried, then retries.

    Retries get a share, so that a backlog cannot keep them back for ever.
    """
    room = limit - min(len(again), limit // RETRIES_SHARE)
    batch = fresh[:room]
    return [*batch, *again[: limit - len(batch)]]


def arrange_batch(rows: Sequence[R], limit: int, unix_ms: int) -> list[R]:
    """Choose the rows of a batch, in the order in which they are sent.

    Args:
        rows: Candidates with `priority` and `created_at`. Rows of one priority are in their order.
        limit: Maximum number of rows.
        unix_ms: Current time.
    """
    if len({row["priority"] for row in rows}) < 2:
        return list(rows[:limit])
    # The sorts are stable, so rows of one priority, and aged rows of one age, keep their order.
    left = sorted(rows, key=lambda row: int(row["priority"]))
    aged = [
        row
        for row in sorted(left, key=lambda row: int(row["created_at"]))
        if row["priority"] > left[0]["priority"] and row["created_at"] <= unix_ms - AGED_MS
    ]
    batch: list[R] = []
    taken: set[int] = set()
    in_order, by_age = iter(left), iter(aged)
    while len(batch) < min(limit, len(left)):
        is_for_aged = len(batch) % AGED_SHARE == AGED_PLACE
        row = _take_next(by_age, taken) if is_for_aged else None
        row = row or _take_next(in_order, taken)
        if row is None:
            break
        batch.append(row)
    return batch


def _take_next(rows: Iterator[R], taken: set[int]) -> R | None:
    for row in rows:
        if id(row) not in taken:
            taken.add(id(row))
            return row
    return None
