"""The study index: rows of `studies`, `series` and `study_senders`, written with the rows of `instances`.

Every study with an instance row has a row here. Only its attributes depend on `[ledger] index`. The newest
stored instance decides about an attribute, unless it has no value for it. Attributes of the patient change
together. If two patients share a Study Instance UID, the row has the newest one and says that they differ. A
quarantined instance gives attributes only to a study that is new.

Statements come last in their transaction, and rows are written in the order of their UIDs. Two workers that
record one study wait for each other, and never in a circle.
"""

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

from sqlalchemy import BindParameter, Connection, and_, bindparam, case, delete, exists, or_, select, update

from ingest.dicom.study_attributes import StudyAttributes
from ingest.ledger.database import INSERT_BY_DIALECT
from ingest.ledger.records import InstanceState, NewInstance
from ingest.ledger.row_values import clean_value
from ingest.ledger.schema import group_studies, instances, series, studies, study_senders

SERIES_UID_MAX: Final = 128
"""A longer Series Instance UID is none (PS3.5 9.1: 64 characters), and PostgreSQL could not index it."""
CALLING_MAX: Final = 64

WRITTEN_SECONDS: Final = 30.0
WRITTEN_MAX: Final = 10_000

_STORED: Final = frozenset({InstanceState.STORED, InstanceState.VARIANT})
PATIENT_COLUMNS: Final = (
    "patient_id",
    "issuer_of_patient_id",
    "patient_name",
    "name_alphabetic",
    "name_ideographic",
    "name_phonetic",
)
STUDY_COLUMNS: Final = (
    "accession_number",
    "study_date",
    "study_time",
    "study_description",
    "institution_name",
)
SERIES_COLUMNS: Final = ("modality", "series_description", "station_name", "institution_name", "body_part")


def _upsert_studies(dialect: str, *, takes_attributes: bool) -> Any:
    statement = INSERT_BY_DIALECT[dialect](studies)
    new, old = statement.excluded, studies.c
    changes: dict[str, Any] = {
        "first_at": case((new.first_at < old.first_at, new.first_at), else_=old.first_at),
        "last_at": case((new.last_at > old.last_at, new.last_at), else_=old.last_at),
        "first_id": case((new.first_id < old.first_id, new.first_id), else_=old.first_id),
        "last_id": case((new.last_id > old.last_id, new.last_id), else_=old.last_id),
        "last_stored_at": case(
            (new.last_stored_at > old.last_stored_at, new.last_stored_at), else_=old.last_stored_at
        ),
        "calling_ae": new.calling_ae,
    }
    if takes_attributes:
        has_patient = or_(new.patient_id != "", new.patient_name != "")
        differs = and_(
            old.patient_id != "",
            new.patient_id != "",
            or_(
                old.patient_id != new.patient_id,
                and_(
                    old.issuer_of_patient_id != "",
                    new.issuer_of_patient_id != "",
                    old.issuer_of_patient_id != new.issuer_of_patient_id,
                ),
            ),
        )
        changes["patients_differ"] = or_(old.patients_differ, differs)
        changes |= {name: case((has_patient, new[name]), else_=old[name]) for name in PATIENT_COLUMNS}
        changes |= {name: case((new[name] != "", new[name]), else_=old[name]) for name in STUDY_COLUMNS}
        # A worker with an older configuration is still running. The study has to be read once more.
        changes["indexed_as"] = case((new.indexed_as == old.indexed_as, old.indexed_as), else_="")
    return statement.on_conflict_do_update(index_elements=["study_uid"], set_=changes)


def _upsert_series(dialect: str) -> Any:
    statement = INSERT_BY_DIALECT[dialect](series)
    new, old = statement.excluded, series.c
    changes: dict[str, Any] = {
        name: case((new[name] != "", new[name]), else_=old[name]) for name in SERIES_COLUMNS
    }
    changes["series_number"] = case(
        (new.series_number.is_not(None), new.series_number), else_=old.series_number
    )
    return statement.on_conflict_do_update(
        index_elements=["study_uid", "series_uid"],
        set_=changes,
        where=or_(*(old[name].is_distinct_from(changes[name]) for name in changes)),
    )


