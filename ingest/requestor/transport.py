"""The connection of the requestor: TCP, with or without TLS. Every wait ends at a deadline.

The socket never blocks. Each wait is a poll(2) of at most half a second, followed by a call of `on_tick`.
A forward worker renews its leases there, even while one large instance is being sent.
"""

import contextlib
import fcntl
import select
import socket
import ssl
import sys
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

from ingest.errors import AssociationError, Cause, PeerError, ResolverAwayError
from ingest.ext.tls_connection import SocketConnection
from ingest.ext.tls_context import Context
from ingest.network.dialer import dial_host
from ingest.network.resolver import TICK_SECONDS, ignore_tick
from ingest.requestor import failures
from ingest.tls.identity import find_binding_fault, read_identity
from ingest.tls.rejection import refused_certificate

UNSENT_BYTES: Final = 1 << 17
UNLIMITED: Final = 0
"""Value of TCP_NOTSENT_LOWAT (tcp(7)) for the limit of the system, which is none by default."""
_ZERO_BYTES: Final = bytes(4)  # SIOCOUTQ of a connection without unacknowledged bytes: an int of 0


@dataclass(frozen=True, slots=True)
class Remote:
    """The acceptor of an association, and our own identity towards it.

    Attributes:
        host: Name or address of the remote.
        port: TCP port of the remote.
        called_ae: AE title of the remote.
        calling_ae: AE title that we use.
        tls: Client context, or None for plain TCP.
        server_hostname: Name for SNI, and for the check of the certificate if `tls` checks names; None means
            `host`.
        is_anonymous: Whether `tls` has no client certificate.
        certificate: Pattern for the certificate of the remote (`ingest.tls.identity.matches`); "" allows any.
        issuer: Pattern for its issuer (`ingest.tls.identity.issued_by`); "" allows any.
    """

    host: str
    port: int
    called_ae: str
    calling_ae: str
    tls: Context | None = None
    server_hostname: str | None = None
    is_anonymous: bool = False
    certificate: str = ""
    issuer: str = ""

    def __str__(self) -> str:
        return f"{self.called_ae} at {self.host}:{self.port}"


