"""Several objects of one SOP instance UID at a destination: variants settle each other, copies do not."""

from typing import Any

import pytest

from ingest.ledger import DeliveryResult, DeliveryState, InstanceState, Ledger
from ingest.ledger.delivery_filter import DeliveryFilter
from ingest.ledger.variants import DEFER_MILLISECONDS, SLACK_MILLISECONDS
from tests.support.instances import EXPLICIT, IMPLICIT
from tests.support.ledgers import delivery_states, row

DELIVERED, DEAD, RETRY = DeliveryState.DELIVERED, DeliveryState.DEAD, DeliveryState.RETRY
WAITING, SENDING, DROPPED = DeliveryState.WAITING, DeliveryState.SENDING, DeliveryState.DROPPED
UID = "1.2.1"


def first(**changes: Any) -> Any:
    """The object that came first; id 1."""
    return row(1, **{"transfer_syntax_uid": EXPLICIT, **changes})


def variant(**changes: Any) -> Any:
    """The same image in another transfer syntax; id 2."""
    values = {"state": InstanceState.VARIANT, "sop_instance_uid": UID, "transfer_syntax_uid": IMPLICIT}
    return row(2, **{**values, **changes})


def copy(**changes: Any) -> Any:
    """Another image of the same UID; id 2."""
    return row(2, **{"sop_instance_uid": UID, "copy_digest": "ab", **changes})


def send(ledger: Ledger, now: int = 1000, state: DeliveryState = DELIVERED, of: str = "pacs") -> list[int]:
    """Lease what is due and finish it; returns the ids of the instances."""
    leased = ledger.deliveries.lease_due(of, "me", 9, now, 500)
    finish(ledger, [one.id for one in leased], state, now, of)
    return [one.instance_id for one in leased]


def finish(ledger: Ledger, ids: list[int], state: DeliveryState, now: int, of: str = "pacs") -> None:
    results = [DeliveryResult(id=number, owner="me", state=state, next_at=now + 60_000) for number in ids]
    ledger.deliveries.record_results(of, results, now)


def states(ledger: Ledger, of: str = "pacs") -> list[DeliveryState | None]:
    return [delivery_states(ledger, number).get(of) for number in (1, 2)]


def error(ledger: Ledger, number: int) -> str:
    return ledger.deliveries.find_by_instance(number)[0].last_error or ""


def test_variant_is_due_where_the_first_is_dead_and_settles_it(ledger: Ledger) -> None:
    ledger.instances.record([first()])
    assert send(ledger, state=DEAD) == [1]
    ledger.instances.record([variant()])
    assert states(ledger) == [DEAD, WAITING]
    assert send(ledger) == [2]
    assert states(ledger) == [DROPPED, DELIVERED]
    assert (
        error(ledger, 1)
        == f"instance 2 of its SOP instance UID, in transfer syntax {IMPLICIT}, was delivered instead"
    )


def test_variant_is_not_due_where_the_first_was_accepted(ledger: Ledger) -> None:
    ledger.instances.record([first(destinations=("pacs", "ai"))])
    send(ledger)
    send(ledger, state=DEAD, of="ai")
    ledger.instances.record([variant(destinations=("pacs", "ai"))])
    assert states(ledger) == [DELIVERED, None]
    assert send(ledger, of="ai") == [2]
    assert states(ledger, "ai") == [DROPPED, DELIVERED]


def test_variant_waits_while_the_first_is_untried_and_is_dropped_when_it_is_accepted(ledger: Ledger) -> None:
    ledger.instances.record([first(), variant()])
    [leased] = ledger.deliveries.lease_due("pacs", "me", 9, 1000, 60_000)
    assert leased.instance_id == 1
    assert ledger.deliveries.lease_due("pacs", "you", 9, 1001, 500) == []
    finish(ledger, [leased.id], DELIVERED, 1500)
    assert states(ledger) == [DELIVERED, DROPPED]
    assert ledger.deliveries.find_next_due_ms("pacs") is None


def test_variant_goes_when_the_first_has_died(ledger: Ledger) -> None:
    ledger.instances.record([first(), variant()])
    assert send(ledger, state=DEAD) == [1]
    assert send(ledger, now=1000 + DEFER_MILLISECONDS) == [2]
    assert states(ledger) == [DROPPED, DELIVERED]


def test_variant_that_waits_for_the_first_is_not_looked_at_again_at_once(ledger: Ledger) -> None:
    ledger.instances.record([first(), variant()])
    [leased] = ledger.deliveries.lease_due("pacs", "me", 9, 1000, 60_000)
    assert leased.instance_id == 1
    assert ledger.deliveries.find_next_due_ms("pacs") == 1000 + DEFER_MILLISECONDS
    assert ledger.deliveries.find_due_destinations(1000 + DEFER_MILLISECONDS - 1) == []