def _replace_series(dialect: str) -> Any:
    statement = INSERT_BY_DIALECT[dialect](series)
    changes = {name: statement.excluded[name] for name in (*SERIES_COLUMNS, "series_number")}
    return statement.on_conflict_do_update(index_elements=["study_uid", "series_uid"], set_=changes)


_UPSERT_STUDIES: Final = {
    (dialect, takes): _upsert_studies(dialect, takes_attributes=takes)
    for dialect in INSERT_BY_DIALECT
    for takes in (False, True)
}
_UPSERT_SERIES: Final = {dialect: _upsert_series(dialect) for dialect in INSERT_BY_DIALECT}
_ADD_SERIES: Final = {name: make(series).on_conflict_do_nothing() for name, make in INSERT_BY_DIALECT.items()}
_TIMES: Final = ("first_at", "last_at", "first_id", "last_id", "last_stored_at")


def _limit(name: str) -> Any:
    """Return the smaller of old and new value for the first times and ids, otherwise the greater one."""
    old, new = studies.c[name], bindparam(f"new_{name}", type_=studies.c[name].type)
    is_better = new < old if name.startswith("first") else new > old
    return case((is_better, new), else_=old)


_TOUCH: Final = (
    update(studies)
    .where(studies.c.study_uid == bindparam("new_study_uid"))
    .values(**{name: _limit(name) for name in _TIMES}, calling_ae=bindparam("new_calling_ae"))
)
_MISSING: Final = object()
_REPLACE_SERIES: Final = {dialect: _replace_series(dialect) for dialect in INSERT_BY_DIALECT}
_ADD_SENDERS: Final = {
    name: make(study_senders).on_conflict_do_nothing() for name, make in INSERT_BY_DIALECT.items()
}
_UIDS: Final[BindParameter[Any]] = bindparam("uids", expanding=True)
_LOCK_STUDIES: Final = (
    select(studies.c.study_uid)
    .where(studies.c.study_uid.in_(_UIDS))
    .order_by(studies.c.study_uid)
    .with_for_update()
)
_FORGET: Final = (
    delete(series).where(
        series.c.study_uid.in_(_UIDS),
        ~exists().where(
            instances.c.study_uid == series.c.study_uid, instances.c.series_uid == series.c.series_uid
        ),
    ),
    delete(study_senders).where(
        study_senders.c.study_uid.in_(_UIDS),
        ~exists().where(instances.c.study_uid == study_senders.c.study_uid),
    ),
    delete(group_studies).where(
        group_studies.c.study_uid.in_(_UIDS),
        ~exists().where(instances.c.study_uid == group_studies.c.study_uid),
    ),
    delete(studies).where(
        studies.c.study_uid.in_(_UIDS), ~exists().where(instances.c.study_uid == studies.c.study_uid)
    ),
)


@dataclass(slots=True)
class _Group:
    """New instances of one series that came from one sender and say the same.

    Attributes:
        is_sound: Whether they are stored and have attributes, which then count.
    """

    study_uid: str
    series_uid: str
    calling_ae: str
    attributes: StudyAttributes | None
    is_sound: bool
    first_at: int
    last_at: int
    first_id: int
    last_id: int
    last_stored_at: int = 0

    @property
    def key(self) -> tuple[str, str, str, bool]:
        """The identity of its rows."""
        return self.study_uid, self.series_uid, self.calling_ae, self.is_sound


class WrittenStudies:
    """Rows that this process wrote a moment ago. Their next instance changes only times and ids.

    Only committed rows count. The time is far shorter than any after which rows of instances are deleted.
    """

    def __init__(self) -> None:
        self._attributes: dict[tuple[str, str, str, bool], StudyAttributes | None] = {}
        self._until = 0.0

    def has(self, group: _Group) -> bool:
        """Whether the rows of a group were written with the same attributes."""
        if time.monotonic() >= self._until:
            self._attributes.clear()
            self._until = time.monotonic() + WRITTEN_SECONDS
        # The reader returns the same object for the same values.
        return self._attributes.get(group.key, _MISSING) is group.attributes

    def add(self, groups: Iterable[_Group]) -> None:
        """Note rows that are committed."""
        if len(self._attributes) > WRITTEN_MAX:
            self._attributes.clear()
        self._attributes.update({group.key: group.attributes for group in groups})


