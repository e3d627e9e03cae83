"""Studies and series in the ledger, on both databases: received, carried, completed once, reopened."""

from typing import Any

from ingest.ledger import CompletionTerms, DeliveryState, DeliveryTerms, Ledger
from ingest.ledger.instance_filter import InstanceFilter
from ingest.ledger.receptions import Reception, SpoolMark
from tests.support.ledgers import delivery_states, row

AWAITS_STUDY = DeliveryTerms(state=DeliveryState.AWAITING, awaits="study")
AWAITS_SERIES = DeliveryTerms(state=DeliveryState.AWAITING, awaits="series")


def record(ledger: Ledger, number: int, stored_at: int, study: str = "1", **changes: Any) -> None:
    terms = {"default_ms": 60, "association": 7} | changes.pop("completion", {})
    ledger.instances.record(
        [
            row(
                number,
                study_uid=study,
                stored_at=stored_at,
                received_at=stored_at,
                completion=CompletionTerms(**terms),
                **changes,
            )
        ]
    )


def find_all(ledger: Ledger) -> list[Reception]:
    return ledger.receptions.find_due(1 << 60, 100)


def events(ledger: Ledger) -> list[tuple[str, str, int, str, int]]:
    found = ledger.receptions.list_events(100, after=0)
    return [(one.study_uid, one.series_uid, one.generation, one.event, one.instances) for one in found]


def test_study_is_due_after_its_last_instance_and_completed_once(ledger: Ledger) -> None:
    record(ledger, 1, 100)
    record(ledger, 2, 150)
    assert ledger.receptions.find_due(209, 10) == []
    [found] = ledger.receptions.find_due(210, 10)
    assert found == Reception("1", "", 1, 100, 150, 2, 210, 150)
    # Judged, and then another instance comes.
    record(ledger, 3, 180)
    assert not ledger.receptions.complete(found, 300)
    [found] = find_all(ledger)
    assert (found.instances, found.due_at) == (3, 240)
    assert ledger.receptions.complete(found, 300)
    assert not ledger.receptions.complete(found, 301), "a second monitor judged the same"
    assert events(ledger) == [("1", "", 1, "complete", 3)]
    assert ledger.receptions.count_receptions().due_at is None
    [study] = ledger.study_lists.find_studies(InstanceFilter(study_uid="1"))
    assert study.completion == "complete"


def test_study_of_a_host_whose_clock_was_ahead_is_complete_all_the_same(ledger: Ledger) -> None:
    record(ledger, 1, 10_000_000)
    record(ledger, 2, 100, study="2")
    assert ledger.receptions.bound_times(1000) == 1
    assert ledger.receptions.bound_times(1000) == 0
    ahead, other = sorted(find_all(ledger), key=lambda one: one.study_uid)
    assert (ahead.last_at, ahead.due_at) == (1000, 1060)
    assert (other.last_at, other.due_at) == (100, 160)
    assert ledger.receptions.complete(ahead, 1060)


def test_late_instance_reopens_the_study_and_waits_for_its_next_completion(ledger: Ledger) -> None:
    terms = {"destinations": ("pacs", "now"), "terms": {"pacs": AWAITS_STUDY}}
    for number in (1, 2):
        record(ledger, number, 100, **terms)
    record(ledger, 3, 100, study="2", **terms)
    assert delivery_states(ledger, 1) == {"pacs": "awaiting", "now": "waiting"}
    assert ledger.deliveries.find_due_destinations(999) == ["now"]
    first = find_all(ledger)[0]
    assert ledger.receptions.complete(first, 200)
    assert [delivery_states(ledger, number)["pacs"] for number in (1, 2, 3)] == [
        "waiting",
        "waiting",
        "awaiting",
    ]
    assert ledger.deliveries.find_by_instance(1)[1].created_at == 200, "its age begins with the completion"

    record(ledger, 4, 900, **terms)
    record(ledger, 5, 901, **terms)
    assert delivery_states(ledger, 4)["pacs"] == "awaiting"
    [again] = [one for one in find_all(ledger) if one.study_uid == "1"]
    assert (again.generation, again.instances, again.first_at) == (2, 2, 900)
    assert ledger.receptions.complete(again, 1000)
    assert events(ledger) == [
        ("1", "", 1, "complete", 2),
        ("1", "", 2, "reopened", 1),
        ("1", "", 2, "complete", 2),
    ]
    assert delivery_states(ledger, 5)["pacs"] == "waiting"


