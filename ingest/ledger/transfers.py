"""Transfers for the audit trail: the monitor merges notes into groups, and reports each group once.

A group is one association (for received instances) or one destination (for sent ones), one study and one
outcome: what one audit message describes. The monitor merges notes (`ingest.ledger.transfer_notes`) and
deletes them in one transaction. It reports a group when no note has come for it for some seconds, and deletes
it afterwards. A crash before that repeats a message, and loses none.

The monitors of several hosts may share a ledger. One of them works at a time: the holder of a lease.

The patient of a study is read from the study index when the message is built, and is not kept here.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog
from sqlalchemy import BindParameter, Connection, bindparam, delete, func, insert, or_, select, update

from ingest.ledger.database import INSERT_BY_DIALECT, Database
from ingest.ledger.records import NewInstance
from ingest.ledger.schema import audit_groups, audit_lease, audit_notes, studies
from ingest.ledger.transfer_notes import MergedTransfers, TransferKey, encode_json, note_received

NOTES_MERGED: Final = 500
"""Maximum number of notes in one transaction of the monitor."""

_IDS: Final[BindParameter[Any]] = bindparam("ids", expanding=True)
_LEASE_ID: Final = 1
_NOTES: Final = select(audit_notes.c.id, audit_notes.c.body).order_by(audit_notes.c.id).limit(NOTES_MERGED)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferGroup:
    """Transfers that one audit message describes.

    Attributes:
        key: What they have in common.
        sop_classes: Number of instances of each SOP class.
        first_at: Time of the first transfer, in Unix milliseconds.
        last_at: Time of the last transfer.
        is_begun: Whether its begin was reported.
        id: Id of the row.
    """

    key: TransferKey
    sop_classes: Mapping[str, int]
    first_at: int
    last_at: int
    is_begun: bool = False
    id: int = 0


@dataclass(frozen=True, slots=True)
class IndexedStudy:
    """Attributes of a study that an audit message names, as far as `[ledger] index` allows.

    Attributes:
        patients_differ: Whether instances of different patients came with its Study Instance UID.
    """

    patient_id: str = ""
    patient_name: str = ""
    accession_number: str = ""
    patients_differ: bool = False


class Transfers:
    """Merges and lists groups of transfers. Methods raise LedgerError while the database is unavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def note_duplicates(self, rows: Sequence[NewInstance]) -> None:
        """Note received instances that the store has already, in a separate transaction."""
        with self._database.begin_write() as connection:
            note_received(connection, rows, is_known=True)

    def hold_lease(self, owner: str, unix_ms: int, until_ms: int) -> bool:
        """Take or renew the lease of the monitor; return False while another monitor has it.

        Args:
            owner: Name of this monitor.
            unix_ms: Current time, as `Ledger.unix_ms`.
            until_ms: New end of the lease.
        """
        free = or_(
            audit_lease.c.owner == owner,
            audit_lease.c.until <= unix_ms,
            # The clock was set back since the lease was taken.
            audit_lease.c.until > until_ms,
        )
        values = {"owner": owner, "until": until_ms}
        with self._database.begin_write() as connection:
            insert_lease: Any = INSERT_BY_DIALECT[self._database.dialect](audit_lease).values(
                id=_LEASE_ID, **values
            )
            insert_lease = insert_lease.on_conflict_do_update(
                index_elements=[audit_lease.c.id], set_=values, where=free
            )
            return connection.execute(insert_lease.returning(audit_lease.c.id)).first() is not None

    def end_lease(self, owner: str) -> None:
        """Let another monitor work at once."""
        with self._database.begin_write() as connection:
            connection.execute(update(audit_lease).where(audit_lease.c.owner == owner).values(until=0))

    def merge_notes(self, owner: str, unix_ms: int) -> int:
        """Merge notes into groups, and delete them; return how many notes were merged.

        Args:
            owner: Name of the monitor that holds the lease. Without the lease nothing is merged.
            unix_ms: Current time.
        """
        with self._database.begin_read() as connection:
            if connection.execute(select(audit_notes.c.id).limit(1)).first() is None:
                return 0  # a write transaction of SQLite would hold up the workers for nothing
        with self._database.begin_write() as connection:
            if not self._lock_lease(connection, owner):
                return 0
            notes = connection.execute(_NOTES).all()
            merged: dict[str, MergedTransfers] = {}
            for note in notes:
                try:
                    for key, classes, first_at, last_at in json.loads(note.body):
                        merged.setdefault(encode_json(key), MergedTransfers()).add(classes, first_at, last_at)
                except (ValueError, TypeError) as error:
                    log.error("audit_note_unreadable", note=note.id, error=str(error))
            for key, group in merged.items():
                _merge_group(connection, key, group, unix_ms)
            connection.execute(
                delete(audit_notes).where(audit_notes.c.id.in_(_IDS)), {"ids": [note.id for note in notes]}
            )
            return len(notes)

    def list_unbegun(self, at_most: int) -> list[TransferGroup]:
        """Return groups whose begin was not reported."""
        query = select(audit_groups).where(audit_groups.c.is_begun == 0)
        with self._database.begin_read() as connection:
            rows = connection.execute(query.order_by(audit_groups.c.id).limit(at_most)).mappings()
            return [_to_group(row) for row in rows]

    def list_ended(self, unix_ms: int, idle_ms: int, open_max_ms: int, at_most: int) -> list[TransferGroup]:
        """Return groups that have ended: idle ones, and very old ones.

        Args:
            unix_ms: Current time.
            idle_ms: A group without a note for this long is idle.
            open_max_ms: A group whose first note was merged before this time is very old.
            at_most: Maximum number.
        """
        query = select(audit_groups).where(
            audit_groups.c.is_begun == 1,
            or_(
                audit_groups.c.merged_at <= unix_ms - idle_ms,
                audit_groups.c.created_at <= unix_ms - open_max_ms,
                audit_groups.c.merged_at > unix_ms,  # the clock was set back
            ),
        )
        with self._database.begin_read() as connection:
            rows = connection.execute(query.order_by(audit_groups.c.id).limit(at_most)).mappings()
            return [_to_group(row) for row in rows]

    def mark_begun(self, ids: Sequence[int]) -> None:
        """Note that the begin of these groups was reported."""
        if ids:
            with self._database.begin_write() as connection:
                connection.execute(
                    update(audit_groups).where(audit_groups.c.id.in_(_IDS)).values(is_begun=1),
                    {"ids": list(ids)},
                )

    def delete_reported(self, groups: Sequence[TransferGroup]) -> None:
        """Delete groups that were reported.

        A note that was merged meanwhile belongs to a new group and stays.
        """
        if not groups:
            return
        with self._database.begin_write() as connection:
            for group in groups:
                row = (
                    connection.execute(
                        select(audit_groups).where(audit_groups.c.id == group.id).with_for_update()
                    )
                    .mappings()
                    .first()
                )
                if row is None:
                    continue
                left = {
                    uid: count - group.sop_classes.get(uid, 0)
                    for uid, count in json.loads(row["sop_classes"]).items()
                    if count > group.sop_classes.get(uid, 0)
                }
                connection.execute(delete(audit_groups).where(audit_groups.c.id == group.id))
                if left:
                    merged = MergedTransfers(left, group.last_at, row["last_at"])
                    _merge_group(connection, row["key"], merged, row["merged_at"])

    def find_study(self, study_uid: str) -> IndexedStudy:
        """Return the patient of a study from the study index; empty values if the index has none."""
        columns = (
            studies.c.patient_id,
            studies.c.patient_name,
            studies.c.accession_number,
            studies.c.patients_differ,
        )
        with self._database.begin_read() as connection:
            row = connection.execute(select(*columns).where(studies.c.study_uid == study_uid)).first()
        return IndexedStudy(*row) if row is not None else IndexedStudy()

    def count_pending(self) -> tuple[int, int]:
        """Return the number of notes and of groups that are not reported yet."""
        with self._database.begin_read() as connection:
            notes = connection.execute(select(func.count()).select_from(audit_notes)).scalar_one()
            groups = connection.execute(select(func.count()).select_from(audit_groups)).scalar_one()
        return notes, groups

    @staticmethod
    def _lock_lease(connection: Connection, owner: str) -> bool:
        """Lock the row of the lease until the COMMIT; False if another monitor holds it."""
        query = select(audit_lease.c.owner).where(audit_lease.c.id == _LEASE_ID).with_for_update()
        return connection.execute(query).scalar() == owner


