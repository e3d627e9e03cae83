"""TCP connections to a name, within one deadline for its lookup and all its addresses (RFC 8305 in spirit).

The addresses are tried one after the other, each a quarter of a second after the one before or as soon as
that has failed, and the first that connects is taken. An address that takes no packets costs that quarter and
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

from ingest.network.resolver import RESOLVER, TICK_SECONDS, Address, Resolver, no_tick

STAGGER_SECONDS: Final = 0.25
"""RFC 8305 8, connection attempt delay."""

ADDRESSES_MAX: Final = 16
"""How many addresses of one name are tried."""


def dial(
    host: str,
    port: int,
    seconds: float,
    on_tick: Callable[[], None] = no_tick,
    *,
    resolver: Resolver = RESOLVER,
) -> socket.socket:
    """Connect to a host; the socket does not block, and sends without delay (TCP_NODELAY).

    Args:
        host: A name or an address.
        port: TCP port.
        seconds: How long all of it may take.
        on_tick: Called at least twice a second; an exception passes.
        resolver: Looks the name up.

    Raises:
        socket.gaierror: The name has no address.
        ResolverAwayError: No name server answered in time.
        TimeoutError: No address answered in time.
        OSError: None takes the connection; the error of the one that failed last.
    """
    deadline = time.monotonic() + seconds
    addresses = resolver.resolve(host, port, seconds, on_tick)
    return _Race(_interleaved(addresses)[:ADDRESSES_MAX]).run(deadline, on_tick)


def _interleaved(addresses: Sequence[Address]) -> list[Address]:
    """By turns of the two families, the first one's first (RFC 8305 4): one of them may lead nowhere."""
    first = [each for each in addresses if each[0] == addresses[0][0]]
    other = [each for each in addresses if each[0] != addresses[0][0]]
    mixed = [each for pair in zip(first, other, strict=False) for each in pair]
    return mixed + first[len(other) :] + other[len(first) :]


class _Race:
    """Attempts to connect, of which the first that succeeds is kept."""

    def __init__(self, addresses: Sequence[Address]) -> None:
        self._waiting = deque(addresses)
        self._running: dict[int, socket.socket] = {}
        self._poll = select.poll()
        self._next_at = 0.0
        self._failure: OSError = TimeoutError("no address takes the connection")

    def run(self, deadline: float, on_tick: Callable[[], None]) -> socket.socket:
        try:
            while self._waiting or self._running:
                now = time.monotonic()
                if self._waiting and (now >= self._next_at or not self._running):
                    self._start(self._waiting.popleft(), now)
                    continue
                if now >= deadline:
                    raise TimeoutError("no address takes the connection in time")
                until = min(deadline, self._next_at if self._waiting else deadline, now + TICK_SECONDS)
                for descriptor, _ in self._poll.poll(max(0.0, until - now) * 1000):
                    if (winner := self._connected(descriptor)) is not None:
                        return winner
                on_tick()
            raise self._failure
        finally:
            for loser in self._running.values():
                loser.close()

    def _start(self, address: Address, now: float) -> None:
        family, kind, protocol, _, where = address
        self._next_at = now + STAGGER_SECONDS
        try:
            sock = socket.socket(family, kind, protocol)
        except OSError as error:  # a family that this machine does not have
            self._failure = error
            return
        self._running[sock.fileno()] = sock
        self._poll.register(sock.fileno(), select.POLLOUT)
        try:
            sock.setblocking(False)
            # Request and answer take turns: a last short segment must not wait for an acknowledgement.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(BlockingIOError):
                sock.connect(where)
        except OSError as error:
            self._lost(sock.fileno(), error)

    def _connected(self, descriptor: int) -> socket.socket | None:
        number = self._running[descriptor].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            self._lost(descriptor, OSError(number, os.strerror(number)))
            return None
        self._poll.unregister(descriptor)
        return self._running.pop(descriptor)

    def _lost(self, descriptor: int, error: OSError) -> None:
        """Note a failure; the next address need not wait."""
        self._failure = error
        self._next_at = 0.0
        self._poll.unregister(descriptor)
        self._running.pop(descriptor).close()
