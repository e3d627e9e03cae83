"""A second object of a SOP instance UID, through the whole worker, for each policy."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest

from ingest.alarms import BOUNDED_ALARM, raise_alarm, standing_alarms
from ingest.clock import unix_ms
from ingest.ledger import DeliveryResult, DeliveryState, InstanceState, Ledger
from ingest.workers.store.filesystem import FileStore
from tests.support.instances import EXPLICIT, IMPLICIT, Made
from tests.support.ledgers import delivery_states
from tests.support.persisting import Site

Sites = Callable[..., Site]

FIRST = Made()
SAME_SENT_AGAIN = Made(calling="OTHER")
OTHER_CONTENT = Made(pixels=b"\4\3\2\1")
LONGER = Made(pixels=b"\4\3\2\1\0\0")
OTHER_SYNTAX = Made(syntax=IMPLICIT)
OTHER_SERIES = Made(series="1.2.3.2")
KEY = "1.2.3/1.2.3.1/1.2.3.4.dcm"

STORED, VARIANT = InstanceState.STORED, InstanceState.VARIANT
QUARANTINED, REPLACED = InstanceState.QUARANTINED, InstanceState.REPLACED


@pytest.fixture(params=["together", "apart"])
def arrive(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Has instances arrive one after the other: in one batch, or in a batch each."""

    def do(site: Site, *made: Made) -> None:
        for one in made:
            site.receive(one)
            if request.param == "apart":
                site.work()
        site.work()
        assert site.settled()

    return do


Arrive = Callable[..., None]


def states(site: Site) -> list[InstanceState]:
    return [row.state for row in site.instances()]


def content(site: Site, key: str = KEY) -> bytes:
    return (site.config.store_root / key).read_bytes()


def test_identical_data_set_sent_again_changes_nothing(site: Site, arrive: Arrive) -> None:
    arrive(site, FIRST, SAME_SENT_AGAIN, FIRST)
    assert states(site) == [STORED]
    assert content(site) == FIRST.file
    assert site.deliveries() == 1
    assert site.quarantined() == []


@pytest.mark.parametrize("second", [OTHER_CONTENT, LONGER, OTHER_SERIES], ids=["bytes", "length", "series"])
def test_other_content_is_quarantined_and_the_first_stays(site: Site, arrive: Arrive, second: Made) -> None:
    arrive(site, FIRST, second)
    assert states(site) == [STORED, QUARANTINED]
    assert content(site) == FIRST.file
    assert [path.read_bytes() for path in site.quarantined()] == [second.file]
    assert site.deliveries() == 1
    assert "other content" in site.instances()[1].note


def test_other_transfer_syntax_is_kept_once_as_a_variant_with_a_delivery_of_its_own(
    site: Site, arrive: Arrive
) -> None:
    arrive(site, FIRST, OTHER_SYNTAX, OTHER_SYNTAX)
    assert states(site) == [STORED, VARIANT]
    assert content(site) == FIRST.file
    variant = site.instances()[1]
    assert content(site, variant.store_key) == OTHER_SYNTAX.file
    assert variant.transfer_syntax_uid == IMPLICIT
    assert EXPLICIT in variant.note
    assert variant.routed == "routes[0]"
    with site.ledger() as ledger:
        assert delivery_states(ledger, variant.id) == {"pacs": DeliveryState.WAITING}
    assert site.deliveries() == 2


def test_variant_of_other_content_is_quarantined(site: Site, arrive: Arrive) -> None:
    arrive(site, FIRST, OTHER_SYNTAX, Made(syntax=IMPLICIT, pixels=b"\4\3\2\1"))
    assert states(site) == [STORED, VARIANT, QUARANTINED]


@pytest.mark.parametrize(
    "second", [OTHER_CONTENT, OTHER_SYNTAX, OTHER_SERIES], ids=["bytes", "syntax", "series"]
)
def test_keep_first_drops_what_comes_later(make_persist_site: Sites, arrive: Arrive, second: Made) -> None:
    site = make_persist_site(store={"duplicates": "keep-first"})
    arrive(site, FIRST, second)
    assert states(site) == [STORED]
    assert content(site) == FIRST.file
    assert (site.stored(), site.quarantined(), site.deliveries()) == ([KEY], [], 1)


