"""The parser of the PROXY protocol, and what it takes from a socket."""

import socket
from collections.abc import Iterator

import pytest

from ingest.acceptor.header_reader import HeaderReader
from ingest.network.proxy_header import HEADER_MAX_BYTES, HeaderFault, ProxyHeader, parse_proxy_header

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
V4 = bytes((10, 0, 0, 7, 10, 0, 0, 5)) + (4711).to_bytes(2) + (2762).to_bytes(2)
V6 = bytes.fromhex("20010db8000000000000000000000007") + bytes(16) + (4711).to_bytes(2) + bytes(2)
MAPPED = bytes(10) + b"\xff\xff" + bytes((10, 0, 0, 7)) + bytes(16) + (4711).to_bytes(2) + bytes(2)
TLV = b"\x03\x00\x04\x01\x02\x03\x04" + b"\x20\x01\x00" + bytes(256)
MISSING, MALFORMED = HeaderFault.MISSING, HeaderFault.MALFORMED


def binary(command: int = 0x21, family: int = 0x11, body: bytes = V4, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return SIGNATURE + bytes((command, family)) + size.to_bytes(2) + body


@pytest.mark.parametrize(
    ("header", "address", "port"),
    [
        (b"PROXY TCP4 10.0.0.7 10.0.0.5 4711 2762\r\n", "10.0.0.7", 4711),
        (b"PROXY TCP6 2001:db8::7 ::1 65535 0\r\n", "2001:db8::7", 65535),
        (b"PROXY TCP6 ::ffff:10.0.0.7 ::1 1 2\r\n", "10.0.0.7", 1),
        (b"PROXY UNKNOWN\r\n", "", 0),
        (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", "", 0),
        (binary(), "10.0.0.7", 4711),
        (binary(body=V4 + TLV), "10.0.0.7", 4711),
        (binary(family=0x21, body=V6), "2001:db8::7", 4711),
        (binary(family=0x21, body=MAPPED), "10.0.0.7", 4711),
        (binary(family=0x31, body=bytes(216)), "", 0),
        (binary(family=0x00, body=b""), "", 0),
        (binary(family=0x00, body=TLV), "", 0),
        (binary(body=V4 + bytes(HEADER_MAX_BYTES - 28)), "10.0.0.7", 4711),
    ],
)
def test_a_header_names_the_sender_whole_and_byte_by_byte(header: bytes, address: str, port: int) -> None:
    expected = ProxyHeader(len(header), address, port)
    assert parse_proxy_header(header) == expected
    assert parse_proxy_header(header + b"\x16\x03\x01") == expected
    assert {parse_proxy_header(header[:end]) for end in range(len(header))} == {None}


@pytest.mark.parametrize("family", [0x00, 0x11, 0xFF])
def test_local_is_a_health_check_whatever_follows(family: int) -> None:
    header = binary(0x20, family, b"\xff" * 5)
    assert parse_proxy_header(header) == ProxyHeader(len(header), is_local=True)


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"\x16\x03\x01\x02\x00", MISSING),  # ClientHello
        (b"\x01\x00\x00\x00\x00", MISSING),  # A-ASSOCIATE-RQ
        (b"GET / HTTP/1.1\r\n", MISSING),
        (b"\r\n\r\n\0\r\nQUIT\r", MISSING),
        (b"proxy tcp4", MISSING),
        (b"PROXY TCP4 10.0.0.7 10.0.0.5 4711 2762\n", MALFORMED),
        (b"PROXY TCP4  10.0.0.7 10.0.0.5 4711 2762\r\n", MALFORMED),
        (b"PROXY TCP4 10.0.0.07 10.0.0.5 4711 2762\r\n", MALFORMED),
        (b"PROXY TCP4 10.0.0.7 10.0.0.5 04711 2762\r\n", MALFORMED),
        (b"PROXY TCP4 10.0.0.7 10.0.0.5 65536 2762\r\n", MALFORMED),
        (b"PROXY TCP4 10.0.0.7 10.0.0.5 4711\r\n", MALFORMED),
        (b"PROXY TCP4 2001:db8::7 ::1 1 2\r\n", MALFORMED),
        (b"PROXY TCP6 10.0.0.7 10.0.0.5 1 2\r\n", MALFORMED),
        (b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n", MALFORMED),
        (b"PROXY UDP4 10.0.0.7 10.0.0.5 1 2\r\n", MALFORMED),
        (b"PROXY UNKNOWN\x00\r\n", MALFORMED),
        (b"PROXY " + b"A" * 101, MALFORMED),
        (b"PROXY UNKNOWN " + b"A" * 93 + b"\r\n", MALFORMED),
        (binary(command=0x11), MALFORMED),
        (binary(command=0x22), MALFORMED),
        (binary(family=0x12), MALFORMED),  # UDP
        (binary(family=0x10), MALFORMED),
        (binary(family=0x41), MALFORMED),
        (binary(body=V4[:-1]), MALFORMED),
        (binary(family=0x21, body=V6[:-1]), MALFORMED),
        (binary(family=0x31, body=bytes(215)), MALFORMED),
        (binary(length=HEADER_MAX_BYTES - 15), MALFORMED),
        (binary(length=0xFFFF)[:16], MALFORMED),
    ],
)
def test_other_bytes_are_refused(data: bytes, fault: HeaderFault) -> None:
    assert parse_proxy_header(data) is fault


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


@pytest.mark.parametrize("cut", [0, 1, 13, 27, 28])
def test_reader_takes_the_header_from_the_socket_and_nothing_else(
    pair: tuple[socket.socket, socket.socket], cut: int
) -> None:
    ours, theirs = pair
    header, reader, buffer = binary(), HeaderReader(), memoryview(bytearray(HEADER_MAX_BYTES))
    if cut:
        theirs.sendall(header[:cut])
        found = reader.read(ours, buffer)
        assert found == (None if cut < len(header) else ProxyHeader(len(header), "10.0.0.7", 4711))
        assert reader.has_begun
        with pytest.raises(BlockingIOError):  # nothing keeps the event loop awake
            ours.recv(1)
    theirs.sendall(header[cut:] + b"ClientHello")
    if cut < len(header):
        assert reader.read(ours, buffer) == ProxyHeader(len(header), "10.0.0.7", 4711)
    assert ours.recv(100) == b"ClientHello"


def test_reader_tells_the_end_of_a_connection(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.sendall(b"PROXY ")
    reader, buffer = HeaderReader(), memoryview(bytearray(HEADER_MAX_BYTES))
    assert reader.read(ours, buffer) is None
    theirs.close()
    with pytest.raises(ConnectionError):
        reader.read(ours, buffer)
