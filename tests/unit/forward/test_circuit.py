"""The circuit of a destination, by table, and how the ledger keeps it."""

import threading
from dataclasses import replace

import pytest

from ingest.ledger import Circuit, CircuitState, Ledger
from ingest.workers.forward import circuit
from ingest.workers.forward.circuit import CircuitFailure, FailureKind, PermittedAction
from ingest.workers.forward.circuit import find_permitted_action as permitted
from ingest.workers.forward.retry_policy import RetryPolicy

POLICY = RetryPolicy(first_ms=2_000, max_ms=300_000, max_attempts=20, give_up_ms=1)
CLOSED = Circuit(destination="pacs")
NOW = 1_000_000


def most() -> float:
    return 1.0


def fail(found: Circuit, kind: FailureKind, times: int = 1) -> Circuit:
    for _ in range(times):
        found = circuit.record_failure(found, CircuitFailure(kind, "why", NOW), POLICY, most)
    return found


def break_association(found: Circuit, **what: bool) -> Circuit:
    return circuit.record_failure(found, CircuitFailure(FailureKind.BROKEN, "why", NOW, **what), POLICY, most)


@pytest.mark.parametrize(
    ("kind", "times", "state", "pause"),
    [
        (FailureKind.UNREACHABLE, 1, CircuitState.CLOSED, 2_000),
        (FailureKind.UNREACHABLE, 2, CircuitState.CLOSED, 4_000),
        (FailureKind.UNREACHABLE, 3, CircuitState.OPEN, 8_000),
        (FailureKind.UNREACHABLE, 50, CircuitState.OPEN, 300_000),
        # One instance may be to blame: others are tried at once.
        (FailureKind.BROKEN, 1, CircuitState.CLOSED, None),
        (FailureKind.BROKEN, 2, CircuitState.CLOSED, None),
        (FailureKind.BROKEN, 3, CircuitState.OPEN, 2_000),
        (FailureKind.BROKEN, 4, CircuitState.OPEN, 4_000),
        (FailureKind.BROKEN, 50, CircuitState.OPEN, circuit.BREAK_PAUSE_MAX_MS),
        (FailureKind.REFUSED, 1, CircuitState.OPEN, 300_000),
    ],
)
def test_failures_in_a_row_open_it(
    kind: FailureKind, times: int, state: CircuitState, pause: int | None
) -> None:
    found = fail(CLOSED, kind, times)
    assert (found.state, found.failures, found.last_error) == (state, times, "why")
    assert found.probe_at == (NOW + pause if pause else 0)
    assert found.permanent is (kind is FailureKind.REFUSED)
    assert bool(found.opened_at) is (state is CircuitState.OPEN)


def test_open_one_waits_is_probed_by_one_and_closes_when_the_remote_is_there() -> None:
    opened = fail(CLOSED, FailureKind.UNREACHABLE, 3)
    assert permitted(opened, opened.probe_at - 1) is PermittedAction.WAIT
    assert permitted(opened, opened.probe_at) is PermittedAction.PROBE
    claimed = circuit.claim_probe(opened, opened.probe_at, 500)
    assert claimed.state is CircuitState.HALF_OPEN
    assert circuit.claim_probe(claimed, opened.probe_at + 499, 500) == claimed  # somebody else's
    assert permitted(claimed, opened.probe_at + 500) is PermittedAction.PROBE  # who has died
    closed = circuit.record_association(claimed)
    assert permitted(closed, 0) is PermittedAction.SEND
    assert (closed.failures, fail(closed, FailureKind.UNREACHABLE).probe_at) == (0, NOW + 2_000)
    # It was away; that one instance breaks an association says nothing.
    assert fail(closed, FailureKind.BROKEN).state is CircuitState.CLOSED


