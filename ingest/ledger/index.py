"""The instance index: lists instances and studies, the newest first.

Every list is read by a range of an index, however many rows the ledger has:

- A condition that only a study knows selects studies first. An instance is never newer than the newest one of
  its study, so the studies are read in the order of their newest instances until there are enough.
- A condition about deliveries that matches few of them selects their instances first. If it matches many, the
  newest ones are found soon.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, and_, exists, func, or_, select, tuple_

from ingest.ledger.database import Database
from ingest.ledger.instances import CHUNK, to_instance
from ingest.ledger.records import DeliveryState, Instance, InstanceState
from ingest.ledger.row_values import clean_value
from ingest.ledger.schema import TIMES, deliveries, instances, series, studies, study_senders
from ingest.ledger.study_filter import StudyFilter

_T = TypeVar("_T")

RARE: Final = 1000
"""Rows of a condition that are read to find out whether it is rare."""

RARE_DELIVERIES: Final = 20_000
"""The same for deliveries. More are read, because each study has many."""

FIRST_STUDIES: Final = 10
"""Studies whose instances are read first. Each further read has twice as many."""

StudySort = Literal["received", "date", "name", "patient_id", "accession"]

# The concatenation keeps SQLite from the index of `state` when another index is far more selective.
_state: Final = instances.c.state.concat("")
_SORTED_BY: Final = {
    "date": studies.c.study_date,
    "name": studies.c.name_alphabetic,
    "patient_id": studies.c.patient_id,
    "accession": studies.c.accession_number,
}
STUDY_COLUMNS: Final = (
    *("patient_id", "issuer_of_patient_id", "patient_name", "accession_number"),
    *("study_date", "study_time", "study_description", "institution_name", "calling_ae", "patients_differ"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceFilter(StudyFilter):
    """Conditions for instances; a condition that is None does not apply.

    Attributes:
        states: States of the instance.
        calling_ae: AE title of the sender.
        since, until: Time of arrival, in Unix milliseconds; `until` is excluded.
        destination: Name of a destination that the instance has a delivery to.
        delivery_states: States of that delivery, or of any delivery.
    """

    study_uid: str | None = None
    series_uid: str | None = None
    sop_instance_uid: str | None = None
    states: Collection[InstanceState] = ()
    calling_ae: str | None = None
    since: int | None = None
    until: int | None = None
    destination: str | None = None
    delivery_states: Collection[DeliveryState] = ()

    @property
    def asks_for_deliveries(self) -> bool:
        """Whether there is a condition for deliveries."""
        return self.destination is not None or bool(self.delivery_states)

    @property
    def asks_for_studies(self) -> bool:
        """Whether a condition is found by the study index."""
        others = (self.series_uid, self.calling_ae, self.since, self.until)
        return self.needs_index or any(value is not None for value in others)

    @property
    def names_object(self) -> bool:
        """Whether an index of `instances` has the few that match."""
        return self.study_uid is not None or self.sop_instance_uid is not None

    def build_clauses(self) -> list[ColumnElement[bool]]:
        """Return all conditions except those on states, as SQL over `instances`."""
        columns = instances.c
        clauses = [
            column == value
            for column, value in (
                (columns.study_uid, self.study_uid),
                (columns.series_uid, self.series_uid),
                (columns.sop_instance_uid, self.sop_instance_uid),
                (columns.calling_ae, self.calling_ae),
            )
            if value is not None
        ]
        if self.since is not None:
            clauses.append(columns.received_at >= self.since)
        if self.until is not None:
            clauses.append(columns.received_at < self.until)
        if self.asks_for_deliveries:
            clauses.append(
                exists().where(deliveries.c.instance_id == columns.id, *self.build_delivery_clauses())
            )
        return clauses + self.build_membership_clauses()

    def build_delivery_clauses(self) -> list[ColumnElement[bool]]:
        """Return the conditions for deliveries as SQL over `deliveries`."""
        clauses: list[ColumnElement[bool]] = []
        if self.destination is not None:
            clauses.append(deliveries.c.destination == self.destination)
        if self.delivery_states:
            clauses.append(deliveries.c.state.in_([state.value for state in self.delivery_states]))
        return clauses


@dataclass(frozen=True, slots=True)
class FoundInstance:
    """An instance and the states of its deliveries, by destination."""

    instance: Instance
    deliveries: Mapping[str, DeliveryState] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FoundStudy:
    """A study as far as it was received; times are Unix milliseconds.

    Attributes of patient and study come from its newest instance, as far as `[ledger] index` allows.

    Attributes:
        study_uid: Empty for instances without a Study Instance UID.
        instances: Number of stored SOP instances.
        copies: Number of further stored copies (`[store] duplicates = "keep-both"`).
        size: Bytes of both.
        first_at, last_at: Arrival of the first and of the last instance, in any state.
        states: Number of instances by state.
        deliveries: Number of deliveries by state.
        stable: Whether no instance was stored lately.
        calling_ae: Sender of the newest instance.
        modalities: Different modalities of its series.
        patients_differ: Whether instances of different patients came with this Study Instance UID.
    """

    study_uid: str
    instances: int
    size: int
    first_at: int
    last_at: int
    states: Mapping[InstanceState, int]
    deliveries: Mapping[DeliveryState, int]
    stable: bool
    copies: int = 0
    patient_id: str = ""
    issuer_of_patient_id: str = ""
    patient_name: str = ""
    accession_number: str = ""
    study_date: str = ""
    study_time: str = ""
    study_description: str = ""
    institution_name: str = ""
    calling_ae: str = ""
    modalities: tuple[str, ...] = ()
    patients_differ: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundSeries:
    """A series of a study, with the number of its instances by state."""

    series_uid: str
    modality: str
    series_number: int | None
    series_description: str
    station_name: str
    institution_name: str
    body_part: str
    instances: int
    size: int
    states: Mapping[InstanceState, int]


class InstanceIndex:
    """Lists instances and studies.

    Every method is one transaction. It raises LedgerError while the database is unavailable.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def find_instances(
        self, which: InstanceFilter, limit: int = 100, *, before: int | None = None
    ) -> list[FoundInstance]:
        """Return instances that match, the newest first.

        Args:
            which: The conditions.
            limit: Maximum number of instances.
            before: Only ids below this one; the last id of the previous page.
        """
        with self._database.begin_read() as connection:
            if which.asks_for_studies and not which.names_object and _prefers_studies(which):
                ids = _find_by_studies(connection, which, limit, before)
            elif which.asks_for_deliveries and not which.names_object:
                ids = _find_by_deliveries(connection, which, limit, before)
            else:
                ids = [
                    number
                    for query in _select_by_state(which, before)
                    for number in connection.execute(query.limit(limit)).scalars()
                ]
            ids = sorted(ids, reverse=True)[:limit]
            rows = _find_rows(connection, ids)
            states = _find_delivery_states(connection, ids)
        return [FoundInstance(rows[number], states.get(number, {})) for number in ids if number in rows]

    def find_studies(
        self,
        which: InstanceFilter,
        limit: int = 100,
        *,
        lately: int | None = None,
        stable: bool | None = None,
        sort: StudySort = "received",
        ascending: bool = False,
        after: tuple[int, str] | None = None,
    ) -> list[FoundStudy]:
        """Return studies with an instance that matches each condition, in the order of `sort`.

        Args:
            which: Conditions for the instances. The numbers describe the whole study.
            limit: Maximum number of studies.
            lately: A study with an instance that was stored since this time, in Unix milliseconds, is not
                stable. None: all studies are stable.
            stable: Only studies that are stable, or only those that are not; None applies no condition.
            sort: The order: arrival of the last instance, study date, name, patient ID or accession number.
            ascending: Whether the order begins with the smallest.
            after: `last_at` and `study_uid` of the last study of the previous page.
        """
        with self._database.begin_read() as connection:
            clauses = build_study_clauses(connection, which)
            if lately is not None and stable is not None:
                is_growing = studies.c.last_stored_at >= lately
                clauses.append(~is_growing if stable else is_growing)
            elif stable is False:
                return []
            if after is not None:
                clauses.append(_continue_after(connection, sort, after, ascending=ascending))
            query = select_studies(clauses, sort, ascending=ascending).limit(limit)
            rows = {row["study_uid"]: row for row in connection.execute(query).mappings()}
            found = {
                uid: study
                for chunk in _chunks(list(rows))
                for uid, study in _summarize(connection, chunk, rows, lately)
            }
        return [found[uid] for uid in rows if uid in found]

    def find_studies_by_accession(self, accession_number: str, most: int) -> list[str]:
        """Return the UIDs of studies with exactly this accession number, the last received one first."""
        query = (
            select(studies.c.study_uid)
            .where(studies.c.accession_number == clean_value(accession_number))
            .order_by(studies.c.last_at.desc())
            .limit(most)
        )
        with self._database.begin_read() as connection:
            return list(connection.execute(query).scalars())

    def find_studies_of_series(self, series_uid: str, most: int) -> list[str]:
        """Return the UIDs of studies that have a series with this UID."""
        query = select(series.c.study_uid).where(series.c.series_uid == clean_value(series_uid)).limit(most)
        with self._database.begin_read() as connection:
            return list(connection.execute(query).scalars())

    def find_series(self, study_uid: str) -> list[FoundSeries]:
        """Return the series of a study, by number."""
        query = (
            select(
                instances.c.series_uid,
                instances.c.state,
                func.count().label("count"),
                func.sum(instances.c.size).label("size"),
            )
            .where(instances.c.study_uid == study_uid)
            .group_by(instances.c.series_uid, instances.c.state)
        )
        with self._database.begin_read() as connection:
            counted = connection.execute(query).all()
            described = {
                row["series_uid"]: row
                for row in connection.execute(
                    select(series).where(series.c.study_uid == study_uid)
                ).mappings()
            }
        states: dict[str, dict[InstanceState, tuple[int, int]]] = {}
        for row in counted:
            states.setdefault(row.series_uid, {})[InstanceState(row.state)] = int(row[2]), int(row[3])
        found = [_make_series(uid, described.get(uid), of) for uid, of in states.items()]
        return sorted(
            found, key=lambda one: (one.series_number is None, one.series_number or 0, one.series_uid)
        )

    def count_deliveries(self, study_uid: str) -> dict[str, dict[str, int]]:
        """Return the number of deliveries of a study, by destination and state."""
        columns = deliveries.c
        query = (
            select(columns.destination, columns.state, func.count())
            .join(instances, instances.c.id == columns.instance_id)
            .where(instances.c.study_uid == study_uid)
            .group_by(columns.destination, columns.state)
            .order_by(columns.destination, columns.state)
        )
        found: dict[str, dict[str, int]] = {}
        with self._database.begin_read() as connection:
            for destination, state, count in connection.execute(query):
                found.setdefault(destination, {})[state] = count
        return found


