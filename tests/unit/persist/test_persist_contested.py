"""One SOP instance UID stored by several workers at once, and removed meanwhile: every step between them."""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

import ingest.workers.store.filesystem
from ingest.filesystem.locks import try_lock
from ingest.ledger import DeliveryState, InstanceState, NewInstance, Outcome
from ingest.ledger.instances import Instances
from ingest.ledger.schema import instances
from ingest.workers.persist.storage import BatchStorage
from ingest.workers.store.filesystem import FileStore, StoreBatch
from tests.support.instances import EXPLICIT, IMPLICIT, Made
from tests.support.ledgers import delivery_states
from tests.support.persisting import Site, sections_of
from tests.unit.persist.test_persist_crashes import Killed, die_at

Sites = Callable[..., Site]

STORED, VARIANT = InstanceState.STORED, InstanceState.VARIANT
QUARANTINED, REPLACED = InstanceState.QUARANTINED, InstanceState.REPLACED
REMOVING, REMOVED = InstanceState.REMOVING, InstanceState.REMOVED

FIRST = Made()
OTHER_STUDY = Made(study="1.2.9", series="1.2.9.1")
KEY, OTHER_KEY = "1.2.3/1.2.3.1/1.2.3.4.dcm", "1.2.9/1.2.9.1/1.2.3.4.dcm"
LOCK = Path(".incoming") / "replace.lock"


def once(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, do: Callable[[], None]) -> None:
    """Have something happen before the next call of a method, and only then."""
    real = getattr(owner, name)
    pending = [do]

    def patched(*arguments: Any, **keywords: Any) -> Any:
        if pending:
            pending.pop()()
        return real(*arguments, **keywords)

    monkeypatch.setattr(owner, name, patched)


def rival(site: Site, made: Made) -> Callable[[], None]:
    """Another worker, which receives and stores an instance from begin to end."""

    def work() -> None:
        site.receive(made)
        site.work("two")

    return work


def assert_stored_anew(site: Site, second: Made) -> None:
    """The first object is gone; the second is the only one in the store, and is to be delivered."""
    assert states(site) == [REMOVED, STORED]
    new = site.instances()[1]
    assert site.stored() == [new.store_key]
    assert (site.config.store_root / new.store_key).read_bytes() == second.file
    assert delivery_of(site, new.id) == {"pacs": DeliveryState.WAITING}


def states(site: Site) -> list[InstanceState]:
    return [row.state for row in site.instances()]


def mark(site: Site, state: InstanceState) -> None:
    """Give all rows a state."""
    with site.ledger() as ledger, ledger.database.begin_write() as connection:
        connection.execute(update(instances).values(state=state.value))


def delivery_of(site: Site, row_id: int) -> dict[str, DeliveryState]:
    with site.ledger() as ledger:
        return delivery_states(ledger, row_id)


_DIGEST = hashlib.sha256(EXPLICIT.encode() + b"\0" + OTHER_STUDY.data_set).hexdigest()[:32]
COPY_KEY = f"1.2.9/1.2.9.1/1.2.3.4~{_DIGEST}.dcm"
SECOND = {
    ("keep-identical", "content"): (OTHER_STUDY, [STORED, QUARANTINED], [KEY]),
    ("keep-identical", "syntax"): (
        Made(study="1.2.9", series="1.2.9.1", syntax=IMPLICIT),
        [STORED, VARIANT],
        [KEY, f"1.2.9/1.2.9.1/1.2.3.4~{IMPLICIT}.dcm"],
    ),
    ("keep-first", "content"): (OTHER_STUDY, [STORED], [KEY]),
    ("keep-both", "content"): (OTHER_STUDY, [STORED, STORED], [KEY, COPY_KEY]),
    ("overwrite", "content"): (OTHER_STUDY, [REPLACED, STORED], [OTHER_KEY]),
}


@pytest.mark.parametrize("carried", ["link", "copy", "segment", "redis"])
@pytest.mark.parametrize(("policy", "differs"), SECOND)
def test_uid_that_another_worker_stores_under_another_study_is_placed_again(
    make_persist_site: Sites,
    second_file_system: Path,
    monkeypatch: pytest.MonkeyPatch,
    policy: str,
    differs: str,
    carried: str,
) -> None:
    second, expected, files = SECOND[policy, differs]
    site = make_persist_site(**sections_of(policy, carried, second_file_system))
    site.in_segments = carried == "segment"
    # Both names are given before either has a row.
    once(monkeypatch, FileStore, "sync", rival(site, FIRST))
    site.receive(second)
    site.receive(Made(sop="1.7.1"))
    site.work("one")
    assert [row.state for row in site.instances() if row.sop_instance_uid == FIRST.sop] == expected
    assert site.stored() == sorted([*files, "1.2.3/1.2.3.1/1.7.1.dcm"])
    assert len(site.quarantined()) == expected.count(QUARANTINED)
    assert site.deliveries() == 1 + len(expected) - expected.count(QUARANTINED)
    assert site.settled()


