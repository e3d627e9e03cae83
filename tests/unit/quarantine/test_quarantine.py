"""A person decides about what collided: released, it is the stored object; dropped, it is gone."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ingest.ledger import DeliveryState, Instance, InstanceState
from ingest.ledger.instances import Instances
from ingest.ledger.quarantine import Quarantine
from ingest.workers.quarantine.command import DecisionResult, drop_instances, release_instances
from ingest.workers.store.filesystem import FileStore
from tests.support.instances import IMPLICIT, Made
from tests.support.persisting import Site
from tests.unit.persist.test_persist_contested import delivery_of, once
from tests.unit.persist.test_persist_crashes import Killed, die_at

Sites = Callable[..., Site]

STORED, QUARANTINED = InstanceState.STORED, InstanceState.QUARANTINED
REPLACED, REMOVED = InstanceState.REPLACED, InstanceState.REMOVED
WAITING = {"pacs": DeliveryState.WAITING}

FIRST, SECOND = Made(), Made(pixels=b"other")
OTHER_STUDY = Made(study="1.2.9", series="1.2.9.1", pixels=b"other")
KEY, OTHER_KEY = "1.2.3/1.2.3.1/1.2.3.4.dcm", "1.2.9/1.2.9.1/1.2.3.4.dcm"


@pytest.fixture(params=["sqlite", "postgresql"])
def either_site(make_persist_site: Sites, request: pytest.FixtureRequest) -> Site:
    """A site with each kind of ledger."""
    if request.param == "sqlite":
        return make_persist_site()
    site = make_persist_site(ledger={"url": request.getfixturevalue("postgresql_url")})
    with site.ledger() as ledger, ledger.database.begin_write() as connection:
        connection.exec_driver_sql("TRUNCATE attempts, deliveries, instances")
    return site


def conflict(site: Site, second: Made = SECOND) -> tuple[int, int]:
    """What is stored and what collided with it, by a real worker; their ids."""
    for made in (FIRST, second):
        site.receive(made)
        site.work()
    stored, quarantined = site.instances()
    assert (stored.state, quarantined.state) == (STORED, QUARANTINED)
    return stored.id, quarantined.id


def by_id(site: Site) -> dict[int, Instance]:
    return {row.id: row for row in site.instances()}


def kept_files(site: Site) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in site.quarantined()}


def assert_released(site: Site, first: int, second: int, made: Made = SECOND) -> None:
    """The second object is stored and to be delivered; the first one lies in quarantine instead."""
    rows = by_id(site)
    key = OTHER_KEY if made.study == "1.2.9" else KEY
    assert (rows[first].state, rows[second].state) == (REPLACED, STORED)
    assert site.stored() == [rows[second].store_key] == [key]
    assert (site.config.store_root / key).read_bytes() == made.file
    assert delivery_of(site, second) == WAITING
    assert delivery_of(site, first) == {"pacs": DeliveryState.DROPPED}
    [kept] = [row for row in rows.values() if row.state is QUARANTINED]
    assert kept_files(site) == {kept.store_key: FIRST.file}
    assert (kept.sop_instance_uid, kept.study_uid, kept.size) == (FIRST.sop, FIRST.study, len(FIRST.file))
    assert kept.received_at == rows[first].received_at


@pytest.mark.parametrize("second", [SECOND, OTHER_STUDY], ids=["content", "study"])
def test_conflict_waits_for_a_person_who_releases_it(either_site: Site, second: Made) -> None:
    site = either_site
    first, other = conflict(site, second)
    assert delivery_of(site, other) == {}
    assert not release_instances(site.config, [other]).failures
    assert_released(site, first, other, second)
    row = by_id(site)[other]
    assert row.routed == "routes[0]"
    assert "released from quarantine by hand; another object" in row.note
    assert f"instance {other}" in by_id(site)[first].note


def test_what_gave_way_can_be_taken_back(site: Site) -> None:
    first, other = conflict(site)
    release_instances(site.config, [other])
    [again] = [row.id for row in site.instances() if row.state is QUARANTINED]
    assert not release_instances(site.config, [again]).failures
    assert (site.config.store_root / KEY).read_bytes() == FIRST.file
    assert [row.state for row in site.instances()][:3] == [REPLACED, REPLACED, STORED]
    assert list(kept_files(site).values()) == [SECOND.file]
    assert delivery_of(site, again) == WAITING
    assert {first, other} < by_id(site).keys()


def test_same_again_after_a_release_is_no_conflict_and_the_old_one_is(site: Site) -> None:
    _, other = conflict(site)
    release_instances(site.config, [other])
    for made in (SECOND, FIRST):
        site.receive(made)
        site.work()
    states = [row.state for row in site.instances()]
    assert (states.count(STORED), states.count(QUARANTINED)) == (1, 2)
    assert by_id(site)[other].state is STORED
    assert site.settled()


def test_where_nothing_is_stored_any_more_it_is_just_stored(site: Site) -> None:
    first, other = conflict(site)
    with site.ledger() as ledger, ledger.database.begin_write() as connection:
        connection.exec_driver_sql(f"UPDATE instances SET state = 'removed' WHERE id = {first}")
    (site.config.store_root / KEY).unlink()
    assert not release_instances(site.config, [other]).failures
    assert by_id(site)[other].state is STORED
    assert (site.config.store_root / KEY).read_bytes() == SECOND.file
    assert site.quarantined() == []


def test_file_that_no_row_speaks_of_is_not_lost_by_a_release(site: Site) -> None:
    """A worker had given it its name, and died before it had a row."""
    first, other = conflict(site)
    with site.ledger() as ledger, ledger.database.begin_write() as connection:
        connection.exec_driver_sql(f"UPDATE instances SET state = 'removed' WHERE id = {first}")
    (site.config.store_root / KEY).unlink()
    (site.config.store_root / KEY).write_bytes(Made(pixels=b"third").file)
    assert not release_instances(site.config, [other]).failures
    [kept] = [row for row in site.instances() if row.state is QUARANTINED]
    assert kept_files(site) == {kept.store_key: Made(pixels=b"third").file}
    assert (site.config.store_root / KEY).read_bytes() == SECOND.file


def test_store_on_another_file_system_gets_a_copy(make_persist_site: Sites, second_file_system: Path) -> None:
    site = make_persist_site(store={"root": second_file_system / "store"})
    first, other = conflict(site)
    assert not release_instances(site.config, [other]).failures
    assert_released(site, first, other)


# --- who dies, and who comes at the same time

STEPS = [
    (FileStore, "acquire_removal_lock", 1),
    (FileStore, "replace", 1),
    (FileStore, "sync", 1),
    (Quarantine, "replace_stored", 1),
    (FileStore, "replace", 2),
    (FileStore, "sync", 2),
    (Quarantine, "release", 1),
    (FileStore, "remove", 1),
    (FileStore, "sync", 3),
    (FileStore, "sync", 4),
]


@pytest.mark.parametrize("second", [SECOND, OTHER_STUDY], ids=["content", "study"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("owner", "name", "call"), STEPS, ids=[f"{step[1]}-{step[2]}" for step in STEPS])
def test_release_that_died_hides_nothing_and_is_finished_by_the_next(
    site: Site, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, call: int, after: bool, second: Made
) -> None:
    first, other = conflict(site, second)
    with monkeypatch.context() as patch:
        die_at(patch, owner, name, after=after, call=call)
        with pytest.raises(Killed):
            release_instances(site.config, [other])
    rows = site.instances()
    shown = {
        (site.config.store_root if row.state is STORED else site.config.quarantine_dir, row.store_key)
        for row in rows
        if row.state in {STORED, QUARANTINED}
    }
    assert {(root / key).read_bytes() for root, key in shown} == {FIRST.file, second.file}
    # Where all was done already, there is nothing left to do, and it says so.
    done = by_id(site)[other].state is STORED and len(site.quarantined()) == 1
    assert len(release_instances(site.config, [other]).failures) == int(done)
    assert_released(site, first, other, second)


@pytest.mark.parametrize("call", range(1, 6))
def test_worker_that_comes_after_a_release_that_died_delivers_one_object(
    site: Site, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    _, other = conflict(site)
    owner, name, number = STEPS[2 + call]
    with monkeypatch.context() as patch:
        die_at(patch, owner, name, after=True, call=number)
        with pytest.raises(Killed):
            release_instances(site.config, [other])
    site.receive(FIRST)
    site.work()
    stored = [row for row in site.instances() if row.state is STORED]
    assert len(stored) == 1
    release_instances(site.config, [other])
    rows = by_id(site)
    assert rows[other].state is STORED
    assert (site.config.store_root / KEY).read_bytes() == SECOND.file
    assert [row.store_key for row in rows.values() if row.state is STORED] == site.stored() == [KEY]
    assert set(kept_files(site).values()) == {FIRST.file}
    assert set(kept_files(site)) == {row.store_key for row in rows.values() if row.state is QUARANTINED}
    assert site.settled()


@pytest.mark.parametrize("third", [Made(pixels=b"third"), Made(study="1.7", pixels=b"third")])
@pytest.mark.parametrize(
    ("owner", "step"),
    [(Instances, "find_by_sop_instance_uid"), (Quarantine, "replace_stored"), (Quarantine, "release")],
)
def test_worker_that_stores_the_uid_meanwhile_loses_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch, owner: type, step: str, third: Made
) -> None:
    first, other = conflict(site)
    with site.ledger() as ledger, ledger.database.begin_write() as connection:
        connection.exec_driver_sql(f"UPDATE instances SET state = 'removed' WHERE id = {first}")
    (site.config.store_root / KEY).unlink()
    site.receive(third)

    def come() -> None:
        """A worker that gets no lock gives up after a while, and another takes over."""
        worker = threading.Thread(target=site.work, args=("two",))
        worker.start()
        worker.join(1.0)
        waiting.append(worker)

    waiting: list[threading.Thread] = []
    once(monkeypatch, owner, step, come)
    assert not release_instances(site.config, [other]).failures
    for worker in waiting:
        worker.join(20)
    rows = site.instances()
    assert [row.id for row in rows if row.state is STORED] == [other]
    assert len(site.stored()) == 1
    assert (site.config.store_root / KEY).read_bytes() == SECOND.file
    assert third.file in kept_files(site).values()
    assert set(kept_files(site)) == {row.store_key for row in rows if row.state is QUARANTINED}
    assert delivery_of(site, other) == WAITING
    assert not any(
        DeliveryState.WAITING in delivery_of(site, row.id).values()
        for row in rows
        if row.id not in {first, other}
    )
    assert site.settled()


def test_two_persons_release_two_objects_of_one_uid_at_once(either_site: Site) -> None:
    site = either_site
    conflict(site)
    for number in range(4):
        site.receive(Made(pixels=b"more%d" % number))
    site.work()
    ids = [row.id for row in site.instances() if row.state is QUARANTINED]
    with ThreadPoolExecutor(len(ids)) as pool:
        futures = [pool.submit(release_instances, site.config, [one]) for one in ids]
        failures = [future.result().failures for future in futures]
    assert failures == [()] * len(ids)
    rows = site.instances()
    [stored] = [row for row in rows if row.state is STORED]
    assert stored.id in ids
    kept = kept_files(site)
    assert set(kept) == {row.store_key for row in rows if row.state is QUARANTINED}
    everything = {FIRST.file, SECOND.file, *(Made(pixels=b"more%d" % number).file for number in range(4))}
    assert {*kept.values(), (site.config.store_root / KEY).read_bytes()} == everything
    assert delivery_of(site, stored.id) == WAITING


# --- what cannot be released


def test_unknown_and_stored_ones_are_named_and_keep_back_no_others(
    site: Site,
) -> None:
    first, other = conflict(site)
    shown: list[DecisionResult] = []
    applied = release_instances(site.config, [first, 999, other, other], shown.append)
    stored, unknown, released = applied.results
    assert shown == [stored, unknown, released]
    assert applied.failures == (stored, unknown)
    assert f"{first}: it is not in quarantine, it is stored" in stored.error
    assert "999: there is no instance with this id" in unknown.error
    assert released == DecisionResult(other, "released", ("pacs",))
    assert_released(site, first, other)
    assert release_instances(site.config, [other]).failures


@pytest.mark.parametrize(
    ("content", "suffix", "why"),
    [
        (b"no DICOM at all", ".C000", "cannot be read as a DICOM file"),
        (Made(sop_in_data_set="1.2.3.5").file, ".A900", "has another SOP Instance UID"),
    ],
    ids=["unreadable", "other UID"],
)
def test_refused_copies_that_cannot_be_stored_say_so(
    site: Site, content: bytes, suffix: str, why: str
) -> None:
    site.receive(content, suffix=suffix)
    site.work()
    [row] = site.instances()
    assert row.note.startswith("refused with ")
    [failed] = release_instances(site.config, [row.id]).failures
    assert why in failed.error
    assert by_id(site)[row.id] == row
    assert len(site.quarantined()) == 1


def test_file_that_is_gone_can_only_be_dropped(site: Site) -> None:
    _, other = conflict(site)
    site.quarantined()[0].unlink()
    [failed] = release_instances(site.config, [other]).failures
    assert "is gone; drop it" in failed.error
    assert not drop_instances(site.config, [other]).failures
    assert by_id(site)[other].state is REMOVED


def test_variant_in_another_syntax_stays_beside_what_is_released(site: Site) -> None:
    site.receive(FIRST)
    site.receive(Made(syntax=IMPLICIT))
    site.receive(SECOND)
    site.work()
    [other] = [row.id for row in site.instances() if row.state is QUARANTINED]
    assert not release_instances(site.config, [other]).failures
    states = [row.state for row in site.instances()]
    assert states.count(InstanceState.VARIANT) == states.count(STORED) == 1
    assert len(site.stored()) == 2
    # A person has decided: what is released is delivered, and neither the first nor its variant.
    owed = {row.state: delivery_of(site, row.id) for row in site.instances() if row.state is not QUARANTINED}
    assert owed[STORED] == {"pacs": DeliveryState.WAITING}
    assert owed[InstanceState.VARIANT] == {"pacs": DeliveryState.DROPPED}


def test_release_takes_the_place_of_the_first_and_leaves_copies(make_persist_site: Sites) -> None:
    site = make_persist_site()
    _, other = conflict(site)
    site.receive(Made(pixels=b"further"))
    site.work(store=site.config.store.model_copy(update={"duplicates": "keep-both"}))
    copy = site.instances()[-1]
    assert not release_instances(site.config, [other]).failures
    kept = {row.id: row for row in site.instances() if row.state is STORED}
    assert kept.keys() == {other, copy.id}
    assert kept[other].copy_digest == ""
    assert site.stored() == sorted(row.store_key for row in kept.values())
    assert delivery_of(site, copy.id) == {"pacs": DeliveryState.WAITING}


def test_release_leaves_copies_that_outlived_the_first(make_persist_site: Sites) -> None:
    site = make_persist_site()
    first, other = conflict(site)
    site.receive(Made(pixels=b"further"))
    site.work(store=site.config.store.model_copy(update={"duplicates": "keep-both"}))
    copy = site.instances()[-1]
    with site.ledger() as ledger, ledger.database.begin_write() as connection:
        connection.exec_driver_sql(f"UPDATE instances SET state = 'removed' WHERE id = {first}")
    (site.config.store_root / by_id(site)[first].store_key).unlink()
    assert not release_instances(site.config, [other]).failures
    assert [by_id(site)[number].state for number in (first, other, copy.id)] == [REMOVED, STORED, STORED]
    assert len(site.stored()) == 2


# --- dropping


def test_dropped_ones_leave_a_row_that_says_so(either_site: Site) -> None:
    site = either_site
    first, other = conflict(site)
    assert not drop_instances(site.config, [other]).failures
    row = by_id(site)[other]
    assert row.state is REMOVED
    assert row.note.startswith("dropped from quarantine by hand; another object")
    assert site.quarantined() == []
    assert by_id(site)[first].state is STORED
    assert drop_instances(site.config, [other, 999]).failures
    assert release_instances(site.config, [other]).failures


@pytest.mark.parametrize(
    ("owner", "name"), [(FileStore, "remove"), (FileStore, "sync"), (Quarantine, "drop")]
)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_drop_that_died_is_finished_by_the_next(
    site: Site, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, after: bool
) -> None:
    _, other = conflict(site)
    with monkeypatch.context() as patch:
        die_at(patch, owner, name, after=after, call=1)
        with pytest.raises(Killed):
            drop_instances(site.config, [other])
    done = by_id(site)[other].state is REMOVED
    assert len(drop_instances(site.config, [other]).failures) == int(done)
    assert by_id(site)[other].state is REMOVED
    assert site.quarantined() == []


def test_store_that_is_not_there_is_not_made(site: Site) -> None:
    _, other = conflict(site)
    away = site.config.store_root.rename(site.config.store_root.with_name("away"))
    with pytest.raises(Exception, match="is not there; mount it"):
        release_instances(site.config, [other])
    assert not site.config.store_root.exists()
    away.rename(site.config.store_root)
    assert not release_instances(site.config, [other]).failures


def test_another_user_is_told_to_be_the_nodes(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    _, other = conflict(site)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(Exception, match="run this as that user"):
        release_instances(site.config, [other])