# --- instances


def _select_by_state(which: InstanceFilter, before: int | None) -> Iterator[Select[Any]]:
    """Yield one query for each state. An index has the newest rows of one state, but not those of several."""
    query = select(instances.c.id).where(*which.build_clauses()).order_by(instances.c.id.desc())
    if before is not None:
        query = query.where(instances.c.id < before)
    if not which.states:
        yield query
    elif which.study_uid is None and which.sop_instance_uid is None:
        for state in which.states:
            yield query.where(instances.c.state == state.value)
    else:
        yield query.where(_state.in_([state.value for state in which.states]))


def _prefers_studies(which: InstanceFilter) -> bool:
    """Whether studies are read first, and not deliveries or the instances of a state."""
    return which.names_patient_or_order or not which.asks_for_deliveries


def _find_by_studies(
    connection: Connection, which: InstanceFilter, limit: int, before: int | None
) -> list[int]:
    """Return the ids of the newest matching instances, from the studies with the newest instances."""
    clauses = build_study_clauses(connection, which)
    conditions = which.build_clauses()
    if which.states:
        conditions.append(_state.in_([state.value for state in which.states]))
    if before is not None:
        clauses.append(studies.c.first_id < before)
        conditions.append(instances.c.id < before)
    # The sum keeps both databases from a walk through all instances in the order of their ids.
    query = select(instances.c.id).where(*conditions).order_by((instances.c.id + 0).desc()).limit(limit)
    newest = select(studies.c.study_uid, studies.c.last_id).where(*clauses).order_by(studies.c.last_id.desc())
    found: list[int] = []
    last: int | None = None
    size = FIRST_STUDIES
    while True:
        page = connection.execute(
            (newest if last is None else newest.where(studies.c.last_id < last)).limit(size)
        ).all()
        if page:
            uids = [row.study_uid for row in page]
            found += connection.execute(query.where(instances.c.study_uid.in_(uids))).scalars()
            found = sorted(found, reverse=True)[:limit]
            last = page[-1].last_id
        if len(page) < size or (len(found) == limit and last is not None and found[-1] > last):
            return found
        size = min(2 * size, CHUNK)


