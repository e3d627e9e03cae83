"""A ledger that was lost or is older than its store: noticed, and rebuilt from the files."""

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from ingest.alarms import standing_alarms
from ingest.checks.node import check_node
from ingest.errors import StoreMissingError
from ingest.filesystem.folder_identity import LEDGER_MARK, read_ledger_mark
from ingest.ledger import InstanceState
from ingest.status.report import gather_status
from ingest.workers import ledger_rebuild as rebuilding
from tests.support.instances import IMPLICIT, Made
from tests.support.persisting import Site

Sites = Callable[..., Site]


def ledger_file(site: Site) -> Path:
    return site.config.data_dir / "ledger.db"


def lose_ledger(site: Site) -> None:
    for path in site.config.data_dir.glob("ledger.db*"):
        path.unlink()


def back_up(site: Site) -> Path:
    kept = site.config.data_dir / "backup.db"
    with (
        contextlib.closing(sqlite3.connect(ledger_file(site))) as one,
        contextlib.closing(sqlite3.connect(kept)) as other,
    ):
        one.backup(other)
    return kept


def restore(site: Site, kept: Path) -> None:
    lose_ledger(site)
    shutil.copy(kept, ledger_file(site))


def rebuild(site: Site, *, deliveries: bool = True) -> int:
    done = rebuilding.rebuild_ledger(site.config, makes_deliveries=deliveries, report_progress=lambda _: None)
    return int(done.left_out)


def verified(site: Site, *, reads: bool = False) -> dict[str, int]:
    found = rebuilding.verify_ledger(site.config, reads=reads, report_progress=lambda _: None)
    assert found.differs == (any(found.counts.values()) or bool(found.doubt))
    return {kind: count for kind, count in found.counts.items() if count}


def alarms(site: Site) -> list[str]:
    return [alarm.name for alarm in standing_alarms(site.config.run_dir)]


def said_by_check(site: Site) -> list[str]:
    return [
        fault.cause for fault in check_node(site.config) if fault.key == "ledger.url" and not fault.is_note
    ]


def said_by_status(site: Site) -> list[str]:
    return [alarm["name"] for alarm in gather_status(site.config)["alarms"]]


