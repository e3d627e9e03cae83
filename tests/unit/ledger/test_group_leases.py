"""Leases of groups on both databases: workers agree on the member of a study, and find its rows."""

import threading
from collections import Counter
from typing import Any

import pytest

from ingest.clock import unix_ms
from ingest.ledger import (
    Circuit,
    CircuitState,
    Delivery,
    DeliveryResult,
    DeliveryState,
    InstanceState,
    Ledger,
)
from ingest.ledger.group_choice import GroupPolicy, GroupTerms
from ingest.ledger.group_leases import SEARCH_PAUSE_MS, GroupMember, RowSearch
from tests.support.ledgers import row

FAIL_OVER, ROUND_ROBIN, STICKY = GroupPolicy


def make_terms(policy: GroupPolicy = FAIL_OVER, **changes: Any) -> GroupTerms:
    return GroupTerms("archive", ("a", "b"), policy, **changes)


def record(ledger: Ledger, studies: int, count: int, first: int = 0, **changes: Any) -> None:
    """Record instances of several studies, one after the other."""
    ledger.instances.record(
        [
            row(
                first + study * count + number,
                **{
                    "study_uid": f"1.{first + study}",
                    "series_uid": f"1.{first + study}.1",
                    "destinations": ("archive",),
                    **changes,
                },
            )
            for study in range(studies)
            for number in range(count)
        ]
    )


def lease(
    ledger: Ledger, terms: GroupTerms, member: str, limit: int = 64, owner: str = "", now: int = 1000
) -> list[Delivery]:
    return ledger.deliveries.lease_due(
        "archive", owner or member, limit, now, 1000, group=GroupMember(terms, member)
    )


def finish(ledger: Ledger, leased: list[Delivery], owner: str, state: DeliveryState, now: int = 1500) -> None:
    results = [DeliveryResult(id=each.id, owner=owner, state=state, size=each.size) for each in leased]
    member = leased[0].member
    assert ledger.deliveries.record_results("archive", results, now, member) == len(leased)


def set_circuit(ledger: Ledger, name: str, state: CircuitState) -> None:
    ledger.circuits.change_circuit(name, lambda _: Circuit(destination=name, state=state))


def studies_of(leased: list[Delivery]) -> list[str]:
    return list(dict.fromkeys(each.study_uid for each in leased))


def test_fail_over_leases_for_the_first_member_and_the_row_says_which(ledger: Ledger) -> None:
    record(ledger, 2, 2)
    assert lease(ledger, make_terms(), "b") == []
    leased = lease(ledger, make_terms(), "a")
    assert [(each.destination, each.member) for each in leased] == [("archive", "a")] * 4
    finish(ledger, leased, "a", DeliveryState.DELIVERED)
    rows = ledger.deliveries.find_by_instance(leased[0].instance_id)
    assert [(each.destination, each.member, each.state) for each in rows] == [
        ("archive", "a", DeliveryState.DELIVERED)
    ]


@pytest.mark.parametrize("moves", [False, True], ids=["wait", "move"])
def test_study_in_progress_waits_or_moves_and_new_ones_go_elsewhere(ledger: Ledger, moves: bool) -> None:
    terms = make_terms(moves_begun=moves)
    record(ledger, 3, 4)
    first = lease(ledger, terms, "a", 2)
    finish(ledger, first, "a", DeliveryState.DELIVERED)
    set_circuit(ledger, "a", CircuitState.OPEN)
    leased = lease(ledger, terms, "b", now=2000)
    assert studies_of(leased) == (["1.0", "1.1", "1.2"] if moves else ["1.1", "1.2"])
    finish(ledger, leased[:-1], "b", DeliveryState.DELIVERED)
    set_circuit(ledger, "a", CircuitState.CLOSED)
    # The studies that began at the other member end there.
    assert lease(ledger, terms, "a", now=2500) == [] or not moves
    ledger.deliveries.release_leases([leased[-1].id], "b")
    assert studies_of(lease(ledger, terms, "b", now=2600)) == ["1.2"]


def test_study_that_is_being_sent_waits_for_the_result(ledger: Ledger) -> None:
    record(ledger, 1, 2)
    assert len(lease(ledger, make_terms(), "a", 1)) == 1
    record(ledger, 1, 1, first=900, study_uid="1.0", series_uid="1.0.2")
    set_circuit(ledger, "a", CircuitState.OPEN)
    assert lease(ledger, make_terms(), "b", now=1999) == []
    # The lease has ended without a result, so the first member has nothing.
    assert len(lease(ledger, make_terms(), "b", now=2001)) == 3


