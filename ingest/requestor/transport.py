"""The sender's connection: TCP, with TLS or without, on which every wait ends at a deadline.

The socket never blocks; each wait is a poll(2) of at most half a second, after which the owner is given its
turn (`on_tick`): a forward worker renews its leases there, also while one large instance is on its way.
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
from ingest.network.dialer import dial_host
from ingest.network.resolver import TICK_SECONDS, ignore_tick
from ingest.requestor import failures
from ingest.tls.identity import find_binding_fault, read_identity
from ingest.tls.peer_identity import require_proof, verified_chain
from ingest.tls.rejection import refused_certificate

UNSENT_BYTES: Final = 1 << 17
UNLIMITED: Final = 0
"""As TCP_NOTSENT_LOWAT (tcp(7)): the system's own limit, which is none by default."""
_NOTHING: Final = bytes(4)


@dataclass(frozen=True, slots=True)
class Remote:
    """Whom to associate with, and as whom.

    Attributes:
        host: Name or address of the remote.
        port: Its TCP port.
        called_ae: Its AE title.
        calling_ae: Ours.
        tls: A client context, or None for plain TCP.
        server_hostname: The name to ask for and to check where `tls` checks names; None is `host`.
        anonymous: Whether `tls` has no certificate to show.
        certificate: The one that it must show (a pattern of `ingest.tls.identity.matches`); "" is any.
        issuer: Who must have issued that (a pattern of `issued_by`); "" is any.
    """

    host: str
    port: int
    called_ae: str
    calling_ae: str
    tls: ssl.SSLContext | None = None
    server_hostname: str | None = None
    anonymous: bool = False
    certificate: str = ""
    issuer: str = ""

    def __str__(self) -> str:
        return f"{self.called_ae} at {self.host}:{self.port}"