def test_first_that_is_to_be_tried_again_keeps_no_variant_back(ledger: Ledger) -> None:
    ledger.instances.record([first()])
    send(ledger, state=RETRY)
    ledger.instances.record([variant()])
    assert send(ledger, now=2000) == [2]
    assert states(ledger) == [DROPPED, DELIVERED]


def test_first_that_is_accepted_after_all_settles_a_dead_variant(ledger: Ledger) -> None:
    ledger.instances.record([first()])
    send(ledger, state=DEAD)
    ledger.instances.record([variant()])
    send(ledger, now=2000, state=DEAD)
    ledger.delivery_admin.requeue_deliveries(DeliveryFilter(sop_instance_uid=UID, states=(DEAD,)), 3000)
    assert states(ledger) == [WAITING, WAITING]
    assert send(ledger, now=4000) == [1]
    assert states(ledger) == [DELIVERED, DROPPED]


def test_dead_variant_can_be_tried_again(ledger: Ledger) -> None:
    ledger.instances.record([first(destinations=()), variant()])
    send(ledger, state=DEAD)
    assert ledger.delivery_admin.requeue_deliveries(
        DeliveryFilter(sop_instance_uid=UID, states=(DEAD,)), 3000
    ) == {"pacs": 1}
    assert send(ledger, now=4000) == [2]


def test_first_is_sent_before_a_variant_that_was_recorded_earlier(ledger: Ledger) -> None:
    ledger.instances.record([variant(store_key="v", spool_ref="s:v")])
    ledger.instances.record([first()])
    assert send(ledger) == [2]
    assert states(ledger) == [DROPPED, DELIVERED]


@pytest.mark.parametrize("outcome", [DELIVERED, DEAD])
def test_first_that_comes_while_a_variant_is_sent_waits_for_its_end(
    ledger: Ledger, outcome: DeliveryState
) -> None:
    ledger.instances.record([variant(store_key="v", spool_ref="s:v")])
    [sending] = ledger.deliveries.lease_due("pacs", "me", 9, 1000, 60_000)
    ledger.instances.record([first()])
    assert ledger.deliveries.lease_due("pacs", "you", 9, 1001, 500) == []
    finish(ledger, [sending.id], outcome, 1500)
    later = send(ledger, now=1001 + DEFER_MILLISECONDS)
    assert later == ([] if outcome is DELIVERED else [2])
    assert states(ledger) == ([DELIVERED, DROPPED] if outcome is DELIVERED else [DROPPED, DELIVERED])


def test_first_and_variant_whose_worker_died_do_not_wait_for_each_other(ledger: Ledger) -> None:
    ledger.instances.record([variant(store_key="v", spool_ref="s:v")])
    ledger.deliveries.lease_due("pacs", "dead", 9, 1000, 500)
    ledger.instances.record([first()])
    assert send(ledger, now=9_000) == [2]
    assert states(ledger) == [DROPPED, DELIVERED]


def test_variant_of_what_was_there_before_settles_nothing_of_a_new_first(ledger: Ledger) -> None:
    now = 10 * SLACK_MILLISECONDS
    ledger.instances.record([variant(store_key="v", spool_ref="s:v"), row(8, destinations=())])
    send(ledger)
    ledger.instances.record([first(stored_at=now)])
    assert send(ledger, now=now) == [3]
    ledger.delivery_admin.requeue_deliveries(DeliveryFilter(sop_instance_uid=UID, states=(DELIVERED,)), now)
    assert sorted(send(ledger, now=now)) == [1, 3]


@pytest.mark.parametrize("outcome", [DELIVERED, DEAD])
def test_copies_are_delivered_each(ledger: Ledger, outcome: DeliveryState) -> None:
    ledger.instances.record([first(), copy()])
    assert send(ledger, state=outcome) == [1, 2]
    assert states(ledger) == [outcome, outcome]


def test_delivered_copy_settles_no_variant_and_is_settled_by_none(ledger: Ledger) -> None:
    ledger.instances.record([first(destinations=())])
    ledger.instances.record([variant(), copy(store_key="c", spool_ref="s:3")])
    assert send(ledger) == [2, 3]
    assert [delivery_states(ledger, number)["pacs"] for number in (2, 3)] == [DELIVERED, DELIVERED]


def test_variants_of_other_destinations_and_uids_stay_as_they_are(ledger: Ledger) -> None:
    ledger.instances.record([first(destinations=("pacs", "ai"))])
    for of in ("pacs", "ai"):
        send(ledger, state=DEAD, of=of)
    ledger.instances.record([variant(destinations=("pacs", "ai"))])
    assert send(ledger) == [2]
    ledger.instances.record([row(9)])
    assert send(ledger, state=DEAD) == [3]
    assert states(ledger) == [DROPPED, DELIVERED]
    assert states(ledger, "ai") == [DEAD, WAITING]
    assert delivery_states(ledger, 3) == {"pacs": DEAD}
