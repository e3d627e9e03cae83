"""Peers that speak TLS where there is none, none where there is TLS, or cannot prove who they are."""

import contextlib
import ssl
from collections.abc import Callable

import pytest

from ingest.dicom import dimse, wire
from ingest.tls.keys import pairs
from tests.faults.caller import (
    Caller,
    alert_of,
    client,
    command,
    connect,
    data_pdus,
    handshake,
    new_uid,
    read_all,
    request,
)
from tests.faults.watch import Watch, nothing_received, partial_of, receive
from tests.support.instances import CT, Made
from tests.support.nodes import Node
from tests.support.pki import Material

HANDSHAKE_SECONDS = 2.0
IN_TIME = HANDSHAKE_SECONDS + 1.5

VERSIONS = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])


@pytest.fixture(scope="module")
def node(start_node: Callable[..., Node]) -> Node:
    return start_node(receive=receive(handshake_seconds=HANDSHAKE_SECONDS))


@pytest.fixture(scope="module", autouse=True)
def signed_by_a_stranger(material: Material) -> None:
    """A pair "signed" whose authority nobody trusts."""
    if not material.certificate("signed").exists():
        pairs.write_pair(
            pairs.issue_signed("signed", pairs.issue_authority("their authority", key_type="ec")),
            material.folder / "signed",
        )


def test_plain_dicom_on_a_tls_port_is_closed_in_time_and_the_log_names_the_mismatch(
    node: Node, watch: Watch
) -> None:
    with contextlib.closing(connect(node.tls_port)) as sock:
        sock.sendall(wire.encode_associate_rq(request()))
        answer = read_all(sock, IN_TIME)
    # A TLS alert or nothing, but no PDU: RFC 8446 5.1, content type 15H.
    assert answer[:1] in {b"", b"\x15"}
    event = watch.event("tls_handshake_failed", remedy="plain DICOM to a TLS port")
    assert event["address"] == "127.0.0.1"


def test_tls_on_a_plain_port_is_closed_in_time_and_the_log_names_the_mismatch(
    node: Node, watch: Watch
) -> None:
    context = client(node.material, "peer")
    sock = connect(node.plain_port)
    sock.settimeout(IN_TIME)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        handshake(sock, context)
    event = watch.event("peer_broke_protocol", remedy="TLS to a plain port")
    assert event["address"] == "127.0.0.1"


def test_http_on_a_tls_port_is_closed_in_time(node: Node, watch: Watch) -> None:
    with contextlib.closing(connect(node.tls_port)) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: node\r\n\r\n")
        read_all(sock, IN_TIME)
    watch.event("tls_handshake_failed", address="127.0.0.1")


def test_half_a_word_of_plain_dicom_on_a_tls_port_is_closed_in_time(node: Node, watch: Watch) -> None:
    with contextlib.closing(connect(node.tls_port)) as sock:
        sock.sendall(b"\x01\0")
        read_all(sock, IN_TIME)
    watch.event("deadline", setting="handshake_seconds")


@VERSIONS
@pytest.mark.parametrize(
    ("name", "alerts", "verify_code"),
    [
        # RFC 8446 6.2: certificate_required (116), in TLS 1.2 handshake_failure (40)
        (None, {"TLSV13_ALERT_CERTIFICATE_REQUIRED", "SSLV3_ALERT_HANDSHAKE_FAILURE"}, None),
        # unknown_ca (48); OpenSSL: 18 self-signed certificate, 20 unable to get local issuer certificate
        ("stranger", {"TLSV1_ALERT_UNKNOWN_CA"}, 18),
        ("signed", {"TLSV1_ALERT_UNKNOWN_CA"}, 20),
        # certificate_expired (45); OpenSSL: 10
        ("expired", {"SSLV3_ALERT_CERTIFICATE_EXPIRED"}, 10),
    ],
)
def test_a_certificate_that_is_not_good_enough_gets_an_alert(
    node: Node,
    watch: Watch,
    version: ssl.TLSVersion,
    name: str | None,
    alerts: set[str],
    verify_code: int | None,
) -> None:
    assert alert_of(node, client(node.material, name, version)) in alerts
    event = watch.event("tls_handshake_failed", address="127.0.0.1")
    if verify_code is None:
        assert event["error"] == "PEER_DID_NOT_RETURN_A_CERTIFICATE"
    else:
        assert event["verify_code"] == verify_code
        assert event["verify_message"]


def test_a_version_below_tls_1_2_gets_an_alert(node: Node, watch: Watch) -> None:
    context = client(node.material, "peer")
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = ssl.TLSVersion.TLSv1_1
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    assert alert_of(node, context) == "TLSV1_ALERT_PROTOCOL_VERSION"
    watch.event("tls_handshake_failed", error="UNSUPPORTED_PROTOCOL")


@VERSIONS
def test_a_good_certificate_is_let_in_after_all_these(node: Node, version: ssl.TLSVersion) -> None:
    with Caller.tls(node, "peer", version=version) as caller:
        caller.associate()
        assert caller.echo() == 0
        caller.release()


def test_bytes_changed_on_the_way_end_the_association_and_leave_no_file(node: Node, watch: Watch) -> None:
    made = Made(sop=new_uid(), pixels=bytes(100_000))
    raw = connect(node.tls_port)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client(node.material, "peer").wrap_bio(incoming, outgoing)

    def pump() -> None:
        raw.sendall(outgoing.read())
        incoming.write(raw.recv(65536))

    with contextlib.closing(raw):
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                pump()
        tls.write(wire.encode_associate_rq(request()))
        pump()
        assert tls.read(65536)[:1] == b"\x02"
        tls.write(_first_half(made))
        raw.sendall(outgoing.read())
        partial_of(node, 20_000)
        tls.write(bytes(1000))
        record = bytearray(outgoing.read())
        record[100] ^= 1
        raw.sendall(record)
        answer = read_all(raw, 5)
        incoming.write(answer)
        with pytest.raises(ssl.SSLError, match="BAD_RECORD_MAC"):
            tls.read(65536)
    watch.event("tls_failed", calling_ae="CALLER", error="DECRYPTION_FAILED_OR_BAD_RECORD_MAC")
    nothing_received(node)


def test_a_network_that_ends_without_close_notify_in_mid_image_leaves_no_file(
    node: Node, watch: Watch
) -> None:
    made = Made(sop=new_uid(), pixels=bytes(100_000))
    with Caller.tls(node) as caller:
        caller.associate()
        caller.send(_first_half(made))
        partial_of(node, 20_000)
        caller.shut()
        caller.expect_closed()
    watch.event("association_lost", calling_ae="CALLER")
    nothing_received(node)


def _first_half(made: Made) -> bytes:
    return command(1, dimse.encode_store_request(1, CT, made.sop)) + data_pdus(
        1, made.data_set[:50_000], last=False
    )