def _find_by_deliveries(
    connection: Connection, which: InstanceFilter, limit: int, before: int | None
) -> list[int]:
    """Return the ids of the newest matching instances, from the deliveries that match."""
    pairs = _list_delivery_pairs(connection, which)
    conditions = which.build_clauses()
    if which.states:
        conditions.append(_state.in_([state.value for state in which.states]))
    found: list[int] = []
    size = max(min(limit, CHUNK), 100)
    while len(found) < limit:
        ids: set[int] = set()
        for destination, state in pairs:
            for of_time in TIMES:
                query = _select_delivered(destination, state, of_time)
                if before is not None:
                    query = query.where(deliveries.c.instance_id < before)
                ids.update(connection.execute(query.limit(size)).scalars())
        newest = sorted(ids, reverse=True)[:size]
        if not newest:
            break
        query = select(instances.c.id).where(instances.c.id.in_(newest), *conditions)
        found += connection.execute(query).scalars()
        before = newest[-1]
    return sorted(found, reverse=True)[:limit]


def _select_delivered(destination: str, state: DeliveryState, of_time: ColumnElement[bool]) -> Select[Any]:
    """Select instance ids by the index of due deliveries, the newest first."""
    columns = deliveries.c
    return (
        select(columns.instance_id)
        .where(columns.destination == destination, columns.state == state.value, of_time)
        .order_by(columns.instance_id.desc())
    )