def test_remote_that_breaks_each_association_is_not_asked_as_often_as_a_sound_one() -> None:
    opened = fail(CLOSED, FailureKind.BROKEN, 3)
    closed = circuit.record_association(circuit.claim_probe(opened, opened.probe_at, 500))
    assert (closed.state, closed.failures, closed.breaks) == (CircuitState.CLOSED, 3, 3)
    assert fail(closed, FailureKind.BROKEN).state is CircuitState.OPEN
    answered = circuit.record_response(closed, NOW)
    assert (answered.failures, answered.breaks, answered.answered_at) == (0, 0, NOW)
    assert fail(answered, FailureKind.BROKEN).state is CircuitState.CLOSED


def test_while_others_wait_more_instances_may_break_theirs() -> None:
    found = CLOSED
    for breaks in range(1, circuit.OPEN_AFTER_BREAKS):
        found = break_association(found, others_wait=True)
        assert (found.state, found.breaks) == (CircuitState.CLOSED, breaks)
    # A C-ECHO that fails as well tells that it is the remote.
    assert fail(found, FailureKind.UNREACHABLE).state is CircuitState.OPEN
    found = break_association(found, others_wait=True)
    assert (found.state, found.probe_at) == (CircuitState.OPEN, NOW + 2_000)


def test_suspect_opens_nothing_however_often_it_breaks_an_association() -> None:
    found = CLOSED
    for _ in range(20):
        found = break_association(found, is_suspect=True)
    assert (found.state, found.breaks, found.probe_at) == (CircuitState.CLOSED, 1, 0)
    assert not circuit.has_response_since(found, NOW)
    assert circuit.has_response_since(circuit.record_response(found, NOW + 1), NOW)
    # Nothing but suspects is left, and nothing got through: it may be the remote.
    opened = fail(CLOSED, FailureKind.BROKEN, 3)
    again = break_association(circuit.record_association(opened), is_suspect=True)
    assert (again.state, again.probe_at) == (CircuitState.OPEN, NOW + 4_000)


def test_probe_that_fails_keeps_it_open_since_the_first_time() -> None:
    opened = replace(fail(CLOSED, FailureKind.UNREACHABLE, 3), opened_at=7)
    again = fail(circuit.claim_probe(opened, opened.probe_at, 500), FailureKind.UNREACHABLE)
    assert (again.state, again.opened_at) == (CircuitState.OPEN, 7)


def test_new_worker_has_what_was_left_alone_asked_at_once_unless_another_new_one_has_asked() -> None:
    opened = fail(CLOSED, FailureKind.REFUSED)
    assert permitted(circuit.expedite_probe(opened, NOW + 1), NOW + 1) is PermittedAction.PROBE
    assert circuit.expedite_probe(opened, NOW) == opened
    once = fail(CLOSED, FailureKind.UNREACHABLE)
    assert permitted(circuit.expedite_probe(once, NOW + 1), NOW + 1) is PermittedAction.SEND
    claimed = circuit.claim_probe(opened, opened.probe_at, 500)
    assert circuit.expedite_probe(claimed, NOW + 1) == claimed
    assert permitted(circuit.release_probe(claimed), 0) is PermittedAction.PROBE
    assert circuit.release_probe(opened) == opened


def test_ledger_keeps_it_for_all_workers(ledger: Ledger) -> None:
    assert ledger.circuits.read_circuit("pacs") == CLOSED
    opened = fail(CLOSED, FailureKind.REFUSED)
    assert ledger.circuits.change_circuit("pacs", lambda _: opened) == (CLOSED, opened)
    assert ledger.circuits.read_circuit("pacs") == opened
    ledger.circuits.close_circuit("pacs")
    assert permitted(ledger.circuits.read_circuit("pacs"), 0) is PermittedAction.SEND


def test_of_workers_that_want_to_probe_one_does(ledger: Ledger) -> None:
    ledger.circuits.change_circuit("pacs", lambda found: fail(found, FailureKind.UNREACHABLE, 3))
    claims: list[bool] = []

    def claim() -> None:
        before, after = ledger.circuits.change_circuit(
            "pacs", lambda found: circuit.claim_probe(found, NOW + 8_000, 500)
        )
        claims.append(before != after)

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(claims) == [False] * 7 + [True]
