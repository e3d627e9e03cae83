"""The client of a request that a reverse proxy has passed on.

A proxy writes the address that it got the request from at the end of `X-Forwarded-For`, and so does each
further proxy. A client may send this header too. Therefore only the part that trusted proxies have written
counts: from the end back to the first address that is no trusted proxy. That is the client.

If all addresses are those of trusted proxies, a client with such an address may have written each of them
but the last: the proxy that the request comes from has written that one. So the last address counts.
"""

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final

from starlette.types import Scope

_SCHEMES: Final = frozenset({"http", "https"})


class TrustedProxies:
    """The proxies that `[console] trusted_proxies` names."""

    def __init__(self, networks: Iterable[str]) -> None:
        """Prepare; `networks` are addresses and networks of proxies."""
        self._networks = [ip_network(each) for each in networks]

    def restore_client(self, scope: Scope) -> None:
        """Put address and scheme of the client into a request that a trusted proxy has passed on."""
        client = scope.get("client")
        if not self._networks or client is None or not self._is_trusted(_parse_address(client[0])):
            return
        hops, schemes = _read_list(scope, b"x-forwarded-for"), _read_list(scope, b"x-forwarded-proto")
        depth = self._find_client(hops)
        if depth:
            scope["client"] = (str(_parse_address(hops[-depth])), 0)
        # Proxies that add a scheme for each address are read at the same place; others name one scheme.
        place = depth if depth and len(schemes) == len(hops) else 1
        if schemes and schemes[-place].lower() in _SCHEMES:
            scope["scheme"] = schemes[-place].lower()

    def _find_client(self, hops: Sequence[str]) -> int:
        """Return the place of the client's address, counted from the end; 0 if no proxy has written one."""
        for depth, text in enumerate(reversed(hops), start=1):
            address = _parse_address(text)
            if address is None:
                # No trusted proxy writes this: the client may have sent it, and all before it.
                return min(depth - 1, 1)
            if not self._is_trusted(address):
                return depth
        return min(len(hops), 1)

    def _is_trusted(self, address: IPv4Address | IPv6Address | None) -> bool:
        return address is not None and any(address in network for network in self._networks)


def _read_list(scope: Scope, name: bytes) -> list[str]:
    """Return the elements of a header that may stand several times (RFC 9110 5.3)."""
    lines = [value.decode("latin-1") for key, value in scope["headers"] if key == name]
    return [each.strip() for each in ",".join(lines).split(",") if each.strip()]


def _parse_address(text: str) -> IPv4Address | IPv6Address | None:
    """Return an address without its port and brackets; None if there is none."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
