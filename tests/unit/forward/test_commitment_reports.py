"""Reports of storage commitment to a requestor that is away: they wait together, and cost one attempt."""

from ingest.clock import unix_ms
from ingest.dicom.commitment import CommitmentRequest, SOPReference
from ingest.ledger.commitments import COMMITTED, CommitmentState, NewCommitment
from tests.support.drains import drain_once
from tests.support.forwarding import Forwarding
from tests.support.instances import CT
from tests.support.ports import free_port


def test_scanner_that_is_switched_off_costs_one_attempt_for_all_its_reports(plain: Forwarding) -> None:
    plain.add(free_port(), "ct1", retry_first_seconds=60, retry_max_seconds=60)
    commitments = plain.ledger.commitments
    now = unix_ms()
    for number in range(1, 6):
        request = CommitmentRequest(f"1.9.{number}", (SOPReference(CT, "1.2.3"),))
        commitments.record_request(NewCommitment(request, "CT1", "INGEST", "ct1", f"s:{number}"), now)
        commitments.record_judgement(number, {0: COMMITTED}, CommitmentState.DUE, now, now)
    drain_once(plain, "ct1")
    drain_once(plain, "ct1")
    listed = commitments.list_requests(9)
    assert sorted(one.attempts for one in listed) == [0, 0, 0, 0, 1]
    assert {one.state for one in listed} == {CommitmentState.DUE}
    assert min(one.next_at for one in listed) >= now + 30_000
    assert plain.ledger.circuits.read_circuit("ct1").failures == 0, "deliveries go on"


def test_report_is_tried_as_long_as_its_instances_were_waited_for(plain: Forwarding) -> None:
    plain.add(free_port(), "ct1", retry_first_seconds=60, retry_max_seconds=60)
    commitments, give_up_ms = plain.ledger.commitments, 168 * 3_600_000
    now = unix_ms()
    for number, age_ms in ((1, give_up_ms + 1000), (2, 2 * give_up_ms + 1000)):
        request = CommitmentRequest(f"1.9.{number}", (SOPReference(CT, "1.2.3"),))
        new = NewCommitment(request, "CT1", "INGEST", f"ct{number}", f"s:{number}")
        commitments.record_request(new, now - age_ms)
        commitments.record_judgement(number, {0: COMMITTED}, CommitmentState.DUE, now, now)
    plain.add(free_port(), "ct2")
    for name in ("ct1", "ct2"):
        drain_once(plain, name)
    assert [one.state for one in commitments.list_requests(9)] == ["failed", "due"]
