"""Any bytes are a PROXY header, the begin of one, or a fault; each header comes back from its bytes."""

import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from ingest.network.proxy_header import (
    HEADER_MAX_BYTES,
    HeaderFault,
    ProxyHeader,
    parse_proxy_header,
)
from tests.support.properties import examples

EXAMPLES = examples(200)
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"

ports = st.integers(0, 65535)
v4, v6 = st.ip_addresses(v=4), st.ip_addresses(v=6)
near_text = st.lists(
    st.sampled_from(
        [
            b"PROXY",
            b" ",
            b"TCP4",
            b"TCP6",
            b"UNKNOWN",
            b"10.0.0.7",
            b"::1",
            b"%",
            b"0",
            b"65536",
            b"\r",
            b"\n",
        ]
    ),
    max_size=14,
).map(b"".join)
near_binary = st.builds(
    lambda command, family, length, body: SIGNATURE + bytes((command, family)) + length.to_bytes(2) + body,
    st.sampled_from([0x20, 0x21, 0x22, 0x11]),
    st.sampled_from([0x00, 0x11, 0x12, 0x21, 0x31, 0x41]),
    st.integers(0, 300) | st.integers(0, 0xFFFF),
    st.binary(max_size=300),
)


def spell(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


@EXAMPLES
@given(st.binary(max_size=200) | near_text | near_binary, st.binary(max_size=20))
def test_any_bytes_have_one_meaning_however_they_are_cut(data: bytes, more: bytes) -> None:
    found = parse_proxy_header(data)
    if found is None:
        assert len(data) < HEADER_MAX_BYTES
    else:
        assert parse_proxy_header(data + more) == found
    if isinstance(found, ProxyHeader):
        assert 0 < found.size <= min(len(data), HEADER_MAX_BYTES)
        assert not found.address or spell(ipaddress.ip_address(found.address)) == found.address
        assert parse_proxy_header(data[: found.size]) == found
        assert parse_proxy_header(data[: found.size - 1]) is None
    for end in range(len(data)):
        # A fault stays a fault, and a header stays the same header. Only "not complete yet" changes.
        earlier = parse_proxy_header(data[:end])
        assert earlier is None or earlier == found


@EXAMPLES
@given((v4 | v6), (v4 | v6), ports, ports, st.binary(max_size=64))
def test_a_header_comes_back_from_its_bytes(
    source: ipaddress.IPv4Address | ipaddress.IPv6Address,
    target: ipaddress.IPv4Address | ipaddress.IPv6Address,
    source_port: int,
    target_port: int,
    tlvs: bytes,
) -> None:
    if source.version != target.version:
        target = source
    text = f"PROXY TCP{source.version} {source} {target} {source_port} {target_port}\r\n".encode()
    body = source.packed + target.packed + source_port.to_bytes(2) + target_port.to_bytes(2) + tlvs
    family = 0x11 if source.version == 4 else 0x21
    for header in (text, SIGNATURE + bytes((0x21, family)) + len(body).to_bytes(2) + body):
        expected = ProxyHeader(len(header), spell(source), source_port)
        assert parse_proxy_header(header + b"rest") == expected
    assert not isinstance(parse_proxy_header(text[:20]), HeaderFault)
