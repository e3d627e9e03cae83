"""What people ask of deliveries, on both databases: finding them, sending them again, giving them up."""

from typing import Any

import pytest
from sqlalchemy import update

from ingest.dicom.study_attributes import StudyAttributes, make_name_keys
from ingest.ledger import DeliveryResult, DeliveryState, InstanceState, Ledger, delivery_lists
from ingest.ledger.delivery_admin import CHUNK
from ingest.ledger.delivery_filter import DeliveryFilter
from ingest.ledger.schema import deliveries
from tests.support.ledgers import delivery_states, row


def end(ledger: Ledger, state: DeliveryState, error: str = "", destination: str = "pacs") -> None:
    """End all that is due of a destination."""
    rows = ledger.deliveries.lease_due(destination, "w", 10_000, 100, 1000)
    results = [
        DeliveryResult(id=row.id, owner="w", state=state, last_status=0xC000, last_error=error)
        for row in rows
    ]
    ledger.deliveries.record_results(destination, results, 200)


def states(ledger: Ledger) -> list[DeliveryState]:
    """Oldest first."""
    return [found.state for found in reversed(ledger.delivery_admin.find_deliveries(DeliveryFilter()))]


def test_deliveries_are_found_by_what_is_known_of_them(ledger: Ledger) -> None:
    ledger.instances.record([row(1), row(2, study_uid="2", series_uid="2.1", destinations=("pacs", "ai"))])
    end(ledger, DeliveryState.DEAD, "answered C000H: 100% wrong")
    assert [one.sop_instance_uid for one in ledger.delivery_admin.find_deliveries(DeliveryFilter())] == [
        "1.2.2",
        "1.2.2",
        "1.2.1",
    ]
    for which, count in (
        (DeliveryFilter(destination="ai"), 1),
        (DeliveryFilter(study_uid="2"), 2),
        (DeliveryFilter(series_uid="2.1", destination="pacs"), 1),
        (DeliveryFilter(sop_instance_uid="1.2.1"), 1),
        (DeliveryFilter(states=(DeliveryState.DEAD,)), 2),
        (DeliveryFilter(states=(DeliveryState.DEAD, DeliveryState.WAITING)), 3),
        (DeliveryFilter(error="C000H"), 2),
        (DeliveryFilter(error="100% wrong"), 2),
        (DeliveryFilter(error="100_ wrong"), 0),
        (DeliveryFilter(since=200), 2),
        (DeliveryFilter(until=200), 1),
        (DeliveryFilter(destination="nobody"), 0),
    ):
        assert len(ledger.delivery_admin.find_deliveries(which)) == count, which
    first, *_ = ledger.delivery_admin.find_deliveries(DeliveryFilter(), 1)
    assert len(ledger.delivery_admin.find_deliveries(DeliveryFilter(), before=first.id)) == 2


def test_dead_ones_are_sent_again_as_though_they_were_new(ledger: Ledger) -> None:
    ledger.instances.record([row(1), row(2)])
    end(ledger, DeliveryState.DEAD, "no")
    assert ledger.delivery_admin.requeue_deliveries(DeliveryFilter(sop_instance_uid="1.2.1"), 300) == {
        "pacs": 1
    }
    assert states(ledger) == [DeliveryState.WAITING, DeliveryState.DEAD]
    assert ledger.delivery_admin.requeue_deliveries(DeliveryFilter(sop_instance_uid="1.2.1"), 300) == {}
    [leased] = ledger.deliveries.lease_due("pacs", "w2", 10, 400, 1000)
    assert leased.attempts == 1


def test_what_is_on_its_way_or_no_longer_there_is_left_alone(ledger: Ledger) -> None:
    ledger.instances.record([row(1), row(2, state=InstanceState.REMOVED)])
    assert len(ledger.deliveries.lease_due("pacs", "w", 1, 100, 1000)) == 1
    assert ledger.delivery_admin.drop_deliveries(DeliveryFilter(sop_instance_uid="1.2.1"), "no", 300) == {}
    assert ledger.delivery_admin.requeue_deliveries(DeliveryFilter(), 300) == {}
    assert ledger.delivery_admin.drop_deliveries(DeliveryFilter(), "no longer wanted", 300) == {"pacs": 1}
    assert ledger.delivery_admin.requeue_deliveries(DeliveryFilter(), 300) == {}
    assert states(ledger) == [DeliveryState.SENDING, DeliveryState.DROPPED]


