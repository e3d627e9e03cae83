"""Endpoints of a node: listening sockets with their TLS contexts, made before the fork and shared by all."""

import errno
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ingest.config.model import Config
from ingest.errors import AddressAwayError, BootError, ResolverAwayError
from ingest.ext.tls_context import Context
from ingest.network.resolver import RESOLVER

BACKLOG: Final = 1024
LOOKUP_SECONDS: Final = 10.0
"""Deadline of the lookup of a listener's host name."""

_PASSING: Final = frozenset({errno.EADDRINUSE, errno.EADDRNOTAVAIL})
"""Errors that may end without a change of the configuration, such as an address that moves between hosts."""

BIND_SECONDS: Final = 3.0
"""Time to wait for a port. The children of a node that was just killed hold it until they have ended."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One entry of `[[listeners]]`, bound.

    Attributes:
        host: Host as configured.
        port: Port as configured; 0 lets the kernel choose.
        socket: Listening socket, non-blocking.
        context: TLS context; None for plain DICOM.
        balancers: Networks of the load balancers that write a PROXY header. All other addresses are closed
            unread. Empty: senders connect themselves.
    """

    host: str
    port: int
    socket: socket.socket
    context: Context | None
    balancers: tuple[str, ...] = ()

    def __str__(self) -> str:
        host, port = self.socket.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        return f"{'dicom-tls' if self.context else 'dicom'}://{shown}:{port}"


def bind_endpoints(
    config: Config, contexts: Mapping[str, Context], existing: tuple[Endpoint, ...] = ()
) -> tuple[Endpoint, ...]:
    """Bind all listeners, and use the sockets of `existing` endpoints with the same host and port again.

    If the kernel chose a port, that port and the configured one (0) both count as the same.

    Raises:
        AddressAwayError: An address is not there yet, or another program has its port.
        BootError: An address cannot be bound.
    """
    reusable = list(existing)
    created: list[socket.socket] = []
    endpoints = []
    try:
        for item in config.listeners:
            bound = _take_existing(reusable, item.host, item.port)
            if bound is None:
                bound = _listen(item.host, item.port)
                created.append(bound)
            context = contexts[item.tls] if item.tls else None
            endpoints.append(Endpoint(item.host, item.port, bound, context, item.proxy_protocol))
    except BaseException:
        for bound in created:
            bound.close()
        raise
    return tuple(endpoints)


def close_endpoints(endpoints: tuple[Endpoint, ...], keep: tuple[Endpoint, ...] = ()) -> None:
    """Close the sockets of `endpoints`, except those that `keep` uses too."""
    kept = {endpoint.socket for endpoint in keep}
    for endpoint in endpoints:
        if endpoint.socket not in kept:
            endpoint.socket.close()


def _take_existing(reusable: list[Endpoint], host: str, port: int) -> socket.socket | None:
    """Remove the endpoint of this address from `reusable`, so that no two listeners share its socket."""
    for endpoint in reusable:
        if endpoint.host == host and port in (endpoint.port, endpoint.socket.getsockname()[1]):
            reusable.remove(endpoint)
            return endpoint.socket
    return None


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = RESOLVER.resolve(host, port, LOOKUP_SECONDS)[0]
    except OSError as error:
        kind_of_error = AddressAwayError if isinstance(error, ResolverAwayError) else BootError
        raise kind_of_error(
            f"[[listeners]] host {host!r} is not an address of this machine: {error}"
        ) from error
    deadline = time.monotonic() + BIND_SECONDS
    while True:
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen(BACKLOG)
            bound.setblocking(False)
        except OSError as error:
            bound.close()
            if error.errno == errno.EADDRINUSE and time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            kind_of_error = AddressAwayError if error.errno in _PASSING else BootError
            raise kind_of_error(
                f"cannot listen on {host}:{port}: {error.strerror}; change [[listeners]] host or port"
            ) from error
        return bound
