"""A channel at one end of a socket, and a peer of OpenSSL's own at the other."""

import contextlib
import random
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ingest.ext.channel import Channel
from ingest.ext.encode import encode_p_data
from ingest.ext.events import Command, ControlPDU, DataSet
from ingest.ext.pdu import PDUParser
from ingest.ext.tls_connection import RECORD_BYTES, BufferedConnection
from ingest.tls.contexts import build_server_context
from tests.faults.caller import data_pdus
from tests.support.nodes import eventually
from tests.support.pki import Material
from tests.support.tls_peers import SSLConnection, ssl_client_context

BUFFER = 64 * 1024
MEMORY = 1 << 26

Event = ControlPDU | Command | DataSet


VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


@dataclass
class Windows:
    """The two buffers that the channels of a thread share."""

    size: int = BUFFER
    ciphertext: memoryview = field(init=False)
    plaintext: memoryview = field(init=False)

    def __post_init__(self) -> None:
        self.ciphertext = memoryview(bytearray(self.size))
        self.plaintext = memoryview(bytearray(self.size + 2 * RECORD_BYTES))


@dataclass
class Line:
    """A channel and its peer.

    Attributes:
        peer: The other end of its socket.
        client: The peer's TLS; None without TLS.
        server: The channel's, until it was handed over.
    """

    channel: Channel
    parser: PDUParser
    sock: socket.socket
    peer: socket.socket
    client: SSLConnection | None = None
    server: BufferedConnection | None = None

    def secure(self) -> None:
        assert self.server is not None
        self.channel.secure(self.server)

    def encrypted(self, *data: bytes) -> bytes:
        """What the peer sends of it: a record for each, or as many as it takes."""
        if self.client is None:
            return b"".join(data)
        for piece in data:
            self.client.write(piece)
        return self.client.output()

    def say(self, *data: bytes) -> None:
        self.peer.sendall(self.encrypted(*data))

    def events(self) -> list[Event]:
        """What the channel gives of what has arrived; data sets go into memory."""
        found: list[Event] = []
        while (event := self.channel.receive()) is not None:
            found.append(event)
            if isinstance(event, Command):
                self.parser.expect_data_set(event.context_id, memory_limit=MEMORY)
        return found

    def ciphertext(self) -> bytes:
        """What has come to the peer."""
        got = b""
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while part := self.peer.recv(1 << 20, socket.MSG_DONTWAIT):
                got += part
        return got

    def heard(self) -> bytes:
        """What the peer makes of it.

        Raises:
            ssl.SSLError: An alert.
        """
        got = self.ciphertext()
        if self.client is None:
            return got
        self.client.feed(got)
        return read_all(self.client)


def read_all(connection: SSLConnection | BufferedConnection) -> bytes:
    window, got = memoryview(bytearray(BUFFER)), b""
    while (count := connection.read_into(window)) > 0:
        got += bytes(window[:count])
    return got


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        return listener.accept()[0], client


def tls_pair(
    material: Material, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> tuple[SSLConnection, BufferedConnection]:
    """A client and a server that have shaken hands, all but for the client's last words."""
    theirs = ssl_client_context(material.tls("peer"))
    theirs.maximum_version = version
    client = SSLConnection(theirs, server_hostname="localhost")
    server = BufferedConnection(build_server_context(material.tls("node")))
    for _ in range(10):
        client.shake_hands()
        if client.established:
            return client, server
        server.feed(client.output())
        server.shake_hands()
        client.feed(server.output())
    raise AssertionError("no end of the handshake")


@contextlib.contextmanager
def line(
    material: Material | None = None,
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    *,
    windows: Windows | None = None,
    owner: Any = None,
    secured: bool = True,
    **limits: int,
) -> Iterator[Line]:
    """A channel and its peer; with TLS where `material` is given."""
    windows = windows or Windows()
    ours, theirs = tcp_pair()
    ours.setblocking(False)
    theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    parser = PDUParser(windows.plaintext, max_pdu_length=1 << 20, **limits)
    made = Line(Channel(ours.fileno(), parser, windows.ciphertext, owner), parser, ours, theirs)
    with ours, theirs:
        if material is None:
            made.channel.plain()
        else:
            client, server = tls_pair(material, version)
            server.feed(client.output())
            assert server.shake_hands()
            client.feed(server.output())
            made.client, made.server = client, server
            if secured:
                made.secure()
        yield made


def message(number: int, size: int, pdu: int = 16384) -> tuple[bytes, list[Event]]:
    """A command set and a data set on the wire, as facts of events."""
    command = struct.pack("<HHLH", 0, 0x110, 2, number)
    data = random.Random(number).randbytes(size)
    return encode_p_data(1, command, 0) + data_pdus(1, data, length=pdu), [command, data]


def facts(events: list[Event]) -> list[object]:
    return [event if isinstance(event, ControlPDU) else event.data for event in events]


def until(made: Line, count: int) -> list[Event]:
    """Events until there are so many."""
    found: list[Event] = []

    def more() -> bool:
        found.extend(made.events())
        return len(found) >= count

    eventually(more, 10, f"{count} events")
    return found


MakeLine = Callable[..., Line]
"""Makes lines by kind ("tls" or "plain") and version of TLS; options as of `line`."""


@contextlib.contextmanager
def line_maker(material: Material) -> Iterator[MakeLine]:
    """Ends the lines, too."""
    with contextlib.ExitStack() as stack:

        def make(kind: str = "tls", version: str = "1.3", **options: Any) -> Line:
            if kind == "plain":
                return stack.enter_context(line(**options))
            return stack.enter_context(line(material, VERSIONS[version], **options))

        yield make
