"""Retention: which stored instances are old enough to be removed, and the state of their removal."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, and_, bindparam, case, delete, exists, func, select, tuple_, update

from ingest.ledger.database import Database
from ingest.ledger.records import UNRELEASED, DeliveryState, InstanceState
from ingest.ledger.schema import KEPT, deliveries, instances
from ingest.ledger.study_index import forget_studies

CHUNK: Final = 500
"""Maximum number of rows, or of values of an IN list, in one statement."""

OWED: Final = (
    DeliveryState.WAITING.value,
    DeliveryState.SENDING.value,
    DeliveryState.RETRY.value,
    DeliveryState.DEAD.value,
    *(state.value for state in UNRELEASED),
)
"""Delivery states that keep a file in the store.

A dead or held delivery waits for a person, who may want it sent.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredInstance:
    """The position of an instance among all stored ones, by age."""

    stored_at: int
    id: int
    study_uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredStudy:
    """The stored instances of a study, variants included.

    Attributes:
        newest_at: When its last instance was stored, in Unix milliseconds.
        size: Bytes of its files.
        owed: Number of its instances with a delivery that is neither delivered nor dropped.
        uncommitted: Number of its instances that an awaited destination was or will be asked to commit,
            without a report yet.
    """

    study_uid: str
    newest_at: int
    instances: int
    size: int
    owed: int
    uncommitted: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovableFile:
    """An instance that is marked as being removed."""

    id: int
    store_key: str
    size: int
    stored_at: int


# The concatenation keeps SQLite from the index of `state`, which would read nearly all rows.
_state: Final = instances.c.state.concat("")
_IS_KEPT: Final = _state.in_((InstanceState.STORED.value, InstanceState.VARIANT.value))
_IS_OWED: Final = exists().where(deliveries.c.instance_id == instances.c.id, deliveries.c.state.in_(OWED))
_IS_UNCOMMITTED: Final = exists().where(
    deliveries.c.instance_id == instances.c.id,
    deliveries.c.commitment.in_(("wanted", "asked")),
    # A destination that is not asked any more will never answer.
    deliveries.c.destination.in_(bindparam("awaited", expanding=True)),
)
_SUM: Final = select(func.coalesce(func.sum(instances.c.size), 0)).where(KEPT)
_OLDEST: Final = (
    select(instances.c.stored_at, instances.c.id, instances.c.study_uid)
    .where(
        KEPT,
        tuple_(instances.c.stored_at, instances.c.id) > tuple_(bindparam("stored_at"), bindparam("id")),
    )
    .order_by(instances.c.stored_at, instances.c.id)
    .limit(CHUNK)
)
_NEWEST: Final = select(instances.c.stored_at).where(KEPT).order_by(instances.c.stored_at.desc()).limit(1)
_STUDIES: Final = (
    select(
        instances.c.study_uid,
        func.max(instances.c.stored_at).label("newest_at"),
        func.count().label("instances"),
        func.sum(instances.c.size).label("size"),
        func.sum(case((_IS_OWED, 1), else_=0)).label("owed"),
        func.sum(case((_IS_UNCOMMITTED, 1), else_=0)).label("uncommitted"),
    )
    .where(instances.c.study_uid.in_(bindparam("uids", expanding=True)), _IS_KEPT)
    .group_by(instances.c.study_uid)
)
_REMOVABLE_COLUMNS: Final = (instances.c.id, instances.c.store_key, instances.c.size, instances.c.stored_at)
_OF_STUDY: Final = and_(
    instances.c.study_uid == bindparam("of"), instances.c.stored_at <= bindparam("until"), _IS_KEPT
)
_CANDIDATES: Final = (
    select(*_REMOVABLE_COLUMNS).where(_OF_STUDY).order_by(instances.c.id).limit(bindparam("at_most"))
)
_THEIR_DELIVERIES: Final = deliveries.c.instance_id.in_(bindparam("ids", expanding=True))
# PostgreSQL: wait for transactions that are about to create or requeue a delivery of these instances. The
# next statement then sees the delivery.
_LOCK_INSTANCES: Final = (
    select(instances.c.id)
    .where(instances.c.id.in_(bindparam("ids", expanding=True)))
    .order_by(instances.c.id)
    .with_for_update()
)
_LOCK_DELIVERIES: Final = (
    select(deliveries.c.id).where(_THEIR_DELIVERIES).order_by(deliveries.c.id).with_for_update()
)
_IDS: Final = instances.c.id.in_(bindparam("ids", expanding=True))
_DROP: Final = (
    update(deliveries)
    .where(_THEIR_DELIVERIES, deliveries.c.state.in_(OWED))
    .values(
        state=DeliveryState.DROPPED.value,
        next_at=0,
        suspect_since=0,
        lease_owner=None,
        lease_until=None,
        last_error="[retention] removed its instance from the store",
        updated_at=bindparam("now"),
    )
)
_MARK: Final = (
    update(instances)
    .where(_IDS, _IS_KEPT, ~_IS_OWED)
    .values(state=InstanceState.REMOVING.value)
    .returning(instances.c.id)
)
_MARK_COMMITTED: Final = _MARK.where(~_IS_UNCOMMITTED)
_REMOVING: Final = (
    select(*_REMOVABLE_COLUMNS)
    .where(instances.c.state == InstanceState.REMOVING.value, instances.c.id > bindparam("after"))
    .order_by(instances.c.id)
    .limit(bindparam("at_most"))
)
_REMOVED: Final = (
    update(instances)
    .where(_IDS, _state == InstanceState.REMOVING.value)
    .values(state=InstanceState.REMOVED.value)
)
_OLDEST_REMOVED: Final = (
    select(instances.c.id, instances.c.stored_at, instances.c.study_uid)
    .where(instances.c.state == InstanceState.REMOVED.value)
    .order_by(instances.c.id)
    .limit(CHUNK)
)
_FORGET_DELIVERIES: Final = delete(deliveries).where(_THEIR_DELIVERIES)
_FORGET: Final = delete(instances).where(_IDS)


