"""One store used by workers of several hosts, whose locks may not reach each other."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.errors import StoreAwayError
from ingest.filesystem.locks import Owner, try_lock
from ingest.ledger import InstanceState, Ledger
from ingest.workers.store import staging
from ingest.workers.store.filesystem import FileStore, SourceFile
from tests.support.instances import Made
from tests.support.nodes import eventually
from tests.support.persisting import Site, make_site
from tests.support.preloads import other_file_system
from tests.support.servers import Valkey

KEY = "1.2.3/1.2.3.1/1.2.3.4.dcm"
ROOT = Path(__file__).parents[3]


@contextlib.contextmanager
def opened(root: Path, **how: object) -> Iterator[FileStore]:
    store = FileStore(root, **how)  # type: ignore[arg-type]
    store.prepare()
    try:
        yield store
    finally:
        store.close()


def on_another_host() -> Owner:
    me = Owner.current()
    return Owner("0" * 12, me.namespace, me.pid, me.started, me.chance)


def left_by(root: Path, owner: Owner) -> Path:
    """A file that the process was copying, and its lock."""
    folder = root / ".incoming" / str(owner)
    folder.mkdir(parents=True)
    (folder.parent / f"{owner}.lock").touch()
    (folder / "copy").write_bytes(b"half")
    return folder / "copy"


def age(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on whatever is there is old."""
    monkeypatch.setattr(staging, "YOUNG_SECONDS", -1.0)


def test_two_workers_without_locks_copy_beside_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "try_lock", lambda _: True)
    with opened(tmp_path) as one, one.create_temporary_file() as (path, fd):
        one.append_data(fd, b"A" * 4000)
        source = SourceFile.of(path, fd, synced=False)
        with opened(tmp_path) as other, other.create_temporary_file() as (other_path, other_fd):
            other.append_data(other_fd, b"B" * 4000)
            assert other_path != path
            with one.open_batch() as batch:
                assert one.put(batch, source, KEY)
    assert (tmp_path / KEY).read_bytes() == b"A" * 4000


@pytest.mark.parametrize("where", ["same", "another"])
def test_what_is_stored_is_the_open_file_whatever_its_path_stands_for(
    tmp_path: Path, second_file_system: Path, where: str
) -> None:
    path = (tmp_path if where == "same" else second_file_system) / "instance"
    path.write_bytes(b"A")
    fd = os.open(path, os.O_RDONLY)
    source = SourceFile.of(str(path), fd, synced=False)
    path.rename(path.with_name("kept"))
    path.write_bytes(b"B")
    with opened(tmp_path / "store") as store, store.open_batch() as batch:
        assert store.put(batch, source, KEY)
        store.replace(batch, source, "again.dcm")
    os.close(fd)
    assert (tmp_path / "store" / KEY).read_bytes() == b"A"
    assert (tmp_path / "store/again.dcm").read_bytes() == b"A"


def test_name_that_another_worker_took_over_at_once_counts_as_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"A")
    (tmp_path / "b").write_bytes(b"B")
    fd, real = os.open(tmp_path / "a", os.O_RDONLY), os.link

    def link(source: str, target: str, *, dst_dir_fd: int, **how: bool) -> None:
        real(source, target, dst_dir_fd=dst_dir_fd, **how)
        os.rename(tmp_path / "b", target, dst_dir_fd=dst_dir_fd)

    with opened(tmp_path / "store") as store, store.open_batch() as batch:
        monkeypatch.setattr(os, "link", link)
        assert not store.put(batch, SourceFile.of(str(tmp_path / "a"), fd, synced=False), KEY)
    os.close(fd)
    assert (tmp_path / "store" / KEY).read_bytes() == b"B"


def test_what_a_process_of_another_host_copies_stays_until_it_is_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = left_by(tmp_path, on_another_host())
    with opened(tmp_path):
        assert copy.exists()
        age(monkeypatch)
        with opened(tmp_path):
            assert not copy.exists()
            assert len(list((tmp_path / ".incoming").glob("*/"))) == 2


def test_old_copy_of_a_process_that_holds_its_lock_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = on_another_host()
    copy = left_by(tmp_path, owner)
    held = os.open(tmp_path / ".incoming" / f"{owner}.lock", os.O_RDWR)
    assert try_lock(held)
    age(monkeypatch)
    with opened(tmp_path):
        assert copy.exists()
    os.close(held)


def test_age_is_told_by_the_clock_of_the_file_system_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = left_by(tmp_path, on_another_host())
    for name in ("time", "time_ns"):
        monkeypatch.setattr(f"time.{name}", lambda: 2**62)
    with opened(tmp_path):
        assert copy.exists()


def test_folders_of_the_version_before_are_cleared_when_they_are_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ".incoming" / "0"
    folder.mkdir(parents=True)
    (folder / "1").write_bytes(b"left")
    with opened(tmp_path):
        assert (folder / "1").exists()
    age(monkeypatch)
    with opened(tmp_path):
        assert not folder.exists()


