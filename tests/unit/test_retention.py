"""The remover on a real store and ledger, filled by a real persist worker."""

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

import workers.retention
from ingest.ledger import DeliveryState, InstanceState, Ledger
from ingest.ledger.retention import Retention
from ingest.ledger.schema import deliveries, instances
from ingest.ledger.search import Filter
from tests.instances import IMPLICIT, Made
from tests.ledgers import delivery_states
from tests.persisting import Site
from tests.unit.test_persist_contested import once
from tests.unit.test_persist_crashes import Killed, die_at
from workers.aging import DAY_MS
from workers.incoming import lock
from workers.leases import now_ms
from workers.leaving import Leaving
from workers.retention import BusyError, Remover, Report
from workers.store import FileStore, Source

Sites = Callable[..., Site]

STORED, REMOVING, REMOVED = InstanceState.STORED, InstanceState.REMOVING, InstanceState.REMOVED
NOBODY = {"routes": [{"to": []}]}


def made(study: int, number: int = 1, **how: Any) -> Made:
    """An instance of a study; two series of each."""
    return Made(sop=f"1.{study}.{number}", study=f"2.{study}", series=f"2.{study}.{number % 2}", **how)


def fill(site: Site, *ones: Made) -> None:
    """Have a worker store them."""
    for one in ones:
        site.receive(one)
    site.work()


def states(site: Site) -> dict[str, list[InstanceState]]:
    found: dict[str, list[InstanceState]] = {}
    for row in site.instances():
        found.setdefault(row.study_uid, []).append(row.state)
    return found


def left(site: Site) -> list[str]:
    """Studies that have rows in the store; each of these has its file, and no other file is there."""
    kept = [row for row in site.instances() if row.state in {STORED, InstanceState.VARIANT}]
    assert site.stored() == sorted(row.store_key for row in kept)
    return sorted({row.study_uid for row in kept})


def folders(site: Site) -> list[str]:
    root = site.config.store_root
    found = [path for path in root.rglob("*") if path.is_dir()]
    return sorted(str(path.relative_to(root)) for path in found if ".incoming" not in path.parts)


def deliver(site: Site, state: DeliveryState, study: int | None = None) -> None:
    """Give the deliveries of a study, or all, a state."""
    with site.ledger() as ledger, ledger.write() as connection:
        change = update(deliveries).values(state=state.value)
        if study is not None:
            of_study = instances.c.id == deliveries.c.instance_id, instances.c.study_uid == f"2.{study}"
            change = change.where(*of_study)
        connection.execute(change)


@contextlib.contextmanager
def remover(site: Site, *, days: float = 0.0, **limits: Any) -> Iterator[Remover]:
    """A remover for which `days` have gone by, with other keys of `[retention]`."""
    retention = site.config.retention.model_copy(update=limits)
    how = {key: limits.pop(key) for key in ("statvfs", "stopping") if key in limits}
    config = site.config.model_copy(update={"retention": retention})
    with site.ledger() as ledger:
        yield Remover(config, ledger, now=lambda: now_ms() + int(days * DAY_MS), **how)


def remove(site: Site, **limits: Any) -> Report:
    with remover(site, **limits) as one:
        return one.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def either(request: pytest.FixtureRequest, make_persist_site: Sites) -> Sites:
    """Makes sites whose ledger is the one or the other."""

    def make(**sections: Any) -> Site:
        if request.param == "postgresql":
            sections["ledger"] = {"url": request.getfixturevalue("postgresql_url")}
        site = make_persist_site(**sections)
        with site.ledger() as ledger, ledger.write() as connection:
            for table in ("deliveries", "instances"):
                connection.exec_driver_sql(f"DELETE FROM {table}")
        return site

    return make


# --- which


