"""Reindexing: studies whose attributes were not read with the level of `[ledger] index` in force.

These are studies of an older ledger, and all studies after a change of the level. Each study says in
`indexed_as` with which level it was read, so any process can go on where another one ended. A lease lets one
process read at a time. A study is written only if it got no instance since its files were read: otherwise a
worker knows newer values, and the study is read once more.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, and_, bindparam, func, or_, select, update

from ingest.dicom.study_attributes import IndexLevel, StudyAttributes
from ingest.ledger.database import Database
from ingest.ledger.records import InstanceState
from ingest.ledger.schema import instances, reindexing, series, studies
from ingest.ledger.study_index import (
    PATIENT_COLUMNS,
    SERIES_COLUMNS,
    STUDY_COLUMNS,
    merge_attributes,
    write_series,
)

CHUNK: Final = 200
"""Studies whose attributes one transaction removes. On SQLite a running node waits for each of these."""

_LEVELS: Final = ("", "none", "identifiers", "full")
_NAMES: Final = tuple(name for name in PATIENT_COLUMNS if "name" in name)
_PENDING: Final = studies.c.indexed_as.in_(bindparam("others", expanding=True))
_HAS_ATTRIBUTES: Final = tuple(
    state.value for state in (InstanceState.STORED, InstanceState.VARIANT, InstanceState.QUARANTINED)
)
_TAKE: Final = (
    update(reindexing)
    .where(or_(reindexing.c.owner == bindparam("by"), reindexing.c.lease_until <= bindparam("now")))
    .values(owner=bindparam("by"), lease_until=bindparam("until"))
)
_RELEASE: Final = update(reindexing).where(reindexing.c.owner == bindparam("by")).values(lease_until=0)


@dataclass(frozen=True, slots=True)
class ReindexProgress:
    """How far the index is.

    Attributes:
        studies: Number of studies.
        left: Number of studies that are not indexed with this level.
        unreadable: Files that were gone or could not be read, since the level changed.
    """

    studies: int
    left: int
    unreadable: int


@dataclass(frozen=True, slots=True)
class PendingStudy:
    """A study to read.

    Attributes:
        last_id: Id of its newest instance; it is written only if that is the same still.
        files: For each series, the newest instance with a file: series UID, store key, whether the file is in
            quarantine, in the order of their arrival.
    """

    study_uid: str
    last_id: int
    files: Sequence[tuple[str, str, bool]]


class Reindexing:
    """Finds and writes studies that have to be read again.

    Every method is one transaction. It raises LedgerError while the database is unavailable.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def read_progress(self, level: IndexLevel) -> ReindexProgress:
        """Return how many studies have to be read."""
        with self._database.begin_read() as connection:
            count = int(connection.execute(select(func.count()).select_from(studies)).scalar_one())
            pending = select(func.count()).select_from(studies).where(_PENDING)
            left = int(connection.execute(pending, _others(level)).scalar_one())
            row = connection.execute(select(reindexing)).one()
        return ReindexProgress(count, left, int(row.unreadable) if row.level == level else 0)

    def is_pending(self, level: IndexLevel) -> bool:
        """Whether there is a study to read."""
        with self._database.begin_read() as connection:
            query = select(studies.c.study_uid).where(_PENDING).limit(1)
            return connection.execute(query, _others(level)).first() is not None

    def take_lease(self, owner: str, seconds: float) -> bool:
        """Take the lease, or renew it; False while another process holds it."""
        now = self._database.unix_ms()
        parameters = {"by": owner, "now": now, "until": now + round(seconds * 1000)}
        with self._database.begin_write() as connection:
            return bool(connection.execute(_TAKE, parameters).rowcount)

    def release_lease(self, owner: str) -> None:
        """Let other processes go on."""
        with self._database.begin_write() as connection:
            connection.execute(_RELEASE, {"by": owner})

    def remove_attributes(self, level: IndexLevel) -> int:
        """Remove attributes above the level from the next studies without reading; return their number."""
        if level == "full":
            return 0
        # From "full" to "identifiers" only names are removed. With "none" all attributes are removed.
        richer = ("full",) if level == "identifiers" else ("", "identifiers", "full")
        names = _NAMES if level == "identifiers" else (*PATIENT_COLUMNS, *STUDY_COLUMNS)
        values: dict[str, Any] = dict.fromkeys(names, "")
        if level == "none":
            values["patients_differ"] = False
        query = select(studies.c.study_uid).where(studies.c.indexed_as.in_(richer)).limit(CHUNK)
        with self._database.begin_read() as connection:
            if connection.execute(query).first() is None:
                return 0
        with self._database.begin_write() as connection:
            uids = connection.execute(query).scalars().all()
            if uids:
                connection.execute(
                    update(studies).where(studies.c.study_uid.in_(uids)).values(**values, indexed_as=level)
                )
                if level == "none":
                    blank: dict[str, Any] = dict.fromkeys(SERIES_COLUMNS, "")
                    connection.execute(
                        update(series).where(series.c.study_uid.in_(uids)).values(**blank, series_number=None)
                    )
        return len(uids)

    def find_pending_study(self, level: IndexLevel) -> PendingStudy | None:
        """Return a study to read; None if all are read."""
        with self._database.begin_read() as connection:
            query = select(studies.c.study_uid, studies.c.last_id).where(_PENDING).limit(1)
            found = connection.execute(query, _others(level)).first()
            return None if found is None else _find_files(connection, found.study_uid, found.last_id)

    def write_study(
        self,
        pending: PendingStudy,
        level: IndexLevel,
        found: Mapping[str, StudyAttributes],
        unreadable: int,
    ) -> bool:
        """Write the attributes that were read of a study.

        Args:
            pending: The study.
            level: The index level of that reading.
            found: Attributes by series UID, in the order of the arrival of their instances. A series whose
                file cannot be read is missing, and keeps its values in the index.
            unreadable: Number of files that could not be read.

        Returns:
            Whether it was written. It is not if an instance arrived meanwhile.
        """
        if found:
            values = merge_attributes(found.values())
            values["patients_differ"] = or_(studies.c.patients_differ, values["patients_differ"])
        else:
            values = dict.fromkeys(_NAMES, "") if level == "identifiers" else {}
        with self._database.begin_write() as connection:
            is_same = and_(studies.c.study_uid == pending.study_uid, studies.c.last_id == pending.last_id)
            changed = connection.execute(update(studies).where(is_same).values(**values, indexed_as=level))
            if not changed.rowcount:
                return False
            for series_uid, attributes in sorted(found.items()):
                write_series(connection, pending.study_uid, series_uid, attributes)
            if unreadable:
                _count_unreadable(connection, level, unreadable)
        return True


