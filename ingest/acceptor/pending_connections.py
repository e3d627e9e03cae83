"""Connections that have no association yet: how many there may be, and whose are not taken at all.

A peer that connects and says nothing costs memory and a descriptor until its deadline. A sound one has its
association within moments, so the oldest are those that stall: where there are too many, the oldest goes, of
whoever has most. Else a few addresses, each below its own bound, would close those of all others.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterator
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Final, Generic, TypeVar

WINDOW_SECONDS: Final = 60.0
ADDRESSES_MAX: Final = 4096
"""Addresses whose failures are remembered, and apart from them addresses that are shut out."""

_C = TypeVar("_C")


@lru_cache(maxsize=ADDRESSES_MAX)
def holder(address: str) -> str:
    """What one holder has at least: an IPv4 address, or the /64 that an IPv6 address is of (RFC 6177)."""
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if not isinstance(ip, IPv6Address):
        return address
    # A dual-stack socket shows IPv4 callers as ::ffff:a.b.c.d, all of one /64.
    return str(ip.ipv4_mapped or IPv6Network((ip, 64), strict=False))


class Minutes:
    """How often something was noted of each, in a minute that begins with the first time; bounded."""

    def __init__(self) -> None:
        self._counts: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def note(self, whose: str, now: float) -> tuple[float, int]:
        """Count one more; returns when this minute began and how many there are in it."""
        since, count = self._counts.get(whose, (now, 0))
        if now - since >= WINDOW_SECONDS:
            del self._counts[whose]  # the first in order is the one whose minute began first
            since, count = now, 0
        self._counts[whose] = since, count + 1
        if len(self._counts) > ADDRESSES_MAX:
            self._counts.popitem(last=False)
        return since, count + 1


class Newcomers(Generic[_C]):
    """What one listener process knows of them; decides, and does no I/O."""

    def __init__(self, most: int, most_of_one: int, failures_max: int) -> None:
        """Begin with none.

        Args:
            most: Connections without an association at a time.
            most_of_one: The same, of one address.
            failures_max: Failures of one address in a minute; 0 is no limit.
        """
        self._most = most
        self._most_of_one = most_of_one
        self._failures_max = failures_max
        self._waiting: OrderedDict[_C, str] = OrderedDict()
        self._of_address: Counter[str] = Counter()
        self._failures = Minutes()
        self._crowded = Minutes()
        self._shut_out: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[_C]:
        """The oldest first."""
        return iter(self._waiting)

    def add(self, connection: _C, address: str) -> _C | None:
        """Note a new connection; returns the one that has to make room for it, if any."""
        whose = holder(address)
        self._waiting[connection] = whose
        self._of_address[whose] += 1
        if self._of_address[whose] > self._most_of_one:
            return next(old for old, of in self._waiting.items() if of == whose)
        if len(self._waiting) > self._most:
            largest = max(self._of_address.values())
            return next(old for old, of in self._waiting.items() if self._of_address[of] == largest)
        return None

    def remove(self, connection: _C) -> None:
        """It has an association, or has ended; twice does no harm."""
        whose = self._waiting.pop(connection, None)
        if whose is not None:
            self._of_address[whose] -= 1
            if not self._of_address[whose]:
                del self._of_address[whose]

    def crowded_out(self, address: str, now: float) -> int:
        """Note that one had to make room; returns how many of its address did in this minute."""
        return self._crowded.note(holder(address), now)[1]

    def failed(self, address: str, now: float) -> bool:
        """Note a failure; whether the address is not taken from now on.

        Args:
            address: Of the peer.
            now: Seconds of a monotonic clock.
        """
        if not self._failures_max:
            return False
        whose = holder(address)
        since, count = self._failures.note(whose, now)
        if count != self._failures_max:
            return False
        # Apart from those that are still counted: failures of thousands of others do not have it forgotten.
        self._shut_out.pop(whose, None)
        self._shut_out[whose] = since + WINDOW_SECONDS
        if len(self._shut_out) > ADDRESSES_MAX:
            self._shut_out.popitem(last=False)
        return True

    def refused(self, address: str, now: float) -> bool:
        """Whether an address has failed so often in this minute that it is not listened to."""
        return now < self._shut_out.get(holder(address), now)
