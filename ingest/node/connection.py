"""One transport connection of a listener: bytes, TLS and deadlines. What the bytes mean is its association's.

Every connection of the process reads into the same two buffers, which is sound because each callback consumes
all that it was given before it returns.
"""

import asyncio
import contextlib
import socket
import ssl
from typing import Any, Final, Protocol, cast

import structlog

from ext.errors import PeerError
from ext.pdu import PDUParser
from ingest.config.model import Config
from ingest.dicom.part10 import presentation_address
from ingest.node.association import Association, Decider
from ingest.node.scoreboard import REFUSED
from ingest.tls.identity import Identity, identity_of
from ingest.tls.pump import Pump

UNREAD_BYTES: Final = 1 << 20
"""Responses that a peer may leave unread before it is cut off."""

A_ASSOCIATE_RQ: Final = 0x01
TLS_HANDSHAKE: Final = 0x16
"""First byte of a TLS connection: the content type of its first record (RFC 8446 5.1)."""

log = structlog.get_logger()


class Server(Decider, Protocol):
    """The listener, as seen from its connections."""

    config: Config
    ciphertext: memoryview
    plaintext: memoryview

    def opened(self, connection: "Connection") -> None:
        """A connection has begun."""

    def closed(self, connection: "Connection") -> None:
        """A connection has ended."""

    def time(self) -> float:
        """The event loop's clock, seconds."""

    def soon(self, connection: "Connection") -> None:
        """Call `connection.take_up` at the loop's next turn."""


