"""The order of a batch by priority, and that nothing starves."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ingest.clock import unix_ms
from ingest.dicom.priority import Priority
from ingest.ledger import DeliveryState, DeliveryTerms, Ledger
from ingest.ledger.delivery_filter import DeliveryFilter
from ingest.ledger.lease_order import AGED_MS, AGED_PLACE, AGED_SHARE, arrange_batch
from tests.support.ledgers import row
from tests.support.properties import examples

NOW = 10_000_000
URGENT, NORMAL, BULK = Priority


def make(priority: int, age_ms: int, number: int = 0) -> dict[str, Any]:
    return {"priority": priority, "created_at": NOW - age_ms, "number": number}


ROWS = st.lists(
    st.builds(make, st.sampled_from(Priority), st.integers(0, 3 * AGED_MS), st.integers(0, 99)), max_size=60
)


def test_urgent_goes_first_and_aged_rows_have_every_eighth_place_from_the_second() -> None:
    urgent = [make(URGENT, 0, number) for number in range(20)]
    bulk = [make(BULK, AGED_MS + number, number) for number in range(5)]
    young = [make(NORMAL, AGED_MS - 1)]
    batch = arrange_batch([*bulk, *urgent, *young], 18, NOW)
    assert [row["priority"] for row in batch] == [0, 2, *[0] * 7, 2, *[0] * 7, 2]
    assert [row["number"] for row in batch if row["priority"] == BULK] == [4, 3, 2]
    assert [row["number"] for row in batch if row["priority"] == URGENT] == list(range(15))
    assert arrange_batch([*bulk, *young], 2, NOW) == [young[0], bulk[4]]


@given(ROWS, st.integers(0, 70))
@examples(300)
def test_batch_has_no_row_twice_leaves_none_out_and_keeps_the_order_of_a_priority(
    rows: list[dict[str, Any]], limit: int
) -> None:
    batch = arrange_batch(rows, limit, NOW)
    ids = [id(row) for row in batch]
    assert len(set(ids)) == len(ids) == min(limit, len(rows))
    assert set(ids) <= {id(row) for row in rows}
    for place, one in enumerate(batch):
        is_aged = one["created_at"] <= NOW - AGED_MS
        behind = [other for other in rows if id(other) not in ids[: place + 1]]
        if not (is_aged and place % AGED_SHARE == AGED_PLACE):
            # Only an aged row in its place goes before a row of a higher priority.
            assert all(other["priority"] >= one["priority"] for other in behind)


@given(ROWS, st.integers(2, 64), st.integers(1, 40))
@examples(100)
def test_every_row_is_sent_although_urgent_ones_arrive_without_end(
    rows: list[dict[str, Any]], limit: int, arriving: int
) -> None:
    left, now = list(rows), NOW
    # Two rows of each batch are sent, before the worker breaks it off for new urgent ones.
    for _ in range(3 * len(rows) + 2):
        now += AGED_MS
        arrived = [make(URGENT, NOW - now) for _ in range(arriving)]
        sent = {id(row) for row in arrange_batch(left + arrived, limit, now)[: AGED_PLACE + 1]}
        left = [row for row in left if id(row) not in sent]
    assert [row for row in left if row["priority"] != URGENT] == []


def test_lease_takes_urgent_rows_first_and_an_aged_bulk_row_behind_any_backlog(ledger: Ledger) -> None:
    now = unix_ms()

    def record(first: int, count: int, priority: Priority, at: int) -> None:
        terms = {"pacs": DeliveryTerms(priority=priority)}
        ledger.instances.record(
            [
                row(number, stored_at=at, terms=terms, series_uid=f"1.{priority}")
                for number in range(first, first + count)
            ]
        )

    record(0, 30, BULK, now - 2 * AGED_MS)
    record(100, 600, NORMAL, now)
    record(1000, 600, URGENT, now)
    for workers in (1, 2):
        leased = ledger.deliveries.lease_due("pacs", f"{workers}", 16, now, 60_000, workers)
        uids = [int(each.sop_instance_uid.rpartition(".")[2]) for each in leased]
        if workers == 1:
            assert uids[0:2] == [1000, 0]
            assert [uid for uid in uids if uid < 100] == [0, 1]
            assert all(uid >= 1000 or uid < 100 for uid in uids)
        # What is given back keeps its place.
        ledger.deliveries.release_leases([each.id for each in leased], f"{workers}")
    again = ledger.deliveries.lease_due("pacs", "again", 16, now, 60_000)
    assert [each.sop_instance_uid for each in again][:2] == ["1.2.1000", "1.2.0"]
    assert again[0].priority == URGENT
    assert ledger.deliveries.has_urgent("pacs")
    assert not ledger.deliveries.has_urgent("ai")
    assert ledger.deliveries.find_next_due_ms("pacs") == 0
    assert ledger.deliveries.expire_overdue("pacs", now - AGED_MS, "old", now) == 28


def test_urgent_delivery_stays_urgent_when_it_is_requeued_or_released(ledger: Ledger) -> None:
    for number, state in enumerate((DeliveryState.HELD, DeliveryState.WAITING)):
        terms = {"pacs": DeliveryTerms(priority=URGENT, state=state)}
        ledger.instances.record([row(number, terms=terms)])
    admin = ledger.delivery_admin
    assert admin.release_deliveries(DeliveryFilter(), 1000) == {"pacs": 1}
    assert admin.drop_deliveries(DeliveryFilter(), "gone", 1000) == {"pacs": 2}
    assert not ledger.deliveries.has_urgent("pacs")
    assert admin.requeue_deliveries(DeliveryFilter(), 1000) == {"pacs": 2}
    assert ledger.deliveries.has_urgent("pacs")
    assert [each.next_at for each in admin.find_deliveries(DeliveryFilter())] == [0, 0]