def test_given_up_ones_keep_the_reason_and_can_be_taken_back(ledger: Ledger) -> None:
    ledger.instances.record([row(1)])
    assert ledger.delivery_admin.drop_deliveries(
        DeliveryFilter(destination="pacs"), "patient moved", 300
    ) == {"pacs": 1}
    [found] = ledger.delivery_admin.find_deliveries(DeliveryFilter())
    assert (found.state, found.last_error) == (DeliveryState.DROPPED, "patient moved")
    assert ledger.deliveries.lease_due("pacs", "w", 10, 400, 1000) == []
    ledger.delivery_admin.requeue_deliveries(DeliveryFilter(states=(DeliveryState.DROPPED,)), 300)
    assert len(ledger.deliveries.lease_due("pacs", "w", 10, 400, 1000)) == 1


def test_dead_ones_of_one_reason_are_taken_without_those_of_others(ledger: Ledger) -> None:
    ledger.instances.record([row(number) for number in range(1, 6)])
    reasons = [(None, None), (0xA700, "no"), (0xC000, "no"), (0xC000, "no, never"), (0xC000, "no")]
    with ledger.database.begin_write() as connection:
        for number, (status, error) in enumerate(reasons, 1):
            connection.execute(
                update(deliveries)
                .where(deliveries.c.instance_id == number)
                .values(state="dead", last_status=status, last_error=error)
            )
    groups = ledger.delivery_admin.group_dead(["pacs"], 100)
    assert [(group.status, group.error, group.count) for group in groups] == [
        *((0xC000, "no", 2), (None, "", 1), (0xA700, "no", 1), (0xC000, "no, never", 1))
    ]
    for group in groups:
        reason = (group.status, group.error)
        which = DeliveryFilter(destination="pacs", states=(DeliveryState.DEAD,), reason=reason)
        assert len(ledger.delivery_admin.find_deliveries(which)) == group.count, group
        assert ledger.delivery_admin.requeue_deliveries(which, 300) == {"pacs": group.count}, group


def test_more_than_one_transaction_holds_are_changed_all(ledger: Ledger) -> None:
    ledger.instances.record([row(number) for number in range(2 * CHUNK + 5)])
    assert ledger.delivery_admin.drop_deliveries(DeliveryFilter(), "all", 300) == {"pacs": 2 * CHUNK + 5}
    assert ledger.count_rows().deliveries == {"pacs": {DeliveryState.DROPPED: 2 * CHUNK + 5}}
    assert delivery_states(ledger, 1) == {"pacs": DeliveryState.DROPPED}


@pytest.mark.parametrize("few", [1000, 0])
@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({"accession_number": "A2"}, [2]),
        ({"accession_number": "A*", "states": (DeliveryState.DEAD,)}, [4, 2]),
        ({"patient_id": "P1"}, [3, 1]),
        ({"patient_name": "doe"}, [4, 3, 2, 1]),
        ({"date_from": "20260103"}, [4, 3]),
        ({"modality": "MR"}, [4, 2]),
        ({"calling_ae": "CT3"}, [3]),
        ({"destination": "pacs", "states": (DeliveryState.WAITING,)}, [3, 1]),
        ({"states": (DeliveryState.DEAD,)}, [4, 2]),
        ({"destination": "pacs", "date_to": "20260102"}, [2, 1]),
        ({"accession_number": "B*"}, []),
    ],
)
def test_deliveries_are_found_and_sent_again_by_their_study(
    ledger: Ledger, conditions: dict[str, Any], expected: list[int], few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_lists, "FEW", few)
    for number in range(1, 5):
        attributes = StudyAttributes(
            level="full",
            accession_number=f"A{number}",
            patient_id="P1" if number % 2 else "P2",
            study_date=f"2026010{number}",
            patient_name="Doe^Jane",
            name_keys=make_name_keys("Doe^Jane"),
            modality="CT" if number % 2 else "MR",
        )
        uids = {"study_uid": str(number), "series_uid": f"{number}.1", "calling_ae": f"CT{number}"}
        ledger.instances.record([row(number, attributes=attributes, **uids)])
    with ledger.database.begin_write() as connection:
        connection.exec_driver_sql(
            "UPDATE deliveries SET state = 'dead' WHERE instance_id IN "
            "(SELECT id FROM instances WHERE study_uid IN ('2', '4'))"
        )
    which = DeliveryFilter(**conditions)
    found = ledger.delivery_admin.find_deliveries(which)
    assert [int(one.study_uid) for one in found] == expected
    if found:
        older = ledger.delivery_admin.find_deliveries(which, 1, before=found[0].id)
        assert [int(one.study_uid) for one in older] == expected[1:2]
    dead = sum(number % 2 == 0 for number in expected)
    counts = {"pacs": dead} if dead else {}
    assert ledger.delivery_admin.requeue_deliveries(which, 300, dry_run=True) == counts
    assert ledger.delivery_admin.requeue_deliveries(which, 300) == counts
