"""The remover while others store, replace and send again; and one that dies at any line."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import func, select, update

from ingest.clock import unix_ms
from ingest.filesystem.locks import try_lock
from ingest.ledger import DeliveryState, InstanceState
from ingest.ledger.delivery_filter import DeliveryFilter
from ingest.ledger.retention import Retention
from ingest.ledger.schema import deliveries, instances
from ingest.workers.retention.policy import DAY_MS
from ingest.workers.store.filesystem import FileStore, SourceFile
from ingest.workers.store.removal import FileRemoval
from tests.support.ledgers import delivery_states
from tests.support.nodes import eventually
from tests.support.persisting import Site
from tests.support.retaining import NOBODY, deliver, fill, folders, left, made, remove, remover, states
from tests.unit.persist.test_persist_contested import once
from tests.unit.persist.test_persist_crashes import Killed, die_at

Sites = Callable[..., Site]

STORED, REMOVING, REMOVED = InstanceState.STORED, InstanceState.REMOVING, InstanceState.REMOVED


def test_delivery_that_is_wanted_again_keeps_its_instance(
    either_ledger: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = either_ledger()
    fill(site, made(1), made(2))
    deliver(site, DeliveryState.DELIVERED)

    def again() -> None:
        with site.ledger() as ledger:
            changed = ledger.delivery_admin.requeue_deliveries(DeliveryFilter(study_uid="2.1"), unix_ms())
            assert changed == {"pacs": 1}

    # The last moment at which another process can write: SQLite has one writer at a time.
    moment = (Retention, "_mark") if "postgresql" in site.config.ledger_url else (Retention, "mark_removing")
    once(monkeypatch, *moment, again)
    assert remove(site, days=2, keep_days=1).instances == 1
    assert left(site) == ["2.1"]


def test_delivery_that_another_is_about_to_want_again_is_waited_for(
    make_persist_site: Sites, postgresql_url: str
) -> None:
    site = make_persist_site(ledger={"url": postgresql_url})
    with site.ledger() as ledger, ledger.database.begin_write() as connection:
        for table in ("deliveries", "instances"):
            connection.exec_driver_sql(f"DELETE FROM {table}")
    fill(site, made(1), made(2))
    deliver(site, DeliveryState.DELIVERED)
    with ThreadPoolExecutor(1) as pool, site.ledger() as ledger, site.ledger() as observer:

        def waits() -> bool:
            query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            with observer.database.begin_read() as connection:
                return connection.exec_driver_sql(query).scalar_one() > 0

        with ledger.database.begin_write() as connection:
            oldest = select(func.min(deliveries.c.id)).scalar_subquery()
            connection.execute(update(deliveries).where(deliveries.c.id == oldest).values(state="waiting"))
            removing = pool.submit(remove, site, days=2, keep_days=1)
            eventually(lambda: waits() or removing.done())
        assert removing.result(30).instances == 1
    assert left(site) == ["2.1"]


STEPS: list[tuple[type, str, int]] = [
    (FileStore, "acquire_removal_lock", 1),
    (Retention, "mark_removing", 1),
    (FileRemoval, "remove_file", 1),
    (FileRemoval, "remove_file", 2),
    (FileStore, "announce_folder_removal", 1),
    (FileRemoval, "sync", 1),
    (FileRemoval, "_remove_if_empty", 1),
    (FileRemoval, "_remove_if_empty", 2),
    (Retention, "mark_removed", 1),
]


def crash(site: Site, monkeypatch: pytest.MonkeyPatch, step: tuple[type, str, int], *, after: bool) -> None:
    """Have a remover die at a step, with three instances to be removed."""
    with monkeypatch.context() as patch:
        die_at(patch, step[0], step[1], after=after, call=step[2])
        with pytest.raises(Killed):
            remove(site, days=2, keep_days=1)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS, ids=lambda step: f"{step[1]}{step[2]}")
def test_next_pass_finishes_what_a_dead_remover_began(
    site: Site, monkeypatch: pytest.MonkeyPatch, step: tuple[type, str, int], after: bool
) -> None:
    fill(site, made(1, 1), made(1, 2), made(2))
    deliver(site, DeliveryState.DELIVERED)
    crash(site, monkeypatch, step, after=after)
    remove(site, days=2, keep_days=1)
    assert states(site) == {"2.1": [REMOVED, REMOVED], "2.2": [REMOVED]}
    assert left(site) == []
    assert folders(site) == []


@pytest.mark.parametrize("step", STEPS, ids=lambda step: f"{step[1]}{step[2]}")
def test_instance_that_comes_again_after_a_remover_died_stays(
    site: Site, monkeypatch: pytest.MonkeyPatch, step: tuple[type, str, int]
) -> None:
    ones = [made(1, 1), made(1, 2), made(2)]
    fill(site, *ones)
    deliver(site, DeliveryState.DELIVERED)
    crash(site, monkeypatch, step, after=True)
    fill(site, *ones)
    # What was not marked yet is there: a duplicate, delivered long ago. What was is a new instance.
    again = [row for row in site.instances() if row.id > 3]
    remove(site, days=2, keep_days=1)
    assert {row.sop_instance_uid for row in again} <= {
        row.sop_instance_uid for row in site.instances() if row.state is STORED
    }
    with site.ledger() as ledger:
        assert all(delivery_states(ledger, row.id) == {"pacs": DeliveryState.WAITING} for row in again)
    left(site)


def test_file_of_a_worker_that_has_not_recorded_it_is_not_removed_for_a_dead_row(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The worker looked before the first copy was stored, and had to wait since.
    fill(site, made(1))
    deliver(site, DeliveryState.DELIVERED)
    with site.ledger() as ledger, ledger.database.begin_write() as connection:
        connection.execute(update(instances).values(stored_at=instances.c.stored_at - 2 * DAY_MS))
    crash_step = (FileStore, "announce_folder_removal", 1)
    with monkeypatch.context() as patch:
        patch.setattr("ingest.workers.store.removal.UNRECORDED_MS", -1)
        die_at(patch, crash_step[0], crash_step[1], after=False, call=1)
        with pytest.raises(Killed):
            remove(site, keep_days=1)
    (key,) = (row.store_key for row in site.instances())
    path = site.config.store_root / key
    path.write_bytes(b"new")
    remove(site, keep_days=1)
    assert path.exists()
    assert states(site) == {"2.1": [REMOVING]}
    remove(site, days=1, keep_days=1)
    assert not path.exists()
    assert states(site) == {"2.1": [REMOVED]}


def test_file_of_a_worker_that_has_not_recorded_it_outlives_another_that_finishes_a_dead_removal(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(site, made(1))
    deliver(site, DeliveryState.DELIVERED)
    with site.ledger() as ledger, ledger.database.begin_write() as connection:
        connection.execute(update(instances).values(stored_at=instances.c.stored_at - 2 * DAY_MS))
    with monkeypatch.context() as patch:
        patch.setattr("ingest.workers.store.removal.UNRECORDED_MS", -1)
        die_at(patch, FileStore, "announce_folder_removal", after=False, call=1)
        with pytest.raises(Killed):
            remove(site, keep_days=1)
    (key,) = (row.store_key for row in site.instances())
    path = site.config.store_root / key
    path.write_bytes(made(1).file)  # of a worker that looked before the first copy was stored
    theirs = path.stat().st_ino
    fill(site, made(1))
    # The other worker's row would be this one's now: the file that it is about to promise is there.
    assert path.stat().st_ino == theirs
    assert sorted(row.state.value for row in site.instances()) == ["removing", "stored"]
    remove(site, keep_days=1)
    assert states(site) == {"2.1": [REMOVED, STORED]}
    assert left(site) == ["2.1"]


def test_remover_that_died_does_not_take_the_file_of_its_successor(site: Site) -> None:
    fill(site, made(1))
    deliver(site, DeliveryState.DELIVERED)
    remove(site, days=2, keep_days=1)
    fill(site, made(1))
    with site.ledger() as ledger, ledger.database.begin_write() as connection:
        connection.execute(update(instances).where(instances.c.id == 1).values(state=REMOVING.value))
    remove(site, days=2, keep_days=1)
    assert states(site) == {"2.1": [REMOVED, STORED]}
    assert left(site) == ["2.1"]


def test_instance_that_came_after_the_decision_stays(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(site, made(1, 1))
    deliver(site, DeliveryState.DELIVERED)

    def comes() -> None:
        time.sleep(0.002)  # the clock has milliseconds
        fill(site, made(1, 2))
        deliver(site, DeliveryState.DELIVERED)

    once(monkeypatch, FileStore, "acquire_removal_lock", comes)
    assert remove(site, days=2, keep_days=1).instances == 1
    assert states(site) == {"2.1": [REMOVED, STORED]}
    assert left(site) == ["2.1"]


def test_worker_puts_into_a_folder_that_was_removed_under_its_hands(site: Site, tmp_path: Path) -> None:
    fill(site, made(1))
    deliver(site, DeliveryState.DELIVERED)
    store = FileStore(site.config.store_root)
    store.prepare()
    path = tmp_path / "new"
    path.write_bytes(b"new")
    fd = os.open(path, os.O_RDONLY)
    try:
        with store.open_batch() as batch:
            batch.folders.open_folder(["2.1", "2.1.1"])
            remove(site, days=2, keep_days=1)
            assert folders(site) == []
            assert store.put(batch, SourceFile.of(str(path), fd, synced=False), "2.1/2.1.1/9.dcm")
            store.sync(batch)
    finally:
        os.close(fd)
        store.close()
    assert site.stored() == ["2.1/2.1.1/9.dcm"]


def test_workers_forget_which_names_of_folders_are_durable(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(site, made(1))
    deliver(site, DeliveryState.DELIVERED)
    remove(site, days=2, keep_days=1)
    fill(site, made(2))
    deliver(site, DeliveryState.DELIVERED)
    synced: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_ino), real(fd))[1])
    store = FileStore(site.config.store_root)
    root = site.config.store_root.stat().st_ino

    def root_is_synced() -> bool:
        synced.clear()
        with store.open_batch() as batch:
            batch.folders.open_folder(["2.7"])
            store.sync(batch)
        return root in synced

    assert root_is_synced()
    assert not root_is_synced()
    remove(site, days=2, keep_days=1)
    assert root_is_synced()


def test_same_instances_again_and_again_while_all_is_removed(
    either_ledger: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.workers.persist.worker.PACE_SECONDS", 0.0)
    monkeypatch.setattr(
        "ingest.workers.store.removal.UNRECORDED_MS", -1
    )  # nobody dies, and nobody removes by hand
    site = either_ledger(**NOBODY)
    ones = [made(study, number) for study in range(3) for number in range(4)]
    fill(site, ones[0])
    removed, receiving = Counter[str](), threading.Lock()
    deadline = time.monotonic() + 60

    def enough() -> bool:
        return removed["files"] > 5 * len(ones) or time.monotonic() > deadline

    def remove_on() -> None:
        with remover(site, max_bytes=1) as one:
            while not enough():
                removed["files"] += one.run().instances

    def send_on(name: str) -> None:
        while not enough():
            with receiving:
                for one in ones:
                    site.receive(one)
            site.work(name)

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(remove_on), pool.submit(send_on, "one"), pool.submit(send_on, "two")]:
            done.result()
    assert time.monotonic() < deadline
    fill(site, *ones)
    assert left(site) == ["2.0", "2.1", "2.2"]
    kept = [row for row in site.instances() if row.state is STORED]
    assert sorted(row.sop_instance_uid for row in kept) == sorted(one.sop for one in ones)
    assert not [row for row in site.instances() if row.state is REMOVING]
    assert site.settled()


def test_replacing_waits_for_the_batch_in_hand(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(site, made(1))
    deliver(site, DeliveryState.DELIVERED)
    held: list[bool] = []

    def look() -> None:
        fd = os.open(site.config.store_root / ".incoming/replace.lock", os.O_RDWR)
        held.append(not try_lock(fd))
        os.close(fd)

    for owner, name in (
        (Retention, "mark_removing"),
        (FileRemoval, "remove_file"),
        (Retention, "mark_removed"),
    ):
        once(monkeypatch, owner, name, look)
    remove(site, days=2, keep_days=1)
    look()
    assert held == [True, True, True, False]


def start_remover(site: Site) -> "subprocess.Popen[bytes]":
    """A remover as a process of its own, for which all is old."""
    config = site.config.data_dir / "config.json"
    retention = site.config.retention.model_copy(update={"max_bytes": 1, "check_seconds": 0.05})
    config.write_text(site.config.model_copy(update={"retention": retention}).model_dump_json())
    program = (
        "import sys, threading; from pathlib import Path\n"
        "from ingest.config.model import Config; from ingest.workers.retention.remover import main\n"
        "sys.exit(main(Config.model_validate_json(Path(sys.argv[1]).read_text()), threading.Event()))"
    )
    return subprocess.Popen([sys.executable, "-c", program, str(config)], cwd=Path(__file__).parents[3])


def test_remover_killed_again_and_again_leaves_nothing_behind(site: Site) -> None:
    count = 2400
    fill(site, *(made(number % 40, number) for number in range(count)))
    deliver(site, DeliveryState.DELIVERED)
    with site.ledger() as ledger:

        def kept() -> int:
            return ledger.instances.count_by_state().get(STORED, 0)

        for share in (2000, 1200, 500):
            worker = start_remover(site)
            eventually(lambda share=share: kept() <= share, 60)
            os.kill(worker.pid, signal.SIGKILL)
            worker.wait()
        worker = start_remover(site)
        eventually(lambda: ledger.instances.count_by_state() == {REMOVED: count}, 60)
    worker.terminate()
    assert worker.wait(10) == 0
    assert site.stored() == []
    assert folders(site) == []
