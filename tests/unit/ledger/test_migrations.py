"""Migrations with several processes at once, on both databases, some of them killed in the midst."""

import contextlib
import socket
from pathlib import Path

import pytest

from ingest.build_info import read_version
from ingest.errors import BootError, LedgerError, LedgerVersionError
from ingest.ledger import SCHEMA_VERSION, Ledger, database
from ingest.ledger.migrations import list_steps
from ingest.workers.host_recorder import HostRecorder
from tests.support.ledgers import find_newest_instances, row
from tests.support.migrating import downgrade, finish, pretend_newer, read_line, start_migration
from tests.support.spools import config as make_config


def make_old(ledger: Ledger) -> None:
    """Give a ledger an older schema version, and a few rows."""
    ledger.instances.record([row(number) for number in range(1, 50)])
    downgrade(ledger, "0011")


def test_one_of_several_processes_migrates_and_a_killed_one_leaves_nothing_behind(
    ledger: Ledger, url: str
) -> None:
    make_old(ledger)
    killed = start_migration(url, pause_after="0014")
    assert read_line(killed) == "in the midst"
    others = [start_migration(url) for _ in range(3)]

    killed.kill()
    killed.communicate()

    said = sorted(finish(process) for process in others)
    assert said == ["migrated from -", "migrated from -", "migrated from 0011"]
    ledger.require_schema()
    assert len(find_newest_instances(ledger)) == 49
    assert ledger.count_rows().deliveries["pacs"] == {"waiting": 49}


def test_migration_that_was_killed_alone_begins_anew(ledger: Ledger, url: str) -> None:
    make_old(ledger)
    killed = start_migration(url, pause_after=SCHEMA_VERSION)
    assert read_line(killed) == "in the midst"
    killed.kill()
    killed.communicate()
    assert ledger.read_schema_version() == "0011"

    assert finish(start_migration(url)) == "migrated from 0011"
    assert len(find_newest_instances(ledger)) == 49


def test_process_that_waits_too_long_for_a_migration_names_the_lock(
    ledger: Ledger, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_old(ledger)
    monkeypatch.setattr(database, "MIGRATION_SECONDS", 0.2)
    other = start_migration(url, pause_after="0012")
    assert read_line(other) == "in the midst"
    try:
        with pytest.raises(LedgerError, match=r"\.lock;|advisory lock"):
            ledger.migrate()
    finally:
        other.kill()
        other.communicate()


def test_steps_name_what_they_do_in_their_order() -> None:
    steps = list_steps("0011")
    assert [step.revision for step in steps] == [
        f"{number:04}" for number in range(12, int(SCHEMA_VERSION) + 1)
    ]
    assert all(step.sentence.endswith(".") and "\n" not in step.sentence for step in steps)
    assert {table for step in list_steps("") for table in step.cost} == {"instances", "deliveries"}


def test_newer_ledger_is_refused_with_both_releases_and_nothing_is_changed(ledger: Ledger) -> None:
    pretend_newer(ledger)
    for ask in (ledger.require_schema, ledger.migrate):
        with pytest.raises(
            LedgerVersionError, match=rf"9999 of dicom-ingest 99\.1\.0.*{read_version()}.*restore"
        ):
            ask()
    assert ledger.read_schema_version() == "9999"


def test_host_is_noted_and_a_worker_ends_when_a_newer_program_has_migrated(
    ledger: Ledger, tmp_path: Path
) -> None:
    recorder = HostRecorder(make_config(tmp_path), ledger, "persist")
    recorder.record_if_due()
    [note] = ledger.hosts.list_hosts()
    assert (note.host, note.role, note.release) == (socket.gethostname(), "persist", read_version())
    assert abs(note.seen_at - ledger.unix_ms()) < 10_000

    recorder.record_if_due()  # not due: nothing is asked
    pretend_newer(ledger)
    recorder.record_if_due()
    with pytest.raises(BootError, match="9999"):
        HostRecorder(make_config(tmp_path), ledger, "persist").record_if_due()


@pytest.mark.usefixtures("ledger")
def test_read_only_ledger_refuses_every_write(url: str) -> None:
    with contextlib.closing(Ledger(url, is_read_only=True)) as reader:
        with pytest.raises(LedgerError, match=r"read-?only"):
            reader.instances.record([row(1)])
        assert find_newest_instances(reader) == []