def test_series_completes_alone_and_releases_only_what_awaits_it(ledger: Ledger) -> None:
    for number, series, terms in (
        (1, "s1", AWAITS_SERIES),
        (2, "s1", AWAITS_STUDY),
        (3, "s2", AWAITS_SERIES),
    ):
        completion = {"series_ms": 30}
        record(ledger, number, 100, series_uid=series, terms={"pacs": terms}, completion=completion)
    due = {(one.study_uid, one.series_uid): one for one in find_all(ledger)}
    assert {key: one.due_at for key, one in due.items()} == {
        ("1", ""): 160,
        ("1", "s1"): 130,
        ("1", "s2"): 130,
    }
    # The association carried the second series last.
    assert [due["1", series].seen_at for series in ("", "s1", "s2")] == [100, None, 100]
    assert ledger.receptions.complete(due["1", "s1"], 200)
    states = [delivery_states(ledger, number)["pacs"] for number in (1, 2, 3)]
    assert states == ["waiting", "awaiting", "awaiting"]


def test_time_of_a_route_replaces_that_of_the_node_and_the_longest_counts(ledger: Ledger) -> None:
    record(ledger, 1, 100)
    assert find_all(ledger)[0].due_at == 160
    record(ledger, 2, 101, completion={"study_ms": 10})
    assert find_all(ledger)[0].due_at == 111
    record(ledger, 3, 102, completion={"study_ms": 500})
    record(ledger, 4, 103, completion={"study_ms": 20})
    record(ledger, 5, 104)
    assert find_all(ledger)[0].due_at == 604


def test_duplicate_prolongs_the_wait_and_reopens_nothing(ledger: Ledger) -> None:
    record(ledger, 1, 100)
    record(ledger, 1, 130, spool_ref="s:again")
    [found] = find_all(ledger)
    assert (found.due_at, found.instances) == (190, 1)
    assert ledger.receptions.complete(found, 200)
    record(ledger, 1, 300, spool_ref="s:once-more")
    assert find_all(ledger) == []
    assert len(events(ledger)) == 1


def test_association_counts_for_the_study_that_it_carried_last(ledger: Ledger) -> None:
    record(ledger, 1, 100, study="1")
    record(ledger, 2, 100, study="2", completion={"association": 8})
    record(ledger, 3, 110, study="2")
    # An instance of before is persisted late, by another worker.
    record(ledger, 4, 105, study="1")
    seen = {one.study_uid: one.seen_at for one in find_all(ledger)}
    assert seen == {"1": None, "2": 110}
    assert ledger.receptions.find_carriers(8, 9) == {8: 100}
    ledger.receptions.update_carriers([7], {8: 500})
    assert {one.study_uid: one.seen_at for one in find_all(ledger)} == {"1": None, "2": 500}


def test_pages_of_what_is_due_have_everything_once(ledger: Ledger) -> None:
    for number in range(7):
        record(ledger, number, 100 + number // 3, study=f"1.{number}")
    found: list[Reception] = []
    while page := ledger.receptions.find_due(999, 2, found[-1] if found else None):
        found += page
    assert [one.study_uid for one in found] == [f"1.{number}" for number in range(7)]


def test_instance_without_a_study_is_judged_by_nobody(ledger: Ledger) -> None:
    record(ledger, 1, 100, study="")
    assert find_all(ledger) == []


def test_marks_and_what_ended_long_ago(ledger: Ledger) -> None:
    for low_water in (5, 6):
        ledger.receptions.write_mark(SpoolMark("a", low_water, 50))
    assert ledger.receptions.read_marks() == [SpoolMark("a", 6, 50)]
    record(ledger, 1, 100)
    record(ledger, 2, 900, study="2")
    for found in find_all(ledger):
        ledger.receptions.complete(found, 950)
    record(ledger, 3, 960, study="3")
    assert ledger.receptions.remove_ended(500) == 1
    assert [one[0] for one in events(ledger)] == ["2"]
    assert ledger.receptions.read_marks() == []
    assert [one.study_uid for one in find_all(ledger)] == ["3"]
