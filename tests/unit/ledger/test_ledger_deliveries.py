"""Leases: who has a delivery in hand, for how long, and what comes of it."""

import contextlib
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import event

from ingest.dicom.priority import Priority
from ingest.ledger import Delivery, DeliveryResult, DeliveryState, DeliveryTerms, Ledger
from ingest.ledger.delivery_filter import DeliveryFilter
from tests.support.instances import CT, EXPLICIT
from tests.support.ledgers import row


def result(delivery: Delivery, state: DeliveryState, owner: str = "me", next_at: int = 0) -> DeliveryResult:
    return DeliveryResult(
        id=delivery.id, owner=owner, state=state, last_status=0xA700, last_error="full", next_at=next_at
    )


def test_lease_gives_what_a_sender_needs_in_the_order_of_arrival(ledger: Ledger) -> None:
    ledger.instances.record([row(number) for number in range(5)])
    leased = ledger.deliveries.lease_due("pacs", "me", 3, 1000, 500)
    assert [delivery.sop_instance_uid for delivery in leased] == ["1.2.0", "1.2.1", "1.2.2"]
    first = leased[0]
    assert (first.store_key, first.size, first.data_set_offset) == ("1/1/1.2.0.dcm", 1000, 300)
    assert (first.attempts, first.lease_until) == (1, 1500)


def test_leased_delivery_is_nobody_elses_until_the_lease_ends(ledger: Ledger) -> None:
    ledger.instances.record([row(1)])
    [mine] = ledger.deliveries.lease_due("pacs", "me", 9, 1000, 500)
    assert ledger.deliveries.lease_due("pacs", "you", 9, 1499, 500) == []
    [yours] = ledger.deliveries.lease_due("pacs", "you", 9, 1500, 500)
    assert yours.id == mine.id
    assert yours.attempts == 2
    assert ledger.deliveries.record_results("pacs", [result(mine, DeliveryState.DELIVERED)], 1501) == 0
    assert ledger.deliveries.renew_leases([mine.id], "me", 1501, 500) == set()
    assert (
        ledger.deliveries.record_results("pacs", [result(yours, DeliveryState.DELIVERED, "you")], 1502) == 1
    )


def test_renewed_lease_lasts_longer(ledger: Ledger) -> None:
    ledger.instances.record([row(1), row(2)])
    leased = ledger.deliveries.lease_due("pacs", "me", 9, 1000, 500)
    ids = [delivery.id for delivery in leased]
    assert ledger.deliveries.renew_leases(ids, "me", 1400, 500) == set(ids)
    assert ledger.deliveries.lease_due("pacs", "you", 9, 1600, 500) == []


def test_delivery_to_be_tried_again_waits_for_its_time(ledger: Ledger) -> None:
    ledger.instances.record([row(1)])
    [leased] = ledger.deliveries.lease_due("pacs", "me", 9, 1000, 500)
    ledger.deliveries.record_results("pacs", [result(leased, DeliveryState.RETRY, next_at=5000)], 1100)
    assert ledger.deliveries.lease_due("pacs", "me", 9, 4999, 500) == []
    assert ledger.deliveries.find_next_due_ms("pacs") == 5000
    assert ledger.deliveries.find_due_destinations(4999) == []
    assert ledger.deliveries.find_due_destinations(5000) == ["pacs"]
    [again] = ledger.deliveries.lease_due("pacs", "me", 9, 5000, 500)
    assert again.attempts == 2


@pytest.mark.parametrize("state", [DeliveryState.DELIVERED, DeliveryState.DEAD, DeliveryState.DROPPED])
def test_ended_delivery_is_never_leased_again(ledger: Ledger, state: DeliveryState) -> None:
    ledger.instances.record([row(1)])
    [leased] = ledger.deliveries.lease_due("pacs", "me", 9, 1000, 500)
    ledger.deliveries.record_results("pacs", [result(leased, state, next_at=7)], 1100)
    [found] = ledger.deliveries.find_by_instance(leased.instance_id)
    assert (found.state, found.last_status, found.last_error) == (state, 0xA700, "full")
    assert (found.lease_owner, found.lease_until, found.next_at) == (None, None, 0)
    assert ledger.deliveries.lease_due("pacs", "me", 9, 10**15, 500) == []
    assert ledger.deliveries.find_next_due_ms("pacs") is None


