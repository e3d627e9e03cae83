"""Decisions of a person about deliveries: find them, send them again, drop them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, func, select, update

from ingest.dicom.priority import Priority
from ingest.ledger.database import Database
from ingest.ledger.delivery_filter import DeliveryFilter
from ingest.ledger.delivery_lists import Position, find_position, read_deliveries
from ingest.ledger.lease_order import find_time_ms
from ingest.ledger.records import UNRELEASED, DeliveryState
from ingest.ledger.schema import FIRST_DUE, deliveries, instances

CHUNK: Final = 1000
"""Rows changed in one transaction. On SQLite a running node waits for each of these transactions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundDelivery:
    """A delivery with the UIDs of its instance; times are Unix milliseconds."""

    id: int
    destination: str
    state: DeliveryState
    attempts: int
    next_at: int
    last_status: int | None
    last_error: str | None
    created_at: int
    updated_at: int
    sop_instance_uid: str
    series_uid: str
    study_uid: str
    priority: int = Priority.NORMAL
    commitment: str = "none"
    hours: str = ""
    member: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadGroup:
    """Dead deliveries of one destination with one reason.

    Attributes:
        status: Status of the last response; None without a response.
        error: Why the last attempt failed, or empty.
        count: Number of deliveries.
        last_at: When the last of them changed, in Unix milliseconds.
    """

    destination: str
    status: int | None
    error: str
    count: int
    last_at: int