class Transport:
    """One connection to a remote. Raises `AssociationError` for everything that the network or TLS does.

    Attributes:
        stall_seconds: How long the remote may take nothing at all of what is sent.
        mid_send: Whether a send broke off, so that the remote waits for the rest of a PDU.
        bytes_per_second: How fast to send at most; 0 is as fast as it goes.
        hint: What may be wrong should the connection break now; empty once there is an association.
    """

    def __init__(
        self, remote: Remote, sock: socket.socket, on_tick: Callable[[], None] = ignore_tick
    ) -> None:
        """Take over a connected, non-blocking socket."""
        self.remote = remote
        self.stall_seconds = 60.0
        self.mid_send = False
        self.hint = ""
        self.bytes_per_second = 0.0
        self._free_at = 0.0
        self._far = True
        self._on_tick = on_tick
        self._socket = sock
        self._tls: ssl.SSLSocket | None = None
        self._poll = select.poll()
        self._poll.register(sock.fileno(), 0)
        self._fd = sock.fileno()
        self._arrivals = select.poll()
        self._arrivals.register(self._fd, select.POLLIN)

    @classmethod
    def connect(cls, remote: Remote, seconds: float, on_tick: Callable[[], None] = ignore_tick) -> Self:
        """Look the remote's name up, connect to one of its addresses and shake hands, all within `seconds`.

        Raises:
            AssociationError: No name server or no address answered, or TLS failed; names the verify message
                or the alert.
        """
        deadline = time.monotonic() + seconds
        transport = cls(remote, _dialed(remote, seconds, on_tick), on_tick)
        try:
            transport._handshake(deadline)
        except BaseException:
            transport.close()
            raise
        return transport

    def tick(self) -> None:
        """Give the owner its turn: for work between two waits that takes long."""
        self._on_tick()

    def send(self, data: bytes | memoryview, on_readable: Callable[[], None]) -> None:
        """Send all of `data`.

        Args:
            data: What to send; not kept.
            on_readable: Called when the remote says something while it does not take what we send.

        Raises:
            AssociationError: The connection broke, or the remote stalled.
        """
        sent, size = 0, len(data)
        stalled_since = 0.0
        self.mid_send = True
        with memoryview(data) as view:
            while sent < size:
                try:
                    sent += self._socket.send(view[sent:] if sent else view)
                    stalled_since = 0.0
                    continue
                except (BlockingIOError, ssl.SSLWantWriteError):
                    wanted = select.POLLOUT | select.POLLIN
                except ssl.SSLWantReadError:
                    wanted = select.POLLIN
                except OSError as error:
                    self._explain_broken_send(on_readable)
                    raise self._failed(error) from error
                stalled_since = stalled_since or time.monotonic()
                if self._wait(wanted, stalled_since + self.stall_seconds, "takes no data") & select.POLLIN:
                    on_readable()
        self.mid_send = False
        self._on_tick()
        if self.bytes_per_second:
            self._pace(size)

    def _pace(self, size: int) -> None:
        """Wait for as long as `size` bytes take at the rate that is allowed."""
        self._free_at = max(self._free_at, time.monotonic()) + size / self.bytes_per_second
        while (left := self._free_at - time.monotonic()) > 0:
            time.sleep(min(left, TICK_SECONDS))
            self._on_tick()

    def receive_into(self, buffer: memoryview, deadline: float, patience: float = 0.0) -> int:
        """Wait for bytes and put them into `buffer`; 0 is the end of the connection.

        Args:
            buffer: Where to; what fits is taken.
            deadline: On the clock of time.monotonic().
            patience: Seconds by which the deadline moves while the remote takes what was sent: a thin line
                may need longer for what the kernel holds than a remote may think.

        Raises:
            AssociationError: The connection broke, or nothing came in time.
        """
        while True:
            if not (self._tls and self._tls.pending()):
                self._wait(select.POLLIN, deadline, "gives no answer", patience)
            received = self.receive_now(buffer)
            if received is not None:
                return received
            self.acknowledge()

    def acknowledge(self) -> None:
        """Have TCP confirm what came, now, where the rest of an answer is still to come.

        A remote that writes its answer in pieces without TCP_NODELAY, as DCMTK does, holds the second back
        until the first is confirmed; the kernel would take 40 ms for that, with each instance.
        """
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def receive_now(self, buffer: memoryview) -> int | None:
        """Put what is there into `buffer`; None where nothing is, 0 at the end of the connection."""
        try:
            return self._socket.recv_into(buffer)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None
        except ssl.SSLEOFError:
            return 0
        except OSError as error:
            raise self._failed(error) from error

    def readable(self) -> bool:
        """Whether a read may give something now."""
        if self._tls and self._tls.pending():
            return True
        return bool(self._arrivals.poll(0))

    def run_ahead(self, *, far: bool) -> None:
        """Say how much the kernel may take that does not fit into the remote's window yet.

        With its own megabytes it takes a whole data set at once, and an answer that the remote gave before it
        had read that is seen too late to tell. Beyond what all buffers hold there is no such risk, and waking
        up less often is cheaper.
        """
        if far != self._far:
            self._far = far
            limit = UNLIMITED if far else UNSENT_BYTES
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, limit)

    def has_unread(self) -> bool:
        """Whether the remote's TCP has not confirmed all that was sent."""
        return self._unsent_raw() != _NOTHING

    def peer_certificate(self) -> bytes | None:
        """What the remote has shown, DER; None without TLS."""
        return self._tls.getpeercert(binary_form=True) if self._tls is not None else None

    def silence(self, seconds: float) -> None:
        """Before the last words: no more turns for the owner, and little patience."""
        self._on_tick = ignore_tick
        self.stall_seconds = seconds

    def close(self) -> None:
        """Say so in TLS, if that takes no waiting, and close."""
        if self._tls is not None:
            with contextlib.suppress(OSError, ValueError):
                self._tls.unwrap()
        self._socket.close()

    def _handshake(self, deadline: float) -> None:
        if self.remote.tls is None:
            self.hint = "; does its port expect TLS?"
            return
        # TLS 1.3: that the remote refuses our certificate shows only after the handshake.
        self.hint = "; does it trust our certificate?"
        # RFC 6066 3: no trailing dot, though it keeps a resolver from trying domains of its own.
        name = (self.remote.server_hostname or self.remote.host).rstrip(".")
        try:
            self._tls = self.remote.tls.wrap_socket(
                self._socket, do_handshake_on_connect=False, server_hostname=name
            )
        except (OSError, ValueError) as error:
            raise AssociationError(f"{self.remote}: TLS cannot start for {name!r}: {error}") from error
        self._socket = self._tls
        while True:
            try:
                self._tls.do_handshake()
                self._know(self._tls)
                return
            except ssl.SSLWantReadError:
                wanted = select.POLLIN
            except ssl.SSLWantWriteError:
                wanted = select.POLLOUT
            except (OSError, ValueError) as error:
                raise self._failed(error, shaking=True) from error
            complaint = "does not finish the TLS handshake (is its port a plain one?)"
            self._wait(wanted, deadline, complaint, cause=Cause.NOT_TLS)

    def _know(self, connection: ssl.SSLSocket) -> None:
        """Make sure that the remote is the one that the configuration means, before anything is said to it.

        Raises:
            ssl.SSLError: It has not proved who it is.
            AssociationError: It is somebody else, whom we trust too.
        """
        require_proof(connection)
        wanted = self.remote.certificate, self.remote.issuer
        if not any(wanted):
            return
        der = connection.getpeercert(binary_form=True)
        try:
            identity = read_identity(der, verified_chain(connection)) if der else None
        except PeerError as error:  # OpenSSL is less strict, and has taken it
            raise AssociationError(f"{self.remote}: {error}", cause=Cause.UNBOUND) from error
        if fault := find_binding_fault(identity, *wanted, f"AE title {self.remote.called_ae!r}"):
            raise AssociationError(f"{self.remote}: {fault}", cause=Cause.UNBOUND)

    def _wait(
        self,
        events: int,
        deadline: float,
        complaint: str,
        patience: float = 0.0,
        cause: Cause | None = None,
    ) -> int:
        """Wait for one of `events`; gives what came, or all of them where an error is to be fetched."""
        self._poll.modify(self._fd, events)
        unsent = 0
        while True:
            left = deadline - time.monotonic()
            ready = self._poll.poll(max(0.0, min(left, TICK_SECONDS)) * 1000)
            self._on_tick()
            if ready:
                came = ready[0][1]
                return came if came & events else came | events
            before, unsent = unsent, self._unsent() if patience else 0
            if unsent < before:
                deadline = time.monotonic() + patience
            elif left <= 0:
                raise AssociationError(f"{self.remote}: the remote {complaint}", cause=cause)

    def _unsent(self) -> int:
        """Bytes that the remote's TCP has not confirmed yet."""
        return int.from_bytes(self._unsent_raw(), sys.byteorder)

    def _unsent_raw(self) -> bytes:
        return fcntl.ioctl(self._fd, termios.TIOCOUTQ, _NOTHING)

    def _explain_broken_send(self, on_readable: Callable[[], None]) -> None:
        """The remote's A-ABORT or TLS alert, sent before it closed, says more than EPIPE does: read it."""
        with contextlib.suppress(OSError):
            if self.readable():
                on_readable()

    def _failed(self, error: Exception, *, shaking: bool = False) -> AssociationError:
        hint = "" if shaking or isinstance(error, ssl.SSLError) else self.hint
        unverified = isinstance(error, ssl.SSLCertVerificationError)
        offered = refused_certificate(self._tls) if unverified and self._tls is not None else {}
        return AssociationError(
            f"{self.remote}: {failures.failed(error, shaking=shaking, offered=offered)}{hint}",
            cause=failures.cause_of(error, shaking=shaking, anonymous=self.remote.anonymous),
        )


def _dialed(remote: Remote, seconds: float, on_tick: Callable[[], None]) -> socket.socket:
    cause: Cause | None = Cause.UNREACHABLE
    try:
        return dial_host(remote.host, remote.port, seconds, on_tick)
    except ResolverAwayError as error:
        cause, said = Cause.NO_NAME_SERVER, f"the name cannot be resolved: {error}"
    except socket.gaierror as error:
        away = error.errno in {socket.EAI_AGAIN, socket.EAI_FAIL}
        cause = Cause.NO_NAME_SERVER if away else Cause.UNKNOWN_HOST
        said = f"the name cannot be resolved: {error}"
    except TimeoutError:
        said = "the remote does not take the connection"
    except OSError as error:
        cause, said = (
            failures.cause_of(error, shaking=False, anonymous=remote.anonymous),
            failures.failed(error),
        )
    raise AssociationError(f"{remote}: {said}", cause=cause)
