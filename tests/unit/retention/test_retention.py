"""The remover on a real store and ledger, filled by a real persist worker."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import update

import ingest.workers.retention.remover
from ingest.errors import RetentionBusyError
from ingest.ledger import DeliveryState, InstanceState
from ingest.ledger.retention import Retention
from ingest.ledger.schema import deliveries, instances
from ingest.workers.retention.policy import DAY_MS
from ingest.workers.retention.remover import RetentionReport
from tests.support.instances import IMPLICIT
from tests.support.ledgers import find_newest_instances
from tests.support.persisting import Site
from tests.support.retaining import NOBODY, deliver, fill, folders, left, made, remove, remover, states
from tests.unit.persist.test_persist_contested import once

Sites = Callable[..., Site]

STORED, REMOVING, REMOVED = InstanceState.STORED, InstanceState.REMOVING, InstanceState.REMOVED


# --- which


def test_old_studies_go_whole_with_variants_and_empty_folders(either_ledger: Sites) -> None:
    site = either_ledger(**NOBODY)
    fill(site, made(1, 1), made(1, 2), made(1, 1, syntax=IMPLICIT), made(2))
    with site.ledger() as ledger, ledger.database.begin_write() as connection:
        long_ago = update(instances).where(instances.c.study_uid == "2.1")
        connection.execute(long_ago.values(stored_at=instances.c.stored_at - 5 * DAY_MS))
    size = sum(row.size for row in site.instances()[:3])
    assert remove(site, days=1, keep_days=7) == RetentionReport()
    assert remove(site, days=3, keep_days=7) == RetentionReport(studies=1, instances=3, size=size)
    assert left(site) == ["2.2"]
    assert states(site) == {"2.1": [REMOVED] * 3, "2.2": [STORED]}
    assert folders(site) == ["2.2", "2.2/2.2.1"]
    assert remove(site, days=3, keep_days=7) == RetentionReport()


@pytest.mark.parametrize("commitment", ["wanted", "asked", "committed"])
def test_what_a_member_of_a_group_has_to_commit_stays(either_ledger: Sites, commitment: str) -> None:
    member = {"name": "a", "ae_title": "A", "host": "127.0.0.1", "tls": False, "commitment": True}
    site = either_ledger(
        destinations=[member],
        groups=[{"name": "archive", "members": ["a"]}],
        routes=[{"to": ["archive"]}],
    )
    fill(site, made(1))
    deliver(site, DeliveryState.DELIVERED)
    with site.ledger() as ledger, ledger.database.begin_write() as connection:
        connection.execute(update(deliveries).values(commitment=commitment))
    remove(site, days=10, keep_days=7, only_committed=True)
    assert left(site) == ([] if commitment == "committed" else ["2.1"])


@pytest.mark.parametrize("owed", [False, True])
def test_copies_of_one_uid_go_with_their_study_unless_one_is_owed(either_ledger: Sites, owed: bool) -> None:
    site = either_ledger(store={"duplicates": "keep-both"})
    fill(site, made(1), made(1, pixels=b"zz"), made(2))
    deliver(site, DeliveryState.DELIVERED)
    if owed:
        with site.ledger() as ledger, ledger.database.begin_write() as connection:
            copy = next(row.id for row in site.instances() if row.copy_digest)
            connection.execute(
                update(deliveries).where(deliveries.c.instance_id == copy).values(state="dead")
            )
    report = remove(site, days=2, keep_days=1)
    assert (report.studies, report.instances) == ((1, 1) if owed else (2, 3))
    assert left(site) == (["2.1"] if owed else [])
    assert states(site)["2.1"] == [STORED if owed else REMOVED] * 2


def test_study_that_still_grows_is_not_old(either_ledger: Sites) -> None:
    site = either_ledger(**NOBODY)
    for one in (made(1), made(2), made(1, 2)):
        fill(site, one)
        time.sleep(0.002)  # the clock has milliseconds
    total = sum(row.size for row in site.instances())
    assert remove(site, max_bytes=total).studies == 0
    assert remove(site, max_bytes=total - 1).studies == 1
    assert left(site) == ["2.1"]


@pytest.mark.parametrize("state", DeliveryState)
def test_what_is_owed_keeps_its_whole_study(either_ledger: Sites, state: DeliveryState) -> None:
    site = either_ledger()
    fill(site, made(1, 1), made(1, 2), made(2))
    deliver(site, DeliveryState.DELIVERED)
    with site.ledger() as ledger, ledger.database.begin_write() as connection:
        first = find_newest_instances(ledger)[-1].id
        connection.execute(
            update(deliveries).where(deliveries.c.instance_id == first).values(state=state.value)
        )
    goes = state in {DeliveryState.DELIVERED, DeliveryState.DROPPED}
    report = remove(site, days=2, keep_days=1)
    assert (report.studies, report.held) == ((2, 0) if goes else (1, 1))
    assert left(site) == ([] if goes else ["2.1"])


def test_limits_come_first_if_told_so_and_what_was_owed_is_dropped(either_ledger: Sites) -> None:
    site = either_ledger()
    fill(site, made(1, 1), made(1, 2))
    deliver(site, DeliveryState.DEAD)
    rows = site.instances()
    with site.ledger() as ledger, ledger.database.begin_write() as connection:
        connection.execute(
            update(deliveries)
            .where(deliveries.c.instance_id == rows[0].id)
            .values(state="sending", lease_owner="w", lease_until=10**15, next_at=10**15)
        )
    assert remove(site, days=2, keep_days=1, only_delivered=False).instances == 2
    assert left(site) == []
    with site.ledger() as ledger:
        for row in rows:
            (delivery,) = ledger.deliveries.find_by_instance(row.id)
            assert (delivery.state, delivery.lease_owner) == (DeliveryState.DROPPED, None)
            assert "[retention]" in (delivery.last_error or "")


def test_disk_above_its_high_watermark_is_emptied_to_the_low_one(either_ledger: Sites) -> None:
    site = either_ledger(**NOBODY)
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
    assert remove(site, days=10**5) == RetentionReport()
    assert left(site) == ["2.1"]


def test_quarantine_is_left_alone(site: Site) -> None:
    fill(site, made(1), made(1, pixels=b"another"))
    deliver(site, DeliveryState.DELIVERED)
    assert remove(site, days=2, keep_days=1).instances == 1
    assert states(site) == {"2.1": [REMOVED, InstanceState.QUARANTINED]}
    assert len(site.quarantined()) == 1


# --- how


def test_studies_larger_than_a_batch_and_many_small_ones_go(
    either_ledger: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = either_ledger(**NOBODY)
    for number in range(8):
        site.receive(made(1, number))
    for study in range(2, 9):
        site.receive(made(study))
    site.work()
    monkeypatch.setattr(ingest.workers.retention.remover, "BATCH", 3)
    monkeypatch.setattr(ingest.workers.retention.remover, "CHUNK", 500)
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
        with one._exclude_other_runs(), pytest.raises(RetentionBusyError, match=r"retain\.lock"):
            another.run()
        another.run()


def test_remover_that_is_to_stop_ends_after_its_batch(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for study in range(9):
        site.receive(made(study))
    site.work()
    deliver(site, DeliveryState.DELIVERED)
    monkeypatch.setattr(ingest.workers.retention.remover, "BATCH", 2)
    stop = threading.Event()
    once(monkeypatch, Retention, "mark_removed", stop.set)
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


def test_rows_of_what_was_removed_are_forgotten_on_their_own_clock(either_ledger: Sites) -> None:
    site = either_ledger()
    fill(site, made(1, 1), made(1, 2), made(2), made(2, pixels=b"another"))
    deliver(site, DeliveryState.DELIVERED, 1)
    remove(site, days=3, keep_days=2, ledger_keep_days=4)
    assert states(site)["2.1"] == [REMOVED, REMOVED]
    assert remove(site, days=5, keep_days=2, ledger_keep_days=4).forgotten == 2
    assert states(site) == {"2.2": [STORED, InstanceState.QUARANTINED]}
    assert site.deliveries() == 1