def _list_delivery_pairs(connection: Connection, which: InstanceFilter) -> list[tuple[str, DeliveryState]]:
    """Return the pairs of destination and state that a filter asks for. An index has those of each pair."""
    names = [which.destination] if which.destination is not None else list_destinations(connection)
    return [(name, state) for name in names for state in which.delivery_states or tuple(DeliveryState)]


def list_destinations(connection: Connection) -> list[str]:
    """Return the destinations that have deliveries. Each step reads one entry of an index."""
    names: list[str] = []
    query = select(func.min(deliveries.c.destination))
    while name := connection.execute(
        query.where(deliveries.c.destination > names[-1]) if names else query
    ).scalar():
        names.append(name)
    return names


def _find_rows(connection: Connection, ids: Sequence[int]) -> dict[int, Instance]:
    return {
        row["id"]: to_instance(row)
        for chunk in _chunks(ids)
        for row in connection.execute(select(instances).where(instances.c.id.in_(chunk))).mappings()
    }


def _find_delivery_states(connection: Connection, ids: Sequence[int]) -> dict[int, dict[str, DeliveryState]]:
    columns = deliveries.c
    found: dict[int, dict[str, DeliveryState]] = {}
    for chunk in _chunks(ids):
        query = (
            select(columns.instance_id, columns.destination, columns.state)
            .where(columns.instance_id.in_(chunk))
            .order_by(columns.instance_id, columns.destination)
        )
        for number, destination, state in connection.execute(query):
            found.setdefault(number, {})[destination] = DeliveryState(state)
    return found


# --- studies


def select_studies(
    clauses: Sequence[ColumnElement[bool]], sort: StudySort = "received", *, ascending: bool = False
) -> Select[Any]:
    """Select studies in an order that an index has."""
    order = _list_sort_columns(sort)
    return (
        select(studies).where(*clauses).order_by(*(one.asc() if ascending else one.desc() for one in order))
    )