def test_studies_take_turns_whoever_looks_first(ledger: Ledger) -> None:
    terms = make_terms(ROUND_ROBIN, weights={"a": 2})
    record(ledger, 9, 2)
    of_b = lease(ledger, terms, "b")
    of_a = lease(ledger, terms, "a")
    assert Counter(len(studies_of(leased)) for leased in (of_a, of_b)) == {6: 1, 3: 1}
    assert len(of_a) == 12
    record(ledger, 3, 1, first=100)
    assert len(studies_of(lease(ledger, terms, "a"))) == 2


def test_member_finds_its_rows_behind_a_backlog_of_another(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger.deliveries, "_search", RowSearch(40))
    terms = make_terms()
    record(ledger, 1, 1)
    finish(ledger, lease(ledger, terms, "a"), "a", DeliveryState.DELIVERED)
    # A study in progress has many rows, and its member is away.
    record(ledger, 1, 100, first=1000, study_uid="1.0", series_uid="1.0.1")
    record(ledger, 5, 10, first=2000)
    set_circuit(ledger, "a", CircuitState.OPEN)
    found: list[Delivery] = []
    for turn in range(20):
        leased = lease(ledger, terms, "b", 8, owner=f"b{turn}")
        finish(ledger, leased, f"b{turn}", DeliveryState.DELIVERED) if leased else None
        found += leased
    assert [each.sop_instance_uid for each in found] == [f"1.2.{2000 + number}" for number in range(50)]
    set_circuit(ledger, "a", CircuitState.CLOSED)
    assert len(lease(ledger, terms, "a", 200)) == 100


