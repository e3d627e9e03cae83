"""Requests for storage commitment to destinations on both databases."""

from ingest.dicom.commitment import ReferenceOutcome, SOPReference
from ingest.ledger import DeliveryState, Ledger
from ingest.ledger.records import DeliveryResult
from ingest.ledger.retention import StoredStudy
from tests.support.instances import CT
from tests.support.ledgers import row


def deliver(ledger: Ledger, *numbers: int, wants: bool = True) -> None:
    ledger.instances.record([row(number) for number in numbers])
    leased = ledger.deliveries.lease_due("pacs", "me", 99, 100, 1000)
    results = [
        DeliveryResult(id=one.id, owner="me", state=DeliveryState.DELIVERED, wants_commitment=wants)
        for one in leased
    ]
    assert ledger.deliveries.record_results("pacs", results, 200) == len(numbers)


def begin(ledger: Ledger, transaction: str, now: int = 300, limit: int = 99) -> list[str]:
    begun = ledger.commitment_requests.begin_request("pacs", transaction, limit, now + 1000, now)
    return [one.sop_instance_uid for one in begun[1].references] if begun else []


def outcome(number: int, failure: int | None = None) -> ReferenceOutcome:
    return ReferenceOutcome(SOPReference(CT, f"1.2.{number}"), failure)


def test_only_a_destination_that_wants_it_is_asked(ledger: Ledger) -> None:
    deliver(ledger, 1, wants=False)
    assert ledger.commitment_requests.find_wanting(["pacs"], 300) == []
    deliver(ledger, 2)
    assert ledger.commitment_requests.find_wanting(["pacs", "vna"], 300) == ["pacs"]
    assert begin(ledger, "1.9.1") == ["1.2.2"]
    assert ledger.commitment_requests.find_wanting(["pacs"], 300) == []
    assert begin(ledger, "1.9.2") == [], "nothing is left to ask"


def test_requests_are_split_and_each_instance_is_in_one(ledger: Ledger) -> None:
    deliver(ledger, 1, 2, 3)
    assert begin(ledger, "1.9.1", limit=2) == ["1.2.1", "1.2.2"]
    assert begin(ledger, "1.9.2", limit=2) == ["1.2.3"]


def test_without_a_report_in_time_it_is_asked_again(ledger: Ledger) -> None:
    deliver(ledger, 1)
    begin(ledger, "1.9.1", now=300)
    assert ledger.commitment_requests.find_wanting(["pacs"], 1299) == []
    assert ledger.commitment_requests.find_wanting(["pacs"], 1300) == ["pacs"]
    assert begin(ledger, "1.9.2", now=1300) == ["1.2.1"]
    assert [one.state.value for one in ledger.commitment_requests.list_requests(9)] == ["asked", "expired"]
    # The late report of the first request changes nothing: the second has asked again.
    assert ledger.commitment_requests.record_report("pacs", "1.9.1", [outcome(1)], 1400)
    assert ledger.commitment_requests.count_by_commitment("pacs") == {"asked": 1}


def test_refused_request_is_not_repeated_at_once(ledger: Ledger) -> None:
    deliver(ledger, 1)
    begin(ledger, "1.9.1")
    ledger.commitment_requests.record_refusal("pacs", 1, "0213H", 5000, 400)
    assert ledger.commitment_requests.find_wanting(["pacs"], 4999) == []
    assert begin(ledger, "1.9.2", now=4999) == []
    assert begin(ledger, "1.9.3", now=5000) == ["1.2.1"]


def test_report_ends_what_it_names_and_what_failed_is_sent_again(ledger: Ledger) -> None:
    deliver(ledger, 1, 2, 3)
    begin(ledger, "1.9.1")
    report = [outcome(1), outcome(2, 0x0112), outcome(77)]
    assert not ledger.commitment_requests.record_report("vna", "1.9.1", report, 400), "another destination"
    assert not ledger.commitment_requests.record_report("pacs", "1.9.9", report, 400), "another transaction"
    assert ledger.commitment_requests.record_report("pacs", "1.9.1", report, 400)
    [one] = ledger.commitment_requests.list_requests(9)
    assert (one.state, one.instances, one.failures) == ("answered", 3, 1)
    # The third was not named; the second is due again.
    assert ledger.commitment_requests.count_by_commitment("pacs") == {"wanted": 1}
    [again] = ledger.deliveries.lease_due("pacs", "me", 99, 400, 1000)
    assert again.sop_instance_uid == "1.2.2"
    result = DeliveryResult(id=again.id, owner="me", state=DeliveryState.DELIVERED, wants_commitment=True)
    ledger.deliveries.record_results("pacs", [result], 500)
    assert sorted(begin(ledger, "1.9.2", now=600)) == ["1.2.2", "1.2.3"]


def test_study_stays_until_its_commitment_is_known(ledger: Ledger) -> None:
    deliver(ledger, 1)
    [study] = ledger.retention.summarize_studies(["1"])
    assert (study.owed, study.uncommitted) == (0, 1)

    def remove(study: StoredStudy) -> int:
        return len(ledger.retention.mark_removing([study], 9, 700, only_delivered=True, only_committed=True))

    assert remove(study) == 0
    begin(ledger, "1.9.1")
    assert remove(study) == 0
    ledger.commitment_requests.record_report("pacs", "1.9.1", [outcome(1)], 400)
    [study] = ledger.retention.summarize_studies(["1"])
    assert study.uncommitted == 0
    assert remove(study) == 1