def index_studies(
    connection: Connection, recorded: Sequence[tuple[int, NewInstance]], written: WrittenStudies | None = None
) -> list[_Group]:
    """Write the rows of studies and series for new rows of `instances`, in the same transaction.

    Args:
        connection: The transaction.
        recorded: The new rows, with their ids.
        written: What this process wrote before.

    Returns:
        What is written when the transaction commits, for `WrittenStudies.add`.
    """
    groups = _group_rows(recorded)
    by_study: dict[str, list[_Group]] = {}
    for group in groups:
        by_study.setdefault(group.study_uid, []).append(group)
    touched = {
        uid: of
        for uid, of in by_study.items()
        if written is not None and all(written.has(group) for group in of)
    }
    # Another process may have deleted a study. Then all are written anew.
    if touched and not _touch_studies(connection, touched):
        touched = {}
    new = [group for group in groups if group.study_uid not in touched]
    if new:
        _write_groups(connection, new)
    return groups


def _group_rows(recorded: Sequence[tuple[int, NewInstance]]) -> list[_Group]:
    """Return the groups of new rows, the one with the newest instance last."""
    groups: dict[tuple[str, str, str, bool, int], _Group] = {}
    for number, row in recorded:
        attributes, at = row.attributes, row.received_at
        is_stored = row.state in _STORED
        key = row.study_uid, row.series_uid, row.calling_ae, is_stored, id(attributes)
        group = groups.get(key)
        if group is None:
            group = groups[key] = _Group(
                clean_value(row.study_uid),
                clean_value(row.series_uid),
                clean_value(row.calling_ae)[:CALLING_MAX],
                attributes,
                is_stored and attributes is not None,
                at,
                at,
                number,
                number,
            )
        else:
            group.first_at = min(group.first_at, at)
            group.last_at = max(group.last_at, at)
            group.first_id = min(group.first_id, number)
            group.last_id = max(group.last_id, number)
        if is_stored and row.stored_at > group.last_stored_at:
            group.last_stored_at = row.stored_at
    return sorted(groups.values(), key=lambda group: group.last_id)


def _touch_studies(connection: Connection, by_study: Mapping[str, Sequence[_Group]]) -> bool:
    """Write only times, ids and sender of studies; return False if one of them is not there."""
    values = []
    for uid in sorted(by_study):
        study = _new_study(uid, by_study[uid][0])
        for group in by_study[uid]:
            _add_times(study, group)
        values.append({f"new_{name}": study[name] for name in ("study_uid", *_TIMES, "calling_ae")})
    return connection.execute(_TOUCH, values).rowcount == len(values)


def _write_groups(connection: Connection, groups: Sequence[_Group]) -> None:
    dialect = connection.dialect.name
    of_studies: dict[str, dict[str, Any]] = {}
    of_series: dict[tuple[str, str], dict[str, Any]] = {}
    sound: set[str] = set()
    sound_series: set[tuple[str, str]] = set()
    for group in groups:
        uid, attributes = group.study_uid, group.attributes
        study = of_studies.get(uid)
        if study is None:
            study = of_studies[uid] = _new_study(uid, group)
        _add_times(study, group)
        if attributes is not None and (group.is_sound or uid not in sound):
            _take_attributes(study, attributes)
        key = uid, group.series_uid
        if len(group.series_uid) <= SERIES_UID_MAX:
            of_this = of_series.setdefault(key, _new_series(key))
            if attributes is not None and (group.is_sound or key not in sound_series):
                _take_series_attributes(of_this, attributes)
        if group.is_sound:
            sound.add(uid)
            sound_series.add(key)
    _write_studies(connection, dialect, of_studies, sound)
    _write_series(connection, dialect, of_series, sound_series)
    senders = sorted({(group.study_uid, group.calling_ae) for group in groups})
    values = [{"study_uid": uid, "calling_ae": title} for uid, title in senders]
    connection.execute(_ADD_SENDERS[dialect], values)


