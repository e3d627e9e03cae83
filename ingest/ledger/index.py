"""The instance index: lists instances and studies, the newest first."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from sqlalchemy import ColumnElement, Connection, Select, func, select

from ingest.ledger.database import Database
from ingest.ledger.instances import CHUNK, to_instance
from ingest.ledger.records import DeliveryState, Instance, InstanceState
from ingest.ledger.schema import KEPT, deliveries, instances

_T = TypeVar("_T")
_Wanted = Callable[[str], bool] | None

WALK: Final = 20_000
"""Rows of one read while the newest studies are searched."""

# The concatenation keeps SQLite from the index of `state` when another index is far more selective.
_state: Final = instances.c.state.concat("")


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceFilter:
    """Conditions for instances; a condition that is None does not apply.

    Attributes:
        calling_ae: AE title of the sender.
        since, until: Time of arrival, in Unix milliseconds; `until` is excluded.
    """

    study_uid: str | None = None
    series_uid: str | None = None
    sop_instance_uid: str | None = None
    states: Collection[InstanceState] = ()
    calling_ae: str | None = None
    since: int | None = None
    until: int | None = None

    def build_clauses(self) -> list[ColumnElement[bool]]:
        """Return the conditions as SQL over `instances`, without the states."""
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
        return clauses


@dataclass(frozen=True, slots=True)
class FoundInstance:
    """An instance and the states of its deliveries, by destination."""

    instance: Instance
    deliveries: Mapping[str, DeliveryState] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FoundStudy:
    """A study as far as it was received; times are Unix milliseconds.

    Attributes:
        study_uid: Empty for instances without a Study Instance UID.
        instances: Number of stored SOP instances.
        copies: Number of further stored copies (`[store] duplicates = "keep-both"`).
        size: Bytes of both.
        first_at, last_at: Arrival of the first and of the last instance, in any state.
        states: Number of instances by state.
        deliveries: Number of deliveries by state.
        stable: Whether no instance was stored lately.
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
            found = [
                to_instance(row)
                for query in _select_by_state(which, before)
                for row in connection.execute(query.limit(limit)).mappings()
            ]
            found.sort(key=lambda row: -row.id)
            states = _find_delivery_states(connection, [row.id for row in found[:limit]])
        return [FoundInstance(row, states.get(row.id, {})) for row in found[:limit]]

    def find_studies(
        self,
        which: InstanceFilter,
        limit: int = 100,
        *,
        lately: int | None = None,
        stable: bool | None = None,
    ) -> list[FoundStudy]:
        """Return studies that have a matching instance, the study with the newest one first.

        Args:
            which: Conditions for the instances. The numbers describe the whole study.
            limit: Maximum number of studies.
            lately: A study with an instance that was stored since this time, in Unix milliseconds, is not
                stable. None: all studies are stable.
            stable: Only studies that are stable, or only those that are not; None applies no condition.
        """
        with self._database.begin_read() as connection:
            growing = _find_growing(connection, lately)
            wanted: _Wanted = None if stable is None else lambda uid: stable is (uid not in growing)
            # There are no more unstable studies than growing ones, so the walk need not reach the end.
            most = limit if stable is not False else min(limit, len(growing))
            uids = _find_newest_studies(connection, which, most, wanted)
            found = {
                uid: study for chunk in _chunks(uids) for uid, study in _summarize(connection, chunk, growing)
            }
        return [found[uid] for uid in uids]


def _select_by_state(which: InstanceFilter, before: int | None) -> Iterator[Select[Any]]:
    """Yield one query for each state. An index has the newest rows of one state, but not those of several."""
    query = select(instances).where(*which.build_clauses()).order_by(instances.c.id.desc())
    if before is not None:
        query = query.where(instances.c.id < before)
    if not which.states:
        yield query
    elif which.study_uid is None and which.sop_instance_uid is None:
        for state in which.states:
            yield query.where(instances.c.state == state.value)
    else:
        yield query.where(_state.in_([state.value for state in which.states]))


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


def select_growing_studies(lately: int) -> Select[Any]:
    """Select the UIDs of studies with an instance stored since a time, by that part of one index."""
    # The concatenation keeps SQLite from reading the whole index of studies to find distinct values.
    study = instances.c.study_uid.concat("")
    return select(study).where(KEPT, instances.c.stored_at >= lately).distinct()


def _find_growing(connection: Connection, lately: int | None) -> set[str]:
    if lately is None:
        return set()
    return set(connection.execute(select_growing_studies(lately)).scalars())


def _find_newest_studies(
    connection: Connection, which: InstanceFilter, limit: int, wanted: _Wanted
) -> list[str]:
    """Return the UIDs of the newest studies, by a walk that starts at the newest instance."""
    found: dict[str, None] = {}
    last = None
    query = select(instances.c.id, instances.c.study_uid).where(*which.build_clauses())
    one = which.study_uid is not None or (limit == 1 and wanted is None)
    while len(found) < limit:
        page = query.order_by(instances.c.id.desc()).limit(1 if one else WALK)
        rows = connection.execute(page if last is None else page.where(instances.c.id < last)).all()
        found.update((row.study_uid, None) for row in rows if wanted is None or wanted(row.study_uid))
        if len(rows) < WALK:
            break
        last = rows[-1].id
    return list(found)[:limit]


def _summarize(
    connection: Connection, uids: Sequence[str], growing: Collection[str]
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
    for uid, states in of_states.items():
        count, size, _, _, different = states.get(InstanceState.STORED, (0, 0, 0, 0, 0))
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
                uid not in growing,
                count - different,
            ),
        )


def _chunks(values: Sequence[_T]) -> Iterator[Sequence[_T]]:
    for start in range(0, len(values), CHUNK):
        yield values[start : start + CHUNK]
