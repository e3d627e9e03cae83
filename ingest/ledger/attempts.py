"""Attempts: a row for each attempt that did not deliver.

A delivery that succeeds at once has no such row. Its own row says when, how long and with which status.
"""

from collections.abc import Collection, Sequence
from typing import Final

from sqlalchemy import BindParameter, Connection, bindparam, delete, func, insert, select

from ingest.ledger.database import Database
from ingest.ledger.instances import CHUNK
from ingest.ledger.records import Attempt, DeliveryResult, DeliveryState
from ingest.ledger.row_values import clean_value
from ingest.ledger.schema import attempts, deliveries

FIRST_KEPT: Final = 5
LAST_KEPT: Final = 20
"""A delivery keeps so many of its first and of its last attempts. Rows in between are removed."""

_IDS: Final[BindParameter[int]] = bindparam("ids", expanding=True)
_HOLDERS: Final = (
    select(deliveries.c.id, deliveries.c.lease_owner)
    .where(deliveries.c.id.in_(_IDS), deliveries.c.state == DeliveryState.SENDING.value)
    # PostgreSQL: no other worker may lease the row until its attempt is recorded.
    .with_for_update()
)
_LAST_NUMBERS: Final = (
    select(attempts.c.delivery_id, func.max(attempts.c.number).label("last"))
    .where(attempts.c.delivery_id.in_(_IDS))
    .group_by(attempts.c.delivery_id)
)
_INSERT: Final = insert(attempts)
_REMOVE: Final = delete(attempts).where(
    attempts.c.delivery_id == bindparam("of"), attempts.c.number == bindparam("at")
)
_OF_DELIVERIES: Final = (
    select(attempts)
    .where(attempts.c.delivery_id.in_(_IDS))
    .order_by(attempts.c.delivery_id, attempts.c.number)
)


def record_attempts(connection: Connection, results: Sequence[DeliveryResult], unix_ms: int) -> None:
    """Record the failed attempts among these results, before the results change the deliveries.

    A result whose lease belongs to another worker by now is left out. A result that is recorded again after
    an unknown COMMIT therefore adds no second row.
    """
    failed = {result.id: result for result in results if result.state is not DeliveryState.DELIVERED}
    if not failed:
        return
    holders = {row.id: row.lease_owner for row in connection.execute(_HOLDERS, {"ids": list(failed)})}
    held = [result for result in failed.values() if holders.get(result.id, "") == result.owner]
    if not held:
        return
    ids = [result.id for result in held]
    last = {row.delivery_id: row.last for row in connection.execute(_LAST_NUMBERS, {"ids": ids})}
    rows = [
        {
            "delivery_id": result.id,
            "number": last.get(result.id, 0) + 1,
            "ended_at": unix_ms,
            "duration_ms": result.duration_ms,
            "state": result.state.value,
            "status": result.last_status,
            "error": clean_value(result.last_error),
            "next_at": result.next_at,
        }
        for result in held
    ]
    connection.execute(_INSERT, rows)
    surplus = [
        {"of": row["delivery_id"], "at": row["number"] - LAST_KEPT}
        for row in rows
        if row["number"] - LAST_KEPT > FIRST_KEPT
    ]
    if surplus:
        connection.execute(_REMOVE, surplus)


class Attempts:
    """Reads failed attempts.

    Every method is one transaction. It raises LedgerError while the database is unavailable.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def find_by_deliveries(self, ids: Collection[int]) -> dict[int, list[Attempt]]:
        """Return the attempts of deliveries by their ids, the first one first."""
        found: dict[int, list[Attempt]] = {}
        with self._database.begin_read() as connection:
            for start in range(0, len(ids), CHUNK):
                chunk = list(ids)[start : start + CHUNK]
                for row in connection.execute(_OF_DELIVERIES, {"ids": chunk}).mappings():
                    attempt = Attempt(**{**row, "state": DeliveryState(row["state"])})
                    found.setdefault(attempt.delivery_id, []).append(attempt)
        return found
