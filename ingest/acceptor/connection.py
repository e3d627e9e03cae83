"""One transport connection of a listener: bytes, TLS and deadlines. Its association interprets the PDUs.

All connections of the process read into the same two buffers (INVARIANT 4: memory does not grow with the
image). This is safe because each callback consumes all bytes that it read before it returns.

The connection sets the limits that `PDUParser` (`ext/pdu.pyx`) enforces: maximum PDU length, size of a
command set and size of a data set (`make_parser` at the end).
"""

import contextlib
import socket
import ssl
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import structlog

from ingest.acceptor.association import Association
from ingest.acceptor.endpoints import Endpoint
from ingest.acceptor.header_reader import HeaderReader
from ingest.acceptor.refusals import (
    NO_PROXY_HEADER,
    PLAIN_TO_TLS,
    TLS_TO_PLAIN,
    TOO_MANY_NEWCOMERS,
    refuse_connection,
    refuse_tls,
)
from ingest.dicom.part10 import format_presentation_address
from ingest.dicom.state_table import State
from ingest.ext.channel import BLOCKED, CLOSED, ENDED, PAUSED, UNREAD, Channel
from ingest.ext.errors import PeerError
from ingest.ext.event_loop import READABLE, WRITABLE
from ingest.ext.pdu import Command, ControlPDU, DataSet, PDUParser
from ingest.ext.tls_connection import BufferedConnection
from ingest.ext.tls_errors import NoCertificateError
from ingest.metrics import families
from ingest.metrics.board import current_board
from ingest.network.proxy_header import HeaderFault, ProxyHeader
from ingest.tls.identity import CertificateIdentity, read_identity
from ingest.tls.rejection import REMEDIES, classify_failure, refused_certificate

if TYPE_CHECKING:
    from ingest.acceptor.listener import Listener

UNREAD_BYTES: Final = 1 << 20
"""Bytes of responses that a peer may leave unread before its connection is closed."""

A_ASSOCIATE_RQ: Final = 0x01
TLS_HANDSHAKE: Final = 0x16
"""First byte of a TLS connection: the content type of its first record (RFC 8446 5.1)."""

log = structlog.get_logger()


