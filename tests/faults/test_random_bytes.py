"""Bytes by chance, and conversations changed by chance: no process falls, and the next peer is served."""

import contextlib
import random
import socket
import ssl
from collections.abc import Callable, Iterator

import pytest

from ingest.dicom import dimse, wire
from ingest.ext.command import encode_command
from tests.faults.caller import (
    DEFLATED,
    Caller,
    client,
    command,
    connect,
    data_pdus,
    handshake,
    new_uid,
    p_data,
    pdv,
    request,
)
from tests.faults.watch import Watch, assert_sound, listeners, nothing_received, receive, row
from tests.support.instances import CT, Made
from tests.support.nodes import Node, eventually

SEED = 20260101
CONNECTIONS = 150
"""Of each kind; enough to reach every state, few enough to stay within seconds."""


@pytest.fixture(scope="module")
def node(start_node: Callable[..., Node]) -> Node:
    limits = {"max_associations": 50, "max_instance_bytes": 1_000_000, "max_command_bytes": 4096}
    # Else so many failures of one address would have the rest closed unread.
    return start_node(receive=receive(max_failures_per_minute=0, **limits))


@pytest.fixture(autouse=True)
def unharmed(node: Node) -> Iterator[None]:
    """The same processes serve as before, no fault in the log is ours, no file is left, and C-ECHO works."""
    before, watch = listeners(node), Watch(node)
    yield
    for connect_to in (Caller.plain, Caller.tls):
        eventually(lambda connect_to=connect_to: _serves(node, connect_to), 10, "an association")
    assert listeners(node) == before
    assert not [event for event in watch.events() if event["event"] in {"connection_failed", "child_failed"}]
    assert_sound(node)
    nothing_received(node)


def _serves(node: Node, connect_to: Callable[[Node], Caller]) -> bool:
    with connect_to(node) as caller:
        if caller.ask(request())[:1] != b"\x02":
            return False  # so many at once were refused for a moment
        assert caller.echo() == 0
        caller.release()
        return True


def conversations(made: Made | None = None) -> list[bytes]:
    """Whole associations, as their callers would send them."""
    made = made or Made(sop=new_uid(), pixels=bytes(range(256)) * 20)
    store = command(1, dimse.encode_store_request(1, CT, made.sop))
    find = {"CommandField": 0x20, "MessageID": 4, "CommandDataSetType": 1, "AffectedSOPClassUID": CT}
    start = wire.encode_associate_rq(
        request(async_operations=(4, 1), roles=(wire.RoleSelection(CT, scu=True, scp=False),))
    )
    both = p_data(pdv(1, 3, dimse.encode_store_request(2, CT, "1.2.3")), pdv(1, 2, made.data_set[:4000]))
    return [
        start + store + data_pdus(1, made.data_set, length=700) + wire.RELEASE_RQ,
        start + command(3, dimse.encode_echo_request(3)) + both + wire.RELEASE_RQ,
        start
        + command(1, encode_command(find))
        + data_pdus(1, made.data_set)
        + store
        + wire.encode_abort(0, 0),
        start.replace(CT.encode(), DEFLATED.encode()[: len(CT)]) + store + data_pdus(1, made.data_set),
    ]


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A few changes: bytes, lengths, pieces lost, doubled, moved or new."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        at = chance.randrange(len(changed) + 1)
        end = min(len(changed), at + chance.choice((1, 2, 4, 30, 1000)))
        kind = chance.randrange(6)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            changed[at:end] = chance.randbytes(end - at)
        elif kind == 2:
            del changed[at:end]
        elif kind == 3:
            changed[at:at] = changed[at:end]
        elif kind == 4:
            changed[at : at + 4] = chance.choice(
                (b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff", b"\0\0\0\1")
            )
        else:
            other = chance.randrange(len(changed) + 1)
            changed[other:other] = changed[at:end]
    return bytes(changed)


def say(sock: socket.socket, data: bytes, chance: random.Random) -> None:
    """Send in pieces, say that this is all, and read whatever comes until the node closes."""
    with contextlib.suppress(OSError), contextlib.closing(sock):
        while data:
            size = chance.choice((1, 6, 100, 5000, 100_000))
            sock.sendall(data[:size])
            data = data[size:]
        if chance.random() < 0.1:
            return
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65536):
            pass


def test_random_bytes_harm_no_port(node: Node) -> None:
    chance = random.Random(SEED)
    for port in (node.plain_port, node.tls_port):
        for _ in range(CONNECTIONS // 2):
            start = bytes((chance.choice((1, 1, 4, 0x16, chance.randrange(256))),))
            say(connect(port), start + chance.randbytes(chance.choice((0, 1, 5, 9, 100, 3000))), chance)


def test_changed_conversations_harm_no_plain_port(node: Node) -> None:
    chance, sound = random.Random(SEED + 1), conversations()
    for _ in range(2 * CONNECTIONS):
        say(connect(node.plain_port), mutated(chance.choice(sound), chance), chance)


def test_changed_conversations_within_tls_harm_no_tls_port(node: Node) -> None:
    chance, sound = random.Random(SEED + 2), conversations()
    context = client(node.material, "other")
    for _ in range(CONNECTIONS):
        say(handshake(connect(node.tls_port), context), mutated(chance.choice(sound), chance), chance)


def test_changed_tls_harms_no_tls_port(node: Node) -> None:
    """The handshake, or the records after it, change on the way."""
    chance, sound = random.Random(SEED + 3), conversations()
    for _ in range(CONNECTIONS):
        version = chance.choice((ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3))
        say_changed(node, client(node.material, "other", version), chance.choice(sound), chance)


def say_changed(node: Node, context: ssl.SSLContext, data: bytes, chance: random.Random) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing)
    flights, done, last = 0, False, chance.randrange(4)
    with contextlib.closing(connect(node.tls_port)) as sock, contextlib.suppress(OSError):
        while True:
            try:
                if done:
                    tls.write(data)
                else:
                    tls.do_handshake()
                    done = True
                    continue
            except ssl.SSLWantReadError:
                pass
            flight = outgoing.read()
            if done or flights == last:
                say(sock, mutated(flight, chance), chance)
                return
            sock.sendall(flight)
            flights += 1
            part = sock.recv(65536)
            if not part:
                return
            incoming.write(part)


def test_a_conversation_without_a_change_reaches_the_store(node: Node) -> None:
    made = Made(sop=new_uid(), pixels=bytes(range(256)) * 20)
    say(connect(node.plain_port), conversations(made)[0], random.Random(SEED))
    row(node, made.sop, "stored")
