"""What new rows of `instances` mean for the completion of their studies, written in the same transaction.

The row of a study in `receptions` is written last and in the order of the keys, like those of the study
index. Two workers that record one study wait for each other, and never in a circle. A monitor that completes
the study meanwhile either sees the new instance, or its completion comes first. Then the instance begins the
next generation.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, and_, bindparam, case, literal, update

from ingest.ledger.database import INSERT_BY_DIALECT
from ingest.ledger.records import CompletionTerms, InstanceState, NewInstance
from ingest.ledger.row_values import clean_value
from ingest.ledger.schema import carriers, completions, receptions

RECEIVING: Final = "receiving"
COMPLETE: Final = "complete"
REOPENED: Final = "reopened"

_KEPT: Final = frozenset({InstanceState.STORED, InstanceState.VARIANT})
_Key = tuple[str, str]


def _greater(first: ColumnElement[int], second: ColumnElement[int]) -> ColumnElement[int]:
    return case((first > second, first), else_=second)


def _upsert_receptions(dialect: str) -> Any:
    statement = INSERT_BY_DIALECT[dialect](receptions)
    new, old = statement.excluded, receptions.c
    is_complete = old.state == COMPLETE

    def unless_complete(value: ColumnElement[int], begun: ColumnElement[int]) -> ColumnElement[int]:
        return case((is_complete, begun), else_=value)

    stable_ms = unless_complete(_greater(old.stable_ms, new.stable_ms), new.stable_ms)
    # `due_at` of a new row without a time of its own tells that of the node.
    wait_ms = case((stable_ms > 0, stable_ms), else_=new.due_at - new.last_at)
    last_at = _greater(old.last_at, new.last_at)
    changes = {
        "generation": old.generation + case((is_complete, 1), else_=0),
        "state": literal(RECEIVING),
        "first_at": unless_complete(old.first_at, new.first_at),
        "last_at": last_at,
        "instances": unless_complete(old.instances + new.instances, new.instances),
        "stable_ms": stable_ms,
        "due_at": last_at + wait_ms,
    }
    return statement.on_conflict_do_update(
        index_elements=["study_uid", "series_uid"], set_=changes
    ).returning(receptions.c.study_uid, receptions.c.series_uid, receptions.c.generation)


def _upsert_carriers(dialect: str) -> Any:
    statement = INSERT_BY_DIALECT[dialect](carriers)
    new, old = statement.excluded, carriers.c
    names = ("study_uid", "series_uid", "at", "seen_at")
    return statement.on_conflict_do_update(
        index_elements=["association"], set_={name: new[name] for name in names}, where=new.at >= old.at
    )


_UPSERT_RECEPTIONS: Final = {dialect: _upsert_receptions(dialect) for dialect in INSERT_BY_DIALECT}
_UPSERT_CARRIERS: Final = {dialect: _upsert_carriers(dialect) for dialect in INSERT_BY_DIALECT}
_ADD_EVENTS: Final = {
    dialect: insert(completions).on_conflict_do_nothing() for dialect, insert in INSERT_BY_DIALECT.items()
}
_PROLONG: Final = (
    update(receptions)
    .where(
        and_(
            receptions.c.study_uid == bindparam("of_study"),
            receptions.c.series_uid == bindparam("of_series"),
            receptions.c.state == RECEIVING,
            receptions.c.last_at < bindparam("now_at"),
        )
    )
    .values(
        due_at=receptions.c.due_at + (bindparam("now_at") - receptions.c.last_at), last_at=bindparam("now_at")
    )
)


def note_receptions(
    connection: Connection, recorded: Sequence[NewInstance], taken: Sequence[NewInstance] = ()
) -> None:
    """Note new instances, and duplicates that came again.

    A duplicate prolongs the wait for its study. It does not reopen a complete one, because nothing of it is
    new.

    Args:
        connection: The transaction that records them.
        recorded: Instances with a new row.
        taken: Instances that were stored before.
    """
    dialect = connection.dialect.name
    judged = _find_judged(recorded)
    again = _find_judged(taken)
    if not judged and not again:
        return
    _note_carriers(connection, dialect, [*judged, *again])
    rows: dict[_Key, dict[str, Any]] = {}
    for row, terms in judged:
        for key in _keys_of(row, terms):
            _add_instance(rows, key, row, terms)
    if rows:
        _write_receptions(connection, dialect, [rows[key] for key in sorted(rows)])
    duplicates = {key: row.stored_at for row, terms in again for key in _keys_of(row, terms)}
    values = [
        {"of_study": study, "of_series": series, "now_at": duplicates[study, series]}
        for study, series in sorted(duplicates.keys() - rows.keys())
    ]
    if values:
        connection.execute(_PROLONG, values)


def _find_judged(rows: Iterable[NewInstance]) -> list[tuple[NewInstance, CompletionTerms]]:
    return [(row, row.completion) for row in rows if row.completion is not None and row.state in _KEPT]


def _keys_of(row: NewInstance, terms: CompletionTerms) -> list[_Key]:
    """Return the keys of the study and the series of an instance, as far as they are judged."""
    study, series = clean_value(row.study_uid), clean_value(row.series_uid)
    if not study:
        return []
    return [(study, ""), *([(study, series)] if series and terms.series_ms is not None else [])]


def _add_instance(
    rows: dict[_Key, dict[str, Any]], key: _Key, row: NewInstance, terms: CompletionTerms
) -> None:
    stable_ms = (terms.series_ms or 0) if key[1] else terms.study_ms
    at = row.stored_at
    values = rows.get(key)
    if values is None:
        values = rows[key] = {
            "study_uid": key[0],
            "series_uid": key[1],
            "generation": 1,
            "state": RECEIVING,
            "first_at": at,
            "last_at": at,
            "instances": 0,
            "stable_ms": stable_ms,
        }
    values["instances"] += 1
    values["first_at"] = min(values["first_at"], at)
    values["last_at"] = max(values["last_at"], at)
    values["stable_ms"] = max(values["stable_ms"], stable_ms)
    values["due_at"] = values["last_at"] + (values["stable_ms"] or terms.default_ms)


def _write_receptions(connection: Connection, dialect: str, rows: Sequence[dict[str, Any]]) -> None:
    by_key = {(row["study_uid"], row["series_uid"]): row for row in rows}
    written = connection.execute(_UPSERT_RECEPTIONS[dialect], rows).all()
    events = [
        {
            "study_uid": study,
            "series_uid": series,
            "generation": generation,
            "event": REOPENED,
            "at": by_key[study, series]["first_at"],
            **{name: by_key[study, series][name] for name in ("instances", "first_at", "last_at")},
        }
        for study, series, generation in sorted(written)
        if generation > 1
    ]
    if events:
        # Only the first instances of a generation find no such row.
        connection.execute(_ADD_EVENTS[dialect], events)


def _note_carriers(
    connection: Connection, dialect: str, rows: Iterable[tuple[NewInstance, CompletionTerms]]
) -> None:
    """Note what each association carried last."""
    last: dict[int, dict[str, Any]] = {}
    for row, terms in rows:
        known = last.get(terms.association)
        if terms.association and (known is None or row.received_at >= known["at"]):
            last[terms.association] = {
                "association": terms.association,
                "study_uid": clean_value(row.study_uid),
                "series_uid": clean_value(row.series_uid),
                "at": row.received_at,
                "seen_at": row.stored_at,
            }
    if last:
        connection.execute(_UPSERT_CARRIERS[dialect], [last[number] for number in sorted(last)])