class Retention:
    """Lists stored instances by age, and records their removal.

    Every method is one transaction. It raises LedgerError while the database is unavailable.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def find_newest_stored_ms(self) -> int | None:
        """Return when the newest stored instance was stored; None without a stored instance."""
        with self._database.begin_read() as connection:
            found: int | None = connection.execute(_NEWEST).scalar()
            return found

    def sum_stored_bytes(self) -> int:
        """Return the bytes of all files in the store. The query reads one whole index."""
        with self._database.begin_read() as connection:
            return int(connection.execute(_SUM).scalar_one())

    def list_oldest(self, after: StoredInstance | None = None) -> list[StoredInstance]:
        """Return stored instances, oldest first: the first `CHUNK`, or those that follow `after`."""
        position = {"stored_at": after.stored_at, "id": after.id} if after else {"stored_at": -1, "id": -1}
        with self._database.begin_read() as connection:
            return [StoredInstance(**row) for row in connection.execute(_OLDEST, position).mappings()]

    def summarize_studies(self, uids: Collection[str], awaited: Collection[str] = ()) -> list[StoredStudy]:
        """Summarize these studies, `CHUNK` at most; a study without a stored instance is missing.

        Args:
            uids: Study Instance UIDs.
            awaited: The destinations whose commitment is waited for.
        """
        with self._database.begin_read() as connection:
            rows = connection.execute(_STUDIES, {"uids": list(uids), "awaited": list(awaited)}).mappings()
            return [
                StoredStudy(**{**row, **{name: int(row[name]) for name in ("size", "owed", "uncommitted")}})
                for row in rows
            ]

    def mark_removing(
        self,
        studies: Iterable[StoredStudy],
        limit: int,
        unix_ms: int,
        *,
        only_delivered: bool,
        awaited: Collection[str] = (),
    ) -> list[RemovableFile]:
        """Mark the instances of studies as being removed, if they are still stored.

        Args:
            studies: The studies. Instances that were stored after their `newest_at` stay.
            limit: Maximum number of instances, those of the first studies first.
            unix_ms: Current time.
            only_delivered: Whether instances with an open or dead delivery stay. Otherwise these deliveries
                are dropped.
            awaited: Destinations. Instances stay while one of these has not answered whether it commits.
        """
        found: dict[int, RemovableFile] = {}
        with self._database.begin_write() as connection:
            for study in studies:
                parameters = {"of": study.study_uid, "until": study.newest_at, "at_most": limit - len(found)}
                rows = connection.execute(_CANDIDATES, parameters).mappings()
                found.update({row["id"]: RemovableFile(**row) for row in rows})
                if len(found) == limit:
                    break
            marked = self._mark(
                connection, list(found), unix_ms, only_delivered=only_delivered, awaited=awaited
            )
        return [file for file in found.values() if file.id in marked]

    def list_removing(self, limit: int, after: int = 0) -> list[RemovableFile]:
        """Return instances that are being removed, with ids above `after`, by id."""
        with self._database.begin_read() as connection:
            rows = connection.execute(_REMOVING, {"at_most": limit, "after": after}).mappings()
            return [RemovableFile(**row) for row in rows]

    def mark_removed(self, ids: Sequence[int]) -> None:
        """Record that the files of these instances are gone."""
        with self._database.begin_write() as connection:
            connection.execute(_REMOVED, {"ids": list(ids)})

    def delete_removed_rows(self, before_ms: int) -> int:
        """Delete the oldest rows of removed instances with their deliveries; return how many.

        The row of a study goes with the last row of its instances, and with it the attributes of the patient.

        Args:
            before_ms: Only instances that were stored before this time, in Unix milliseconds.

        Returns:
            `CHUNK` at most; 0 means that no such row is left.
        """
        with self._database.begin_write() as connection:
            oldest = connection.execute(_OLDEST_REMOVED).all()
            due = [row for row in oldest if row.stored_at < before_ms]
            ids = [row.id for row in due]
            if ids:
                connection.execute(_FORGET_DELIVERIES, {"ids": ids})
                connection.execute(_FORGET, {"ids": ids})
                forget_studies(connection, {row.study_uid for row in due})
        return len(ids)

    def _mark(
        self,
        connection: Connection,
        ids: list[int],
        unix_ms: int,
        *,
        only_delivered: bool,
        awaited: Collection[str],
    ) -> set[Any]:
        if not ids:
            return set()
        if self._database.dialect == "postgresql":
            connection.execute(_LOCK_INSTANCES, {"ids": ids})
        if not only_delivered:
            connection.execute(_DROP, {"ids": ids, "now": unix_ms})
        elif self._database.dialect == "postgresql":
            connection.execute(_LOCK_DELIVERIES, {"ids": ids})
        if not awaited:
            return set(connection.execute(_MARK, {"ids": ids}).scalars())
        return set(connection.execute(_MARK_COMMITTED, {"ids": ids, "awaited": list(awaited)}).scalars())
