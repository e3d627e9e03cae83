"""Decisions of a person about deliveries: find them, send them again, drop them."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, and_, func, select, update

from ingest.dicom.priority import Priority
from ingest.ledger.database import Database
from ingest.ledger.index import list_destinations
from ingest.ledger.lease_order import find_time_ms
from ingest.ledger.records import UNRELEASED, DeliveryState
from ingest.ledger.row_counts import count_deliveries
from ingest.ledger.schema import FIRST_DUE, deliveries, instances, studies
from ingest.ledger.study_filter import StudyFilter

CHUNK: Final = 1000
"""Rows changed in one transaction. On SQLite a running node waits for each of these transactions."""

FEW: Final = 1000
"""Studies whose deliveries are looked up by study."""

MANY: Final = 20_000
"""Deliveries of a destination in a state that are looked up one by one."""

SORTED_MAX: Final = 1_000_000
"""Deliveries of some states that are sorted by their ids. If there are more, a walk soon finds the newest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryFilter(StudyFilter):
    """Conditions for deliveries; a condition that is None does not apply.

    Attributes:
        calling_ae: AE title that sent the instance.
        error: A part of the last error.
        reason: Status and whole text of the last error, as `group_dead` returns them.
        since, until: Time of the last change, in Unix milliseconds; `until` is excluded.
    """

    destination: str | None = None
    study_uid: str | None = None
    series_uid: str | None = None
    sop_instance_uid: str | None = None
    states: Collection[DeliveryState] = ()
    calling_ae: str | None = None
    error: str | None = None
    reason: tuple[int | None, str] | None = None
    since: int | None = None
    until: int | None = None

    @property
    def names_object(self) -> bool:
        """Whether an index of `instances` has the few that match."""
        return self.study_uid is not None or self.sop_instance_uid is not None

    def build_clause(self) -> ColumnElement[bool]:
        """Return the conditions as SQL over `deliveries` joined with `instances`."""
        clauses: list[ColumnElement[bool]] = [deliveries.c.id > 0]
        for column, value in (
            (deliveries.c.destination, self.destination),
            (instances.c.study_uid, self.study_uid),
            (instances.c.series_uid, self.series_uid),
            (instances.c.sop_instance_uid, self.sop_instance_uid),
            (instances.c.calling_ae, self.calling_ae),
        ):
            if value is not None:
                clauses.append(column == value)
        clauses += self.build_membership_clauses()
        if self.states:
            clauses.append(deliveries.c.state.in_([state.value for state in self.states]))
        if self.error is not None:
            clauses.append(deliveries.c.last_error.contains(self.error, autoescape=True))
        if self.reason is not None:
            status, error = self.reason
            # Without a response the status is NULL: SQLAlchemy compares None with IS NULL.
            clauses.append(deliveries.c.last_status == status)
            clauses.append(func.coalesce(deliveries.c.last_error, "") == error)
        if self.since is not None:
            clauses.append(deliveries.c.updated_at >= self.since)
        if self.until is not None:
            clauses.append(deliveries.c.updated_at < self.until)
        return and_(*clauses)


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
        """Return deliveries that match, the newest first.

        Args:
            which: The conditions.
            limit: Maximum number of deliveries.
            before: Only ids below this one; the last id of the previous page.
        """
        own = ("id", "destination", "state", "attempts", "next_at", "last_status", "last_error", "priority")
        query = (
            select(
                *(deliveries.c[name] for name in (*own, "created_at", "updated_at")),
                *(instances.c[name] for name in ("sop_instance_uid", "series_uid", "study_uid")),
            )
            .join(instances, instances.c.id == deliveries.c.instance_id)
            .order_by(deliveries.c.id.desc())
        )
        with self._database.begin_read() as connection:
            rows: list[RowMapping] = []
            for narrowed in _narrow(connection, which, query, before, limit):
                rows += connection.execute(narrowed.limit(limit - len(rows))).mappings()
                if len(rows) == limit:
                    break
        return [
            FoundDelivery(
                **{**row, "state": DeliveryState(row["state"]), "next_at": find_time_ms(row["next_at"])}
            )
            for row in rows
        ]

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
        """Make deliveries wait as if they were new. Deliveries that wait or are being sent do not change.

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
            # The time until the delivery expires starts again, too.
            "created_at": unix_ms,
            "updated_at": unix_ms,
        }
        # Deliveries that wait or are being sent need no change. Removed instances cannot be sent.
        busy = (DeliveryState.WAITING.value, DeliveryState.SENDING.value)
        allowed = deliveries.c.state.not_in(busy) & instances.c.state.in_(("stored", "variant"))
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
            .where(which.build_clause(), allowed)
            .group_by(deliveries.c.destination)
        )
        with self._database.begin_read() as connection:
            few = _build_study_clause(connection, which)
            rows = connection.execute(query if few is None else query.where(few)).all()
        return {row.destination: row.many for row in rows}

    def _change(
        self, which: DeliveryFilter, allowed: ColumnElement[bool], values: dict[str, Any]
    ) -> dict[str, int]:
        changed: dict[str, int] = {}
        last = 0
        query = (
            select(deliveries.c.id, deliveries.c.destination)
            .join(instances, instances.c.id == deliveries.c.instance_id)
            .where(which.build_clause(), allowed)
            .order_by(deliveries.c.id)
            .limit(CHUNK)
            # PostgreSQL: skip rows that a worker is leasing at this moment.
            .with_for_update(skip_locked=True, of=deliveries)
        )
        with self._database.begin_read() as connection:
            few = _build_study_clause(connection, which)
        if few is not None:
            # The sum keeps both databases from a walk through all deliveries.
            query = query.where(few).order_by(None).order_by(deliveries.c.id + 0)
        while True:
            with self._database.begin_write() as connection:
                rows = connection.execute(query.where(deliveries.c.id > last)).all()
                if not rows:
                    return changed
                connection.execute(
                    update(deliveries).where(deliveries.c.id.in_([row.id for row in rows])).values(values)
                )
            last = rows[-1].id
            for row in rows:
                changed[row.destination] = changed.get(row.destination, 0) + 1


def _narrow(
    connection: Connection, which: DeliveryFilter, query: Select[Any], before: int | None, limit: int
) -> Iterator[Select[Any]]:
    """Yield queries whose rows together are those that match, in the order of a query, by ranges of indexes.

    A walk from the newest delivery would read the whole table for a few rows.
    """
    clause = which.build_clause()
    if before is not None:
        query = query.where(deliveries.c.id < before)
    few = _build_study_clause(connection, which)
    if few is not None:
        # The sum keeps both databases from the walk.
        yield query.where(clause, few).order_by(None).order_by((deliveries.c.id + 0).desc())
        return
    if (which.destination is not None or which.states) and not which.names_object:
        ids = _find_pair_ids(connection, which)
        if ids is None and _asks_for_deliveries_only(which):
            # The ids alone, without a look at instances.
            newest = _select_newest_ids(connection, which, before).limit(limit)
            ids = list(connection.execute(newest).scalars())
        if ids is not None:
            older = sorted((each for each in ids if before is None or each < before), reverse=True)
            for start in range(0, len(older), CHUNK):
                # Destination and state hold for all of them. If they were named here too, SQLite would search
                # the index of due deliveries, and not these ids.
                rest = replace(which, destination=None, states=()).build_clause()
                yield query.where(deliveries.c.id.in_(older[start : start + CHUNK]), rest)
            return
    yield query.where(clause)


def _asks_for_deliveries_only(which: DeliveryFilter) -> bool:
    others = replace(which, destination=None, states=(), error=None, reason=None, since=None, until=None)
    return others == DeliveryFilter()


def _select_newest_ids(connection: Connection, which: DeliveryFilter, before: int | None) -> Select[Any]:
    """Select the ids of deliveries to a destination or in some states, the newest first."""
    columns = deliveries.c
    counts = count_deliveries(connection)
    names = [which.destination] if which.destination is not None else list(counts)
    states = tuple(which.states) or tuple(DeliveryState)
    number = sum(counts.get(name, {}).get(state, 0) for name in names for state in states)
    rest = replace(which, destination=None, states=()).build_clause()
    query = select(columns.id).where(rest).order_by(columns.id.desc())
    if before is not None:
        query = query.where(columns.id < before)
    values = [state.value for state in states]
    total = sum(sum(of_destination.values()) for of_destination in counts.values())
    if number <= min(SORTED_MAX, total // 2):
        # The index of due deliveries has all that match.
        return query.where(columns.destination.in_(names), columns.state.in_(values))
    if connection.dialect.name != "sqlite":
        return query.where(columns.destination.in_(names), columns.state.in_(values))
    # A walk from the newest delivery soon finds some. The concatenations keep SQLite from searching that
    # index, and the column that the index does not have keeps it from reading all of the index.
    return query.where(
        columns.destination.concat("").in_(names),
        columns.state.concat("").in_(values),
        columns.created_at >= 0,
    )


def _build_study_clause(connection: Connection, which: DeliveryFilter) -> ColumnElement[bool] | None:
    """Return the condition that names the studies of a patient or an order; None if they are many."""
    if not which.names_patient_or_order:
        return None
    query = select(studies.c.study_uid).where(*which.build_attribute_clauses()).limit(FEW + 1)
    uids = connection.execute(query).scalars().all()
    return instances.c.study_uid.in_(uids) if len(uids) <= FEW else None


def _find_pair_ids(connection: Connection, which: DeliveryFilter) -> list[int] | None:
    """Return the ids of the deliveries to a destination in the states; None if they are many."""
    found: list[int] = []
    names = [which.destination] if which.destination is not None else list_destinations(connection)
    for name in names:
        for state in which.states or tuple(DeliveryState):
            columns = deliveries.c
            query = select(columns.id).where(columns.destination == name, columns.state == state.value)
            found += connection.execute(query.limit(MANY + 1 - len(found))).scalars()
            if len(found) > MANY:
                return None
    return found
