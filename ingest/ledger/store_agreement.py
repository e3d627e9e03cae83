"""Agreement of ledger and store: whether both belong together and are equally new."""

from pathlib import Path
from typing import Final

from ingest.filesystem.folder_identity import read_ledger_mark
from ingest.ledger.ledger import Ledger

ALARM: Final = "ledger_behind_store"
"""The alarm for a ledger that does not know what its store holds."""

REMEDY: Final = (
    "restore a newer backup of the ledger, or run `ingest ledger rebuild`, which makes the rows that are "
    "missing from the files of the store; receiving goes on meanwhile"
)

NEW: Final = (
    "the ledger is new: the store {} was last used with another one, so files may have no rows, and what was "
    "owed to destinations is forgotten"
)


def find_disagreement(root: Path, ledger: Ledger) -> str:
    """Return why a ledger cannot be the one that its store was last used with; empty if it is.

    Args:
        root: The folder of the store.
        ledger: The ledger.

    Raises:
        LedgerError: The database is unavailable.
    """
    # Read the store first. Workers increment the counter of the ledger before that of the store, so the
    # ledger never seems older only because both were read at different moments.
    remembered = read_ledger_mark(root)
    if remembered is None:
        return ""
    own = ledger.store_folders.read_mark() if ledger.read_schema_version() is not None else None
    if own is None or own.id != remembered.id:
        return NEW.format(root)
    if own.count < remembered.count:
        return (
            f"the ledger is older than the store {root} (it has counted to {own.count}, the store to "
            f"{remembered.count}): what was stored since that backup has no rows"
        )
    return ""