class Connection:
    """Socket, TLS and deadlines of one peer.

    Attributes:
        endpoint: The listener that accepted it.
        address: IP address of the peer. Behind a load balancer that of the sender, from the PROXY header on.
        is_identified: Whether `address` is known to be that of the sender.
        is_health_check: Whether a load balancer tests the port, by its PROXY header.
        uri: Address and port of the peer as a URI, for the File Meta Information.
        receiver: Our own address and port as a URI.
        identity: Identity of the peer's certificate; None without TLS or without a certificate.
        tls_version: Version of TLS; empty without TLS.
    """

    def __init__(self, listener: "Listener", accepted: socket.socket, endpoint: Endpoint) -> None:
        """Take over a socket that was accepted.

        Raises:
            OSError: The peer has closed the connection already.
        """
        accepted.setblocking(False)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        peer = accepted.getpeername()
        self._listener = listener
        self._socket = accepted
        self._descriptor = accepted.fileno()
        self._tls = BufferedConnection(endpoint.context) if endpoint.context is not None else None
        self._parser = make_parser(listener)
        self._channel = Channel(self._descriptor, self._parser, listener.ciphertext, self)
        self._association = Association(self, listener, self._parser, self._channel)
        self._first_byte: int | None = None
        self._was_watched = False
        self._events = 0  # events that the poller waits for
        self._is_closed = False
        self._is_receive_scheduled = False
        self._closing_since: float | None = None
        self._opened_at = self._owed_response_at = listener.now()
        self.endpoint = endpoint
        self._header = HeaderReader() if endpoint.balancers else None
        self.is_identified = self._header is None
        self.is_health_check = False
        self.address = str(peer[0])
        is_tls = self._tls is not None
        self.uri = format_presentation_address(self.address, peer[1], tls=is_tls)
        self.receiver = format_presentation_address(*accepted.getsockname()[:2], tls=is_tls)
        self.identity: CertificateIdentity | None = None
        self.tls_version = ""

    def start(self) -> None:
        """Start to read."""
        if self._header is None:
            self._begin()
        self.handle_notices()

    def _begin(self) -> None:
        """Begin with the bytes of the sender."""
        if self._tls is None:
            self._association.begin()
            self._channel.plain()

    @property
    def is_open(self) -> bool:
        """Whether the socket is still open."""
        return not self._is_closed

    @property
    def progressed_ms(self) -> int:
        """Monotonic time of the last progress of the peer, in milliseconds."""
        return int(max(self._channel.progressed, self._owed_response_at) * 1000)

    # --- called by the event loop

    def handle_readable(self) -> None:
        """Continue header or handshake, or close a connection that ended while nothing was read from it."""
        if self._is_closed:
            return
        if not self._events & READABLE:
            self.close_now()
        elif self._header is not None:
            self._read_header(self._header)
        elif self._tls is None or self._tls.established:
            self._receive()
        else:
            try:
                established = self._continue_handshake(self._tls)
            except Exception as error:
                self.handle_exception(error)
            else:
                if established:
                    self._receive()

    # --- PROXY header

    def _read_header(self, reader: HeaderReader) -> None:
        """Read the PROXY header. The bytes after it stay in the socket, and the poller reports them again."""
        try:
            header = reader.read(self._socket, self._listener.ciphertext)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            if reader.has_begun:
                self._refuse_header(HeaderFault.MALFORMED.value)
            else:
                # A balancer that tests the port without a header has done nothing wrong.
                log.debug("closed_before_handshake", address=self.address, error=str(error))
                self.close_now()
            return
        except Exception as error:
            self.handle_exception(error)
            return
        if isinstance(header, HeaderFault):
            self._refuse_header(header.value)
        elif header is not None:
            self._take_header(header)

    def _take_header(self, header: ProxyHeader) -> None:
        self._header = None
        self.is_health_check = header.is_local
        if header.address:
            self.address = header.address
            self.uri = format_presentation_address(header.address, header.port, tls=self._tls is not None)
        self.is_identified = True
        if self._listener.admit_sender(self):
            self._begin()

    def _refuse_header(self, cause: str) -> None:
        """Close the connection of a load balancer without a usable header. Its address is not to blame."""
        current_board().add(families.CONNECTIONS_CLOSED, cause)
        self._listener.count_refusal()
        self._listener.count_refused_caller(self, refuse_connection(cause))
        if self._listener.count_header_fault(self) == 1:
            # One wrong setting of a balancer concerns every connection, and must not fill the log.
            log.warning("proxy_header_refused", balancer=self.address, cause=cause, remedy=NO_PROXY_HEADER)
        self.close_now()

    def _receive(self) -> None:
        self._is_receive_scheduled = False
        if self._is_closed:
            return
        try:
            event = self._channel.receive()
        except Exception as error:
            self.handle_exception(error)
        else:
            self.handle_event(event)

    def handle_event(self, event: ControlPDU | Command | DataSet | None) -> None:
        """Handle the event that the channel leaves to Python; with None only its notices."""
        if self._is_closed:
            return
        channel, association = self._channel, self._association
        try:
            while event is not None:
                association.handle_event(event)
                event = channel.receive()
        except Exception as error:
            self.handle_exception(error)
        if channel.notices:
            self.handle_notices()

    def handle_exception(self, error: Exception) -> None:
        """Handle an exception of the channel or of our own code."""
        if isinstance(error, PeerError):
            self._handle_peer_error(error)
        elif isinstance(error, ssl.SSLError):
            self._handle_tls_error(error)
        else:
            # A defect of ours must cost this association only, and not the process with all others.
            log.error("connection_failed", **self._log_fields(), exc_info=error)
            self.close_now()
        if self._channel.notices:
            self.handle_notices()

    def handle_writable(self) -> None:
        """Send more, because the socket has room again."""
        if self._is_closed:
            return
        self._channel.flush()
        if self._closing_since is not None and not self._channel.unsent:
            self.close_now()
        else:
            self.handle_notices()

    def handle_notices(self) -> None:
        """Act on the notices of the channel: end, close, or change the events to wait for."""
        if self._is_closed:
            return
        channel = self._channel
        if channel.notices & ENDED:
            self.close_now()
            return
        if channel.unsent > UNREAD_BYTES:
            log.warning("responses_not_read", **self._log_fields())
            self.close_now()
            return
        if channel.notices & CLOSED and self._closing_since is None:
            self.close()
            return
        events = WRITABLE if channel.notices & BLOCKED else 0
        if not channel.notices & PAUSED and self._closing_since is None:
            events |= READABLE
        if (
            events & READABLE
            and not self._is_receive_scheduled
            and (
                # After a pause TLS may still hold bytes that arrived before it. The socket does not become
                # readable for them.
                channel.notices & UNREAD or (self._was_watched and not self._events & READABLE)
            )
        ):
            self._is_receive_scheduled = True
            self._listener.call_soon(self._receive)
        if events != self._events:
            self._events, self._was_watched = events, True
            self._listener.poller.watch(self._descriptor, channel, events)

    def _close_before_handshake(self, error: str) -> None:
        if self._first_byte is None:
            # A load balancer or a monitor that only tests the port has done nothing wrong.
            log.debug("closed_before_handshake", address=self.address, error=error)
        else:
            # Our part of a handshake costs a signature, even if the peer leaves before the end.
            log.info("closed_before_handshake", address=self.address, error=error)
            current_board().add(families.TLS_FAILURES, "closed")
            self._listener.count_refused_caller(self, refuse_tls("closed"))
            self._listener.record_failure(self)
        self.close_now()

    def close_now(self) -> None:
        """Close the socket and drop queued output. The association gets the event in the next turn."""
        if self._is_closed:
            return
        self._is_closed = True
        # Detach first: the descriptor may be reused, and a late C-STORE response would go to the wrong peer.
        self._channel.detach()
        self._socket.close()  # epoll forgets it by itself
        self._listener.call_soon(self._end)

    def _end(self) -> None:
        try:
            self._association.handle_transport_closed()
        finally:
            self._listener.poller.forget(self._descriptor, self._channel)
            self._listener.remove_connection(self)
            # Break the reference cycles here. The collector runs seldom, and TLS takes 40 KiB a connection.
            self._channel.taker = self._channel.owner = None
            del self._association

    # --- called by the listener

    def check_deadlines(self, now: float) -> None:
        """End the connection if one of its deadlines has passed.

        The listener calls this several times a second. INVARIANT 7: every wait has a deadline.
        """
        receive, association = self._listener.config.receive, self._association
        if self._is_closed:
            return
        if self._closing_since is not None:
            if now - self._closing_since > receive.artim_seconds:
                self.close_now()
        elif self._header is not None or (self._tls is not None and not self._tls.established):
            if now - self._opened_at > receive.handshake_seconds:
                self._end_late_handshake()
        elif association.artim_started_at is not None:
            if now - association.artim_started_at > receive.artim_seconds:
                self._log_deadline("artim_seconds")
                if association.state is State.AWAITING_ASSOCIATE_RQ:
                    self._listener.record_failure(self)
                    self._listener.count_refused_caller(self, refuse_connection("deadline"))
                association.handle_artim_expiry()
        elif self._is_idle(now):
            self._log_deadline("idle_seconds")
            association.release()

    def _end_late_handshake(self) -> None:
        """Close a connection whose PROXY header or TLS handshake is not complete in time."""
        if self._header is not None:
            self._refuse_header("proxy_deadline")
            return
        self._log_deadline("handshake_seconds")
        current_board().add(families.TLS_FAILURES, "deadline")
        self._listener.count_refused_caller(self, refuse_tls("deadline"))
        self._listener.record_failure(self)
        self.close_now()

    def _is_idle(self, now: float) -> bool:
        """Return whether the peer made no progress for too long, while we owed it no response."""
        if self._association.owes_response:
            self._owed_response_at = now
        idle_seconds = self._listener.config.receive.idle_seconds
        return now - max(self._channel.progressed, self._owed_response_at) > idle_seconds

    def evict(self, count: int) -> None:
        """Close this pending connection to make room for others.

        Args:
            count: Evicted connections of this address in this minute, with this one.
        """
        write = (
            log.info if count == 1 else log.debug
        )  # a peer that connects all the time must not fill the log
        write("newcomer_closed", address=self.address, count=count, remedy=TOO_MANY_NEWCOMERS)
        self._listener.count_refused_caller(self, refuse_connection("newcomers"))
        self._listener.record_failure(self)
        self.close_now()

    def abort(self) -> None:
        """End the association by A-ABORT."""
        self._association.abort()

    # --- called by the association

    def send(self, data: bytes) -> None:
        """Send bytes in one write. A second write would wait for the peer's delayed ACK of the first."""
        if self._is_closed or self._closing_since is not None:
            return
        self._channel.send(data)
        if self._channel.notices:
            self.handle_notices()

    def close(self) -> None:
        """Close after the queued bytes and TLS's close_notify. Bytes that still arrive are ignored."""
        if self._is_closed or self._closing_since is not None:
            return
        if self._tls is not None and self._tls.established:
            with contextlib.suppress(ssl.SSLError):
                self._channel.close_notify()
        self._close_when_sent()

    def _close_when_sent(self) -> None:
        self._closing_since = self.now()
        self._channel.ignores_input = self._channel.discards_output = True
        if self._channel.unsent:
            self.handle_notices()
        else:
            self.close_now()

    def now(self) -> float:
        """Return the monotonic clock in seconds."""
        return self._listener.now()

    # --- TLS handshake

    def _continue_handshake(self, tls: BufferedConnection) -> bool:
        """Continue the handshake; return whether it is complete and the peer's certificate is readable."""
        window = self._listener.ciphertext
        try:
            count = self._socket.recv_into(window)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self._close_before_handshake(error.strerror or str(error))
            return False
        if not count:
            self._close_before_handshake("")
            return False
        if self._first_byte is None:
            self._first_byte = window[0]
        tls.feed(window[:count])
        is_complete = tls.shake_hands()
        self._channel.send_raw(tls.output())
        return is_complete and self._identify_peer(tls)

    def _identify_peer(self, tls: BufferedConnection) -> bool:
        """Read the peer's certificate, and begin the association; return False if it is unreadable."""
        der = tls.peer_certificate()
        try:
            self.identity = read_identity(der, tls.verified_chain()) if der else None
        except PeerError as error:
            # OpenSSL has verified the certificate, but we cannot read its names. Without them no rule can
            # decide what the peer may do.
            log.warning("tls_handshake_failed", **self._log_fields(), error=str(error))
            current_board().add(families.TLS_FAILURES, "unreadable_certificate")
            self._listener.count_refused_caller(self, refuse_tls("unreadable_certificate"))
            self._listener.record_failure(self)
            self._listener.count_refusal()
            self._listener.security_alerts.report(self.address, "", f"TLS handshake failed: {error}")
            self._channel.secure(tls)
            self.close()
            return False
        self.tls_version = tls.version()
        current_board().add(families.TLS_HANDSHAKES)
        self._channel.secure(tls)
        self._association.begin()
        return True

    # --- failures

    def _log_fields(self) -> dict[str, Any]:
        return {"address": self.address, "calling_ae": self._association.calling_ae}

    def _log_deadline(self, deadline: str) -> None:
        log.warning("deadline", setting=deadline, **self._log_fields())

    def _handle_tls_error(self, error: ssl.SSLError) -> None:
        """Log the cause, send the alert and close (RFC 8446 6.2)."""
        established = self._tls is not None and self._tls.established
        fields: dict[str, Any] = {"error": error.reason or str(error)}
        if isinstance(error, ssl.SSLCertVerificationError):
            fields.update(verify_code=error.verify_code, verify_message=error.verify_message)
            fields |= refused_certificate(self._tls) if self._tls is not None else {}
            if error.verify_code in REMEDIES:
                fields["remedy"] = REMEDIES[error.verify_code]
        if isinstance(error, NoCertificateError):
            fields["remedy"] = (
                "remove suites without certificates (aNULL, PSK) from ciphers of its [tls.NAME]"
            )
        is_plain = not established and self._first_byte == A_ASSOCIATE_RQ
        cause = "not_tls" if is_plain else classify_failure(error)
        current_board().add(families.TLS_FAILURES, cause)
        refusal = refuse_tls(cause, fields.get("verify_code", 0))
        self._listener.count_refused_caller(
            self,
            refusal,
            calling_ae=self._association.calling_ae,
            subject=fields.get("subject", ""),
            fingerprint=fields.get("fingerprint", ""),
        )
        if is_plain:
            fields["remedy"] = PLAIN_TO_TLS
        log.warning("tls_failed" if established else "tls_handshake_failed", **self._log_fields(), **fields)
        if not established or self._association.state is State.AWAITING_ASSOCIATE_RQ:
            self._listener.record_failure(self)
        self._listener.count_refusal()
        if not established:
            self._listener.security_alerts.report(self.address, "", _describe_handshake_failure(fields))
        if not established and self._tls is not None:
            self._channel.send_raw(self._tls.output())
        self._close_when_sent()

    def _handle_peer_error(self, error: PeerError) -> None:
        # INVARIANT 5: bad bytes raise one error. It ends here in an A-ABORT, never in a traceback.
        is_tls_on_plain_port = self._tls is None and self._channel.first == TLS_HANDSHAKE
        remedy = TLS_TO_PLAIN if is_tls_on_plain_port else ""
        self._listener.count_refused_caller(
            self,
            refuse_connection("tls_to_plain" if is_tls_on_plain_port else "protocol"),
            calling_ae=self._association.calling_ae,
        )
        log.warning(
            "peer_broke_protocol",
            **self._log_fields(),
            error=str(error),
            **({"remedy": remedy} if remedy else {}),
        )
        self._association.handle_invalid_pdu(error)
        self._channel.ignores_input = True
        if is_tls_on_plain_port:
            self.close()


def _describe_handshake_failure(fields: Mapping[str, Any]) -> str:
    """Say for the audit trail why a handshake failed, and which certificate was refused."""
    said = f"TLS handshake failed: {fields.get('verify_message') or fields['error']}"
    names = [f"{name} {fields[name]}" for name in ("subject", "fingerprint") if fields.get(name)]
    return "; ".join([said, *names])


def make_parser(listener: "Listener") -> PDUParser:
    """Make the parser of a connection, with the limits that it enforces before it buffers anything.

    `max_pdu_length` is the maximum length that our A-ASSOCIATE-AC announces (PS3.8 D.1). A longer P-DATA-TF
    raises PeerError, and the peer gets an A-ABORT.
    """
    config = listener.config
    _, data_set_max = config.instance_limit
    return PDUParser(
        listener.plaintext,
        max_pdu_length=config.receive.max_pdu_length,
        max_command_bytes=config.receive.max_command_bytes,
        max_data_set_bytes=data_set_max,
    )
