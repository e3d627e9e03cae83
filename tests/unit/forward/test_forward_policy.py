"""A turn at remotes that refuse, are away, take several operations at once, or may not be hurried."""

import contextlib
import threading
import time
from collections import defaultdict
from typing import Any

import pytest

from ingest.clock import unix_ms
from ingest.config.model import Config, Destination, WorkerSettings
from ingest.dicom import uids, wire
from ingest.dicom.priority import Priority
from ingest.ledger import CircuitState, DeliveryTerms
from ingest.ledger.delivery_filter import DeliveryFilter
from ingest.queue.wakeups import hold_key
from ingest.workers.forward.worker import count_slots
from tests.support.drains import drain_once
from tests.support.forwarding import Forwarding
from tests.support.instances import EXPLICIT, IMPLICIT, Made
from tests.support.nodes import eventually
from tests.support.peers import CT, Conversation, ScriptedPeer
from tests.support.ports import free_port


def hold_ends(forwarding: Forwarding, name: str = "pacs") -> None:
    with contextlib.closing(forwarding.server.client()) as client:
        eventually(lambda: not client.exists(hold_key(name)), 10, "the hold ends")


def kinds(request: wire.AssociateRequest) -> list[str]:
    return [context.transfer_syntaxes[0] for context in request.contexts]


# -- contexts


@pytest.mark.parametrize("mended", [True, False])
def test_sop_class_not_supported_is_negotiated_once_more_and_alone(plain: Forwarding, mended: bool) -> None:
    offered: list[list[str]] = []

    def script(peer: Conversation) -> None:
        offered.append(kinds(peer.accept()))
        first = len(offered) == 1

        def status(command: dict[str, Any]) -> int:
            return 0x0122 if command["AffectedSOPInstanceUID"] == "1.2" and (first or not mended) else 0

        peer.serve(status)

    with ScriptedPeer(script) as peer:
        plain.add(peer.port)
        plain.record(Made(sop="1.1", syntax=IMPLICIT), Made(sop="1.2"), Made(sop="1.3", syntax=IMPLICIT))
        drain_once(plain)
    assert offered[:2] == [[IMPLICIT, EXPLICIT], [EXPLICIT]]
    assert plain.row("1.2").state == ("delivered" if mended else "dead")
    assert plain.row("1.2").attempts == 1
    assert [plain.row(sop).state for sop in ("1.1", "1.3")] == ["delivered"] * 2


def test_sop_class_not_supported_is_not_negotiated_for_each_instance(plain: Forwarding) -> None:
    def script(peer: Conversation) -> None:
        peer.accept()
        peer.serve(lambda _: 0x0122)

    with ScriptedPeer(script) as peer:
        plain.add(peer.port)
        plain.many(20)
        drain_once(plain)
        assert peer.connections == 2
    assert plain.states() == {"dead": 20}


def test_remote_that_takes_one_context_at_a_time_gets_everything(plain: Forwarding) -> None:
    def script(peer: Conversation) -> None:
        taken: list[str] = []

        def refuse(_: str, syntax: str) -> bool:
            taken.append(syntax)
            return len(taken) > 1

        peer.accept(refuse=refuse)
        peer.serve()

    with ScriptedPeer(script) as peer:
        plain.add(peer.port)
        plain.record(*(Made(sop=f"1.{n}", syntax=IMPLICIT if n % 2 else EXPLICIT) for n in range(6)))
        drain_once(plain)
    assert plain.states() == {"delivered": 6}


def test_refused_context_is_asked_for_alone_once(plain: Forwarding) -> None:
    offered: list[list[str]] = []

    def script(peer: Conversation) -> None:
        offered.append(kinds(peer.accept(refuse=lambda _, syntax: syntax == IMPLICIT)))
        peer.serve()

    with ScriptedPeer(script) as peer:
        plain.add(peer.port)
        plain.record(*(Made(sop=f"1.{n}", syntax=IMPLICIT if n % 2 else EXPLICIT) for n in range(10)))
        drain_once(plain)
    assert plain.states() == {"delivered": 5, "dead": 5}
    assert offered.count([IMPLICIT]) == 1
    assert len(offered) == 3


# -- away


def test_full_remote_is_tried_again_whatever_it_calls_that(plain: Forwarding) -> None:
    def script(peer: Conversation) -> None:
        peer.read_pdu()
        # PS3.8 Table 9-21: permanent, but a local limit of the service-provider.
        peer.sock.sendall(wire.encode_associate_rj(wire.AssociateReject(1, 3, 2)))

    with ScriptedPeer(script) as peer:
        plain.add(peer.port, retry_first_seconds=0.2)
        plain.many(1)
        drain_once(plain)
    circuit = plain.ledger.circuits.read_circuit("pacs")
    assert (circuit.state, circuit.permanent) == (CircuitState.CLOSED, False)
    assert circuit.probe_at < unix_ms() + 1_000


