"""How connections end, with TLS and without; TLS errors are those that the `ssl` module gives."""

import errno
import os
import socket
import ssl
import struct

import pytest

from ingest.ext.channel import CLOSED, ENDED
from ingest.ext.errors import PeerError
from ingest.ext.events import Command
from tests.support.channels import VERSIONS, Line, MakeLine, facts, message, read_all, tcp_pair, until
from tests.support.nodes import eventually
from tests.support.pki import Material
from tests.support.tls_peers import SSLConnection, ssl_client_context, ssl_server_context

WINDOW = 1 << 17

VAGUE = "RECORD_LAYER_FAILURE"
"""What the `ssl` module says of every broken record with OpenSSL 3.2 and later."""


def ssl_pair(material: Material, version: str) -> tuple[SSLConnection, SSLConnection]:
    """The `ssl` module at both ends: client and server."""
    theirs = ssl_client_context(material.tls("peer"))
    theirs.maximum_version = VERSIONS[version]
    client = SSLConnection(theirs, server_hostname="localhost")
    server = SSLConnection(ssl_server_context(material.tls("node")), server_side=True)
    for _ in range(4):
        client.shake_hands()
        server.feed(client.output())
        server.shake_hands()
        client.feed(server.output())
    assert server.established
    return client, server


def failure(connection: SSLConnection, ciphertext: bytes) -> ssl.SSLError:
    connection.feed(ciphertext)
    with pytest.raises(ssl.SSLError) as caught:
        read_all(connection)
    return caught.value


def broken_off(made: Line) -> tuple[list[object], Exception]:
    """What a channel gives before it fails, and how it does."""
    found: list[object] = []

    def fails() -> Exception | None:
        try:
            while (event := made.channel.receive()) is not None:
                found.append(event.data)
                if isinstance(event, Command):
                    made.parser.expect_data_set(event.context_id, memory_limit=10_000)
        except (ssl.SSLError, PeerError) as error:
            return error
        return None

    error: Exception = eventually(fails, 5)
    return found, error


def channel_failure(made: Line, ciphertext: bytes) -> ssl.SSLError:
    made.peer.sendall(ciphertext)
    found, error = broken_off(made)
    assert found == []
    assert isinstance(error, ssl.SSLError)
    return error


def forge(record: bytes) -> bytes:
    return record[:-1] + bytes([record[-1] ^ 1])


# --- TLS that is broken


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize(
    "broken",
    [
        forge,
        lambda record: b"\x17\x03\x03\xff\xff" + bytes(0xFFFF),
        lambda record: b"\x99" + record[1:],
        lambda record: b"\x17\x03\x03\x00\x00" * 100,
        lambda record: b"\x17\x02\x00" + record[3:],
        lambda record: record[:1] + b"\x03\x03\x00\x05hello",
        lambda record: b"GET / HTTP/1.1\r\n\r\n",
    ],
    ids=["forged", "too long", "content type", "empty", "version", "too short", "http"],
)
def test_broken_tls_is_the_error_that_ssl_gives_and_the_peer_gets_the_alert(
    broken: object, version: str, material: Material, lines: MakeLine
) -> None:
    client, server = ssl_pair(material, version)
    client.write(b"genuine")
    expected = failure(server, broken(client.output()))  # type: ignore[operator]
    made = lines("tls", version)
    found = channel_failure(made, broken(made.encrypted(b"genuine")))  # type: ignore[operator]
    if expected.reason != VAGUE:
        assert found.reason == expected.reason
    assert found.reason != "UNKNOWN"
    if broken is forge:
        assert found.reason == "DECRYPTION_FAILED_OR_BAD_RECORD_MAC"
    assert type(found) is type(expected)
    alert = server.output()
    if alert:
        assert len(eventually(made.ciphertext, 5)) == len(alert)
    with pytest.raises(ssl.SSLError):
        made.events()  # ever after


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_an_alert_of_the_peer_is_the_error_that_ssl_gives(
    version: str, material: Material, lines: MakeLine
) -> None:
    def alert_of(client: SSLConnection, record: bytes) -> bytes:
        failure(client, forge(record))
        return client.output()

    client, server = ssl_pair(material, version)
    server.write(b"x")
    expected = failure(server, alert_of(client, server.output()))
    assert expected.reason == "SSLV3_ALERT_BAD_RECORD_MAC"
    made = lines("tls", version)
    assert made.client is not None
    made.channel.send(b"x")
    record = eventually(made.ciphertext, 5)
    assert channel_failure(made, alert_of(made.client, record)).reason == expected.reason


def test_what_came_before_a_forged_record_is_given_first(tls_line: Line) -> None:
    data, expected = message(1, 1000)
    good, forged = tls_line.encrypted(data), forge(tls_line.encrypted(b"x" * 100))
    tls_line.peer.sendall(good + forged)
    found, error = broken_off(tls_line)
    assert found == expected
    assert isinstance(error, ssl.SSLError)
    assert error.reason in {"DECRYPTION_FAILED_OR_BAD_RECORD_MAC", VAGUE}
    with pytest.raises(ssl.SSLError, match="ALERT_BAD_RECORD_MAC"):
        eventually(tls_line.heard, 5)