def test_file_that_could_not_be_removed_is_removed_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    with opened(tmp_path) as store:
        with monkeypatch.context() as patch, store.create_temporary_file() as (path, _):
            patch.setattr(os, "unlink", fail)
        assert Path(path).exists()
        monkeypatch.setattr(store, "_clear_at", 0.0)
        with store.open_batch():
            assert not Path(path).exists()


# --- the ledger's lock


@pytest.fixture
def ledgers(postgresql_url: str) -> Iterator[tuple[Ledger, Ledger]]:
    """One ledger as two hosts open it."""
    with contextlib.closing(Ledger(postgresql_url)) as one, contextlib.closing(Ledger(postgresql_url)) as two:
        one.migrate()
        yield one, two


def test_one_host_replaces_at_a_time_though_locks_do_not_reach_the_other(
    tmp_path: Path, ledgers: tuple[Ledger, Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.workers.store.filesystem.try_lock", lambda _: True)
    monkeypatch.setattr("ingest.workers.store.filesystem.LOCK_SECONDS", 0.05)
    here, there = (opened(tmp_path, shared_lock=ledger.create_removal_lock()) for ledger in ledgers)
    with here as one, there as other, one.open_batch() as batch:
        one.acquire_removal_lock(batch)
        one.sync(batch)
        with other.open_batch() as second, pytest.raises(StoreAwayError, match="another worker"):
            other.acquire_removal_lock(second)
        one.release_removal_lock(batch)
        with other.open_batch() as second:
            other.acquire_removal_lock(second)
            with pytest.raises(StoreAwayError, match="another worker"):
                one.acquire_removal_lock(batch)


def test_lock_that_was_lost_with_its_connection_stops_the_batch_before_its_rows(
    tmp_path: Path, ledgers: tuple[Ledger, Ledger]
) -> None:
    ledger, other = ledgers
    with opened(tmp_path, shared_lock=ledger.create_removal_lock()) as store, store.open_batch() as batch:
        store.acquire_removal_lock(batch)
        with other.database.begin_write() as connection:
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted"
            )
        with pytest.raises(StoreAwayError, match="lost"):
            store.sync(batch)
        store.release_removal_lock(batch)
        store.acquire_removal_lock(batch)
        store.sync(batch)


def test_two_hosts_on_one_store_without_common_locks_store_every_instance_under_its_own_uid(
    tmp_path: Path, redis_server: Valkey, postgresql_url: str
) -> None:
    site = make_site(tmp_path, redis_server.url, ledger={"url": postgresql_url}, queue={"carrier": "redis"})
    with site.ledger() as ledger, ledger.database.begin_write() as connection:
        for table in ("deliveries", "instances"):
            connection.exec_driver_sql(f"DELETE FROM {table}")
    sent = {
        f"1.9.{number}": Made(sop=f"1.9.{number}", pixels=b"%032d" % number * 64) for number in range(1500)
    }
    for made in sent.values():
        site.receive(made)
        if made.sop.endswith("7"):
            site.receive(made)  # the same again: what is stored is looked at, under the lock
    workers = [start_persisting(site, tmp_path / f"host{number}") for number in range(2)]
    try:
        eventually(site.settled, 60, "all is stored")
    finally:
        for worker in workers:
            worker.send_signal(signal.SIGTERM)
        assert [worker.wait(20) for worker in workers] == [0, 0]
        site.client.close()
    stored = {
        row.sop_instance_uid: row.store_key for row in site.instances() if row.state is InstanceState.STORED
    }
    assert stored.keys() == sent.keys()
    for uid, key in stored.items():
        assert (site.config.store_root / key).read_bytes() == sent[uid].file, uid
    assert len(site.stored()) == len(sent)


def start_persisting(site: Site, data_dir: Path) -> "subprocess.Popen[bytes]":
    """A persist worker of another host: with a data folder of its own, and locks that nobody else sees."""
    data_dir.mkdir()
    node = site.config.node.model_copy(update={"data_dir": data_dir})
    roots = {"store": site.config.store.model_copy(update={"root": site.config.store_root})}
    roots["receive"] = site.config.receive.model_copy(update={"spool_dir": site.config.spool_dir})  # type: ignore[assignment]
    config = site.config.model_copy(update={"node": node, **roots})
    (data_dir / "config.json").write_text(config.model_dump_json())
    program = (
        "import sys, threading; from pathlib import Path\n"
        "from ingest.config.model import Config; from ingest.workers.persist.worker import main\n"
        "sys.exit(main(Config.model_validate_json(Path(sys.argv[1]).read_text()), threading.Event()))"
    )
    command = [sys.executable, "-c", program, str(data_dir / "config.json")]
    return subprocess.Popen(command, cwd=ROOT, env=other_file_system(data_dir, local=site.config.store_root))