def test_deleted_ledger_is_noticed_and_rebuilt_with_its_deliveries(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        site.receive(Made(sop=f"1.{number}", study=f"7.{number}"))
    site.work()
    before = site.instances()
    for key in site.stored():  # as a restored file, which is as old as it was
        os.utime(site.config.store_root / key, (1_000_000, 1_000_000))
    assert (said_by_check(site), said_by_status(site), alarms(site)) == ([], [], [])

    lose_ledger(site)
    assert "the ledger is new" in said_by_check(site)[0]
    site.receive(Made(sop="1.9"))
    site.work()  # receiving goes on
    assert alarms(site) == said_by_status(site) == ["ledger_behind_store"]
    assert "the ledger is new" in said_by_check(site)[0]
    assert verified(site) == {"without_row": 3}

    assert rebuild(site) == 0
    assert (said_by_check(site), said_by_status(site), alarms(site)) == ([], [], [])
    assert verified(site, reads=True) == {}
    rows = {row.sop_instance_uid: row for row in site.instances()}
    for old in before:
        new = rows[old.sop_instance_uid]
        same = ("state", "sop_class_uid", "study_uid", "series_uid", "transfer_syntax_uid", "store_key")
        for name in (*same, "size", "data_set_offset", "calling_ae", "called_ae", "source"):
            assert getattr(new, name) == getattr(old, name), name
        assert (new.received_at, new.stored_at) == (1_000_000_000, 1_000_000_000)
        assert (new.note, new.routed) == (
            "rebuilt from the store",
            f"rebuilt from the store: {old.routed}",
        )
    assert site.deliveries() == 4

    # Again, it does nothing; what comes next is counted in both, and what comes again is no event.
    assert rebuild(site) == 0
    site.receive(Made(sop="1.1", study="7.1"))
    site.receive(Made(sop="1.10"))
    site.work()
    assert (len(site.instances()), site.deliveries(), alarms(site)) == (5, 5, [])


def test_older_backup_is_noticed_until_the_ledger_is_rebuilt(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.receive(Made(sop="1.1"))
    site.work()
    kept = back_up(site)
    site.receive(Made(sop="1.2"))
    site.work()

    restore(site, kept)
    assert "is older than the store" in said_by_check(site)[0]
    for number in range(3, 8):  # however much comes meanwhile
        site.receive(Made(sop=f"1.{number}"))
        site.work()
        assert alarms(site) == ["ledger_behind_store"]
    assert verified(site) == {"without_row": 1}
    assert rebuild(site) == 0
    assert (said_by_check(site), alarms(site)) == ([], [])
    assert sorted(row.sop_instance_uid for row in site.instances()) == [f"1.{n}" for n in range(1, 8)]


def test_ledger_that_is_as_old_as_its_store_is_no_alarm(site: Site) -> None:
    for number in range(3):
        site.receive(Made(sop=f"1.{number}"))
        site.work()
    mark = read_ledger_mark(site.config.store_root)
    assert mark is not None
    # Killed between the two: the ledger is ahead.
    with site.ledger() as ledger:
        ledger.store_folders.advance_mark()
    site.receive(Made(sop="1.9"))
    site.work()
    assert (said_by_check(site), alarms(site)) == ([], [])


@pytest.mark.parametrize("policy", ["keep-both", "keep-identical"])
def test_variants_copies_and_quarantine_are_rebuilt_as_what_they_are(
    make_persist_site: Sites, capsys: pytest.CaptureFixture[str], policy: str
) -> None:
    site = make_persist_site(store={"duplicates": policy})
    site.receive(Made(sop="1.1"))
    site.receive(Made(sop="1.1", pixels=b"\5\6\7\7"))
    site.receive(Made(sop="1.1", syntax=IMPLICIT))
    site.receive(Made(sop="1.2"), suffix=".A900")
    site.receive(b"no image at all")
    site.work()
    before = {row.store_key: row for row in site.instances()}
    lose_ledger(site)
    assert rebuild(site) == 0
    after = {row.store_key: row for row in site.instances()}
    assert after.keys() == before.keys()
    for key, row in before.items():
        found = after[key]
        assert (found.state, found.copy_digest, found.refused_status) == (
            row.state,
            row.copy_digest,
            row.refused_status,
        )
    assert verified(site, reads=True) == {}


def test_rebuild_without_deliveries_makes_rows_only(site: Site) -> None:
    site.receive(Made(sop="1.1"))
    site.work()
    lose_ledger(site)
    assert rebuild(site, deliveries=False) == 0
    [row] = site.instances()
    assert row.routed == "rebuilt from the store: no deliveries asked for"
    assert site.deliveries() == 0


def test_interrupted_rebuild_goes_on(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(10):
        site.receive(Made(sop=f"1.{number}"))
    site.work()
    lose_ledger(site)
    monkeypatch.setattr(rebuilding, "CHUNK", 3)
    real, calls = rebuilding.LedgerRebuild._record_rows, []

    def interrupted(self: rebuilding.LedgerRebuild, rows: object) -> None:
        calls.append(rows)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(self, rows)  # type: ignore[arg-type]

    monkeypatch.setattr(rebuilding.LedgerRebuild, "_record_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rebuild(site)
    assert len(site.instances()) == 6
    assert rebuild(site) == 0
    assert (len(site.instances()), site.deliveries()) == (10, 10)


def test_files_that_a_worker_may_be_about_to_record_are_left_to_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.receive(Made(sop="1.1"))
    site.work()
    lose_ledger(site)
    monkeypatch.setattr("ingest.filesystem.node_lock.are_workers_running", lambda _: True)
    assert rebuild(site) == 1
    assert site.instances() == []
    monkeypatch.setattr(rebuilding, "YOUNG_SECONDS", 0.001)
    assert rebuild(site) == 0
    assert len(site.instances()) == 1


def test_verify_finds_lost_cut_and_changed_files(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(1, 5):
        site.receive(Made(sop=f"1.{number}"))
    site.work()
    assert verified(site, reads=True) == {}
    first, second, third, fourth = (site.config.store_root / key for key in site.stored())
    first.unlink()
    os.truncate(second, second.stat().st_size - 2)
    shutil.copy(fourth, third)
    assert verified(site) == {"without_file": 1, "of_other_size": 1}
    assert verified(site, reads=True) == {"without_file": 1, "of_other_size": 1, "other_objects": 1}


def test_store_that_is_not_mounted_is_not_compared(site: Site) -> None:
    site.receive(Made(sop="1.1"))
    site.work()
    site.config.store_root.rename(site.config.store_root.with_name("away"))
    site.config.store_root.mkdir()
    for do in (
        lambda: rebuild(site),
        lambda: verified(site),
    ):
        with pytest.raises(StoreMissingError):
            do()


def test_both_ledgers_remember_their_store(either_ledger: Sites) -> None:
    site = either_ledger()
    site.receive(Made(sop="1.1"))
    site.work()
    mark = read_ledger_mark(site.config.store_root)
    with site.ledger() as ledger:
        assert ledger.store_folders.read_mark() == mark
        with ledger.database.begin_write() as connection:
            for table in ("deliveries", "instances"):
                connection.exec_driver_sql(f"DELETE FROM {table}")
    rebuild(site)
    if site.config.ledger_url.startswith("sqlite"):
        assert [row.state for row in site.instances()] == [InstanceState.STORED]


def test_mark_that_cannot_be_read_or_written_keeps_nothing_back(site: Site) -> None:
    site.receive(Made(sop="1.1"))
    site.work()
    marker = site.config.store_root / LEDGER_MARK
    for content in (b"", b"\xff{", b"[]", b'{"id": 1}'):
        marker.write_bytes(content)
        assert read_ledger_mark(site.config.store_root) is None
    marker.unlink()
    marker.mkdir()
    site.receive(Made(sop="1.2"))
    site.work()
    assert len(site.instances()) == 2
