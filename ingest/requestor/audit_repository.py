"""The audit record repository: a connection that takes syslog messages over TLS (RFC 5425) or UDP (RFC 5426).

Syslog has no answer to a message. A TLS connection therefore shows only two things: whether TCP of the
repository has acknowledged all bytes, and whether the connection still stands. The sender in
`workers/monitor/` keeps a message in its queue until both were true for a while.
"""

import select
import socket
from typing import Final, Protocol

from ingest.audit.syslog import encode_frame
from ingest.config.model import AuditSettings, Config
from ingest.errors import AssociationError, Cause, ConfigError, ResolverAwayError
from ingest.network.resolver import RESOLVER, ignore_tick
from ingest.requestor.transport import Remote, Transport
from ingest.tls.contexts import build_client_context

CONNECT_SECONDS: Final = 5.0
"""Deadline of the name lookup, TCP and the TLS handshake together."""

STALL_SECONDS: Final = 5.0
"""Time in which the repository must accept at least one byte of the output."""

_NAME: Final = "the audit repository"


class RepositoryConnection(Protocol):
    """A connection to a repository. Every failure of network or TLS raises AssociationError."""

    def send(self, syslog_message: bytes) -> None:
        """Send one message."""

    def is_acknowledged(self) -> bool:
        """Return whether the network of the repository has all messages that were sent."""

    def require_open(self) -> None:
        """Raise AssociationError if the repository has closed the connection."""

    def close(self) -> None:
        """Close the connection."""


def connect_to_repository(config: Config, settings: AuditSettings) -> RepositoryConnection:
    """Connect to the repository of `[audit]`.

    The files of `[tls.NAME]` are read each time, so the next connection uses a renewed certificate.

    Raises:
        AssociationError: The repository is away, or TLS failed.
        ConfigError: A file of `[tls.NAME]` cannot be used.
    """
    if settings.tls is False:
        return UDPConnection(settings)
    try:
        context = build_client_context(config.tls[settings.tls])
    except ConfigError as error:
        raise ConfigError([f"tls.{settings.tls}: {fault}" for fault in error.faults]) from None
    tls = config.tls[settings.tls]
    is_anonymous = tls.certificate is None and tls.pkcs12 is None
    remote = Remote(settings.host, settings.port, _NAME, "", context, is_anonymous=is_anonymous)
    return TLSConnection(remote)


class TLSConnection:
    """Syslog over TLS."""

    def __init__(self, remote: Remote) -> None:
        """Connect.

        Raises:
            AssociationError: As `Transport.connect`.
        """
        self._transport = Transport.connect(remote, CONNECT_SECONDS)
        self._transport.stall_seconds = STALL_SECONDS
        self._buffer = memoryview(bytearray(4096))

    def send(self, syslog_message: bytes) -> None:
        """Send one message as a frame of RFC 5425."""
        self._transport.send(encode_frame(syslog_message), self.require_open)

    def is_acknowledged(self) -> bool:
        """Return whether TCP of the repository has acknowledged all bytes."""
        return not self._transport.has_unacknowledged_bytes()

    def require_open(self) -> None:
        """Read what came: an alert or the end of the connection. A repository sends no data."""
        while self._transport.is_readable():
            received = self._transport.receive_available(self._buffer)
            if received == 0:
                raise AssociationError(
                    f"{self._transport.remote}: it closed the connection", cause=Cause.CLOSED
                )
            if received is None:
                return

    def close(self) -> None:
        """Close with close_notify (RFC 5425 4.4)."""
        self._transport.close()


class UDPConnection:
    """Syslog over UDP: without encryption, order or acknowledgement."""

    def __init__(self, settings: AuditSettings) -> None:
        """Look the name up, and open a socket.

        Raises:
            AssociationError: The name has no address, or the network is unreachable.
        """
        self._name = f"{_NAME} at {settings.host}:{settings.port}"
        try:
            family, _, _, _, address = RESOLVER.resolve(
                settings.host, settings.port, CONNECT_SECONDS, ignore_tick
            )[0]
            self._socket = socket.socket(family, socket.SOCK_DGRAM)
        except (OSError, ResolverAwayError) as error:
            raise AssociationError(f"{self._name}: {error}") from error
        try:
            self._socket.settimeout(STALL_SECONDS)
            self._socket.connect(address)
        except OSError as error:
            self._socket.close()
            raise AssociationError(f"{self._name}: {error.strerror}") from error

    def send(self, syslog_message: bytes) -> None:
        """Send one message as a datagram (RFC 5426 3.1)."""
        try:
            self._socket.send(syslog_message)
        except OSError as error:
            raise AssociationError(f"{self._name}: {error.strerror or error}") from error

    def is_acknowledged(self) -> bool:
        """Return True: UDP has no acknowledgement."""
        return True

    def require_open(self) -> None:
        """Raise the error of an ICMP message that the port is closed, if one has arrived."""
        poll = select.poll()
        poll.register(self._socket, 0)
        if poll.poll(0):
            number = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if number:
                raise AssociationError(f"{self._name}: nobody listens", cause=Cause.REFUSED)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
