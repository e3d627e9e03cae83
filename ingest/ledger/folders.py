"""The half of the ledger that knows which store it tells of."""

from typing import Final

from sqlalchemy import ColumnElement, TextClause, delete, insert, select

from ingest.ledger.database import Database
from ingest.ledger.rows import InstanceState
from ingest.ledger.schema import KEPT, folders, instances
from ingest.store_identity import KnownFolder

STORE: Final = "store"
QUARANTINE: Final = "quarantine"

_USES: Final[dict[str, ColumnElement[bool] | TextClause]] = {
    STORE: KEPT,
    QUARANTINE: instances.c.state == InstanceState.QUARANTINED.value,
}


class Folders(Database):
    """Remembers the ids of store and quarantine."""

    def known_folder(self, kind: str) -> KnownFolder:
        """What is known of STORE or QUARANTINE.

        Raises:
            LedgerError: The ledger is away.
        """
        with self.read() as connection:
            identity = connection.execute(
                select(folders.c.folder_id).where(folders.c.kind == kind)
            ).scalar_one_or_none()
            used = connection.execute(select(instances.c.id).where(_USES[kind]).limit(1)).first()
            return KnownFolder(identity, used is not None)

    def remember_folder(self, kind: str, identity: str) -> None:
        """Remember the id of STORE or QUARANTINE.

        Raises:
            LedgerError: The ledger is away.
        """
        if self.known_folder(kind).id == identity:
            return
        with self.write() as connection:
            connection.execute(delete(folders).where(folders.c.kind == kind))
            connection.execute(insert(folders).values(kind=kind, folder_id=identity))
