"""Leases: who has a delivery in hand, for how long, and what comes of it."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.ledger import Delivery, DeliveryResult, DeliveryState, Ledger
from tests.ledgers import row


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    url: str = request.getfixturevalue("postgresql_url")
    emptied = Ledger(url)
    with emptied.write() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    emptied.close()
    return url


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    opened = Ledger(url)
    opened.migrate()
    yield opened
    opened.close()


def result(delivery: Delivery, state: DeliveryState, owner: str = "me", next_at: int = 0) -> DeliveryResult:
    return DeliveryResult(
        id=delivery.id, owner=owner, state=state, last_status=0xA700, last_error="full", next_at=next_at
    )


def test_lease_gives_what_a_sender_needs_in_the_order_of_arrival(ledger: Ledger) -> None:
    ledger.record([row(number) for number in range(5)])
    leased = ledger.lease("pacs", "me", 3, 1000, 500)
    assert [delivery.sop_instance_uid for delivery in leased] == ["1.2.0", "1.2.1", "1.2.2"]
    first = leased[0]
    assert (first.store_key, first.size, first.data_set_offset) == ("1/1/1.2.0.dcm", 1000, 300)
    assert (first.attempts, first.lease_until) == (1, 1500)


def test_leased_delivery_is_nobody_elses_until_the_lease_ends(ledger: Ledger) -> None:
    ledger.record([row(1)])
    [mine] = ledger.lease("pacs", "me", 9, 1000, 500)
    assert ledger.lease("pacs", "you", 9, 1499, 500) == []
    [yours] = ledger.lease("pacs", "you", 9, 1500, 500)
    assert yours.id == mine.id
    assert yours.attempts == 2
    assert ledger.finish("pacs", [result(mine, DeliveryState.DELIVERED)], 1501) == 0
    assert ledger.renew([mine.id], "me", 1501, 500) == set()
    assert ledger.finish("pacs", [result(yours, DeliveryState.DELIVERED, "you")], 1502) == 1


def test_renewed_lease_lasts_longer(ledger: Ledger) -> None:
    ledger.record([row(1), row(2)])
    leased = ledger.lease("pacs", "me", 9, 1000, 500)
    ids = [delivery.id for delivery in leased]
    assert ledger.renew(ids, "me", 1400, 500) == set(ids)
    assert ledger.lease("pacs", "you", 9, 1600, 500) == []


def test_delivery_to_be_tried_again_waits_for_its_time(ledger: Ledger) -> None:
    ledger.record([row(1)])
    [leased] = ledger.lease("pacs", "me", 9, 1000, 500)
    ledger.finish("pacs", [result(leased, DeliveryState.RETRY, next_at=5000)], 1100)
    assert ledger.lease("pacs", "me", 9, 4999, 500) == []
    assert ledger.next_due("pacs") == 5000
    assert ledger.due_destinations(4999) == []
    assert ledger.due_destinations(5000) == ["pacs"]
    [again] = ledger.lease("pacs", "me", 9, 5000, 500)
    assert again.attempts == 2


@pytest.mark.parametrize("state", [DeliveryState.DELIVERED, DeliveryState.DEAD, DeliveryState.DROPPED])
def test_ended_delivery_is_never_leased_again(ledger: Ledger, state: DeliveryState) -> None:
    ledger.record([row(1)])
    [leased] = ledger.lease("pacs", "me", 9, 1000, 500)
    ledger.finish("pacs", [result(leased, state, next_at=7)], 1100)
    [found] = ledger.deliveries_of(leased.instance_id)
    assert (found.state, found.last_status, found.last_error) == (state, 0xA700, "full")
    assert (found.lease_owner, found.lease_until, found.next_at) == (None, None, 0)
    assert ledger.lease("pacs", "me", 9, 10**15, 500) == []
    assert ledger.next_due("pacs") is None


def test_released_delivery_waits_again_and_was_no_attempt(ledger: Ledger) -> None:
    ledger.record([row(1)])
    [leased] = ledger.lease("pacs", "me", 9, 1000, 500)
    ledger.release([leased.id], "you")
    assert ledger.lease("pacs", "you", 9, 1001, 500) == []
    ledger.release([leased.id], "me")
    [again] = ledger.lease("pacs", "you", 9, 1001, 500)
    assert again.attempts == 1


def test_destinations_are_due_apart(ledger: Ledger) -> None:
    ledger.record([row(1, destinations=("b", "a")), row(2, destinations=("c",))])
    assert ledger.due_destinations(0) == ["a", "b", "c"]
    ledger.lease("b", "me", 9, 1000, 500)
    assert ledger.due_destinations(1001) == ["a", "c"]
    assert ledger.due_destinations(1500) == ["a", "b", "c"]
    assert ledger.next_due("b") == 1500
    assert ledger.next_due("nobody") is None


def test_retried_deliveries_and_new_ones_share_a_lease(ledger: Ledger) -> None:
    ledger.record([row(number) for number in range(6)])
    first = ledger.lease("pacs", "me", 2, 0, 100)
    ledger.finish("pacs", [result(delivery, DeliveryState.RETRY, next_at=50) for delivery in first], 10)
    leased = ledger.lease("pacs", "me", 4, 60, 100)
    assert [delivery.sop_instance_uid for delivery in leased] == ["1.2.0", "1.2.1", "1.2.2", "1.2.3"]


def test_parallel_workers_lease_every_delivery_once(ledger: Ledger, url: str) -> None:
    ledger.record([row(number) for number in range(200)])
    leased: list[int] = []
    failures: list[BaseException] = []

    def work(owner: str) -> None:
        own = Ledger(url)
        try:
            while found := own.lease("pacs", owner, 7, 1000, 60_000):
                leased.extend(delivery.id for delivery in found)
                own.finish(
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
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    ledger.migrate()
    with ledger.read() as connection:
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


def test_of_a_series_that_somebody_has_in_hand_nobody_else_leases(ledger: Ledger) -> None:
    ledger.record([row(number, series_uid="1" if number < 8 else "2") for number in range(10)])
    first = ledger.lease("pacs", "me", 4, 1000, 500, workers=2)
    assert [delivery.series_uid for delivery in first] == ["1"] * 4
    assert [delivery.series_uid for delivery in ledger.lease("pacs", "you", 4, 1100, 500, workers=2)] == [
        "2"
    ] * 2
    assert ledger.lease("pacs", "third", 4, 1100, 500, workers=3) == []
    # Its own owner goes on, and so does everybody once the lease is over.
    more = ledger.lease("pacs", "me", 2, 1200, 500, workers=2)
    assert [delivery.sop_instance_uid for delivery in more] == ["1.2.4", "1.2.5"]
    late = ledger.lease("pacs", "third", 9, 9000, 500)
    assert [delivery.sop_instance_uid for delivery in late] == [f"1.2.{number}" for number in range(9 + 1)][
        :9
    ]