def test_released_delivery_waits_again_and_was_no_attempt(ledger: Ledger) -> None:
    ledger.instances.record([row(1)])
    [leased] = ledger.deliveries.lease_due("pacs", "me", 9, 1000, 500)
    ledger.deliveries.release_leases([leased.id], "you")
    assert ledger.deliveries.lease_due("pacs", "you", 9, 1001, 500) == []
    ledger.deliveries.release_leases([leased.id], "me")
    [again] = ledger.deliveries.lease_due("pacs", "you", 9, 1001, 500)
    assert again.attempts == 1


def test_destinations_are_due_apart(ledger: Ledger) -> None:
    ledger.instances.record([row(1, destinations=("b", "a")), row(2, destinations=("c",))])
    assert ledger.deliveries.find_due_destinations(0) == ["a", "b", "c"]
    ledger.deliveries.lease_due("b", "me", 9, 1000, 500)
    assert ledger.deliveries.find_due_destinations(1001) == ["a", "c"]
    assert ledger.deliveries.find_due_destinations(1500) == ["a", "b", "c"]
    assert ledger.deliveries.find_next_due_ms("b") == 1500
    assert ledger.deliveries.find_next_due_ms("nobody") is None


def test_what_was_never_tried_comes_before_what_is_tried_again(ledger: Ledger) -> None:
    ledger.instances.record([row(number) for number in range(6)])
    first = ledger.deliveries.lease_due("pacs", "me", 2, 0, 100)
    ledger.deliveries.record_results(
        "pacs", [result(delivery, DeliveryState.RETRY, next_at=50) for delivery in first], 10
    )
    leased = ledger.deliveries.lease_due("pacs", "me", 5, 60, 100)
    assert [delivery.sop_instance_uid for delivery in leased] == ["1.2.2", "1.2.3", "1.2.4", "1.2.5", "1.2.0"]


def test_backlog_leaves_room_in_each_batch_for_what_is_tried_again(ledger: Ledger) -> None:
    ledger.instances.record([row(number) for number in range(100)])
    first = ledger.deliveries.lease_due("pacs", "me", 40, 0, 100)
    ledger.deliveries.record_results(
        "pacs", [result(delivery, DeliveryState.RETRY, next_at=50) for delivery in first], 10
    )
    leased = ledger.deliveries.lease_due("pacs", "me", 16, 60, 100)
    numbers = [*range(40, 54), 0, 1]
    assert [delivery.sop_instance_uid for delivery in leased] == [f"1.2.{number}" for number in numbers]


def suspect(ledger: Ledger, *leased: Delivery, at: int = 50, owner: str = "me") -> None:
    """Have these break an association: suspects, to be tried again at a time."""
    results = [
        replace(result(each, DeliveryState.RETRY, owner, at), breaks=each.breaks + 1, suspect_since=9)
        for each in leased
    ]
    ledger.deliveries.record_results("pacs", results, 10)


def test_suspect_is_leased_by_itself_the_one_that_broke_fewest_first(ledger: Ledger) -> None:
    ledger.instances.record([row(number) for number in range(4)])
    suspect(ledger, *ledger.deliveries.lease_due("pacs", "me", 2, 0, 100))
    assert [each.sop_instance_uid for each in ledger.deliveries.lease_due("pacs", "me", 9, 60, 100)] == [
        "1.2.2",
        "1.2.3",
    ]
    assert ledger.deliveries.lease_suspect("pacs", "me", 49, 100, 0) is None
    first = ledger.deliveries.lease_suspect("pacs", "me", 60, 100, 0)
    assert first is not None
    assert (first.sop_instance_uid, first.breaks, first.suspect_since) == ("1.2.0", 1, 9)
    suspect(ledger, first)
    second = ledger.deliveries.lease_suspect("pacs", "me", 61, 100, 0)
    assert second is not None
    assert second.sop_instance_uid == "1.2.1"


def test_suspect_waits_while_others_send_but_not_for_ever(ledger: Ledger) -> None:
    ledger.instances.record([row(number, series_uid=str(number)) for number in range(4)])
    suspect(ledger, *ledger.deliveries.lease_due("pacs", "me", 2, 0, 100))
    assert len(ledger.deliveries.lease_due("pacs", "you", 1, 60, 1000)) == 1
    assert ledger.deliveries.lease_suspect("pacs", "me", 149, 100, 100) is None
    assert ledger.deliveries.lease_suspect("pacs", "me", 150, 100, 100) is not None
    # One at a time, of all workers; unless its worker has died.
    assert ledger.deliveries.lease_suspect("pacs", "you", 151, 100, 0) is None
    assert ledger.deliveries.lease_suspect("pacs", "you", 1150, 100, 0) is not None


