"""Where a node listens: bound sockets with their TLS contexts, made before the fork, shared by all."""

import errno
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ingest.config.model import Config
from ingest.errors import BootError
from ingest.ext.tls_context import Context
from ingest.network.resolver import RESOLVER

BACKLOG: Final = 1024
LOOKUP_SECONDS: Final = 10.0
"""How long the name of a listener's host may take to be looked up."""

BIND_SECONDS: Final = 3.0
"""A node that was killed a moment ago may hold its port until its children have ended."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One of `[[listeners]]`, bound.

    Attributes:
        host: As configured.
        port: As configured; 0 lets the kernel choose.
        socket: Listening, not blocking.
        context: None for plain DICOM.
    """

    host: str
    port: int
    socket: socket.socket
    context: Context | None

    def __str__(self) -> str:
        host, port = self.socket.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        return f"{'dicom-tls' if self.context else 'dicom'}://{shown}:{port}"


def bind(
    config: Config, contexts: Mapping[str, Context], existing: tuple[Endpoint, ...] = ()
) -> tuple[Endpoint, ...]:
    """Bind all listeners; sockets of `existing` ones with the same host and port are taken over.

    A port that the kernel chose counts as the port that was asked for (0) and as the one that it is.

    Raises:
        BootError: An address cannot be bound.
    """
    held = list(existing)
    made: list[socket.socket] = []
    endpoints = []
    try:
        for item in config.listeners:
            bound = _take_over(held, item.host, item.port)
            if bound is None:
                bound = _listen(item.host, item.port)
                made.append(bound)
            endpoints.append(Endpoint(item.host, item.port, bound, contexts[item.tls] if item.tls else None))
    except BaseException:
        for bound in made:
            bound.close()
        raise
    return tuple(endpoints)


def unbind(endpoints: tuple[Endpoint, ...], keep: tuple[Endpoint, ...] = ()) -> None:
    """Close the sockets of `endpoints`, but not those that `keep` uses too."""
    kept = {endpoint.socket for endpoint in keep}
    for endpoint in endpoints:
        if endpoint.socket not in kept:
            endpoint.socket.close()


def _take_over(held: list[Endpoint], host: str, port: int) -> socket.socket | None:
    """The socket that listens there already, taken out of `held`, so that no two listeners share it."""
    for endpoint in held:
        if endpoint.host == host and port in (endpoint.port, endpoint.socket.getsockname()[1]):
            held.remove(endpoint)
            return endpoint.socket
    return None


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = RESOLVER.resolve(host, port, LOOKUP_SECONDS)[0]
    except OSError as error:
        raise BootError(f"[[listeners]] host {host!r} is not an address of this machine: {error}") from error
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
            raise BootError(
                f"cannot listen on {host}:{port}: {error.strerror}; change [[listeners]] port"
            ) from error
        return bound
