"""What a persist worker does while queue, ledger or disk are away, and with what kills or fails it."""

import contextlib
import errno
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis

from ingest.dicom.file_header import read_instance_header
from ingest.ledger import InstanceState
from ingest.queue.keys import GROUP
from ingest.workers.persist.worker import PersistWorker
from ingest.workers.store.filesystem import FileStore, SourceFile
from tests.support.instances import Made
from tests.support.nodes import eventually
from tests.support.persisting import Site
from tests.support.servers import Valkey

Sites = Callable[..., Site]


@contextlib.contextmanager
def working(site: Site) -> Iterator[threading.Event]:
    """A worker that goes on until the block ends; yields what stops it."""
    stop = threading.Event()
    thread = threading.Thread(target=PersistWorker(site.config, stop, "one").run)
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody touches is abandoned at once."""
    monkeypatch.setattr("ingest.queue.consumer.IDLE_MILLISECONDS", 50)
    monkeypatch.setattr("ingest.workers.persist.worker.CLAIM_SECONDS", 0.05)
    monkeypatch.setattr("ingest.workers.backoff.BACK_OFF_SECONDS", (0.05, 0.1))


def test_queue_that_is_killed_and_comes_back_empty_goes_on(site: Site, redis_server: Valkey) -> None:
    with working(site):
        site.receive(Made(sop="1.1"))
        eventually(site.settled)
        redis_server.kill()
        where = site.spooled(Made(sop="1.2").file)
        redis_server.start()
        # As the sweep puts back what the queue forgot; the group is forgotten, too.
        eventually(lambda: _tried(lambda: site.hand_off(where)))
        eventually(site.settled)
    assert [row.sop_instance_uid for row in site.instances()] == ["1.1", "1.2"]


def _tried(do: Callable[[], object]) -> bool:
    try:
        do()
    except redis.ConnectionError:
        return False
    return True


def test_queue_that_is_flushed_is_read_again_once_references_are_put_back(site: Site) -> None:
    with working(site):
        site.receive(Made(sop="1.1"))
        eventually(site.settled)
        site.client.flushall()
        site.receive(Made(sop="1.2"))
        eventually(site.settled)
    assert len(site.instances()) == 2


def test_queue_that_dies_before_the_acknowledgement_is_told_later(
    site: Site, redis_server: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FileStore.sync

    def dying(self: FileStore, batch: Any) -> None:
        real(self, batch)
        if redis_server.process is not None:
            redis_server.kill()

    site.receive(Made())
    monkeypatch.setattr(FileStore, "sync", dying)
    with working(site):
        eventually(lambda: not site.waiting())
        monkeypatch.setattr(FileStore, "sync", real)
        redis_server.start()
        site.receive(Made(sop="1.2"))
        eventually(lambda: len(site.instances()) == 2 and site.settled())
    assert site.deliveries() == 2


def test_ledger_that_is_away_is_waited_for_and_nothing_leaves_the_spool(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.ledger.database.BUSY_MILLISECONDS", 10)
    with site.ledger():
        pass
    with contextlib.closing(_locked(site)) as lock:
        site.receive(Made())
        with working(site):
            eventually(lambda: site.stored() != [])
            assert site.pending() == 1
            assert len(site.waiting()) == 1
            lock.execute("ROLLBACK")
            eventually(site.settled)
    assert len(site.instances()) == 1


def test_worker_stops_although_the_ledger_is_away_and_blames_nobody(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.ledger.database.BUSY_MILLISECONDS", 10)
    with site.ledger():
        pass
    site.receive(Made())
    with contextlib.closing(_locked(site)):
        for _ in range(8):
            with working(site):
                eventually(lambda: site.stored() != [] and site.pending() == 1)
    [entry] = site.client.xpending_range(site.stream, GROUP, "-", "+", 9)
    assert entry["times_delivered"] == 1
    site.work()
    assert [row.state for row in site.instances()] == [InstanceState.STORED]


def _locked(site: Site) -> sqlite3.Connection:
    connection = sqlite3.connect(
        site.config.data_dir / "ledger.db", isolation_level=None, check_same_thread=False
    )
    connection.execute("BEGIN IMMEDIATE")
    return connection


def test_full_disk_keeps_everything_in_the_spool_until_there_is_room(
    site: Site, soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tries = os.link, 0

    def full(*arguments: Any, **keywords: Any) -> None:
        nonlocal tries
        tries += 1
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr("ingest.workers.backoff.BACK_OFF_SECONDS", (0.01, 0.02))  # it is waited for 160 times
    for number in range(20):
        site.receive(Made(sop=f"1.9.{number}"))
    with working(site):
        # More often than an entry of its own fault would be tried.
        eventually(lambda: tries > 20 * 8, 60)
        assert len(site.waiting()) == 20
        monkeypatch.setattr(os, "link", real)
        eventually(site.settled)
    assert [row.state for row in site.instances()] == [InstanceState.STORED] * 20


def test_what_is_too_large_for_the_disk_holds_up_nothing_smaller(
    make_persist_site: Sites, second_file_system: Path, soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_persist_site(receive={"spool_dir": second_file_system / "spool"})
    real = os.sendfile

    def full(to: int, source: int, offset: int, count: int) -> int:
        if count > 10_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(to, source, offset, count)

    monkeypatch.setattr(os, "sendfile", full)
    site.receive(Made(sop="1.1", pixels=bytes(100_000)))
    for number in range(5):
        site.receive(Made(sop=f"1.9.{number}"))
    with working(site):
        eventually(lambda: len(site.waiting()) == 1)
        monkeypatch.setattr(os, "sendfile", real)
        eventually(site.settled)
    assert len(site.instances()) == 6


def test_store_that_is_unmounted_for_a_while_is_waited_for(site: Site, soon: None) -> None:
    away = site.config.data_dir / "away"
    with working(site):
        site.receive(Made(sop="1.1"))
        eventually(site.settled)
        site.config.store_root.rename(away)
        site.receive(Made(sop="1.2"))
        eventually(lambda: site.pending() == 1)
        assert not site.config.store_root.exists()
        away.rename(site.config.store_root)
        eventually(site.settled)
    assert len(site.instances()) == 2


def test_entry_that_kills_its_worker_is_set_aside_and_the_rest_is_stored(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def deadly(fd: int, size: int, *tags: Sequence[int]) -> Any:
        header = read_instance_header(fd, size, *tags)
        if header.sop_instance_uid == "1.9.5":
            raise Killed
        return header

    monkeypatch.setattr("ingest.workers.persist.batch.read_instance_header", deadly)
    for number in range(10):
        site.receive(Made(sop=f"1.9.{number}"))
    deaths = 0
    while not site.settled():
        try:
            site.work()
        except Killed:
            deaths += 1
    # The sixth is the last real try, alone: a process of its own has read the file before.
    assert deaths == 6
    rows = site.instances()
    assert [row.state for row in rows].count(InstanceState.STORED) == 9
    [aside] = [row for row in rows if row.state is InstanceState.QUARANTINED]
    assert "its worker died each time" in aside.note
    assert (aside.sop_instance_uid, aside.study_uid, aside.calling_ae) == ("1.9.5", "1.2.3", "CT1")
    assert [path.read_bytes() for path in site.quarantined()] == [Made(sop="1.9.5").file]


def test_entry_that_fails_again_and_again_is_set_aside_with_its_reason(
    site: Site, soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(fd: int, size: int, *tags: Sequence[int]) -> Any:
        header = read_instance_header(fd, size, *tags)
        if header.sop_instance_uid == "1.9.5":
            raise RuntimeError("a fault of ours")
        return header

    monkeypatch.setattr("ingest.workers.persist.batch.read_instance_header", failing)
    for number in range(10):
        site.receive(Made(sop=f"1.9.{number}"))
    with working(site):
        eventually(site.settled)
    [aside] = [row for row in site.instances() if row.state is InstanceState.QUARANTINED]
    assert "6 attempts: RuntimeError: a fault of ours" in aside.note
    assert aside.sop_instance_uid == "1.9.5"


def test_row_that_the_ledger_refuses_holds_up_no_other(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from ingest.ledger.instances import Instances

    real = Instances.record

    def refusing(self: Instances, rows: Any) -> Any:
        if any(row.sop_instance_uid == "1.9.5" for row in rows):
            raise ValueError("refused")
        return real(self, rows)

    monkeypatch.setattr(Instances, "record", refusing)
    for number in range(10):
        site.receive(Made(sop=f"1.9.{number}"))
    site.work()
    assert len(site.instances()) == 9
    assert site.pending() == 1
    assert len(site.waiting()) == 1
    monkeypatch.setattr(Instances, "record", real)
    site.work()
    assert len(site.instances()) == 10
    assert site.settled()


def test_what_a_dead_worker_left_is_taken_over(site: Site, soon: None) -> None:
    for number in range(5):
        site.receive(Made(sop=f"1.9.{number}"))
    site.client.xgroup_create(site.stream, GROUP, "0")
    site.client.xreadgroup(GROUP, "dead", {site.stream: ">"}, count=3)
    with working(site):
        eventually(site.settled)
    assert len(site.instances()) == 5


def test_entry_in_hand_for_long_is_not_taken_for_abandoned(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.workers.persist.claim_renewal.RENEW_SECONDS", 0.02)
    real, idle = FileStore.put, []

    def slow(self: FileStore, batch: Any, source: SourceFile, key: str) -> bool:
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            self._progress()
        pending = site.client.xpending_range(site.stream, GROUP, "-", "+", 9)
        idle.extend(entry["time_since_delivered"] for entry in pending)
        return real(self, batch, source, key)

    monkeypatch.setattr(FileStore, "put", slow)
    site.receive(Made(sop="1.1"))
    site.receive(Made(sop="1.2"))
    site.work()
    assert len(idle) == 4
    assert max(idle) < 300


def test_worker_waits_for_the_first_listener_to_make_the_spool(
    make_persist_site: Sites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.queue.consumer.STREAMS_SECONDS", 0.05)
    site = make_persist_site()
    config = site.config.model_copy(
        update={"receive": site.config.receive.model_copy(update={"spool_dir": tmp_path / "later"})}
    )
    stop = threading.Event()
    worker = threading.Thread(target=PersistWorker(config, stop, "one").run)
    worker.start()
    try:
        eventually(lambda: (config.store_root / ".incoming").exists())
        (tmp_path / "later").mkdir()
        (tmp_path / "later" / "id").write_text(site.spool)
        site.config = config
        site.receive(Made())
        eventually(site.settled)
    finally:
        stop.set()
        worker.join(10)
    assert len(site.instances()) == 1