def test_overwrite_with_an_identical_data_set_is_no_event(make_persist_site: Sites, arrive: Arrive) -> None:
    site = make_persist_site(store={"duplicates": "overwrite"})
    arrive(site, FIRST, SAME_SENT_AGAIN, FIRST)
    assert states(site) == [STORED]
    assert content(site) == FIRST.file
    assert (site.deliveries(), site.quarantined()) == (1, [])


@pytest.mark.parametrize(
    "second", [OTHER_CONTENT, LONGER, OTHER_SYNTAX, OTHER_SERIES], ids=["bytes", "length", "syntax", "series"]
)
def test_keep_both_stores_and_routes_each_copy_once(
    make_persist_site: Sites, arrive: Arrive, second: Made
) -> None:
    site = make_persist_site(store={"duplicates": "keep-both"})
    arrive(site, FIRST, second, FIRST, second, Made(pixels=b"third"), second)
    first, copy, third = site.instances()
    assert states(site) == [STORED] * 3
    assert (first.copy_digest, first.store_key) == ("", KEY)
    folder = f"{second.study}/{second.series}"
    assert copy.store_key == f"{folder}/{second.sop}~{copy.copy_digest}.dcm"
    assert [content(site, row.store_key) for row in (first, copy)] == [FIRST.file, second.file]
    assert site.stored() == sorted(row.store_key for row in (first, copy, third))
    assert site.quarantined() == []
    with site.ledger() as ledger:
        waiting = [delivery_states(ledger, row.id) for row in (first, copy, third)]
    assert waiting == [{"pacs": DeliveryState.WAITING}] * 3


@pytest.mark.parametrize("policy", ["keep-both", "overwrite"])
def test_what_is_kept_beside_or_instead_of_another_says_that_it_is_damaged(
    make_persist_site: Sites, policy: str
) -> None:
    site = make_persist_site(store={"duplicates": policy})
    damaged = FIRST.meta + b"\x08\0\x05\0  \4\0abcd" + FIRST.data_set
    for file in (FIRST, damaged):
        site.receive(file)
        site.work()
    assert "its header is damaged: " in site.instances()[-1].note


def test_keep_both_knows_a_copy_whose_first_object_was_removed(make_persist_site: Sites) -> None:
    site = make_persist_site(store={"duplicates": "keep-both"})
    for made in (FIRST, OTHER_CONTENT):
        site.receive(made)
        site.work()
    with site.ledger() as ledger, ledger.database.begin_write() as connection:
        connection.exec_driver_sql("UPDATE instances SET state = 'removed' WHERE copy_digest = ''")
    (site.config.store_root / KEY).unlink()
    site.receive(OTHER_CONTENT)
    site.work()
    assert states(site) == [InstanceState.REMOVED, STORED]
    site.receive(FIRST)
    site.work()
    assert states(site) == [InstanceState.REMOVED, STORED, STORED]
    assert content(site) == FIRST.file


def test_overwrite_leaves_copies_of_an_earlier_policy_alone(make_persist_site: Sites) -> None:
    site = make_persist_site(store={"duplicates": "keep-both"})
    for made in (FIRST, OTHER_CONTENT):
        site.receive(made)
        site.work()
    site.receive(LONGER)
    site.work(store=site.config.store.model_copy(update={"duplicates": "overwrite"}))
    assert states(site) == [REPLACED, STORED, STORED]
    assert [row.copy_digest != "" for row in site.instances()] == [False, True, False]
    assert content(site) == LONGER.file


@pytest.mark.parametrize("second", [OTHER_CONTENT, LONGER, OTHER_SYNTAX], ids=["bytes", "length", "syntax"])
def test_overwrite_replaces_file_row_and_deliveries(
    make_persist_site: Sites, arrive: Arrive, second: Made
) -> None:
    site = make_persist_site(store={"duplicates": "overwrite"})
    arrive(site, FIRST, second)
    old, new = site.instances()
    assert (old.state, new.state) == (REPLACED, STORED)
    assert content(site) == second.file
    assert (new.size, new.transfer_syntax_uid) == (len(second.file), second.syntax)
    assert site.stored() == [KEY]
    with site.ledger() as ledger:
        assert DeliveryState.WAITING not in delivery_states(ledger, old.id).values()
        assert delivery_states(ledger, new.id) == {"pacs": DeliveryState.WAITING}


