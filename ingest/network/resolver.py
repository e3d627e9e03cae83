"""Names to addresses within a deadline, however long a name server takes.

getaddrinfo(3) has no deadline: with a name server that is gone it returns after 10 to 60 s, and nothing can
interrupt it. Each lookup therefore runs in a thread of its own, and callers wait for it only as long as they
want to. What could go wrong, and what prevents it:

- Threads pile up behind a dead name server: a name has one lookup at a time, which later callers share, and a
  process has at most `LOOKUPS_MAX`. Callers that find a lookup older than their own deadline fail at once.
- A stuck thread keeps the process from ending: the threads are daemons.
- A dead name server holds all workers, each for another name: once a lookup was waited for in vain, those of
  other names are waited for `SUSPECT_SECONDS`. They go on by themselves, and a late answer serves the next.
- Each connection waits for a dead name server: an answer is used for `FRESH_SECONDS`. After that it is asked
  for again, but the last good answer serves for up to `STALE_SECONDS` while no other comes (RFC 8767).
- The owner of a lease or a slot cannot renew it meanwhile: `on_tick` is called at least twice a second.
"""

import ipaddress
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from ingest import threads

FRESH_SECONDS: Final = 30.0
"""How long an answer is used without asking again."""

STALE_SECONDS: Final = 86_400.0
"""How long the last good answer serves where no other comes (RFC 8767 5: one to three days)."""

PATIENCE_SECONDS: Final = 1.8
"""How long a new answer is waited for where there is an old one (RFC 8767 5, client response timer)."""

RECHECK_SECONDS: Final = 30.0
"""How long the old answer serves without another look after a failure (RFC 8767 5, failure recheck timer)."""

SUSPECT_SECONDS: Final = 0.25
"""How long a lookup is waited for, for `RECHECK_SECONDS` after another one was waited for in vain."""

TICK_SECONDS: Final = 0.5
LOOKUPS_MAX: Final = 32
NAMES_MAX: Final = 1024

Address = tuple[socket.AddressFamily, socket.SocketKind, int, str, Any]
"""As getaddrinfo(3) gives it: family, type, protocol, canonical name, socket address."""

_ANSWERED: Final = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}
"""Errors that are an answer: the name has no address now, whatever it had."""


def no_tick() -> None:
    """For callers that have nothing to do while they wait."""


class ResolverAwayError(OSError):
    """No name server answered in time."""


@dataclass(slots=True)
class _Lookup:
    """One call of getaddrinfo(3), in a thread of its own."""

    began: float
    done: threading.Event = field(default_factory=threading.Event)
    found: list[Address] = field(default_factory=list)
    error: OSError | None = None
    thread: threading.Thread | None = None


@dataclass(slots=True)
class _Name:
    """What is known of one name and port; times are of time.monotonic()."""

    found: list[Address] = field(default_factory=list)
    found_at: float = 0.0
    failed_at: float = 0.0
    lookup: _Lookup | None = None