def _merge_group(connection: Connection, key: str, group: MergedTransfers, unix_ms: int) -> None:
    digest = hashlib.sha256(key.encode()).hexdigest()
    row = connection.execute(select(audit_groups).where(audit_groups.c.digest == digest)).mappings().first()
    if row is None:
        connection.execute(
            insert(audit_groups).values(
                key=key,
                digest=digest,
                sop_classes=encode_json(group.classes),
                first_at=group.first_at,
                last_at=group.last_at,
                created_at=unix_ms,
                merged_at=unix_ms,
                is_begun=0,
            )
        )
        return
    group.add(json.loads(row["sop_classes"]), row["first_at"], row["last_at"])
    connection.execute(
        update(audit_groups)
        .where(audit_groups.c.id == row["id"])
        .values(
            sop_classes=encode_json(group.classes),
            first_at=group.first_at,
            last_at=group.last_at,
            merged_at=unix_ms,
        )
    )


def _to_group(row: Mapping[Any, Any]) -> TransferGroup:
    return TransferGroup(
        id=row["id"],
        key=TransferKey(**json.loads(row["key"])),
        sop_classes=json.loads(row["sop_classes"]),
        first_at=row["first_at"],
        last_at=row["last_at"],
        is_begun=bool(row["is_begun"]),
    )
