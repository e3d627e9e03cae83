"""Webhooks: one POST over TLS, signed, with a deadline on every step.

httpcore, the transport of httpx, writes the request and reads the head of the response. Its own connections
have a timeout for each step but none for the whole, and no deadline for the lookup of the name. A server that
sends one byte every few seconds would hold the sender for hours. The connections here therefore come from
`ingest.network.dialer`, and each step gets the time that is left of one deadline.

Only the head of the response is read. Its size is bounded by h11 (100 KiB); the body is never read, however
long it is. A redirect is not followed: the event would go to a server that is not configured.
"""

import hashlib
import hmac
import ipaddress
import socket
import ssl
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Final
from urllib.parse import urlsplit

import httpcore

from ingest.config.model import TLS
from ingest.errors import SendingError
from ingest.events.failure import explain_failure
from ingest.events.trust import create_client_context
from ingest.network.dialer import dial_host

_BLAMES_EVENT: Final = frozenset({400, 406, 409, 411, 413, 414, 415, 422, 431})
"""Statuses that a receiver gives to one event. Others mean that it takes no event now."""


def sign_body(secret: bytes, timestamp: str, body: bytes) -> str:
    """Return the signature of a webhook: HMAC-SHA256 over timestamp, a dot and body, in hexadecimal."""
    return hmac.new(secret, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """A receiver of events.

    Attributes:
        url: An address that `ingest.config.alert_rules` accepts.
        secret: Key of the signature.
        tls: The section that verifies the server; None for plain http on this machine.
        section: NAME of the section, for messages.
        seconds: Deadline for everything.
        content_type: Media type of the payload.
    """

    url: str
    secret: bytes = field(repr=False)
    tls: TLS | None
    section: str
    seconds: float
    content_type: str = "application/json"

    def post(self, body: bytes, event_id: str) -> None:
        """Send an event.

        Args:
            body: The payload.
            event_id: Id of the event, the same in each attempt.

        Raises:
            SendingError: The server did not answer with a status 2xx.
        """
        server = urlsplit(self.url).netloc
        try:
            status = self._request(body, event_id)
        except (OSError, httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError) as error:
            raise explain_failure(error, server, self.section) from error
        _require_success(status, server)

    def _request(self, body: bytes, event_id: str) -> int:
        deadline = time.monotonic() + self.seconds
        timestamp = str(int(time.time()))
        headers: list[tuple[bytes | str, bytes | str]] = [
            ("Content-Type", self.content_type),
            ("User-Agent", f"dicom-ingest/{version('dicom-ingest')}"),
            ("Idempotency-Key", event_id),
            ("X-Ingest-Event", event_id),
            ("X-Ingest-Timestamp", timestamp),
            ("X-Ingest-Signature", f"sha256={sign_body(self.secret, timestamp, body)}"),
            ("Connection", "close"),
        ]
        context = create_client_context(self.tls) if self.tls is not None else None
        backend = _DeadlineBackend(deadline, is_plain=self.tls is None)
        with (
            httpcore.ConnectionPool(ssl_context=context, network_backend=backend) as pool,
            pool.stream("POST", self.url, headers=headers, content=body) as response,
        ):
            return response.status


def _require_success(status: int, server: str) -> None:
    if 200 <= status < 300:
        return
    cause = f"{server} answered with HTTP status {status}"
    if 300 <= status < 400:
        raise SendingError(f"{cause}, a redirect", "write the address that it leads to into url")
    if status in {401, 403}:
        raise SendingError(cause, "see whether the receiver has the secret of secret_file")
    raise SendingError(cause, "read the log of the receiver", blames_target=status not in _BLAMES_EVENT)


class _DeadlineBackend(httpcore.NetworkBackend):
    """Opens connections whose steps share one deadline, a value of time.monotonic()."""

    def __init__(self, deadline: float, *, is_plain: bool) -> None:
        self._deadline = deadline
        self._is_plain = is_plain

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 - the deadline takes its place
        local_address: str | None = None,  # noqa: ARG002 - httpcore's signature
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002 - httpcore's signature
    ) -> httpcore.NetworkStream:
        # INVARIANT 7: the lookup of the name has the same deadline.
        sock = dial_host(host.strip("[]"), port, _time_left(self._deadline))
        # A name such as localhost may mean another machine.
        if self._is_plain and not ipaddress.ip_address(sock.getpeername()[0].partition("%")[0]).is_loopback:
            sock.close()
            raise SendingError(f"{host} is not this machine", "write https: plain http is for 127.0.0.1 only")
        return _DeadlineStream(sock, self._deadline)


class _DeadlineStream(httpcore.NetworkStream):
    """A connection whose every step gets the time that is left."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002 - the deadline
        self._sock.settimeout(_time_left(self._deadline))
        return self._sock.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002 - the deadline
        while buffer:
            self._sock.settimeout(_time_left(self._deadline))
            buffer = buffer[self._sock.send(buffer) :]

    def close(self) -> None:
        self._sock.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002 - the deadline takes its place
    ) -> httpcore.NetworkStream:
        # The ssl module applies the timeout of the socket to the whole handshake, not to each read.
        self._sock.settimeout(_time_left(self._deadline))
        self._sock = ssl_context.wrap_socket(self._sock, server_hostname=server_hostname)
        return self

    def get_extra_info(self, info: str) -> Any:
        return self._sock if info == "socket" else None


def _time_left(deadline: float) -> float:
    """Return the seconds until the deadline.

    Raises:
        TimeoutError: None are left.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