def test_suspect_in_hand_keeps_nobody_from_its_series(ledger: Ledger) -> None:
    ledger.instances.record([row(number, series_uid="1") for number in range(3)])
    suspect(ledger, *ledger.deliveries.lease_due("pacs", "me", 1, 0, 100))
    assert ledger.deliveries.lease_suspect("pacs", "me", 60, 1000, 0) is not None
    assert len(ledger.deliveries.lease_due("pacs", "you", 9, 70, 100)) == 2


def test_suspect_that_was_not_attempted_or_was_sent_again_by_a_person(ledger: Ledger) -> None:
    ledger.instances.record([row(1)])
    [leased] = ledger.deliveries.lease_due("pacs", "me", 1, 0, 100)
    suspect(ledger, leased)
    taken = ledger.deliveries.lease_suspect("pacs", "me", 60, 100, 0)
    assert taken is not None
    ledger.deliveries.release_leases([taken.id], "me")
    assert ledger.deliveries.lease_due("pacs", "me", 9, 61, 100) == []
    again = ledger.deliveries.lease_suspect("pacs", "me", 61, 100, 0)
    assert again is not None
    assert again.attempts == 2
    ledger.deliveries.record_results("pacs", [result(again, DeliveryState.DEAD)], 62)
    assert ledger.delivery_admin.requeue_deliveries(DeliveryFilter(), 63) == {"pacs": 1}
    [fresh] = ledger.deliveries.lease_due("pacs", "me", 9, 64, 100)
    assert (fresh.breaks, fresh.suspect_since) == (0, 0)


def test_careful_lease_takes_other_series_first(ledger: Ledger) -> None:
    ledger.instances.record([row(number, series_uid="1" if number < 700 else "2") for number in range(702)])
    suspect(ledger, *ledger.deliveries.lease_due("pacs", "me", 1, 0, 100), at=10**9)
    careful = ledger.deliveries.lease_due("pacs", "me", 4, 60, 100, careful=True)
    assert [each.sop_instance_uid for each in careful] == ["1.2.700", "1.2.701"]
    # Where there are only such series, they come as always.
    assert ledger.deliveries.lease_due("pacs", "me", 1, 61, 100, careful=True)[0].sop_instance_uid == "1.2.1"


