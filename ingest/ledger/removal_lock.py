"""A lock that all processes of one PostgreSQL ledger share: one of them replaces or removes files at a time.

Locks on files hold between hosts only if the file system carries them. Workers on several hosts need a
ledger that all reach, and it is the ledger that then excludes them. SQLite is for one host: there a lock on
a file is enough.
"""

import contextlib
from typing import Final

from sqlalchemy import Connection, TextClause, text

from ingest.errors import LedgerError
from ingest.ledger.database import Database

# PostgreSQL documentation 9.28.10: held until it is unlocked or the session ends, whatever transactions do.
_KEY: Final = {"class": 0x1D1C0, "object": 1}
_TRY: Final = text("SELECT pg_try_advisory_lock(:class, :object)")
_UNLOCK: Final = text("SELECT pg_advisory_unlock(:class, :object)")
_HELD: Final = text(
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = pg_backend_pid()"
    " AND classid = :class AND objid = :object"
)
# PostgreSQL documentation 20.3.2: without, a host that lost its power would hold the lock for two hours.
_KEEPALIVE: Final = text(
    "SELECT set_config('tcp_keepalives_idle', '10', false),"
    " set_config('tcp_keepalives_interval', '5', false),"
    " set_config('tcp_keepalives_count', '2', false)"
)


class RemovalLock:
    """The lock as one process takes it.

    `acquire` and `is_held` raise LedgerError while the ledger is away.
    """

    def __init__(self, database: Database) -> None:
        """Prepare; nothing is asked yet."""
        self._database = database
        self._session: Connection | None = None

    def acquire(self) -> bool:
        """Take the lock without waiting; False while another process holds it."""
        session = self._session
        if session is None:
            session = self._session = self._database.open_session()
            self._ask(session, _KEEPALIVE)
        return bool(self._ask(session, _TRY))

    def is_held(self) -> bool:
        """Whether the lock is this process's yet; it ends with the connection."""
        return self._session is not None and self._ask(self._session, _HELD) == 1

    def release(self) -> None:
        """Let others take the lock, if it is ours; nothing is to be done where the connection has ended."""
        with contextlib.suppress(LedgerError):
            if self._session is not None:
                self._ask(self._session, _UNLOCK)
        self._close()

    def _ask(self, session: Connection, statement: TextClause) -> object:
        try:
            return self._database.query_value(session, statement, _KEY)
        except LedgerError:
            # Whether the server holds the lock yet is not known: with its session it is gone.
            session.invalidate()
            self._close()
            raise

    def _close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()
