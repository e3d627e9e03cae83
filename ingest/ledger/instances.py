"""Instances: one row for each received object, with the state of its file."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import islice
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, RowMapping, bindparam, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from ingest.ledger.announcements import Announcer
from ingest.ledger.database import Database
from ingest.ledger.lease_order import find_first_due, find_wait_ms
from ingest.ledger.reception_notes import note_receptions
from ingest.ledger.records import (
    PLAIN_TERMS,
    UNRELEASED,
    DeliveryState,
    Instance,
    InstanceColumns,
    InstanceState,
    NewInstance,
    Outcome,
)
from ingest.ledger.row_counts import count_instances
from ingest.ledger.row_values import clean_value
from ingest.ledger.schema import HAS_FILE, deliveries, instances
from ingest.ledger.spool_references import find_recorded_refs
from ingest.ledger.study_index import WrittenStudies, index_studies
from ingest.ledger.transfer_notes import note_received
from ingest.ledger.variants import find_accepted

CHUNK: Final = 500
"""Maximum number of values in one IN list."""

_COLUMNS: Final = tuple(field.name for field in fields(InstanceColumns))
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
    state=bindparam("state"),
    attempts=0,
    next_at=bindparam("next_at"),
    created_at=bindparam("at"),
    updated_at=bindparam("at"),
    priority=bindparam("priority"),
    awaits=bindparam("awaits"),
    hours=bindparam("hours"),
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
# The concatenation keeps SQLite from the index of `state`, which would read nearly all rows.
_state: Final = instances.c.state.concat("")
_UIDS: Final = instances.c.sop_instance_uid.in_(bindparam("uids", expanding=True))
# Further copies (`keep-both`) are never replaced.
_STORED: Final = (_UIDS, _state == InstanceState.STORED.value, instances.c.copy_digest == "")
_REMOVING: Final = (_UIDS, _state == InstanceState.REMOVING.value)
_STORE_KEYS: Final = select(
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
_UNFINISHED: Final = tuple(
    state.value for state in (DeliveryState.WAITING, DeliveryState.SENDING, DeliveryState.RETRY, *UNRELEASED)
)


@dataclass(frozen=True, slots=True)
class StoreKeys:
    """The store keys of some SOP instance UIDs; variants and quarantined instances are not included.

    Attributes:
        stored: Store key of the stored object, by UID; if there are copies, the key of the first one.
        copies: Store keys of further copies, by UID.
        removing: Store keys, by UID, whose files are being removed or whose remover died.
        replaced: Store keys of replaced objects, by UID, unless the stored object has the same key.
        left_at: When the object of a key in `removing` or `replaced` was stored, in Unix milliseconds, by
            key.
    """

    stored: Mapping[str, str] = field(default_factory=dict)
    removing: Mapping[str, set[str]] = field(default_factory=dict)
    replaced: Mapping[str, set[str]] = field(default_factory=dict)
    left_at: Mapping[str, int] = field(default_factory=dict)
    copies: Mapping[str, set[str]] = field(default_factory=dict)


class Instances:
    """Records and finds instances.

    Every method is one transaction, durable on return. It raises LedgerError while the database is
    unavailable.
    """

    def __init__(
        self, database: Database, *, is_audited: bool = False, announcer: Announcer | None = None
    ) -> None:
        self._database = database
        self._announcer = announcer
        self._written = WrittenStudies()
        self._is_audited = is_audited

    def record(self, rows: Sequence[NewInstance]) -> list[Outcome]:
        """Record instances together with their deliveries, in one transaction.

        A row whose spool reference or store key is already recorded changes nothing. Only a quarantined
        instance counts how often it came.

        Returns:
            One outcome for each row, in their order.

        Raises:
            LedgerError: The database is unavailable. The caller repeats the call later, whether it was
                written or not.
        """
        if not rows:
            return []
        # INVARIANT 1: one COMMIT makes instances and their deliveries durable. Then the spool may release
        # entries.
        with self._database.begin_write() as connection:
            replaced = [row.sop_instance_uid for row in rows if row.replaces]
            if replaced:
                _mark_replaced(connection, replaced, rows[0].stored_at, keep=[row.spool_ref for row in rows])
            ids = {
                ref: number
                for number, ref in connection.execute(
                    INSERT[self._database.dialect], [encode_columns(row) for row in rows]
                )
            }
            # If a batch has the same reference twice, the row belongs to the first one.
            new = [ids.pop(row.spool_ref, None) for row in rows]
            accepted = find_accepted(
                connection, {row.sop_instance_uid for row in rows if row.state is InstanceState.VARIANT}
            )
            waiting = [
                encode_delivery(row, number, destination)
                for row, number in zip(rows, new, strict=True)
                if number is not None
                for destination in row.destinations
                if row.state is not InstanceState.VARIANT
                or (clean_value(row.sop_instance_uid), destination) not in accepted
            ]
            if waiting:
                connection.execute(INSERT_DELIVERIES, waiting)
            recorded = [(number, row) for row, number in zip(rows, new, strict=True) if number is not None]
            if self._is_audited:
                note_received(connection, [row for _, row in recorded])
            if self._announcer is not None:
                self._announcer.announce_instances(connection, [row for _, row in recorded])
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
            written = index_studies(connection, recorded, self._written)
            taken = [
                row
                for row, number in zip(rows, new, strict=True)
                if number is None and row.spool_ref not in known
            ]
            note_receptions(connection, [row for _, row in recorded], taken)
        self._written.add(written)
        return [
            Outcome.RECORDED
            if number is not None
            else (Outcome.KNOWN if row.spool_ref in known else Outcome.TAKEN)
            for row, number in zip(rows, new, strict=True)
        ]

    def mark_replaced(self, uids: Sequence[str], unix_ms: int) -> None:
        """Mark the stored objects of these SOP instance UIDs as replaced, and drop their open deliveries.

        The caller replaces the files afterwards. No row ever describes a file that belongs to another object
        by then.
        """
        with self._database.begin_write() as connection:
            _mark_replaced(connection, uids, unix_ms, keep=[])

    def find_store_keys(self, uids: Iterable[str]) -> StoreKeys:
        """Return the store keys that belong to these SOP instance UIDs, as far as they have rows."""
        stored: dict[str, str] = {}
        copies: dict[str, set[str]] = {}
        left_at: dict[str, int] = {}
        others: dict[str, dict[str, set[str]]] = {
            state.value: {} for state in (InstanceState.REMOVING, InstanceState.REPLACED)
        }
        with self._database.begin_read() as connection:
            for chunk in _chunks(uids):
                by_clean_uid = {clean_value(uid): uid for uid in chunk}
                for uid, key, state, at, digest in connection.execute(
                    _STORE_KEYS, {"uids": list(by_clean_uid)}
                ):
                    if state == InstanceState.STORED.value and digest:
                        copies.setdefault(by_clean_uid[uid], set()).add(key)
                    elif state == InstanceState.STORED.value:
                        stored[by_clean_uid[uid]] = key
                    else:
                        others[state].setdefault(by_clean_uid[uid], set()).add(key)
                        left_at[key] = max(at, left_at.get(key, 0))
        removing, replaced = others.values()
        left = {uid: keys - {stored.get(uid)} for uid, keys in replaced.items()}
        return StoreKeys(stored, removing, {uid: keys for uid, keys in left.items() if keys}, left_at, copies)

    def find_claimed_keys(self, keys: Iterable[str]) -> set[str]:
        """Return those store keys whose files belong to a row."""
        claimed: set[str] = set()
        with self._database.begin_read() as connection:
            for chunk in _chunks(keys):
                claimed.update(connection.execute(_CLAIMED, {"keys": chunk}).scalars())
        return claimed

    def finish_removals(self, uids: Iterable[str]) -> None:
        """Mark objects of these SOP instance UIDs as removed if they were being removed."""
        with self._database.begin_write() as connection:
            for chunk in _chunks(uids):
                connection.execute(
                    update(instances).where(*_REMOVING).values(state=InstanceState.REMOVED.value),
                    {"uids": [clean_value(uid) for uid in chunk]},
                )

    def find_by_sop_instance_uid(self, uid: str) -> list[Instance]:
        """Return all rows of a SOP instance UID, oldest first."""
        with self._database.begin_read() as connection:
            return [
                to_instance(row) for row in connection.execute(_BY_UID, {"uid": clean_value(uid)}).mappings()
            ]

    def find_by_study_uid(self, uid: str, most: int) -> list[Instance]:
        """Return the first rows of a study, oldest first."""
        query = (
            select(instances)
            .where(instances.c.study_uid == clean_value(uid))
            .order_by(instances.c.id)
            .limit(most)
        )
        with self._database.begin_read() as connection:
            return [to_instance(row) for row in connection.execute(query).mappings()]

    def find_by_ids(self, ids: Collection[int]) -> dict[int, Instance]:
        """Return rows by their ids; an id without a row is missing."""
        with self._database.begin_read() as connection:
            rows = connection.execute(select(instances).where(instances.c.id.in_(ids))).mappings()
            return {row["id"]: to_instance(row) for row in rows}

    def list_with_files(self, after: int, most: int) -> Sequence[Instance]:
        """Return the next rows, by id, whose file should lie in store or quarantine."""
        with self._database.begin_read() as connection:
            found = connection.execute(_WITH_FILES, {"after": after, "most": most})
            return [to_instance(row) for row in found.mappings()]

    def count_by_state(self) -> dict[InstanceState, int]:
        """Count instances by state; a state without rows is missing."""
        with self._database.begin_read() as connection:
            return count_instances(connection)


def encode_columns(row: NewInstance) -> dict[str, Any]:
    """Return the columns of a row, for `INSERT`."""
    return {name: clean_value(getattr(row, name)) for name in _COLUMNS}


def encode_delivery(row: NewInstance, instance_id: int, destination: str) -> dict[str, Any]:
    """Return the parameters of `INSERT_DELIVERIES` for a new delivery of an instance."""
    terms = row.terms.get(destination, PLAIN_TERMS)
    return {
        "instance_id": instance_id,
        "destination": destination,
        "state": terms.state.value,
        "at": row.stored_at,
        "priority": terms.priority.value,
        "awaits": terms.awaits,
        "next_at": find_first_due(terms.priority, find_wait_ms(terms.hours, row.stored_at)),
        "hours": terms.hours,
    }


def _mark_replaced(connection: Connection, uids: Sequence[str], unix_ms: int, *, keep: Sequence[str]) -> None:
    old = (*_STORED, instances.c.spool_ref.not_in(bindparam("keep", expanding=True)))
    parameters = {"uids": [clean_value(uid) for uid in uids], "keep": list(keep)}
    drop_open_deliveries(connection, old, unix_ms, parameters)
    connection.execute(update(instances).where(*old).values(state=InstanceState.REPLACED.value), parameters)


def drop_open_deliveries(
    connection: Connection,
    old: Sequence[ColumnElement[bool]],
    unix_ms: int,
    parameters: Mapping[str, Any] | None = None,
) -> None:
    """Drop the unfinished deliveries of the instances that match the conditions `old`."""
    connection.execute(
        update(deliveries)
        .where(
            deliveries.c.instance_id.in_(select(instances.c.id).where(*old)),
            deliveries.c.state.in_(_UNFINISHED),
        )
        .values(
            state=DeliveryState.DROPPED.value,
            next_at=0,
            suspect_since=0,
            lease_owner=None,
            lease_until=None,
            last_error="a newer object of the same SOP instance UID replaced it",
            updated_at=unix_ms,
        ),
        parameters or {},
    )


def _chunks(values: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(values)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk


def to_instance(row: RowMapping) -> Instance:
    """Return a row of `instances` as a value."""
    values = dict(row)
    values["state"] = InstanceState(values["state"])
    return Instance(**values)
