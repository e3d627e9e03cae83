"""How SQLite and PostgreSQL are opened, migrated and asked; where their errors become `LedgerError`."""

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import sqlalchemy
from sqlalchemy import Connection, Engine, event, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    NoSuchModuleError,
    ProgrammingError,
    StatementError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from ingest.clock import unix_ms
from ingest.config.serialization import mask_url_password
from ingest.errors import LedgerError
from ingest.ledger.schema import SCHEMA_VERSION
from ingest.ledger.server_address import resolve_hosts

BUSY_MILLISECONDS: Final = 10_000
"""How long a writer of SQLite waits for another."""

MIGRATION_SECONDS: Final = 60.0
"""How long a process waits for another that migrates."""

MALFORMED_REMEDY: Final = (
    "stop the node, move ledger.db, ledger.db-wal and ledger.db-shm away together, then restore a backup or "
    "let `ingest ledger rebuild` make a new one from the store; what is received waits in the spool"
)

_POSTGRESQL_WAITS: Final = {
    "connect_timeout": 10,
    "tcp_user_timeout": 20_000,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
}
"""Parameters of libpq: a server that is cut off without a word is given up after about 20 s. Those in the
URL go first."""

CLOCK_SECONDS: Final = 5.0
"""How long the database's clock is not looked at again."""

_SERVER_CLOCK: Final = sqlalchemy.text("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint")

_READ_ONLY: Final = sqlalchemy.text("SHOW transaction_read_only")

_MIGRATION_LOCK: Final = 0x1D1C0
"""Key of PostgreSQL's advisory lock that one migrating process holds."""

_SCHEMA_AWAY: Final = frozenset({"3F000", "42501", "42P01", "42703", "26000", "42P05"})
"""SQLSTATEs of programming errors that are no fault of a row. The tables are gone, are others, or are not
ours to use: invalid schema name, insufficient privilege, undefined table, undefined column. Or a pooler gave
the connection to somebody else: no such prepared statement, and one that is there already."""


