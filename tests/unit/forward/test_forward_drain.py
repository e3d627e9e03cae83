"""Drains of one destination: order, association, slot, leases, and the end of a drain."""

import contextlib
import threading
import time
from typing import Any

import pytest

from ingest.clock import unix_ms
from ingest.config.model import TLS
from ingest.dicom import wire
from ingest.ledger import InstanceState
from ingest.queue.wakeups import drain_key, hold_key
from ingest.workers.forward import drain, leases
from ingest.workers.forward.destination_slots import slot_key
from tests.support.drains import drain_once, open_worker
from tests.support.forwarding import Forwarding
from tests.support.instances import EXPLICIT, IMPLICIT, Made
from tests.support.nodes import eventually
from tests.support.peers import (
    CT,
    Conversation,
    PynetdicomRemote,
    ScriptedPeer,
)
from tests.support.ports import free_port

CONTEXTS = [(CT, [EXPLICIT])]


def test_everything_due_arrives_in_order_over_one_association(forwarding: Forwarding, tls: TLS) -> None:
    with PynetdicomRemote(CONTEXTS, tls) as scp:
        forwarding.add(scp.port)
        sent = forwarding.many(150)
        drain_once(forwarding)
        assert scp.associations == 1
    assert [(stored.sop_instance, stored.data_set) for stored in scp.stored] == [
        (one.sop, one.data_set) for one in sent
    ]
    assert forwarding.states() == {"delivered": 150}
    row = forwarding.row(sent[0].sop)
    assert (row.attempts, row.last_status, row.last_error, row.lease_owner) == (1, 0, None, None)


def test_drain_frees_its_slot_and_allows_wakeups(forwarding: Forwarding, tls: TLS) -> None:
    with PynetdicomRemote(CONTEXTS, tls) as scp, contextlib.closing(forwarding.server.client()) as client:
        forwarding.add(scp.port)
        forwarding.many(1)
        forwarding.wake()
        drain_once(forwarding)
        assert not client.exists(drain_key("pacs"), slot_key("pacs", 0), hold_key("pacs"))


def test_association_stays_open_for_what_follows(forwarding: Forwarding, tls: TLS) -> None:
    with PynetdicomRemote(CONTEXTS, tls) as scp, open_worker(forwarding) as worker:
        forwarding.add(scp.port, linger_seconds=5)
        stop = threading.Event()
        with open_worker(forwarding, stop) as worker:
            forwarding.many(1)
            thread = threading.Thread(target=worker.drain_destination, args=("pacs",))
            thread.start()
            for count in (2, 3, 4):
                forwarding.wait({"delivered": count - 1})
                forwarding.many(1)
            forwarding.wait({"delivered": 4})
            stop.set()
            thread.join(10)
        assert scp.associations == 1


def test_lingering_ends_when_another_destination_waits(forwarding: Forwarding, tls: TLS) -> None:
    with PynetdicomRemote(CONTEXTS, tls) as scp:
        forwarding.add(scp.port, linger_seconds=30)
        forwarding.add(scp.port, "other")
        forwarding.many(1)
        forwarding.wake("other")
        started = time.monotonic()
        drain_once(forwarding)
        assert time.monotonic() - started < 5


def test_association_that_ended_while_idle_is_replaced_at_nobodys_cost(plain: Forwarding) -> None:
    def script(peer: Conversation) -> None:
        peer.accept()
        context, command = peer.read_command()
        peer.read_data_set()
        peer.answer(context, command)
        peer.sock.sendall(wire.RELEASE_RQ)
        heard.append(peer.read_pdu()[1])

    heard: list[bytes] = []
    with ScriptedPeer(script) as peer:
        plain.add(peer.port, linger_seconds=30)
        with open_worker(plain) as worker:
            for number in (1, 2):
                plain.many(1)
                worker.drain_destination("pacs")  # ends with the association, not with the lingering
                assert plain.states() == {"delivered": number}
        eventually(lambda: heard == [wire.RELEASE_RP] * 2, 10, "both releases are answered")
    assert plain.row("1.2.3.2").attempts == 1


def test_new_kinds_of_instances_are_offered_on_a_new_association_with_the_old_ones(
    plain: Forwarding,
) -> None:
    offered: list[list[tuple[str, tuple[str, ...]]]] = []

    def script(peer: Conversation) -> None:
        peer.accept()
        request = wire.decode_associate_rq(peer.request)
        offered.append([(c.abstract_syntax, c.transfer_syntaxes) for c in request.contexts])
        peer.serve()

    with ScriptedPeer(script) as peer:
        plain.add(peer.port)
        with open_worker(plain) as worker:
            plain.record(Made(sop="1.1"))
            worker.drain_destination("pacs")
            plain.record(Made(sop="1.2", syntax=IMPLICIT))
            worker.drain_destination("pacs")
            plain.record(Made(sop="1.3"))
            worker.drain_destination("pacs")
    both = [(CT, (IMPLICIT,)), (CT, (EXPLICIT,))]
    assert offered == [[(CT, (EXPLICIT,))], both, both[::-1]]
    assert plain.states() == {"delivered": 3}


