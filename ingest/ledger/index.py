"""The half of the ledger that lists what was received: instances and studies, the newest first."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from sqlalchemy import ColumnElement, Connection, Select, func, select

from ingest.ledger.database import Database
from ingest.ledger.instances import CHUNK, as_instance
from ingest.ledger.records import DeliveryState, Instance, InstanceState
from ingest.ledger.schema import KEPT, deliveries, instances

_T = TypeVar("_T")
_Wanted = Callable[[str], bool] | None

WALK: Final = 20_000
"""Rows read at a time while the newest studies are looked for."""

# Not the bare column: SQLite would go by its index where another tells far more.
_state: Final = instances.c.state.concat("")


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceFilter:
    """Which instances are meant; what is None does not matter.

    Attributes:
        calling_ae: AE title of who sent it.
        since, until: When it was received, in Unix milliseconds; the second is not included.
    """

    study_uid: str | None = None
    series_uid: str | None = None
    sop_instance_uid: str | None = None
    states: Collection[InstanceState] = ()
    calling_ae: str | None = None
    since: int | None = None
    until: int | None = None

    def clauses(self) -> list[ColumnElement[bool]]:
        """As SQL over `instances`, without the states."""
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
    """An instance, and the states of its deliveries by destination."""

    instance: Instance
    deliveries: Mapping[str, DeliveryState] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FoundStudy:
    """A study as far as it was received; times are Unix milliseconds.

    Attributes:
        study_uid: Empty for what names none.
        instances: How many SOP instances are stored.
        copies: How many further copies of those are stored (`[store] duplicates = "keep-both"`).
        size: Bytes of both.
        first_at, last_at: When the first and the last of all its instances were received.
        states: How many instances there are, by state.
        deliveries: How many deliveries there are of them, by state.
        stable: Whether nothing that the store holds of it came lately.
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
    """Lists instances and studies."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find_instances(
        self, which: InstanceFilter, limit: int = 100, *, before: int | None = None
    ) -> list[FoundInstance]:
        """Instances, the newest first.

        Args:
            which: Those that are meant.
            limit: At most so many.
            before: Only ids below this one: the last one's of the page before.

        Raises:
            LedgerError: The ledger is away.
        """
        with self._database.begin_read() as connection:
            found = [
                as_instance(row)
                for query in _by_states(which, before)
                for row in connection.execute(query.limit(limit)).mappings()
            ]
            found.sort(key=lambda row: -row.id)
            states = _deliveries_of(connection, [row.id for row in found[:limit]])
        return [FoundInstance(row, states.get(row.id, {})) for row in found[:limit]]

    def find_studies(
        self,
        which: InstanceFilter,
        limit: int = 100,
        *,
        lately: int | None = None,
        stable: bool | None = None,
    ) -> list[FoundStudy]:
        """Studies that have an instance which is meant, that of the newest one first.

        Args:
            which: Those instances; the numbers are those of the whole study.
            limit: At most so many.
            lately: A study of which something was stored from this time on, in Unix ms, is not stable;
                None: all are.
            stable: Only those that are stable, or that are not; None does not matter.

        Raises:
            LedgerError: The ledger is away.
        """
        with self._database.begin_read() as connection:
            growing = _growing(connection, lately)
            wanted: _Wanted = None if stable is None else lambda uid: stable is (uid not in growing)
            # No walk to the end for what is not there.
            most = limit if stable is not False else min(limit, len(growing))
            uids = _newest_studies(connection, which, most, wanted)
            found = {
                uid: study for chunk in _chunks(uids) for uid, study in _summed(connection, chunk, growing)
            }
        return [found[uid] for uid in uids]


def _by_states(which: InstanceFilter, before: int | None) -> Iterator[Select[Any]]:
    """One query for each state: an index has the newest rows of one at hand, but not those of several."""
    query = select(instances).where(*which.clauses()).order_by(instances.c.id.desc())
    if before is not None:
        query = query.where(instances.c.id < before)
    if not which.states:
        yield query
    elif which.study_uid is None and which.sop_instance_uid is None:
        for state in which.states:
            yield query.where(instances.c.state == state.value)
    else:
        yield query.where(_state.in_([state.value for state in which.states]))


def _deliveries_of(connection: Connection, ids: Sequence[int]) -> dict[int, dict[str, DeliveryState]]:
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


def growing_since(lately: int) -> Select[Any]:
    """Study UIDs of what was stored since; reads of one index only what is as new."""
    # Not the bare column: for distinct ones SQLite would read the whole index of studies, in its order.
    study = instances.c.study_uid.concat("")
    return select(study).where(KEPT, instances.c.stored_at >= lately).distinct()


def _growing(connection: Connection, lately: int | None) -> set[str]:
    if lately is None:
        return set()
    return set(connection.execute(growing_since(lately)).scalars())


def _newest_studies(connection: Connection, which: InstanceFilter, limit: int, wanted: _Wanted) -> list[str]:
    """UIDs of the studies, by a walk from the newest instance on that ends with the last one wanted."""
    found: dict[str, None] = {}
    last = None
    query = select(instances.c.id, instances.c.study_uid).where(*which.clauses())
    one = which.study_uid is not None or (limit == 1 and wanted is None)
    while len(found) < limit:
        page = query.order_by(instances.c.id.desc()).limit(1 if one else WALK)
        rows = connection.execute(page if last is None else page.where(instances.c.id < last)).all()
        found.update((row.study_uid, None) for row in rows if wanted is None or wanted(row.study_uid))
        if len(rows) < WALK:
            break
        last = rows[-1].id
    return list(found)[:limit]


def _summed(
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