class Transport:
    """One connection to a remote. Every failure of network or TLS raises `AssociationError`.

    Attributes:
        stall_seconds: Time in which the remote must accept at least one byte of the output.
        is_mid_send: Whether the last send is incomplete, so that the remote waits for the rest of a PDU.
        bytes_per_second: Limit of the sending rate; 0 means no limit.
        failure_hint: Likely cause of a connection that breaks now; empty once there is an association.
    """

    def __init__(
        self, remote: Remote, sock: socket.socket, on_tick: Callable[[], None] = ignore_tick
    ) -> None:
        """Take over a connected, non-blocking socket."""
        self.remote = remote
        self.stall_seconds = 60.0
        self.is_mid_send = False
        self.failure_hint = ""
        self.bytes_per_second = 0.0
        self._next_send_at = 0.0
        self._limits_unsent = False
        self._on_tick = on_tick
        self._socket = sock
        self._tls: SocketConnection | None = None
        self._poll = select.poll()
        self._poll.register(sock.fileno(), 0)
        self._fd = sock.fileno()
        self._read_poll = select.poll()
        self._read_poll.register(self._fd, select.POLLIN)

    @classmethod
    def connect(cls, remote: Remote, seconds: float, on_tick: Callable[[], None] = ignore_tick) -> Self:
        """Resolve the name of the remote, connect to it and do the TLS handshake, all within `seconds`.

        Raises:
            AssociationError: No name server or no address answered, or TLS failed. The message contains the
                verification error or the alert.
        """
        deadline = time.monotonic() + seconds
        transport = cls(remote, _connect_tcp(remote, seconds, on_tick), on_tick)
        try:
            transport._start_tls(deadline)
        except BaseException:
            transport.close()
            raise
        return transport

    def tick(self) -> None:
        """Call `on_tick`. Long work without a wait must call this often."""
        self._on_tick()

    def send(self, data: bytes | memoryview, on_readable: Callable[[], None]) -> None:
        """Send all of `data`.

        Args:
            data: Bytes to send. The buffer is free again afterwards.
            on_readable: Called if the remote sends something while it does not take our data.

        Raises:
            AssociationError: The connection broke, or the remote stalled.
        """
        sent, size = 0, len(data)
        stalled_since = 0.0
        self.is_mid_send = True
        with memoryview(data) as view:
            while sent < size:
                try:
                    sent += self._send_bytes(view[sent:] if sent else view)
                    stalled_since = 0.0
                    continue
                except (BlockingIOError, ssl.SSLWantWriteError):
                    wanted = select.POLLOUT | select.POLLIN
                except ssl.SSLWantReadError:
                    wanted = select.POLLIN
                except OSError as error:
                    self._read_reason(on_readable)
                    raise self._make_error(error) from error
                stalled_since = stalled_since or time.monotonic()
                # INVARIANT 7: a remote that takes no data ends the send
                deadline = stalled_since + self.stall_seconds
                if self._wait_for_events(wanted, deadline, "takes no data") & select.POLLIN:
                    on_readable()
        self.is_mid_send = False
        self._on_tick()
        if self.bytes_per_second:
            self._wait_for_rate(size)

    def _send_bytes(self, data: memoryview) -> int:
        return self._tls.send(data) if self._tls is not None else self._socket.send(data)

    def _wait_for_rate(self, size: int) -> None:
        """Wait for the time that `size` bytes take at the allowed rate."""
        self._next_send_at = max(self._next_send_at, time.monotonic()) + size / self.bytes_per_second
        while (left := self._next_send_at - time.monotonic()) > 0:
            time.sleep(min(left, TICK_SECONDS))
            self._on_tick()

    def receive_into(self, buffer: memoryview, deadline: float, extension_seconds: float = 0.0) -> int:
        """Wait for bytes and copy them into `buffer`. Returns their count; 0 is the end of the connection.

        Args:
            buffer: Target. Bytes that do not fit stay in the kernel.
            deadline: Value of time.monotonic().
            extension_seconds: Extension of the deadline whenever the remote acknowledges bytes of ours. On a
                slow line the data in the kernel may need longer than the remote needs for its response.

        Raises:
            AssociationError: The connection broke, or nothing came in time.
        """
        while True:
            if not (self._tls and self._tls.has_pending()):
                self._wait_for_events(select.POLLIN, deadline, "gives no answer", extension_seconds)
            received = self.receive_available(buffer)
            if received is not None:
                return received
            self.send_tcp_acknowledgement()

    def send_tcp_acknowledgement(self) -> None:
        """Acknowledge received bytes at once, because the rest of a response is still to come.

        DCMTK and others write a response in pieces without TCP_NODELAY. Nagle's algorithm then holds back the
        second piece until the first is acknowledged. The kernel would delay that by 40 ms for each instance.
        """
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def receive_available(self, buffer: memoryview) -> int | None:
        """Copy received bytes into `buffer`. None means that there are none, 0 the end of the connection."""
        try:
            return self._tls.receive_into(buffer) if self._tls is not None else self._socket.recv_into(buffer)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None
        except ssl.SSLEOFError:
            return 0
        except OSError as error:
            raise self._make_error(error) from error

    def is_readable(self) -> bool:
        """Return whether a read may give bytes now."""
        if self._tls and self._tls.has_pending():
            return True
        return bool(self._read_poll.poll(0))

    def limit_unsent_bytes(self, *, is_limited: bool) -> None:
        """Limit how many bytes the kernel takes beyond the window of the remote, or remove that limit.

        Without a limit the kernel takes a whole data set at once. An early response of the remote would then
        be read after the send, and look like a response to the whole data set. A data set that
        is larger than all buffers cannot cause this, and without the limit there are fewer wake-ups.
        """
        if is_limited != self._limits_unsent:
            self._limits_unsent = is_limited
            value = UNSENT_BYTES if is_limited else UNLIMITED
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, value)

    def has_unacknowledged_bytes(self) -> bool:
        """Return whether TCP of the remote has not acknowledged all bytes that were sent."""
        return self._read_output_queue() != _ZERO_BYTES

    def peer_certificate(self) -> bytes | None:
        """Return the certificate of the remote, DER; None without TLS."""
        return self._tls.peer_certificate() if self._tls is not None else None

    def prepare_last_send(self, seconds: float) -> None:
        """Give the last PDU little time to be sent, and call `on_tick` no longer."""
        self._on_tick = ignore_tick
        self.stall_seconds = seconds

    def close(self) -> None:
        """Send the TLS close_notify alert if that needs no wait, and close the connection."""
        if self._tls is not None:
            self._tls.close()
        self._socket.close()

    def _start_tls(self, deadline: float) -> None:
        if self.remote.tls is None:
            self.failure_hint = "; does its port expect TLS?"
            return
        # With TLS 1.3 the remote refuses our certificate only after our side of the handshake is complete.
        self.failure_hint = "; does it trust our certificate?"
        # RFC 6066 3: SNI has no trailing dot. In the configuration the dot keeps a resolver from trying its
        # own domains.
        name = (self.remote.server_hostname or self.remote.host).rstrip(".")
        try:
            self._tls = SocketConnection(self.remote.tls, self._fd, name)
        except (OSError, ValueError) as error:
            raise AssociationError(f"{self.remote}: TLS cannot start for {name!r}: {error}") from error
        while True:
            try:
                self._tls.shake_hands()
                self._verify_identity(self._tls)
                return
            except ssl.SSLWantReadError:
                wanted = select.POLLIN
            except ssl.SSLWantWriteError:
                wanted = select.POLLOUT
            except (OSError, ValueError) as error:
                raise self._make_error(error, in_handshake=True) from error
            complaint = "does not finish the TLS handshake (is its port a plain one?)"
            self._wait_for_events(wanted, deadline, complaint, cause=Cause.NOT_TLS)

    def _verify_identity(self, connection: SocketConnection) -> None:
        """Verify before the first PDU that the remote is the one that the configuration names.

        Raises:
            AssociationError: The remote is another peer, although its certificate is trusted too.
        """
        patterns = self.remote.certificate, self.remote.issuer
        if not any(patterns):
            return
        der = connection.peer_certificate()
        try:
            identity = read_identity(der, connection.verified_chain()) if der else None
        except PeerError as error:  # OpenSSL is less strict, and has accepted the certificate.
            raise AssociationError(f"{self.remote}: {error}", cause=Cause.UNBOUND) from error
        if fault := find_binding_fault(identity, *patterns, f"AE title {self.remote.called_ae!r}"):
            raise AssociationError(f"{self.remote}: {fault}", cause=Cause.UNBOUND)

    def _wait_for_events(
        self,
        events: int,
        deadline: float,
        complaint: str,
        extension_seconds: float = 0.0,
        cause: Cause = Cause.NO_RESPONSE,
    ) -> int:
        """Wait for one of `events` and return what came. An error counts as all of them: the call reports it.

        Args:
            events: Flags of poll(2).
            deadline: Value of time.monotonic().
            complaint: Predicate of the error message after the deadline.
            extension_seconds: See `receive_into`.
            cause: Cause of the error after the deadline.
        """
        self._poll.modify(self._fd, events)
        unacknowledged = 0
        while True:
            left = deadline - time.monotonic()
            ready = self._poll.poll(max(0.0, min(left, TICK_SECONDS)) * 1000)
            self._on_tick()
            if ready:
                came = ready[0][1]
                return came if came & events else came | events
            before, unacknowledged = unacknowledged, self._count_unacknowledged() if extension_seconds else 0
            if unacknowledged < before:
                deadline = time.monotonic() + extension_seconds
            elif left <= 0:
                # INVARIANT 7: every wait has a deadline
                raise AssociationError(f"{self.remote}: the remote {complaint}", cause=cause)

    def _count_unacknowledged(self) -> int:
        return int.from_bytes(self._read_output_queue(), sys.byteorder)

    def _read_output_queue(self) -> bytes:
        return fcntl.ioctl(self._fd, termios.TIOCOUTQ, _ZERO_BYTES)

    def _read_reason(self, on_readable: Callable[[], None]) -> None:
        """Read the A-ABORT or TLS alert that the remote sent before it closed. It says more than EPIPE."""
        with contextlib.suppress(OSError):
            if self.is_readable():
                on_readable()

    def _make_error(self, error: Exception, *, in_handshake: bool = False) -> AssociationError:
        hint = "" if in_handshake or isinstance(error, ssl.SSLError) else self.failure_hint
        is_unverified = isinstance(error, ssl.SSLCertVerificationError)
        refused = refused_certificate(self._tls) if is_unverified and self._tls is not None else {}
        said = failures.describe_error(error, in_handshake=in_handshake, refused=refused)
        return AssociationError(
            f"{self.remote}: {said}{hint}",
            cause=failures.find_cause(
                error, in_handshake=in_handshake, is_anonymous=self.remote.is_anonymous
            ),
        )


def _connect_tcp(remote: Remote, seconds: float, on_tick: Callable[[], None]) -> socket.socket:
    cause: Cause | None = Cause.UNREACHABLE
    try:
        return dial_host(remote.host, remote.port, seconds, on_tick)
    except ResolverAwayError as error:
        cause, said = Cause.NO_NAME_SERVER, f"the name cannot be resolved: {error}"
    except socket.gaierror as error:
        is_away = error.errno in {socket.EAI_AGAIN, socket.EAI_FAIL}
        cause = Cause.NO_NAME_SERVER if is_away else Cause.UNKNOWN_HOST
        said = f"the name cannot be resolved: {error}"
    except TimeoutError:
        said = "the remote does not take the connection"
    except OSError as error:
        said = failures.describe_error(error)
        cause = failures.find_cause(error, in_handshake=False, is_anonymous=remote.is_anonymous)
    raise AssociationError(f"{remote}: {said}", cause=cause)
