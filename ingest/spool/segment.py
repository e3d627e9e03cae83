"""Segments: preallocated files of the spool that keep many small instances each, and how they are read.

```
L<n>/segments/<name>.seg      of a fixed size; written over again, under a new name, when all is done
L<n>/segments/<name>.tmp      being made, or kept to be used; worthless once the slot's lock is free
L<n>/segments/<name>.damaged  holds records that cannot be read any more; kept for a person
```

All numbers are little endian. Records come first, then a page for the trailer, then the marks: from
`MARKS_AT` on, 8 bytes for each record in their order.

A record begins at a multiple of 64: a header, then a Part 10 file.

```
 0  8  DIRECORD
 8  8  the segment: the number that its name begins with; records of the file's earlier life have another
16  8  length of the Part 10 file in bytes
24  4  CRC-32C of the Part 10 file
28  4  flags: 3
32  8  when it was received, in Unix milliseconds
40  4  CRC-32 of all before
44  4  number of the record within the segment, from 0
48  4  where this header begins
52  4  how many records of the segment were promised when this header was written
56  4  CRC-32C of all before
60  4  zero
```

The mark of a record that store and ledger have:

```
 0  4  DONE
 4  4  CRC-32C of the segment (8 bytes) and the number of the record (4 bytes)
```

The trailer stands at the first page behind the last group:

```
 0  8  DICOMMIT
 8  8  the segment
16  4  how many records are promised
20  4  flags; 0: nothing was promised behind this
24  4  CRC-32C of all before
```

**Nothing that was promised is written again.** A group of records begins at a multiple of 4096 and is written
only once the group before it is durable. Marks lie in pages of their own: a power cut while such a page is
written may forget marks, which has records persisted once more, and a page of garbage is no mark.

**What a record proves.** Groups come one after the other. A header that can be read says that so many records
before it were promised; with page-cache durability it counts itself, since the answer follows at once. The
trailer says the same of the last group. It is not waited for: in the seconds after the last group a power cut
may lose it. A record that is not whole is *damaged* if it is proved to be promised. It is *doubtful* if
nothing proves it and its writer is gone. It was never promised if its writer is still at it, or if a closing
trailer leaves it out. Damaged and doubtful records are kept, and a person is told.

The first layout has flags 0 or 1, nothing from byte 44 on, and the mark in byte 63 (1: done). Its CRC of the
Part 10 file is a CRC-32, or missing with flag 1. Records of that layout are still read and marked. Flag 1 in
today's layout lets the version before read these records as such without a CRC.

A record is read, and marked, under a shared lock of its segment; the writer holds one too. A process that
removes the file or gives it a new name takes the exclusive one first: otherwise a slow worker could mark as
done what was written there since.
"""

import contextlib
import fcntl
import os
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, Self

from ingest.ext.checksum import crc32c
from ingest.ext.segment import SEGMENT_BYTES

FOLDER: Final = "segments"
NAME: Final = re.compile(r"[0-9a-f]{16}-[0-9a-f]+\.seg")
PLACE: Final = re.compile(rf"L[0-9]+/{FOLDER}/{NAME.pattern}")
"""What the place of a segment in the spool looks like."""

MAGIC: Final = b"DIRECORD"
HEADER_BYTES: Final = 64
ALIGNMENT: Final = 64
PAGE_BYTES: Final = 4096
WITHOUT_CRC: Final = 1
"""Flag of a record that was written after its data, in the first layout."""

SECOND_LAYOUT: Final = 2
"""Flag of a record of today's layout."""

MARK_BYTES: Final = 8
RECORDS_MAX: Final = 16384
MARKS_AT: Final = SEGMENT_BYTES - MARK_BYTES * RECORDS_MAX

TRAILER_MAGIC: Final = b"DICOMMIT"
CLOSED: Final = 1

DAMAGE: Final = "damaged in the spool"
"""What notes of instances begin with whose record was not what had been received."""

WINDOW: Final = 1 << 20
"""Bytes that are read at once: each read gives up the interpreter's lock, and may wait for it."""

_HEADER: Final = struct.Struct("<8sQQLLQL")
_COVERED: Final = _HEADER.size - 4
_SECOND: Final = struct.Struct("<LLLL")
_SECOND_COVERED: Final = _HEADER.size + _SECOND.size - 4
_TRAILER: Final = struct.Struct("<8sQLLL")
_TRAILER_COVERED: Final = _TRAILER.size - 4
_OWNER: Final = struct.Struct("<QL")
_DONE: Final = HEADER_BYTES - 1

_BEGINNING: Final = re.compile(b"DI(?:RECORD|COMMIT)")


