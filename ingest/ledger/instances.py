"""The half of the ledger that knows instances."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import islice
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, RowMapping, bindparam, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from ingest.ledger.database import Database
from ingest.ledger.records import DeliveryState, Instance, InstanceState, NewInstance, Outcome
from ingest.ledger.schema import HAS_FILE, deliveries, instances
from ingest.ledger.spool_references import find_recorded_refs
from ingest.ledger.variants import accepted_already

CHUNK: Final = 500
"""How many values one IN list holds."""

TEXT_MAX: Final = 600
"""Characters of one value: PostgreSQL cannot index 2,704 bytes or more, and peers choose their UIDs."""

_COLUMNS: Final = tuple(
    field.name for field in fields(NewInstance) if field.name not in {"destinations", "replaces"}
)
INSERT: Final = {
    "sqlite": sqlite.insert(instances)
    .on_conflict_do_nothing()
    .returning(instances.c.id, instances.c.spool_ref),
    "postgresql": postgresql.insert(instances)
    .on_conflict_do_nothing()
    .returning(instances.c.id, instances.c.spool_ref),
}
INSERT_DELIVERIES: Final = insert(deliveries).values(
    instance_id=bindparam("instance_id"),
    destination=bindparam("destination"),
    state=DeliveryState.WAITING.value,
    attempts=0,
    next_at=0,
    created_at=bindparam("at"),
    updated_at=bindparam("at"),
)
_BY_UID: Final = (
    select(instances).where(instances.c.sop_instance_uid == bindparam("uid")).order_by(instances.c.id)
)
_WITH_FILES: Final = (
    select(instances)
    .where(HAS_FILE, instances.c.id > bindparam("after"))
    .order_by(instances.c.id)
    .limit(bindparam("most"))
)
# Not the bare column: SQLite would go by its index, and read nearly all rows there are.
_state: Final = instances.c.state.concat("")
_UIDS: Final = instances.c.sop_instance_uid.in_(bindparam("uids", expanding=True))
# Further copies (`keep-both`) are never replaced.
_STORED: Final = (_UIDS, _state == InstanceState.STORED.value, instances.c.copy_digest == "")
_REMOVING: Final = (_UIDS, _state == InstanceState.REMOVING.value)
_HELD: Final = select(
    instances.c.sop_instance_uid,
    instances.c.store_key,
    instances.c.state,
    instances.c.stored_at,
    instances.c.copy_digest,
).where(
    _UIDS,
    _state.in_((InstanceState.STORED.value, InstanceState.REMOVING.value, InstanceState.REPLACED.value)),
)
_CLAIMED: Final = select(instances.c.store_key).where(
    instances.c.store_key.in_(bindparam("keys", expanding=True)), HAS_FILE
)
_COUNT_AGAIN: Final = (
    update(instances)
    .where(instances.c.store_key == bindparam("key"), instances.c.state == InstanceState.QUARANTINED.value)
    .values(times=instances.c.times + 1)
)
_OPEN: Final = (DeliveryState.WAITING.value, DeliveryState.SENDING.value, DeliveryState.RETRY.value)


@dataclass(frozen=True, slots=True)
class StoreKeys:
    """What there is of some SOP instance UIDs; variants and quarantined ones apart.

    Attributes:
        stored: The store keys of those that are stored; of several copies that of the first one.
        copies: The store keys of further copies.
        removing: The store keys whose files are about to be removed, or whose remover died.
        replaced: The store keys that replaced objects had, and that the stored one does not have.
        left_at: When what left `removing` and `replaced` behind was stored, in Unix milliseconds, by key.
    """

    stored: Mapping[str, str] = field(default_factory=dict)
    removing: Mapping[str, set[str]] = field(default_factory=dict)
    replaced: Mapping[str, set[str]] = field(default_factory=dict)
    left_at: Mapping[str, int] = field(default_factory=dict)
    copies: Mapping[str, set[str]] = field(default_factory=dict)


class Instances:
    """Records and finds instances."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record(self, rows: Sequence[NewInstance]) -> list[Outcome]:
        """Write instances and their deliveries in one transaction, durable on return.

        A row whose spool reference, or whose file, has a row already changes nothing; but what lies in
        quarantine counts how often it came.

        Returns:
            One outcome for each of `rows`, in their order.

        Raises:
            LedgerError: The ledger is away; the caller does the same again later, written or not.
        """
        if not rows:
            return []
        with self._database.begin_write() as connection:
            replaced = [row.sop_instance_uid for row in rows if row.replaces]
            if replaced:
                _supersede(connection, replaced, rows[0].stored_at, keep=[row.spool_ref for row in rows])
            ids = {
                ref: number
                for number, ref in connection.execute(
                    INSERT[self._database.dialect], [columns_of(row) for row in rows]
                )
            }
            # The same reference twice in one batch: the row is that of the first.
            new = [ids.pop(row.spool_ref, None) for row in rows]
            accepted = accepted_already(
                connection, {row.sop_instance_uid for row in rows if row.state is InstanceState.VARIANT}
            )
            waiting = [
                {"instance_id": number, "destination": destination, "at": row.stored_at}
                for row, number in zip(rows, new, strict=True)
                if number is not None
                for destination in row.destinations
                if row.state is not InstanceState.VARIANT
                or (clean(row.sop_instance_uid), destination) not in accepted
            ]
            if waiting:
                connection.execute(INSERT_DELIVERIES, waiting)
            known = find_recorded_refs(
                connection, [row.spool_ref for row, number in zip(rows, new, strict=True) if number is None]
            )
            again = [
                {"key": row.store_key}
                for row, number in zip(rows, new, strict=True)
                if number is None and row.state is InstanceState.QUARANTINED and row.spool_ref not in known
            ]
            if again:
                connection.execute(_COUNT_AGAIN, again)
        return [
            Outcome.RECORDED
            if number is not None
            else (Outcome.KNOWN if row.spool_ref in known else Outcome.TAKEN)
            for row, number in zip(rows, new, strict=True)
        ]

    def mark_replaced(self, uids: Sequence[str], now_ms: int) -> None:
        """Mark what is stored of these SOP instance UIDs as replaced; what is not delivered of it is dropped.

        Done before the files are replaced, so that no row ever speaks of a file that is another's by now.

        Raises:
            LedgerError: The ledger is away.
        """
        with self._database.begin_write() as connection:
            _supersede(connection, uids, now_ms, keep=[])

    def find_store_keys(self, uids: Iterable[str]) -> StoreKeys:
        """What the store holds under those SOP instance UIDs, as far as it has rows.

        Raises:
            LedgerError: The ledger is away.
        """
        stored: dict[str, str] = {}
        copies: dict[str, set[str]] = {}
        left_at: dict[str, int] = {}
        others: dict[str, dict[str, set[str]]] = {
            state.value: {} for state in (InstanceState.REMOVING, InstanceState.REPLACED)
        }
        with self._database.begin_read() as connection:
            for chunk in _chunks(uids):
                asked = {clean(uid): uid for uid in chunk}
                for uid, key, state, at, digest in connection.execute(_HELD, {"uids": list(asked)}):
                    if state == InstanceState.STORED.value and digest:
                        copies.setdefault(asked[uid], set()).add(key)
                    elif state == InstanceState.STORED.value:
                        stored[asked[uid]] = key
                    else:
                        others[state].setdefault(asked[uid], set()).add(key)
                        left_at[key] = max(at, left_at.get(key, 0))
        removing, replaced = others.values()
        left = {uid: keys - {stored.get(uid)} for uid, keys in replaced.items()}
        return StoreKeys(stored, removing, {uid: keys for uid, keys in left.items() if keys}, left_at, copies)

    def find_claimed_keys(self, keys: Iterable[str]) -> set[str]:
        """Those of `keys` whose files belong to a row.

        Raises:
            LedgerError: The ledger is away.
        """
        claimed: set[str] = set()
        with self._database.begin_read() as connection:
            for chunk in _chunks(keys):
                claimed.update(connection.execute(_CLAIMED, {"keys": chunk}).scalars())
        return claimed

    def finish_removals(self, uids: Iterable[str]) -> None:
        """Mark as removed what was being removed of these SOP instance UIDs.

        Raises:
            LedgerError: The ledger is away.
        """
        with self._database.begin_write() as connection:
            for chunk in _chunks(uids):
                connection.execute(
                    update(instances).where(*_REMOVING).values(state=InstanceState.REMOVED.value),
                    {"uids": [clean(uid) for uid in chunk]},
                )

    def find_by_sop_instance_uid(self, uid: str) -> list[Instance]:
        """All rows of a SOP instance UID, oldest first.

        Raises:
            LedgerError: The ledger is away.
        """
        with self._database.begin_read() as connection:
            return [as_instance(row) for row in connection.execute(_BY_UID, {"uid": clean(uid)}).mappings()]

    def find_by_ids(self, ids: Collection[int]) -> dict[int, Instance]:
        """Rows by their ids; an id without a row is missing.

        Raises:
            LedgerError: The ledger is away.
        """
        with self._database.begin_read() as connection:
            rows = connection.execute(select(instances).where(instances.c.id.in_(ids))).mappings()
            return {row["id"]: as_instance(row) for row in rows}

    def list_with_files(self, after: int, most: int) -> Sequence[Instance]:
        """The next rows, by id, whose file should lie in store or quarantine.

        Raises:
            LedgerError: The ledger is away.
        """
        with self._database.begin_read() as connection:
            found = connection.execute(_WITH_FILES, {"after": after, "most": most})
            return [as_instance(row) for row in found.mappings()]

    def list_newest(
        self,
        limit: int = 100,
        *,
        before: int | None = None,
        state: InstanceState | None = None,
        study_uid: str | None = None,
    ) -> list[Instance]:
        """The newest instances first, for people to read.

        Args:
            limit: At most so many.
            before: Only rows with a smaller id: the last one's of the page before.
            state: Only rows of this state.
            study_uid: Only rows of this study.

        Raises:
            LedgerError: The ledger is away.
        """
        query = select(instances).order_by(instances.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(instances.c.id < before)
        if state is not None:
            query = query.where(instances.c.state == state.value)
        if study_uid is not None:
            query = query.where(instances.c.study_uid == study_uid)
        with self._database.begin_read() as connection:
            return [as_instance(row) for row in connection.execute(query).mappings()]

    def count_by_state(self) -> dict[InstanceState, int]:
        """How many instances are in each state; a state without rows is missing.

        Raises:
            LedgerError: The ledger is away.
        """
        by_state = select(instances.c.state, func.count()).group_by(instances.c.state)
        with self._database.begin_read() as connection:
            return {InstanceState(state): count for state, count in connection.execute(by_state)}


def columns_of(row: NewInstance) -> dict[str, Any]:
    """The row as `INSERT` takes it."""
    return {name: clean(getattr(row, name)) for name in _COLUMNS}


def clean(value: Any) -> Any:
    """Text that both databases take: PostgreSQL refuses NUL, both refuse lone surrogates."""
    if not isinstance(value, str) or (value.isascii() and "\0" not in value and len(value) <= TEXT_MAX):
        return value
    return value.replace("\0", "")[:TEXT_MAX].encode("utf-8", "replace").decode("utf-8")


def _supersede(connection: Connection, uids: Sequence[str], now_ms: int, *, keep: Sequence[str]) -> None:
    old = (*_STORED, instances.c.spool_ref.not_in(bindparam("keep", expanding=True)))
    parameters = {"uids": [clean(uid) for uid in uids], "keep": list(keep)}
    drop_open_deliveries(connection, old, now_ms, parameters)
    connection.execute(update(instances).where(*old).values(state=InstanceState.REPLACED.value), parameters)


def drop_open_deliveries(
    connection: Connection,
    old: Sequence[ColumnElement[bool]],
    now_ms: int,
    parameters: Mapping[str, Any] | None = None,
) -> None:
    """Drop what is not delivered of instances that give way; `old` says which these are."""
    connection.execute(
        update(deliveries)
        .where(
            deliveries.c.instance_id.in_(select(instances.c.id).where(*old)), deliveries.c.state.in_(_OPEN)
        )
        .values(
            state=DeliveryState.DROPPED.value,
            next_at=0,
            suspect_since=0,
            lease_owner=None,
            lease_until=None,
            last_error="a newer object of the same SOP instance UID replaced it",
            updated_at=now_ms,
        ),
        parameters or {},
    )


def _chunks(values: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(values)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk


def as_instance(row: RowMapping) -> Instance:
    """A row of `instances`."""
    values = dict(row)
    values["state"] = InstanceState(values["state"])
    return Instance(**values)
