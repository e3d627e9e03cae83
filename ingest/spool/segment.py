"""Segments: preallocated files of the spool that keep many small instances each, and how they are read.

```
<spool_dir>/L<n>/segments/<name>.seg   of a fixed size; written over again, under a new name, when all is done
<spool_dir>/L<n>/segments/<name>.tmp   being made, or kept to be used; worthless once the slot's lock is free
```

A record begins at a multiple of 64: a header, then a Part 10 file. All numbers are little endian.

```
 0  8  DIRECORD
 8  8  the segment: the number that its name begins with; records of the file's earlier life have another
16  8  length of the Part 10 file in bytes
24  4  CRC-32 of the Part 10 file; 0 with flag 0
28  4  flags; 0: written after its data, and has no CRC
32  8  when it was received, in Unix milliseconds
40  4  CRC-32 of all before
44 19  zero
63  1  1: in store and ledger, and may be written over; 0: waits
```

Groups of records begin at multiples of 4096, and holes between them are normal: several are written side by
side, so that one may be torn where a later one is whole and promised.

A record is read, and marked, under a shared lock of its segment. Whoever gives the file a new name takes the
exclusive one first: else a worker that was slow could mark as done what was written there since.
"""

import contextlib
import fcntl
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple, Self

FOLDER: Final = "segments"
NAME: Final = re.compile(r"[0-9a-f]{16}-[0-9a-f]+\.seg")
PLACE: Final = re.compile(rf"L[0-9]+/{FOLDER}/{NAME.pattern}")
"""What the place of a segment in the spool looks like."""

MAGIC: Final = b"DIRECORD"
HEADER_BYTES: Final = 64
ALIGNMENT: Final = 64
PAGE_BYTES: Final = 4096
WITHOUT_CRC: Final = 1
"""Flag of a record that was written after its data."""

WINDOW: Final = 1 << 20
"""Bytes that are read at once: each read gives up the interpreter's lock, and may wait for it."""

_HEADER: Final = struct.Struct("<8sQQLLQL")
_COVERED: Final = _HEADER.size - 4
_DONE: Final = HEADER_BYTES - 1


class Record(NamedTuple):
    """What a header says.

    Attributes:
        offset: Of the first byte of the Part 10 file, as references have it; the header lies before it.
        length: Bytes of the Part 10 file.
        crc: Its CRC-32.
        checked: Whether it has one.
        received_ms: When it was received, in Unix milliseconds.
        done: Whether store and ledger have it.
    """

    offset: int
    length: int
    crc: int
    checked: bool
    received_ms: int
    done: bool

    def holds(self, data: bytes | memoryview) -> bool:
        """Whether these bytes are those that were written."""
        return len(data) == self.length and (not self.checked or zlib.crc32(data) == self.crc)


