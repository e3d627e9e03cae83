"""TCP connections to a host name: one deadline covers the lookup and all addresses (after RFC 8305).

The addresses are tried in order. The next attempt starts when the previous one has failed, or 0.25 s after it
started. The first attempt that succeeds is kept. An address that drops all packets therefore costs 0.25 s,
not the whole deadline.
"""

import contextlib
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from ingest.network.resolver import RESOLVER, TICK_SECONDS, Address, Resolver, ignore_tick

STAGGER_SECONDS: Final = 0.25
"""RFC 8305 section 8: Connection Attempt Delay."""

ADDRESSES_MAX: Final = 16
"""Number of addresses of one name that are tried."""


def dial_host(
    host: str,
    port: int,
    seconds: float,
    on_tick: Callable[[], None] = ignore_tick,
    *,
    resolver: Resolver = RESOLVER,
) -> socket.socket:
    """Connect to a host and return a non-blocking socket with TCP_NODELAY.

    Args:
        host: A name or an address.
        port: TCP port.
        seconds: Deadline for lookup and connection together.
        on_tick: Called at least twice a second. An exception ends the attempt and is passed on.
        resolver: Looks the name up.

    Raises:
        socket.gaierror: The name has no address.
        ResolverAwayError: No name server answered in time.
        TimeoutError: No address answered in time.
        OSError: Every address refused the connection. This is the error of the last attempt that failed.
    """
    # INVARIANT 7: the lookup and all attempts share one deadline
    deadline = time.monotonic() + seconds
    addresses = resolver.resolve(host, port, seconds, on_tick)
    return _ConnectionRace(_interleave_families(addresses)[:ADDRESSES_MAX]).run(deadline, on_tick)


def _interleave_families(addresses: Sequence[Address]) -> list[Address]:
    """Alternate IPv4 and IPv6, beginning with the family of the first address (RFC 8305 section 4).

    One of the two families may be unreachable. Its addresses must not all be tried before the other family.
    """
    first = [each for each in addresses if each[0] == addresses[0][0]]
    other = [each for each in addresses if each[0] != addresses[0][0]]
    mixed = [each for pair in zip(first, other, strict=False) for each in pair]
    return mixed + first[len(other) :] + other[len(first) :]


class _ConnectionRace:
    """Attempts to connect to several addresses. The first attempt that succeeds wins."""

    def __init__(self, addresses: Sequence[Address]) -> None:
        self._waiting = deque(addresses)
        self._running: dict[int, socket.socket] = {}
        self._poll = select.poll()
        self._next_attempt_at = 0.0
        self._failure: OSError = TimeoutError("no address takes the connection")

    def run(self, deadline: float, on_tick: Callable[[], None]) -> socket.socket:
        """Return the socket of the first attempt that succeeds, and close all others."""
        try:
            while self._waiting or self._running:
                now = time.monotonic()
                if self._waiting and (now >= self._next_attempt_at or not self._running):
                    self._start_attempt(self._waiting.popleft(), now)
                    continue
                if now >= deadline:
                    raise TimeoutError("no address takes the connection in time")
                next_at = self._next_attempt_at if self._waiting else deadline
                until = min(deadline, next_at, now + TICK_SECONDS)
                for descriptor, _ in self._poll.poll(max(0.0, until - now) * 1000):
                    if (winner := self._finish_attempt(descriptor)) is not None:
                        return winner
                on_tick()
            raise self._failure
        finally:
            for loser in self._running.values():
                loser.close()

    def _start_attempt(self, address: Address, now: float) -> None:
        family, kind, protocol, _, socket_address = address
        self._next_attempt_at = now + STAGGER_SECONDS
        try:
            sock = socket.socket(family, kind, protocol)
        except OSError as error:  # This machine does not have the address family.
            self._failure = error
            return
        self._running[sock.fileno()] = sock
        self._poll.register(sock.fileno(), select.POLLOUT)
        try:
            sock.setblocking(False)
            # DICOM alternates request and response. Nagle's algorithm would hold back the last short segment
            # of a request until the peer has acknowledged the previous one.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(BlockingIOError):
                sock.connect(socket_address)
        except OSError as error:
            self._drop_attempt(sock.fileno(), error)

    def _finish_attempt(self, descriptor: int) -> socket.socket | None:
        """Return the socket if it is connected, otherwise drop the attempt."""
        number = self._running[descriptor].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            self._drop_attempt(descriptor, OSError(number, os.strerror(number)))
            return None
        self._poll.unregister(descriptor)
        return self._running.pop(descriptor)

    def _drop_attempt(self, descriptor: int, error: OSError) -> None:
        """Record a failed attempt. The next address is tried at once."""
        self._failure = error
        self._next_attempt_at = 0.0
        self._poll.unregister(descriptor)
        self._running.pop(descriptor).close()
