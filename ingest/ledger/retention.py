"""The part of the ledger about instances that go: what is there by age, what is owed, what is on its way."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, and_, bindparam, case, delete, exists, func, select, tuple_, update

from ingest.ledger.database import Database
from ingest.ledger.records import DeliveryState, InstanceState
from ingest.ledger.schema import KEPT, deliveries, instances

CHUNK: Final = 500
"""Rows, or values of an IN list, in one statement."""

OWED: Final = (
    DeliveryState.WAITING.value,
    DeliveryState.SENDING.value,
    DeliveryState.RETRY.value,
    DeliveryState.DEAD.value,
)
"""What keeps a file in the store: a dead delivery waits for a person, who may want it sent again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredInstance:
    """Where an instance stands among all that the store holds."""

    stored_at: int
    id: int
    study_uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredStudy:
    """What the store holds of a study, variants included.

    Attributes:
        newest_at: When its last instance was stored, in Unix milliseconds.
        size: Bytes of its files.
        owed: How many of its instances a destination is still owed.
    """

    study_uid: str
    newest_at: int
    instances: int
    size: int
    owed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovableFile:
    """An instance that is marked as being removed."""

    id: int
    store_key: str
    size: int
    stored_at: int


# Not the bare column: SQLite would go by its index, and read nearly all rows there are.
_state: Final = instances.c.state.concat("")
_IS_KEPT: Final = _state.in_((InstanceState.STORED.value, InstanceState.VARIANT.value))
_IS_OWED: Final = exists().where(deliveries.c.instance_id == instances.c.id, deliveries.c.state.in_(OWED))
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
    )
    .where(instances.c.study_uid.in_(bindparam("uids", expanding=True)), _IS_KEPT)
    .group_by(instances.c.study_uid)
)
_LEAVING: Final = (instances.c.id, instances.c.store_key, instances.c.size, instances.c.stored_at)
_OF_STUDY: Final = and_(
    instances.c.study_uid == bindparam("of"), instances.c.stored_at <= bindparam("until"), _IS_KEPT
)
_CANDIDATES: Final = select(*_LEAVING).where(_OF_STUDY).order_by(instances.c.id).limit(bindparam("at_most"))
_THEIR_DELIVERIES: Final = deliveries.c.instance_id.in_(bindparam("ids", expanding=True))
# PostgreSQL only: whoever is about to deliver one of them, again or at all, is waited for, and seen by the
# statement after.
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
_REMOVING: Final = (
    select(*_LEAVING)
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
    select(instances.c.id, instances.c.stored_at)
    .where(instances.c.state == InstanceState.REMOVED.value)
    .order_by(instances.c.id)
    .limit(CHUNK)
)
_FORGET_DELIVERIES: Final = delete(deliveries).where(_THEIR_DELIVERIES)
_FORGET: Final = delete(instances).where(_IDS)


class Retention:
    """Says what the store holds, oldest first, and notes how it goes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find_newest_stored_ms(self) -> int | None:
        """When the newest instance in the store was stored, in Unix milliseconds; None where there is none.

        Raises:
            LedgerError: The ledger is away.
        """
        with self._database.begin_read() as connection:
            found: int | None = connection.execute(_NEWEST).scalar()
            return found

    def sum_stored_bytes(self) -> int:
        """Bytes of all files that the store holds; reads one index from begin to end.

        Raises:
            LedgerError: The ledger is away.
        """
        with self._database.begin_read() as connection:
            return int(connection.execute(_SUM).scalar_one())

    def list_oldest(self, after: StoredInstance | None = None) -> list[StoredInstance]:
        """What the store holds, oldest first: the first `CHUNK`, or those that follow `after`.

        Raises:
            LedgerError: The ledger is away.
        """
        place = {"stored_at": after.stored_at, "id": after.id} if after else {"stored_at": -1, "id": -1}
        with self._database.begin_read() as connection:
            return [StoredInstance(**row) for row in connection.execute(_OLDEST, place).mappings()]

    def summarize_studies(self, uids: Collection[str]) -> list[StoredStudy]:
        """What the store holds of these studies, `CHUNK` at most; one of which it holds nothing is missing.

        Raises:
            LedgerError: The ledger is away.
        """
        with self._database.begin_read() as connection:
            rows = connection.execute(_STUDIES, {"uids": list(uids)}).mappings()
            return [
                StoredStudy(**{**row, "size": int(row["size"]), "owed": int(row["owed"])}) for row in rows
            ]

    def mark_removing(
        self, studies: Iterable[StoredStudy], limit: int, now_ms: int, *, only_delivered: bool
    ) -> list[RemovableFile]:
        """Mark instances of studies as being removed, if they are still stored then.

        Args:
            studies: Whose instances go; what came after their `newest_at` stays.
            limit: At most so many, the first studies first.
            now_ms: The time, in Unix milliseconds.
            only_delivered: Whether what a destination is owed stays; else these deliveries are dropped.

        Raises:
            LedgerError: The ledger is away.
        """
        found: dict[int, RemovableFile] = {}
        with self._database.begin_write() as connection:
            for study in studies:
                asked = {"of": study.study_uid, "until": study.newest_at, "at_most": limit - len(found)}
                rows = connection.execute(_CANDIDATES, asked).mappings()
                found.update({row["id"]: RemovableFile(**row) for row in rows})
                if len(found) == limit:
                    break
            marked = self._mark(connection, list(found), now_ms, only_delivered=only_delivered)
        return [file for file in found.values() if file.id in marked]

    def list_removing(self, limit: int, after: int = 0) -> list[RemovableFile]:
        """What is marked as being removed, of ids above `after`, in their order.

        Raises:
            LedgerError: The ledger is away.
        """
        with self._database.begin_read() as connection:
            rows = connection.execute(_REMOVING, {"at_most": limit, "after": after}).mappings()
            return [RemovableFile(**row) for row in rows]

    def mark_removed(self, ids: Sequence[int]) -> None:
        """Say that what was being removed has no file any more.

        Raises:
            LedgerError: The ledger is away.
        """
        with self._database.begin_write() as connection:
            connection.execute(_REMOVED, {"ids": list(ids)})

    def delete_removed_rows(self, before_ms: int) -> int:
        """Delete the oldest rows of removed instances, with their deliveries; returns how many.

        Args:
            before_ms: Only those that were stored before this time, in Unix milliseconds.

        Returns:
            `CHUNK` at most: 0 where there are no more.

        Raises:
            LedgerError: The ledger is away.
        """
        with self._database.begin_write() as connection:
            oldest = connection.execute(_OLDEST_REMOVED).all()
            ids = [row.id for row in oldest if row.stored_at < before_ms]
            if ids:
                connection.execute(_FORGET_DELIVERIES, {"ids": ids})
                connection.execute(_FORGET, {"ids": ids})
        return len(ids)

    def _mark(self, connection: Connection, ids: list[int], now_ms: int, *, only_delivered: bool) -> set[Any]:
        if not ids:
            return set()
        if self._database.dialect == "postgresql":
            connection.execute(_LOCK_INSTANCES, {"ids": ids})
        if not only_delivered:
            connection.execute(_DROP, {"ids": ids, "now": now_ms})
        elif self._database.dialect == "postgresql":
            connection.execute(_LOCK_DELIVERIES, {"ids": ids})
        return set(connection.execute(_MARK, {"ids": ids}).scalars())
