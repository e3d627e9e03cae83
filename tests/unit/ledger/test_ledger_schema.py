"""The ledger's schema: made by migrations, once, by whoever comes first."""

import contextlib
import fcntl
import multiprocessing
import os
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from ingest.errors import LedgerError
from ingest.ledger import SCHEMA_VERSION, InstanceState, Ledger, Outcome
from ingest.ledger.migrations import configuration, head
from ingest.ledger.schema import metadata
from tests.support.ledgers import find_newest_instances, row

TEXTS = (
    "sop_instance_uid",
    "sop_class_uid",
    "study_uid",
    "series_uid",
    "transfer_syntax_uid",
    "calling_ae",
    "called_ae",
    "source",
    "note",
)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/100% ledger/ledger.db"


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    """A ledger without tables."""
    with contextlib.closing(Ledger(url)) as opened:
        yield opened


def _migrate(url: str, barrier: "multiprocessing.synchronize.Barrier") -> None:
    barrier.wait(30)
    ledger = Ledger(url)
    ledger.migrate()
    ledger.instances.record([row(os.getpid())])
    ledger.close()


def test_program_knows_the_newest_revision() -> None:
    assert head() == SCHEMA_VERSION


def test_migrations_make_exactly_the_tables_that_the_program_uses(ledger: Ledger) -> None:
    ledger.migrate()
    with ledger.database.begin_read() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), metadata)
    assert differences == []


def test_several_processes_that_start_at_once_migrate_once(url: str) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(4)
    processes = [context.Process(target=_migrate, args=(url, barrier)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    ledger = Ledger(url)
    assert len(find_newest_instances(ledger)) == 4
    ledger.close()


def test_migrating_again_changes_nothing(ledger: Ledger) -> None:
    ledger.migrate()
    ledger.instances.record([row(1)])
    ledger.migrate()
    ledger.require_schema()
    assert len(find_newest_instances(ledger)) == 1


def test_other_schema_version_is_refused_and_both_are_named(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match=f"none.*{SCHEMA_VERSION}"):
        ledger.require_schema()
    ledger.migrate()
    with ledger.database.begin_write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    for ask in (ledger.require_schema, ledger.migrate):
        with pytest.raises(LedgerError, match=f"9999.*{SCHEMA_VERSION}"):
            ask()


def test_sqlite_commits_are_synced_and_its_log_is_ahead(ledger: Ledger) -> None:
    ledger.migrate()
    with ledger.database.begin_read() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


def test_locked_ledger_is_away_and_not_broken(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.ledger.database.BUSY_MILLISECONDS", 20)
    with contextlib.closing(Ledger(url)) as ledger:
        ledger.migrate()
        path = url.removeprefix("sqlite:///")
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(LedgerError, match="locked"):
                ledger.instances.record([row(1)])
        ledger.instances.record([row(1)])


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="file"):
        Ledger(f"sqlite:///{tmp_path}/file/ledger.db").migrate()


def test_ledger_of_the_first_revision_keeps_its_rows_and_one_stored_object_a_uid(ledger: Ledger) -> None:
    ledger.migrate()
    with ledger.database.begin_write() as connection:
        command.downgrade(configuration(connection), "0001")
        for number, (uid, key) in enumerate([("1.2", "a"), ("1.2", "b"), ("1.3", "c")], 1):
            names = ", ".join(f"'{uid}'" if name == "sop_instance_uid" else "''" for name in TEXTS)
            connection.exec_driver_sql(
                f"INSERT INTO instances ({', '.join(TEXTS)}, id, state, store_key, spool_ref, size, "
                f"data_set_offset, received_at, stored_at) "
                f"VALUES ({names}, {number}, 'stored', '{key}', '{number}', 1, 1, 1, 1)"
            )
    ledger.migrate()
    rows = sorted(find_newest_instances(ledger), key=lambda row: row.id)
    assert [(row.store_key, row.state.value, row.routed) for row in rows] == [
        ("a", "stored", ""),
        ("b", "variant", ""),
        ("c", "stored", ""),
    ]


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_ledger_without_copies_keeps_its_rows_and_takes_copies(
    url: str, dialect: str, request: pytest.FixtureRequest
) -> None:
    if dialect == "postgresql":
        url = request.getfixturevalue("postgresql_url")
        emptied = Ledger(url)
        with emptied.database.begin_write() as connection:
            connection.exec_driver_sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        emptied.close()
    ledger = Ledger(url)
    ledger.migrate()
    copy = row(2, sop_instance_uid="1.2.1", copy_digest="a")
    ledger.instances.record([row(1), copy, row(3, state=InstanceState.VARIANT)])
    with ledger.database.begin_write() as connection:
        command.downgrade(configuration(connection), "0005")
        command.upgrade(configuration(connection), "head")
    rows = sorted(find_newest_instances(ledger), key=lambda one: one.id)
    assert [(one.state.value, one.copy_digest) for one in rows] == [
        ("stored", ""),
        ("variant", ""),
        ("variant", ""),
    ]
    second = row(4, sop_instance_uid="1.2.1", copy_digest="b")
    taken = row(5, sop_instance_uid="1.2.1", copy_digest="b", store_key="other")
    assert ledger.instances.record([second, taken]) == [Outcome.RECORDED, Outcome.TAKEN]
    ledger.close()


def test_migration_waits_for_a_process_that_has_just_made_the_database(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with open(f"{path}.lock", "w") as lock, contextlib.closing(sqlite3.connect(path)) as maker:
        fcntl.flock(lock, fcntl.LOCK_EX)
        maker.execute("CREATE TABLE first (one)")
        maker.execute("BEGIN EXCLUSIVE")  # as the change to WAL mode
        ledger = Ledger(f"sqlite:///{path}")
        with ThreadPoolExecutor() as pool:
            migration = pool.submit(ledger.migrate)
            time.sleep(0.5)
            maker.rollback()
            lock.close()
            assert migration.result(30) is not None
        ledger.require_schema()
        ledger.close()
