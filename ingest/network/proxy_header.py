"""The header of the PROXY protocol, versions 1 and 2: the address of a sender behind a load balancer.

A balancer that passes TCP through writes one header before the bytes of the sender. The header is not signed,
so it is true only if the balancer wrote it. `[[listeners]] proxy_protocol` therefore names the balancers.

Nothing here does I/O. Sections are those of HAProxy's specification (proxy-protocol.txt).
"""

import re
import struct
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Final

HEADER_MAX_BYTES: Final = 4096
"""Longest header that is accepted. A balancer that sends certificates in TLVs writes about 2 KB."""

TEXT_MAX_BYTES: Final = 107
"""Section 2.1: the longest header of version 1, with CRLF."""

_TEXT_START: Final = b"PROXY "
_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED_BYTES: Final = 16

# Section 2.2, byte 13: version 2 in the upper four bits, and the command.
_LOCAL: Final = 0x20
_PROXY: Final = 0x21

# Section 2.2, byte 14: address family and transport protocol.
_TCP4: Final = 0x11
_TCP6: Final = 0x21
_UNIX_STREAM: Final = 0x31
_UNSPECIFIED: Final = 0
_ADDRESS_BYTES: Final = {_UNSPECIFIED: 0, _TCP4: 12, _TCP6: 36, _UNIX_STREAM: 216}

_TEXT: Final = re.compile(
    rb"PROXY (?:(TCP4|TCP6) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) ([0-9]{1,5}) ([0-9]{1,5})"
    rb"|UNKNOWN(?: [ -~]*)?)\r\n"
)
_LAST_PORT: Final = 65535


class HeaderFault(StrEnum):
    """Why a connection is closed."""

    MISSING = "proxy_missing"
    """Its first bytes begin no header."""
    MALFORMED = "proxy_malformed"
    """The header contradicts the specification, or is too long."""


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """A complete header.

    Attributes:
        size: Its bytes. What follows belongs to the sender.
        address: IP address of the sender; empty if the balancer does not know it.
        port: TCP port of the sender.
        is_local: Whether the balancer itself has connected, to test the port (version 2, LOCAL).
    """

    size: int
    address: str = ""
    port: int = 0
    is_local: bool = False


def parse_proxy_header(data: bytes) -> ProxyHeader | HeaderFault | None:
    """Parse the first bytes of a connection; return None until the header is complete."""
    # INVARIANT 10: decisions are pure
    if data[: len(_SIGNATURE)] == _SIGNATURE[: len(data)]:
        return _parse_binary(data) if len(data) > len(_SIGNATURE) else None
    if data[: len(_TEXT_START)] == _TEXT_START[: len(data)]:
        return _parse_text(data)
    return HeaderFault.MISSING


def _parse_text(data: bytes) -> ProxyHeader | HeaderFault | None:
    """Parse version 1 (section 2.1)."""
    end = data.find(b"\n", 0, TEXT_MAX_BYTES) + 1
    if not end:
        return None if len(data) < TEXT_MAX_BYTES else HeaderFault.MALFORMED
    found = _TEXT.fullmatch(data[:end])
    if found is None:
        return HeaderFault.MALFORMED
    family, source, target, *ports = found.groups()
    if family is None:
        return ProxyHeader(end)
    try:
        kind = IPv4Address if family == b"TCP4" else IPv6Address
        address, _ = kind(source.decode()), kind(target.decode())
    except ValueError:
        return HeaderFault.MALFORMED
    if any(int(port) > _LAST_PORT or str(int(port)).encode() != port for port in ports):
        return HeaderFault.MALFORMED
    return ProxyHeader(end, _format_address(address), int(ports[0]))


def _parse_binary(data: bytes) -> ProxyHeader | HeaderFault | None:
    """Parse version 2 (section 2.2), and skip its TLVs."""
    if data[12] not in {_LOCAL, _PROXY}:
        return HeaderFault.MALFORMED
    if len(data) < _FIXED_BYTES:
        return None
    length = int.from_bytes(data[14:16])
    # With LOCAL the receiver ignores the family and the addresses.
    family = _UNSPECIFIED if data[12] == _LOCAL else data[13]
    if _FIXED_BYTES + length > HEADER_MAX_BYTES or length < _ADDRESS_BYTES.get(family, length + 1):
        return HeaderFault.MALFORMED  # too long, a family that cannot carry TCP, or no room for its addresses
    return _read_addresses(data, family, _FIXED_BYTES + length)


def _read_addresses(data: bytes, family: int, size: int) -> ProxyHeader | None:
    """Read the addresses of version 2 once all bytes are there."""
    if len(data) < size:
        return None
    if family == _TCP4:
        source, port = struct.unpack_from("!4s4xH", data, _FIXED_BYTES)
        return ProxyHeader(size, _format_address(IPv4Address(source)), port)
    if family == _TCP6:
        source, port = struct.unpack_from("!16s16xH", data, _FIXED_BYTES)
        return ProxyHeader(size, _format_address(IPv6Address(source)), port)
    return ProxyHeader(size, is_local=data[12] == _LOCAL)


def _format_address(address: IPv4Address | IPv6Address) -> str:
    """Return the usual spelling. An IPv4 address that is mapped into IPv6 becomes an IPv4 address."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)