def _others(level: IndexLevel) -> dict[str, Iterable[str]]:
    return {"others": [each for each in _LEVELS if each != level]}


def _find_files(connection: Connection, study_uid: str, last_id: int) -> PendingStudy:
    columns = instances.c
    newest = (
        select(func.max(columns.id))
        .where(columns.study_uid == study_uid, columns.state.concat("").in_(_HAS_ATTRIBUTES))
        .group_by(columns.series_uid, columns.state)
    )
    query = (
        select(columns.series_uid, columns.store_key, columns.state)
        .where(columns.id.in_(newest))
        .order_by(columns.id)
    )
    files: dict[str, tuple[str, str, bool]] = {}
    aside: dict[str, tuple[str, str, bool]] = {}
    for row in connection.execute(query):
        is_aside = row.state == InstanceState.QUARANTINED.value
        chosen = aside if is_aside else files
        # The newest one is last, also in the order.
        chosen.pop(row.series_uid, None)
        chosen[row.series_uid] = row.series_uid, row.store_key, is_aside
    # An instance in quarantine may belong to another patient. It counts if there is no other one.
    return PendingStudy(study_uid, last_id, tuple((files or aside).values()))


def _count_unreadable(connection: Connection, level: IndexLevel, count: int) -> None:
    same = update(reindexing).where(reindexing.c.level == level)
    if not connection.execute(same.values(unreadable=reindexing.c.unreadable + count)).rowcount:
        connection.execute(update(reindexing).values(level=level, unreadable=count))
