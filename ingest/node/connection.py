"""One transport connection of a listener: bytes, TLS and deadlines. What the bytes mean is its association's.

Every connection of the process reads into the same two buffers, which is sound because each callback consumes
all that it was given before it returns.
"""

import asyncio
import contextlib
import select
import socket
import ssl
from typing import Any, Final, Protocol

import structlog

from ext.channel import BLOCKED, CLOSED, ENDED, PAUSED, Channel
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
    """The listener, as seen from its connections.

    Attributes:
        config: The configuration.
        loop: Its event loop.
        ciphertext: Where the network's bytes go; all connections share it.
        plaintext: What TLS makes of them; two records longer.
    """

    config: Config
    loop: asyncio.AbstractEventLoop
    ciphertext: memoryview
    plaintext: memoryview

    def closed(self, connection: "Connection") -> None:
        """A connection has ended."""

    def time(self) -> float:
        """The monotonic clock, seconds."""

    def watch(self, descriptor: int, connection: "Connection", events: int) -> None:
        """From now on call `connection.ready` at these events of epoll(7) alone, and at errors."""

    def hand_off(self) -> None:
        """Instances may have been promised."""


class Connection:
    """Bytes in and out of one peer."""

    def __init__(self, server: Server, accepted: socket.socket, context: ssl.SSLContext | None) -> None:
        """Take over a socket that was accepted.

        Raises:
            OSError: The peer has gone already.
        """
        accepted.setblocking(False)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        peer = accepted.getpeername()
        self._server = server
        self._socket = accepted
        self.descriptor = accepted.fileno()
        self._pump = Pump(context) if context is not None else None
        self._parser = _parser(server)
        self._channel = Channel(self.descriptor, self._parser, server.ciphertext)
        self._association = Association(self, server, self._parser, self._channel)
        self._first_byte: int | None = None
        self._events = 0  # of epoll(7) that are waited for
        self._finished = False
        self._closing: float | None = None  # since when
        self._opened_at = server.time()
        self.address = str(peer[0])
        self.uri = presentation_address(self.address, peer[1], tls=self._pump is not None)
        self.identity: Identity | None = None
        self.tls_version = ""

    def start(self) -> None:
        """Begin to read."""
        if self._pump is None:
            self._association.begin()
        self.noticed()

    # --- the event loop

    def ready(self, events: int) -> None:
        """The socket is ready for what it was watched for, or has failed."""
        if events & select.EPOLLOUT:
            self._writable()
        if events & ~select.EPOLLOUT:
            if self._events & select.EPOLLIN:
                self._readable()
            else:
                self._finish()  # nothing is waited for, and still the peer is gone

    def _readable(self) -> None:
        if self._finished:
            return
        channel, association = self._channel, self._association
        try:
            if self._pump is None or self._pump.established or self._shake_hands(self._pump):
                if self._first_byte is None:
                    self._look_at_first_byte()
                while (event := channel.receive()) is not None:
                    association.received(event)
        except PeerError as error:
            self._peer_failed(error)
        except ssl.SSLError as error:
            self._tls_failed(error)
        except Exception:
            # A defect of ours must cost this association, not the process with all the others.
            log.exception("connection_failed", **self._who())
            self.cut()
        if channel.notices:
            self.noticed()
        self._server.hand_off()

    def _writable(self) -> None:
        self._channel.flush()
        if self._closing is not None and not self._channel.unsent:
            self._finish()
        else:
            self.noticed()

    def noticed(self) -> None:
        """Act upon what the channel has noticed."""
        if self._finished:
            return
        channel = self._channel
        if channel.notices & ENDED:
            self._finish()
            return
        if channel.unsent > UNREAD_BYTES:
            log.warning("responses_not_read", **self._who())
            self.cut()
            return
        if channel.notices & CLOSED and self._closing is None:
            self.close()
            return
        events = select.EPOLLOUT if channel.notices & BLOCKED else 0
        if not channel.notices & PAUSED and self._closing is None:
            events |= select.EPOLLIN
        if events & ~self._events & select.EPOLLIN:
            self._server.loop.call_soon(self._readable)  # TLS may hold what came before a pause
        if events != self._events:
            self._events = events
            self._server.watch(self.descriptor, self, events)

    def _gone(self, error: str) -> None:
        log.info("closed_before_handshake", address=self.address, error=error)
        self._finish()

    def _finish(self) -> None:
        """Close the socket; the association hears of it at the loop's next turn."""
        if self._finished:
            return
        self._finished = self._channel.deaf = True
        self._socket.close()  # and so out of epoll's sight
        self._server.loop.call_soon(self._lost)

    def _lost(self) -> None:
        try:
            self._association.lost()
        finally:
            self._channel.taker = None
            self._server.closed(self)

    # --- the listener

    def check_deadlines(self, now: float) -> None:
        """Called by the listener several times a second."""
        receive, association = self._server.config.receive, self._association
        if self._finished:
            return
        if self._closing is not None:
            if now - self._closing > receive.artim_seconds:
                self.cut()
        elif self._pump is not None and not self._pump.established:
            if now - self._opened_at > receive.handshake_seconds:
                self._late("handshake_seconds")
                self.cut()
        elif association.artim is not None:
            if now - association.artim > receive.artim_seconds:
                self._late("artim_seconds")
                association.artim_expired()
        elif now - max(self._channel.heard, self._opened_at) > receive.idle_seconds and not association.busy:
            self._late("idle_seconds")
            association.abort()

    def abort(self) -> None:
        """End the association from our side."""
        self._association.abort()

    # --- the association

    def send(self, data: bytes) -> None:
        """Write in one piece: two would make the second wait for the peer's delayed ACK of the first."""
        if self._finished or self._closing is not None:
            return
        self._channel.send(data)
        if self._channel.notices:
            self.noticed()

    def close(self) -> None:
        """Close after what was written, with TLS's close_notify; what still comes is not looked at."""
        if self._finished or self._closing is not None:
            return
        if self._pump is not None and self._pump.established:
            with contextlib.suppress(ssl.SSLError):
                self._channel.close_notify()
        self._close_when_sent()

    def _close_when_sent(self) -> None:
        self._closing, self._channel.deaf = self.time(), True
        if self._channel.unsent:
            self.noticed()
        else:
            self._finish()

    def cut(self) -> None:
        """Close at once, whatever is unsent."""
        self._finish()

    def time(self) -> float:
        """The monotonic clock, seconds."""
        return self._server.time()

    # --- before there is plaintext

    def _look_at_first_byte(self) -> None:
        with contextlib.suppress(OSError):
            first = self._socket.recv(1, socket.MSG_PEEK)
            self._first_byte = first[0] if first else None

    def _shake_hands(self, pump: Pump) -> bool:
        """Go on with the handshake; whether it is complete, and the peer known."""
        window = self._server.ciphertext
        try:
            count = self._socket.recv_into(window)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self._gone(error.strerror or str(error))
            return False
        if not count:
            self._gone("")
            return False
        if self._first_byte is None:
            self._first_byte = window[0]
        pump.feed(window[:count])
        done = pump.handshake()
        self._channel.send_raw(pump.output())
        return done and self._is_known(pump)

    def _is_known(self, pump: Pump) -> bool:
        der = pump.peer_certificate()
        try:
            self.identity = identity_of(der) if der else None
        except PeerError as error:
            # OpenSSL has verified it, but whom it names cannot be told, and so not what its holder may do.
            log.warning("tls_handshake_failed", **self._who(), error=str(error))
            self._server.services.board.add(self._server.services.row, REFUSED)
            self._channel.secure(pump)
            self.close()
            return False
        self.tls_version = pump.version()
        self._channel.secure(pump)
        self._association.begin()
        return True

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
        if not established and self._pump is not None:
            self._channel.send_raw(self._pump.output())
        self._close_when_sent()

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
        self._channel.deaf = True
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