def test_two_workers_that_lease_at_once_agree(ledger: Ledger) -> None:
    terms = make_terms(ROUND_ROBIN)
    record(ledger, 40, 3)
    found: dict[str, list[Delivery]] = {"a": [], "b": []}
    barrier = threading.Barrier(4)

    def work(member: str, owner: str) -> None:
        barrier.wait()
        for turn in range(20):
            leased = lease(ledger, terms, member, 4, owner=owner, now=1000 + turn)
            found[member].extend(leased)

    threads = [threading.Thread(target=work, args=(member, f"{member}{n}")) for member in "ab" for n in "12"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    by_study: dict[str, set[str]] = {}
    for member, rows in found.items():
        for each in rows:
            by_study.setdefault(each.study_uid, set()).add(member)
    assert all(len(members) == 1 for members in by_study.values())
    ids = [each.id for rows in found.values() for each in rows]
    assert len(ids) == len(set(ids))
    assert len(ids) == 120


def test_patients_stick_together_as_far_as_the_ledger_knows_them(ledger: Ledger) -> None:
    from ingest.dicom.study_attributes import StudyAttributes

    terms = make_terms(STICKY, is_by_patient=True)
    for number in range(30):
        attributes = StudyAttributes(level="identifiers", patient_id=f"P{number % 5}")
        ledger.instances.record(
            [
                row(
                    number,
                    study_uid=f"1.{number}",
                    series_uid=f"1.{number}.1",
                    destinations=("archive",),
                    attributes=attributes,
                )
            ]
        )
    members = {
        each.study_uid: member for member in "ab" for each in lease(ledger, terms, member, owner=member)
    }
    assert len(members) == 30
    for patient in range(5):
        assert len({members[f"1.{number}"] for number in range(patient, 30, 5)}) == 1
    # Without the patient in the ledger the study counts.
    record(ledger, 20, 1, first=500)
    assert {len(studies_of(lease(ledger, terms, member, owner=f"{member}2"))) > 0 for member in "ab"} == {
        True
    }


def test_pauses_of_a_group_and_of_a_member(ledger: Ledger) -> None:
    record(ledger, 1, 1)
    ledger.circuits.pause("archive", "jane", "", 500)
    assert [lease(ledger, make_terms(), member) for member in "ab"] == [[], []]
    ledger.circuits.resume("archive")
    ledger.circuits.pause("a", "jane", "", 500)
    assert [len(lease(ledger, make_terms(), member)) for member in "ab"] == [0, 1]


def test_suspects_and_old_rows_belong_to_the_member_of_their_study(ledger: Ledger) -> None:
    record(ledger, 1, 2)
    leased = lease(ledger, make_terms(), "a", 1)
    broken = DeliveryResult(
        id=leased[0].id, owner="a", state=DeliveryState.RETRY, next_at=10, breaks=1, suspect_since=10
    )
    ledger.deliveries.record_results("archive", [broken], 20, "a")
    group = {name: GroupMember(make_terms(), name) for name in "ab"}
    assert ledger.deliveries.lease_suspect("archive", "b", 60, 100, 0, group["b"]) is None
    now = unix_ms() + 1000
    assert ledger.deliveries.expire_overdue("archive", now, "old", now, group["b"]) == 0
    set_circuit(ledger, "a", CircuitState.OPEN)
    found = ledger.deliveries.lease_suspect("archive", "b", 60, 100, 0, group["b"])
    assert found is not None
    assert found.member == "b"
    set_circuit(ledger, "b", CircuitState.OPEN)
    assert (
        sum(ledger.deliveries.expire_overdue("archive", now, "old", now, group[name]) for name in "ab") == 1
    )


def test_forgotten_study_leaves_no_choice_behind(ledger: Ledger) -> None:
    record(ledger, 1, 1)
    finish(ledger, lease(ledger, make_terms(), "a"), "a", DeliveryState.DELIVERED)
    [study] = ledger.retention.summarize_studies(["1.0"])
    files = ledger.retention.mark_removing([study], 10, 2000, only_delivered=True)
    ledger.retention.mark_removed([each.id for each in files])
    assert ledger.instances.count_by_state() == {InstanceState.REMOVED: 1}

    def count_choices() -> int:
        with ledger.database.begin_read() as connection:
            return int(connection.exec_driver_sql("SELECT count(*) FROM group_studies").scalar_one())

    assert count_choices() == 1
    assert ledger.retention.delete_removed_rows(unix_ms()) == 1
    assert count_choices() == 0


def test_member_that_commits_is_asked_for_what_it_got_of_a_group(ledger: Ledger) -> None:
    terms = make_terms(ROUND_ROBIN)
    record(ledger, 2, 1)
    for member in "ab":
        [leased] = lease(ledger, terms, member)
        result = DeliveryResult(
            id=leased.id, owner=member, state=DeliveryState.DELIVERED, size=1, wants_commitment=True
        )
        ledger.deliveries.record_results("archive", [result], 1500, member)
    requests = ledger.commitment_requests
    assert requests.find_wanting(["a"], 2000) == []
    assert requests.find_wanting(["a"], 2000, {"a": ["archive"]}) == ["a"]
    begun = requests.begin_request("a", "1.9", 10, 9000, 2000, ["archive"])
    assert begun is not None
    assert [each.sop_instance_uid for each in begun[1].references] == ["1.2.0"]
    assert requests.begin_request("a", "1.10", 10, 9000, 2001, ["archive"]) is None
    assert requests.find_wanting(["b"], 2001, {"b": ["archive"]}) == ["b"]


def test_rows_of_a_dead_member_hide_no_retries_and_no_ended_leases_of_another(ledger: Ledger) -> None:
    terms, later = make_terms(), 10_000
    record(ledger, 1, 71)
    finish(ledger, lease(ledger, terms, "a", 1), "a", DeliveryState.DELIVERED)
    assert len(lease(ledger, terms, "a", 70, owner="lost")) == 70  # its host never comes back
    set_circuit(ledger, "a", CircuitState.OPEN)
    record(ledger, 1, 2, first=2000)
    assert len(lease(ledger, terms, "b", 1, owner="killed")) == 1
    leased = lease(ledger, terms, "b", 8, owner="b", now=later)
    assert [each.sop_instance_uid for each in leased] == ["1.2.2000", "1.2.2001"]


def test_study_expires_for_the_last_member_that_could_get_it(ledger: Ledger) -> None:
    terms, now = make_terms(), unix_ms() + 1000
    record(ledger, 1, 2)
    group = {name: GroupMember(terms, name) for name in "ab"}
    # The first member cannot be reached, and its circuit is not open yet.
    assert ledger.deliveries.expire_overdue("archive", now, "old", now, group["a"]) == 0
    assert len(lease(ledger, terms, "a", now=now)) == 2


def test_search_that_found_nothing_pauses(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    search = RowSearch(40)
    monkeypatch.setattr(ledger.deliveries, "_search", search)
    terms = make_terms()
    record(ledger, 1, 100)
    finish(ledger, lease(ledger, terms, "a", 1), "a", DeliveryState.DELIVERED)
    set_circuit(ledger, "a", CircuitState.OPEN)
    assert [lease(ledger, terms, "b", 8, now=now) for now in (1000, 1000, 1000)] == [[], [], []]
    record(ledger, 1, 1, first=2000)
    assert lease(ledger, terms, "b", 8, now=1000 + SEARCH_PAUSE_MS - 1) == []
    assert len(lease(ledger, terms, "b", 8, now=1000 + 2 * SEARCH_PAUSE_MS)) == 1