def test_open_circuit_is_probed_with_an_echo_before_anything_is_leased(plain: Forwarding) -> None:
    asked: list[str] = []
    port = free_port()

    def script(peer: Conversation) -> None:
        request = peer.accept()
        asked.append(request.contexts[0].abstract_syntax)
        peer.serve()

    plain.add(port, retry_first_seconds=0.05, retry_max_seconds=0.05)
    plain.many(3)
    for _ in range(3):
        drain_once(plain)
        hold_ends(plain)
    assert plain.ledger.circuits.read_circuit("pacs").state is CircuitState.OPEN
    with ScriptedPeer(script, port=port):
        drain_once(plain)
    assert asked == [uids.VERIFICATION, CT]
    assert plain.states() == {"delivered": 3}
    assert plain.ledger.circuits.read_circuit("pacs").state is CircuitState.CLOSED


def test_probe_that_finds_nobody_leases_nothing_and_waits_longer(plain: Forwarding) -> None:
    plain.add(free_port(), retry_first_seconds=0.01, retry_max_seconds=60)
    plain.many(1)
    for failures in range(1, 6):
        drain_once(plain)
        hold_ends(plain)
        assert plain.ledger.circuits.read_circuit("pacs").failures == failures
    assert plain.row("1.2.3.1").attempts == 0


def test_emptied_redis_does_not_make_a_worker_ask_an_open_circuit(plain: Forwarding) -> None:
    plain.add(free_port(), retry_first_seconds=60, retry_max_seconds=60)
    plain.many(1)
    drain_once(plain)
    with contextlib.closing(plain.server.client()) as client:
        client.flushall()
    drain_once(plain)
    assert plain.ledger.circuits.read_circuit("pacs").failures == 1


def test_what_is_owed_for_too_long_dies_with_the_next_failure_and_lives_when_sent_again(
    plain: Forwarding,
) -> None:
    plain.add(free_port(), give_up_hours=1, retry_first_seconds=0.01, retry_max_seconds=0.01)
    plain.many(3)
    with plain.ledger.database.begin_write() as connection:
        connection.exec_driver_sql("UPDATE deliveries SET created_at = created_at - 3600001 WHERE id < 3")
    drain_once(plain)
    assert plain.states() == {"dead": 2, "waiting": 1}
    assert "given up after 1 h" in str(plain.row("1.2.3.1").last_error)
    plain.ledger.delivery_admin.requeue_deliveries(DeliveryFilter(sop_instance_uid="1.2.3.1"), unix_ms())
    hold_ends(plain)
    drain_once(plain)
    assert plain.states() == {"dead": 1, "waiting": 2}


def test_destination_that_never_answers_cannot_hold_every_worker() -> None:
    def config(forward: int, *associations: int) -> Config:
        return Config(
            workers=WorkerSettings(forward=forward),
            destinations=tuple(
                Destination(name=f"d{n}", ae_title="D", host="h", tls=False, associations=count)
                for n, count in enumerate(associations)
            ),
        )

    assert [count_slots(config(4, 8, 1)), count_slots(config(2, 2, 1)), count_slots(config(1, 2, 1))] == [
        3,
        1,
        1,
    ]
    assert count_slots(config(4, 8)) == 4


# -- several at once