class Segment:
    """One segment, open and kept from being used again until it is closed."""

    def __init__(self, path: str | os.PathLike[str], *, marking: bool = False) -> None:
        """Open and lock it; waits while somebody gives it a new name.

        Args:
            path: Where it is.
            marking: Whether records are to be marked, not only read.

        Raises:
            FileNotFoundError: It is not there, or has been used again.
            OSError: It cannot be opened.
        """
        self.number = int(os.path.basename(path)[:16], 16)
        self.fd = os.open(path, (os.O_RDWR if marking else os.O_RDONLY) | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(self.fd, fcntl.LOCK_SH)
            facts = os.fstat(self.fd)
            self.size = facts.st_size
            if not os.path.samestat(facts, os.stat(path, follow_symlinks=False)):
                raise FileNotFoundError(f"{path} has got another name")
        except BaseException:
            os.close(self.fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let it be used again, once all is done."""
        os.close(self.fd)

    def read(self, offset: int, length: int) -> tuple[Record, memoryview] | None:
        """The record whose Part 10 file has this place, and that file; None where no such record waits.

        The CRC is not looked at: what has a reference was durable before.

        Raises:
            OSError: The disk is failing.
        """
        if not self._may_begin(offset) or not 0 < length <= self.size - offset:
            return None
        found = memoryview(os.pread(self.fd, HEADER_BYTES + length, offset - HEADER_BYTES))
        record = _parse(found, offset, self.number, self.size)
        if record is None or record.done or record.length != length or len(found) < HEADER_BYTES + length:
            return None
        return record, found[HEADER_BYTES:]

    def records(self) -> Iterator[Record]:
        """All records, in the order of their places, done or not, whole or torn.

        Raises:
            OSError: The disk is failing.
        """
        for record, _ in self._walk():
            yield record

    def waiting(self) -> Iterator[Record]:
        """What waits, is whole, and so may have been promised.

        Raises:
            OSError: The disk is failing.
        """
        for record, window in self._walk():
            if not record.done and (
                not record.checked or record.holds(window.view(record.offset, record.length))
            ):
                yield record

    def waits(self, offset: int) -> bool:
        """Whether a record lies there and is not done, whole or torn.

        Raises:
            OSError: The disk is failing.
        """
        record = self._record(offset)
        return record is not None and not record.done

    def mark_done(self, offset: int) -> bool:
        """Say that store and ledger have what lies there; False where no record of this segment lies.

        Raises:
            OSError: The disk is failing.
        """
        if self._record(offset) is None:
            return False
        os.pwrite(self.fd, b"\x01", offset - HEADER_BYTES + _DONE)
        return True

    def _record(self, offset: int) -> Record | None:
        if not self._may_begin(offset):
            return None
        header = memoryview(os.pread(self.fd, HEADER_BYTES, offset - HEADER_BYTES))
        return _parse(header, offset, self.number, self.size)

    def _may_begin(self, offset: int) -> bool:
        return offset % ALIGNMENT == 0 and HEADER_BYTES <= offset < self.size

    def _walk(self) -> Iterator[tuple[Record, "_Window"]]:
        window, at = _Window(self.fd), 0
        while at + HEADER_BYTES <= self.size:
            record = _parse(window.view(at, HEADER_BYTES), at + HEADER_BYTES, self.number, self.size)
            if record is None:
                at = _up(at + 1, PAGE_BYTES)
            else:
                yield record, window
                at = _up(record.offset + record.length, ALIGNMENT)


class _Window:
    """A file, read in large steps."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._start = 0
        self._data = memoryview(b"")

    def view(self, offset: int, length: int) -> memoryview:
        """The bytes there; fewer at the end of the file."""
        start = offset - self._start
        if start < 0 or start + length > len(self._data):
            self._data = memoryview(os.pread(self._fd, max(length, WINDOW), offset))
            self._start, start = offset, 0
        return self._data[start : start + length]


def walk(path: str | os.PathLike[str]) -> Iterator[Record]:
    """All records of a segment, as `Segment.records`; none where it is gone."""
    with contextlib.suppress(FileNotFoundError), Segment(path) as segment:
        yield from segment.records()


def intact(fd: int, record: Record) -> bool:
    """Whether a record is whole.

    Raises:
        OSError: The disk is failing.
    """
    return not record.checked or record.holds(os.pread(fd, record.length, record.offset))


def mark_done(path: str | os.PathLike[str], offset: int) -> bool:
    """As `Segment.mark_done`, for one of them; False where the segment is gone, too."""
    try:
        with Segment(path, marking=True) as segment:
            return segment.mark_done(offset)
    except FileNotFoundError:
        return False


def all_done(path: str | os.PathLike[str]) -> bool:
    """Whether nothing waits in a segment; False where that cannot be read.

    Says nothing of one that is still written to.
    """
    try:
        with Segment(path) as segment:
            return next(segment.waiting(), None) is None
    except FileNotFoundError:
        return True
    except OSError:
        return False  # the sweep says so


def names(slot: Path) -> list[str]:
    """The segments of a slot, oldest first."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(name for name in os.listdir(slot / FOLDER) if NAME.fullmatch(name))
    return []


def free_segments(slot: Path, current: Callable[[], str] = lambda: "") -> list[str]:
    """The segments of a slot in which nothing waits, for its owner; oldest first.

    Args:
        slot: The slot's folder.
        current: Gives the name of the segment that is written to now. It is asked after the folder was
            listed: a segment that was listed can be left by its writer, but not taken up.
    """
    listed = names(slot)
    written = current()
    return [name for name in listed if name != written and all_done(slot / FOLDER / name)]


@contextlib.contextmanager
def unused(path: str | os.PathLike[str]) -> Iterator[bool]:
    """Whether nobody reads or marks a segment; while in here, nobody begins to.

    Raises:
        OSError: It cannot be opened.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)


def remove_unfinished(slot: Path) -> int:
    """Remove what a slot's dead owner was making, or kept for later; for who holds its lock.

    Returns:
        How many files.
    """
    removed = 0
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(slot / FOLDER):
            if name.endswith(".tmp"):
                (slot / FOLDER / name).unlink(missing_ok=True)
                removed += 1
    return removed


def remove_done(slot: Path) -> int:
    """Remove the segments in which nothing waits; for who holds the slot's lock and writes to none.

    Returns:
        How many.
    """
    removed = 0
    for name in free_segments(slot):
        with unused(slot / FOLDER / name) as free:
            if free:
                (slot / FOLDER / name).unlink(missing_ok=True)
                removed += 1
    return removed


def _parse(header: memoryview, offset: int, number: int, size: int) -> Record | None:
    """The record whose header this is, of the segment with this number and size; else None."""
    if len(header) < HEADER_BYTES:
        return None
    magic, segment, length, crc, flags, received_ms, header_crc = _HEADER.unpack_from(header)
    if magic != MAGIC or segment != number or not 0 < length <= size - offset:
        return None
    if zlib.crc32(header[:_COVERED]) != header_crc:
        return None
    return Record(offset, length, crc, not flags & WITHOUT_CRC, received_ms, header[_DONE] != 0)


def _up(offset: int, to: int) -> int:
    return (offset + to - 1) & -to
