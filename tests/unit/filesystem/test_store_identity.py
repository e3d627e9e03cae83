"""A store, quarantine or spool that is not mounted is missed, and never made anew in its mount point."""

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ingest.alarms import standing_alarms
from ingest.errors import SpoolMissingError, StoreMissingError
from ingest.filesystem.folder_identity import (
    MARKER,
    KnownFolder,
    ensure_id,
    read_id,
    remember_spool,
    require_spool,
    require_store,
)
from ingest.ledger import InstanceState
from ingest.workers.persist.worker import PersistWorker
from tests.support.instances import Made
from tests.support.nodes import eventually
from tests.support.persisting import Site

Sites = Callable[..., Site]


@contextmanager
def working(site: Site) -> Iterator[None]:
    stop = threading.Event()
    worker = threading.Thread(target=PersistWorker(site.config, stop, "one").run)
    worker.start()
    try:
        yield
    finally:
        stop.set()
        worker.join(10)
    assert not worker.is_alive()


def unmount(root: Path) -> Path:
    """Leave an empty folder where the store was; returns where it is now."""
    away = root.with_name("away")
    root.rename(away)
    root.mkdir()
    return away


def mount(root: Path, away: Path) -> None:
    shutil.rmtree(root)
    away.rename(root)


def alarms(site: Site) -> list[str]:
    return [alarm.name for alarm in standing_alarms(site.config.run_dir)]


# --- ids


def test_id_is_made_once(tmp_path: Path) -> None:
    (tmp_path / MARKER).parent.mkdir()
    assert read_id(tmp_path) is None
    first = ensure_id(tmp_path)
    assert first
    assert ensure_id(tmp_path) == read_id(tmp_path) == first
    assert [path.name for path in (tmp_path / MARKER).parent.iterdir()] == ["id"]


@pytest.mark.parametrize(
    ("marker", "made", "known", "missing"),
    [
        ("", False, KnownFolder(), False),  # a first start
        ("", False, KnownFolder("one"), False),  # nothing in it: no loss
        ("", False, KnownFolder("one", True), True),
        ("", True, KnownFolder("one", True), True),
        ("", False, KnownFolder(None, True), True),  # an upgrade, while it is not mounted
        ("", True, KnownFolder(None, True), False),  # an upgrade
        ("one", True, KnownFolder("one", True), False),
        ("two", True, KnownFolder("one", True), True),
        ("two", True, KnownFolder("one"), False),
        ("two", True, KnownFolder(None, True), False),  # a ledger that was restored
    ],
)
def test_store_is_missed_if_the_ledger_has_files_there(
    tmp_path: Path, marker: str, made: bool, known: KnownFolder, missing: bool
) -> None:
    if made:
        (tmp_path / MARKER).parent.mkdir()
    if marker:
        (tmp_path / MARKER).write_text(f"{marker}\n")
    if missing:
        with pytest.raises(StoreMissingError, match="mount it"):
            require_store(tmp_path, known)
    else:
        require_store(tmp_path, known)


# --- the store


def test_store_that_is_not_mounted_at_a_start_is_waited_for_and_not_made_anew(
    either_ledger: Sites,
) -> None:
    site = either_ledger()
    site.receive(Made(sop="1.1"))
    site.work()
    away = unmount(site.config.store_root)
    site.receive(Made(sop="1.2"))
    with working(site):
        eventually(lambda: alarms(site) == ["store_missing"], 20, "the alarm")
        assert list(site.config.store_root.iterdir()) == []
        assert len(site.waiting()) == 1
        mount(site.config.store_root, away)
        eventually(site.settled, 20, "all is stored")
    assert alarms(site) == []
    assert site.stored() == ["1.2.3/1.2.3.1/1.1.dcm", "1.2.3/1.2.3.1/1.2.dcm"]


def test_store_that_is_unmounted_under_a_worker_gets_nothing_in_its_mount_point(site: Site) -> None:
    with working(site):
        site.receive(Made(sop="1.1"))
        eventually(site.settled, 20, "the first is stored")
        away = unmount(site.config.store_root)
        site.receive(Made(sop="1.2"))
        eventually(lambda: alarms(site) == ["store_missing"], 20, "the alarm")
        assert list(site.config.store_root.iterdir()) == []
        mount(site.config.store_root, away)
        eventually(site.settled, 20, "all is stored")
        eventually(lambda: alarms(site) == [], 20, "the alarm is over")
    assert [row.state for row in site.instances()] == [InstanceState.STORED] * 2


def test_another_store_in_its_place_is_not_written_to(site: Site) -> None:
    site.receive(Made(sop="1.1"))
    site.work()
    away = unmount(site.config.store_root)
    (site.config.store_root / MARKER).parent.mkdir()
    other = ensure_id(site.config.store_root)
    site.receive(Made(sop="1.2"))
    with working(site):
        eventually(lambda: alarms(site) == ["store_missing"], 20, "the alarm")
        [alarm] = standing_alarms(site.config.run_dir)
        assert other in alarm.cause
        assert read_id(away) in alarm.cause
        assert site.stored() == []
        mount(site.config.store_root, away)
        eventually(site.settled, 20, "all is stored")


def test_quarantine_that_is_not_mounted_is_waited_for(site: Site) -> None:
    site.receive(Made(sop="1.1"))
    site.receive(Made(sop="1.1", study="1.2.9"))
    site.work()
    assert len(site.quarantined()) == 1
    away = unmount(site.config.quarantine_dir)
    site.receive(Made(sop="1.2"))
    with working(site):
        eventually(lambda: alarms(site) == ["store_missing"], 20, "the alarm")
        assert list(site.config.quarantine_dir.iterdir()) == []
        mount(site.config.quarantine_dir, away)
        eventually(site.settled, 20, "all is stored")
    assert alarms(site) == []


def test_empty_store_is_made_anew_where_it_was(site: Site) -> None:
    site.work()
    shutil.rmtree(site.config.store_root)
    site.receive(Made(sop="1.1"))
    site.work()
    assert len(site.stored()) == 1


def test_store_of_a_version_before_ids_gets_one(site: Site) -> None:
    site.receive(Made(sop="1.1"))
    site.work()
    (site.config.store_root / MARKER).unlink()
    with site.ledger() as ledger, ledger.database.begin_write() as connection:
        connection.exec_driver_sql("DELETE FROM folders")
    site.receive(Made(sop="1.2"))
    site.work()
    identity = read_id(site.config.store_root)
    assert identity
    with site.ledger() as ledger:
        assert ledger.store_folders.find_folder("store") == KnownFolder(identity, True)


# --- the spool


def test_spool_on_another_file_system_is_missed(tmp_path: Path, second_file_system: Path) -> None:
    spool = second_file_system / "spool"
    spool.mkdir()
    require_spool(spool, None, tmp_path)
    remember_spool(spool, "one", tmp_path)
    require_spool(spool, "one", tmp_path)
    for found in (None, "two"):
        with pytest.raises(SpoolMissingError, match="mount it"):
            require_spool(spool, found, tmp_path)
    require_spool(tmp_path / "another", None, tmp_path)


def test_spool_beside_the_data_is_made_anew_where_somebody_removed_it(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    remember_spool(tmp_path / "spool", "one", tmp_path)
    require_spool(tmp_path / "spool", None, tmp_path)
