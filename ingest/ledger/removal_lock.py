"""The removal lock: one process of one PostgreSQL ledger replaces or removes files at a time.

Locks on files exclude other hosts only if the file system carries them. Workers on several hosts share a
PostgreSQL
ledger, so the ledger excludes them. SQLite serves one host, where a lock on a file is enough.
"""

import contextlib
from typing import Final

from sqlalchemy import Connection, TextClause, text

from ingest.errors import LedgerError
from ingest.ledger.database import Database

# PostgreSQL documentation 9.28.10: a session-level lock is held until it is released or the session ends.
_KEY: Final = {"class": 0x1D1C0, "object": 1}
_TRY: Final = text("SELECT pg_try_advisory_lock(:class, :object)")
_UNLOCK: Final = text("SELECT pg_advisory_unlock(:class, :object)")
_HELD: Final = text(
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = pg_backend_pid()"
    " AND classid = :class AND objid = :object"
)
# PostgreSQL documentation 20.3.2: without keepalives a host that lost its power would hold the lock for two
# hours.
_KEEPALIVE: Final = text(
    "SELECT set_config('tcp_keepalives_idle', '10', false),"
    " set_config('tcp_keepalives_interval', '5', false),"
    " set_config('tcp_keepalives_count', '2', false)"
)


class RemovalLock:
    """The lock as one process takes it.

    `acquire` and `is_held` raise LedgerError while the database is unavailable.
    """

    def __init__(self, database: Database) -> None:
        """Prepare the lock; the first call of `acquire` connects."""
        self._database = database
        self._session: Connection | None = None

    def acquire(self) -> bool:
        """Take the lock without waiting; return False while another process holds it."""
        session = self._session
        if session is None:
            session = self._session = self._database.open_session()
            self._ask(session, _KEEPALIVE)
        return bool(self._ask(session, _TRY))

    def is_held(self) -> bool:
        """Whether this process still holds the lock. The lock ends with the connection."""
        return self._session is not None and self._ask(self._session, _HELD) == 1

    def release(self) -> None:
        """Release the lock. If the connection has ended, the server has released it already."""
        with contextlib.suppress(LedgerError):
            if self._session is not None:
                self._ask(self._session, _UNLOCK)
        self._close()

    def _ask(self, session: Connection, statement: TextClause) -> object:
        try:
            return self._database.query_value(session, statement, _KEY)
        except LedgerError:
            # We do not know whether the server still holds the lock. It ends with the session, so close the
            # session.
            session.invalidate()
            self._close()
            raise

    def _close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()