def test_an_answer_to_what_came_before_goes_out_before_the_alert(tls_line: Line) -> None:
    assert tls_line.client is not None
    tls_line.channel.send(b"answer")
    channel_failure(tls_line, forge(tls_line.encrypted(b"x" * 100)))
    window = memoryview(bytearray(WINDOW))
    tls_line.client.feed(tls_line.ciphertext())
    assert bytes(window[: tls_line.client.read_into(window)]) == b"answer"
    with pytest.raises(ssl.SSLError, match="ALERT_BAD_RECORD_MAC"):
        tls_line.client.read_into(window)


# --- a peer that breaks the protocol within


def test_a_peer_error_is_given_once_all_before_it_is(channel_line: Line) -> None:
    data, expected = message(1, 1000)
    channel_line.say(data, b"\x99\x00")
    found, error = broken_off(channel_line)
    assert found == expected
    assert isinstance(error, PeerError)
    assert error.reason == PeerError.UNRECOGNIZED_PDU


# --- the end


def test_close_notify_in_the_same_read_as_data_comes_after_it(tls_line: Line) -> None:
    assert tls_line.client is not None
    data, expected = message(1, 1000)
    tls_line.client.write(data)
    tls_line.client.close_notify()
    tls_line.peer.sendall(tls_line.client.output())
    assert facts(until(tls_line, 2)) == expected
    eventually(lambda: tls_line.events() == [] and tls_line.channel.notices & CLOSED, 5)
    assert tls_line.channel.notices == CLOSED
    tls_line.channel.send(b"answer")  # may still be sent
    tls_line.channel.close_notify()
    assert eventually(tls_line.heard, 5) == b"answer"
    assert tls_line.client.is_ending


def test_a_close_notify_alone_is_noticed(tls_line: Line) -> None:
    assert tls_line.client is not None
    tls_line.client.close_notify()
    tls_line.peer.sendall(tls_line.client.output())
    eventually(lambda: tls_line.events() == [] and tls_line.channel.notices == CLOSED, 5)


def test_our_close_notify_is_heard_and_may_come_twice(tls_line: Line) -> None:
    assert tls_line.client is not None
    tls_line.channel.send(b"last words")
    tls_line.channel.close_notify()
    tls_line.channel.close_notify()
    assert eventually(tls_line.heard, 5) == b"last words"
    assert tls_line.client.is_ending
    data, expected = message(1, 1000)
    tls_line.say(data)
    assert facts(until(tls_line, 2)) == expected


def test_the_end_of_the_network_is_noticed_without_an_error(channel_line: Line) -> None:
    data, expected = message(1, 1000)
    channel_line.say(data)
    channel_line.peer.shutdown(socket.SHUT_WR)
    assert facts(until(channel_line, 2)) == expected
    eventually(lambda: channel_line.events() == [] and channel_line.channel.notices & ENDED, 5)
    assert channel_line.channel.error == 0


def test_a_reset_is_noticed_with_its_error(channel_line: Line) -> None:
    channel_line.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    channel_line.peer.close()
    eventually(lambda: channel_line.events() == [] and channel_line.channel.notices & ENDED, 5)
    assert channel_line.channel.error == errno.ECONNRESET


def test_a_peer_that_is_gone_is_noticed_when_something_is_sent(channel_line: Line) -> None:
    channel_line.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    channel_line.peer.close()

    def note_end() -> int:
        channel_line.channel.send(b"anybody?")
        return channel_line.channel.notices & ENDED

    eventually(note_end, 5)
    assert channel_line.channel.error in {errno.ECONNRESET, errno.EPIPE}
    assert channel_line.channel.unsent == 0
    channel_line.channel.send(b"into the void")
    channel_line.channel.flush()
    assert channel_line.channel.unsent == 0


def test_a_channel_that_ignores_input_sees_only_the_end(channel_line: Line) -> None:
    channel_line.channel.ignores_input = True
    data, _ = message(1, 100_000)
    channel_line.peer.sendall(data)  # of TLS not a word
    for _ in range(20):
        assert channel_line.events() == []
    assert channel_line.channel.notices == 0
    channel_line.channel.send(b"still heard")
    assert eventually(channel_line.heard, 5) == b"still heard"
    channel_line.peer.close()
    eventually(lambda: channel_line.events() == [] and channel_line.channel.notices & ENDED, 5)


def test_after_detach_not_a_byte_gets_to_who_has_the_sockets_number_now(channel_line: Line) -> None:
    made = channel_line
    made.channel.send(b"before")
    eventually(made.heard, 5)
    made.channel.detach()
    ours, theirs = tcp_pair()
    with ours, theirs:
        os.dup2(ours.fileno(), made.sock.fileno())
        theirs.sendall(b"for another")
        made.channel.send(b"x")
        made.channel.send_raw(b"y")
        made.channel.close_notify()
        made.channel.flush()
        assert made.events() == []
        assert ours.recv(100) == b"for another"
        ours.close()
        made.sock.close()
        theirs.settimeout(5)
        assert theirs.recv(100) == b""
    assert made.channel.unsent == 0
    assert made.channel.notices & ENDED
