"""Drains with statuses, files, disks and remotes that fail: which delivery is retried, and which is dead."""

import contextlib
import os
import time

import pytest

from ingest.clock import unix_ms
from ingest.config.model import TLS
from ingest.dicom import wire
from ingest.queue.wakeups import hold_key
from ingest.workers.forward import leases
from ingest.workers.store.filesystem import FileStore
from tests.support.drains import drain_once, open_worker, wait_until_due
from tests.support.forwarding import Forwarding
from tests.support.instances import EXPLICIT, IMPLICIT, Made
from tests.support.nodes import eventually
from tests.support.peers import (
    CT,
    Conversation,
    PynetdicomRemote,
    ScriptedPeer,
    Stored,
)
from tests.support.ports import free_port

CONTEXTS = [(CT, [EXPLICIT])]


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
        wait_until_due(forwarding, sent)
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
            wait_until_due(forwarding, [one.sop])
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
        wait_until_due(forwarding, [])
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
            wait_until_due(forwarding, [sent[1].sop])
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
        wait_until_due(forwarding, [])
    assert forwarding.states() == {"waiting": 3}
    circuit = forwarding.ledger.circuits.read_circuit("pacs")
    assert (circuit.state, circuit.failures) == ("open", 5)
    assert "refused" in circuit.last_error


def test_destination_that_comes_back_gets_everything(forwarding: Forwarding, tls: TLS) -> None:
    port = free_port()
    forwarding.add(port, retry_first_seconds=0.05)
    sent = forwarding.many(3)
    with open_worker(forwarding) as worker:
        worker.drain_destination("pacs")
        assert forwarding.states() == {"waiting": 3}
        wait_until_due(forwarding, [])
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
        with open_worker(plain) as worker:

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
