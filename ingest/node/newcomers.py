"""Connections that have no association yet: how many there may be, and whose are not taken at all.

A peer that connects and says nothing costs memory and a descriptor until its deadline. A sound one has its
association within moments, so the oldest are those that stall: where there are too many, the oldest goes.
"""

from collections import Counter, OrderedDict
from typing import Final, Generic, TypeVar

WINDOW_SECONDS: Final = 60.0
ADDRESSES_MAX: Final = 4096
"""Addresses whose failures are remembered; of more than these the longest known is forgotten."""

_C = TypeVar("_C")


class Newcomers(Generic[_C]):
    """What one listener process knows of them; decides, and does no I/O."""

    def __init__(self, most: int, most_of_one: int, failures_max: int) -> None:
        """Begin with none.

        Args:
            most: Connections without an association at a time.
            most_of_one: The same, of one address.
            failures_max: Failed handshakes and refused callers of one address in a minute; 0 is no limit.
        """
        self._most = most
        self._most_of_one = most_of_one
        self._failures_max = failures_max
        self._waiting: OrderedDict[_C, str] = OrderedDict()
        self._of_address: Counter[str] = Counter()
        self._failures: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, connection: _C, address: str) -> _C | None:
        """Note a new connection; returns the one that has to make room for it, if any."""
        self._waiting[connection] = address
        self._of_address[address] += 1
        if self._of_address[address] > self._most_of_one:
            return next(old for old, whose in self._waiting.items() if whose == address)
        if len(self._waiting) > self._most:
            return next(iter(self._waiting))
        return None

    def remove(self, connection: _C) -> None:
        """It has an association, or has ended; twice does no harm."""
        address = self._waiting.pop(connection, None)
        if address is not None:
            self._of_address[address] -= 1
            if not self._of_address[address]:
                del self._of_address[address]

    def failed(self, address: str, now: float) -> bool:
        """Note a failed handshake or a refused association; whether the address is not taken from now on.

        Args:
            address: Of the peer.
            now: Seconds of a monotonic clock.
        """
        since, count = self._failures.get(address, (now, 0))
        if now - since >= WINDOW_SECONDS:
            since, count = now, 0
        self._failures[address] = since, count + 1
        if len(self._failures) > ADDRESSES_MAX:
            self._failures.popitem(last=False)
        return count + 1 == self._failures_max

    def refused(self, address: str, now: float) -> bool:
        """Whether an address has failed so often in this minute that it is not listened to."""
        since, count = self._failures.get(address, (0.0, 0))
        return 0 < self._failures_max <= count and now - since < WINDOW_SECONDS