def test_old_studies_go_whole_with_variants_and_empty_folders(either: Sites) -> None:
    site = either(**NOBODY)
    fill(site, made(1, 1), made(1, 2), made(1, 1, syntax=IMPLICIT), made(2))
    with site.ledger() as ledger, ledger.write() as connection:
        long_ago = update(instances).where(instances.c.study_uid == "2.1")
        connection.execute(long_ago.values(stored_at=instances.c.stored_at - 5 * DAY_MS))
    size = sum(row.size for row in site.instances()[:3])
    assert remove(site, days=1, keep_days=7) == Report()
    assert remove(site, days=3, keep_days=7) == Report(studies=1, instances=3, size=size)
    assert left(site) == ["2.2"]
    assert states(site) == {"2.1": [REMOVED] * 3, "2.2": [STORED]}
    assert folders(site) == ["2.2", "2.2/2.2.1"]
    assert remove(site, days=3, keep_days=7) == Report()


def test_study_that_still_grows_is_not_old(either: Sites) -> None:
    site = either(**NOBODY)
    for one in (made(1), made(2), made(1, 2)):
        fill(site, one)
        time.sleep(0.002)  # the clock has milliseconds
    total = sum(row.size for row in site.instances())
    assert remove(site, max_bytes=total).studies == 0
    assert remove(site, max_bytes=total - 1).studies == 1
    assert left(site) == ["2.1"]


@pytest.mark.parametrize("state", DeliveryState)
def test_what_is_owed_keeps_its_whole_study(either: Sites, state: DeliveryState) -> None:
    site = either()
    fill(site, made(1, 1), made(1, 2), made(2))
    deliver(site, DeliveryState.DELIVERED)
    with site.ledger() as ledger, ledger.write() as connection:
        first = ledger.instances()[-1].id
        connection.execute(
            update(deliveries).where(deliveries.c.instance_id == first).values(state=state.value)
        )
    goes = state in {DeliveryState.DELIVERED, DeliveryState.DROPPED}
    report = remove(site, days=2, keep_days=1)
    assert (report.studies, report.held) == ((2, 0) if goes else (1, 1))
    assert left(site) == ([] if goes else ["2.1"])


def test_limits_come_first_if_told_so_and_what_was_owed_is_dropped(either: Sites) -> None:
    site = either()
    fill(site, made(1, 1), made(1, 2))
    deliver(site, DeliveryState.DEAD)
    rows = site.instances()
    with site.ledger() as ledger, ledger.write() as connection:
        connection.execute(
            update(deliveries)
            .where(deliveries.c.instance_id == rows[0].id)
            .values(state="sending", lease_owner="w", lease_until=10**15, next_at=10**15)
        )
    assert remove(site, days=2, keep_days=1, only_delivered=False).instances == 2
    assert left(site) == []
    with site.ledger() as ledger:
        for row in rows:
            (delivery,) = ledger.deliveries_of(row.id)
            assert (delivery.state, delivery.lease_owner) == (DeliveryState.DROPPED, None)
            assert "[retention]" in (delivery.last_error or "")


def test_disk_above_its_high_watermark_is_emptied_to_the_low_one(either: Sites) -> None:
    site = either(**NOBODY)
    fill(site, made(1, pixels=bytes(9000)), made(2, pixels=bytes(9000)), made(3, pixels=bytes(9000)))

    def disk(used: int) -> Callable[..., os.statvfs_result]:
        return lambda _: os.statvfs_result((1000, 1000, 1000, 1000 - used, 1000 - used, 0, 0, 0, 0, 255))

    limits = {"high_watermark": 0.9, "low_watermark": 0.885}
    assert remove(site, statvfs=disk(900), **limits).studies == 0
    # 16,000 bytes are to be freed.
    assert remove(site, statvfs=disk(901), **limits).studies == 2
    assert left(site) == ["2.3"]


def test_nothing_is_removed_unless_it_is_set(site: Site) -> None:
    fill(site, made(1))
    deliver(site, DeliveryState.DELIVERED)
    assert remove(site, days=10**5) == Report()
    assert left(site) == ["2.1"]


