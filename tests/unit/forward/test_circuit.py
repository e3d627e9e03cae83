"""The circuit of a destination, by table, and how the ledger keeps it."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ingest.ledger import Circuit, CircuitState, Ledger
from ingest.workers.forward import circuit
from ingest.workers.forward.circuit import Failure, Stance, Trouble
from ingest.workers.forward.retry_policy import Limits

LIMITS = Limits(first_ms=2_000, max_ms=300_000, max_attempts=20, give_up_ms=1)
CLOSED = Circuit(destination="pacs")
NOW = 1_000_000


def most() -> float:
    return 1.0


def failed(found: Circuit, trouble: Trouble, times: int = 1) -> Circuit:
    for _ in range(times):
        found = circuit.failed(found, Failure(trouble, "why", NOW), LIMITS, most)
    return found


@pytest.mark.parametrize(
    ("trouble", "times", "state", "pause"),
    [
        (Trouble.UNREACHABLE, 1, CircuitState.CLOSED, 2_000),
        (Trouble.UNREACHABLE, 2, CircuitState.CLOSED, 4_000),
        (Trouble.UNREACHABLE, 3, CircuitState.OPEN, 8_000),
        (Trouble.UNREACHABLE, 50, CircuitState.OPEN, 300_000),
        # One instance may be to blame: others are tried at once.
        (Trouble.BROKEN, 1, CircuitState.CLOSED, None),
        (Trouble.BROKEN, 2, CircuitState.CLOSED, None),
        (Trouble.BROKEN, 3, CircuitState.OPEN, 2_000),
        (Trouble.BROKEN, 4, CircuitState.OPEN, 4_000),
        (Trouble.BROKEN, 50, CircuitState.OPEN, circuit.BROKEN_PAUSE_MILLISECONDS),
        (Trouble.REFUSED, 1, CircuitState.OPEN, 300_000),
    ],
)
def test_failures_in_a_row_open_it(
    trouble: Trouble, times: int, state: CircuitState, pause: int | None
) -> None:
    found = failed(CLOSED, trouble, times)
    assert (found.state, found.failures, found.last_error) == (state, times, "why")
    assert found.probe_at == (NOW + pause if pause else 0)
    assert found.permanent is (trouble is Trouble.REFUSED)
    assert bool(found.opened_at) is (state is CircuitState.OPEN)


def test_open_one_waits_is_probed_by_one_and_closes_when_the_remote_is_there() -> None:
    opened = failed(CLOSED, Trouble.UNREACHABLE, 3)
    assert circuit.stance(opened, opened.probe_at - 1) is Stance.WAIT
    assert circuit.stance(opened, opened.probe_at) is Stance.PROBE
    claimed = circuit.claimed(opened, opened.probe_at, 500)
    assert claimed.state is CircuitState.HALF_OPEN
    assert circuit.claimed(claimed, opened.probe_at + 499, 500) == claimed  # somebody else's
    assert circuit.stance(claimed, opened.probe_at + 500) is Stance.PROBE  # who has died
    closed = circuit.reached(claimed)
    assert circuit.stance(closed, 0) is Stance.GO
    assert (closed.failures, failed(closed, Trouble.UNREACHABLE).probe_at) == (0, NOW + 2_000)
    # It was away; that one instance breaks an association says nothing.
    assert failed(closed, Trouble.BROKEN).state is CircuitState.CLOSED


def test_remote_that_breaks_each_association_is_not_asked_as_often_as_a_sound_one() -> None:
    opened = failed(CLOSED, Trouble.BROKEN, 3)
    closed = circuit.reached(circuit.claimed(opened, opened.probe_at, 500))
    assert (closed.state, closed.failures, closed.breaks) == (CircuitState.CLOSED, 3, 3)
    assert failed(closed, Trouble.BROKEN).state is CircuitState.OPEN
    answered = circuit.answered(closed, NOW)
    assert (answered.failures, answered.breaks, answered.answered_at) == (0, 0, NOW)
    assert failed(answered, Trouble.BROKEN).state is CircuitState.CLOSED


def test_while_others_wait_more_instances_may_break_theirs() -> None:
    found = CLOSED
    for breaks in range(1, circuit.BREAKS_MAX):
        found = circuit.failed(found, Failure(Trouble.BROKEN, "why", NOW, others_wait=True), LIMITS, most)
        assert (found.state, found.breaks) == (CircuitState.CLOSED, breaks)
    # A C-ECHO that fails as well tells that it is the remote.
    assert failed(found, Trouble.UNREACHABLE).state is CircuitState.OPEN
    found = circuit.failed(found, Failure(Trouble.BROKEN, "why", NOW, others_wait=True), LIMITS, most)
    assert (found.state, found.probe_at) == (CircuitState.OPEN, NOW + 2_000)


def test_suspect_opens_nothing_however_often_it_breaks_an_association() -> None:
    found = CLOSED
    for _ in range(20):
        found = circuit.failed(found, Failure(Trouble.BROKEN, "why", NOW, is_suspect=True), LIMITS, most)
    assert (found.state, found.breaks, found.probe_at) == (CircuitState.CLOSED, 1, 0)
    assert not circuit.is_cleared(found, NOW)
    assert circuit.is_cleared(circuit.answered(found, NOW + 1), NOW)
    # Nothing but suspects is left, and nothing got through: it may be the remote.
    opened = failed(CLOSED, Trouble.BROKEN, 3)
    again = circuit.failed(
        circuit.reached(opened), Failure(Trouble.BROKEN, "why", NOW, is_suspect=True), LIMITS, most
    )
    assert (again.state, again.probe_at) == (CircuitState.OPEN, NOW + 4_000)


def test_probe_that_fails_keeps_it_open_since_the_first_time() -> None:
    opened = replace(failed(CLOSED, Trouble.UNREACHABLE, 3), opened_at=7)
    again = failed(circuit.claimed(opened, opened.probe_at, 500), Trouble.UNREACHABLE)
    assert (again.state, again.opened_at) == (CircuitState.OPEN, 7)


def test_new_worker_has_what_was_left_alone_asked_at_once_unless_another_new_one_has_asked() -> None:
    opened = failed(CLOSED, Trouble.REFUSED)
    assert circuit.stance(circuit.asked_anew(opened, NOW + 1), NOW + 1) is Stance.PROBE
    assert circuit.asked_anew(opened, NOW) == opened
    once = failed(CLOSED, Trouble.UNREACHABLE)
    assert circuit.stance(circuit.asked_anew(once, NOW + 1), NOW + 1) is Stance.GO
    claimed = circuit.claimed(opened, opened.probe_at, 500)
    assert circuit.asked_anew(claimed, NOW + 1) == claimed
    assert circuit.stance(circuit.unclaimed(claimed), 0) is Stance.PROBE
    assert circuit.unclaimed(opened) == opened


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    if request.param == "postgresql":
        opened = Ledger(request.getfixturevalue("postgresql_url"))
        with opened.database.begin_write() as connection:
            connection.exec_driver_sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    else:
        opened = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    opened.migrate()
    yield opened
    opened.close()


def test_ledger_keeps_it_for_all_workers(ledger: Ledger) -> None:
    assert ledger.circuits.read_circuit("pacs") == CLOSED
    opened = failed(CLOSED, Trouble.REFUSED)
    assert ledger.circuits.change_circuit("pacs", lambda _: opened) == (CLOSED, opened)
    assert ledger.circuits.read_circuit("pacs") == opened
    ledger.circuits.close_circuit("pacs")
    assert circuit.stance(ledger.circuits.read_circuit("pacs"), 0) is Stance.GO


def test_of_workers_that_want_to_probe_one_does(ledger: Ledger) -> None:
    ledger.circuits.change_circuit("pacs", lambda found: failed(found, Trouble.UNREACHABLE, 3))
    claims: list[bool] = []

    def claim() -> None:
        before, after = ledger.circuits.change_circuit(
            "pacs", lambda found: circuit.claimed(found, NOW + 8_000, 500)
        )
        claims.append(before != after)

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(claims) == [False] * 7 + [True]