def _list_sort_columns(sort: StudySort) -> list[ColumnElement[Any]]:
    by = [] if sort == "received" else [_SORTED_BY[sort]]
    return [*by, studies.c.last_at, studies.c.study_uid]


def _continue_after(
    connection: Connection, sort: StudySort, after: tuple[int, str], *, ascending: bool
) -> ColumnElement[bool]:
    """Return the condition that selects the studies behind one, in the order of `sort`.

    The value of the column is asked for here, so that no page has to know it: it may be personal data.
    """
    columns = _list_sort_columns(sort)
    values: list[Any] = list(after)
    if sort != "received":
        query = select(_SORTED_BY[sort]).where(studies.c.study_uid == after[1])
        values.insert(0, connection.execute(query).scalar() or "")
    ours, theirs = tuple_(*columns), tuple_(*values)
    return ours > theirs if ascending else ours < theirs


def build_study_clauses(connection: Connection, which: InstanceFilter) -> list[ColumnElement[bool]]:
    """Return the conditions as SQL over `studies`: each one holds for an instance of the study."""
    clauses = which.build_attribute_clauses()
    of_study = studies.c.study_uid
    if which.study_uid is not None:
        clauses.append(of_study == which.study_uid)
    if which.series_uid is not None:
        clauses.append(
            of_study.in_(select(series.c.study_uid).where(series.c.series_uid == which.series_uid))
        )
    if which.sop_instance_uid is not None:
        objects = select(instances.c.study_uid).where(instances.c.sop_instance_uid == which.sop_instance_uid)
        clauses.append(of_study.in_(objects))
    clauses += _build_time_clauses(which)
    for table, column, value in (
        (series, series.c.modality, which.modality),
        (study_senders, study_senders.c.calling_ae, which.calling_ae),
    ):
        if value is not None:
            matching = select(table.c.study_uid).where(column == value)
            common = exists().where(table.c.study_uid == of_study, column == value)
            clauses.append(_choose(connection, matching, common))
    if which.states:
        clauses.append(_build_state_clause(connection, which))
    if which.asks_for_deliveries:
        clauses.append(_build_delivery_clause(connection, which))
    return clauses


def _choose(
    connection: Connection, matching: Select[Any], common: ColumnElement[bool]
) -> ColumnElement[bool]:
    """Return the condition that finds few studies by their UIDs, and many by examining each."""
    uids = connection.execute(matching.limit(RARE + 1)).scalars().all()
    return studies.c.study_uid.in_(set(uids)) if len(uids) <= RARE else common


def _build_time_clauses(which: InstanceFilter) -> list[ColumnElement[bool]]:
    since, until = which.since, which.until
    clauses: list[ColumnElement[bool]] = []
    if since is not None:
        clauses.append(studies.c.last_at >= since)
    if until is not None:
        clauses.append(studies.c.first_at < until)
    if since is not None and until is not None:
        within = exists().where(
            instances.c.study_uid == studies.c.study_uid,
            instances.c.received_at >= since,
            instances.c.received_at < until,
        )
        clauses.append(or_(studies.c.last_at < until, studies.c.first_at >= since, within))
    return clauses


def _build_state_clause(connection: Connection, which: InstanceFilter) -> ColumnElement[bool]:
    common = exists().where(
        instances.c.study_uid == studies.c.study_uid, _state.in_([state.value for state in which.states])
    )
    parts = [
        _choose(connection, select(instances.c.study_uid).where(instances.c.state == state.value), common)
        for state in which.states
    ]
    return or_(*parts)


def _build_delivery_clause(connection: Connection, which: InstanceFilter) -> ColumnElement[bool]:
    ids: set[int] = set()
    for destination, state in _list_delivery_pairs(connection, which):
        for of_time in TIMES:
            query = _select_delivered(destination, state, of_time).limit(RARE_DELIVERIES + 1)
            ids.update(connection.execute(query).scalars())
    if len(ids) <= RARE_DELIVERIES:
        return studies.c.study_uid.in_(_find_study_uids(connection, list(ids)))
    conditions = [deliveries.c.instance_id == instances.c.id, *which.build_delivery_clauses()]
    if connection.dialect.name == "sqlite":
        # The concatenations keep SQLite from reading all deliveries of the state again for each study.
        conditions = [deliveries.c.instance_id == instances.c.id]
        if which.destination is not None:
            conditions.append(deliveries.c.destination.concat("") == which.destination)
        if which.delivery_states:
            states = [state.value for state in which.delivery_states]
            conditions.append(deliveries.c.state.concat("").in_(states))
    common = exists().where(instances.c.study_uid == studies.c.study_uid, *conditions)
    # Studies that began later have no such delivery, and need no closer look.
    return and_(studies.c.first_id <= max(ids), common)