def test_parallel_workers_lease_every_delivery_once(ledger: Ledger, url: str) -> None:
    ledger.instances.record([row(number) for number in range(200)])
    leased: list[int] = []
    failures: list[BaseException] = []

    def work(owner: str) -> None:
        own = Ledger(url)
        try:
            while found := own.deliveries.lease_due("pacs", owner, 7, 1000, 60_000):
                leased.extend(delivery.id for delivery in found)
                own.deliveries.record_results(
                    "pacs", [DeliveryResult(id=found[0].id, owner=owner, state=DeliveryState.DELIVERED)], 1001
                )
        except BaseException as error:
            failures.append(error)
        finally:
            own.close()

    threads = [threading.Thread(target=work, args=(f"w{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(leased) == len(set(leased)) == 200


def test_lease_reads_an_index_and_not_the_backlog(tmp_path: Path) -> None:
    with contextlib.closing(Ledger(f"sqlite:///{tmp_path}/ledger.db")) as ledger:
        ledger.migrate()
        with ledger.database.begin_read() as connection:
            plan = connection.exec_driver_sql(
                "EXPLAIN QUERY PLAN SELECT deliveries.id FROM deliveries "
                "JOIN instances ON instances.id = deliveries.instance_id "
                "WHERE destination = 'a' AND deliveries.state = 'waiting' AND next_at <= 5 "
                "ORDER BY next_at, instance_id LIMIT 64"
            ).fetchall()
    text = " ".join(str(step[-1]) for step in plan)
    assert "deliveries_due" in text
    assert "SCAN" not in text
    assert "TEMP B-TREE" not in text


@pytest.mark.parametrize("suspects", [0, 5000])
def test_leases_cost_the_same_behind_a_backlog_of_suspects(tmp_path: Path, suspects: int) -> None:
    """Each statement of a lease goes by an index, with as many suspects as a week of breaks leaves."""
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    ledger.migrate()
    ledger.instances.record([row(number, series_uid=str(number % 50)) for number in range(suspects + 20)])
    with ledger.database.begin_write() as connection:
        connection.exec_driver_sql(
            "UPDATE deliveries SET state = 'retry', breaks = 1, suspect_since = 1, next_at = 1 WHERE id <= ?",
            (suspects,),
        )
    statements: list[tuple[str, object]] = []

    @event.listens_for(ledger.database._engine, "before_cursor_execute")
    def note(*arguments: object) -> None:
        statements.append((str(arguments[2]), arguments[3]))

    ledger.deliveries.lease_due("pacs", "me", 4, 60, 100, careful=True)
    ledger.deliveries.lease_suspect("pacs", "me", 60, 100, 1000)
    ledger.deliveries.find_next_suspect_ms("pacs")
    ledger.deliveries.has_untried("pacs", 60)
    event.remove(ledger.database._engine, "before_cursor_execute", note)
    plans = {}
    with ledger.database.begin_read() as connection:
        for statement, parameters in statements:
            if "deliveries" in statement:
                explained = connection.exec_driver_sql("EXPLAIN QUERY PLAN " + statement, parameters)
                plans[statement] = [str(step[-1]) for step in explained]
    ledger.close()
    assert len(plans) > 6
    scanned = {text: plan for text, plan in plans.items() if any(step == "SCAN deliveries" for step in plan)}
    assert scanned == {}
    # Suspects are found by their own index, among however many that are tried again.
    of_suspects = [
        plan
        for text, plan in plans.items()
        if "suspect_since > 0" in text and "lease_owner" not in text  # those in hand are few
    ]
    assert len(of_suspects) == 3, plans
    assert all(any("INDEX deliveries_suspects" in step for step in plan) for plan in of_suspects)


def test_of_a_series_that_somebody_has_in_hand_nobody_else_leases(ledger: Ledger) -> None:
    ledger.instances.record([row(number, series_uid="1" if number < 8 else "2") for number in range(10)])
    first = ledger.deliveries.lease_due("pacs", "me", 4, 1000, 500, workers=2)
    assert [delivery.series_uid for delivery in first] == ["1"] * 4
    assert [
        delivery.series_uid
        for delivery in ledger.deliveries.lease_due("pacs", "you", 4, 1100, 500, workers=2)
    ] == ["2"] * 2
    assert ledger.deliveries.lease_due("pacs", "third", 4, 1100, 500, workers=3) == []
    # Its own owner goes on, and so does everybody once the lease is over.
    more = ledger.deliveries.lease_due("pacs", "me", 2, 1200, 500, workers=2)
    assert [delivery.sop_instance_uid for delivery in more] == ["1.2.4", "1.2.5"]
    late = ledger.deliveries.lease_due("pacs", "third", 9, 9000, 500)
    assert [delivery.sop_instance_uid for delivery in late] == [f"1.2.{number}" for number in range(9 + 1)][
        :9
    ]


def test_study_is_leased_alone_and_its_next_lease_goes_on_with_it(ledger: Ledger) -> None:
    # Two studies, interleaved, and one urgent delivery of the second.
    ledger.instances.record(
        [row(number, study_uid=f"1.{number % 2}", series_uid=f"1.{number % 2}.9") for number in range(2, 12)]
    )
    urgent = {"pacs": DeliveryTerms(priority=Priority.URGENT)}
    ledger.instances.record([row(13, study_uid="1.1", series_uid="1.1.9", sop_class_uid="1.9", terms=urgent)])
    deliveries = ledger.deliveries

    def lease(owner: str, study: str | None, now: int = 1000) -> list[str]:
        found = deliveries.lease_study("pacs", owner, 3, now, 500, study)
        assert len({one.study_uid for one in found}) <= 1
        return [one.sop_instance_uid for one in found]

    assert set(deliveries.find_study_contexts("pacs", "1.1")) == {(CT, EXPLICIT), ("1.9", EXPLICIT)}
    assert lease("me", None) == ["1.2.13", "1.2.3", "1.2.5"], "the study of the first one that is due"
    assert lease("me", "1.1") == ["1.2.7", "1.2.9", "1.2.11"]
    assert lease("me", "1.1") == []
    # Another worker takes another study, and never a part of ours.
    assert lease("you", None) == ["1.2.2", "1.2.4", "1.2.6"]
    assert lease("third", None) == []
    assert len(lease("third", None, now=1500)) == 3, "the leases have ended"