def test_overwrite_under_another_name_removes_the_old_file(make_persist_site: Sites, arrive: Arrive) -> None:
    site = make_persist_site(store={"duplicates": "overwrite"})
    arrive(site, FIRST, OTHER_SERIES)
    assert states(site) == [REPLACED, STORED]
    assert site.stored() == ["1.2.3/1.2.3.2/1.2.3.4.dcm"]


def test_overwritten_object_that_comes_back_from_a_crash_does_not_replace_its_successor(
    make_persist_site: Sites,
) -> None:
    site = make_persist_site(store={"duplicates": "overwrite"})
    site.receive(FIRST, name="a")
    site.work()
    site.receive(OTHER_CONTENT)
    site.work()
    # As after a crash before the spool's copy was removed.
    site.receive(FIRST, name="a")
    site.work()
    assert content(site) == OTHER_CONTENT.file
    assert states(site) == [REPLACED, STORED]
    assert site.settled()


@pytest.mark.parametrize("policy", ["keep-identical", "keep-first", "keep-both", "overwrite"])
def test_file_that_cannot_be_read_gives_way(make_persist_site: Sites, policy: str) -> None:
    site = make_persist_site(store={"duplicates": policy})
    path = site.config.store_root / KEY
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")  # as a power cut leaves it with durability "page-cache"
    site.receive(FIRST)
    site.work()
    assert states(site) == [STORED]
    assert content(site) == FIRST.file
    assert site.deliveries() == 1


@pytest.mark.parametrize("second", [FIRST, OTHER_CONTENT, OTHER_SERIES], ids=["same", "content", "series"])
def test_instance_whose_file_somebody_removed_is_stored_and_delivered_anew(site: Site, second: Made) -> None:
    site.receive(FIRST)
    site.work()
    (site.config.store_root / KEY).unlink()
    site.receive(second)
    site.work()
    assert states(site) == [REPLACED, STORED]
    with closing(Ledger(site.config.ledger_url)) as ledger:
        kept = next(
            row for row in ledger.instances.find_by_sop_instance_uid(FIRST.sop) if row.state is STORED
        )
        assert [row.state for row in ledger.deliveries.find_by_instance(kept.id)] == [DeliveryState.WAITING]
    assert (site.config.store_root / kept.store_key).read_bytes() == second.file


def test_delivered_instance_sent_again_is_not_delivered_again(site: Site) -> None:
    site.receive(FIRST)
    site.work()
    with site.ledger() as ledger:
        [leased] = ledger.deliveries.lease_due("pacs", "me", 9, 0, 1000)
        ledger.deliveries.record_results(
            "pacs", [DeliveryResult(id=leased.id, owner="me", state=DeliveryState.DELIVERED)], 1
        )
    site.receive(FIRST)
    site.work()
    with site.ledger() as ledger:
        assert ledger.deliveries.find_due_destinations(10**15) == []


def test_file_in_the_store_without_a_row_becomes_the_instance_that_comes_again(site: Site) -> None:
    path = site.config.store_root / KEY
    path.parent.mkdir(parents=True)
    path.write_bytes(SAME_SENT_AGAIN.file)
    site.receive(FIRST)
    site.work()
    [row] = site.instances()
    assert (row.size, row.data_set_offset) == (len(SAME_SENT_AGAIN.file), len(SAME_SENT_AGAIN.meta))
    assert row.calling_ae == "OTHER"
    assert site.deliveries() == 1


