"""TLS connections over buffers against those of `ssl`: handshake, alerts, records, the end."""

import os
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from ingest.ext.tls_connection import RECORD_BYTES as RECORD
from ingest.ext.tls_connection import BufferedConnection
from ingest.tls.contexts import build_client_context, build_server_context
from ingest.tls.keys import pairs
from tests.support.pki import Material
from tests.support.tls_peers import SSLConnection, ssl_client_context

WINDOW = 256 * 1024

Connection = SSLConnection | BufferedConnection
MakePair = Callable[..., tuple[SSLConnection, BufferedConnection]]


@pytest.fixture
def make_pair(material: Material) -> MakePair:
    """Makes a client and a server, by the names of their certificates."""

    def make(
        client: str = "peer", server: str = "node", **changes: object
    ) -> tuple[SSLConnection, BufferedConnection]:
        return (
            SSLConnection(ssl_client_context(material.tls(client)), server_hostname="localhost"),
            BufferedConnection(build_server_context(material.tls(server, **changes))),
        )

    return make


def carry(source: Connection, target: Connection, size: int = 1 << 20) -> int:
    """Move what `source` has to say, at most `size` bytes at a time; returns how many bytes."""
    output = source.output()
    for start in range(0, len(output), size):
        target.feed(memoryview(output)[start : start + size])
    return len(output)


def shake_hands(client: Connection, server: Connection) -> None:
    for _ in range(10):
        client.shake_hands()
        carry(client, server)
        server.shake_hands()
        carry(server, client)
        if client.established and server.established:
            return
    raise AssertionError("no end of the handshake")


def read_all(connection: Connection, window: int = WINDOW) -> bytes:
    buffer, got = memoryview(bytearray(window)), b""
    while (count := connection.read_into(buffer)) > 0:
        got += bytes(buffer[:count])
    return got


def test_handshake_ends_with_both_sides_knowing_each_other(make_pair: MakePair, material: Material) -> None:
    client, server = make_pair()
    assert not server.shake_hands(), "nothing has come yet"
    assert not server.established
    shake_hands(client, server)
    assert client.version() == server.version() == "TLSv1.3"
    expected = ssl.PEM_cert_to_DER_cert(material.certificate("peer").read_text())
    assert server.peer_certificate() == expected


def test_handshake_cut_into_single_bytes_is_the_same(make_pair: MakePair) -> None:
    client, server = make_pair()
    client.shake_hands()
    hello = client.output()
    for position in range(len(hello)):
        assert server.output() == b""
        server.feed(memoryview(hello)[position : position + 1])
        assert not server.shake_hands()
    shake_hands(client, server)


def test_optional_peer_without_a_certificate_has_none(material: Material) -> None:
    anonymous = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anonymous.load_verify_locations(material.trusted)
    client = SSLConnection(anonymous, server_hostname="localhost")
    server = BufferedConnection(build_server_context(material.tls("node", peer_certificate="optional")))
    shake_hands(client, server)
    assert server.peer_certificate() is None


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("trusted", ["root", "leaf", "both"])
def test_chain_of_the_peer_ends_with_what_is_trusted_whatever_it_sends(
    trusted: str, version: ssl.TLSVersion, material: Material, tmp_path: Path
) -> None:
    root = pairs.issue_authority("root", key_type="ec")
    leaf = pairs.issue_signed("leaf", root, key_type="ec")
    files = {"root": [root], "leaf": [leaf], "both": [root, leaf]}[trusted]
    pairs.add_all_to_bundle([pair.certificate for pair in files], tmp_path / "trusted.crt")
    pairs.write_pair(leaf, tmp_path / "leaf")
    with (tmp_path / "leaf.crt").open("ab") as chain:
        chain.write(root.certificate_pem)
    tls = material.tls("node").model_copy(update={"trusted": (tmp_path / "trusted.crt",)})
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(material.trusted)
    context.load_cert_chain(tmp_path / "leaf.crt", tmp_path / "leaf.key")
    context.maximum_version = version
    client, server = (
        SSLConnection(context, server_hostname="localhost"),
        BufferedConnection(build_server_context(tls)),
    )
    assert server.verified_chain() == []
    shake_hands(client, server)
    expected = [leaf] if trusted == "leaf" else [leaf, root]
    assert server.verified_chain() == [pair.certificate.public_bytes(Encoding.DER) for pair in expected]


def test_what_was_not_verified_has_no_chain(material: Material) -> None:
    context = build_client_context(material.tls("peer", peer_certificate="none"))
    client, server = (
        BufferedConnection(context),
        BufferedConnection(build_server_context(material.tls("node"))),
    )
    shake_hands(client, server)
    assert client.peer_certificate()
    assert client.verified_chain() == []


