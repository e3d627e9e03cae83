"""Ways to read few rows of a large ledger, those of the newest instances first.

Every list of instances or deliveries has this order, so any index may lead to its rows:

- Studies: an instance is never newer than the newest one of its study. The studies are therefore read in the
  order of their newest instances, until there are enough rows.
- Pairs of a destination and a state: the index of due deliveries has the instances of each pair in order.
"""

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Final, TypeVar

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    CompoundSelect,
    Connection,
    Integer,
    Row,
    Select,
    any_,
    func,
    literal,
    select,
)

from ingest.ledger.instances import CHUNK
from ingest.ledger.records import DeliveryState
from ingest.ledger.schema import TIMES, deliveries, instances, studies

_T = TypeVar("_T")

FIRST_STUDIES: Final = 10
"""Studies whose rows are read first. Each further read has twice as many."""

CANDIDATES_MAX: Final = 8 * CHUNK
"""Instances whose rows are read at once. Each read has twice as many as the one before."""

# The first value is the id of the instance. A list shows the largest keys first.
Key = Callable[[Row[Any]], tuple[int, ...]]


def read_by_studies(
    connection: Connection,
    clauses: Sequence[ColumnElement[bool]],
    query: Select[Any],
    key: Key,
    limit: int,
) -> list[Row[Any]]:
    """Return the first rows of a query over `instances`, from the studies with the newest instances.

    Args:
        connection: A transaction.
        clauses: Conditions for the studies, which hold for the study of each row.
        query: All other conditions. Its order is that of `key`, without the help of an index.
        key: Returns the key of a row.
        limit: Maximum number of rows.
    """
    newest = select(studies.c.study_uid, studies.c.last_id).where(*clauses).order_by(studies.c.last_id.desc())
    found: list[Row[Any]] = []
    last: int | None = None
    size = FIRST_STUDIES
    while True:
        page = connection.execute(
            (newest if last is None else newest.where(studies.c.last_id < last)).limit(size)
        ).all()
        if page:
            uids = [row.study_uid for row in page]
            found += connection.execute(query.where(instances.c.study_uid.in_(uids)).limit(limit)).all()
            found = sorted(found, key=key, reverse=True)[:limit]
            last = page[-1].last_id
        is_complete = len(found) == limit and last is not None and key(found[-1])[0] > last
        if is_complete or len(page) < size:
            return found
        size = min(2 * size, CHUNK)


def read_by_pairs(
    connection: Connection,
    pairs: Sequence[tuple[str, DeliveryState]],
    query: Select[Any],
    key: Key,
    limit: int,
    *,
    newest: int | None = None,
) -> list[Row[Any]]:
    """Return the first rows of a query over `instances` that have a delivery of one of the pairs.

    Args:
        connection: A transaction.
        pairs: Destinations and states.
        query: All conditions.
        key: Returns the key of a row.
        limit: Maximum number of rows.
        newest: The newest instance that may have a row; None for any.
    """
    found: list[Row[Any]] = []
    below = None if newest is None else newest + 1
    size = max(min(limit, CHUNK), 100)
    while len(found) < limit:
        ids: set[int] = set()
        for destination, state in pairs:
            for candidates in select_delivered(destination, state):
                if below is not None:
                    candidates = candidates.where(deliveries.c.instance_id < below)  # noqa: PLW2901
                ids.update(connection.execute(candidates.limit(size)).scalars())
        candidate_ids = sorted(ids, reverse=True)[:size]
        if not candidate_ids:
            break
        found += connection.execute(query.where(instances.c.id.in_(candidate_ids))).all()
        below = candidate_ids[-1]
        size = min(2 * size, CANDIDATES_MAX)
    return sorted(found, key=key, reverse=True)[:limit]


def select_delivered(destination: str, state: DeliveryState) -> Iterator[Select[Any]]:
    """Select the newest instances of a pair by the index of due deliveries, once for each of `TIMES`."""
    columns = deliveries.c
    query = (
        select(columns.instance_id)
        .where(columns.destination == destination, columns.state == state.value)
        .order_by(columns.instance_id.desc())
    )
    for of_time in TIMES:
        yield query.where(of_time)


def list_pairs(
    connection: Connection, destination: str | None, states: Collection[DeliveryState]
) -> list[tuple[str, DeliveryState]]:
    """Return the pairs of destination and state that a filter asks for. An index has those of each pair."""
    names = [destination] if destination is not None else list_destinations(connection)
    return [(name, state) for name in names for state in states or tuple(DeliveryState)]


def list_destinations(connection: Connection) -> list[str]:
    """Return the destinations that have deliveries. Each step reads one entry of an index."""
    names: list[str] = []
    query = select(func.min(deliveries.c.destination))
    while name := connection.execute(
        query.where(deliveries.c.destination > names[-1]) if names else query
    ).scalar():
        names.append(name)
    return names


def read_if_few(
    connection: Connection, query: Select[Any] | CompoundSelect[Any], most: int
) -> list[Any] | None:
    """Return the values of a query; None if there are more than `most`."""
    # Without reading the values of many rows.
    if connection.execute(query.offset(max(most, 0)).limit(1)).first() is not None:
        return None
    return list(connection.execute(query).scalars())


def is_one_of(
    connection: Connection, column: ColumnElement[_T], values: Collection[_T]
) -> ColumnElement[bool]:
    """Compare a column with many values, which are one parameter. A parameter for each takes long."""
    if connection.dialect.name == "postgresql":
        return column == any_(literal(list(values), ARRAY(column.type)))
    listed = func.json_each(json.dumps(list(values))).table_valued("value")
    return column.in_(select(listed.c.value))


def hide_from_indexes(connection: Connection, column: ColumnElement[_T]) -> ColumnElement[_T]:
    """Return an expression that keeps SQLite from an index of the column.

    Without statistics SQLite expects few rows of each value and of each range. PostgreSQL knows better.
    """
    if connection.dialect.name != "sqlite":
        return column
    return column + 0 if isinstance(column.type, Integer) else column.concat("")


def split_chunks(values: Sequence[_T]) -> Iterator[Sequence[_T]]:
    """Split values for statements with lists of them."""
    for start in range(0, len(values), CHUNK):
        yield values[start : start + CHUNK]