def _find_study_uids(connection: Connection, ids: Sequence[int]) -> set[str]:
    return {
        uid
        for chunk in _chunks(ids)
        for uid in connection.execute(
            select(instances.c.study_uid).where(instances.c.id.in_(chunk)).distinct()
        ).scalars()
    }


def _summarize(
    connection: Connection, uids: Sequence[str], rows: Mapping[str, RowMapping], lately: int | None
) -> Iterator[tuple[str, FoundStudy]]:
    columns = instances.c
    of_states: dict[str, dict[InstanceState, tuple[int, int, int, int, int]]] = {uid: {} for uid in uids}
    by_state = select(
        columns.study_uid,
        columns.state,
        func.count(),
        func.sum(columns.size),
        func.min(columns.received_at),
        func.max(columns.received_at),
        func.count(columns.sop_instance_uid.distinct()),
    ).where(columns.study_uid.in_(uids))
    for uid, state, *values in connection.execute(by_state.group_by(columns.study_uid, columns.state)):
        count, size, first, last, different = map(int, values)
        of_states[uid][InstanceState(state)] = count, size, first, last, different
    of_deliveries: dict[str, dict[DeliveryState, int]] = {}
    by_delivery = (
        select(columns.study_uid, deliveries.c.state, func.count())
        .join(deliveries, deliveries.c.instance_id == columns.id)
        .where(columns.study_uid.in_(uids))
        .group_by(columns.study_uid, deliveries.c.state)
    )
    for uid, state, count in connection.execute(by_delivery):
        of_deliveries.setdefault(uid, {})[DeliveryState(state)] = count
    modalities = _find_modalities(connection, uids)
    for uid, states in of_states.items():
        if not states:
            continue
        count, size, _, _, different = states.get(InstanceState.STORED, (0, 0, 0, 0, 0))
        row = rows[uid]
        yield (
            uid,
            FoundStudy(
                uid,
                different,
                size,
                min(first for _, _, first, _, _ in states.values()),
                max(last for _, _, _, last, _ in states.values()),
                {state: values[0] for state, values in states.items()},
                of_deliveries.get(uid, {}),
                lately is None or row["last_stored_at"] < lately,
                count - different,
                modalities=modalities.get(uid, ()),
                **{name: row[name] for name in STUDY_COLUMNS},
            ),
        )


def _find_modalities(connection: Connection, uids: Sequence[str]) -> dict[str, tuple[str, ...]]:
    query = (
        select(series.c.study_uid, series.c.modality)
        .where(series.c.study_uid.in_(uids), series.c.modality != "")
        .distinct()
        .order_by(series.c.study_uid, series.c.modality)
    )
    found: dict[str, tuple[str, ...]] = {}
    for uid, modality in connection.execute(query):
        found[uid] = (*found.get(uid, ()), modality)
    return found


def _make_series(
    uid: str, row: RowMapping | None, states: Mapping[InstanceState, tuple[int, int]]
) -> FoundSeries:
    names = ("modality", "series_description", "station_name", "institution_name", "body_part")
    count, size = states.get(InstanceState.STORED, (0, 0))
    return FoundSeries(
        series_uid=uid,
        series_number=row["series_number"] if row else None,
        instances=count,
        size=size,
        states={state: values[0] for state, values in states.items()},
        **{name: row[name] if row else "" for name in names},
    )


def _chunks(values: Sequence[_T]) -> Iterator[Sequence[_T]]:
    for start in range(0, len(values), CHUNK):
        yield values[start : start + CHUNK]