class Database:
    """An engine for one ledger. Make it after the fork: connections do not survive one."""

    def __init__(self, url: str) -> None:
        """Prepare; nothing is opened yet.

        Args:
            url: An SQLAlchemy URL: `sqlite:////abs/path` or `postgresql+psycopg://…`.

        Raises:
            LedgerError: The URL cannot be read, or its driver is not installed.
        """
        try:
            self._url = make_url(url)
            self.name = mask_url_password(url)
            self._engine = _engine(self._url)
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise LedgerError(
                f"[ledger] url cannot be used: {error}; see docs/reference/configuration.md"
            ) from error
        except ValueError as error:  # such as a port that is no number; what it says may be the password
            raise LedgerError(
                "[ledger] url cannot be used: is no URL; see docs/reference/configuration.md"
            ) from error
        self.dialect = self._engine.dialect.name
        self._writer = self._engine.execution_options(ingest_writer=True)
        self._clock_ms, self._clock_until = 0, 0.0
        self._opened: tuple[int, int] | None = None

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    @contextlib.contextmanager
    def begin_read(self) -> Iterator[Connection]:
        """A transaction that only reads.

        Raises:
            LedgerError: The ledger is away.
        """
        with self._errors():
            self._require_file()
            with self._engine.begin() as connection:
                yield connection

    @contextlib.contextmanager
    def begin_write(self) -> Iterator[Connection]:
        """A transaction that is durable once the block has ended; on SQLite the only one that writes.

        Raises:
            LedgerError: The ledger is away; nothing was written, or all where the answer to COMMIT was lost.
        """
        with self._errors():
            self._require_file()
            with self._writer.begin() as connection:
                yield connection

    def unix_ms(self) -> int:
        """The time that leases and pauses of this ledger go by, in Unix milliseconds.

        That of the database's server, so that hosts with different clocks agree. Between two looks at it the
        monotonic clock is added, which nobody sets. SQLite is for one host: its wall clock is everybody's.

        Raises:
            LedgerError: The ledger is away, and has never said its time.
        """
        if self.dialect != "postgresql":
            return unix_ms()
        now = time.monotonic()
        if now >= self._clock_until:
            try:
                with self.begin_read() as connection:
                    told = connection.execute(_SERVER_CLOCK).scalar_one()
                self._clock_ms = int(told) - round(time.monotonic() * 1000)
            except LedgerError:
                # What the server said last is good for as long as the host runs.
                if not self._clock_until:
                    raise
            self._clock_until = now + CLOCK_SECONDS
        return self._clock_ms + round(now * 1000)

    def require_writable(self) -> None:
        """Look whether the ledger takes writes; nothing is written.

        Raises:
            LedgerError: It is away, or can be read only: a PostgreSQL server that is a standby or was made
                read-only, SQLite on a file system that is mounted so.
        """
        with self.begin_read() as connection:
            if self.dialect == "postgresql":
                read_only = connection.execute(_READ_ONLY).scalar_one() == "on"
            else:
                folder = Path(self._url.database or "").parent
                read_only = bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
        if read_only:
            raise LedgerError(f"the ledger {self.name} can be read, and not written to: it is read-only")

    def open_session(self) -> Connection:
        """A connection of the caller's own, without transactions; the caller closes it.

        Raises:
            LedgerError: The ledger is away.
        """
        with self._errors():
            return self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")

    def query_value(
        self, session: Connection, statement: sqlalchemy.TextClause, values: dict[str, int]
    ) -> object:
        """Ask for one value over a connection of `open_session`.

        Raises:
            LedgerError: The ledger is away, or the connection has ended.
        """
        names = statement.compile().params
        with self._errors():
            return session.execute(statement, {name: values[name] for name in names}).scalar()

    def read_schema_version(self) -> str | None:
        """The revision of the schema; None for an empty ledger.

        Raises:
            LedgerError: The ledger is away.
        """
        with self._errors():
            if self._file is not None and not self._file.exists():
                return None
        with self.begin_read() as connection:
            return _version(connection)

    def require_schema(self) -> None:
        """Make sure that the ledger is of the revision that this program knows.

        Raises:
            LedgerError: It is of another, or the ledger is away.
        """
        self._require_version(self.read_schema_version())

    def migrate(self) -> None:
        """Bring the schema to this program's revision; of several processes one does it and the others wait.

        Raises:
            LedgerError: The ledger is away, or of a revision that this program does not know.
        """
        if self.read_schema_version() == SCHEMA_VERSION:
            return
        with self._migration_lock(), self._errors(), self._writer.begin() as connection:
            if self.dialect == "postgresql":
                connection.execute(sqlalchemy.select(sqlalchemy.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            found = _version(connection)
            if found != SCHEMA_VERSION:
                # alembic takes longer to import than all the rest: only who needs it pays.
                from ingest.ledger.migrations import upgrade  # noqa: PLC0415 - see above

                if not upgrade(connection):
                    self._require_version(found)

    def _require_version(self, found: str | None) -> None:
        if found != SCHEMA_VERSION:
            raise LedgerError(
                f"the ledger {self.name} has schema version {found or 'none'}, this program needs "
                f"{SCHEMA_VERSION}; `ingest serve` migrates an older one, for a newer one use a newer program"
            )

    def _require_file(self) -> None:
        """Make sure that the file of SQLite is there, and is the one that is open.

        SQLite would make it, for whoever only asks: `ingest status` may be another user. And it would go on
        with a file that was removed or replaced since, and whatever it commits there is lost at the end.

        Raises:
            LedgerError: It is not there.
        """
        if self._file is None:
            return
        try:
            facts = self._file.stat()
        except (FileNotFoundError, NotADirectoryError):
            raise LedgerError(f"the ledger {self.name} is not there; `ingest serve` makes it") from None
        found = (facts.st_dev, facts.st_ino)
        if self._opened not in {None, found}:
            self._engine.dispose()
        self._opened = found

    @property
    def _file(self) -> Path | None:
        if self.dialect != "sqlite" or not self._url.database:
            return None
        return Path(self._url.database)

    @contextlib.contextmanager
    def _migration_lock(self) -> Iterator[None]:
        """SQLite: a lock beside the file, since changing to WAL fails at once where another is doing so."""
        if self._file is None:
            yield
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
            lock = os.open(f"{self._file}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise LedgerError(f"the ledger {self.name} cannot be made: {error}") from error
        try:
            self._wait_for(lock)
            yield
        finally:
            os.close(lock)

    def _wait_for(self, lock: int) -> None:
        deadline = time.monotonic() + MIGRATION_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise LedgerError(
                        f"the ledger {self.name} has been migrated for {MIGRATION_SECONDS:.0f} s by "
                        f"the process that holds {self._file}.lock; see what it waits for"
                    ) from None
                time.sleep(0.02)
            else:
                return

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn every error that is not about the statement or its values into `LedgerError`."""
        try:
            yield
        except PoolTimeoutError as error:
            raise LedgerError(f"the ledger {self.name} has no connection free") from error
        except StatementError as error:
            if _blames_the_statement(error):
                raise
            if is_malformed(error.orig):
                raise LedgerError(
                    f"the ledger {self.name} is malformed ({error.orig}): {MALFORMED_REMEDY}"
                ) from error
            raise LedgerError(f"the ledger {self.name} cannot be used: {error.orig}") from error
        except (OSError, MemoryError) as error:
            raise LedgerError(f"the ledger {self.name} cannot be used: {error!r}") from error


def is_malformed(error: object) -> bool:
    """Whether SQLite says that the file is damaged, or is none of its own."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def _blames_the_statement(error: StatementError) -> bool:
    """Whether the statement or its values are wrong; otherwise the ledger is away, however it says so.

    Read-only, malformed, locked, out of memory, disk failing, connection lost: all of that is over some day.
    """
    cause = error.orig
    if not isinstance(error, DBAPIError):
        # What Python raised while the statement was under way.
        return not isinstance(cause, OSError | MemoryError)
    if error.connection_invalidated:
        return False
    if isinstance(error, ProgrammingError):
        of_a_url = "connection option" in str(cause)  # of libpq, about a parameter of the URL
        return not (of_a_url or getattr(cause, "sqlstate", None) in _SCHEMA_AWAY)
    return isinstance(error, IntegrityError | DataError)


def _version(connection: Connection) -> str | None:
    if not sqlalchemy.inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.execute(
        sqlalchemy.text("SELECT version_num FROM alembic_version")
    ).scalar_one_or_none()
    return found


def _engine(url: sqlalchemy.URL) -> Engine:
    if url.get_backend_name() != "sqlite":
        waits = {key: value for key, value in _POSTGRESQL_WAITS.items() if key not in url.query}
        # A connection that died while idle is replaced instead of failing a batch.
        engine = sqlalchemy.create_engine(url, connect_args=waits, pool_pre_ping=True, hide_parameters=True)
        resolve_hosts(engine)
        return engine
    timeout = {"timeout": BUSY_MILLISECONDS / 1000}
    # The values of a statement that fails are no matter of logs.
    engine = sqlalchemy.create_engine(url, connect_args=timeout, hide_parameters=True)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # The driver would begin transactions by itself, too late and never IMMEDIATE.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    # In WAL mode FULL syncs the log at every commit; NORMAL would lose the last ones with the power.
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA cache_size = -16384")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A writer that began as a reader fails, without waiting, where another wrote meanwhile: it says so first.
    writer = connection.get_execution_options().get("ingest_writer")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writer else "BEGIN")
