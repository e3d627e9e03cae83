"""One transport connection of a listener: bytes, TLS and deadlines. What the bytes mean is its association's.

Every connection of the process reads into the same two buffers, which is sound because each callback consumes
all that it was given before it returns.
"""

import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final, Protocol

import structlog

from ingest.acceptor.association import Association, Decider
from ingest.acceptor.scoreboard import REFUSED
from ingest.config.model import Config
from ingest.dicom.part10 import presentation_address
from ingest.dicom.state_table import State
from ingest.ext.channel import BLOCKED, CLOSED, ENDED, PAUSED, UNREAD, Channel
from ingest.ext.errors import PeerError
from ingest.ext.event_loop import READABLE, WRITABLE, Poller
from ingest.ext.pdu import Command, ControlPDU, DataSet, PDUParser
from ingest.ext.tls_connection import BufferedConnection
from ingest.ext.tls_context import Context
from ingest.ext.tls_errors import NoCertificateError
from ingest.tls.identity import CertificateIdentity, read_identity
from ingest.tls.rejection import REMEDIES, refused_certificate

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
        poller: What it waits with.
        ciphertext: Where the network's bytes go; all connections share it.
        plaintext: What TLS makes of them; two records longer.
    """

    config: Config
    poller: Poller
    ciphertext: memoryview
    plaintext: memoryview

    def closed(self, connection: "Connection") -> None:
        """A connection has ended."""

    def time(self) -> float:
        """The monotonic clock, seconds."""

    def soon(self, function: Callable[[], None]) -> None:
        """Call a function in the next turn."""


class Connection:
    """Bytes in and out of one peer."""

    def __init__(self, server: Server, accepted: socket.socket, context: Context | None) -> None:
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
        self._descriptor = accepted.fileno()
        self._tls = BufferedConnection(context) if context is not None else None
        self._parser = _parser(server)
        self._channel = Channel(self._descriptor, self._parser, server.ciphertext, self)
        self._association = Association(self, server, self._parser, self._channel)
        self._first_byte: int | None = None
        self._watched = False
        self._events = 0  # what is waited for
        self._finished = False
        self._due = False  # `_receive` is, in the next turn
        self._closing: float | None = None  # since when
        self._opened_at = self._busy_at = server.time()
        self.address = str(peer[0])
        tls = self._tls is not None
        self.uri = presentation_address(self.address, peer[1], tls=tls)
        self.receiver = presentation_address(*accepted.getsockname()[:2], tls=tls)
        self.identity: CertificateIdentity | None = None
        self.tls_version = ""

    def start(self) -> None:
        """Begin to read."""
        if self._tls is None:
            self._association.begin()
            self._channel.plain()
        self.noticed()

    @property
    def is_open(self) -> bool:
        """Whether the socket is not closed yet."""
        return not self._finished

    # --- the event loop

    def readable(self) -> None:
        """Something has come that is not simply PDUs, or the peer is gone while we wait for nothing."""
        if self._finished:
            return
        if not self._events & READABLE:
            self._finish()
        elif self._tls is None or self._tls.established:
            self._receive()
        else:
            try:
                established = self._shake_hands(self._tls)
            except Exception as error:
                self.failed(error)
            else:
                if established:
                    self._receive()

    def _receive(self) -> None:
        self._due = False
        if self._finished:
            return
        try:
            event = self._channel.receive()
        except Exception as error:
            self.failed(error)
        else:
            self.arrived(event)

    def arrived(self, event: ControlPDU | Command | DataSet | None) -> None:
        """The channel leaves this event to us, or (None) has noticed something."""
        if self._finished:
            return
        channel, association = self._channel, self._association
        try:
            while event is not None:
                association.received(event)
                event = channel.receive()
        except Exception as error:
            self.failed(error)
        if channel.notices:
            self.noticed()

    def failed(self, error: Exception) -> None:
        """What the channel or we made of what came failed."""
        if isinstance(error, PeerError):
            self._peer_failed(error)
        elif isinstance(error, ssl.SSLError):
            self._tls_failed(error)
        else:
            # A defect of ours must cost this association, not the process with all the others.
            log.error("connection_failed", **self._who(), exc_info=error)
            self.cut()
        if self._channel.notices:
            self.noticed()

    def writable(self) -> None:
        """The kernel takes more."""
        if self._finished:
            return
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
        events = WRITABLE if channel.notices & BLOCKED else 0
        if not channel.notices & PAUSED and self._closing is None:
            events |= READABLE
        if (
            events & READABLE
            and not self._due
            and (
                # After a pause TLS may hold what came before it.
                channel.notices & UNREAD or (self._watched and not self._events & READABLE)
            )
        ):
            self._due = True
            self._server.soon(self._receive)
        if events != self._events:
            self._events, self._watched = events, True
            self._server.poller.watch(self._descriptor, channel, events)

    def _gone(self, error: str) -> None:
        if self._first_byte is None:
            # Who looks whether the port is open (a load balancer, a monitor) has done nothing wrong.
            log.debug("closed_before_handshake", address=self.address, error=error)
        else:
            # Our side of a handshake costs us a signature, whether or not the peer stays for the rest.
            log.info("closed_before_handshake", address=self.address, error=error)
            self._server.peer_failed(self.address)
        self._finish()

    def _finish(self) -> None:
        """Close the socket; the association hears of it at the loop's next turn."""
        if self._finished:
            return
        self._finished = True
        # Before another connection gets the socket's number: what becomes durable until the association hears
        # of its end would be answered there.
        self._channel.detach()
        self._socket.close()  # and so out of epoll's sight
        self._server.soon(self._lost)

    def _lost(self) -> None:
        try:
            self._association.lost()
        finally:
            self._server.poller.forget(self._descriptor, self._channel)
            self._server.closed(self)
            # What holds each other is let go: the collector comes seldom, and TLS takes 40 KiB a connection.
            self._channel.taker = self._channel.owner = None
            del self._association

    # --- the listener

    def check_deadlines(self, now: float) -> None:
        """Called by the listener several times a second."""
        receive, association = self._server.config.receive, self._association
        if self._finished:
            return
        if self._closing is not None:
            if now - self._closing > receive.artim_seconds:
                self.cut()
        elif self._tls is not None and not self._tls.established:
            if now - self._opened_at > receive.handshake_seconds:
                self._late("handshake_seconds")
                self._server.peer_failed(self.address)
                self.cut()
        elif association.artim is not None:
            if now - association.artim > receive.artim_seconds:
                self._late("artim_seconds")
                if association.state is State.AWAITING_ASSOCIATE_RQ:
                    self._server.peer_failed(self.address)
                association.artim_expired()
        elif self._is_idle(now):
            self._late("idle_seconds")
            association.release()

    def _is_idle(self, now: float) -> bool:
        """Whether the peer has not come on for too long, while it was not for us to answer."""
        if self._association.busy:
            self._busy_at = now
        idle_seconds = self._server.config.receive.idle_seconds
        return now - max(self._channel.progressed, self._busy_at) > idle_seconds

    def crowded_out(self, count: int) -> None:
        """Make room for others, as `count` of this address had to in this minute: it has no association."""
        say = log.info if count == 1 else log.debug  # whoever connects all the time must not fill the log
        say("newcomer_closed", address=self.address, count=count, remedy="raise [receive] max_newcomers")
        self._server.peer_failed(self.address)
        self.cut()

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
        if self._tls is not None and self._tls.established:
            with contextlib.suppress(ssl.SSLError):
                self._channel.close_notify()
        self._close_when_sent()

    def _close_when_sent(self) -> None:
        self._closing = self.time()
        self._channel.deaf = self._channel.mute = True
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

    def _shake_hands(self, tls: BufferedConnection) -> bool:
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
        tls.feed(window[:count])
        done = tls.shake_hands()
        self._channel.send_raw(tls.output())
        return done and self._is_known(tls)

    def _is_known(self, tls: BufferedConnection) -> bool:
        der = tls.peer_certificate()
        try:
            self.identity = read_identity(der, tls.verified_chain()) if der else None
        except PeerError as error:
            # OpenSSL has verified it, but whom it names cannot be told, and so not what its holder may do.
            log.warning("tls_handshake_failed", **self._who(), error=str(error))
            self._server.peer_failed(self.address)
            self._server.services.board.add(self._server.services.row, REFUSED)
            self._channel.secure(tls)
            self.close()
            return False
        self.tls_version = tls.version()
        self._channel.secure(tls)
        self._association.begin()
        return True

    # --- failures

    def _who(self) -> dict[str, Any]:
        return {"address": self.address, "calling_ae": self._association.calling_ae}

    def _late(self, deadline: str) -> None:
        log.warning("deadline", setting=deadline, **self._who())

    def _tls_failed(self, error: ssl.SSLError) -> None:
        """Send the alert, say why, close (RFC 8446 6.2)."""
        established = self._tls is not None and self._tls.established
        facts: dict[str, Any] = {"error": error.reason or str(error)}
        if isinstance(error, ssl.SSLCertVerificationError):
            facts.update(verify_code=error.verify_code, verify_message=error.verify_message)
            facts |= refused_certificate(self._tls) if self._tls is not None else {}
            if error.verify_code in REMEDIES:
                facts["remedy"] = REMEDIES[error.verify_code]
        if isinstance(error, NoCertificateError):
            facts["remedy"] = "remove suites without certificates (aNULL, PSK) from ciphers of its [tls.NAME]"
        if not established and self._first_byte == A_ASSOCIATE_RQ:
            facts["remedy"] = (
                "the peer speaks plain DICOM to a TLS port: enable TLS there, or use a plain listener"
            )
        log.warning("tls_failed" if established else "tls_handshake_failed", **self._who(), **facts)
        if not established or self._association.state is State.AWAITING_ASSOCIATE_RQ:
            self._server.peer_failed(self.address)
        self._server.services.board.add(self._server.services.row, REFUSED)
        if not established and self._tls is not None:
            self._channel.send_raw(self._tls.output())
        self._close_when_sent()

    def _peer_failed(self, error: PeerError) -> None:
        mismatch = self._tls is None and self._channel.first == TLS_HANDSHAKE
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
    _, limit = config.instance_limit
    return PDUParser(
        server.plaintext,
        max_pdu_length=config.receive.max_pdu_length,
        max_command_bytes=config.receive.max_command_bytes,
        max_data_set_bytes=limit,
    )