class DeliveryAdmin:
    """Finds deliveries and changes their state for a person.

    Every method raises LedgerError while the database is unavailable.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def find_deliveries(
        self, which: DeliveryFilter, limit: int = 100, *, before: int | None = None
    ) -> list[FoundDelivery]:
        """Return deliveries that match, those of the newest instances first.

        Args:
            which: The conditions.
            limit: Maximum number of deliveries.
            before: The last id of the previous page.
        """
        own = (
            "id",
            "instance_id",
            "destination",
            "state",
            "attempts",
            "next_at",
            "last_status",
            "last_error",
            "priority",
            "commitment",
            "hours",
            "member",
        )
        columns = [deliveries.c[name] for name in (*own, "created_at", "updated_at")]
        columns += [instances.c[name] for name in ("sop_instance_uid", "series_uid", "study_uid")]
        with self._database.begin_read() as connection:
            after = None if before is None else find_position(connection, before)
            rows = read_deliveries(connection, which, columns, limit, after=after)
        return [_make_found(row) for row in rows]

    def group_dead(self, destinations: Collection[str], limit: int) -> list[DeadGroup]:
        """Group dead deliveries by their reason, the largest group of a destination first.

        Args:
            destinations: Names of the destinations.
            limit: Deliveries of each destination that are read at most.
        """
        columns = deliveries.c
        found = []
        with self._database.begin_read() as connection:
            for name in sorted(destinations):
                read = (
                    select(columns.last_status, columns.last_error, columns.updated_at)
                    .where(columns.destination == name, columns.state == DeliveryState.DEAD.value)
                    .limit(limit)
                    .subquery()
                )
                error = func.coalesce(read.c.last_error, "")
                query = (
                    select(
                        read.c.last_status.label("status"),
                        error.label("error"),
                        func.count().label("count"),
                        func.max(read.c.updated_at).label("last_at"),
                    )
                    .group_by(read.c.last_status, error)
                    .order_by(func.count().desc(), error)
                )
                found += [DeadGroup(destination=name, **row) for row in connection.execute(query).mappings()]
        return found

    def requeue_deliveries(
        self, which: DeliveryFilter, unix_ms: int, *, dry_run: bool = False
    ) -> dict[str, int]:
        """Make deliveries wait as if they were new. Those that wait, are sent or are held do not change.

        Args:
            which: The conditions.
            unix_ms: Current time.
            dry_run: Only count them.

        Returns:
            The number of deliveries by destination.

        Raises:
            LedgerError: The database is unavailable. Transactions before that stay committed.
        """
        values = {
            "state": DeliveryState.WAITING.value,
            "attempts": 0,
            "next_at": FIRST_DUE,
            "breaks": 0,
            "suspect_since": 0,
            "last_status": None,
            "last_error": None,
            # A request or a promise was about the earlier delivery.
            "commitment": "none",
            "commitment_request_id": None,
            # The time until the delivery expires starts again, too.
            "created_at": unix_ms,
            "updated_at": unix_ms,
        }
        # Deliveries that wait or are being sent need no change. Only `release_deliveries` releases held ones,
        # since a person has to look at them first. Removed instances cannot be sent.
        busy = [state.value for state in (DeliveryState.WAITING, DeliveryState.SENDING, DeliveryState.HELD)]
        # The concatenation keeps SQLite from reading all stored instances by the index of their state.
        is_kept = instances.c.state.concat("").in_(("stored", "variant"))
        allowed = deliveries.c.state.not_in(busy) & is_kept
        return self._count(which, allowed) if dry_run else self._change(which, allowed, values)

    def drop_deliveries(
        self, which: DeliveryFilter, reason: str, unix_ms: int, *, dry_run: bool = False
    ) -> dict[str, int]:
        """Drop unfinished and dead deliveries; return their number as `requeue_deliveries` does."""
        values = {
            "state": DeliveryState.DROPPED.value,
            "next_at": 0,
            "suspect_since": 0,
            "last_error": reason,
            "updated_at": unix_ms,
        }
        droppable = (DeliveryState.WAITING, DeliveryState.RETRY, DeliveryState.DEAD, *UNRELEASED)
        allowed = deliveries.c.state.in_([state.value for state in droppable])
        return self._count(which, allowed) if dry_run else self._change(which, allowed, values)

    def release_deliveries(
        self, which: DeliveryFilter, unix_ms: int, *, dry_run: bool = False
    ) -> dict[str, int]:
        """Make held deliveries wait for a worker; return their number as `requeue_deliveries` does."""
        values = {
            "state": DeliveryState.WAITING.value,
            "next_at": FIRST_DUE,
            # The time until the delivery expires starts now: nobody could send it before.
            "created_at": unix_ms,
            "updated_at": unix_ms,
        }
        allowed = deliveries.c.state == DeliveryState.HELD.value
        return self._count(which, allowed) if dry_run else self._change(which, allowed, values)

    def _count(self, which: DeliveryFilter, allowed: ColumnElement[bool]) -> dict[str, int]:
        query = (
            select(deliveries.c.destination, func.count().label("many"))
            .join(instances, instances.c.id == deliveries.c.instance_id)
            .where(*which.build_clauses(), allowed)
            .group_by(deliveries.c.destination)
        )
        with self._database.begin_read() as connection:
            rows = connection.execute(query).all()
        return {row.destination: row.many for row in rows}

    def _change(
        self, which: DeliveryFilter, allowed: ColumnElement[bool], values: dict[str, Any]
    ) -> dict[str, int]:
        changed: dict[str, int] = {}
        after: Position | None = None
        while True:
            # Search without a write transaction, which would hold up the node for as long.
            with self._database.begin_read() as connection:
                columns = (deliveries.c.instance_id, deliveries.c.id)
                rows = read_deliveries(connection, which, columns, CHUNK, after=after, more=[allowed])
            if rows:
                self._change_rows([row.id for row in rows], which, allowed, values, changed)
            if len(rows) < CHUNK:
                return changed
            after = Position(rows[-1].instance_id, rows[-1].id)

    def _change_rows(
        self,
        ids: Sequence[int],
        which: DeliveryFilter,
        allowed: ColumnElement[bool],
        values: dict[str, Any],
        changed: dict[str, int],
    ) -> None:
        """Change those of some deliveries that still match, in one transaction; count them in `changed`."""
        with self._database.begin_write() as connection:
            query = (
                select(deliveries.c.id, deliveries.c.destination)
                .join(instances, instances.c.id == deliveries.c.instance_id)
                .where(deliveries.c.id.in_(ids), *which.build_clauses(connection), allowed)
                # PostgreSQL: skip rows that a worker is leasing at this moment.
                .with_for_update(skip_locked=True, of=deliveries)
            )
            rows = connection.execute(query).all()
            if not rows:
                return
            connection.execute(
                update(deliveries).where(deliveries.c.id.in_([row.id for row in rows])).values(values)
            )
        for row in rows:
            changed[row.destination] = changed.get(row.destination, 0) + 1


def _make_found(row: Row[Any]) -> FoundDelivery:
    values = {**row._mapping, "state": DeliveryState(row.state), "next_at": find_time_ms(row.next_at)}
    del values["instance_id"]
    return FoundDelivery(**values)
