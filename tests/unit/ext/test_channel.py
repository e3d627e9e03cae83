"""The channel against a client of Python's `ssl` module."""

import gc
import random
import shutil
import socket
import subprocess
import time
import weakref

import pytest

from ingest.dicom import wire
from ingest.ext.channel import BLOCKED, Channel
from ingest.ext.events import ControlPDU
from ingest.ext.pdu import PDUParser
from ingest.ext.tls_connection import RECORD_BYTES as RECORD
from ingest.ext.tls_connection import BufferedConnection
from ingest.tls.contexts import build_server_context
from tests.support.channels import BUFFER, Event, Line, MakeLine, Windows, facts, message, tls_pair, until
from tests.support.nodes import eventually
from tests.support.pki import Material

# --- what comes


@pytest.mark.parametrize("seed", range(6))
def test_events_are_the_same_however_the_stream_is_cut(seed: int, channel_line: Line) -> None:
    chance = random.Random(seed)
    stream, expected = b"", []
    for number in range(6):
        size = chance.choice([0, 1, 2, 500, 16384, 100_000, 300_000])
        data, more = message(number, size, chance.choice([500, 16384, 131072]))
        stream, expected = stream + data, [*expected, *more]
    stream += wire.RELEASE_RQ
    pieces = []
    while stream:
        size = chance.choice([1, 5, 6, 12, 1000, RECORD - 1, RECORD, 3 * RECORD + 7, 200_000])
        pieces.append(stream[:size])
        stream = stream[size:]
    ciphertext, found = channel_line.encrypted(*pieces), []
    while ciphertext:
        size = chance.choice([1, 4, 5, 21, 1448, 16405, BUFFER, BUFFER + 1, 1 << 17])
        channel_line.peer.sendall(ciphertext[:size])
        ciphertext = ciphertext[size:]
        found += channel_line.events()
    found += until(channel_line, len(expected) + 1 - len(found)) if len(found) <= len(expected) else []
    assert facts(found) == [*expected, control_pdu(wire.RELEASE_RQ)]
    assert channel_line.channel.notices == 0


def control_pdu(data: bytes) -> Event:
    parser = PDUParser()
    parser.get_buffer()[: len(data)] = data
    parser.buffer_updated(len(data))
    event = parser.next_event()
    assert event is not None
    return event


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_record_cut_at_every_byte(version: str, lines: MakeLine) -> None:
    made = lines("tls", version)
    data, expected = message(1, 300)
    ciphertext, found = made.encrypted(data), []
    for byte in ciphertext:
        made.peer.sendall(bytes([byte]))
        found += made.events()
    found += until(made, 2 - len(found)) if len(found) < 2 else []
    assert facts(found) == expected


def test_one_read_takes_several_records(tls_line: Line) -> None:
    messages = [message(number, 500) for number in range(20)]
    tls_line.say(*[data for data, _ in messages])
    eventually(lambda: _waiting(tls_line) > 20 * 500, 5)
    found = tls_line.events()
    assert len(found) > 2
    found += until(tls_line, 40 - len(found))
    assert facts(found) == [fact for _, facts in messages for fact in facts]


def _waiting(made: Line) -> int:
    try:
        return len(made.sock.recv(BUFFER, socket.MSG_PEEK))
    except BlockingIOError:
        return 0


def test_channels_that_share_windows_do_not_mix(lines: MakeLine) -> None:
    windows = Windows()
    made = [lines(kind, windows=windows) for kind in ("tls", "tls", "plain", "tls")]
    streams, found = [], [[] for _ in made]
    for number, each in enumerate(made):
        streams.append(each.encrypted(message(number, 150_000)[0]))
    while any(streams):
        for at, each in enumerate(made):
            each.peer.sendall(streams[at][:7001])
            streams[at] = streams[at][7001:]
            found[at] += each.events()
    for number, each in enumerate(made):
        more = until(each, 2 - len(found[number])) if len(found[number]) < 2 else []
        assert facts([*found[number], *more]) == message(number, 150_000)[1]


def test_what_came_with_the_handshake_is_not_lost(material: Material, lines: MakeLine) -> None:
    client, server = tls_pair(material)
    data, expected = message(1, 40_000)
    last_words = client.output()
    client.write(data)
    together = last_words + client.output()
    server.feed(together[:-100])  # a record that is cut, too
    assert server.shake_hands()
    made = lines("plain")
    made.channel.secure(server)
    first = made.events()
    assert len(first) == 1
    made.peer.sendall(together[-100:])
    assert facts([*first, *until(made, 1)]) == expected


