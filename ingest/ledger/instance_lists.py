"""Lists of instances, the newest first, with the states of their deliveries."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, Select, select

from ingest.ledger.database import Database
from ingest.ledger.instance_filter import InstanceFilter
from ingest.ledger.instances import to_instance
from ingest.ledger.newest_first import list_pairs, read_by_pairs, read_by_studies, split_chunks
from ingest.ledger.records import DeliveryState, Instance
from ingest.ledger.row_counts import count_instances
from ingest.ledger.schema import deliveries, instances, studies
from ingest.ledger.study_lists import build_study_clauses

RARE_STATES: Final = 20_000
"""Instances of some states that are all examined, before their studies are."""

# The sum keeps both databases from a walk through all instances in the order of their ids.
_BY_ID: Final = (instances.c.id + 0).desc()


@dataclass(frozen=True, slots=True)
class FoundInstance:
    """An instance and the states of its deliveries, by destination."""

    instance: Instance
    deliveries: Mapping[str, DeliveryState] = field(default_factory=dict)


class InstanceLists:
    """Lists instances.

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
            ids = _find_ids(connection, which, limit, before)
            rows = _find_rows(connection, ids)
            states = _find_delivery_states(connection, ids)
        return [FoundInstance(rows[number], states.get(number, {})) for number in ids if number in rows]


def _find_ids(connection: Connection, which: InstanceFilter, limit: int, before: int | None) -> list[int]:
    clauses = which.build_clauses()
    if before is not None:
        clauses.append(instances.c.id < before)
    asks_for_others = which.asks_for_studies or which.asks_for_deliveries
    if which.names_object or not asks_for_others:
        queries: Iterable[Select[Any]] = _select_by_state(which, clauses)
    elif not which.names_patient_or_order and _are_states_rare(connection, which):
        queries = [query.order_by(None).order_by(_BY_ID) for query in _select_by_state(which, clauses)]
    else:
        query = select(instances.c.id).where(*clauses, *which.build_state_clauses()).order_by(_BY_ID)
        return _find_by_others(connection, which, query, limit, before)
    ids = [number for query in queries for number in connection.execute(query.limit(limit)).scalars()]
    return sorted(ids, reverse=True)[:limit]


def _select_by_state(which: InstanceFilter, clauses: Sequence[ColumnElement[bool]]) -> Iterator[Select[Any]]:
    """Yield one query for each state. An index has the newest rows of one state, but not those of several."""
    query = select(instances.c.id).where(*clauses).order_by(instances.c.id.desc())
    if not which.states:
        yield query
    elif which.names_object:
        yield query.where(*which.build_state_clauses())
    else:
        for state in which.states:
            yield query.where(instances.c.state == state.value)


def _are_states_rare(connection: Connection, which: InstanceFilter) -> bool:
    """Whether few instances have one of the states. Then the index of states finds them soonest."""
    if not which.states:
        return False
    counts = count_instances(connection)
    return sum(counts.get(state, 0) for state in which.states) <= RARE_STATES


def _find_by_others(
    connection: Connection, which: InstanceFilter, query: Select[Any], limit: int, before: int | None
) -> list[int]:
    """Return ids of instances by their studies, or else by their deliveries."""
    if which.asks_for_studies and (which.names_patient_or_order or not which.asks_for_deliveries):
        clauses = build_study_clauses(connection, which)
        if before is not None:
            clauses.append(studies.c.first_id < before)
        found = read_by_studies(connection, clauses, query, _get_key, limit)
    else:
        pairs = list_pairs(connection, which.destination, which.delivery_states)
        newest = None if before is None else before - 1
        found = read_by_pairs(connection, pairs, query, _get_key, limit, newest=newest)
    return [row.id for row in found]


def _get_key(row: Row[Any]) -> tuple[int]:
    return (row.id,)


def _find_rows(connection: Connection, ids: Sequence[int]) -> dict[int, Instance]:
    return {
        row["id"]: to_instance(row)
        for chunk in split_chunks(ids)
        for row in connection.execute(select(instances).where(instances.c.id.in_(chunk))).mappings()
    }


def _find_delivery_states(connection: Connection, ids: Sequence[int]) -> dict[int, dict[str, DeliveryState]]:
    columns = deliveries.c
    found: dict[int, dict[str, DeliveryState]] = {}
    for chunk in split_chunks(ids):
        query = (
            select(columns.instance_id, columns.destination, columns.state)
            .where(columns.instance_id.in_(chunk))
            .order_by(columns.instance_id, columns.destination)
        )
        for number, destination, state in connection.execute(query):
            found.setdefault(number, {})[destination] = DeliveryState(state)
    return found