def merge_attributes(parts: Iterable[StudyAttributes]) -> dict[str, Any]:
    """Return the attribute columns of a study whose instances have these attributes, the oldest first."""
    values: dict[str, Any] = dict.fromkeys((*PATIENT_COLUMNS, *STUDY_COLUMNS), "")
    values["patients_differ"] = False
    for part in parts:
        _take_attributes(values, part)
    return values


def write_series(
    connection: Connection, study_uid: str, series_uid: str, attributes: StudyAttributes
) -> None:
    """Write the row of a series that has exactly these attributes."""
    if len(series_uid) > SERIES_UID_MAX:
        return
    values = _new_series((study_uid, series_uid))
    _take_series_attributes(values, attributes)
    connection.execute(_REPLACE_SERIES[connection.dialect.name], [values])


def forget_studies(connection: Connection, uids: Collection[str]) -> None:
    """Delete the rows of those studies and series that have no instance row any more."""
    if not uids:
        return
    parameters = {"uids": sorted(uids)}
    if connection.dialect.name == "postgresql":
        # Another transaction may be recording an instance of the study. The next statements see it then.
        connection.execute(_LOCK_STUDIES, parameters)
    for statement in _FORGET:
        connection.execute(statement, parameters)


def _new_study(study_uid: str, group: _Group) -> dict[str, Any]:
    return {
        **dict.fromkeys((*PATIENT_COLUMNS, *STUDY_COLUMNS), ""),
        **{name: getattr(group, name) for name in _TIMES},
        "study_uid": study_uid,
        "calling_ae": group.calling_ae,
        "patients_differ": False,
        "indexed_as": group.attributes.level if group.attributes else "none",
    }


def _add_times(values: dict[str, Any], group: _Group) -> None:
    values["first_at"] = min(values["first_at"], group.first_at)
    values["last_at"] = max(values["last_at"], group.last_at)
    values["first_id"] = min(values["first_id"], group.first_id)
    values["last_stored_at"] = max(values["last_stored_at"], group.last_stored_at)
    if group.last_id >= values["last_id"]:
        values["last_id"] = group.last_id
        values["calling_ae"] = group.calling_ae


def _take_attributes(values: dict[str, Any], attributes: StudyAttributes) -> None:
    """Put the attributes of a newer instance into the values of a study, as the upsert does it."""
    if attributes.patient_id or attributes.patient_name:
        before = values["patient_id"]
        if before and attributes.patient_id and before != attributes.patient_id:
            values["patients_differ"] = True
        keys = attributes.name_keys
        values |= {name: getattr(attributes, name) for name in PATIENT_COLUMNS[:3]}
        values |= dict(zip(PATIENT_COLUMNS[3:], keys, strict=True))
    values |= {name: text for name in STUDY_COLUMNS if (text := getattr(attributes, name))}


def _write_studies(
    connection: Connection, dialect: str, of_studies: Mapping[str, dict[str, Any]], sound: Collection[str]
) -> None:
    for takes, uids in groupby(sorted(of_studies), key=sound.__contains__):
        connection.execute(_UPSERT_STUDIES[dialect, takes], [of_studies[uid] for uid in uids])


def _write_series(
    connection: Connection,
    dialect: str,
    of_series: Mapping[tuple[str, str], dict[str, Any]],
    sound: Collection[tuple[str, str]],
) -> None:
    for takes, keys in groupby(sorted(of_series), key=sound.__contains__):
        statement = _UPSERT_SERIES[dialect] if takes else _ADD_SERIES[dialect]
        connection.execute(statement, [of_series[key] for key in keys])


def _new_series(key: tuple[str, str]) -> dict[str, Any]:
    return {
        "study_uid": key[0],
        "series_uid": key[1],
        "series_number": None,
        **dict.fromkeys(SERIES_COLUMNS, ""),
    }


def _take_series_attributes(values: dict[str, Any], attributes: StudyAttributes) -> None:
    values |= {name: text for name in SERIES_COLUMNS if (text := getattr(attributes, name))}
    if attributes.series_number is not None:
        values["series_number"] = attributes.series_number
