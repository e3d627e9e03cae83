"""The half of the ledger that knows which spool references need no copy in the spool any more.

An instance has a row with its reference. A duplicate of which nothing is kept has none: with the carrier
`redis`, where the listener removes its own copy, its reference is noted here until that is done. Redis alone
is no proof: whoever may write there could have promised files removed.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final

from sqlalchemy import BindParameter, Connection, bindparam, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from ingest.ledger.database import Database
from ingest.ledger.schema import duplicates, instances

CHUNK: Final = 500
"""How many references one IN list holds."""

_INSERT: Final = {
    "sqlite": sqlite.insert(duplicates).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(duplicates).on_conflict_do_nothing(),
}
_REFS: Final[BindParameter[Any]] = bindparam("refs", expanding=True)
_KNOWN: Final = (
    select(instances.c.spool_ref).where(instances.c.spool_ref.in_(_REFS)),
    select(duplicates.c.spool_ref).where(duplicates.c.spool_ref.in_(_REFS)),
)
_FORGET: Final = delete(duplicates).where(duplicates.c.spool_ref.in_(_REFS))


class SpoolReferences:
    """Proves what became of spool references; every method raises `LedgerError` while the ledger is away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find_recorded(self, refs: Iterable[str]) -> set[str]:
        """Those of `refs` that have a row.

        Raises:
            LedgerError: The ledger is away.
        """
        with self._database.begin_read() as connection:
            return find_recorded_refs(connection, refs)

    def record_duplicates(self, refs: Collection[str], now_ms: int) -> None:
        """Note references of which nothing is kept, since the store has the same already.

        Args:
            refs: As `NewInstance.spool_ref`.
            now_ms: The time, in Unix milliseconds.
        """
        if refs:
            with self._database.begin_write() as connection:
                connection.execute(
                    _INSERT[self._database.dialect], [{"spool_ref": ref, "noted_at": now_ms} for ref in refs]
                )

    def find_removable(self, refs: Iterable[str]) -> set[str]:
        """Those of `refs` that have a row, or that were duplicates: their copies in the spool may go."""
        found: set[str] = set()
        with self._database.begin_read() as connection:
            for chunk in _chunks(refs):
                for query in _KNOWN:
                    found.update(connection.execute(query, {"refs": chunk}).scalars())
        return found

    def delete_duplicates(self, refs: Iterable[str]) -> None:
        """Forget references whose copies in the spool are gone."""
        with self._database.begin_read() as connection:
            noted = [
                ref
                for chunk in _chunks(refs)
                for ref in connection.execute(_KNOWN[1], {"refs": chunk}).scalars()
            ]
        if noted:
            with self._database.begin_write() as connection:
                for chunk in _chunks(noted):
                    connection.execute(_FORGET, {"refs": chunk})


def find_recorded_refs(connection: Connection, refs: Iterable[str]) -> set[str]:
    """Those of `refs` that have a row."""
    known: set[str] = set()
    for chunk in _chunks(refs):
        known.update(connection.execute(_KNOWN[0], {"refs": chunk}).scalars())
    return known


def _chunks(refs: Iterable[str]) -> Iterator[Sequence[str]]:
    left = iter(refs)
    while chunk := list(islice(left, CHUNK)):
        yield chunk
