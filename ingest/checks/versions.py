"""Look whether a newer program has used data folder or ledger. This program must not touch them then.

A supervisor asks before it creates or locks anything, and before it loads a database driver: for SQLite it
reads one value with Python's own module, and for PostgreSQL a child process asks.
"""

import contextlib
import sqlite3
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ingest.config.faults import Fault
from ingest.config.model import Config
from ingest.errors import BootError, LedgerVersionError
from ingest.filesystem.data_format import require_data_format
from ingest.process import call_in_child
from ingest.program import SCHEMA_VERSION

if TYPE_CHECKING:
    import sqlalchemy

LEDGER_SECONDS: Final = 10.0
"""Deadline for the question to the ledger. Without an answer the workers ask again, and wait."""

_SQLITE: Final = "sqlite"


def check_data_format(config: Config) -> Iterator[Fault]:
    """Yield a fault for a data folder of a newer program."""
    try:
        with contextlib.suppress(OSError):
            require_data_format(config.data_dir)
    except BootError as error:
        yield _make_fault("node.data_dir", str(error))


def check_ledger_version(connection: "sqlalchemy.Connection", name: str) -> Iterator[Fault]:
    """Yield a fault for a ledger of a newer program, over a connection that the caller has opened."""
    from ingest.ledger.database import find_version_error  # noqa: PLC0415 - slow to import

    error = find_version_error(connection, name)
    if isinstance(error, LedgerVersionError):
        yield _make_fault("ledger.url", str(error))


def require_versions(config: Config, roles: Collection[str]) -> None:
    """Refuse to start on a data folder or a ledger of a newer program. This process must have no threads.

    Raises:
        BootError: A newer program has used one of them. Nothing was changed.
        OSError: The data folder cannot be read.
    """
    require_data_format(config.data_dir)
    if not _needs_ledger(config, roles):
        return
    is_sqlite = config.ledger_url.startswith(_SQLITE)
    if is_sqlite and _read_sqlite_version(config.ledger_url) <= SCHEMA_VERSION:
        return
    cause = call_in_child(lambda: _find_newer_ledger(config), LEDGER_SECONDS)
    if cause:
        raise BootError(str(cause))


def _make_fault(key: str, message: str) -> Fault:
    cause, _, remedy = message.rpartition("; ")
    return Fault(key, cause, remedy)


def _needs_ledger(config: Config, roles: Collection[str]) -> bool:
    """Return whether one of the roles uses the ledger. Listeners do so for the redis carrier alone."""
    return config.queue.carrier == "redis" or not set(roles) <= {"listen"}


def _find_newer_ledger(config: Config) -> str:
    """Return why this program must not use the ledger; empty if it may, or if the ledger does not answer."""
    from ingest.ledger import Ledger  # noqa: PLC0415 - slow to import; a supervisor must not load it

    try:
        with contextlib.closing(Ledger(config.ledger_url)) as ledger:
            ledger.database.refuse_newer_schema()
    except LedgerVersionError as error:
        return str(error)
    return ""


def _read_sqlite_version(url: str) -> str:
    """Read the schema version of a ledger in SQLite; empty if there is none, or if it cannot be read."""
    path = Path(url.partition(":///")[2].partition("?")[0])
    with contextlib.suppress(sqlite3.Error, OSError):
        if path.is_file():
            connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=1.0)
            with contextlib.closing(connection):
                row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            return str(row[0]) if row else ""
    return ""
