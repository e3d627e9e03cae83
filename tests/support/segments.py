"""A writer of segments in plain Python: for tests without a listener, and to hold the one in C against."""

import struct
import zlib
from pathlib import Path

from ingest.ext.checksum import crc32c_portable

SEGMENT_BYTES = 8 << 20
MARKS_AT = SEGMENT_BYTES - 8 * 16384


def aligned(offset: int, to: int) -> int:
    return -(-offset // to) * to


def header(
    data: bytes, number: int, *, received_ms: int = 1, in_order: bool = False, done: bool = False
) -> bytes:
    """The 64 bytes before a Part 10 file in the first layout."""
    first = b"DIRECORD" + struct.pack(
        "<QQLLQ", number, len(data), 0 if in_order else zlib.crc32(data), int(in_order), received_ms
    )
    return first + struct.pack("<L", zlib.crc32(first)) + bytes(19) + bytes([done])


def header_2(data: bytes, segment: int, number: int, at: int, promised: int, received_ms: int = 1) -> bytes:
    """The same in today's layout."""
    first = b"DIRECORD" + struct.pack("<QQLLQ", segment, len(data), crc32c_portable(data), 3, received_ms)
    first += struct.pack("<LLLL", zlib.crc32(first), number, at, promised)
    return first + struct.pack("<L", crc32c_portable(first)) + bytes(4)


def mark(segment: int, number: int) -> bytes:
    return b"DONE" + struct.pack("<L", crc32c_portable(struct.pack("<QL", segment, number)))


def trailer(segment: int, count: int, *, closed: bool = False) -> bytes:
    first = b"DICOMMIT" + struct.pack("<QLL", segment, count, int(closed))
    return first + struct.pack("<L", crc32c_portable(first))


class SegmentWriter:
    """One segment.

    Attributes:
        path: The file.
        where: Its place in the spool.
        number: What its records have to say.
        at: Where the next record goes.
        count: How many records of today's layout it has.
    """

    def __init__(self, spool_dir: Path, number: int = 0x18A0_0000_0000_0001, slot: str = "L0") -> None:
        self.number = number
        self.path_in_spool = f"{slot}/segments/{number:016x}-0.seg"
        self.path = spool_dir / self.path_in_spool
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            self.path.write_bytes(bytes(SEGMENT_BYTES))
        self.at = self.count = 0

    def append(
        self, data: bytes, *, received_ms: int = 1, done: bool = False, promised: int | None = None
    ) -> int:
        """Write a record behind the last one, by default as with page-cache durability.

        Returns the offset of its Part 10 file.
        """
        promised = self.count + 1 if promised is None else promised
        head = header_2(data, self.number, self.count, self.at, promised, received_ms)
        if done:
            self.write(MARKS_AT + 8 * self.count, mark(self.number, self.count))
        self.count += 1
        return self._put(head, data)

    def append_old(
        self, data: bytes, *, received_ms: int = 1, in_order: bool = False, done: bool = False
    ) -> int:
        """The same in the first layout; `in_order` for one without a CRC."""
        return self._put(
            header(data, self.number, received_ms=received_ms, in_order=in_order, done=done), data
        )

    def _put(self, head: bytes, data: bytes) -> int:
        offset = self.at + len(head)
        self.write(self.at, head + data)
        self.at = aligned(offset + len(data), 64)
        return offset

    def group(self, *files: bytes, received_ms: int = 1, trailing: bool = False) -> list[int]:
        """Several, from the next page on, as with durability, and perhaps the trailer."""
        self.at, before = aligned(self.at, 4096), self.count
        found = [self.append(data, received_ms=received_ms, promised=before) for data in files]
        if trailing:
            self.write_trailer()
        return found

    def write_trailer(self, *, closed: bool = False) -> None:
        self.write(aligned(self.at, 4096), trailer(self.number, self.count, closed=closed))

    def write(self, offset: int, data: bytes) -> None:
        """Any bytes anywhere."""
        assert offset + len(data) <= SEGMENT_BYTES
        with self.path.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def flip(self, offset: int, bit: int = 0) -> None:
        """Change one bit."""
        with self.path.open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 1 << bit]))
