"""Spool references: which entries the spool may release.

The spool may release an entry if its reference has a row: of an instance, or of a request for storage
commitment. A duplicate that is not kept has no row. With the
carrier
`redis` the listener removes its own copy of an entry, so the reference of such a duplicate is recorded here
until then.

INVARIANT 12: a list in Redis is no proof. A client that may write there could name any entry.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final

from sqlalchemy import BindParameter, Connection, bindparam, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from ingest.ledger.database import Database
from ingest.ledger.schema import commitments, duplicates, instances

CHUNK: Final = 500
"""Maximum number of references in one IN list."""

_INSERT: Final = {
    "sqlite": sqlite.insert(duplicates).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(duplicates).on_conflict_do_nothing(),
}
_REFS: Final[BindParameter[Any]] = bindparam("refs", expanding=True)
_KNOWN: Final = (
    select(instances.c.spool_ref).where(instances.c.spool_ref.in_(_REFS)),
    select(duplicates.c.spool_ref).where(duplicates.c.spool_ref.in_(_REFS)),
    select(commitments.c.spool_ref).where(commitments.c.spool_ref.in_(_REFS)),
)
_FORGET: Final = delete(duplicates).where(duplicates.c.spool_ref.in_(_REFS))


class SpoolReferences:
    """Proves that entries are persisted. Methods raise LedgerError while the database is unavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find_recorded(self, refs: Iterable[str]) -> set[str]:
        """Return those references that have a row."""
        with self._database.begin_read() as connection:
            return find_recorded_refs(connection, refs)

    def record_duplicates(self, refs: Collection[str], unix_ms: int) -> None:
        """Record references of duplicates that are not kept, because the store has the same instance.

        Args:
            refs: As `NewInstance.spool_ref`.
            unix_ms: Current time.
        """
        if refs:
            with self._database.begin_write() as connection:
                connection.execute(
                    _INSERT[self._database.dialect], [{"spool_ref": ref, "noted_at": unix_ms} for ref in refs]
                )

    def find_removable(self, refs: Iterable[str]) -> set[str]:
        """Return those references that have a row or were duplicates: the spool may release their entries."""
        found: set[str] = set()
        with self._database.begin_read() as connection:
            for chunk in _chunks(refs):
                for query in _KNOWN:
                    found.update(connection.execute(query, {"refs": chunk}).scalars())
        return found

    def delete_duplicates(self, refs: Iterable[str]) -> None:
        """Delete recorded duplicates whose entries the spool has released."""
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
    """Return those references that have a row, within a transaction."""
    known: set[str] = set()
    for chunk in _chunks(refs):
        known.update(connection.execute(_KNOWN[0], {"refs": chunk}).scalars())
    return known


def _chunks(refs: Iterable[str]) -> Iterator[Sequence[str]]:
    left = iter(refs)
    while chunk := list(islice(left, CHUNK)):
        yield chunk