class Resolver:
    """The names of one process; any thread may ask."""

    def __init__(
        self,
        lookup: Callable[[str, int], list[Address]] | None = None,
        *,
        fresh_seconds: float = FRESH_SECONDS,
        stale_seconds: float = STALE_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
        recheck_seconds: float = RECHECK_SECONDS,
    ) -> None:
        """Begin with nothing known.

        Args:
            lookup: Used instead of getaddrinfo(3); may block for as long as it likes.
            fresh_seconds: See `FRESH_SECONDS`, and likewise the others.
            stale_seconds: See above.
            patience_seconds: See above.
            recheck_seconds: See above.
        """
        self._lookup = lookup or _getaddrinfo
        self._fresh = fresh_seconds
        self._stale = stale_seconds
        self._patience = patience_seconds
        self._recheck = recheck_seconds
        self.forget()

    def forget(self) -> None:
        """Begin anew. A fork does so in the child, where the threads of lookups are gone."""
        self._lock = threading.Lock()
        self._names: dict[tuple[str, int], _Name] = {}
        self._vain_at = 0.0

    def resolve(
        self, host: str, port: int, seconds: float, on_tick: Callable[[], None] = no_tick
    ) -> list[Address]:
        """The addresses of a name, best first (RFC 6724), for TCP.

        Args:
            host: A name or an address.
            port: To be put into the addresses.
            seconds: How long to wait at most.
            on_tick: Called at least twice a second; an exception passes.

        Raises:
            ResolverAwayError: No answer came in time, and there is no old one.
            OSError: The name has no address, or cannot be one.
        """
        if _is_address(host):
            return _getaddrinfo(host, port)
        now = time.monotonic()
        with self._lock:
            known = self._known(host, port)
            if known.found and now - known.found_at < self._fresh:
                return list(known.found)
            old = known.found if now - known.found_at < self._stale else []
            if old and known.failed_at and now - known.failed_at < self._recheck:
                return list(old)
            lookup = known.lookup or self._begin(known, host, port)
            suspected = self._vain_at and now - self._vain_at < self._recheck
        patience = SUSPECT_SECONDS if suspected else self._patience if old else seconds
        # One that others have waited for in vain is not waited for again.
        overdue = lookup.began + seconds <= now
        if self._wait(lookup, now + (0.0 if overdue else min(seconds, patience)), on_tick) and lookup.found:
            return list(lookup.found)
        answered = isinstance(lookup.error, socket.gaierror) and lookup.error.errno in _ANSWERED
        if old and not answered:
            with self._lock:
                known.failed_at = time.monotonic()
            return list(old)
        if lookup.error is not None:
            raise type(lookup.error)(*lookup.error.args)  # others raise it too, each with its own traceback
        raise ResolverAwayError(f"no name server has answered within {min(seconds, patience):g} s")

    def _known(self, host: str, port: int) -> _Name:
        if len(self._names) >= NAMES_MAX and (host, port) not in self._names:
            self._names = {key: name for key, name in self._names.items() if name.lookup is not None}
        return self._names.setdefault((host, port), _Name())

    def _begin(self, known: _Name, host: str, port: int) -> _Lookup:
        if sum(name.lookup is not None for name in self._names.values()) >= LOOKUPS_MAX:
            raise ResolverAwayError(f"{LOOKUPS_MAX} other names are being looked up, and none is answered")
        known.lookup = lookup = _Lookup(time.monotonic())
        try:
            lookup.thread = threads.once("resolver", lambda: self._run(known, lookup, host, port))
        except RuntimeError as error:
            known.lookup = None
            raise ResolverAwayError(f"there can be no thread to look it up: {error}") from error
        return lookup

    def _run(self, known: _Name, lookup: _Lookup, host: str, port: int) -> None:
        """Thread body: may take as long as the name server lets it."""
        try:
            lookup.found = self._lookup(host, port)
        except OSError as error:
            lookup.error = error
        except Exception as error:  # a UnicodeError: a name that no name server can be asked for
            lookup.error = socket.gaierror(socket.EAI_NONAME, str(error))
        with self._lock:
            known.lookup = None
            if lookup.found:
                known.found, known.found_at, known.failed_at = lookup.found, time.monotonic(), 0.0
                self._vain_at = 0.0
        lookup.done.set()

    def _wait(self, lookup: _Lookup, deadline: float, on_tick: Callable[[], None]) -> bool:
        """Whether the lookup has ended by the deadline."""
        while not lookup.done.wait(max(0.0, min(deadline - time.monotonic(), TICK_SECONDS))):
            on_tick()
            if time.monotonic() >= deadline and not lookup.done.is_set():
                with self._lock:
                    self._vain_at = time.monotonic()
                return False
        # A supervisor forks after it has looked its listeners up: then no thread may be about to end.
        if lookup.thread is not None:
            lookup.thread.join(TICK_SECONDS)
        return True


def _getaddrinfo(host: str, port: int) -> list[Address]:
    return [*socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])  # an IPv6 address may have a zone
    except ValueError:
        return False
    return True


RESOLVER: Final = Resolver()
"""Of this process."""

os.register_at_fork(after_in_child=RESOLVER.forget)
