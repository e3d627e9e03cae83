"""The outbox and its neighbours on both databases: events survive, and one host sends each."""

import threading

import pytest

from ingest.ledger import Ledger
from ingest.ledger.outbox import EventState, NewEvent, OutboxEvent
from ingest.ledger.peer_hours import HOUR_MS
from tests.support.ledgers import row

LEASE = 1000


def event(number: int, target: str = "alerts.a") -> NewEvent:
    return NewEvent(f"id-{number}", target, f'{{"n": {number}}}', number)


def lease(ledger: Ledger, owner: str = "one", now: int = 100, target: str = "alerts.a") -> OutboxEvent | None:
    return ledger.outbox.lease_next(target, owner, now, LEASE)


def states(ledger: Ledger) -> list[str]:
    return [row.state.value for row in reversed(ledger.outbox.list_events(100))]


def test_states_and_events_are_recorded_together_and_once(ledger):
    key = ("a", "", "PACS")
    ledger.alert_groups.record({key: "{}"}, [event(1)], 5)
    # The reply to COMMIT may have been lost: the same is recorded again.
    ledger.alert_groups.record({key: '{"x": 1}'}, [event(1), event(2)], 6)
    assert ledger.alert_groups.read_groups("") == {key: '{"x": 1}'}
    assert [row.event_id for row in ledger.outbox.list_events(10)] == ["id-2", "id-1"]
    ledger.alert_groups.record({key: ""}, [], 7)
    assert ledger.alert_groups.read_groups() == {}


def test_lease_excludes_others_until_it_ends_or_its_owner_starts_again(ledger):
    ledger.alert_groups.record({}, [event(1)], 5)
    assert ledger.outbox.list_due_targets(["alerts.a"], "one", 100) == ["alerts.a"]
    assert lease(ledger).attempts == 1
    assert lease(ledger, "two") is None
    assert ledger.outbox.list_due_targets(["alerts.a"], "two", 100) == []
    assert lease(ledger, "one").attempts == 2  # its earlier process is dead
    taken = lease(ledger, "two", 100 + LEASE)
    assert (taken.attempts, taken.event_id) == (3, "id-1")
    assert ledger.outbox.record_sent(taken, 2000)
    assert states(ledger) == ["sent"]


def test_result_after_a_lost_lease_changes_nothing(ledger):
    ledger.alert_groups.record({}, [event(1)], 5)
    late = lease(ledger)
    taken = lease(ledger, "two", 100 + LEASE)
    assert not ledger.outbox.record_failure(late, "late", 9000, 2000, blames_target=False)
    assert ledger.outbox.record_sent(taken, 2000)
    assert not ledger.outbox.record_sent(late, 2001)
    assert states(ledger) == ["sent"]


def test_failure_of_the_target_lets_all_of_its_events_wait_in_order(ledger):
    ledger.alert_groups.record({}, [event(1), event(2), event(3, "alerts.b")], 5)
    ledger.outbox.record_failure(lease(ledger), "away", 5000, 100, blames_target=True)
    assert lease(ledger, now=4999) is None
    assert lease(ledger, now=4999, target="alerts.b").event_id == "id-3"
    assert lease(ledger, now=5000).event_id == "id-1"


def test_failure_of_one_event_holds_up_no_other(ledger):
    ledger.alert_groups.record({}, [event(1), event(2)], 5)
    ledger.outbox.record_failure(lease(ledger), "422", 5000, 100, blames_target=False)
    assert lease(ledger, now=101).event_id == "id-2"
    assert ledger.outbox.count_open() == {"alerts.a": (2, 1)}


def test_events_are_given_up_expire_and_are_removed(ledger):
    ledger.alert_groups.record({}, [event(1), event(2), event(3)], 5)
    ledger.outbox.record_failure(lease(ledger), "no", 0, 100, blames_target=True)
    assert ledger.outbox.expire(3, 200) == 1
    assert states(ledger) == ["dead", "dead", "waiting"]
    assert ledger.outbox.remove_ended(201) == 2
    assert states(ledger) == ["waiting"]


def test_event_that_was_sent_without_the_ledger_is_not_sent_again(ledger):
    sent = NewEvent("id-9", "alerts.a", "{}", 1, EventState.SENT)
    ledger.alert_groups.record({}, [sent], 5)
    assert lease(ledger) is None


def test_two_hosts_send_each_event_once(url, ledger):
    ledger.alert_groups.record({}, [event(number) for number in range(40)], 5)
    sent: list[str] = []

    def work(owner: str) -> None:
        own = Ledger(url)
        while (taken := own.outbox.lease_next("alerts.a", owner, 100, LEASE)) is not None:
            sent.append(taken.event_id)
            own.outbox.record_sent(taken, 101)
        own.close()

    workers = [threading.Thread(target=work, args=(name,)) for name in ("one", "two", "three")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(sent) == sorted(f"id-{number}" for number in range(40))
    assert set(states(ledger)) == {"sent"}


def test_one_owner_holds_a_lease_and_keeps_it_by_renewal(ledger):
    take = ledger.alert_groups.take_lease
    assert take("alerts", "one", 100, LEASE)
    assert not take("alerts", "two", 100 + LEASE - 1, LEASE)
    assert take("alerts", "one", 900, LEASE)
    assert not take("alerts", "two", 100 + LEASE, LEASE)
    assert take("alerts", "two", 900 + LEASE, LEASE)
    assert not take("alerts", "one", 900 + LEASE, LEASE)


def test_hours_of_callers_are_read_once_from_any_place_of_the_ledger(ledger):
    ledger.instances.record(
        [row(number, calling_ae="CT1", received_at=number * HOUR_MS) for number in range(1, 30)]
    )
    table = ledger.peer_hours
    assert table.read_hours() == (None, {})
    assert table.find_id_before(0) == 0
    before = table.find_id_before(20 * HOUR_MS)
    arrivals = table.read_arrivals(before, 5)
    assert [at // HOUR_MS for _, _, at in arrivals] == [20, 21, 22, 23, 24]
    assert {name for _, name, _ in arrivals} == {"CT1"}
    assert table.find_newest_id() == arrivals[0][0] + 9
    table.record({("CT1", 20): 5, ("CT1", 21): 6}, 24)
    table.record({("CT1", 21): 7}, 25)
    assert table.read_hours() == (25, {("CT1", 20): 5, ("CT1", 21): 7})
    table.remove_before(21)
    assert table.read_hours() == (25, {("CT1", 21): 7})


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_nothing_is_learned_from_an_empty_ledger(ledger):
    assert ledger.peer_hours.find_id_before(10) == 0
    assert ledger.peer_hours.find_newest_id() == 0
