"""One drain of one destination, with a real ledger, a real Valkey and real remotes."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ingest.clock import unix_ms
from ingest.config.model import TLS
from ingest.dicom import wire
from ingest.ledger import InstanceState
from ingest.queue.wakeups import drain_key, hold_key
from ingest.requestor.remotes import build_remotes
from ingest.workers.forward import drain, leases
from ingest.workers.forward.destination_slots import slot_key
from ingest.workers.forward.worker import ForwardWorker
from ingest.workers.store.filesystem import FileStore
from tests.support.forwarding import Forwarding
from tests.support.instances import EXPLICIT, IMPLICIT, Made
from tests.support.nodes import eventually
from tests.support.peers import (
    CT,
    Conversation,
    PynetdicomRemote,
    ScriptedPeer,
    Stored,
    make_tls,
)
from tests.support.ports import free_port
from tests.support.servers import Valkey

CONTEXTS = [(CT, [EXPLICIT])]


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TLS:
    return make_tls(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def forwarding(tmp_path: Path, redis_server: Valkey, tls: TLS) -> Iterator[Forwarding]:
    made = Forwarding(tmp_path / "node", redis_server, tls)
    yield made
    made.ledger.close()


@pytest.fixture
def plain(tmp_path: Path, redis_server: Valkey) -> Iterator[Forwarding]:
    made = Forwarding(tmp_path / "node", redis_server)
    yield made
    made.ledger.close()


@contextlib.contextmanager
def forwarder(forwarding: Forwarding, stop: threading.Event | None = None) -> Iterator[ForwardWorker]:
    config = forwarding.config
    made = ForwardWorker(config, stop or threading.Event(), build_remotes(config), "forward-test")
    try:
        yield made
    finally:
        made.close()


def drain_once(forwarding: Forwarding, name: str = "pacs") -> None:
    with forwarder(forwarding) as worker:
        worker.drain_destination(name)


def due_now(forwarding: Forwarding, sops: list[str], name: str = "pacs") -> None:
    """Wait until retries are due, and until nothing holds the destination off."""
    with contextlib.closing(forwarding.server.client()) as client:
        eventually(lambda: not client.exists(hold_key(name)), 10, "the hold ends")
    eventually(lambda: all(forwarding.row(sop, name).next_at <= unix_ms() for sop in sops), 10, "due")


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


def test_each_status_is_kept_on_its_row_and_stops_no_other(forwarding: Forwarding, tls: TLS) -> None:
    statuses = [0x0000, 0xB00A, 0x0107, 0x0111, 0xA700, 0x0110, 0xC211, 0xA900, 0x0122, 0x0000]

    def answer(stored: Stored) -> int:
        return statuses[int(stored.sop_instance.rpartition(".")[2]) - 1]

    with PynetdicomRemote(CONTEXTS, tls, answer=answer) as scp:
        forwarding.add(scp.port)
        sent = forwarding.many(len(statuses))
        drain_once(forwarding)
        assert scp.associations == 2  # a new one for what was answered 0122H
    rows = [forwarding.row(one.sop) for one in sent]
    assert [row.last_status for row in rows] == statuses
    assert [row.state for row in rows] == [*["delivered"] * 4, *["retry"] * 3, *["dead"] * 2, "delivered"]
    assert [rows[n].last_error for n in (0, 1, 7)] == [None, "answered B00AH", "answered A900H"]
    assert rows[4].next_at > 0


def test_archive_that_cannot_understand_for_a_while_gets_everything(forwarding: Forwarding, tls: TLS) -> None:
    """Each instance is answered with C211H once, as pynetdicom does when its handler raises."""
    asked: set[str] = set()

    def answer(stored: Stored) -> int:
        first = stored.sop_instance not in asked
        asked.add(stored.sop_instance)
        return 0xC211 if first else 0x0000

    with PynetdicomRemote(CONTEXTS, tls, answer=answer) as scp:
        forwarding.add(scp.port, retry_first_seconds=0.05)
        sent = [one.sop for one in forwarding.many(5)]
        drain_once(forwarding)
        due_now(forwarding, sent)
        drain_once(forwarding)
    assert forwarding.states() == {"delivered": 5}
    assert {forwarding.row(sop).attempts for sop in sent} == {2}


def test_transient_status_is_tried_again_until_dead(forwarding: Forwarding, tls: TLS) -> None:
    with PynetdicomRemote(CONTEXTS, tls, answer=lambda _: 0xA700) as scp:
        # Long enough that the retry is not due within the same drain on a busy machine.
        forwarding.add(scp.port, max_attempts=3, retry_first_seconds=0.5, linger_seconds=0)
        (one,) = forwarding.many(1)
        for attempt in (1, 2):
            drain_once(forwarding)
            assert (forwarding.row(one.sop).state, forwarding.row(one.sop).attempts) == ("retry", attempt)
            due_now(forwarding, [one.sop])
        drain_once(forwarding)
    row = forwarding.row(one.sop)
    assert (row.state, row.attempts, row.last_status) == ("dead", 3, 0xA700)


def test_refused_context_kills_only_what_needs_it(forwarding: Forwarding, tls: TLS) -> None:
    with PynetdicomRemote(CONTEXTS, tls) as scp:
        forwarding.add(scp.port)
        forwarding.record(Made(sop="1.1"), Made(sop="1.2", syntax=IMPLICIT), Made(sop="1.3"))
        drain_once(forwarding)
    assert [forwarding.row(sop).state for sop in ("1.1", "1.2", "1.3")] == ["delivered", "dead", "delivered"]
    assert IMPLICIT in str(forwarding.row("1.2").last_error)


def test_store_that_is_not_mounted_kills_no_delivery(forwarding: Forwarding, tls: TLS) -> None:
    with PynetdicomRemote(CONTEXTS, tls) as scp:
        forwarding.add(scp.port)
        forwarding.many(3)
        root = forwarding.config.store_root
        elsewhere = root.rename(root.with_name("elsewhere"))
        root.mkdir()  # a mount point without its file system
        drain_once(forwarding)
        assert forwarding.states() == {"waiting": 3}
        root.rmdir()
        elsewhere.rename(root)
        due_now(forwarding, [])
        drain_once(forwarding)
    assert forwarding.states() == {"delivered": 3}


def test_disk_that_cannot_be_read_blames_no_delivery_and_no_remote(
    forwarding: Forwarding, tls: TLS, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FileStore.open_file

    def failing(self: FileStore, key: str) -> int:
        # Every read of this descriptor is an error of the system: EBADF.
        return os.open(self.root / key, os.O_WRONLY) if key.endswith(".2.dcm") else real(self, key)

    with PynetdicomRemote(CONTEXTS, tls) as scp:
        forwarding.add(scp.port, max_attempts=2, async_operations=4)
        sent = forwarding.many(3)
        monkeypatch.setattr(FileStore, "open_file", failing)
        for _ in range(4):
            drain_once(forwarding)
            due_now(forwarding, [sent[1].sop])
        row = forwarding.row(sent[1].sop)
        assert (row.state, row.attempts) == ("retry", 0)
        assert "Bad file descriptor" in str(row.last_error)
        # One bad file holds up no other.
        assert forwarding.states() == {"delivered": 2, "retry": 1}
        assert forwarding.ledger.circuits.read_circuit("pacs").failures == 0
        monkeypatch.setattr(FileStore, "open_file", real)
        drain_once(forwarding)
    assert forwarding.states() == {"delivered": 3}


def test_missing_and_foreign_files_kill_only_their_own_delivery(forwarding: Forwarding, tls: TLS) -> None:
    with PynetdicomRemote(CONTEXTS, tls) as scp:
        forwarding.add(scp.port)
        gone, grown, sound = forwarding.many(3)
        (forwarding.config.store_root / f"{gone.sop}.dcm").unlink()
        with (forwarding.config.store_root / f"{grown.sop}.dcm").open("ab") as file:
            file.write(b"more")
        drain_once(forwarding)
    assert [stored.sop_instance for stored in scp.stored] == [sound.sop]
    assert "gone from the store" in str(forwarding.row(gone.sop).last_error)
    assert "not the one" in str(forwarding.row(grown.sop).last_error)
    assert forwarding.states() == {"dead": 2, "delivered": 1}


def test_dead_remote_costs_one_connection_and_no_attempt(forwarding: Forwarding) -> None:
    connections = []

    def script(peer: Conversation) -> None:
        connections.append(peer)
        peer.read(1)

    with ScriptedPeer(script) as peer:  # does not speak TLS
        forwarding.add(peer.port, retry_first_seconds=60, connect_seconds=0.5)
        forwarding.many(100)
        drain_once(forwarding)
        drain_once(forwarding)
        assert len(connections) == 1
    assert forwarding.states() == {"waiting": 100}
    assert forwarding.row("1.2.3.1").attempts == 0
    circuit = forwarding.ledger.circuits.read_circuit("pacs")
    assert "TLS handshake" in circuit.last_error
    assert circuit.probe_at > unix_ms() + 20_000


def test_remote_that_cannot_be_reached_makes_nothing_dead(forwarding: Forwarding) -> None:
    forwarding.add(free_port(), max_attempts=1, retry_first_seconds=0.01, retry_max_seconds=0.01)
    forwarding.many(3)
    for _ in range(5):
        drain_once(forwarding)
        due_now(forwarding, [])
    assert forwarding.states() == {"waiting": 3}
    circuit = forwarding.ledger.circuits.read_circuit("pacs")
    assert (circuit.state, circuit.failures) == ("open", 5)
    assert "refused" in circuit.last_error


def test_destination_that_comes_back_gets_everything(forwarding: Forwarding, tls: TLS) -> None:
    port = free_port()
    forwarding.add(port, retry_first_seconds=0.05)
    sent = forwarding.many(3)
    with forwarder(forwarding) as worker:
        worker.drain_destination("pacs")
        assert forwarding.states() == {"waiting": 3}
        due_now(forwarding, [])
        with PynetdicomRemote(CONTEXTS, tls, port=port):
            worker.drain_destination("pacs")
    assert forwarding.states() == {"delivered": 3}
    assert forwarding.row(sent[0].sop).attempts == 1
    assert forwarding.ledger.circuits.read_circuit("pacs").failures == 0


def test_permanent_rejection_holds_all_rows_and_counts_no_attempt(plain: Forwarding) -> None:
    def script(peer: Conversation) -> None:
        peer.read_pdu()
        peer.sock.sendall(wire.encode_associate_rj(wire.AssociateReject(1, 1, 7)))

    with ScriptedPeer(script) as peer, contextlib.closing(plain.server.client()) as client:
        plain.add(peer.port, max_attempts=1)
        plain.many(5)
        drain_once(plain)
        assert plain.states() == {"waiting": 5}
        assert plain.row("1.2.3.1").attempts == 0
        assert client.pttl(hold_key("pacs")) > 100_000
        drain_once(plain)
        assert peer.connections == 1


def test_instance_that_makes_the_remote_abort_is_tried_later_and_the_rest_goes_on(plain: Forwarding) -> None:
    stored: list[str] = []

    def script(peer: Conversation) -> None:
        peer.accept()
        while True:
            context, command = peer.read_command()
            peer.read_data_set()
            uid = command["AffectedSOPInstanceUID"]
            if uid == "1.2.3.2":
                peer.sock.sendall(wire.encode_abort(2, 0))
                return
            stored.append(uid)
            peer.answer(context, command)

    with ScriptedPeer(script) as peer:
        plain.add(peer.port, retry_first_seconds=60)
        plain.many(5)
        drain_once(plain)
        assert peer.connections == 2
    assert stored == ["1.2.3.1", "1.2.3.3", "1.2.3.4", "1.2.3.5"]
    row = plain.row("1.2.3.2")
    assert (row.state, row.attempts) == ("retry", 1)
    assert "aborted" in str(row.last_error)


def test_remote_that_aborts_every_time_is_left_alone_after_three_associations_and_an_echo(
    plain: Forwarding,
) -> None:
    def script(peer: Conversation) -> None:
        peer.accept()
        peer.read_command()
        peer.sock.sendall(wire.encode_abort(2, 0))

    with ScriptedPeer(script) as peer:
        plain.add(peer.port, retry_first_seconds=60)
        plain.many(20)
        drain_once(plain)
        drain_once(plain)
        assert peer.connections == 4
    assert plain.states() == {"retry": 3, "waiting": 17}
    assert plain.ledger.circuits.read_circuit("pacs").state == "open"
    assert plain.row("1.2.3.9").attempts == 0


def test_suspect_that_has_waited_for_long_comes_in_spite_of_a_backlog(
    plain: Forwarding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "SUSPECT_CHECK_SECONDS", 0.0)
    plain.many(200)
    due = unix_ms() - leases.OVERDUE_MS
    with plain.ledger.database.begin_write() as connection:
        connection.exec_driver_sql(
            "UPDATE deliveries SET state = 'retry', attempts = 1, breaks = 1, suspect_since = 1, next_at = ? "
            "WHERE id = 7",
            (due + 5_000,),
        )
    ours = leases.Leases(plain.ledger, "pacs", "me", 1)
    assert "1.2.3.7" not in {row.sop_instance_uid for row in ours.lease_due_deliveries(careful=False)}
    ours.release_untried()
    with plain.ledger.database.begin_write() as connection:
        connection.exec_driver_sql("UPDATE deliveries SET next_at = ? WHERE id = 7", (due,))
    assert "1.2.3.7" not in {row.sop_instance_uid for row in ours.lease_due_deliveries(careful=True)}
    ours.release_untried()
    assert [row.sop_instance_uid for row in ours.lease_due_deliveries(careful=False)] == ["1.2.3.7"]
    ours.release_untried()
    assert plain.row("1.2.3.7").state == "retry"


def test_association_stays_open_for_what_follows(forwarding: Forwarding, tls: TLS) -> None:
    with PynetdicomRemote(CONTEXTS, tls) as scp, forwarder(forwarding) as worker:
        forwarding.add(scp.port, linger_seconds=5)
        stop = threading.Event()
        with forwarder(forwarding, stop) as worker:
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
        with forwarder(plain) as worker:
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
        with forwarder(plain) as worker:
            plain.record(Made(sop="1.1"))
            worker.drain_destination("pacs")
            plain.record(Made(sop="1.2", syntax=IMPLICIT))
            worker.drain_destination("pacs")
            plain.record(Made(sop="1.3"))
            worker.drain_destination("pacs")
    both = [(CT, (IMPLICIT,)), (CT, (EXPLICIT,))]
    assert offered == [[(CT, (EXPLICIT,))], both, both[::-1]]
    assert plain.states() == {"delivered": 3}


@pytest.mark.parametrize("end", ["abort", "reject", "close", "crash"])
def test_proposal_that_ends_the_association_holds_up_nothing_else(plain: Forwarding, end: str) -> None:
    starts_again_at = [0.0]

    def script(peer: Conversation) -> None:
        def dislike(sop_class: str, syntax: str) -> bool:
            if (sop_class, syntax) != (CT, IMPLICIT):
                return False
            if end == "abort":
                peer.sock.sendall(wire.encode_abort(2, 0))
            if end == "reject":
                peer.sock.sendall(wire.encode_associate_rj(wire.AssociateReject(1, 1, 1)))
            if end == "crash":
                starts_again_at[0] = time.monotonic() + 0.3
            raise EOFError

        if time.monotonic() >= starts_again_at[0]:
            peer.accept(refuse=dislike)
            peer.serve()

    with ScriptedPeer(script) as peer:
        plain.add(peer.port, retry_max_seconds=0.5, linger_seconds=0.0)
        plain.record(Made(sop="1.1", syntax=IMPLICIT), *(Made(sop=f"1.2.{n}") for n in range(5)))
        with forwarder(plain) as worker:

            def sound_arrive() -> bool:
                worker.drain_destination("pacs")
                return plain.states().get("delivered") == 5

            eventually(sound_arrive, 30, "the sound ones arrive")
            eventually(
                lambda: worker.drain_destination("pacs") or plain.row("1.1").breaks >= 2,
                30,
                "it was tried again, alone",
            )
    assert plain.row("1.1").state == "retry"
    assert "at the proposal of" in str(plain.row("1.1").last_error)
    assert plain.ledger.circuits.read_circuit("pacs").state == "closed"


@pytest.mark.parametrize("associations", [1, 2])
def test_no_more_associations_than_the_destination_takes(
    forwarding: Forwarding, tls: TLS, associations: int
) -> None:
    with PynetdicomRemote(CONTEXTS, tls) as scp:
        forwarding.add(scp.port, associations=associations)
        forwarding.many(400, series=8)
        with contextlib.ExitStack() as stack:
            workers = [stack.enter_context(forwarder(forwarding)) for _ in range(4)]
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
        with forwarder(plain, stop) as worker:
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
        with forwarder(plain) as worker:
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