@pytest.mark.parametrize("associations", [1, 2])
def test_no_more_associations_than_the_destination_takes(
    forwarding: Forwarding, tls: TLS, associations: int
) -> None:
    with PynetdicomRemote(CONTEXTS, tls) as scp:
        forwarding.add(scp.port, associations=associations)
        forwarding.many(400, series=8)
        with contextlib.ExitStack() as stack:
            workers = [stack.enter_context(open_worker(forwarding)) for _ in range(4)]
            threads = [
                threading.Thread(target=worker.drain_destination, args=("pacs",)) for worker in workers
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
        assert scp.most_at_once == associations
    assert forwarding.states() == {"delivered": 400}
    assert len({stored.sop_instance for stored in scp.stored}) == len(scp.stored) == 400


def test_stop_ends_after_the_instance_on_its_way_and_gives_the_rest_back(plain: Forwarding) -> None:
    stop = threading.Event()

    def status(_: dict[str, Any]) -> int:
        stop.set()
        return 0

    with ScriptedPeer(lambda peer: (peer.accept(), peer.serve(status))[1]) as peer:
        plain.add(peer.port)
        plain.many(10)
        with open_worker(plain, stop) as worker:
            worker.drain_destination("pacs")
    assert plain.states() == {"delivered": 1, "waiting": 9}
    assert plain.row("1.2.3.2").attempts == 0


def test_results_are_written_and_leases_renewed_while_a_later_instance_hangs(
    plain: Forwarding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "LEASE_MS", 1500)
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.5)
    going = threading.Event()

    def status(command: dict[str, Any]) -> int:
        if command["AffectedSOPInstanceUID"] == "1.2.3.2":
            going.wait(20)
        return 0

    with ScriptedPeer(lambda peer: (peer.accept(), peer.serve(status))[1]) as peer:
        plain.add(peer.port, response_seconds=30)
        plain.many(3)
        with open_worker(plain) as worker:
            thread = threading.Thread(target=worker.drain_destination, args=("pacs",))
            thread.start()
            eventually(lambda: plain.states().get("delivered") == 1, 3, "the first result")
            until = time.monotonic() + 2.5
            eventually(lambda: time.monotonic() > until, 5)
            assert plain.ledger.deliveries.find_due_destinations(unix_ms()) == []
            going.set()
            thread.join(10)
    assert plain.states() == {"delivered": 3}
    assert plain.row("1.2.3.3").attempts == 1


def test_lease_that_somebody_else_took_is_not_sent(
    plain: Forwarding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.0)
    seen: list[str] = []

    def status(command: dict[str, Any]) -> int:
        seen.append(command["AffectedSOPInstanceUID"])
        if len(seen) == 1:
            later = unix_ms() + 60_000
            assert len(plain.ledger.deliveries.lease_due("pacs", "thief", 10, later, 100_000)) == 3
        return 0

    with ScriptedPeer(lambda peer: (peer.accept(), peer.serve(status))[1]) as peer:
        plain.add(peer.port)
        plain.many(3)
        drain_once(plain)
    assert seen == ["1.2.3.1"]
    assert plain.states() == {"sending": 3}


def test_drain_ends_after_its_slice_and_wakes_the_destination_again(
    plain: Forwarding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drain, "SLICE_SECONDS", 0.2)

    def status(_: dict[str, Any]) -> int:
        time.sleep(0.05)
        return 0

    with ScriptedPeer(lambda peer: (peer.accept(), peer.serve(status))[1]) as peer:
        plain.add(peer.port)
        plain.many(20)
        drain_once(plain)
        with contextlib.closing(plain.server.client()) as client:
            assert client.get(drain_key("pacs")) == b"1"
            assert client.llen("rq:queue:forward") == 1
    assert 1 <= plain.states()["delivered"] < 20
    assert plain.states()["waiting"] == 20 - plain.states()["delivered"]


def test_destination_that_is_no_longer_configured_is_left_alone(plain: Forwarding) -> None:
    plain.many(1, to=["gone"])
    drain_once(plain, "gone")
    assert plain.states("gone") == {"waiting": 1}


def test_redis_away_sends_nothing_and_raises_nothing(plain: Forwarding) -> None:
    plain.add(free_port())
    plain.many(1)
    plain.server.kill()
    drain_once(plain)
    assert plain.states() == {"waiting": 1}


def test_variant_reaches_a_destination_that_refused_the_first(forwarding: Forwarding, tls: TLS) -> None:
    first, variant = Made(sop="1.1", syntax=IMPLICIT), Made(sop="1.1", syntax=EXPLICIT)
    with PynetdicomRemote(CONTEXTS, tls) as scp:
        forwarding.add(scp.port)
        forwarding.record(first)
        drain_once(forwarding)
        assert forwarding.states() == {"dead": 1}
        forwarding.record(variant, state=InstanceState.VARIANT, key="1.1~variant.dcm")
        drain_once(forwarding)
        assert forwarding.states() == {"delivered": 1, "dropped": 1}
    assert [stored.data_set for stored in scp.stored] == [variant.data_set]


def test_destination_that_takes_both_gets_one_of_them(forwarding: Forwarding, tls: TLS) -> None:
    first, variant = Made(sop="1.1", syntax=IMPLICIT), Made(sop="1.1", syntax=EXPLICIT)
    with PynetdicomRemote([(CT, [EXPLICIT, IMPLICIT])], tls) as scp:
        forwarding.add(scp.port)
        forwarding.record(first)
        forwarding.record(variant, state=InstanceState.VARIANT, key="1.1~variant.dcm")
        drain_once(forwarding)
        assert forwarding.states() == {"delivered": 1, "dropped": 1}
    assert [stored.data_set for stored in scp.stored] == [first.data_set]