class Connection(asyncio.BufferedProtocol):
    """Bytes in and out of one peer."""

    def __init__(self, server: Server, context: ssl.SSLContext | None) -> None:
        self._server = server
        self._pump = Pump(context) if context is not None else None
        self._parser = _parser(server)
        self._association = Association(self, server, self._parser)
        self._transport: asyncio.Transport | None = None
        self._socket: socket.socket | None = None
        self._first_byte: int | None = None
        self._deaf = False  # nothing that comes is looked at any more
        self._paused = False
        self._opened_at = self._last_heard = 0.0
        self.address = ""
        self.uri = ""
        self.identity: Identity | None = None
        self.tls_version = ""

    # --- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A peer has connected."""
        self._transport = cast("asyncio.Transport", transport)
        self._socket = transport.get_extra_info("socket")
        peer = transport.get_extra_info("peername") or ("", 0)
        self.address = str(peer[0])
        self.uri = presentation_address(self.address, peer[1], tls=self._pump is not None)
        self._opened_at = self._last_heard = self._server.time()
        self._server.opened(self)
        if self._pump is None:
            self._association.begin()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's name
        """Where the network's next bytes go: the process's one buffer."""
        return self._server.plaintext if self._pump is None else self._server.ciphertext

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes have arrived; all of them are consumed here."""
        if self._deaf:
            return
        self._last_heard = self._server.time()
        self._acknowledge()
        window = self.get_buffer(0)
        if self._first_byte is None:
            self._first_byte = window[0]
        if self._pump is None:
            self._guard(self._consume, nbytes)
        else:
            self._pump.feed(window[:nbytes])
            self._guard(self._read_tls)

    def eof_received(self) -> bool:
        """The peer sends nothing more, so nothing that it began can be finished: close."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport connection is gone."""
        if self._pump is not None and not self._pump.established and not self._deaf:
            log.info("closed_before_handshake", address=self.address, error=str(exc) if exc else "")
        self._deaf = True
        self._transport = None
        try:
            self._association.lost()
        finally:
            self._server.closed(self)

    # --- the listener

    def check_deadlines(self, now: float) -> None:
        """Called by the listener several times a second."""
        self._guard(self._check_deadlines, now)

    def _check_deadlines(self, now: float) -> None:
        receive, association = self._server.config.receive, self._association
        if self._pump is not None and not self._pump.established:
            if now - self._opened_at > receive.handshake_seconds:
                self._late("handshake_seconds")
                self.cut()
        elif association.artim is not None:
            if now - association.artim > receive.artim_seconds:
                self._late("artim_seconds")
                association.artim_expired()
        elif now - self._last_heard > receive.idle_seconds and not association.busy:
            self._late("idle_seconds")
            association.abort()

    def abort(self) -> None:
        """End the association from our side."""
        self._association.abort()

    def take_up(self) -> None:
        """Go on with what had arrived when reading was paused."""
        if self._pump is not None and not self._deaf:
            self._guard(self._read_tls)

    # --- the association

    def send(self, data: bytes) -> None:
        """Write in one piece: two would make the second wait for the peer's delayed ACK of the first."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._pump is None:
            transport.write(data)
        else:
            self._pump.write(data)
            transport.write(self._pump.output())
        if transport.get_write_buffer_size() > UNREAD_BYTES:
            log.warning("responses_not_read", **self._who())
            self.cut()

    def close(self) -> None:
        """Close after what was written, with TLS's close_notify; what still comes is not looked at."""
        self._deaf = True
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._pump is not None and self._pump.established:
            self._pump.close_notify()
            self._flush()
        transport.close()

    def cut(self) -> None:
        """Close at once, whatever is unsent."""
        self._deaf = True
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        """Stop reading."""
        self._paused = True
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on, first what TLS still holds."""
        self._paused = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
            self._server.soon(self)

    def time(self) -> float:
        """The event loop's clock, seconds."""
        return self._server.time()

    # --- bytes

    def _acknowledge(self) -> None:
        """Have the kernel acknowledge at once what came.

        DCMTK, and so Orthanc and many modalities, write command and data set apart and leave Nagle's
        algorithm on: the second write waits for the acknowledgement of the first, which Linux holds back for
        40 ms. The kernel forgets the option by itself, so it is set each time.
        """
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def _guard(self, work: Any, *arguments: float) -> None:
        try:
            work(*arguments)
        except ssl.SSLError as error:
            self._tls_failed(error)
        except Exception:
            # A defect of ours must cost this association, not the process with all the others.
            log.exception("connection_failed", **self._who())
            self.cut()

    def _read_tls(self) -> None:
        pump = self._pump
        if pump is None or not (pump.established or self._shake_hands(pump)):
            return
        while not (self._paused or self._deaf):
            count = pump.read_into(self._server.plaintext)
            if count > 0:
                self._consume(count)
                continue
            self._flush()
            if count < 0:
                self.close()
            return

    def _shake_hands(self, pump: Pump) -> bool:
        done = pump.handshake()
        self._flush()
        if not done:
            return False
        der = pump.peer_certificate()
        try:
            self.identity = identity_of(der) if der else None
        except PeerError as error:
            # OpenSSL has verified it, but whom it names cannot be told, and so not what its holder may do.
            log.warning("tls_handshake_failed", **self._who(), error=str(error))
            self._server.services.board.add(self._server.services.row, REFUSED)
            self.close()
            return False
        self.tls_version = pump.version()
        self._association.begin()
        return True

    def _consume(self, count: int) -> None:
        parser, association = self._parser, self._association
        try:
            parser.buffer_updated(count)
            while not self._deaf and (event := parser.next_event()) is not None:
                association.received(event)
        except PeerError as error:
            self._peer_failed(error)

    def _flush(self) -> None:
        """Send what TLS itself wants to say."""
        if self._pump is not None and self._transport is not None and (output := self._pump.output()):
            self._transport.write(output)

    # --- failures

    def _who(self) -> dict[str, Any]:
        return {"address": self.address, "calling_ae": self._association.calling_ae}

    def _late(self, deadline: str) -> None:
        log.warning("deadline", setting=deadline, **self._who())

    def _tls_failed(self, error: ssl.SSLError) -> None:
        """Send the alert, say why, close (RFC 8446 6.2)."""
        established = self._pump is not None and self._pump.established
        facts: dict[str, Any] = {"error": error.reason or str(error)}
        if isinstance(error, ssl.SSLCertVerificationError):
            facts.update(verify_code=error.verify_code, verify_message=error.verify_message)
        if not established and self._first_byte == A_ASSOCIATE_RQ:
            facts["remedy"] = (
                "the peer speaks plain DICOM to a TLS port: enable TLS there, or use a plain listener"
            )
        log.warning("tls_failed" if established else "tls_handshake_failed", **self._who(), **facts)
        self._server.services.board.add(self._server.services.row, REFUSED)
        self._deaf = True
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def _peer_failed(self, error: PeerError) -> None:
        mismatch = self._pump is None and self._first_byte == TLS_HANDSHAKE
        remedy = (
            "the peer speaks TLS to a plain port: use a TLS listener, or disable TLS there"
            if mismatch
            else ""
        )
        log.warning(
            "peer_broke_protocol", **self._who(), error=str(error), **({"remedy": remedy} if remedy else {})
        )
        self._association.broken(error)
        self._deaf = True
        if mismatch:
            self.close()


def _parser(server: Server) -> PDUParser:
    config = server.config
    limit = config.receive.max_instance_bytes
    if config.queue.carrier == "redis":
        limit = min(limit, config.queue.carrier_max_bytes)
    return PDUParser(
        server.plaintext,
        max_pdu_length=config.receive.max_pdu_length,
        max_command_bytes=config.receive.max_command_bytes,
        max_data_set_bytes=limit,
    )
