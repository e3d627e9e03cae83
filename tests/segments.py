"""A writer of segments in plain Python: for tests without a listener, and to hold the one in C against."""

import struct
import zlib
from pathlib import Path

SEGMENT_BYTES = 8 << 20


def aligned(offset: int, to: int) -> int:
    return -(-offset // to) * to


def header(
    data: bytes, number: int, *, received_ms: int = 1, in_order: bool = False, done: bool = False
) -> bytes:
    """The 64 bytes before a Part 10 file."""
    first = b"DIRECORD" + struct.pack(
        "<QQLLQ", number, len(data), 0 if in_order else zlib.crc32(data), int(in_order), received_ms
    )
    return first + struct.pack("<L", zlib.crc32(first)) + bytes(19) + bytes([done])


class SegmentWriter:
    """One segment.

    Attributes:
        path: The file.
        where: Its place in the spool.
        number: What its records have to say.
        at: Where the next record goes.
    """

    def __init__(self, spool_dir: Path, number: int = 0x18A0_0000_0000_0001, slot: str = "L0") -> None:
        self.number = number
        self.where = f"{slot}/segments/{number:016x}-0.seg"
        self.path = spool_dir / self.where
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            self.path.write_bytes(bytes(SEGMENT_BYTES))
        self.at = 0

    def append(self, data: bytes, *, received_ms: int = 1, in_order: bool = False, done: bool = False) -> int:
        """Write a record behind the last one; returns the offset of its Part 10 file."""
        head = header(data, self.number, received_ms=received_ms, in_order=in_order, done=done)
        offset = self.at + len(head)
        self.write(self.at, head + data)
        self.at = aligned(offset + len(data), 64)
        return offset

    def group(self, *files: bytes, received_ms: int = 1) -> list[int]:
        """Several, from the next page on."""
        self.at = aligned(self.at, 4096)
        return [self.append(data, received_ms=received_ms) for data in files]

    def write(self, offset: int, data: bytes) -> None:
        """Any bytes anywhere."""
        assert offset + len(data) <= SEGMENT_BYTES
        with self.path.open("r+b") as file:
            file.seek(offset)
            file.write(data)
