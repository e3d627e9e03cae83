"""A peer that says what a test has it say: sound PDUs by name, broken ones as bytes."""

import contextlib
import itertools
import socket
import ssl
import struct
import time
import uuid
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from ingest.dicom import dimse, wire
from ingest.dicom.responses import Response, decode_response
from ingest.ext.encode import encode_p_data
from tests.support.instances import CT, EXPLICIT, IMPLICIT, Made
from tests.support.nodes import Node
from tests.support.pki import Material

MR = "1.2.840.10008.5.1.4.1.1.4"
VERIFICATION = "1.2.840.10008.1.1"
FIND = "1.2.840.10008.5.1.4.1.2.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
PRINTER = "1.2.840.10008.5.1.1.16"

CONTEXTS = ((1, CT, EXPLICIT), (3, VERIFICATION, IMPLICIT), (5, MR, IMPLICIT), (7, CT, DEFLATED))
"""What `associate` proposes unless told otherwise: context ID, abstract syntax, transfer syntax."""

LOCAL_LIMIT = wire.AssociateReject(2, 3, 2)
"""PS3.8 Table 9-21: transient, service provider (presentation), local limit exceeded."""
CALLING_UNKNOWN = wire.AssociateReject(1, 1, 3)
CALLED_UNKNOWN = wire.AssociateReject(1, 1, 7)

UNRECOGNIZED, UNEXPECTED, INVALID = 1, 2, 6
"""PS3.8 Table 9-26: reasons of a service provider's A-ABORT."""

SECONDS = 10.0
GONE = (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)


def new_uid() -> str:
    """A UID that nothing else has."""
    return f"2.25.{uuid.uuid4().int}"


def pdu(kind: int, body: bytes) -> bytes:
    """PS3.8 9.3.1: type, reserved, length, body."""
    return struct.pack(">BxL", kind, len(body)) + body


def pdv(context_id: int, header: int, data: bytes) -> bytes:
    """PS3.8 Table 9-23; `header` bit 0: command, bit 1: last."""
    return struct.pack(">LBB", len(data) + 2, context_id, header) + data


def p_data(*pdvs: bytes) -> bytes:
    return pdu(4, b"".join(pdvs))


def data_pdus(context_id: int, data: bytes, *, last: bool = True, length: int = 16384) -> bytes:
    """A data set, or (`last` false) only its beginning, as P-DATA-TFs of one fragment each."""
    starts = range(0, len(data), length) if data else range(1)
    pieces = [(data[start : start + length], last and start + length >= len(data)) for start in starts]
    return b"".join(p_data(pdv(context_id, 2 if end else 0, piece)) for piece, end in pieces)


def command(context_id: int, data: bytes) -> bytes:
    return encode_p_data(context_id, data, 16384)


def request(
    contexts: Iterable[tuple[int, str, str]] = CONTEXTS,
    *,
    calling: str = "CALLER",
    called: str = "INGEST",
    **more: Any,
) -> wire.AssociateRequest:
    proposed = tuple(
        wire.ProposedContext(number, syntax, (transfer,)) for number, syntax, transfer in contexts
    )
    return wire.AssociateRequest(called, calling, contexts=proposed, **more)


def with_titles(calling: bytes, called: bytes) -> bytes:
    """An A-ASSOCIATE-RQ with whatever bytes as AE titles."""
    data = bytearray(wire.encode_associate_rq(request()))
    data[10:42] = called.ljust(16) + calling.ljust(16)
    return bytes(data)


