"""Fixed streams of bytes for the micro-benchmarks: C-STORE requests as a sender would frame them."""

from dataclasses import dataclass

from ingest.dicom.dimse import encode_store_request
from ingest.ext.encode import encode_p_data

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
PIXEL_DATA = b"\xe0\x7f\x10\x00OW\x00\x00"
HEADER = (
    ((0x0008, 0x0016), b"UI", CT_IMAGE),
    ((0x0008, 0x0018), b"UI", "1.2.826.0.1.3680043.8.498.1"),
    ((0x0008, 0x0020), b"DA", "20260101"),
    ((0x0008, 0x0060), b"CS", "CT"),
    ((0x0008, 0x0070), b"LO", "Example"),
    ((0x0010, 0x0010), b"PN", "Example^Patient"),
    ((0x0010, 0x0020), b"LO", "12345678"),
    ((0x0018, 0x0050), b"DS", "1.25"),
    ((0x0018, 0x0060), b"DS", "120"),
    ((0x0020, 0x000D), b"UI", "1.2.826.0.1.3680043.8.498.2"),
    ((0x0020, 0x000E), b"UI", "1.2.826.0.1.3680043.8.498.3"),
    ((0x0020, 0x0013), b"IS", "1"),
    ((0x0028, 0x0010), b"US", "\0\x02"),
    ((0x0028, 0x0011), b"US", "\0\x02"),
)


@dataclass(frozen=True, slots=True)
class Stream:
    """What one association sends.

    Attributes:
        name: For people.
        data: P-DATA-TF PDUs only.
        instances: C-STORE requests in it, each with its data set.
        pdus: P-DATA-TF PDUs in it.
    """

    name: str
    data: bytes
    instances: int
    pdus: int


def command(message_id: int = 1) -> bytes:
    """Encode a C-STORE-RQ command set."""
    return encode_store_request(message_id, CT_IMAGE, "1.2.826.0.1.3680043.8.498.1")


def data_set(size: int) -> bytes:
    """Encode a data set of `size` (even) bytes in Explicit VR Little Endian, pixels last (PS3.5 7.1.2)."""
    head = b"".join(_element(*tag, vr, value.encode("latin-1")) for tag, vr, value in HEADER)
    pixels = bytes(size - len(head) - 12)
    return head + PIXEL_DATA + len(pixels).to_bytes(4, "little") + pixels


def stream(name: str, size: int, pdu: int, instances: int) -> Stream:
    """`instances` requests with data sets of `size` bytes in PDUs of at most `pdu` bytes."""
    request = encode_p_data(1, command(), pdu)
    fragments, count = _fragments(data_set(size), pdu)
    return Stream(name, (request + fragments) * instances, instances, (count + 1) * instances)


def _element(group: int, element: int, vr: bytes, value: bytes) -> bytes:
    value += (b"\0" if vr == b"UI" else b" ") * (len(value) % 2)
    tag = group.to_bytes(2, "little") + element.to_bytes(2, "little")
    return tag + vr + len(value).to_bytes(2, "little") + value


def _fragments(data: bytes, pdu: int) -> tuple[bytes, int]:
    """P-DATA-TFs of one PDV each (PS3.8 9.3.5), and how many."""
    step = pdu - 6
    pieces = [data[at : at + step] for at in range(0, len(data), step)]
    encoded = b""
    for piece in pieces:
        last = 2 if piece is pieces[-1] else 0
        encoded += b"\x04\0" + (len(piece) + 6).to_bytes(4, "big")
        encoded += (len(piece) + 2).to_bytes(4, "big") + bytes((1, last)) + piece
    return encoded, len(pieces)


STREAMS = (
    ("8 KB, PDUs of 128 KB", 8 << 10, 131072, 64),
    ("512 KB, PDUs of 128 KB", 512 << 10, 131072, 4),
    ("512 KB, PDUs of 16 KB", 512 << 10, 16384, 4),
)
"""Name, bytes of a data set, bytes of a PDU, instances."""
