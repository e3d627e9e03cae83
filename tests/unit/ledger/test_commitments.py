"""Requests for storage commitment on both databases: recorded once, judged, reported at least once."""

from typing import Any

import pytest

from ingest.dicom.commitment import CommitmentRequest, FailureReason, SOPReference
from ingest.ledger import Ledger
from ingest.ledger.commitments import COMMITTED, CommitmentState, NewCommitment
from ingest.ledger.records import InstanceState
from tests.support.instances import CT
from tests.support.ledgers import row

ASKED = (SOPReference(CT, "1.2.1"), SOPReference(CT, "1.2.9"))


def ask(ledger: Ledger, ref: str = "s:1", transaction: str = "1.9.1", destination: str = "ct1") -> bool:
    request = CommitmentRequest(transaction, ASKED)
    return ledger.commitments.record_request(NewCommitment(request, "CT1", "INGEST", destination, ref), 100)


def test_request_is_recorded_once_and_its_spool_entry_may_go(ledger: Ledger) -> None:
    assert ledger.spool_references.find_removable(["s:1"]) == set()
    assert ask(ledger)
    assert not ask(ledger), "the same spool entry"
    assert ledger.spool_references.find_removable(["s:1", "s:2"]) == {"s:1"}
    [one] = ledger.commitments.list_requests(10)
    assert (one.transaction_uid, one.state, one.references, one.failures) == ("1.9.1", "waiting", 2, 0)


def test_evidence_and_judgement(ledger: Ledger) -> None:
    ask(ledger)
    ledger.instances.record([row(1, spool_ref="s:9", destinations=("pacs", "vna"))])
    [request] = ledger.commitments.find_judgeable(100, 9)
    [(first, _, [known]), (second, missing, none)] = ledger.commitments.read_evidence(request.id)
    assert (known.state, known.deliveries) == ("stored", {"pacs": "waiting", "vna": "waiting"})
    assert (missing, none) == (ASKED[1], [])
    ledger.commitments.record_judgement(request.id, {first: COMMITTED}, CommitmentState.WAITING, 500, 200)
    assert ledger.commitments.find_judgeable(499, 9) == []
    assert [at for at, _, _ in ledger.commitments.read_evidence(request.id)] == [second]
    reason = FailureReason.NO_SUCH_INSTANCE
    ledger.commitments.record_judgement(request.id, {second: reason}, CommitmentState.DUE, 600, 500)
    assert ledger.commitments.find_judgeable(9999, 9) == []
    assert [one.failure for one in ledger.commitments.read_outcomes(request.id)] == [None, reason]
    assert ledger.commitments.list_requests(9)[0].failures == 1


def test_report_is_leased_by_one_and_tried_again_after_its_lease(ledger: Ledger) -> None:
    for number in (1, 2):
        ask(ledger, f"s:{number}", f"1.9.{number}")
        ledger.commitments.record_judgement(number, {}, CommitmentState.DUE, 100, 100)
    assert ledger.commitments.find_due_destinations(99) == []
    assert ledger.commitments.find_due_destinations(100) == ["ct1"]
    assert ledger.commitments.lease_report("other", 100, 1000) is None
    first, second = (ledger.commitments.lease_report("ct1", 100, 1000) for _ in range(2))
    assert first is not None
    assert second is not None
    assert (first.id, second.id, first.attempts) == (1, 2, 1)
    assert ledger.commitments.lease_report("ct1", 1099, 1000) is None
    again = ledger.commitments.lease_report("ct1", 1100, 1000)
    assert again is not None
    assert (again.id, again.attempts) == (1, 2)
    ledger.commitments.record_report(1, CommitmentState.REPORTED, "", 0, 1200)
    # The one that was tried more often goes first, and the other waits as long if nobody was there.
    ledger.commitments.postpone_reports("ct1", 1150, 1100)
    assert ledger.commitments.lease_report("ct1", 1149, 1000) is None
    second_again = ledger.commitments.lease_report("ct1", 1150, 1000)
    assert second_again is not None
    assert second_again.id == 2
    # The first worker comes late; its word changes nothing.
    ledger.commitments.record_report(1, CommitmentState.DUE, "late", 0, 1300)
    ledger.commitments.record_report(2, CommitmentState.DUE, "away", 5000, 1300)
    assert ledger.commitments.find_due_destinations(4999) == []
    assert ledger.commitments.count_by_state() == {"reported": 1, "due": 1}
    assert ledger.commitments.remove_ended(1201) == 1
    [left] = ledger.commitments.list_requests(9)
    assert (left.id, left.last_error, left.references) == (2, "away", 2)


def test_report_that_was_tried_most_often_goes_first(ledger: Ledger) -> None:
    """The pause grows with the attempts of one report, and not with the number of reports."""
    for number in (1, 2):
        ask(ledger, f"s:{number}", f"1.9.{number}")
        ledger.commitments.record_judgement(number, {}, CommitmentState.DUE, 100, 100)
    order = []
    for at, next_at in ((100, 300), (150, 160), (160, 300), (300, 400)):
        leased = ledger.commitments.lease_report("ct1", at, 1000)
        assert leased is not None
        order.append((leased.id, leased.attempts))
        ledger.commitments.record_report(leased.id, CommitmentState.DUE, "away", next_at, at)
    assert order == [(1, 1), (2, 1), (2, 2), (2, 3)]


@pytest.mark.parametrize(
    ("changes", "is_set_aside"),
    [({}, True), ({"calling_ae": "CT2"}, False), ({"refused_status": 0xA900}, False)],
    ids=["the requestor's own", "of another sender", "refused, so its sender keeps it"],
)
def test_object_in_quarantine_counts_only_if_its_sender_believes_it_stored(
    ledger: Ledger, changes: dict[str, Any], is_set_aside: bool
) -> None:
    ask(ledger)
    aside = row(
        1, spool_ref="s:8", store_key="q/1", state=InstanceState.QUARANTINED, destinations=(), **changes
    )
    ledger.instances.record([row(1, spool_ref="s:9"), aside])
    [(_, _, known), _] = ledger.commitments.read_evidence(1)
    assert {one.state: one.is_set_aside for one in known} == {"stored": False, "quarantined": is_set_aside}
