"""A data set to send, as parts: bytes that were made for this destination, and ranges of the stored file.

Each change of a data set (padding, changed attributes, another transfer syntax) takes parts and makes parts:

- `FileParts` reads and cuts parts as if they were one file, so that one change can follow another.
- Ranges are copied from the file while they are sent. Memory therefore does not grow with the image.
- Parts depend on the stored file and on the configuration only, never on the time of the attempt. A retry
  therefore sends the same bytes.
"""

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from ingest.dicom.padding import Edit


@dataclass(frozen=True, slots=True)
class FileRange:
    """A part that is copied from the stored file: offset and length in bytes."""

    offset: int
    length: int


Part = bytes | FileRange


@dataclass(frozen=True, slots=True)
class OutgoingDataSet:
    """A data set to send, with the values that its C-STORE request needs.

    Attributes:
        sop_class_uid: Affected SOP Class UID.
        sop_instance_uid: Affected SOP Instance UID.
        transfer_syntax_uid: Transfer syntax of the parts.
        fd: File of the ranges. The descriptor stays the caller's.
        parts: The data set in order. An iterator may make a part at a time; it may raise StoreError.
        length: Length of all parts in bytes; None if it is known only at their end.
        note: Changes in words, for the delivery in the ledger. It has no values of attributes.
    """

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    fd: int
    parts: Iterable[Part]
    length: int | None = None
    note: str = ""


class FileParts:
    """Parts that are read and cut as if they were one file.

    Attributes:
        fd: File of the ranges.
        parts: The parts, without empty ones.
        length: Length of all parts in bytes.
    """

    def __init__(self, fd: int, parts: Iterable[Part]) -> None:
        """Take parts. The descriptor stays the caller's."""
        self.parts: Sequence[Part] = tuple(part for part in parts if count_bytes(part))
        self.fd = fd
        self._ends = list(accumulate(count_bytes(part) for part in self.parts))
        self.length = self._ends[-1] if self._ends else 0

    def read(self, at: int, count: int) -> bytes:
        """Read `count` bytes, or fewer at the end.

        Raises:
            OSError: The file cannot be read. Without an error number, the file is too short.
        """
        found = [
            part if isinstance(part, bytes) else read_range(self.fd, part.offset, part.length)
            for part in self.cut(at, at + count)
        ]
        return found[0] if len(found) == 1 else b"".join(found)

    def cut(self, begin: int, end: int) -> Iterator[Part]:
        """Yield the parts from position `begin` to `end`."""
        end = min(end, self.length)
        index = bisect_right(self._ends, begin)
        while begin < end:
            part = self.parts[index]
            skipped = begin - (self._ends[index] - count_bytes(part))
            count = min(end, self._ends[index]) - begin
            if isinstance(part, FileRange):
                yield FileRange(part.offset + skipped, count)
            else:
                yield part[skipped : skipped + count]
            begin += count
            index += 1

    def edit(self, edits: Sequence[Edit]) -> Iterator[Part]:
        """Yield the parts with edits made, which are in order of position."""
        at = 0
        for edit in edits:
            yield from self.cut(at, edit.at)
            if edit.bytes:
                yield edit.bytes
            at = edit.at + edit.removed
        yield from self.cut(at, self.length)


def count_bytes(part: Part) -> int:
    """Return the length of a part in bytes."""
    return part.length if isinstance(part, FileRange) else len(part)


def read_range(fd: int, offset: int, length: int) -> bytes:
    """Read a range of a file.

    Raises:
        OSError: The file cannot be read. Without an error number, it ends too early.
    """
    found = os.pread(fd, length, offset)
    while len(found) < length:
        more = os.pread(fd, length - len(found), offset + len(found))
        if not more:
            raise OSError("the file ends before its data set")
        found += more
    return found
