"""Lists of studies in several orders, with numbers of their instances and deliveries, and of their series."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    Select,
    and_,
    case,
    exists,
    func,
    literal,
    or_,
    select,
    tuple_,
)

from ingest.ledger.database import Database
from ingest.ledger.instance_filter import InstanceFilter
from ingest.ledger.newest_first import (
    is_one_of,
    list_pairs,
    read_if_few,
    select_delivered,
    split_chunks,
)
from ingest.ledger.receptions import find_completion_states
from ingest.ledger.records import DeliveryState, InstanceState
from ingest.ledger.row_counts import count_instances
from ingest.ledger.row_values import clean_value
from ingest.ledger.schema import deliveries, instances, series, studies, study_senders

RARE: Final = 20_000
"""Studies of a condition that are named, and not examined in the order of the list."""

RARE_ROWS: Final = 20_000
"""The same for instances and deliveries, whose studies are named."""

EXAMINED: Final = 32
"""Deliveries that are examined before all instances of a study are."""

StudySort = Literal["received", "date", "name", "patient_id", "accession"]

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
        completion: "receiving", "complete", or "reopened" by an instance after a completion; empty if its
            completion is not judged.
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
    completion: str = ""


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


class StudyLists:
    """Lists studies and their series.

    Every method is one transaction. It raises LedgerError while the database is unavailable.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

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
                for chunk in split_chunks(list(rows))
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
    named = which.select_named_studies()
    if named is not None:
        uids = read_if_few(connection, named, RARE)
        if uids is not None:
            clauses.append(is_one_of(connection, of_study, uids))
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
    uids = read_if_few(connection, matching, RARE)
    return common if uids is None else is_one_of(connection, studies.c.study_uid, uids)


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
    counts = count_instances(connection)
    clauses = [instances.c.state == state.value for state in which.states]
    if sum(counts.get(state, 0) for state in which.states) <= RARE_ROWS:
        uids = {
            uid
            for clause in clauses
            for uid in connection.execute(select(instances.c.study_uid).where(clause)).scalars()
        }
        return is_one_of(connection, studies.c.study_uid, uids)
    queries = [select(instances.c.id).where(clause) for clause in clauses]
    common = exists().where(instances.c.study_uid == studies.c.study_uid, *which.build_state_clauses())
    return and_(_build_span_clause(connection, queries, instances.c.id), common)


def _build_span_clause(
    connection: Connection, queries: Sequence[Select[Any]], number: ColumnElement[int]
) -> ColumnElement[bool]:
    """Return the condition that studies have instances between the first and the last one of some queries.

    Other studies need no closer look.
    """
    first, last = (
        [connection.execute(query.order_by(None).order_by(order).limit(1)).scalar() for query in queries]
        for order in (number.asc(), number.desc())
    )
    return and_(
        studies.c.last_id >= min((each for each in first if each is not None), default=0),
        studies.c.first_id <= max((each for each in last if each is not None), default=0),
    )


def _build_delivery_clause(connection: Connection, which: InstanceFilter) -> ColumnElement[bool]:
    """Return the condition that a study has a delivery of one of the pairs.

    The studies of few deliveries are named. If there are many, each study in the order of the list is
    examined until there are enough.
    """
    rare: list[int] = []
    clauses: list[ColumnElement[bool]] = []
    for pair in list_pairs(connection, which.destination, which.delivery_states):
        *at_once, later = select_delivered(*pair)
        for query in (*at_once, later):
            ids = read_if_few(connection, query, RARE_ROWS - len(rare))
            if ids is None:
                span = _build_span_clause(connection, [query], deliveries.c.instance_id)
                common = _examine_instances(*pair) if query is later else _examine_newest(query, *pair)
                clauses.append(and_(span, common))
            else:
                rare += ids
    if rare or not clauses:
        of_deliveries = select(instances.c.study_uid).where(is_one_of(connection, instances.c.id, rare))
        uids = connection.execute(of_deliveries.distinct()).scalars().all()
        clauses.append(is_one_of(connection, studies.c.study_uid, uids))
    return or_(*clauses)


def _examine_newest(query: Select[Any], destination: str, state: DeliveryState) -> ColumnElement[bool]:
    """Return whether a study has a delivery of a query, which reads one range of the index of due ones.

    Deliveries between the first and the last instance of a study are its own, or those of a study that came
    at the same time. The newest few of them decide for most studies. If all of those belong to other studies,
    each instance of the study is examined.
    """
    between = deliveries.c.instance_id.between(studies.c.first_id, studies.c.last_id)
    newest = query.where(between).limit(EXAMINED).correlate(studies).subquery()
    # Counts the deliveries of other studies, and each one of this study as many.
    weight = case((instances.c.study_uid == studies.c.study_uid, EXAMINED + 1), else_=1)
    counted = (
        select(func.coalesce(func.sum(weight), 0))
        .select_from(newest.join(instances, instances.c.id == newest.c.instance_id))
        .correlate(studies)
        .scalar_subquery()
    )
    return or_(counted > EXAMINED, and_(counted == EXAMINED, _examine_instances(destination, state)))


def _examine_instances(destination: str, state: DeliveryState) -> ColumnElement[bool]:
    """Return whether an instance of a study has a delivery of a pair.

    PostgreSQL would join EXISTS with all deliveries of the pair. It evaluates a scalar query for each study.
    The concatenations keep both databases from reading all deliveries of the pair again for each study.
    """
    query = (
        select(literal(1))
        .select_from(instances.join(deliveries, deliveries.c.instance_id == instances.c.id))
        .where(
            instances.c.study_uid == studies.c.study_uid,
            deliveries.c.destination.concat("") == destination,
            deliveries.c.state.concat("") == state.value,
        )
        .limit(1)
    )
    return query.correlate(studies).scalar_subquery().is_not(None)


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
    completion = find_completion_states(connection, uids)
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
                completion=completion.get(uid, ""),
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
