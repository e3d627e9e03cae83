"""Lists of deliveries, those of the newest instances first.

Deliveries to several destinations have the order of their ids within one instance. `read_deliveries` chooses
the index that leads to few rows. A walk from the newest delivery would read the whole table for few of them.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, or_, select

from ingest.ledger.delivery_filter import DeliveryFilter
from ingest.ledger.newest_first import (
    CANDIDATES_MAX,
    list_pairs,
    read_by_pairs,
    read_by_studies,
)
from ingest.ledger.records import DeliveryState
from ingest.ledger.row_counts import count_deliveries
from ingest.ledger.schema import deliveries, instances, studies
from ingest.ledger.study_lists import build_study_clauses

FEW: Final = 20_000
"""Deliveries that are all examined, if they are in one range of an index."""

# The sums keep both databases from a walk through all deliveries in the order of their instances.
_SORTED: Final = ((deliveries.c.instance_id + 0).desc(), deliveries.c.id.desc())


class Position(NamedTuple):
    """The place of a delivery in a list: the ids of its instance and its own."""

    instance_id: int
    id: int


def find_position(connection: Connection, delivery_id: int) -> Position:
    """Return the place of a delivery. One that was removed stands right before the next older one."""
    query = (
        select(deliveries.c.instance_id)
        .where(deliveries.c.id <= delivery_id)
        .order_by(deliveries.c.id.desc())
        .limit(1)
    )
    row = connection.execute(query).first()
    return Position(0, 0) if row is None else Position(row.instance_id, delivery_id)


def read_deliveries(
    connection: Connection,
    which: DeliveryFilter,
    columns: Iterable[ColumnElement[Any]],
    limit: int,
    *,
    after: Position | None = None,
    more: Sequence[ColumnElement[bool]] = (),
) -> list[Row[Any]]:
    """Return rows of `deliveries` joined with `instances`, those of the newest instances first.

    Args:
        connection: A transaction.
        which: The conditions.
        columns: The columns of a row, with `deliveries.id` and `deliveries.instance_id`.
        limit: Maximum number of rows.
        after: The place of the last row of the previous page.
        more: Further conditions.
    """
    query = (
        select(*columns)
        .join(instances, instances.c.id == deliveries.c.instance_id)
        .where(*which.build_clauses(connection), *more)
    )
    if after is not None:
        query = query.where(_build_place_clause(after))
    if which.names_object:
        return list(connection.execute(query.order_by(*_SORTED).limit(limit)))
    if which.asks_for_pairs and _are_pairs_rare(connection, which):
        return _read_by_pairs(connection, which, query, limit, after)
    if which.names_few_studies:
        return _read_by_studies(connection, which, query, limit, after)
    return _read_of_many(connection, which, query, limit, after)


def _read_of_many(
    connection: Connection, which: DeliveryFilter, query: Select[Any], limit: int, after: Position | None
) -> list[Row[Any]]:
    if not which.asks_for_error:
        changed = _find_changed(connection, which)
        if changed is not None:
            return _read_by_ids(connection, query, changed, limit, after)
        if which.asks_for_studies:
            return _read_by_studies(connection, which, query, limit, after)
        if which.asks_for_pairs:
            return _read_by_pairs(connection, which, query, limit, after)
    # An index has this order: that of deliveries with an error, or that of all.
    query = query.order_by(deliveries.c.instance_id.desc(), deliveries.c.id.desc())
    return list(connection.execute(query.limit(limit)))


def _build_place_clause(after: Position) -> ColumnElement[bool]:
    columns = deliveries.c
    older = or_(columns.instance_id < after.instance_id, columns.id < after.id)
    return and_(columns.instance_id <= after.instance_id, older)


def _read_by_studies(
    connection: Connection, which: DeliveryFilter, query: Select[Any], limit: int, after: Position | None
) -> list[Row[Any]]:
    clauses = build_study_clauses(connection, which.of_studies)
    if after is not None:
        clauses.append(studies.c.first_id <= after.instance_id)
    return read_by_studies(connection, clauses, query.order_by(*_SORTED), _get_key, limit)


def _read_by_pairs(
    connection: Connection, which: DeliveryFilter, query: Select[Any], limit: int, after: Position | None
) -> list[Row[Any]]:
    pairs = list_pairs(connection, which.destination, which.states)
    newest = None if after is None else after.instance_id
    return read_by_pairs(connection, pairs, query, _get_key, limit, newest=newest)


def _are_pairs_rare(connection: Connection, which: DeliveryFilter) -> bool:
    counts = count_deliveries(connection)
    names = list(counts) if which.destination is None else [which.destination]
    states = which.states or tuple(DeliveryState)
    return sum(counts.get(name, {}).get(state, 0) for name in names for state in states) <= FEW


def _find_changed(connection: Connection, which: DeliveryFilter) -> list[Position] | None:
    """Return the places of deliveries that changed within the times of a filter; None if they are many."""
    if which.since is None:
        return None
    changed = [deliveries.c.updated_at >= which.since]
    if which.until is not None:
        changed.append(deliveries.c.updated_at < which.until)
    query = select(deliveries.c.instance_id, deliveries.c.id).where(*changed).limit(FEW + 1)
    found = [Position(*row) for row in connection.execute(query)]
    return sorted(found, reverse=True) if len(found) <= FEW else None


def _read_by_ids(
    connection: Connection, query: Select[Any], places: list[Position], limit: int, after: Position | None
) -> list[Row[Any]]:
    ids = [place.id for place in places if after is None or place < after]
    found: list[Row[Any]] = []
    for start in range(0, len(ids), CANDIDATES_MAX):
        chunk = ids[start : start + CANDIDATES_MAX]
        found += connection.execute(query.where(deliveries.c.id.in_(chunk)).order_by(*_SORTED))
        if len(found) >= limit:
            break
    return found[:limit]


def _get_key(row: Row[Any]) -> tuple[int, int]:
    return (row.instance_id, row.id)
