"""Events of webhooks: one for each change that a worker records, in its transaction, on both databases."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from ingest.dicom.commitment import ReferenceOutcome, SOPReference
from ingest.errors import LedgerError
from ingest.ledger import DeliveryState, InstanceState, Ledger
from ingest.ledger.announcements import Announcer, EventKind, Subscription
from ingest.ledger.commitment_requests import Uncommitted
from ingest.ledger.outbox import EventState
from ingest.ledger.records import CompletionTerms, DeliveryResult
from tests.support.instances import CT
from tests.support.ledgers import row

ALL = frozenset(EventKind) - {EventKind.TEST}
NOW = 1_000
LEASE = 100_000


@pytest.fixture
def announced(url: str) -> Iterator[Ledger]:
    """A ledger with two webhooks: one for everything, and one for dead deliveries to archives."""
    subscriptions = [
        Subscription("webhooks.all", ALL),
        Subscription("webhooks.few", frozenset({EventKind.DELIVERY_DEAD}), ("archive*",)),
    ]
    ledger = Ledger(url, announcer=Announcer("/dicom-ingest/host/INGEST", subscriptions))
    ledger.migrate()
    yield ledger
    ledger.close()


def told(ledger: Ledger, target: str = "webhooks.all") -> list[dict[str, Any]]:
    return [json.loads(each.payload) for each in reversed(ledger.outbox.list_events(100, target))]


def kinds(ledger: Ledger, target: str = "webhooks.all") -> list[tuple[str, str]]:
    return [(each["type"].removeprefix("dicom_ingest."), each["subject"]) for each in told(ledger, target)]


def end(ledger: Ledger, destination: str, state: DeliveryState, owner: str = "me", **values: Any) -> None:
    ledger.deliveries.record_results(
        destination,
        [
            DeliveryResult(id=leased.id, owner=owner, state=state, **values)
            for leased in ledger.deliveries.lease_due(destination, "me", 10, NOW, LEASE)
        ],
        NOW + 1,
    )


def test_stored_and_quarantined_instances_make_one_event_each(announced: Ledger) -> None:
    rows = [
        row(1),
        row(2, state=InstanceState.QUARANTINED, destinations=(), refused_status=0xA900),
        row(3, state=InstanceState.REMOVED, destinations=()),
    ]
    announced.instances.record(rows)
    announced.instances.record(rows)  # the reply to COMMIT may have been lost
    assert kinds(announced) == [("instance.stored", "1.2.1"), ("instance.quarantined", "1.2.2")]
    stored, quarantined = told(announced)
    assert stored["data"]["destinations"] == ["pacs"]
    assert stored["data"]["received_at"] == "1970-01-01T00:00:00.010+00:00"
    assert quarantined["data"]["status"] == "A900"
    assert {stored["specversion"], stored["source"]} == {"1.0", "/dicom-ingest/host/INGEST"}
    assert kinds(announced, "webhooks.few") == []


def test_ended_deliveries_make_events_and_retries_none(announced: Ledger) -> None:
    announced.instances.record([row(1, destinations=("pacs", "archive1")), row(2, destinations=("vna",))])
    before = len(told(announced))
    end(announced, "vna", DeliveryState.RETRY, next_at=9_000, last_status=0xA700)
    assert len(told(announced)) == before
    end(announced, "pacs", DeliveryState.DELIVERED, last_status=0)
    end(announced, "archive1", DeliveryState.DEAD, last_status=0xC000, last_error="DOE^JOHN is not known")
    assert kinds(announced)[before:] == [("delivery.delivered", "1.2.1"), ("delivery.dead", "1.2.1")]
    [few] = told(announced, "webhooks.few")
    assert (few["data"]["destination"], few["data"]["status"], few["data"]["attempts"]) == (
        "archive1",
        "C000",
        1,
    )
    assert "DOE" not in json.dumps([*told(announced), few])


def test_result_of_a_lost_lease_makes_no_event(announced: Ledger) -> None:
    announced.instances.record([row(1)])
    end(announced, "pacs", DeliveryState.DELIVERED, owner="another")
    assert kinds(announced) == [("instance.stored", "1.2.1")]
    [again] = announced.deliveries.lease_due("pacs", "two", 10, NOW + 2 * LEASE, LEASE)
    for owner, at in (("two", 3 * LEASE), ("me", 4 * LEASE)):
        result = DeliveryResult(id=again.id, owner=owner, state=DeliveryState.DELIVERED)
        announced.deliveries.record_results("pacs", [result], at)
    assert kinds(announced)[1:] == [("delivery.delivered", "1.2.1")]


def test_overdue_deliveries_make_events(announced: Ledger) -> None:
    announced.instances.record([row(1)])
    assert announced.deliveries.expire_overdue("pacs", 500, "too old", NOW) == 1
    assert kinds(announced)[1:] == [("delivery.dead", "1.2.1")]
    assert told(announced)[1]["data"]["status"] is None


def test_change_that_is_rolled_back_makes_no_event(
    announced: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise LedgerError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr("ingest.ledger.instances.index_studies", fail)
        with pytest.raises(LedgerError):
            announced.instances.record([row(1)])
    assert told(announced) == []
    announced.instances.record([row(1)])
    assert kinds(announced) == [("instance.stored", "1.2.1")]


def test_released_instance_makes_an_event(announced: Ledger) -> None:
    announced.instances.record([row(1, state=InstanceState.QUARANTINED, destinations=())])
    [quarantined] = announced.instances.find_by_sop_instance_uid("1.2.1")
    assert announced.quarantine.release(quarantined.id, row(1, store_key="1/1/released.dcm"))
    assert kinds(announced)[1:] == [("instance.stored", "1.2.1")]


def test_delivery_that_is_never_committed_makes_an_event(announced: Ledger) -> None:
    announced.instances.record([row(1, destinations=("pacs", "archive1"))])
    end(announced, "archive1", DeliveryState.DELIVERED)
    end(announced, "pacs", DeliveryState.DELIVERED, wants_commitment=True)
    announced.commitment_requests.begin_request("pacs", "1.9", 10, NOW + LEASE, NOW + 10)
    outcome = ReferenceOutcome(SOPReference(CT, "1.2.1"), 0x0112)
    before = len(told(announced))
    announced.commitment_requests.record_report(
        "pacs", "1.9", [outcome], lambda *_: Uncommitted(DeliveryState.DEAD, 0, "0112H"), NOW + 20
    )
    assert kinds(announced)[before:] == [("delivery.dead", "1.2.1")]
    assert told(announced)[before]["data"]["destination"] == "pacs"


def test_complete_study_makes_one_event_for_each_generation(announced: Ledger) -> None:
    terms = CompletionTerms(association=0, study_ms=50, series_ms=50, default_ms=50)
    for number in (1, 2):
        announced.instances.record([row(number, completion=terms, stored_at=20 * number)])
        found = announced.receptions.find_due(10_000, 10)
        assert [announced.receptions.complete(each, 500) for each in found] == [True, True]  # and the series
        assert not announced.receptions.complete(found[0], 500)
    complete = [each for each in told(announced) if each["type"] == "dicom_ingest.study.complete"]
    assert [(each["subject"], each["data"]["generation"]) for each in complete] == [("1", 1), ("1", 2)]
    assert complete[0]["data"]["instances"] == 1


def test_dead_events_wait_again_after_a_replay(announced: Ledger) -> None:
    announced.instances.record([row(number) for number in (1, 2, 3)])
    outbox, target = announced.outbox, "webhooks.all"
    for _ in range(2):
        leased = outbox.lease_next(target, "me", NOW, LEASE)
        assert leased is not None
        outbox.record_failure(leased, "422", 0, NOW, blames_target=False)
    assert outbox.count_dead() == {target: 2}
    first, second = reversed(outbox.list_events(10, target, [EventState.DEAD]))
    assert outbox.read_first_error(target) == ""  # the third waits, and has not failed
    assert outbox.replay_dead(target, [second.event_id], NOW) == 1
    again = outbox.lease_next(target, "me", NOW, LEASE)
    assert again is not None
    assert (again.event_id, again.attempts, again.payload) == (second.event_id, 1, second.payload)
    assert outbox.record_sent(again, NOW, keeps=False)
    assert outbox.replay_dead(target, None, NOW) == 1
    assert outbox.replay_dead(target, None, NOW) == 0
    assert {each.event_id for each in outbox.list_events(10, target)} >= {first.event_id}
    assert second.event_id not in {each.event_id for each in outbox.list_events(10, target)}