class Record(NamedTuple):
    """What a header says.

    Attributes:
        offset: Of the first byte of the Part 10 file, as references have it; the header lies before it.
        length: Bytes of the Part 10 file.
        crc: Its checksum.
        flags: Which layout it has, and whether there is a checksum.
        received_ms: When it was received, in Unix milliseconds.
        done: Whether store and ledger have it.
        number: Of the record within its segment; -1 in the first layout.
        promised: How many records were promised when it was written; 0 in the first layout.
    """

    offset: int
    length: int
    crc: int
    flags: int
    received_ms: int
    done: bool
    number: int = -1
    promised: int = 0

    @property
    def checked(self) -> bool:
        """Whether it has a checksum."""
        return self.number >= 0 or not self.flags & WITHOUT_CRC

    def holds(self, data: bytes | memoryview) -> bool:
        """Whether these bytes are those that were written, as far as that can be told."""
        if len(data) != self.length:
            return False
        if self.number >= 0:
            return crc32c(data) == self.crc
        return not self.checked or zlib.crc32(data) == self.crc


@dataclass(slots=True)
class Examined:
    """All of a segment, once.

    Attributes:
        waiting: Records that are whole, or that the disk does not give now, and are not done.
        damaged: Records that are proved to be promised, are not whole and not done.
        doubtful: Likewise, but nothing proves that they were promised.
        missing: Numbers of records that are not done and whose header cannot be read; damaged or doubtful.
        promised: How many records are proved to be promised, missing ones included.
        is_unreadable: Whether the disk refused to give a part of it.
        is_cut: Whether the file is shorter than a segment.
    """

    waiting: list[Record] = field(default_factory=list)
    damaged: list[Record] = field(default_factory=list)
    doubtful: list[Record] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    promised: int = 0
    is_unreadable: bool = False
    is_cut: bool = False

    @property
    def is_done(self) -> bool:
        """Whether nothing of the segment is needed any more."""
        return not self.waiting and not self.is_unreadable and not self.is_broken

    @property
    def is_broken(self) -> bool:
        """Whether something of it has to be kept for a person."""
        return bool(self.damaged or self.doubtful or self.missing or self.is_cut)