STEPS = [
    (Instances, "record", 1),
    (Instances, "record", 2),
    (BatchStorage, "find_contested", 1),
    (FileStore, "acquire_removal_lock", 1),
    (FileStore, "remove", 1),
    (FileStore, "sync", 3),
    (BatchStorage, "finish_commit", 2),
    (FileStore, "release_removal_lock", 1),
]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("carried", ["link", "segment"])
@pytest.mark.parametrize(("owner", "name", "call"), STEPS, ids=[f"{step[1]}-{step[2]}" for step in STEPS])
def test_death_while_it_is_placed_again_leaves_no_file_without_a_row(
    site: Site, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, call: int, carried: str, after: bool
) -> None:
    site.in_segments = carried == "segment"

    def then() -> None:
        rival(site, FIRST)()
        die_at(patch, owner, name, after=after, call=call)

    with monkeypatch.context() as patch:
        once(patch, FileStore, "sync", then)
        site.receive(OTHER_STUDY)
        with pytest.raises(Killed):
            site.work("one")
    site.work("one")
    assert states(site) == [STORED, QUARANTINED]
    assert site.stored() == [KEY]
    assert len(site.quarantined()) == 1
    assert site.deliveries() == 1
    assert site.settled()


def test_file_of_a_dead_worker_is_adopted_though_another_study_won(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both died with a name and without a row: whoever comes first is first."""
    for consumer, made in (("one", FIRST), ("two", OTHER_STUDY)):
        site.receive(made)
        with monkeypatch.context() as patch:
            die_at(patch, FileStore, "sync", after=True, call=1)
            with pytest.raises(Killed):
                site.work(consumer)
    assert site.stored() == [KEY, OTHER_KEY]
    site.work("two")
    site.work("one")
    assert states(site) == [STORED, QUARANTINED]
    assert site.stored() == [OTHER_KEY]


@pytest.mark.parametrize("policy", ["keep-identical", "keep-first", "overwrite"])
@pytest.mark.parametrize("ledger", ["sqlite", "postgresql"])
def test_many_studies_with_the_same_uids_at_once_leave_one_stored_row_each(
    make_persist_site: Sites, request: pytest.FixtureRequest, policy: str, ledger: str
) -> None:
    sections: dict[str, Any] = {"store": {"duplicates": policy}}
    if ledger == "postgresql":
        sections["ledger"] = {"url": request.getfixturevalue("postgresql_url")}
    site = make_persist_site(**sections)
    with site.ledger() as opened, opened.database.begin_write() as connection:
        for table in ("deliveries", "instances"):
            connection.exec_driver_sql(f"DELETE FROM {table}")
    for number in range(96):
        site.receive(Made(sop=f"1.7.{number // 8}", study=f"1.8.{number % 8}", series=f"1.9.{number % 8}"))
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(site.work, f"w{number}") for number in range(4)]:
            done.result()
    rows = site.instances()
    kept = [row for row in rows if row.state is STORED]
    assert sorted(row.sop_instance_uid for row in kept) == sorted(f"1.7.{number}" for number in range(12))
    assert site.stored() == sorted(row.store_key for row in kept)
    assert len(site.quarantined()) == (84 if policy == "keep-identical" else 0)
    assert all(delivery_of(site, row.id) == {"pacs": DeliveryState.WAITING} for row in kept)
    others = [row for row in rows if row.state is not STORED]
    assert not any(DeliveryState.WAITING in delivery_of(site, row.id).values() for row in others)
    assert site.settled()


# --- what retention removes meanwhile


@pytest.mark.parametrize("second", [FIRST, OTHER_STUDY, Made(pixels=b"zz")], ids=["same", "study", "content"])
def test_instance_that_was_removed_is_stored_and_delivered_anew(site: Site, second: Made) -> None:
    site.receive(FIRST)
    site.work()
    mark(site, REMOVED)
    (site.config.store_root / KEY).unlink()
    site.receive(second)
    site.work()
    assert_stored_anew(site, second)


@pytest.mark.parametrize("second", [FIRST, OTHER_STUDY, Made(pixels=b"zz")], ids=["same", "study", "content"])
def test_removal_that_goes_on_while_an_instance_comes_again_does_not_take_it_along(
    site: Site, monkeypatch: pytest.MonkeyPatch, second: Made
) -> None:
    site.receive(FIRST)
    site.work()

    def remove() -> None:
        mark(site, REMOVING)
        (site.config.store_root / KEY).unlink()
        mark(site, REMOVED)

    once(monkeypatch, FileStore, "acquire_removal_lock", remove)
    site.receive(second)
    site.work()
    assert_stored_anew(site, second)


@pytest.mark.parametrize("unlinked", [False, True])
@pytest.mark.parametrize("second", [FIRST, OTHER_STUDY], ids=["same", "study"])
def test_removal_that_died_is_finished_by_the_instance_that_comes_again(
    site: Site, second: Made, unlinked: bool
) -> None:
    site.receive(FIRST)
    site.work()
    mark(site, REMOVING)
    if unlinked:
        (site.config.store_root / KEY).unlink()
    site.receive(second)
    site.work()
    assert_stored_anew(site, second)


def test_removal_that_died_does_not_take_the_file_of_its_successor(site: Site) -> None:
    site.receive(FIRST)
    site.work()
    mark(site, REMOVED)
    (site.config.store_root / KEY).unlink()
    site.receive(FIRST)
    site.work()
    with site.ledger() as ledger, ledger.database.begin_write() as connection:
        connection.execute(update(instances).where(instances.c.id == 1).values(state=REMOVING.value))
    site.receive(FIRST)
    site.work()
    assert states(site) == [REMOVED, STORED]
    assert site.stored() == [KEY]


def test_reference_that_comes_again_after_its_instance_was_removed_brings_nothing_back(site: Site) -> None:
    site.receive(FIRST, name="a")
    site.work()
    mark(site, REMOVED)
    (site.config.store_root / KEY).unlink()
    site.receive(
        FIRST, name="a"
    )  # as the sweep does, where a worker died before it let go of the spool's copy
    site.work()
    assert states(site) == [REMOVED]
    assert site.stored() == []
    assert site.deliveries() == 1
    assert site.settled()


def test_removal_waits_until_what_collides_is_recorded(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[bool] = []
    site.receive(FIRST)
    site.work()
    site.receive(FIRST)
    with monkeypatch.context() as patch:
        once(patch, Instances, "record", lambda: held.append(is_locked(site)))
        site.work()
    assert held == [True]
    assert not is_locked(site)


def test_lock_is_let_go_of_with_the_commit_though_the_batch_goes_on(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[bool] = []
    real = Instances.record

    def recording(instances: Instances, rows: Sequence[NewInstance]) -> list[Outcome]:
        held.append(is_locked(site))
        return real(instances, rows)

    site.receive(FIRST)
    site.work()
    site.receive(FIRST)
    site.receive(Made(sop="1.7.1"))
    with monkeypatch.context() as patch:
        patch.setattr("ingest.workers.persist.batch.COMMIT_SECONDS", -1.0)
        patch.setattr(Instances, "record", recording)
        site.work()
    assert held == [True, False]


def is_locked(site: Site) -> bool:
    fd = os.open(site.config.store_root / LOCK, os.O_RDWR)
    try:
        return not try_lock(fd)
    finally:
        os.close(fd)


# --- what the lock costs, and what it may not


def test_what_does_not_collide_asks_for_no_lock_and_is_not_kept_by_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        site.receive(Made(sop=f"1.7.{number}"))
    site.work()
    assert not (site.config.store_root / LOCK).exists()
    monkeypatch.setattr(ingest.workers.store.filesystem, "LOCK_SECONDS", 0.1)
    store = FileStore(site.config.store_root)
    store.prepare()
    with store.open_batch() as batch:
        store.acquire_removal_lock(batch)
        site.receive(FIRST)
        for number in range(5, 10):
            site.receive(Made(sop=f"1.7.{number}"))
        site.receive(FIRST)  # collides
        tried = try_once(site, monkeypatch, lambda: store.release_removal_lock(batch))
    store.close()
    assert tried == [11], "the others were not recorded while the lock was held"
    assert site.settled()
    assert len(site.instances()) == 11


def try_once(site: Site, monkeypatch: pytest.MonkeyPatch, release: Callable[[], None]) -> list[int]:
    """Work; let go of the lock at the second try of who waits for it. How many rows there were then."""
    rows: list[int] = []
    real = FileStore.acquire_removal_lock
    calls = 0

    def counting(store: FileStore, batch: StoreBatch) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            rows.append(len(site.instances()))
            release()
        real(store, batch)

    with monkeypatch.context() as patch:
        patch.setattr(FileStore, "acquire_removal_lock", counting)
        site.work()
        site.work()
    return rows


def test_names_that_take_turns_under_overwrite_keep_the_last_file(make_persist_site: Sites) -> None:
    site = make_persist_site(store={"duplicates": "overwrite"})
    last = Made(pixels=b"last")
    site.receive(FIRST)
    site.work()
    site.receive(OTHER_STUDY)
    site.receive(last)
    site.work()
    assert site.stored() == [KEY]
    assert (site.config.store_root / KEY).read_bytes() == last.file
    assert [row.state for row in site.instances()] == [REPLACED, REPLACED, STORED]


@pytest.mark.parametrize("step", ["mark_replaced", "record"])
def test_death_before_the_replaced_file_is_removed_leaves_it_to_the_next_worker(
    make_persist_site: Sites, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    site = make_persist_site(store={"duplicates": "overwrite"})
    site.receive(FIRST)
    site.work()
    site.receive(OTHER_STUDY)
    with monkeypatch.context() as patch:
        die_at(patch, Instances, step, after=True, call=1)
        with pytest.raises(Killed):
            site.work()
    site.work()
    assert site.stored() == [OTHER_KEY]
    assert [row.state for row in site.instances()] == [REPLACED, STORED]
