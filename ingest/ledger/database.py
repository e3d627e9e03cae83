"""The database of the ledger: transactions on SQLite or PostgreSQL, errors, shared clock, migration."""

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import sqlalchemy
import structlog
from sqlalchemy import Connection, Engine, event, make_url
from sqlalchemy.dialects import postgresql, sqlite
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
from sqlalchemy.pool import ConnectionPoolEntry

from ingest.build_info import read_version
from ingest.clock import unix_ms
from ingest.config.serialization import mask_url_password
from ingest.errors import LedgerError, LedgerVersionError
from ingest.extras import explain_import_error
from ingest.ledger.server_address import resolve_hosts
from ingest.program import SCHEMA_VERSION

BUSY_MILLISECONDS: Final = 10_000
"""How long a writer of SQLite waits for another writer."""

MIGRATION_SECONDS: Final = 60.0
"""How long a process waits for another one that migrates."""

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
"""Parameters of libpq. They end a connection to a server that vanished after about 20 s (INVARIANT 7).
Parameters in the URL take precedence.
"""

INSERT_BY_DIALECT: Final[dict[str, Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
"""Constructors of INSERT statements with ON CONFLICT, by `Database.dialect`."""

CLOCK_SECONDS: Final = 5.0
"""How long a reading of the server's clock is used."""

_SERVER_CLOCK: Final = sqlalchemy.text("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint")

_READ_ONLY: Final = sqlalchemy.text("SHOW transaction_read_only")

_DATABASE_BYTES: Final = sqlalchemy.text("SELECT pg_database_size(current_database())")

_MIGRATION_LOCK: Final = 0x1D1C0
"""Key of the advisory lock of PostgreSQL that a migrating process holds."""

_LOCK_POLL_SECONDS: Final = 0.02

_TABLE_LOCK_TIMEOUT: Final = sqlalchemy.text("SET LOCAL lock_timeout = '5s'")

_SCHEMA_AWAY: Final = frozenset({"3F000", "42501", "42P01", "42703", "26000", "42P05"})
"""SQLSTATEs of programming errors that are not the fault of a statement.

Either the tables are missing, different or forbidden: invalid schema name, insufficient privilege, undefined
table, undefined column. Or a connection pooler gave our session to another client: unknown prepared
statement, duplicate prepared statement.
"""


log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Migration:
    """A migration that this process has done.

    Attributes:
        found: Schema version before; None for an empty ledger.
        seconds: Its duration.
    """

    found: str | None
    seconds: float


class Database:
    """Opens the transactions of one ledger, for all of its parts.

    Create it after the fork, because database connections do not survive a fork. Every method raises
    LedgerError while the database is unavailable.
    """

    def __init__(self, url: str, *, is_read_only: bool = False) -> None:
        """Prepare the engine; the first transaction connects.

        Args:
            url: An SQLAlchemy URL: `sqlite:////abs/path` or `postgresql+psycopg://…`.
            is_read_only: Whether the database refuses every write over these connections.

        Raises:
            LedgerError: The URL is invalid, or its driver is not installed.
        """
        try:
            self._url = make_url(url)
            self.name = mask_url_password(url)
            self._engine = _engine(self._url, is_read_only=is_read_only)
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            if isinstance(error, ImportError) and (explained := explain_import_error(error)):
                raise LedgerError(f"[ledger] url {'; '.join(explained)}") from error
            raise LedgerError(
                f"[ledger] url cannot be used: {error}; see docs/reference/configuration.md"
            ) from error
        except ValueError as error:  # such as a bad port number; its text may contain the password
            raise LedgerError(
                "[ledger] url cannot be used: is no URL; see docs/reference/configuration.md"
            ) from error
        self.dialect = self._engine.dialect.name
        self._writer = self._engine.execution_options(ingest_writer=True)
        self._disposals = 0
        event.listen(self._engine, "connect", self._mark_connection)
        event.listen(self._engine, "checkin", self._close_if_disposed)
        self._clock_ms, self._clock_until = 0, 0.0
        self._opened: tuple[int, int] | None = None

    def close(self) -> None:
        """Close all connections. One that another thread uses is closed when its transaction ends."""
        self._disposals += 1
        self._engine.dispose()

    def _mark_connection(self, _connection: object, record: ConnectionPoolEntry) -> None:
        record.info["disposals"] = self._disposals

    def _close_if_disposed(self, _connection: object, record: ConnectionPoolEntry) -> None:
        """Close a connection that returns to a pool which nobody uses any more.

        SQLAlchemy's `dispose` makes a new pool. A connection that was in use at that moment would otherwise
        stay open in the old one until the collector finds it.
        """
        if record.info.get("disposals") != self._disposals:
            record.invalidate()

    @contextlib.contextmanager
    def begin_read(self) -> Iterator[Connection]:
        """Begin a transaction that only reads."""
        with self._errors():
            self._require_file()
            with self._engine.begin() as connection:
                yield connection

    @contextlib.contextmanager
    def begin_write(self) -> Iterator[Connection]:
        """Begin a transaction that is durable when the block ends; on SQLite no other one writes meanwhile.

        Raises:
            LedgerError: The database is unavailable. Nothing was written, unless the reply to COMMIT was
                lost; then all was written.
        """
        with self._errors():
            self._require_file()
            with self._writer.begin() as connection:
                yield connection

    def unix_ms(self) -> int:
        """Return the time that leases and pauses of this ledger use, in Unix milliseconds.

        PostgreSQL: the clock of the server, so that hosts with different clocks agree. Between two readings
        the monotonic clock is added, because nobody can set it. SQLite serves one host, whose wall clock is
        used.

        Raises:
            LedgerError: The server is unavailable, and its clock was never read.
        """
        if self.dialect != "postgresql":
            return unix_ms()
        now = time.monotonic()
        if now >= self._clock_until:
            try:
                with self.begin_read() as connection:
                    server_ms = connection.execute(_SERVER_CLOCK).scalar_one()
                self._clock_ms = int(server_ms) - round(time.monotonic() * 1000)
            except LedgerError:
                # The last reading plus the monotonic clock stays right until the host restarts.
                if not self._clock_until:
                    raise
            self._clock_until = now + CLOCK_SECONDS
        return self._clock_ms + round(now * 1000)

    def require_writable(self) -> None:
        """Check that the database accepts writes; write nothing.

        Raises:
            LedgerError: The database is unavailable or read-only: a PostgreSQL standby, or SQLite on a
                read-only mount.
        """
        with self.begin_read() as connection:
            if self.dialect == "postgresql":
                read_only = connection.execute(_READ_ONLY).scalar_one() == "on"
            else:
                folder = Path(self._url.database or "").parent
                read_only = bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
        if read_only:
            raise LedgerError(f"the ledger {self.name} can be read, and not written to: it is read-only")

    def measure_bytes(self) -> int:
        """Return the size of the database: that of its files, or as the server says.

        Raises:
            LedgerError: The database is unavailable.
        """
        if self.dialect == "postgresql":
            with self.begin_read() as connection:
                return int(connection.execute(_DATABASE_BYTES).scalar_one())
        total = 0
        for ending in ("", "-wal", "-shm"):
            with contextlib.suppress(OSError):
                total += os.stat(f"{self._url.database}{ending}").st_size
        return total

    def open_session(self) -> Connection:
        """Open a connection without transactions; the caller closes it."""
        with self._errors():
            return self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")

    def query_value(
        self, session: Connection, statement: sqlalchemy.TextClause, values: dict[str, int]
    ) -> object:
        """Read one value over a connection of `open_session`."""
        names = statement.compile().params
        with self._errors():
            return session.execute(statement, {name: values[name] for name in names}).scalar()

    def read_schema_version(self) -> str | None:
        """Return the schema version; None for an empty ledger."""
        with self._errors():
            if self._file is not None and not self._file.exists():
                return None
        with self.begin_read() as connection:
            return _version(connection)

    def require_schema(self) -> None:
        """Check that the ledger has the schema version of this program.

        Raises:
            LedgerVersionError: A newer program has migrated the ledger.
            LedgerError: The database is unavailable, or the ledger is older.
        """
        with self._errors():
            is_missing = self._file is not None and not self._file.exists()
        if is_missing:
            raise _make_version_error(self.name, None, "")
        with self.begin_read() as connection:
            self.require_schema_within(connection)

    def refuse_newer_schema(self) -> None:
        """Raise LedgerVersionError if a newer program has migrated the ledger; nothing if it is away."""
        try:
            self.require_schema()
        except LedgerVersionError:
            raise
        except LedgerError:
            pass

    def require_schema_within(self, connection: Connection) -> None:
        """Check the schema version as `require_schema`, within a transaction."""
        if error := find_version_error(connection, self.name):
            raise error

    def migrate(self, report_step: Callable[[str], None] | None = None) -> Migration | None:
        """Bring the schema to the version of this program, all in one transaction.

        One process of all hosts migrates. The others wait for its lock, and find the work done. If it is
        killed, the database undoes everything, and the next one begins anew.

        Args:
            report_step: Called with the revision of each migration that was run, before the COMMIT.

        Returns:
            The migration; None if the ledger had this version already.

        Raises:
            LedgerVersionError: A newer program has migrated the ledger. Nothing was changed.
            LedgerError: The database is unavailable, or another process migrates it for too long.
        """
        if self._has_this_schema():
            return None
        started = time.monotonic()
        with self._migration_lock(), self._errors(), self._writer.begin() as connection:
            if self.dialect == "postgresql":
                self._wait_for_advisory_lock(connection)
            found = _version(connection)
            if found == SCHEMA_VERSION:
                return None
            # alembic takes longer to import than everything else, so it is imported only for a migration.
            from ingest.ledger.migrations import upgrade  # noqa: PLC0415 - see above

            if not upgrade(connection, report_step):
                raise _make_version_error(self.name, found, _find_newest_release(connection))
        migration = Migration(found, time.monotonic() - started)
        log.info(
            "ledger_migrated",
            found=found or "none",
            schema_version=SCHEMA_VERSION,
            seconds=round(migration.seconds, 1),
        )
        return migration

    def _has_this_schema(self) -> bool:
        try:
            return self.read_schema_version() == SCHEMA_VERSION
        except LedgerError:
            # A new SQLite database is locked while another process changes it to WAL mode, and no timeout
            # applies to that. Behind the migration lock it is not, and other errors happen again.
            if self._file is None:
                raise
            return False

    def _require_file(self) -> None:
        """Check that the file of SQLite exists, and is the one that is open.

        SQLite would create a missing file, even for `ingest status`, which may run as another user. If the
        file was removed or replaced, SQLite would continue with the deleted one, and every commit would be
        lost at its end.
        """
        if self._file is None:
            return
        try:
            status = self._file.stat()
        except (FileNotFoundError, NotADirectoryError):
            remedy = "restore it and its folder; on a new node, `ingest serve` creates it"
            raise LedgerError(f"the ledger {self.name} is not there; {remedy}") from None
        found = (status.st_dev, status.st_ino)
        if self._opened not in {None, found}:
            self.close()
        self._opened = found

    @property
    def _file(self) -> Path | None:
        if self.dialect != "sqlite" or not self._url.database:
            return None
        return Path(self._url.database)

    @contextlib.contextmanager
    def _migration_lock(self) -> Iterator[None]:
        """SQLite: hold a lock file, because two processes cannot change to WAL mode at once."""
        if self._file is None:
            yield
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
            lock = os.open(f"{self._file}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise LedgerError(f"the ledger {self.name} cannot be made: {error}") from error
        try:
            self._wait_for_lock(lock)
            yield
        finally:
            os.close(lock)

    def _wait_for_lock(self, lock: int) -> None:
        def try_lock() -> bool:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        self._wait_until_locked(try_lock, f"{self._file}.lock")

    def _wait_for_advisory_lock(self, connection: Connection) -> None:
        """PostgreSQL: take a lock that ends with the transaction, or with a killed process.

        `pg_advisory_xact_lock` would wait without an end (INVARIANT 7).
        """
        statement = sqlalchemy.select(sqlalchemy.func.pg_try_advisory_xact_lock(_MIGRATION_LOCK))
        self._wait_until_locked(
            lambda: bool(connection.execute(statement).scalar_one()),
            f"the advisory lock {_MIGRATION_LOCK} (view pg_locks)",
        )
        # Changing a table waits for its readers, and later readers wait behind it. Give up soon, and retry.
        connection.execute(_TABLE_LOCK_TIMEOUT)

    def _wait_until_locked(self, try_lock: Callable[[], bool], lock: str) -> None:
        deadline = time.monotonic() + MIGRATION_SECONDS
        while not try_lock():
            if time.monotonic() > deadline:
                raise LedgerError(
                    f"the ledger {self.name} has been migrated for {MIGRATION_SECONDS:.0f} s by the process "
                    f"that holds {lock}; see what it waits for"
                )
            time.sleep(_LOCK_POLL_SECONDS)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn errors into LedgerError, unless they are the fault of the statement or its values."""
        try:
            yield
        except PoolTimeoutError as error:
            raise LedgerError(f"the ledger {self.name} has no connection free") from error
        except StatementError as error:
            _remove_values(error)
            if _blames_the_statement(error):
                raise
            if is_malformed(error.orig):
                raise LedgerError(
                    f"the ledger {self.name} is malformed ({error.orig}): {MALFORMED_REMEDY}"
                ) from error
            raise LedgerError(f"the ledger {self.name} cannot be used: {error.orig}") from error
        except (OSError, MemoryError) as error:
            raise LedgerError(f"the ledger {self.name} cannot be used: {error!r}") from error


def _remove_values(error: StatementError) -> None:
    """Leave only the first line of a message of PostgreSQL: the others may show the values of a row.

    INVARIANT 9: patient data stays in the data sets. The error may reach a log or the note of an instance.
    """
    primary = getattr(getattr(error.orig, "diag", None), "message_primary", None)
    if primary and error.orig is not None:
        error.orig.args = (primary,)
        error.args = (f"({type(error.orig).__name__}) {primary}",)


def is_malformed(error: object) -> bool:
    """Whether SQLite reports that the file is damaged or is no database."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def _blames_the_statement(error: StatementError) -> bool:
    """Whether the statement or its values are wrong. Otherwise the database is unavailable.

    INVARIANT 11: a database that is read-only, malformed, locked, out of memory, on a failing disk or
    disconnected is our fault. All of that passes, so the caller waits and blames no image.
    """
    cause = error.orig
    if not isinstance(error, DBAPIError):
        # Python raised this while the statement was running.
        return not isinstance(cause, OSError | MemoryError)
    if error.connection_invalidated:
        return False
    if isinstance(error, ProgrammingError):
        # libpq reports a wrong parameter of the URL only as text.
        is_about_url = "connection option" in str(cause)
        return not (is_about_url or getattr(cause, "sqlstate", None) in _SCHEMA_AWAY)
    return isinstance(error, IntegrityError | DataError)


def find_version_error(connection: Connection, name: str) -> LedgerError | None:
    """Return why this program must not use a ledger with its schema version; None if it may.

    Args:
        connection: Any connection to the database; nothing is written.
        name: URL of the ledger, for the message.
    """
    found = _version(connection)
    if found == SCHEMA_VERSION:
        return None
    return _make_version_error(name, found, _find_newest_release(connection))


def _make_version_error(name: str, found: str | None, release: str) -> LedgerError:
    """Describe a schema version that this program cannot use; one that it does not know is a newer one."""
    ours = f"this program, dicom-ingest {read_version()}, needs {SCHEMA_VERSION}"
    if found is not None and found > SCHEMA_VERSION:
        by = f" of dicom-ingest {release}" if release else ""
        return LedgerVersionError(
            f"the ledger {name} has schema version {found}{by}, and {ours}; start the newer program, or "
            "restore a backup from before the upgrade (docs/how-to/upgrade.md)"
        )
    return LedgerError(
        f"the ledger {name} has schema version {found or 'none'}, and {ours}; `ingest serve` or "
        "`ingest upgrade` migrates it"
    )


def _find_newest_release(connection: Connection) -> str:
    """Return the release that uses the ledger with the newest schema version; empty if nothing tells."""
    from ingest.ledger.hosts import read_hosts  # noqa: PLC0415 - hosts imports this module

    notes = sorted(read_hosts(connection), key=lambda note: (note.schema_version, note.seen_at))
    return notes[-1].release if notes and notes[-1].schema_version > SCHEMA_VERSION else ""


def _version(connection: Connection) -> str | None:
    if not sqlalchemy.inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.execute(
        sqlalchemy.text("SELECT version_num FROM alembic_version")
    ).scalar_one_or_none()
    return found


_statement_seconds = 0.0
_PROGRESS_STEPS: Final = 50_000
"""Instructions of SQLite between two looks at the clock: a few milliseconds."""


def bound_statements(seconds: float) -> None:
    """Let each later engine of this process give up a statement that takes longer.

    The console calls this once: one search must not keep its threads. Other processes wait for their work.
    """
    global _statement_seconds  # noqa: PLW0603 - it is a property of the process, as its priority
    _statement_seconds = seconds


def _engine(url: sqlalchemy.URL, *, is_read_only: bool) -> Engine:
    if url.get_backend_name() != "sqlite":
        waits = {key: value for key, value in _POSTGRESQL_WAITS.items() if key not in url.query}
        # The ping replaces a connection that died while it was idle. Otherwise a batch would fail.
        engine = sqlalchemy.create_engine(url, connect_args=waits, pool_pre_ping=True, hide_parameters=True)
        resolve_hosts(engine)
        event.listen(engine, "connect", _prepare_postgresql)
        if is_read_only:
            event.listen(engine, "connect", _forbid_postgresql_writes)
        if _statement_seconds:
            event.listen(engine, "connect", _bound_postgresql)
        return engine
    timeout = {"timeout": BUSY_MILLISECONDS / 1000}
    # INVARIANT 9: the values of a failed statement must not reach a log.
    engine = sqlalchemy.create_engine(url, connect_args=timeout, hide_parameters=True)
    event.listen(engine, "connect", _prepare_sqlite)
    if is_read_only:
        event.listen(engine, "connect", _forbid_sqlite_writes)
    event.listen(engine, "begin", _begin_sqlite)
    if _statement_seconds:
        event.listen(engine, "begin", _bound_sqlite)
    return engine


def _prepare_postgresql(connection: Any, _record: object) -> None:
    # Statements read few rows by indexes. Where PostgreSQL expects more of them, it would spend 0.1 s on
    # compiling an expression and on starting parallel workers.
    with connection.cursor() as cursor:
        cursor.execute("SET jit = off; SET max_parallel_workers_per_gather = 0")
    connection.commit()


def _bound_postgresql(connection: Any, _record: object) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"SET statement_timeout = {int(_statement_seconds * 1000)}")
    connection.commit()


def _forbid_postgresql_writes(connection: Any, _record: object) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET default_transaction_read_only = on")
    connection.commit()


def _forbid_sqlite_writes(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA query_only = ON").close()


def _bound_sqlite(connection: Connection) -> None:
    """Interrupt the statements of this transaction after its time; it is then rolled back."""
    driver = connection.connection.driver_connection
    until = time.monotonic() + _statement_seconds
    if driver is not None:
        driver.set_progress_handler(lambda: time.monotonic() > until, _PROGRESS_STEPS)


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # The driver would begin transactions itself: too late, and never as IMMEDIATE.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    # INVARIANT 1: durable before Success. In WAL mode FULL syncs the log at every commit. NORMAL would lose
    # the last commits in a power cut.
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA cache_size = -16384")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that begins as a reader and then writes fails at once if another one wrote in between.
    # BEGIN IMMEDIATE waits for the other writer instead.
    writer = connection.get_execution_options().get("ingest_writer")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writer else "BEGIN")
