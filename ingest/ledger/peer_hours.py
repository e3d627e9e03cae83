"""The hours in which callers sent instances, from which silence is judged.

The instances of a ledger have no index by caller and time, and a search in ten million rows is not cheap.
New rows are therefore read once, in the order of their ids, and add to a small table: one row for each caller
and hour. Reading a row again changes nothing.
"""

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Connection, bindparam, delete, func, select

from ingest.ledger.database import INSERT_BY_DIALECT, Database
from ingest.ledger.schema import instances, peer_hours

HOUR_MS: Final = 3_600_000

HourKey = tuple[str, int]
"""A caller, and an hour in whole hours since 1970."""

_CURSOR: Final[HourKey] = ("", -1)
"""The row whose `last_at` is the last id that was read. No caller has an empty AE title."""

_ROWS: Final = (
    select(instances.c.id, instances.c.calling_ae, instances.c.received_at)
    .where(instances.c.id > bindparam("after"))
    .order_by(instances.c.id)
    .limit(bindparam("most"))
)
_IDS: Final = select(func.min(instances.c.id), func.max(instances.c.id))
_NEWEST: Final = select(func.max(instances.c.id))


class PeerHours:
    """Reads new instances and keeps the hours of their callers.

    Every method is one transaction. It raises LedgerError while the database is unavailable.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def read_hours(self) -> tuple[int | None, dict[HourKey, int]]:
        """Return the last id that was read, if any, and for each caller and hour the last arrival in it."""
        with self._database.begin_read() as connection:
            rows = connection.execute(select(peer_hours)).mappings()
            found = {(str(row["ae_title"]), int(row["hour"])): int(row["last_at"]) for row in rows}
        return found.pop(_CURSOR, None), found

    def find_newest_id(self) -> int:
        """Return the id of the newest instance; 0 without one."""
        with self._database.begin_read() as connection:
            return int(connection.execute(_NEWEST).scalar() or 0)

    def find_id_before(self, received_ms: int) -> int:
        """Return an id below those of instances that were received after a time.

        Ids and times of arrival grow together, apart from a few rows. Halving finds the row in some twenty
        steps, without an index of times.
        """
        with self._database.begin_read() as connection:
            first, last = connection.execute(_IDS).one()
            if first is None:
                return 0
            low, high = int(first) - 1, int(last)
            while low < high:
                middle = (low + high) // 2
                row = _read_first(connection, middle)
                if row is not None and row[2] < received_ms:
                    low = max(int(row[0]), middle + 1)
                else:
                    high = middle
        return low

    def read_arrivals(self, after: int, most: int) -> list[tuple[int, str, int]]:
        """Return id, calling AE title and time of arrival of the next instances after an id."""
        with self._database.begin_read() as connection:
            rows = connection.execute(_ROWS, {"after": after, "most": most})
            return [(int(row[0]), str(row[1]), int(row[2])) for row in rows]

    def record(self, hours: Mapping[HourKey, int], last_id: int) -> None:
        """Keep the last arrivals of some hours, and the last id that was read."""
        rows = {**hours, _CURSOR: last_id}
        values = [{"ae_title": key[0], "hour": key[1], "last_at": at} for key, at in sorted(rows.items())]
        insert: Any = INSERT_BY_DIALECT[self._database.dialect](peer_hours)
        insert = insert.on_conflict_do_update(
            index_elements=["ae_title", "hour"], set_={"last_at": insert.excluded.last_at}
        )
        with self._database.begin_write() as connection:
            connection.execute(insert, values)

    def remove_before(self, hour: int) -> None:
        """Forget hours that are too old to learn from."""
        old = (peer_hours.c.hour < hour) & (peer_hours.c.ae_title != _CURSOR[0])
        with self._database.begin_write() as connection:
            connection.execute(delete(peer_hours).where(old))


def _read_first(connection: Connection, after: int) -> Any:
    return connection.execute(_ROWS, {"after": after, "most": 1}).first()
