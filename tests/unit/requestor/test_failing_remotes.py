"""The requestor and remotes that refuse, stall, abort, lie or break the protocol."""

import contextlib
import threading
import time
from pathlib import Path

import pytest

from ingest.config.model import TLS
from ingest.dicom import wire
from ingest.errors import AssociationError
from ingest.requestor.store_scu import Remote, StoreSCU, Timeouts
from tests.support.associations import SHORT, open_ct, store_file
from tests.support.peers import (
    AE_TITLE,
    CT,
    EXPLICIT,
    Conversation,
    PynetdicomRemote,
    ScriptedPeer,
    client_tls,
    make_tls,
)
from tests.support.ports import free_port


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
            store_file(association, file)
        assert not association.is_established
        with pytest.raises(AssociationError, match="has ended"):
            store_file(association, file)


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
            store_file(association, large)
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
        assert store_file(association, large) == 0xA700
        assert association.is_established
        assert store_file(association, large) == 0


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
                store_file(open_ct(peer.port, security), image)


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
        assert store_file(association, large) == 0xA700
        assert not association.is_established
        over.set()


def test_remote_that_stops_reading_costs_the_deadline(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(bytes(64 << 20))
    over = threading.Event()
    with ScriptedPeer(lambda peer: (peer.accept(), over.wait(20))[0]) as peer:
        association = open_ct(peer.port)
        with pytest.raises(AssociationError, match="takes no data"):
            store_file(association, large)
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
        assert store_file(association, large, offset=0) == 0
        assert time.monotonic() - started > 1


def test_connection_lost_in_the_middle_is_an_error(tls: TLS, file: Path) -> None:
    def script(peer: Conversation) -> None:
        peer.accept()
        peer.read_command()

    with ScriptedPeer(script, tls) as peer, pytest.raises(AssociationError):
        store_file(open_ct(peer.port, tls), file)


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
        store_file(open_ct(peer.port), file)
    assert heard == [wire.encode_abort(2, reason)]


def test_answer_to_another_message_ends_the_association(file: Path) -> None:
    def script(peer: Conversation) -> None:
        peer.accept()
        context, command = peer.read_command()
        peer.read_data_set()
        peer.answer(context, command | {"MessageID": 77})

    with ScriptedPeer(script) as peer, pytest.raises(AssociationError, match="message 77, but 1"):
        store_file(open_ct(peer.port), file)


def test_remote_that_releases_by_itself_gets_its_answer(file: Path) -> None:
    heard: list[bytes] = []

    def script(peer: Conversation) -> None:
        peer.accept()
        peer.sock.sendall(wire.RELEASE_RQ)
        while (pdu := peer.read_pdu())[0] == 4:
            pass
        heard.append(pdu[1])

    with ScriptedPeer(script) as peer, pytest.raises(AssociationError, match="released"):
        store_file(open_ct(peer.port), file)
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
        store_file(open_ct(peer.port), image)
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
