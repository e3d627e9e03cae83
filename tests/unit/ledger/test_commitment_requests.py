"""Requests for storage commitment to destinations on both databases."""

from ingest.dicom.commitment import ReferenceOutcome, SOPReference
from ingest.ledger import DeliveryState, Ledger
from ingest.ledger.commitment_requests import UNNAMED_PAUSE_MS, Uncommitted
from ingest.ledger.delivery_filter import DeliveryFilter
from ingest.ledger.records import DeliveryResult
from ingest.ledger.retention import StoredStudy
from tests.support.instances import CT
from tests.support.ledgers import row


def deliver(ledger: Ledger, *numbers: int, wants: bool = True, at: int = 200) -> None:
    ledger.instances.record([row(number) for number in numbers])
    leased = ledger.deliveries.lease_due("pacs", "me", 99, 100, 1000)
    results = [
        DeliveryResult(id=one.id, owner="me", state=DeliveryState.DELIVERED, wants_commitment=wants)
        for one in leased
    ]
    assert ledger.deliveries.record_results("pacs", results, at) == len(numbers)


def begin(ledger: Ledger, transaction: str, now: int = 300, limit: int = 99) -> list[str]:
    begun = ledger.commitment_requests.begin_request("pacs", transaction, limit, now + 1000, now)
    return [one.sop_instance_uid for one in begun[1].references] if begun else []


def outcome(number: int, failure: int | None = None) -> ReferenceOutcome:
    return ReferenceOutcome(SOPReference(CT, f"1.2.{number}"), failure)


def report(
    ledger: Ledger, transaction: str, *outcomes: ReferenceOutcome, destination: str = "pacs", now: int = 400
) -> bool:
    def decide(attempts: int, reason: int) -> Uncommitted:
        if attempts > 1:
            return Uncommitted(DeliveryState.DEAD, 0, f"{reason:04X}H, the last")
        return Uncommitted(DeliveryState.RETRY, now + 50, f"{reason:04X}H")

    return ledger.commitment_requests.record_report(destination, transaction, outcomes, decide, now)


def commitment_of(ledger: Ledger) -> dict[str, int]:
    return ledger.commitment_requests.count_by_commitment("pacs")


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
    # What the late report of the first request does not commit has been asked again.
    assert report(ledger, "1.9.1", outcome(1, 0x0112), now=1400)
    assert commitment_of(ledger) == {"asked": 1}


def test_archive_that_reports_later_than_it_is_waited_for_is_believed(ledger: Ledger) -> None:
    deliver(ledger, 1)
    begin(ledger, "1.9.1", now=300)
    begin(ledger, "1.9.2", now=1300)
    # Delivered after the first request: the first report is not about it.
    deliver(ledger, 2, at=1250)
    begin(ledger, "1.9.3", now=1300)
    assert report(ledger, "1.9.1", outcome(1), outcome(2), now=1400)
    assert commitment_of(ledger) == {"asked": 1}
    assert report(ledger, "1.9.2", outcome(1), now=1500)
    assert ledger.commitment_requests.remove_ended(1400) == 0
    assert [one.state for one in ledger.commitment_requests.list_requests(9)] == [
        "asked",
        "answered",
        "answered",
    ]
    assert ledger.commitment_requests.remove_ended(1501) == 2
    assert [one.transaction_uid for one in ledger.commitment_requests.list_requests(9)] == ["1.9.3"]


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
    said = [outcome(1), outcome(2, 0x0112), outcome(77)]
    assert not report(ledger, "1.9.1", *said, destination="vna"), "another destination"
    assert not report(ledger, "1.9.9", *said), "another transaction"
    for _ in range(2):  # A report that comes twice changes nothing.
        assert report(ledger, "1.9.1", *said)
        [one] = ledger.commitment_requests.list_requests(9)
        assert (one.state, one.instances, one.failures) == ("answered", 3, 1)
    # The third was not named; the second is due again, after a pause.
    assert commitment_of(ledger) == {"wanted": 1}
    assert ledger.deliveries.lease_due("pacs", "me", 99, 449, 1000) == []
    [again] = ledger.deliveries.lease_due("pacs", "me", 99, 450, 1000)
    assert again.sop_instance_uid == "1.2.2"
    result = DeliveryResult(id=again.id, owner="me", state=DeliveryState.DELIVERED, wants_commitment=True)
    ledger.deliveries.record_results("pacs", [result], 500)
    assert ledger.commitment_requests.find_wanting(["pacs"], 400 + UNNAMED_PAUSE_MS - 1) == []
    assert sorted(begin(ledger, "1.9.2", now=400 + UNNAMED_PAUSE_MS)) == ["1.2.2", "1.2.3"]


def test_archive_that_never_commits_gets_an_instance_a_limited_number_of_times(ledger: Ledger) -> None:
    deliver(ledger, 1)
    begin(ledger, "1.9.1")
    report(ledger, "1.9.1", outcome(1, 0x0112))
    [again] = ledger.deliveries.lease_due("pacs", "me", 99, 450, 1000)
    result = DeliveryResult(id=again.id, owner="me", state=DeliveryState.DELIVERED, wants_commitment=True)
    ledger.deliveries.record_results("pacs", [result], 500)
    begin(ledger, "1.9.2", now=600)
    report(ledger, "1.9.2", outcome(1, 0x0110), now=700)
    [one] = ledger.deliveries.find_by_instance(1)
    assert (one.state, one.commitment, one.last_error) == ("dead", "failed", "0110H, the last")
    assert ledger.deliveries.lease_due("pacs", "me", 99, 10**15, 1000) == []


def test_delivery_that_a_person_sends_again_is_asked_for_only_when_it_is_delivered(ledger: Ledger) -> None:
    deliver(ledger, 1)
    begin(ledger, "1.9.1")
    assert ledger.delivery_admin.requeue_deliveries(DeliveryFilter(), 350) == {"pacs": 1}
    assert commitment_of(ledger) == {}
    assert report(ledger, "1.9.1", outcome(1, 0x0112))
    [one] = ledger.deliveries.find_by_instance(1)
    assert (one.state, one.commitment) == ("waiting", "none")


def test_study_stays_until_its_commitment_is_known(ledger: Ledger) -> None:
    deliver(ledger, 1)
    assert ledger.retention.summarize_studies(["1"], ["vna"])[0].uncommitted == 0, "it is not asked any more"
    [study] = ledger.retention.summarize_studies(["1"], ["pacs"])
    assert (study.owed, study.uncommitted) == (0, 1)

    def remove(study: StoredStudy) -> int:
        return len(ledger.retention.mark_removing([study], 9, 700, only_delivered=True, awaited=["pacs"]))

    assert remove(study) == 0
    begin(ledger, "1.9.1")
    assert remove(study) == 0
    report(ledger, "1.9.1", outcome(1))
    [study] = ledger.retention.summarize_studies(["1"], ["pacs"])
    assert study.uncommitted == 0
    assert remove(study) == 1