class Segment:
    """One segment, open and kept from being used again until it is closed."""

    def __init__(self, path: str | os.PathLike[str], *, marking: bool = False) -> None:
        """Open and lock it; waits while another process gives it a new name.

        Args:
            path: Where it is.
            marking: Whether records are to be marked, not only read.

        Raises:
            FileNotFoundError: It is not there, or has been used again.
            OSError: It cannot be opened.
        """
        self.number = int(os.path.basename(path)[:16], 16)
        self._path = path
        self.fd = os.open(path, (os.O_RDWR if marking else os.O_RDONLY) | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            self._lock()
            self.size = os.fstat(self.fd).st_size
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

        The checksum is the caller's to compare (`Record.holds`).

        Raises:
            OSError: The disk is failing.
        """
        if not self._may_begin(offset) or not 0 < length <= SEGMENT_BYTES - offset:
            return None
        found = memoryview(os.pread(self.fd, HEADER_BYTES + length, offset - HEADER_BYTES))
        record = self._parse(found, offset)
        if record is None or record.length != length or self._is_done(record):
            return None
        return record, found[HEADER_BYTES:]

    def records(self) -> Iterator[Record]:
        """All records that can be read, in the order of their places, done or not, whole or not."""
        for record, _ in _Walk(self):
            yield record

    def examine(self) -> Examined:
        """Look at all of it.

        Raises:
            FileNotFoundError: It has been used again meanwhile.
        """
        walk, found, torn = _Walk(self), Examined(is_cut=self.size < SEGMENT_BYTES), list[Record]()
        seen: set[int] = set()
        last_group = 0
        for record, data in walk:
            seen.add(record.number)
            found.promised = max(found.promised, record.promised)
            whole = data is None or record.holds(data)
            if record.number < 0 and whole and record.offset % PAGE_BYTES == HEADER_BYTES:
                last_group = (
                    record.offset
                )  # in the first layout, too, a group is written after the one before
            if not record.done and whole:
                found.waiting.append(record)
            elif not record.done:
                torn.append(record)
        found.promised = max(found.promised, walk.promised)
        found.is_unreadable = walk.is_unreadable
        count = max(found.promised, max(seen, default=-1) + 1, walk.suspected)
        missing = [number for number in range(count) if number not in seen and not walk.is_marked(number)]
        found.damaged = [record for record in torn if _is_proved(record, found.promised, last_group)]
        found.missing = [number for number in missing if number < found.promised]
        if walk.is_closed or (len(torn), len(missing)) == (len(found.damaged), len(found.missing)):
            return found
        if not self._is_held_by_others():
            found.doubtful = [record for record in torn if record not in found.damaged]
            found.missing = missing
        return found

    def waiting(self) -> Iterator[Record]:
        """What waits, is whole, and so may have been promised."""
        yield from self.examine().waiting

    def waits(self, offset: int) -> bool:
        """Whether a record lies there and is not done, whole or torn.

        Raises:
            OSError: The disk is failing.
        """
        record = self._record(offset)
        return record is not None and not self._is_done(record)

    def mark_done(self, offset: int) -> bool:
        """Say that store and ledger have what lies there; False where no record of this segment lies.

        Raises:
            OSError: The disk is failing.
        """
        record = self._record(offset)
        if record is None:
            return False
        if record.number < 0:
            os.pwrite(self.fd, b"\x01", offset - HEADER_BYTES + _DONE)
        else:
            os.pwrite(self.fd, mark(self.number, record.number), MARKS_AT + MARK_BYTES * record.number)
        return True

    def judge(self, record: Record) -> str:
        """Why a record that is not whole may be taken for damaged; an empty string while it may not.

        Raises:
            FileNotFoundError: The segment has been used again meanwhile.
        """
        found = self.examine()
        if record in found.damaged:
            return "it was acknowledged, and its bytes are not those that were received any more"
        if record in found.doubtful:
            return "its bytes are not those that were received; whether it was acknowledged cannot be told"
        return ""

    def _record(self, offset: int) -> Record | None:
        if not self._may_begin(offset):
            return None
        return self._parse(memoryview(os.pread(self.fd, HEADER_BYTES, offset - HEADER_BYTES)), offset)

    def _parse(self, header: memoryview, offset: int) -> Record | None:
        return _parse(header, offset, self.number)

    def _may_begin(self, offset: int) -> bool:
        return offset % ALIGNMENT == 0 and HEADER_BYTES <= offset < self.size

    def _is_done(self, record: Record) -> bool:
        if record.number < 0:
            return record.done
        found = b""
        with contextlib.suppress(OSError):  # persisted once more, rather than never
            found = os.pread(self.fd, MARK_BYTES, MARKS_AT + MARK_BYTES * record.number)
        return found == mark(self.number, record.number)

    def _is_held_by_others(self) -> bool:
        """Whether the writer or another reader is at it.

        Raises:
            FileNotFoundError: It was used again, since our own lock is given up in between.
        """
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held = True
        else:
            held = False
        self._lock()
        return held

    def _lock(self) -> None:
        fcntl.flock(self.fd, fcntl.LOCK_SH)
        if not os.path.samestat(os.fstat(self.fd), os.stat(self._path, follow_symlinks=False)):
            raise FileNotFoundError(f"{self._path} has got another name")


class _Walk:
    """The records of a segment in the order of their places, and what else is found on the way.

    Each comes with its bytes, or None if the disk does not give these.

    Attributes:
        promised: What the trailer says, if there is one.
        is_closed: Whether it says that nothing was promised behind it.
        suspected: Records that there are at least, if one of the last has lost its header.
        is_unreadable: Whether the disk refused to give a part.
    """

    def __init__(self, segment: Segment) -> None:
        self.promised = self.suspected = 0
        self.is_closed = self.is_unreadable = False
        self._segment = segment
        self._marks = b""
        try:
            self._marks = os.pread(segment.fd, MARK_BYTES * RECORDS_MAX, MARKS_AT)
        except OSError:
            self.is_unreadable = True

    def is_marked(self, number: int) -> bool:
        """Whether a record of today's layout is done."""
        at = MARK_BYTES * number
        return self._marks[at : at + MARK_BYTES] == mark(self._segment.number, number)

    def __iter__(self) -> Iterator[tuple[Record, memoryview | None]]:
        window, at, next_number = _Window(self._segment.fd), 0, 0
        expected = {0}  # places where the next header may begin
        while at + HEADER_BYTES <= self._segment.size:
            try:
                header = window.view(at, HEADER_BYTES)
            except OSError:
                self.is_unreadable = True
                at = _up(at + 1, PAGE_BYTES)
                continue
            record = _parse(header, at + HEADER_BYTES, self._segment.number)
            if record is None:
                self._read_trailer(header)
                if at in expected and self._resembles(header, at):
                    self.suspected = next_number + 1
                at = self._next_beginning(window, at + ALIGNMENT, expected)
                continue
            next_number = max(next_number, record.number + 1)
            yield self._with_data(record, window)
            at = _up(record.offset + record.length, ALIGNMENT)
            expected = {at, _up(at, PAGE_BYTES)}

    def _with_data(self, record: Record, window: "_Window") -> tuple[Record, memoryview | None]:
        if record.number >= 0:
            record = record._replace(done=self.is_marked(record.number))
        try:
            return record, window.view(record.offset, record.length)
        except OSError:
            self.is_unreadable = True
            return record, None

    def _next_beginning(self, window: "_Window", at: int, expected: set[int]) -> int:
        """The next place where a header or a trailer may begin."""
        while at < self._segment.size:
            try:
                data = window.from_here(at)
            except OSError:
                self.is_unreadable = True
                at = _up(at + 1, PAGE_BYTES)
                continue
            if not data:
                break
            found = [at + match.start() for match in _BEGINNING.finditer(data)]
            places = [place for place in found if place % ALIGNMENT == 0]
            places += [place for place in expected if at <= place < at + len(data)]
            if places:
                return min(places)
            at += len(data)  # a multiple of ALIGNMENT: no beginning is cut in two
        return self._segment.size

    def _read_trailer(self, header: memoryview) -> None:
        magic, number, count, flags, crc = _TRAILER.unpack_from(header)
        is_own = magic == TRAILER_MAGIC and number == self._segment.number and count <= RECORDS_MAX
        if is_own and crc32c(header[:_TRAILER_COVERED]) == crc:
            self.promised, self.is_closed = count, bool(flags & CLOSED)

    def _resembles(self, header: memoryview, at: int) -> bool:
        """Whether this was a header of the segment's own before some bits of it were changed."""
        own = MAGIC + struct.pack("<Q", self._segment.number)
        differing = sum(found != ours for found, ours in zip(header[:16], own, strict=True))
        earlier = int.from_bytes(header[8:16], "little")
        return differing <= 2 and _parse(header, at + HEADER_BYTES, earlier) is None


class _Window:
    """A file, read in large steps."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._start = 0
        self._data = memoryview(b"")

    def view(self, offset: int, length: int) -> memoryview:
        """The bytes there; fewer at the end of the file.

        Raises:
            OSError: The disk does not give them.
        """
        start = offset - self._start
        if start < 0 or start + length > len(self._data):
            try:
                self._data = memoryview(os.pread(self._fd, max(length, WINDOW), offset))
            except OSError:
                # A page that cannot be read keeps back no others.
                self._data = memoryview(os.pread(self._fd, length, offset))
            self._start, start = offset, 0
        return self._data[start : start + length]

    def from_here(self, offset: int) -> memoryview:
        """All that is at hand from there on, whole multiples of ALIGNMENT; empty at the end of the file.

        Raises:
            OSError: The disk does not give it.
        """
        data = self.view(offset, PAGE_BYTES)
        data = self._data[offset - self._start :]
        return data[: len(data) // ALIGNMENT * ALIGNMENT]


def mark(segment: int, number: int) -> bytes:
    """What says in a segment that a record is done."""
    return b"DONE" + crc32c(_OWNER.pack(segment, number)).to_bytes(4, "little")


def walk(path: str | os.PathLike[str]) -> Iterator[Record]:
    """All records of a segment, as `Segment.records`; none where it is gone."""
    with contextlib.suppress(FileNotFoundError), Segment(path) as segment:
        yield from segment.records()


def mark_done(path: str | os.PathLike[str], offset: int) -> bool:
    """As `Segment.mark_done`, for one of them; False where the segment is gone, too."""
    try:
        with Segment(path, marking=True) as segment:
            return segment.mark_done(offset)
    except FileNotFoundError:
        return False


def names(slot: Path) -> list[str]:
    """The segments of a slot, oldest first."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(name for name in os.listdir(slot / FOLDER) if NAME.fullmatch(name))
    return []


def _parse(header: memoryview, offset: int, number: int) -> Record | None:
    """The record whose header this is, of the segment with this number; otherwise None."""
    if len(header) < HEADER_BYTES:
        return None
    magic, segment, length, crc, flags, received_ms, header_crc = _HEADER.unpack_from(header)
    if magic != MAGIC or segment != number or not 0 < length <= SEGMENT_BYTES - offset:
        return None
    if not flags & SECOND_LAYOUT:
        if zlib.crc32(header[:_COVERED]) != header_crc:
            return None
        return Record(offset, length, crc, flags, received_ms, header[_DONE] == 1)
    own, place, promised, second_crc = _SECOND.unpack_from(header, _HEADER.size)
    if crc32c(header[:_SECOND_COVERED]) != second_crc or own >= RECORDS_MAX or place != offset - HEADER_BYTES:
        return None
    return Record(offset, length, crc, flags, received_ms, False, own, promised)


def _is_proved(record: Record, promised: int, last_group: int) -> bool:
    """Whether a record was promised: groups are written one after the other."""
    return record.offset < last_group if record.number < 0 else record.number < promised


def _up(offset: int, to: int) -> int:
    return (offset + to - 1) & -to