class Caller:
    """One connection to a node."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._messages = itertools.count(1)

    @classmethod
    def plain(cls, node: Node, **options: Any) -> Self:
        return cls(_connect(node.plain_port, **options))

    @classmethod
    def tls(cls, node: Node, name: str | None = "peer", *, receive_buffer: int = 0, **options: Any) -> Self:
        """With the certificate `name` of the test's material, or none."""
        return cls(
            handshake(
                _connect(node.tls_port, receive_buffer=receive_buffer), client(node.material, name, **options)
            )
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, __: TracebackType | None) -> None:
        self.sock.close()

    # --- bytes

    def send(self, *data: bytes) -> None:
        self.sock.sendall(b"".join(data))

    def read(self, count: int) -> bytes:
        """`count` bytes, or fewer where the connection ends before."""
        got = bytearray()
        with contextlib.suppress(*GONE):
            while len(got) < count and (part := self.sock.recv(count - len(got))):
                got += part
        return bytes(got)

    def read_pdu(self) -> bytes:
        """The next PDU with its header; empty at the end of the connection."""
        header = self.read(6)
        return header + self.read(int.from_bytes(header[2:6])) if len(header) == 6 else b""

    def shut(self) -> None:
        """Say with TCP that nothing more comes."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Vanish: the node gets RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    # --- associations

    def ask(self, data: bytes | wire.AssociateRequest) -> bytes:
        """Send an A-ASSOCIATE-RQ; the PDU that answers it."""
        self.send(data if isinstance(data, bytes) else wire.encode_associate_rq(data))
        return self.read_pdu()

    def associate(self, *args: Any, **fields: Any) -> wire.AssociateAccept:
        """Arguments as of `request`."""
        return wire.decode_associate_ac(self.ask(request(*args, **fields)))

    def rejected(self, *args: Any, **fields: Any) -> wire.AssociateReject:
        """What refuses the association asked for; arguments as of `request`."""
        return wire.decode_associate_rj(self.ask(request(*args, **fields)))

    def release(self) -> None:
        self.send(wire.RELEASE_RQ)
        assert self.read_pdu() == wire.RELEASE_RP

    def expect_abort(self, reason: int, source: int = 2) -> None:
        """The next PDU is an A-ABORT, and the node then closes the connection."""
        data = self.read_pdu()
        assert data, "closed without A-ABORT"
        assert wire.decode_abort(data) == wire.Abort(source, reason), data.hex()
        self.expect_closed()

    def expect_closed(self, seconds: float = SECONDS) -> None:
        """Nothing more comes but the end of the connection."""
        self.sock.settimeout(seconds)
        assert self.read(1) == b""

    # --- messages

    def response(self) -> Response:
        """The next message, which is a response in one PDU."""
        data = self.read_pdu()
        assert data[:1] == b"\x04", data.hex() or "closed"
        assert data[11] == 3, "not one whole command set"
        return decode_response(data[12:])

    def message_id(self) -> int:
        return next(self._messages)

    def echo(self) -> int:
        """The status of a C-ECHO; shows that the association lives."""
        self.send(command(3, dimse.encode_echo_request(self.message_id())))
        return self.response().status

    def begin_store(self, sop: str, context_id: int = 1, *, sop_class: str | None = None) -> int:
        """Send a C-STORE-RQ; its message ID."""
        message_id = self.message_id()
        abstract = sop_class or next(syntax for number, syntax, _ in CONTEXTS if number == context_id)
        self.send(command(context_id, dimse.encode_store_request(message_id, abstract, sop)))
        return message_id

    def store(self, made: Made, context_id: int = 1, *, data: bytes | None = None) -> Response:
        """Send an instance, or other bytes in its place, and await the answer."""
        message_id = self.begin_store(made.sop, context_id)
        self.send(data_pdus(context_id, made.data_set if data is None else data))
        response = self.response()
        assert response.message_id == message_id
        return response


def _connect(port: int, *, receive_buffer: int = 0) -> socket.socket:
    sock = socket.socket()
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.settimeout(SECONDS)
    sock.connect(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def connect(port: int) -> socket.socket:
    """A TCP connection without a word said."""
    return _connect(port)


def client(material: Material, name: str | None, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """A context that trusts the node and has the pair `name`, or none; `version` pins one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(material.trusted)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if version is not None:
        context.minimum_version = context.maximum_version = version
    if name is not None:
        context.load_cert_chain(material.certificate(name), material.key(name))
    return context


def handshake(sock: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
    try:
        return context.wrap_socket(sock)
    except BaseException:
        sock.close()
        raise


def alert_of(node: Node, context: ssl.SSLContext) -> str:
    """Why the node refuses a handshake, as the peer's OpenSSL tells the alert that it got."""
    with contextlib.closing(connect(node.tls_port)) as sock:
        try:
            with context.wrap_socket(sock) as tls:
                # TLS 1.3: the client is done before the server has looked at its certificate.
                tls.recv(1)
        except ssl.SSLError as error:
            return error.reason or str(error)
        except OSError as error:
            return f"no alert: {error}"
    return "no alert: closed"


def read_all(sock: socket.socket, seconds: float) -> bytes:
    """What comes until the node closes; fails when it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    got = b""
    try:
        while True:
            sock.settimeout(max(deadline - time.monotonic(), 0.001))
            part = sock.recv(65536)
            if not part:
                return got
            got += part
    except GONE:
        return got
