"""Attempts that did not deliver: recorded with their results, bounded, and removed with their instance."""

from sqlalchemy import text

from ingest.ledger import Attempt, DeliveryResult, DeliveryRow, DeliveryState, InstanceState, Ledger
from ingest.ledger.attempts import FIRST_KEPT, LAST_KEPT
from tests.support.ledgers import row

HOUR_MS = 3_600_000


def try_once(ledger: Ledger, at_ms: int, *, owner: str = "w", **result: object) -> int:
    """Lease the due delivery and record how its attempt ended; return how many results counted."""
    (leased,) = ledger.deliveries.lease_due("pacs", owner, 1, at_ms, 10_000)
    values: dict[str, object] = {"state": DeliveryState.RETRY, "next_at": at_ms + 1, "duration_ms": 7}
    made = DeliveryResult(id=leased.id, owner=owner, **(values | result))  # type: ignore[arg-type]
    return ledger.deliveries.record_results("pacs", [made], at_ms)


def delivery(ledger: Ledger) -> DeliveryRow:
    (instance,) = ledger.instances.find_by_sop_instance_uid("1.2.1")
    return ledger.deliveries.find_by_instance(instance.id)[0]


def attempts(ledger: Ledger) -> list[Attempt]:
    number = delivery(ledger).id
    return ledger.attempts.find_by_deliveries([number]).get(number, [])


def test_failed_attempts_have_rows_and_the_delivered_row_says_when_how_long_and_with_which_status(
    ledger: Ledger,
) -> None:
    ledger.instances.record([row(1)])
    try_once(ledger, 100, last_status=0xA700, last_error="answered A700H: full\0", next_at=150)
    try_once(ledger, 200, last_error="association ended", next_at=250)
    try_once(ledger, 300, state=DeliveryState.DELIVERED, last_status=0xB000, next_at=0, duration_ms=42)
    of = delivery(ledger).id
    assert attempts(ledger) == [
        Attempt(
            delivery_id=of,
            number=1,
            ended_at=100,
            duration_ms=7,
            state=DeliveryState.RETRY,
            status=0xA700,
            error="answered A700H: full",
            next_at=150,
        ),
        Attempt(
            delivery_id=of,
            number=2,
            ended_at=200,
            duration_ms=7,
            state=DeliveryState.RETRY,
            status=None,
            error="association ended",
            next_at=250,
        ),
    ]
    sent = delivery(ledger)
    assert (sent.state, sent.updated_at, sent.duration_ms, sent.last_status) == (
        DeliveryState.DELIVERED,
        300,
        42,
        0xB000,
    )


def test_delivery_that_succeeds_at_once_has_no_attempt_row(ledger: Ledger) -> None:
    ledger.instances.record([row(1)])
    try_once(ledger, 100, state=DeliveryState.DELIVERED, last_status=0, next_at=0)
    assert attempts(ledger) == []


def test_delivery_keeps_its_first_and_its_last_attempts(ledger: Ledger) -> None:
    ledger.instances.record([row(1)])
    total = FIRST_KEPT + LAST_KEPT + 7
    for number in range(1, total + 1):
        try_once(ledger, 100 * number)
    kept = [attempt.number for attempt in attempts(ledger)]
    assert kept == [*range(1, FIRST_KEPT + 1), *range(total - LAST_KEPT + 1, total + 1)]


def test_result_that_is_recorded_twice_or_whose_lease_was_lost_adds_no_second_row(ledger: Ledger) -> None:
    ledger.instances.record([row(1)])
    (leased,) = ledger.deliveries.lease_due("pacs", "first", 1, 100, 10)
    made = DeliveryResult(id=leased.id, owner="first", state=DeliveryState.RETRY, next_at=101)
    (again,) = ledger.deliveries.lease_due("pacs", "second", 1, 200, 10_000)
    assert ledger.deliveries.record_results("pacs", [made], 201) == 0
    assert attempts(ledger) == []
    mine = DeliveryResult(id=again.id, owner="second", state=DeliveryState.DEAD, last_error="no")
    for _ in range(2):
        ledger.deliveries.record_results("pacs", [mine], 202)
    assert [(attempt.number, attempt.state) for attempt in attempts(ledger)] == [(1, DeliveryState.DEAD)]


def test_attempts_are_removed_with_their_instance(ledger: Ledger) -> None:
    ledger.instances.record([row(1)])
    try_once(ledger, 100, state=DeliveryState.DEAD)
    with ledger.database.begin_write() as connection:
        connection.execute(text(f"UPDATE instances SET state = '{InstanceState.REMOVED.value}'"))
    assert ledger.retention.delete_removed_rows(HOUR_MS) == 1
    with ledger.database.begin_read() as connection:
        assert connection.execute(text("SELECT count(*) FROM attempts")).scalar() == 0


def test_pause_is_kept_beside_the_circuit_and_survives_its_changes(ledger: Ledger) -> None:
    before, after = ledger.circuits.pause("pacs", "ann", "upgrade", 1_000)
    assert (before.is_paused, after.is_paused) == (False, True)
    ledger.circuits.close_circuit("pacs")
    _, again = ledger.circuits.pause("pacs", "bob", "", 2_000)
    assert (again.paused_at, again.paused_by, again.pause_reason) == (1_000, "bob", "")
    assert ledger.circuits.read_circuit("pacs").is_left_alone(5_000)
    before, after = ledger.circuits.resume("pacs")
    assert (before.paused_by, after.is_paused, after.paused_by) == ("bob", False, "")