@pytest.mark.parametrize("policy", ["keep-identical", "keep-first", "keep-both", "overwrite"])
@pytest.mark.parametrize("link", [True, False])
def test_workers_with_the_same_uid_at_once_leave_one_stored_row_true_to_its_file(
    make_persist_site: Sites, second_file_system: Any, policy: str, link: bool
) -> None:
    elsewhere = {} if link else {"receive": {"spool_dir": second_file_system / "spool"}}
    site = make_persist_site(store={"duplicates": policy}, **elsewhere)
    with site.ledger():
        pass
    for number in range(100):
        sop = f"1.7.{number // 4}"
        site.receive(
            Made(sop=sop, calling=f"AE{number}", pixels=bytes([number % 4 // 2]) * (2 + 2 * (number % 2)))
        )
    small = 5
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(_work_in_small_batches, site, f"w{number}", small) for number in range(4)]:
            done.result()
    stored = [row for row in site.instances() if row.state is STORED]
    firsts = [row.sop_instance_uid for row in stored if not row.copy_digest]
    assert sorted(firsts) == sorted(f"1.7.{number}" for number in range(25))
    store = FileStore(site.config.store_root)
    assert {row.store_key: store.read_size(row.store_key) for row in stored} == {
        row.store_key: row.size for row in stored
    }
    with site.ledger() as ledger:
        open_ones = [
            row for row in stored if delivery_states(ledger, row.id) == {"pacs": DeliveryState.WAITING}
        ]
    # Of each UID there are four contents.
    assert len(open_ones) == len(stored) == (100 if policy == "keep-both" else 25)
    assert site.settled()


def _work_in_small_batches(site: Site, consumer: str, size: int) -> None:
    from tests.support.persisting import Drainer

    class Small(Drainer):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self._batch = size

    site.work(consumer, Small)


def deliver_all(site: Site) -> None:
    """Have the destination accept what is due."""
    with site.ledger() as ledger:
        now = unix_ms()
        leased = ledger.deliveries.lease_due("pacs", "me", 99, now, 1000)
        done = [DeliveryResult(id=one.id, owner="me", state=DeliveryState.DELIVERED) for one in leased]
        ledger.deliveries.record_results("pacs", done, now)


@pytest.mark.parametrize("policy", ["overwrite", "keep-both"])
def test_eleventh_object_of_a_uid_within_an_hour_is_kept_and_not_sent(
    make_persist_site: Sites, policy: str
) -> None:
    site = make_persist_site(store={"duplicates": policy})
    for number in range(11):
        site.receive(Made(pixels=b"%4d" % number))
        site.work()
        deliver_all(site)
    rows = site.instances()
    assert [row.routed for row in rows[:10]] == ["routes[0]"] * 10
    assert rows[10].routed == "routes[0]; not sent to pacs: 10 objects of its UID were within an hour"
    assert (rows[10].state, content(site, rows[10].store_key)[-4:]) == (STORED, b"  10")
    assert site.deliveries() == 10
    (alarm,) = standing_alarms(site.config.run_dir)
    assert alarm.name == "replacements_bounded.pacs"
    # Another UID, and this one an hour later, go on.
    site.receive(Made(sop="1.7.1"))
    with site.ledger() as ledger, ledger.database.begin_write() as connection:
        connection.exec_driver_sql("UPDATE deliveries SET updated_at = updated_at - 3600000")
    site.receive(Made(pixels=b"next"))
    site.work()
    assert [row.routed for row in site.instances()[11:]] == ["routes[0]"] * 2


def test_replaced_objects_that_were_not_delivered_count_for_nothing(make_persist_site: Sites) -> None:
    site = make_persist_site(store={"duplicates": "overwrite"})
    for number in range(13):
        site.receive(Made(pixels=b"%4d" % number))
        site.work()
    assert site.instances()[-1].routed == "routes[0]"
    assert standing_alarms(site.config.run_dir) == []


def test_alarm_about_a_destination_that_was_removed_ends(site: Site) -> None:
    for name in ("pacs", "gone"):
        raise_alarm(site.config.run_dir, f"{BOUNDED_ALARM}.{name}", "cause", "remedy")
    raise_alarm(site.config.run_dir, "another.gone", "cause", "remedy")
    site.receive(FIRST)
    site.work()
    assert {alarm.name for alarm in standing_alarms(site.config.run_dir)} == {
        "replacements_bounded.pacs",
        "another.gone",
    }
