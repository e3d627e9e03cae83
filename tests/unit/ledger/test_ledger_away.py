"""Which errors of a database mean that the ledger is away, and which are about what was asked of it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.exc import DataError, IntegrityError, ProgrammingError

from ingest.errors import LedgerError
from ingest.ledger import Ledger


@contextlib.contextmanager
def opened(url: str) -> Iterator[Ledger]:
    ledger = Ledger(url)
    try:
        yield ledger
    finally:
        ledger.close()


def fails(ledger: Ledger, statement: str) -> None:
    with ledger.database.begin_write() as connection:
        connection.exec_driver_sql(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "SET TRANSACTION READ ONLY; CREATE TABLE no_matter (id int)",
        "SELECT 1 FROM a_table_that_is_gone",
        "SELECT a_column_that_is_gone FROM pg_class",
        "CREATE TABLE a_schema_that_is_gone.no_matter (id int)",
        "SET ROLE pg_monitor; CREATE TABLE pg_catalog.no_matter (id int)",
        "SELECT pg_terminate_backend(pg_backend_pid())",
        "SET LOCAL statement_timeout = 1; SELECT pg_sleep(1)",
    ],
)
def test_postgresql_that_cannot_be_used_is_away(postgresql_url: str, statement: str) -> None:
    with opened(postgresql_url) as ledger, pytest.raises(LedgerError, match="cannot be used"):
        fails(ledger, statement)


@pytest.mark.parametrize(
    ("kind", "statement"),
    [
        (ProgrammingError, "SELEKT 1"),
        (DataError, "SELECT 'x'::bytea, 'no number'::int"),
        (
            IntegrityError,
            "CREATE TEMPORARY TABLE own (id int PRIMARY KEY); INSERT INTO own VALUES (1), (1)",
        ),
    ],
)
def test_what_is_about_the_statement_is_not_waited_for(
    postgresql_url: str, kind: type[Exception], statement: str
) -> None:
    with opened(postgresql_url) as ledger, pytest.raises(kind):
        fails(ledger, statement)


@pytest.mark.parametrize(
    ("damage", "said"),
    [(b"no database", "not a database"), (b"", "malformed")],
)
def test_sqlite_that_is_damaged_is_away(tmp_path: Path, damage: bytes, said: str) -> None:
    file = tmp_path / "ledger.db"
    with opened(f"sqlite:///{file}") as ledger:
        ledger.migrate()
        ledger.close()
    content = file.read_bytes()
    file.write_bytes(damage + content[len(damage) : 4096] + b"\xff" * (len(content) - 4096))
    with opened(f"sqlite:///{file}") as ledger, pytest.raises(LedgerError, match=said):
        ledger.instances.count_by_state()


def test_ledger_that_cannot_be_looked_at_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_path: Path) -> bool:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "stat", failing)
    with (
        opened(f"sqlite:///{tmp_path}/ledger.db") as ledger,
        pytest.raises(LedgerError, match="Input/output"),
    ):
        ledger.instances.count_by_state()


def test_want_of_memory_in_a_statement_is_no_fault_of_its_values(tmp_path: Path) -> None:
    with opened(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        ledger.migrate()
        with pytest.raises(LedgerError), ledger.database.begin_write():
            raise MemoryError