def test_order_within_a_series_holds_over_several_associations(plain: Forwarding) -> None:
    lock, at_work = threading.Lock(), defaultdict(int)
    seen: list[int] = []
    together: set[int] = set()

    def status(command: dict[str, Any]) -> int:
        number = int(command["AffectedSOPInstanceUID"].rpartition(".")[2])
        with lock:
            at_work[number % 4] += 1
            assert at_work[number % 4] == 1
            together.add(len([count for count in at_work.values() if count]))
        time.sleep(0.002)
        with lock:
            seen.append(number)
            at_work[number % 4] -= 1
        return 0

    with ScriptedPeer(lambda peer: (peer.accept(), peer.serve(status))[1]) as peer:
        plain.add(peer.port, associations=3)
        plain.many(400, series=4)
        threads = [threading.Thread(target=drain_once, args=(plain,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        eventually(lambda: drain_once(plain) or plain.states() == {"delivered": 400}, 30)
        assert peer.connections > 1
    for series in range(4):
        assert [number for number in seen if number % 4 == series] == [
            number for number in range(1, 401) if number % 4 == series
        ]
    assert max(together) > 1


def test_window_lets_operations_overlap_and_each_answer_find_its_instance(plain: Forwarding) -> None:
    """The remote answers four at a time, the last one first."""
    windows: list[tuple[int, int] | None] = []

    def script(peer: Conversation) -> None:
        request = peer.accept(window=(4, 1))
        windows.append(request.async_operations)
        for _ in range(3):
            commands = []
            for _ in range(4):
                context, command = peer.read_command()
                peer.read_data_set()
                commands.append(command)
            for command in reversed(commands):
                number = int(command["AffectedSOPInstanceUID"].rpartition(".")[2])
                peer.answer(context, command, 0xA900 + number if number % 3 == 0 else 0)
        assert peer.read_pdu()[0] == 5
        peer.sock.sendall(wire.RELEASE_RP)

    with ScriptedPeer(script) as peer:
        plain.add(peer.port, async_operations=8, linger_seconds=0)
        sent = plain.many(12)
        drain_once(plain)
        assert peer.connections == 1
    assert windows == [(8, 1)]
    rows = [plain.row(one.sop) for one in sent]
    assert [row.last_status for row in rows] == [0xA900 + n if n % 3 == 0 else 0 for n in range(1, 13)]
    assert plain.states() == {"delivered": 8, "dead": 4}


def test_association_that_breaks_leaves_what_had_its_answer_and_tries_the_rest_again(
    plain: Forwarding,
) -> None:
    def script(peer: Conversation) -> None:
        peer.accept(window=(4, 1))
        commands = []
        for _ in range(4):
            context, command = peer.read_command()
            peer.read_data_set()
            commands.append(command)
        peer.answer(context, commands[1])
        peer.sock.sendall(wire.encode_abort(2, 0))

    with ScriptedPeer(script) as peer:
        plain.add(peer.port, async_operations=4, retry_first_seconds=60)
        plain.many(4)
        drain_once(plain)
    assert [plain.row(f"1.2.3.{n}").state for n in range(1, 5)] == ["retry", "delivered", "retry", "retry"]


def test_remote_that_grants_no_window_gets_one_at_a_time(plain: Forwarding) -> None:
    with ScriptedPeer(lambda peer: (peer.accept(), peer.serve())[1]) as peer:
        plain.add(peer.port, async_operations=8)
        plain.many(5)
        drain_once(plain)
    assert plain.states() == {"delivered": 5}


def test_bandwidth_is_kept(plain: Forwarding) -> None:
    with ScriptedPeer(lambda peer: (peer.accept(), peer.serve())[1]) as peer:
        plain.add(peer.port, bandwidth_mb_per_s=1)
        plain.many(4, pixels=bytes(250_000))
        started = time.monotonic()
        drain_once(plain)
        assert time.monotonic() - started > 0.9
    assert plain.states() == {"delivered": 4}


# -- what people see


def test_progress_tells_rate_backlog_age_and_circuit(plain: Forwarding) -> None:
    with ScriptedPeer(lambda peer: (peer.accept(), peer.serve())[1]) as peer:
        plain.add(peer.port)
        plain.many(5, pixels=bytes(1000))
        drain_once(plain)
    plain.add(free_port(), "away")
    plain.many(2, to=["away"])
    urgent = {"away": DeliveryTerms(priority=Priority.URGENT)}
    plain.record(Made(sop="1.2.99.1"), Made(sop="1.2.99.2"), to=["away"], terms=urgent)
    plain.record(Made(sop="1.2.99.3"), to=["away"], terms={"away": DeliveryTerms(priority=Priority.BULK)})
    drain_once(plain, "away")
    now = unix_ms()
    progress = plain.ledger.throughput.read_progress(now)
    pacs, away = progress["pacs"], progress["away"]
    assert 5 / 360 <= pacs.delivered_per_second <= 5 / 300
    assert pacs.bytes_per_second >= pacs.delivered_per_second * 1000
    assert (pacs.backlog, pacs.oldest_at, pacs.circuit) == (0, None, None)
    assert (away.backlog, away.delivered_per_second) == (5, 0)
    assert (away.waiting_urgent, away.waiting_bulk, pacs.waiting_urgent) == (2, 1, 0)
    assert away.circuit is not None
    assert away.circuit.failures == 1
    assert away.oldest_at is not None
    assert 0 <= now - away.oldest_at < 60_000
    assert "refused" in away.circuit.last_error
    assert plain.ledger.throughput.read_progress(now + 7 * 60_000)["pacs"].delivered_per_second == 0