def test_quarantine_is_left_alone(site: Site) -> None:
    fill(site, made(1), made(1, pixels=b"another"))
    deliver(site, DeliveryState.DELIVERED)
    assert remove(site, days=2, keep_days=1).instances == 1
    assert states(site) == {"2.1": [REMOVED, InstanceState.QUARANTINED]}
    assert len(site.quarantined()) == 1


# --- how


def test_studies_larger_than_a_batch_and_many_small_ones_go(
    either: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = either(**NOBODY)
    for number in range(8):
        site.receive(made(1, number))
    for study in range(2, 9):
        site.receive(made(study))
    site.work()
    monkeypatch.setattr(workers.retention, "BATCH", 3)
    monkeypatch.setattr(workers.retention, "CHUNK", 500)
    assert remove(site, days=2, keep_days=1).instances == 15
    assert left(site) == []
    assert folders(site) == []


def test_folder_with_anything_else_in_it_stays(site: Site, tmp_path: Path) -> None:
    fill(site, made(1), made(2))
    deliver(site, DeliveryState.DELIVERED)
    root = site.config.store_root
    (root / "2.1/note.txt").write_text("x")
    outside = tmp_path / "outside"
    (root / "2.2/2.2.1").rename(outside)
    (root / "2.2/2.2.1").symlink_to(outside)
    remove(site, days=2, keep_days=1)
    assert folders(site) == ["2.1", "2.2", "2.2/2.2.1"]
    assert [path.name for path in outside.iterdir()] == ["1.2.1.dcm"], "a symbolic link was followed"
    assert states(site) == {"2.1": [REMOVED], "2.2": [REMOVING]}


def test_store_without_folders_keeps_its_root(make_persist_site: Sites) -> None:
    site = make_persist_site(store={"path": "{sop_uid}.dcm"}, **NOBODY)
    fill(site, made(1), made(2))
    remove(site, days=2, keep_days=1)
    assert site.stored() == []
    assert site.config.store_root.is_dir()


def test_one_process_removes_at_a_time(site: Site) -> None:
    fill(site, made(1))
    with remover(site, keep_days=1) as one, remover(site, keep_days=1) as another:
        with one._alone(), pytest.raises(BusyError, match=r"retain\.lock"):
            another.remove()
        another.remove()


def test_remover_that_is_to_stop_ends_after_its_batch(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for study in range(9):
        site.receive(made(study))
    site.work()
    deliver(site, DeliveryState.DELIVERED)
    monkeypatch.setattr(workers.retention, "BATCH", 2)
    stop = threading.Event()
    once(monkeypatch, Ledger, "mark_removed", stop.set)
    report = remove(site, days=2, keep_days=1, stopping=stop.is_set)
    assert report.instances == 2
    assert len(left(site)) == 7


def test_file_that_is_gone_already_is_noted_as_removed(site: Site) -> None:
    fill(site, made(1))
    deliver(site, DeliveryState.DELIVERED)
    (site.config.store_root / site.stored()[0]).unlink()
    remove(site, days=2, keep_days=1)
    assert states(site) == {"2.1": [REMOVED]}
    assert folders(site) == []


# --- rows


def test_rows_of_what_was_removed_are_forgotten_on_their_own_clock(either: Sites) -> None:
    site = either()
    fill(site, made(1, 1), made(1, 2), made(2), made(2, pixels=b"another"))
    deliver(site, DeliveryState.DELIVERED, 1)
    remove(site, days=3, keep_days=2, ledger_keep_days=4)
    assert states(site)["2.1"] == [REMOVED, REMOVED]
    assert remove(site, days=5, keep_days=2, ledger_keep_days=4).forgotten == 2
    assert states(site) == {"2.2": [STORED, InstanceState.QUARANTINED]}
    assert site.deliveries() == 1


# --- somebody else meanwhile


def test_delivery_that_is_wanted_again_keeps_its_instance(
    either: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = either()
    fill(site, made(1), made(2))
    deliver(site, DeliveryState.DELIVERED)

    def again() -> None:
        with site.ledger() as ledger:
            changed = ledger.send_again(Filter(study_uid="2.1"), now_ms())
            assert changed == {"pacs": 1}

    # The last moment at which another process can write: SQLite has one writer at a time.
    moment = (Retention, "_mark") if "postgresql" in site.config.ledger_url else (Retention, "mark_removing")
    once(monkeypatch, *moment, again)
    assert remove(site, days=2, keep_days=1).instances == 1
    assert left(site) == ["2.1"]


STEPS: list[tuple[type, str, int]] = [
    (FileStore, "exclude_replacing", 1),
    (Ledger, "mark_removing", 1),
    (Leaving, "unlink", 1),
    (Leaving, "unlink", 2),
    (FileStore, "announce_removal", 1),
    (Leaving, "settle", 1),
    (Leaving, "_remove_if_empty", 1),
    (Leaving, "_remove_if_empty", 2),
    (Ledger, "mark_removed", 1),
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


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS, ids=lambda step: f"{step[1]}{step[2]}")
def test_instance_that_comes_again_after_a_remover_died_stays(
    site: Site, monkeypatch: pytest.MonkeyPatch, step: tuple[type, str, int], after: bool
) -> None:
    ones = [made(1, 1), made(1, 2), made(2)]
    fill(site, *ones)
    deliver(site, DeliveryState.DELIVERED)
    crash(site, monkeypatch, step, after=after)
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
    with site.ledger() as ledger, ledger.write() as connection:
        connection.execute(update(instances).values(stored_at=instances.c.stored_at - 2 * DAY_MS))
    crash_step = (FileStore, "announce_removal", 1)
    with monkeypatch.context() as patch:
        patch.setattr("workers.leaving.SETTLED_MS", -1)
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


def test_worker_puts_into_a_folder_that_was_removed_under_its_hands(site: Site, tmp_path: Path) -> None:
    fill(site, made(1))
    deliver(site, DeliveryState.DELIVERED)
    store = FileStore(site.config.store_root)
    store.prepare()
    path = tmp_path / "new"
    path.write_bytes(b"new")
    fd = os.open(path, os.O_RDONLY)
    try:
        with store.batch() as batch:
            batch.folders.open(["2.1", "2.1.1"])
            remove(site, days=2, keep_days=1)
            assert folders(site) == []
            assert store.put(batch, Source.of(str(path), fd, synced=False), "2.1/2.1.1/9.dcm")
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
    synced: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_ino), real(fd))[1])
    store = FileStore(site.config.store_root)
    root = site.config.store_root.stat().st_ino

    def root_is_synced() -> bool:
        synced.clear()
        with store.batch() as batch:
            batch.folders.open(["2.7"])
            store.sync(batch)
        return root in synced

    assert root_is_synced()
    assert not root_is_synced()
    remove(site, days=2, keep_days=1)
    assert root_is_synced()


def test_same_instances_again_and_again_while_all_is_removed(
    either: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.persist.PACE_SECONDS", 0.0)
    monkeypatch.setattr("workers.leaving.SETTLED_MS", -1)  # nobody dies, and nobody removes by hand
    site = either(**NOBODY)
    ones = [made(study, number) for study in range(3) for number in range(4)]
    fill(site, ones[0])
    removed, receiving = Counter[str](), threading.Lock()
    deadline = time.monotonic() + 60

    def enough() -> bool:
        return removed["files"] > 5 * len(ones) or time.monotonic() > deadline

    def remove_on() -> None:
        with remover(site, max_bytes=1) as one:
            while not enough():
                removed["files"] += one.remove().instances

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
        held.append(not lock(fd))
        os.close(fd)

    for owner, name in ((Ledger, "mark_removing"), (Leaving, "unlink"), (Ledger, "mark_removed")):
        once(monkeypatch, owner, name, look)
    remove(site, days=2, keep_days=1)
    look()
    assert held == [True, True, True, False]
