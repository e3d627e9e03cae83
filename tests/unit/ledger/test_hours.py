"""Hours in the ledger: rows outside of them are not leased, in both databases."""

from datetime import UTC, datetime

import pytest
from sqlalchemy import update

from ingest.config.hours import format_hours
from ingest.dicom.priority import Priority
from ingest.ledger import Delivery, DeliveryResult, DeliveryState, DeliveryTerms, Ledger
from ingest.ledger.schema import deliveries
from ingest.ledger.variants import DEFER_MILLISECONDS
from tests.support.ledgers import row

HOUR_MS = 3_600_000
NOON = round(datetime(2026, 6, 10, 12, tzinfo=UTC).timestamp() * 1000)
NIGHT = NOON + 10 * HOUR_MS  # 22:00
NEXT_NIGHT = NIGHT + 24 * HOUR_MS
MORNING = NOON + 18 * HOUR_MS  # 06:00
HOURS = format_hours("22:00-06:00", "UTC")


def record(ledger: Ledger, numbers: range, at: int, hours: str = HOURS, **terms: Priority) -> None:
    given = {"pacs": DeliveryTerms(hours=hours, **terms)}
    series = f"1.2.{numbers.start}"
    ledger.instances.record([row(number, stored_at=at, terms=given, series_uid=series) for number in numbers])


def lease(ledger: Ledger, at: int, limit: int = 64) -> list[Delivery]:
    return ledger.deliveries.lease_due("pacs", "us", limit, at, 10_000)


def finish(ledger: Ledger, delivery: Delivery, at: int, **values: int) -> None:
    result = DeliveryResult(
        id=delivery.id,
        owner="us",
        state=DeliveryState.RETRY,
        next_at=at,
        last_status=0xA700,
        last_error="full",
        **values,
    )
    assert ledger.deliveries.record_results("pacs", [result], at) == 1


def read_times(ledger: Ledger) -> list[tuple[str, int]]:
    with ledger.database.begin_read() as connection:
        return [tuple(each) for each in connection.exec_driver_sql("SELECT state, next_at FROM deliveries")]


def test_rows_wait_until_their_hours_begin_and_keep_their_priority(ledger: Ledger) -> None:
    record(ledger, range(3), NOON)
    record(ledger, range(10, 13), NOON, priority=Priority.URGENT)
    assert lease(ledger, NOON) == lease(ledger, NIGHT - 2) == []
    assert "pacs" not in ledger.deliveries.find_due_destinations(NIGHT - 2)
    assert abs((ledger.deliveries.find_next_due_ms("pacs") or 0) - NIGHT) <= 1

    record(ledger, range(20, 21), NOON, hours="")
    assert [one.sop_instance_uid for one in lease(ledger, NOON)] == [row(20).sop_instance_uid]

    priorities = [one.priority for one in lease(ledger, NIGHT + 2)]
    # One in eight places is for the row that has waited longest.
    assert sorted(priorities[:4]) == [Priority.URGENT] * 3 + [Priority.NORMAL]
    assert len(priorities) == 6 + 1  # the lease of the one without hours has ended


def test_rows_that_are_due_outside_of_their_hours_wait_and_hide_no_others(ledger: Ledger) -> None:
    # Received by night, and left over in the morning.
    record(ledger, range(600), NIGHT)
    retried, suspect, *rest = lease(ledger, NIGHT, 10)
    finish(ledger, retried, MORNING - 1)
    finish(ledger, suspect, MORNING - 1, breaks=1, suspect_since=MORNING - 1)
    ledger.deliveries.release_leases([one.id for one in rest], "us")
    record(ledger, range(1000, 1001), MORNING, hours="")

    found = [*lease(ledger, MORNING, 10), *lease(ledger, MORNING, 10)]
    assert [one.sop_instance_uid for one in found] == [row(1000).sop_instance_uid]
    assert ledger.deliveries.lease_suspect("pacs", "us", MORNING, 10_000, 0) is None

    times = read_times(ledger)
    assert times.count(("waiting", NEXT_NIGHT)) == 599
    assert times.count(("retry", NEXT_NIGHT)) == 1  # the suspect is one still
    assert ledger.deliveries.lease_suspect("pacs", "us", NEXT_NIGHT, 10_000, 0) is not None
    assert len(lease(ledger, NEXT_NIGHT, 700)) == 599 + len(found)  # whose lease has ended


def test_wait_for_hours_is_shortened_only_if_the_clock_was_set_back(ledger: Ledger) -> None:
    def shorten() -> int:
        return ledger.deliveries.shorten_waits("pacs", NOON, 10_000, 60_000)

    record(ledger, range(3), NOON)
    [suspect] = lease(ledger, NIGHT, 1)
    finish(ledger, suspect, MORNING - 1, breaks=1, suspect_since=NIGHT)
    assert ledger.deliveries.lease_suspect("pacs", "us", MORNING - 24 * HOUR_MS, 1, 0) is None
    assert shorten() == 1  # it waited for the morning after, from a clock that was ahead
    assert ledger.deliveries.lease_suspect("pacs", "us", NIGHT - 1, 1, 0) is None
    before = read_times(ledger)
    assert shorten() == 0
    assert read_times(ledger) == before
    assert before.count(("waiting", NIGHT)) == 2

    month = 30 * 24 * HOUR_MS
    record(ledger, range(10, 15), NOON + month)
    assert shorten() == 5
    assert shorten() == 0
    assert all(time <= NIGHT + 1 for _, time in read_times(ledger))
    assert len(lease(ledger, NIGHT + 1)) == 7


def test_object_that_waits_for_an_earlier_one_of_its_uid_is_left_alone(ledger: Ledger) -> None:
    record(ledger, range(1), NOON, hours="")
    with ledger.database.begin_write() as connection:
        connection.execute(update(deliveries).values(next_at=NOON + DEFER_MILLISECONDS))
    assert ledger.deliveries.shorten_waits("pacs", NOON, 10_000, 60_000) == 0


@pytest.mark.parametrize("state", ["held", "awaiting"])
def test_released_row_waits_for_its_hours(ledger: Ledger, state: str) -> None:
    terms = {"pacs": DeliveryTerms(state=DeliveryState(state), hours=HOURS, awaits="study")}
    ledger.instances.record([row(1, stored_at=NOON, terms=terms)])
    with ledger.database.begin_write() as connection:
        connection.exec_driver_sql("UPDATE deliveries SET state = 'waiting', next_at = 0")
    assert lease(ledger, NOON) == []
    assert read_times(ledger) == [("waiting", NIGHT)]
    assert len(lease(ledger, NIGHT)) == 1
