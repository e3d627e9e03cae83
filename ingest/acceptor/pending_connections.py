"""Limits on connections without an association: how many there may be, and which addresses are refused.

A peer that connects and sends nothing costs memory and a descriptor until its deadline. A sound peer has its
association within moments, so the oldest pending connections are probably stalled. If there are too many, the
oldest one of the network with the most connections is closed. Otherwise a few networks, each below its own
limit, could fill the total and close the connections of all others.

Nothing here does I/O. All times are seconds of the monotonic clock.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterator
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Final, Generic, TypeVar

WINDOW_SECONDS: Final = 60.0
"""Length of the window in which failures are counted."""

NETWORKS_MAX: Final = 4096
"""Networks whose events are counted; and, counted separately, networks that are refused."""

ConnectionT = TypeVar("ConnectionT")


@lru_cache(maxsize=NETWORKS_MAX)
def find_client_network(address: str) -> str:
    """Return the smallest network that one client owns: an IPv4 address, or an IPv6 /64 (RFC 6177)."""
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if not isinstance(ip, IPv6Address):
        return address
    # A dual-stack socket shows IPv4 clients as ::ffff:a.b.c.d, which would all be in one /64.
    return str(ip.ipv4_mapped or IPv6Network((ip, 64), strict=False))


class EventCounter:
    """Counts events for each key, within a minute that begins with the key's first event.

    The number of keys is bounded by `NETWORKS_MAX`.
    """

    def __init__(self) -> None:
        self._counts: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def record(self, key: str, now: float) -> tuple[float, int]:
        """Count one event; return when this minute of the key began, and how many events it has so far."""
        since, count = self._counts.get(key, (now, 0))
        if now - since >= WINDOW_SECONDS:
            # Delete the key, so that it moves to the end: keys are ordered by the begin of their minute.
            del self._counts[key]
            since, count = now, 0
        self._counts[key] = since, count + 1
        if len(self._counts) > NETWORKS_MAX:
            self._counts.popitem(last=False)
        return since, count + 1


class FailureLimit:
    """Refuses networks whose connections fail too often in a minute."""

    def __init__(self, failures_max: int) -> None:
        """Begin without failures. With `failures_max` 0 no network is ever refused."""
        self._failures_max = failures_max
        self._failures = EventCounter()
        self._refused_until: OrderedDict[str, float] = OrderedDict()

    def record_failure(self, address: str, now: float) -> bool:
        """Count a failure of a peer; return whether its network is refused from now on."""
        if not self._failures_max:
            return False
        network = find_client_network(address)
        since, count = self._failures.record(network, now)
        if count != self._failures_max:
            return False
        # Keep refused networks separate from the counters. Otherwise failures of thousands of other networks
        # would push a refused one out, and it could connect again.
        self._refused_until.pop(network, None)
        self._refused_until[network] = since + WINDOW_SECONDS
        if len(self._refused_until) > NETWORKS_MAX:
            self._refused_until.popitem(last=False)
        return True

    def is_refused(self, address: str, now: float) -> bool:
        """Return whether connections from this address are closed without being served."""
        return now < self._refused_until.get(find_client_network(address), now)


class ConnectionLimit(Generic[ConnectionT]):
    """Connections in the order of their arrival, with limits in total and for each client network."""

    def __init__(self, total_max: int, network_max: int) -> None:
        """Begin without connections.

        Args:
            total_max: Connections at a time.
            network_max: Connections of one client network at a time.
        """
        self._total_max = total_max
        self._network_max = network_max
        self._networks: OrderedDict[ConnectionT, str] = OrderedDict()
        self._counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._networks)

    def __iter__(self) -> Iterator[ConnectionT]:
        """Iterate over the connections, the oldest first."""
        return iter(self._networks)

    def add(self, connection: ConnectionT, address: str) -> ConnectionT | None:
        """Add a connection; return the one to close for it if a limit is exceeded."""
        network = find_client_network(address)
        self._networks[connection] = network
        self._counts[network] += 1
        if self._counts[network] > self._network_max:
            return next(old for old, of in self._networks.items() if of == network)
        if len(self._networks) > self._total_max:
            most = max(self._counts.values())
            return next(old for old, of in self._networks.items() if self._counts[of] == most)
        return None

    def remove(self, connection: ConnectionT) -> None:
        """Remove a connection, if it is there."""
        network = self._networks.pop(connection, None)
        if network is not None:
            self._counts[network] -= 1
            if not self._counts[network]:
                del self._counts[network]