@pytest.mark.parametrize("name", ["stranger", "expired", None])
def test_a_certificate_that_is_not_good_gets_an_alert_before_the_end(
    name: str | None, make_pair: MakePair, material: Material
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(material.trusted)
    if name:
        context.load_cert_chain(material.certificate(name), material.key(name))
    client = SSLConnection(context, server_hostname="localhost")
    _, server = make_pair()
    client.shake_hands()
    carry(client, server)
    assert not server.shake_hands()
    carry(server, client)
    assert client.shake_hands()  # with TLS 1.3 the client is done before it is judged
    carry(client, server)
    with pytest.raises(ssl.SSLError):
        server.shake_hands()
    assert not server.established
    assert carry(server, client) > 0, "the alert"
    with pytest.raises(ssl.SSLError, match="ALERT"):
        client.read_into(memoryview(bytearray(WINDOW)))


def test_an_untrusting_client_is_heard(make_pair: MakePair, material: Material) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(material.certificate("remote"))
    client, (_, server) = SSLConnection(context, server_hostname="localhost"), make_pair()
    client.shake_hands()
    carry(client, server)
    server.shake_hands()
    carry(server, client)
    with pytest.raises(ssl.SSLCertVerificationError) as caught:
        client.shake_hands()
    assert caught.value.verify_code
    carry(client, server)
    with pytest.raises(ssl.SSLError, match="UNKNOWN_CA"):
        server.shake_hands()


@pytest.mark.parametrize(
    "said",
    [
        b"\x01\x00\x00\x00\x00\xcd\x00\x01\x00\x00" + b"ANY-SCP".ljust(16) + b"STORESCU".ljust(16),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x00\x05\x01\xff\xff\xff\xff",
        os.urandom(64),
    ],
    ids=["dicom", "http", "broken hello", "noise"],
)
def test_what_is_not_tls_is_an_error_and_never_more(said: bytes, make_pair: MakePair) -> None:
    _, server = make_pair()
    server.feed(memoryview(said))
    try:
        assert not server.shake_hands()  # some of it may be the beginning of something
    except ssl.SSLError:
        assert not server.established


# --- data


def test_one_read_takes_several_records(make_pair: MakePair) -> None:
    client, server = make_pair()
    shake_hands(client, server)
    pieces = [os.urandom(1000) for _ in range(20)]
    for piece in pieces:
        client.write(piece)
    carry(client, server)
    window = memoryview(bytearray(WINDOW))
    count = server.read_into(window)
    assert bytes(window[:count]) == b"".join(pieces)
    assert server.read_into(window) == 0


@pytest.mark.parametrize("window", [RECORD, RECORD + 1, 3 * RECORD - 1, WINDOW])
@pytest.mark.parametrize("cut", [1 << 20, 1, 4093])
def test_every_byte_arrives_once_however_it_is_cut(window: int, cut: int, make_pair: MakePair) -> None:
    client, server = make_pair()
    shake_hands(client, server)
    data = os.urandom(30_000 if cut == 1 else 300_000)
    client.write(data)
    assert carry(client, server, cut) > len(data)
    assert read_all(server, window) == data


def test_a_record_that_is_not_complete_is_waited_for(make_pair: MakePair) -> None:
    client, server = make_pair()
    shake_hands(client, server)
    client.write(b"whole")
    client.write(b"cut")
    output = client.output()
    server.feed(memoryview(output)[:-1])
    assert read_all(server) == b"whole"
    server.feed(memoryview(output)[-1:])
    assert read_all(server) == b"cut"


def test_what_fits_in_one_record_is_one_record(make_pair: MakePair) -> None:
    client, server = make_pair()
    shake_hands(client, server)
    server.output()
    server.write(b"x" * RECORD)
    output = server.output()
    # RFC 8446 5.2: opaque_type, legacy_record_version, length
    assert int.from_bytes(output[3:5], "big") == len(output) - 5


def test_a_forged_record_is_an_error(make_pair: MakePair) -> None:
    client, server = make_pair()
    shake_hands(client, server)
    client.write(b"genuine")
    forged = bytearray(client.output())
    forged[-1] ^= 1
    server.feed(forged)
    with pytest.raises(ssl.SSLError):
        server.read_into(memoryview(bytearray(WINDOW)))
    assert server.output(), "the alert"


def test_what_came_before_a_forged_record_is_read_before_the_error(
    make_pair: MakePair,
) -> None:
    client, server = make_pair()
    shake_hands(client, server)
    client.write(b"genuine")
    carry(client, server)
    client.write(b"forged")
    forged = bytearray(client.output())
    forged[-1] ^= 1
    server.feed(forged)
    window = memoryview(bytearray(WINDOW))
    assert bytes(window[: server.read_into(window)]) == b"genuine"
    assert server.is_ending
    for _ in range(2):
        with pytest.raises(ssl.SSLError) as caught:
            server.read_into(window)
        # OpenSSL 3.2 and later say so of each broken record in the end.
        assert caught.value.reason in {"DECRYPTION_FAILED_OR_BAD_RECORD_MAC", "RECORD_LAYER_FAILURE"}


# --- the end


def test_close_notify_comes_after_the_data_before_it(make_pair: MakePair) -> None:
    client, server = make_pair()
    shake_hands(client, server)
    client.write(b"last words")
    client.close_notify()
    carry(client, server)
    window = memoryview(bytearray(WINDOW))
    count = server.read_into(window)
    assert bytes(window[:count]) == b"last words"
    assert server.is_ending
    assert server.read_into(window) == -1
    assert server.read_into(window) == -1


def test_the_answer_to_a_close_notify_may_still_be_sent(make_pair: MakePair) -> None:
    client, server = make_pair()
    shake_hands(client, server)
    client.close_notify()
    carry(client, server)
    assert server.read_into(memoryview(bytearray(WINDOW))) == -1
    server.write(b"answer")
    server.close_notify()
    carry(server, client)
    assert read_all(client) == b"answer"


def test_close_notify_waits_for_nobody_and_may_come_twice(make_pair: MakePair) -> None:
    client, server = make_pair()
    shake_hands(client, server)
    server.output()
    server.close_notify()
    assert server.output()
    server.close_notify()
    assert server.output() == b""


def test_close_notify_before_the_handshake_is_harmless(make_pair: MakePair) -> None:
    _, server = make_pair()
    server.close_notify()


def test_no_session_can_be_resumed(make_pair: MakePair) -> None:
    client, server = make_pair()
    shake_hands(client, server)
    server.write(b"x")
    carry(server, client)
    assert read_all(client) == b"x"
    session = client.tls.session
    assert session is None or not session.has_ticket
