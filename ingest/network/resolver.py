"""Name resolution with a deadline, even if a name server does not answer.

getaddrinfo(3) has no deadline. If the name server is gone it returns after 10 to 60 s, and nothing can
interrupt it. Each lookup therefore runs in its own thread, and a caller waits only until its own deadline.
These dangers follow from that, and are prevented so:

- Threads could pile up behind a dead name server. A name has one lookup at a time, which later callers share,
  and a process has at most `LOOKUPS_MAX`. A caller fails at once if the lookup is older than its deadline.
- A stuck thread could keep the process from ending. The threads are daemons.
- A dead name server could hold all workers, each with another name. After one lookup has timed out, callers
  wait only `SUSPECT_SECONDS` for other names. The lookups continue, and a late answer serves the next call.
- Each connection could wait for a dead name server. An answer is reused for `FRESH_SECONDS`. After that a new
  one is requested, and the last good answer serves for up to `MAX_STALE_SECONDS` meanwhile (RFC 8767).
- The owner of a lease could lose it during a lookup. `on_tick` is called at least twice a second.
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
from ingest.errors import ResolverAwayError

FRESH_SECONDS: Final = 30.0
"""Age up to which an answer is used without a new lookup."""

MAX_STALE_SECONDS: Final = 86_400.0
"""Age up to which the last good answer replaces a missing one (RFC 8767 section 5: one to three days)."""

CLIENT_RESPONSE_SECONDS: Final = 1.8
"""Time to wait for a new answer while an old one exists (RFC 8767 section 5, client response timer)."""

FAILURE_RECHECK_SECONDS: Final = 30.0
"""Time without another lookup after a failure, if an old answer exists (RFC 8767, failure recheck timer)."""

SUSPECT_SECONDS: Final = 0.25
"""Time to wait for a lookup during `FAILURE_RECHECK_SECONDS` after another lookup has timed out."""

TICK_SECONDS: Final = 0.5
LOOKUPS_MAX: Final = 32
NAMES_MAX: Final = 1024

Address = tuple[socket.AddressFamily, socket.SocketKind, int, str, Any]
"""Result of getaddrinfo(3): family, type, protocol, canonical name, socket address."""

_NO_ADDRESS: Final = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}
"""Errors that are answers: the name has no address now. An old answer must not replace them."""


def ignore_tick() -> None:
    """Do nothing: the default `on_tick` of callers that have no other work."""


@dataclass(slots=True)
class _Lookup:
    """One call of getaddrinfo(3) in its own thread."""

    started_at: float
    ended: threading.Event = field(default_factory=threading.Event)
    addresses: list[Address] = field(default_factory=list)
    error: OSError | None = None
    thread: threading.Thread | None = None


@dataclass(slots=True)
class _CacheEntry:
    """Cached addresses of one name and port. Times are values of time.monotonic()."""

    addresses: list[Address] = field(default_factory=list)
    answered_at: float = 0.0
    failed_at: float = 0.0
    lookup: _Lookup | None = None


class Resolver:
    """Cache of names and addresses of one process. All methods are thread-safe."""

    def __init__(
        self,
        lookup: Callable[[str, int], list[Address]] | None = None,
        *,
        fresh_seconds: float = FRESH_SECONDS,
        max_stale_seconds: float = MAX_STALE_SECONDS,
        client_response_seconds: float = CLIENT_RESPONSE_SECONDS,
        failure_recheck_seconds: float = FAILURE_RECHECK_SECONDS,
    ) -> None:
        """Create an empty cache.

        Args:
            lookup: Replaces getaddrinfo(3). May block for any time.
            fresh_seconds: See `FRESH_SECONDS`.
            max_stale_seconds: See `MAX_STALE_SECONDS`.
            client_response_seconds: See `CLIENT_RESPONSE_SECONDS`.
            failure_recheck_seconds: See `FAILURE_RECHECK_SECONDS`.
        """
        self._lookup = lookup or _query_system
        self._fresh_seconds = fresh_seconds
        self._max_stale_seconds = max_stale_seconds
        self._client_response_seconds = client_response_seconds
        self._failure_recheck_seconds = failure_recheck_seconds
        self.clear()

    def clear(self) -> None:
        """Forget all names. A fork does this in the child, where the threads of lookups do not exist."""
        self._lock = threading.Lock()
        self._entries: dict[tuple[str, int], _CacheEntry] = {}
        self._timed_out_at = 0.0

    def resolve(
        self, host: str, port: int, seconds: float, on_tick: Callable[[], None] = ignore_tick
    ) -> list[Address]:
        """Return the TCP addresses of a name, best first (RFC 6724).

        Args:
            host: A name or an address.
            port: Port number that is put into the addresses.
            seconds: Longest time to wait.
            on_tick: Called at least twice a second. An exception ends the wait and is passed on.

        Raises:
            ResolverAwayError: No answer came in time, and there is no old one.
            OSError: The name has no address, or is not a valid name.
        """
        if _is_address(host):
            return _query_system(host, port)
        now = time.monotonic()
        with self._lock:
            entry = self._entry_of(host, port)
            age = now - entry.answered_at
            if entry.addresses and age < self._fresh_seconds:
                return list(entry.addresses)
            stale = entry.addresses if age < self._max_stale_seconds else []
            if stale and entry.failed_at and now - entry.failed_at < self._failure_recheck_seconds:
                return list(stale)
            lookup = entry.lookup or self._start_lookup(entry, host, port)
            is_suspect = self._timed_out_at and now - self._timed_out_at < self._failure_recheck_seconds
        wait_seconds = self._client_response_seconds if stale else seconds
        if is_suspect:
            wait_seconds = SUSPECT_SECONDS
        # A lookup that has already timed out for another caller is not waited for again.
        is_overdue = lookup.started_at + seconds <= now
        # INVARIANT 7: no caller waits longer than its own deadline
        deadline = now + (0.0 if is_overdue else min(seconds, wait_seconds))
        if self._wait_for_lookup(lookup, deadline, on_tick) and lookup.addresses:
            return list(lookup.addresses)
        has_no_address = isinstance(lookup.error, socket.gaierror) and lookup.error.errno in _NO_ADDRESS
        if stale and not has_no_address:
            with self._lock:
                entry.failed_at = time.monotonic()
            return list(stale)
        if lookup.error is not None:
            # Several callers raise the error of one lookup. Each needs a copy with its own traceback.
            raise type(lookup.error)(*lookup.error.args)
        raise ResolverAwayError(f"no name server has answered within {min(seconds, wait_seconds):g} s")

    def _entry_of(self, host: str, port: int) -> _CacheEntry:
        if len(self._entries) >= NAMES_MAX and (host, port) not in self._entries:
            self._entries = {key: entry for key, entry in self._entries.items() if entry.lookup is not None}
        return self._entries.setdefault((host, port), _CacheEntry())

    def _start_lookup(self, entry: _CacheEntry, host: str, port: int) -> _Lookup:
        if sum(each.lookup is not None for each in self._entries.values()) >= LOOKUPS_MAX:
            raise ResolverAwayError(f"{LOOKUPS_MAX} other names are being looked up, and none is answered")
        entry.lookup = lookup = _Lookup(time.monotonic())
        try:
            lookup.thread = threads.start_task(
                "resolver", lambda: self._run_lookup(entry, lookup, host, port)
            )
        except RuntimeError as error:
            entry.lookup = None
            raise ResolverAwayError(f"no thread can be started for the lookup: {error}") from error
        return lookup

    def _run_lookup(self, entry: _CacheEntry, lookup: _Lookup, host: str, port: int) -> None:
        """Thread body: query the name server, which may take any time, and store the answer."""
        try:
            lookup.addresses = self._lookup(host, port)
        except OSError as error:
            lookup.error = error
        except Exception as error:  # A UnicodeError: the text cannot be the name of a host.
            lookup.error = socket.gaierror(socket.EAI_NONAME, str(error))
        with self._lock:
            entry.lookup = None
            if lookup.addresses:
                entry.addresses, entry.answered_at = lookup.addresses, time.monotonic()
                entry.failed_at = self._timed_out_at = 0.0
        lookup.ended.set()

    def _wait_for_lookup(self, lookup: _Lookup, deadline: float, on_tick: Callable[[], None]) -> bool:
        """Return whether the lookup ended by the deadline."""
        while not lookup.ended.wait(max(0.0, min(deadline - time.monotonic(), TICK_SECONDS))):
            on_tick()
            if time.monotonic() >= deadline and not lookup.ended.is_set():
                with self._lock:
                    self._timed_out_at = time.monotonic()
                return False
        # The supervisor forks after it has resolved the listeners' addresses. No thread may run then.
        if lookup.thread is not None:
            lookup.thread.join(TICK_SECONDS)
        return True


def _query_system(host: str, port: int) -> list[Address]:
    return [*socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])  # An IPv6 address may have a zone.
    except ValueError:
        return False
    return True


RESOLVER: Final = Resolver()
"""The resolver of this process."""

os.register_at_fork(after_in_child=RESOLVER.clear)
