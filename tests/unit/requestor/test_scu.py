"""The sender against peers that behave, and against peers that do not."""

import contextlib
import itertools
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from ingest.config.model import TLS
from ingest.dicom import wire
from ingest.errors import AssociationError, StoreError
from ingest.requestor.store_scu import Remote, StoreSCU, Timeouts, plan_associations
from tests.support.peers import (
    AE_TITLE,
    CT,
    EXPLICIT,
    IMPLICIT,
    JPEG,
    MR,
    VERIFICATION,
    Conversation,
    PynetdicomRemote,
    ScriptedPeer,
    Stored,
    client_tls,
    make_tls,
    storescp,
)
from tests.support.ports import free_port

SHORT = Timeouts(connect_seconds=2.0, response_seconds=1.0)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TLS:
    return make_tls(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "data set"
    path.write_bytes(b"PREAMBLE" + os.urandom(300_000))
    return path


def remote(port: int, tls: TLS | None = None, calling_ae: str = "INGEST") -> Remote:
    return Remote("127.0.0.1", port, AE_TITLE, calling_ae, client_tls(tls) if tls else None)


def store(association: StoreSCU, path: Path | int, instance: str = "1.2.3", offset: int = 8) -> int:
    return association.store_instance(
        path, offset, None, sop_class=CT, sop_instance=instance, transfer_syntax=EXPLICIT
    ).status


def open_ct(port: int, tls: TLS | None = None, timeouts: Timeouts = SHORT, **options: object) -> StoreSCU:
    return StoreSCU.open(remote(port, tls), [(CT, [EXPLICIT])], timeouts=timeouts, **options)  # type: ignore[arg-type]


# -- what goes well


@pytest.mark.parametrize("max_pdu_length", [4096, 16384, 131072, 0])
@pytest.mark.parametrize("encrypted", [True, False])
def test_data_set_arrives_byte_for_byte_in_pdus_that_the_remote_takes(
    tls: TLS, file: Path, max_pdu_length: int, encrypted: bool
) -> None:
    security = tls if encrypted else None
    with (
        PynetdicomRemote([(CT, [EXPLICIT])], security, max_pdu_length=max_pdu_length) as scp,
        open_ct(scp.port, security) as association,
    ):
        assert association.peer_max_pdu_length == max_pdu_length
        assert store(association, file) == 0
    assert scp.stored == [Stored(CT, "1.2.3", EXPLICIT, file.read_bytes()[8:])]


def test_no_pdu_is_longer_than_the_remote_allows(file: Path) -> None:
    seen: list[tuple[int, int]] = []

    def script(peer: Conversation) -> None:
        peer.accept(max_pdu_length=4096)
        context, command = peer.read_command()
        seen.append(peer.read_data_set())
        peer.answer(context, command)
        peer.serve()

    with ScriptedPeer(script) as peer, open_ct(peer.port) as association:
        assert store(association, file) == 0
    assert seen == [(300_000, 4096)]


def test_one_association_carries_many_operations(tls: TLS, file: Path) -> None:
    offered = [(CT, [EXPLICIT]), (VERIFICATION, [IMPLICIT])]
    with PynetdicomRemote([(CT, [EXPLICIT])], tls) as scp:
        with StoreSCU.open(remote(scp.port, tls), offered, timeouts=SHORT) as association:
            for number in range(20):
                assert store(association, file, f"1.2.{number}") == 0
                assert association.send_echo().status == 0
        assert scp.associations == 1
    assert [stored.sop_instance for stored in scp.stored] == [f"1.2.{number}" for number in range(20)]


def test_contexts_are_accepted_and_refused_one_by_one(tls: TLS, file: Path) -> None:
    with PynetdicomRemote([(CT, [EXPLICIT])], tls) as scp:
        offered = [(CT, [EXPLICIT, JPEG]), (MR, [EXPLICIT])]
        with StoreSCU.open(remote(scp.port, tls), offered, timeouts=SHORT) as association:
            assert association.accepted_context_id(CT, EXPLICIT) == 1
            assert association.accepted_context_id(CT, JPEG) is None
            assert association.accepted_context_id(MR, EXPLICIT) is None
            with pytest.raises(LookupError, match=JPEG):
                association.store_instance(
                    file, 8, None, sop_class=CT, sop_instance="1.2", transfer_syntax=JPEG
                )
            assert store(association, file) == 0
            with pytest.raises(LookupError, match="Verification"):
                association.send_echo()


def test_a_transfer_syntax_that_was_not_offered_counts_as_refused() -> None:
    def script(peer: Conversation) -> None:
        request = wire.decode_associate_rq(peer.read_pdu()[1])
        results = (wire.ContextResult(1, 0, JPEG), wire.ContextResult(9, 0, EXPLICIT))
        peer.sock.sendall(
            wire.encode_associate_ac(
                wire.AssociateAccept(request.called_ae, request.calling_ae, contexts=results)
            )
        )
        peer.serve()

    with ScriptedPeer(script) as peer, open_ct(peer.port) as association:
        assert association.accepted_context_id(CT, EXPLICIT) is None


@pytest.mark.parametrize("status", [0x0000, 0xB000, 0xB007, 0xA700, 0xC123, 0x0111, 0x0122])
def test_every_status_is_an_answer_and_leaves_the_association_alive(
    tls: TLS, file: Path, status: int
) -> None:
    with (
        PynetdicomRemote([(CT, [EXPLICIT])], tls, answer=lambda _: status) as scp,
        open_ct(scp.port, tls) as association,
    ):
        assert store(association, file) == status
        assert association.is_established


def test_error_comment_is_passed_on(file: Path) -> None:
    def answer(_: Stored) -> Dataset:
        status = Dataset()
        status.Status = 0xC000
        status.ErrorComment = "no such study"
        return status

    with PynetdicomRemote([(CT, [EXPLICIT])], answer=answer) as scp, open_ct(scp.port) as association:
        response = association.store_instance(
            file, 8, None, sop_class=CT, sop_instance="1.2", transfer_syntax=EXPLICIT
        )
    assert (response.status, response.error_comment) == (0xC000, "no such study")


def test_part_of_a_descriptor_is_sent_and_the_descriptor_stays_open(file: Path) -> None:
    with (
        PynetdicomRemote([(CT, [EXPLICIT])]) as scp,
        open_ct(scp.port) as association,
        file.open("rb") as source,
    ):
        association.store_instance(
            source.fileno(), 100, 50, sop_class=CT, sop_instance="1.2", transfer_syntax=EXPLICIT
        )
        assert source.read(8) == b"PREAMBLE"
    assert scp.stored[0].data_set == file.read_bytes()[100:150]


def test_asynchronous_operations_are_asked_for_only_where_configured() -> None:
    asked: list[tuple[int, int] | None] = []

    def script(peer: Conversation) -> None:
        peer.accept()
        asked.append(wire.decode_associate_rq(peer.request).async_operations)
        peer.serve()

    with ScriptedPeer(script) as peer:
        open_ct(peer.port).release()
        open_ct(peer.port, async_operations=8).release()
    assert asked == [None, (8, 1)]


def test_plan_offers_each_context_once_and_at_most_128() -> None:
    contexts = [(CT, f"1.2.{number % 200}") for number in range(1000)]
    first, second = plan_associations(contexts)
    assert len(first) == 128
    assert len(second) == 72
    assert (*first, *second) == tuple(dict.fromkeys(contexts))
    assert plan_associations([]) == []


def test_128_contexts_fit_and_one_more_does_not() -> None:
    syntaxes = [f"1.2.840.10008.1.2.{number}" for number in range(129)]
    with ScriptedPeer(lambda peer: (peer.accept(), peer.serve())[1]) as peer:
        with StoreSCU.open(remote(peer.port), [(CT, syntaxes[:128])], timeouts=SHORT) as association:
            assert association.accepted_context_id(CT, syntaxes[127]) == 255
        with pytest.raises(ValueError, match="129"):
            StoreSCU.open(remote(peer.port), [(CT, syntaxes)])
        with pytest.raises(ValueError, match="0 presentation"):
            StoreSCU.open(remote(peer.port), [])


def test_answers_that_come_in_pieces_cost_no_delayed_acknowledgement(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.write_bytes(bytes(100))

    def script(peer: Conversation) -> None:
        peer.accept()
        peer.sock = InPieces(peer.sock)  # type: ignore[assignment]
        peer.serve()

    with ScriptedPeer(script) as peer, open_ct(peer.port) as association:
        started = time.monotonic()
        for _ in range(25):
            assert store(association, small) == 0
        assert time.monotonic() - started < 0.6  # 25 times 40 ms otherwise


class InPieces:
    """A socket that writes every PDU's header by itself."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.recv = sock.recv

    def sendall(self, data: bytes) -> None:
        self._sock.send(data[:6])
        self._sock.send(data[6:])


# -- what the remote does wrong


def test_refused_connection_is_a_transient_error() -> None:
    with pytest.raises(AssociationError, match="Connection refused") as caught:
        open_ct(free_port())
    assert not caught.value.permanent


def test_unknown_host_is_named() -> None:
    with pytest.raises(AssociationError, match=r"no-such-host\.invalid"):
        StoreSCU.open(Remote("no-such-host.invalid", 104, "A", "B"), [(CT, [EXPLICIT])])


@pytest.mark.parametrize(
    ("reject", "permanent", "words"),
    [
        (wire.AssociateReject(1, 1, 7), True, "called AE title not recognized"),
        (wire.AssociateReject(1, 1, 3), True, "calling AE title not recognized"),
        (wire.AssociateReject(2, 3, 2), False, "local limit exceeded"),
    ],
)
def test_rejection_says_why_and_whether_to_try_again(
    reject: wire.AssociateReject, permanent: bool, words: str
) -> None:
    def script(peer: Conversation) -> None:
        peer.read_pdu()
        peer.sock.sendall(wire.encode_associate_rj(reject))

    with ScriptedPeer(script) as peer, pytest.raises(AssociationError, match=words) as caught:
        open_ct(peer.port)
    assert caught.value.permanent is permanent


@pytest.mark.parametrize("encrypted", [True, False])
def test_remote_that_accepts_the_connection_and_says_nothing_costs_the_deadline(
    tls: TLS, encrypted: bool
) -> None:
    over = threading.Event()
    with ScriptedPeer(lambda _: over.wait(20) and None, tls if encrypted else None) as peer:
        started = time.monotonic()
        with pytest.raises(AssociationError, match="gives no answer"):
            open_ct(peer.port, tls if encrypted else None, Timeouts(5.0, 0.3))
        assert time.monotonic() - started < 3
        over.set()


def test_tls_to_a_port_that_never_shakes_hands_costs_the_deadline(tls: TLS) -> None:
    over = threading.Event()
    with ScriptedPeer(lambda _: over.wait(20) and None) as peer:
        with pytest.raises(AssociationError, match="TLS handshake"):
            open_ct(peer.port, tls, Timeouts(0.3, 5.0))
        over.set()


def test_tls_to_a_plain_port_names_the_mismatch(tls: TLS) -> None:
    with PynetdicomRemote([(CT, [EXPLICIT])]) as scp, pytest.raises(AssociationError, match="plain"):
        open_ct(scp.port, tls)


def test_plain_to_a_tls_port_names_the_mismatch(tls: TLS) -> None:
    with PynetdicomRemote([(CT, [EXPLICIT])], tls) as scp, pytest.raises(AssociationError, match="TLS"):
        open_ct(scp.port)


def test_plain_to_a_port_that_answers_with_a_tls_alert_names_the_mismatch() -> None:
    def script(peer: Conversation) -> None:
        peer.read_pdu()
        peer.sock.sendall(b"\x15\x03\x01\x00\x02\x02\x46")  # RFC 8446 6: fatal, protocol_version

    with ScriptedPeer(script) as peer, pytest.raises(AssociationError, match="speaks TLS"):
        open_ct(peer.port)


def test_untrusted_remote_is_refused_with_the_verify_message(tls: TLS, tmp_path: Path) -> None:
    stranger = make_tls(tmp_path, "stranger")
    with (
        PynetdicomRemote([(CT, [EXPLICIT])], stranger) as scp,
        pytest.raises(AssociationError, match=r"verify code 18: self-signed certificate"),
    ):
        open_ct(scp.port, tls)


def test_trailing_dot_of_a_host_is_no_part_of_the_name_to_check(tls: TLS) -> None:
    context = client_tls(tls.model_copy(update={"check_server_name": True}))
    with PynetdicomRemote([(CT, [EXPLICIT])], tls) as scp:
        called = Remote("127.0.0.1", scp.port, AE_TITLE, "INGEST", context, server_hostname="localhost.")
        with StoreSCU.open(called, [(CT, [EXPLICIT])], timeouts=SHORT):
            pass


def test_alert_of_a_remote_that_does_not_trust_us_is_named(tls: TLS, tmp_path: Path) -> None:
    stranger = make_tls(tmp_path, "stranger")
    both = stranger.model_copy(update={"trusted": (*stranger.trusted, *tls.trusted)})
    with (
        PynetdicomRemote([(CT, [EXPLICIT])], tls) as scp,
        pytest.raises(AssociationError, match=r"TLS alert|does it trust our certificate"),
    ):
        open_ct(scp.port, both)


@pytest.mark.parametrize("source", [0, 2])
def test_abort_instead_of_an_answer_ends_the_association(file: Path, source: int) -> None:
    def script(peer: Conversation) -> None:
        peer.accept()
        peer.read_command()
        peer.read_data_set()
        peer.sock.sendall(wire.encode_abort(source, 6))

    with ScriptedPeer(script) as peer:
        association = open_ct(peer.port)
        with pytest.raises(AssociationError, match="aborted the association"):
            store(association, file)
        assert not association.is_established
        with pytest.raises(AssociationError, match="has ended"):
            store(association, file)


def test_abort_in_the_middle_of_a_data_set_is_noticed_at_once(tls: TLS, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(bytes(64 << 20))
    over = threading.Event()

    def script(peer: Conversation) -> None:
        peer.accept()
        peer.read_command()
        peer.read_pdu()
        peer.sock.sendall(wire.encode_abort(2, 6))
        over.wait(20)  # and reads nothing more, so that our send fills up

    with ScriptedPeer(script, tls) as peer:
        association = open_ct(peer.port, tls, Timeouts(5, 30))
        started = time.monotonic()
        with pytest.raises(AssociationError, match="invalid PDU parameter value"):
            store(association, large)
        assert time.monotonic() - started < 5
        over.set()


def test_answer_before_the_end_of_the_data_set_counts_when_the_rest_is_taken(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(bytes(4 << 20))

    def script(peer: Conversation) -> None:
        peer.accept()
        context, command = peer.read_command()
        peer.answer(context, command, 0xA700)
        peer.read_data_set()
        peer.serve()

    with ScriptedPeer(script) as peer, open_ct(peer.port) as association:
        assert store(association, large) == 0xA700
        assert association.is_established
        assert store(association, large) == 0


@pytest.mark.parametrize("encrypted", [True, False])
def test_success_before_the_end_is_seen_in_time_where_the_kernel_could_take_all(
    tmp_path: Path, tls: TLS, encrypted: bool
) -> None:
    """A remote that answers the command and reads on: both kernels together have room for the data set."""
    image = tmp_path / "image"
    image.write_bytes(bytes(1_000_000))
    security = tls if encrypted else None

    def script(peer: Conversation) -> None:
        with contextlib.suppress(EOFError, OSError, AssertionError):
            peer.accept()
            context, command = peer.read_command()
            peer.answer(context, command)
            peer.read_data_set()
            peer.read_pdu()

    with ScriptedPeer(script, security) as peer:
        for _ in range(15):
            with pytest.raises(AssociationError, match="before the data set was sent"):
                store(open_ct(peer.port, security), image)


def test_answer_before_the_end_counts_although_the_rest_is_never_read(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(bytes(64 << 20))
    over = threading.Event()

    def script(peer: Conversation) -> None:
        peer.accept()
        context, command = peer.read_command()
        peer.answer(context, command, 0xA700)
        over.wait(20)

    with ScriptedPeer(script) as peer:
        association = open_ct(peer.port)
        assert store(association, large) == 0xA700
        assert not association.is_established
        over.set()


def test_remote_that_stops_reading_costs_the_deadline(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(bytes(64 << 20))
    over = threading.Event()
    with ScriptedPeer(lambda peer: (peer.accept(), over.wait(20))[0]) as peer:
        association = open_ct(peer.port)
        with pytest.raises(AssociationError, match="takes no data"):
            store(association, large)
        over.set()


def test_slow_remote_is_no_stalled_remote(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(bytes(24 << 20))

    def script(peer: Conversation) -> None:
        peer.accept(131072)
        context, command = peer.read_command()
        left = 24 << 20
        while left > 0:
            left -= len(peer.read_pdu()[1]) - 12
            time.sleep(0.01)
        peer.answer(context, command)
        peer.serve()

    with (
        ScriptedPeer(script, receive_buffer=65536) as peer,
        open_ct(peer.port, timeouts=Timeouts(2, 1)) as association,
    ):
        started = time.monotonic()
        assert store(association, large, offset=0) == 0
        assert time.monotonic() - started > 1


def test_connection_lost_in_the_middle_is_an_error(tls: TLS, file: Path) -> None:
    def script(peer: Conversation) -> None:
        peer.accept()
        peer.read_command()

    with ScriptedPeer(script, tls) as peer, pytest.raises(AssociationError):
        store(open_ct(peer.port, tls), file)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"\x09\x00\x00\x00\x00\x04\x00\x00\x00\x00", 1),  # no such PDU type
        (b"\x01\x00\x00\x00\x00\x04\x00\x00\x00\x00", 2),  # A-ASSOCIATE-RQ, here
        (b"\x04\x00\x00\x00\x00\x06\x00\x00\x00\x02\x01\x02", 2),  # a data set that nobody asked for
    ],
)
def test_broken_protocol_is_answered_with_an_abort(file: Path, said: bytes, reason: int) -> None:
    heard: list[bytes] = []

    def script(peer: Conversation) -> None:
        peer.accept()
        peer.read_command()
        peer.read_data_set()
        peer.sock.sendall(said)
        heard.append(peer.read_pdu()[1])

    with ScriptedPeer(script) as peer, pytest.raises(AssociationError, match="broke the protocol"):
        store(open_ct(peer.port), file)
    assert heard == [wire.encode_abort(2, reason)]


def test_answer_to_another_message_ends_the_association(file: Path) -> None:
    def script(peer: Conversation) -> None:
        peer.accept()
        context, command = peer.read_command()
        peer.read_data_set()
        peer.answer(context, command | {"MessageID": 77})

    with ScriptedPeer(script) as peer, pytest.raises(AssociationError, match="message 77, but 1"):
        store(open_ct(peer.port), file)


def test_remote_that_releases_by_itself_gets_its_answer(file: Path) -> None:
    heard: list[bytes] = []

    def script(peer: Conversation) -> None:
        peer.accept()
        peer.sock.sendall(wire.RELEASE_RQ)
        while (pdu := peer.read_pdu())[0] == 4:
            pass
        heard.append(pdu[1])

    with ScriptedPeer(script) as peer, pytest.raises(AssociationError, match="released"):
        store(open_ct(peer.port), file)
    assert heard == [wire.RELEASE_RP]


def test_a_release_in_the_midst_of_a_pdu_is_answered_after_it(tmp_path: Path) -> None:
    heard: list[int] = []
    image = tmp_path / "image"
    image.write_bytes(bytes(8 << 20))

    def script(peer: Conversation) -> None:
        peer.accept(131072)
        peer.read_pdu()
        time.sleep(0.3)  # the kernel's buffers are full by now, and the sender waits
        peer.sock.sendall(wire.RELEASE_RQ)
        time.sleep(0.3)
        with contextlib.suppress(EOFError):
            while True:
                heard.append(peer.read_pdu()[0])

    with (
        ScriptedPeer(script, receive_buffer=65536) as peer,
        pytest.raises(AssociationError, match="released"),
    ):
        store(open_ct(peer.port), image)
    assert heard
    assert set(heard[:-1]) <= {4}
    assert heard[-1] == 6


def test_release_collision_ends_in_order() -> None:
    heard: list[bytes] = []

    def script(peer: Conversation) -> None:
        peer.accept()
        heard.append(peer.read_pdu()[1])
        peer.sock.sendall(wire.RELEASE_RQ)  # PS3.8 7.2.2: both asked
        heard.append(peer.read_pdu()[1])
        peer.sock.sendall(wire.RELEASE_RP)

    with ScriptedPeer(script) as peer:
        open_ct(peer.port).release()
    assert heard == [wire.RELEASE_RQ, wire.RELEASE_RP]


def test_exception_in_the_block_aborts() -> None:
    heard: list[bytes] = []

    def script(peer: Conversation) -> None:
        peer.accept()
        heard.append(peer.read_pdu()[1])

    with ScriptedPeer(script) as peer, pytest.raises(RuntimeError), open_ct(peer.port):
        raise RuntimeError
    assert heard == [wire.encode_abort(0)]


# -- what our side does wrong


def test_missing_file_keeps_the_association(file: Path) -> None:
    with PynetdicomRemote([(CT, [EXPLICIT])]) as scp, open_ct(scp.port) as association:
        with pytest.raises(StoreError, match="cannot be opened"):
            store(association, file.with_name("gone"))
        assert store(association, file) == 0


def test_file_shorter_than_said_is_noticed_before_anything_is_sent(file: Path) -> None:
    with PynetdicomRemote([(CT, [EXPLICIT])]) as scp, open_ct(scp.port) as association:
        with pytest.raises(StoreError, match="cannot be read"):
            association.store_instance(
                file, 299_999, 20_000, sop_class=CT, sop_instance="1.2", transfer_syntax=EXPLICIT
            )
        assert store(association, file) == 0


def test_file_that_ends_half_way_aborts(file: Path) -> None:
    with PynetdicomRemote([(CT, [EXPLICIT])]) as scp:
        association = open_ct(scp.port)
        with pytest.raises(StoreError, match="cannot be read"):
            association.store_instance(
                file, 0, 900_000, sop_class=CT, sop_instance="1.2", transfer_syntax=EXPLICIT
            )
        assert not association.is_established
    assert scp.stored == []


def test_owner_gets_its_turn_while_the_remote_thinks_and_may_end_it(file: Path) -> None:
    turns: list[float] = []
    over = threading.Event()

    def script(peer: Conversation) -> None:
        peer.accept()
        peer.read_command()
        peer.read_data_set()
        over.wait(20)

    def tick() -> None:
        turns.append(time.monotonic())
        if over.is_set():
            raise InterruptedError

    with ScriptedPeer(script) as peer:
        association = open_ct(peer.port, timeouts=Timeouts(5, 30), on_tick=tick)
        timer = threading.Timer(1.2, over.set)
        timer.start()
        with pytest.raises(InterruptedError):
            store(association, file)
        timer.join()
    assert not association.is_established
    assert all(later - earlier < 0.8 for earlier, later in itertools.pairwise(turns))


def test_large_instance_takes_no_memory(tmp_path: Path, tls: TLS) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(512 << 20)

    def script(peer: Conversation) -> None:
        peer.accept(131072)
        context, command = peer.read_command()
        window = memoryview(bytearray(1 << 20))
        left = (512 << 20) + ((512 << 20) // 131060 + 1) * 12
        while left > 0:
            left -= peer.sock.recv_into(window[:left] if left < len(window) else window)
        peer.answer(context, command)
        peer.serve()

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    with ScriptedPeer(script, tls) as peer, open_ct(peer.port, tls, Timeouts(5, 10)) as association:
        before = resident()
        assert store(association, large, offset=0) == 0
        assert resident() - before < 16 << 20


# -- programs that are not ours


@pytest.fixture(params=["plain", "tls"])
def dcmtk(request: pytest.FixtureRequest, tmp_path: Path, tls: TLS) -> Iterator[tuple[int, TLS | None, Path]]:
    security = tls if request.param == "tls" else None
    with storescp(tmp_path / "received", security, "-pdu", "4096") as port:
        yield port, security, tmp_path / "received"


@pytest.mark.interop
def test_dcmtk_gets_every_byte(dcmtk: tuple[int, TLS | None, Path], tmp_path: Path) -> None:
    port, security, folder = dcmtk
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CT, "1.2.3.4"
    dataset.PixelData = os.urandom(200_000)
    dataset["PixelData"].VR = "OB"
    source = tmp_path / "source"
    dataset.save_as(source, implicit_vr=False, little_endian=True, enforce_file_format=False)
    with open_ct(port, security, Timeouts(10, 10)) as association:
        assert store(association, source, "1.2.3.4", offset=0) == 0
    (received,) = folder.iterdir()
    assert received.read_bytes().endswith(source.read_bytes())