def test_windows_that_are_too_short_are_refused_before_anything_is_written(lines: MakeLine) -> None:
    windows = Windows()
    windows.plaintext = windows.plaintext[: BUFFER + 2 * RECORD - 1]
    made = lines("tls", windows=windows, secured=False)
    with pytest.raises(ValueError, match="two TLS records more"):
        made.secure()


def test_more_leftover_than_the_window_holds_is_refused(lines: MakeLine) -> None:
    made = lines("tls", windows=Windows(1000), secured=False)
    assert made.server is not None
    made.server.feed(made.encrypted(bytes(1000)))
    with pytest.raises(ValueError, match="more than the window holds"):
        made.secure()


@pytest.mark.skipif(not shutil.which("openssl"), reason="the openssl program is not installed")
def test_a_key_update_that_the_peer_asks_for_is_answered(material: Material) -> None:
    server, windows = BufferedConnection(build_server_context(material.tls("node"))), Windows()
    files = ("-cert", str(material.certificate("peer")), "-key", str(material.key("peer")))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        port = listener.getsockname()[1]
        with subprocess.Popen(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_3", "-msg", *files],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as client, listener.accept()[0] as sock:  # fmt: skip
            assert client.stdin is not None
            sock.settimeout(10)
            while not server.established:
                server.feed(sock.recv(65536))
                server.shake_hands()
                sock.sendall(server.output())
            sock.setblocking(False)
            parser = PDUParser(windows.plaintext, max_pdu_length=1 << 20)
            channel = Channel(sock.fileno(), parser, windows.ciphertext, None)
            channel.secure(server)
            made = Line(channel, parser, sock, sock)
            for _ in range(3):
                client.stdin.write(b"K\n")  # of s_client: update keys, and ask the peer to do so
                client.stdin.flush()
                # It takes what it reads together for one command or for data.
                time.sleep(0.3)
                client.stdin.write(wire.RELEASE_RQ)
                client.stdin.flush()
                (event,) = until(made, 1)
                assert isinstance(event, ControlPDU)
                channel.send(b"answer")
            channel.close_notify()
            output = client.communicate(timeout=10)[0]
    assert output.count(b"answer") == 3
    assert output.count(b"<<< TLS 1.3, Handshake [length 0005], KeyUpdate") == 3


# --- what goes


def test_what_is_sent_arrives_in_order(channel_line: Line) -> None:
    pieces = [random.Random(size).randbytes(size) for size in (1, 100, RECORD, 40_000, 5)]
    for piece in pieces:
        channel_line.channel.send(piece)
    got = b""

    def arrived() -> bool:
        nonlocal got
        got += channel_line.heard()
        return len(got) >= sum(map(len, pieces))

    eventually(arrived, 5)
    assert got == b"".join(pieces)
    assert channel_line.channel.unsent == 0


def test_what_fits_in_one_record_is_one_record(tls_line: Line) -> None:
    tls_line.channel.send(b"x" * RECORD)
    output = b""
    while len(output) < RECORD:
        output += tls_line.ciphertext()
    # RFC 8446 5.2: opaque_type, legacy_record_version, length
    assert int.from_bytes(output[3:5], "big") == len(output) - 5


def test_a_peer_that_does_not_read_blocks_the_channel_and_nothing_is_lost(channel_line: Line) -> None:
    made, data = channel_line, random.Random(1).randbytes(40_000)
    made.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    sent = got = b""
    while not made.channel.notices & BLOCKED:
        made.channel.send(data)
        sent += data
    for piece in (b"more", data, b"end"):
        made.channel.send(piece)
        sent += piece
    assert made.channel.unsent > 2 * len(data) // 2
    data_in, expected = message(1, 1000)
    made.say(data_in)
    assert facts(until(made, 2)) == expected  # the other direction is open

    def arrived() -> bool:
        nonlocal got
        made.channel.flush()
        got += made.heard()
        return len(got) >= len(sent)

    eventually(arrived, 20)
    assert got == sent
    assert made.channel.notices & BLOCKED == 0
    assert made.channel.unsent == 0


def test_mute_says_nothing_more_but_sends_what_was_said(channel_line: Line) -> None:
    channel_line.channel.send(b"before")
    channel_line.channel.discards_output = True
    channel_line.channel.send(b"after")
    assert eventually(channel_line.heard, 5) == b"before"
    assert channel_line.heard() == b""


# --- an owner without the collector's trouble


def test_a_channel_that_holds_its_owner_is_collected(material: Material, lines: MakeLine) -> None:
    class Owner:
        channel: object = None

    made, owner = lines("plain"), Owner()
    alive = weakref.ref(owner)
    windows = Windows()
    owner.channel = Channel(made.sock.fileno(), PDUParser(windows.plaintext), windows.ciphertext, owner)
    del owner, windows
    gc.collect()  # pytest makes an error of what fails within
    assert alive() is None
