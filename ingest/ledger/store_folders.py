"""Store folders: the identities of the store and quarantine folders that belong to this ledger.

INVARIANT 13: a folder that is not mounted is recognised, because its identity is missing.
"""

import uuid
from typing import Final

from sqlalchemy import ColumnElement, Connection, TextClause, delete, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from ingest.filesystem.folder_identity import KnownFolder, LedgerMark
from ingest.ledger.database import Database
from ingest.ledger.records import InstanceState
from ingest.ledger.schema import KEPT, folders, instances

STORE: Final = "store"
QUARANTINE: Final = "quarantine"

_LEDGER: Final = "ledger"
"""The row with the id of the ledger itself."""
_COUNT: Final = "ledger_count"
"""The row with the counter of `LedgerMark`."""

_NEW: Final = {
    "sqlite": sqlite.insert(folders).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(folders).on_conflict_do_nothing(),
}

_USES: Final[dict[str, ColumnElement[bool] | TextClause]] = {
    STORE: KEPT,
    QUARANTINE: instances.c.state == InstanceState.QUARANTINED.value,
}


class StoreFolders:
    """Keeps the identities of the store and quarantine folders.

    Every method is one transaction. It raises LedgerError while the database is unavailable.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def find_folder(self, kind: str) -> KnownFolder:
        """Return the recorded identity of the folder STORE or QUARANTINE."""
        with self._database.begin_read() as connection:
            identity = connection.execute(
                select(folders.c.folder_id).where(folders.c.kind == kind)
            ).scalar_one_or_none()
            used = connection.execute(select(instances.c.id).where(_USES[kind]).limit(1)).first()
            return KnownFolder(identity, used is not None)

    def record_folder(self, kind: str, identity: str) -> None:
        """Record the identity of the folder STORE or QUARANTINE."""
        if self.find_folder(kind).id == identity:
            return
        with self._database.begin_write() as connection:
            connection.execute(delete(folders).where(folders.c.kind == kind))
            connection.execute(insert(folders).values(kind=kind, folder_id=identity))

    def read_mark(self) -> LedgerMark | None:
        """Return the id and the counter of the ledger; None if nothing was stored since it was created."""
        with self._database.begin_read() as connection:
            return _mark(connection, locked=False)

    def advance_mark(self, at_least: int = 0) -> LedgerMark:
        """Increment the counter, and give the ledger an id if it has none.

        Args:
            at_least: The new counter is greater than this.
        """
        with self._database.begin_write() as connection:
            connection.execute(
                _NEW[self._database.dialect],
                [
                    {"kind": _LEDGER, "folder_id": uuid.uuid4().hex},
                    {"kind": _COUNT, "folder_id": "0"},
                ],
            )
            found = _mark(connection, locked=True)
            identity, count = (found.id, found.count) if found else ("", 0)
            new = LedgerMark(identity, max(count, at_least) + 1)
            connection.execute(
                update(folders).where(folders.c.kind == _COUNT).values(folder_id=str(new.count))
            )
            return new


def _mark(connection: Connection, *, locked: bool) -> LedgerMark | None:
    query = select(folders.c.kind, folders.c.folder_id).where(folders.c.kind.in_((_LEDGER, _COUNT)))
    rows = connection.execute(query.with_for_update() if locked else query)
    found = {row.kind: str(row.folder_id) for row in rows}
    if _LEDGER not in found:
        return None
    count = found.get(_COUNT, "0")
    return LedgerMark(found[_LEDGER], int(count) if count.isdecimal() else 0)
