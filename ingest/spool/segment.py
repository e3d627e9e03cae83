"""Segments: preallocated spool files that hold many small instances each, and the reader of these files.

```
L<n>/segments/<name>.seg      has a fixed size; reused under a new name when all its records are persisted
L<n>/segments/<name>.tmp      is being created, or kept as a spare; worthless once the slot's lock is free
L<n>/segments/<name>.damaged  holds records that cannot be read any more; kept for a person
```

`ext/segment_writer.pyx` writes segments. Both files use the same names for the offsets below. All numbers
are little
endian. The records come first, then one page for the trailer, then the marks. The marks begin at `MARKS_AT`
and have 8 bytes for each record, in the order of the records.

A record begins at a multiple of `ALIGNMENT`, with a header of 64 bytes. The Part 10 file follows.

| offset | name | bytes | contents |
|---|---|---|---|
| 0 | `MAGIC_AT` | 8 | `DIRECORD` |
| 8 | `SEGMENT_NUMBER_AT` | 8 | number of the segment, with which its name begins; new for each reuse |
| 16 | `LENGTH_AT` | 8 | length of the Part 10 file in bytes |
| 24 | `DATA_CRC_AT` | 4 | CRC-32C of the Part 10 file |
| 28 | `FLAGS_AT` | 4 | flags: 3 |
| 32 | `RECEIVED_AT` | 8 | time of arrival in Unix milliseconds |
| 40 | `FIRST_CRC_AT` | 4 | CRC-32 of all bytes before |
| 44 | `RECORD_NUMBER_AT` | 4 | number of the record within the segment, from 0 |
| 48 | `HEADER_OFFSET_AT` | 4 | offset of this header in the segment |
| 52 | `COMMITTED_AT` | 4 | number of records that were committed when this header was written |
| 56 | `SECOND_CRC_AT` | 4 | CRC-32C of all bytes before |
| 60 | | 4 | zero |

The mark of a persisted record:

| offset | name | bytes | contents |
|---|---|---|---|
| 0 | | 4 | `DONE` |
| 4 | `MARK_CRC_AT` | 4 | CRC-32C of the number of the segment (8 bytes) and of the record (4 bytes) |

The trailer begins at the first page after the last group:

| offset | name | bytes | contents |
|---|---|---|---|
| 0 | | 8 | `DICOMMIT` |
| 8 | `TRAILER_SEGMENT_AT` | 8 | number of the segment |
| 16 | `TRAILER_COUNT_AT` | 4 | number of committed records |
| 20 | `TRAILER_FLAGS_AT` | 4 | flags; 1: nothing follows |
| 24 | `TRAILER_CRC_AT` | 4 | CRC-32C of all bytes before |

**Committed bytes are never written again.** A group of records begins at a multiple of 4096. It is written
only after the group before it is durable. The marks lie on separate pages. A power cut during a write to
such a page may lose marks, and the records are then persisted once more. A page of garbage is no mark.

**What a header proves.** Groups are written one after the other, and each header states how many records were
committed before it. With page-cache durability that number includes the record itself, because the response
follows at once. The trailer states the same for the last group. Nobody waits for the trailer to become
durable, so a power cut within seconds of the last group may lose it.

A record with wrong bytes is one of these:

- *damaged*, if a later header or the trailer proves that it was committed;
- *doubtful*, if nothing proves that and its writer is gone;
- not committed, if its writer still runs, or if a closing trailer does not count it.

Damaged and doubtful records are kept, and an alarm reports them.

**The first layout** had flags 0 or 1, nothing from byte 44 on, and the mark in byte 63 (`FIRST_MARK_AT`; 1
means persisted). Its `DATA_CRC_AT` holds a CRC-32, or nothing if flag 1 is set. Records of that layout are
still read and marked. Today's layout also sets flag 1, so the program version before reads its records
without a CRC.

**Locks.** The writer and every reader hold a shared lock on the segment (INVARIANT 3). A process that removes
the file or renames it must hold the exclusive lock. Without the locks a slow worker could mark a record that
was written there since (INVARIANT 14).
"""

import contextlib
import fcntl
import os
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple, Self

from ingest.ext.checksum import crc32c
from ingest.ext.segment_writer import SEGMENT_BYTES

FOLDER: Final = "segments"
SEGMENT_NAME: Final = re.compile(r"[0-9a-f]{16}-[0-9a-f]+\.seg")
SEGMENT_PATH: Final = re.compile(rf"L[0-9]+/{FOLDER}/{SEGMENT_NAME.pattern}")
"""Pattern of the path of a segment, below the folder of the spool."""

NUMBER_DIGITS: Final = 16
"""Hexadecimal digits at the beginning of the name of a segment: its number."""

# The header of a record.
MAGIC: Final = b"DIRECORD"
MAGIC_AT: Final = 0
SEGMENT_NUMBER_AT: Final = 8
LENGTH_AT: Final = 16
DATA_CRC_AT: Final = 24
FLAGS_AT: Final = 28
RECEIVED_AT: Final = 32
FIRST_CRC_AT: Final = 40
RECORD_NUMBER_AT: Final = 44
HEADER_OFFSET_AT: Final = 48
COMMITTED_AT: Final = 52
SECOND_CRC_AT: Final = 56
FIRST_MARK_AT: Final = 63
HEADER_BYTES: Final = 64
ALIGNMENT: Final = 64
PAGE_BYTES: Final = 4096

WITHOUT_CRC: Final = 1
"""Flag of a record of the first layout that has no CRC of its data."""

SECOND_LAYOUT: Final = 2
"""Flag of a record of today's layout."""

# The marks.
MARK_MAGIC: Final = b"DONE"
MARK_CRC_AT: Final = 4
MARK_BYTES: Final = 8
RECORDS_MAX: Final = 16384
MARKS_AT: Final = SEGMENT_BYTES - MARK_BYTES * RECORDS_MAX

# The trailer.
TRAILER_MAGIC: Final = b"DICOMMIT"
TRAILER_SEGMENT_AT: Final = 8
TRAILER_COUNT_AT: Final = 16
TRAILER_FLAGS_AT: Final = 20
TRAILER_CRC_AT: Final = 24
CLOSED: Final = 1
"""Flag of a trailer: the writer has left the segment, and nothing follows."""

WINDOW: Final = 1 << 20
"""Bytes of one read. Each read releases the interpreter lock and may wait to get it back."""

_HEADER: Final = struct.Struct("<8sQQLLQL")  # up to FIRST_CRC_AT, which it includes
_SECOND: Final = struct.Struct("<LLLL")  # from RECORD_NUMBER_AT to SECOND_CRC_AT
_TRAILER: Final = struct.Struct("<8sQLLL")
_MARK_OWNER: Final = struct.Struct("<QL")

_BEGINNING: Final = re.compile(b"DI(?:RECORD|COMMIT)")


class RecordDamage(StrEnum):
    """Why a record with wrong bytes counts as damaged; the value is the explanation for people."""

    ACKNOWLEDGED = "it was acknowledged, and its bytes are not those that were received any more"
    DOUBTFUL = "its bytes are not those that were received; whether it was acknowledged cannot be told"


class Record(NamedTuple):
    """The contents of one header.

    Attributes:
        offset: Offset of the first byte of the Part 10 file, as references have it. The header lies before
            it.
        length: Bytes of the Part 10 file.
        crc: Checksum of the Part 10 file.
        flags: `SECOND_LAYOUT`, `WITHOUT_CRC`.
        received_ms: Time of arrival, in Unix milliseconds.
        is_persisted: Whether the record is marked: store and ledger have the instance.
        number: Number of the record within its segment; -1 in the first layout.
        committed_before: Number of records that were committed when this one was written; 0 in the first
            layout.
    """

    offset: int
    length: int
    crc: int
    flags: int
    received_ms: int
    is_persisted: bool
    number: int = -1
    committed_before: int = 0

    @property
    def has_checksum(self) -> bool:
        """Whether the header holds a checksum of the Part 10 file."""
        return self.number >= 0 or not self.flags & WITHOUT_CRC

    def matches(self, data: bytes | memoryview) -> bool:
        """Whether these bytes are those that were written; compares only their number without a checksum."""
        if len(data) != self.length:
            return False
        if self.number >= 0:
            return crc32c(data) == self.crc
        return not self.has_checksum or zlib.crc32(data) == self.crc


@dataclass(slots=True)
class SegmentReport:
    """The state of all records of a segment.

    Attributes:
        waiting: Records that are not persisted, and whose bytes are right or cannot be read now.
        damaged: Records that are not persisted, whose bytes are wrong, and that were certainly committed.
        doubtful: The same, but nothing proves that they were committed.
        missing: Numbers of records that are not persisted and whose header is lost; damaged or doubtful.
        committed_count: How many records were certainly committed, missing ones included.
        is_unreadable: Whether the disk failed to read a part of the segment.
        is_cut: Whether the file is shorter than a segment.
    """

    waiting: list[Record] = field(default_factory=list)
    damaged: list[Record] = field(default_factory=list)
    doubtful: list[Record] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    committed_count: int = 0
    is_unreadable: bool = False
    is_cut: bool = False

    @property
    def is_disposable(self) -> bool:
        """Whether no record of the segment is needed any more."""
        return not self.waiting and not self.is_unreadable and not self.is_broken

    @property
    def is_broken(self) -> bool:
        """Whether a part of the segment must be kept for a person."""
        return bool(self.damaged or self.doubtful or self.missing or self.is_cut)


class Segment:
    """One open segment. While it is open, no process can remove, rename or overwrite it."""

    def __init__(self, path: str | os.PathLike[str], *, marking: bool = False) -> None:
        """Open and lock a segment; wait while another process renames it.

        Args:
            path: The file.
            marking: Whether the caller will mark records as persisted.

        Raises:
            FileNotFoundError: The segment is gone, or was reused under another name.
            OSError: The file cannot be opened.
        """
        self.number = int(os.path.basename(path)[:NUMBER_DIGITS], 16)
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
        """Close and unlock the segment."""
        os.close(self.fd)

    def read(self, offset: int, length: int) -> tuple[Record, memoryview] | None:
        """Return a waiting record and its Part 10 file; None if no record waits at exactly this location.

        The caller must compare the checksum (`Record.matches`).

        Raises:
            OSError: The disk is failing.
        """
        if not self._may_begin(offset) or not 0 < length <= SEGMENT_BYTES - offset:
            return None
        found = memoryview(os.pread(self.fd, HEADER_BYTES + length, offset - HEADER_BYTES))
        record = self._parse(found, offset)
        if record is None or record.length != length or self._is_persisted(record):
            return None
        return record, found[HEADER_BYTES:]

    def records(self) -> Iterator[Record]:
        """Yield all records with a readable header, by offset: waiting, persisted, right and wrong ones."""
        for record, _ in _RecordScan(self):
            yield record

    def examine(self) -> SegmentReport:
        """Read the whole segment and report the state of its records.

        Raises:
            FileNotFoundError: The segment was reused in between.
        """
        scan, found, torn = _RecordScan(self), SegmentReport(is_cut=self.size < SEGMENT_BYTES), list[Record]()
        seen: set[int] = set()
        last_group = 0
        for record, data in scan:
            seen.add(record.number)
            found.committed_count = max(found.committed_count, record.committed_before)
            is_whole = data is None or record.matches(data)
            if record.number < 0 and is_whole and record.offset % PAGE_BYTES == HEADER_BYTES:
                # Groups of the first layout also follow each other: this one proves all groups before it.
                last_group = record.offset
            if not record.is_persisted and is_whole:
                found.waiting.append(record)
            elif not record.is_persisted:
                torn.append(record)
        found.committed_count = max(found.committed_count, scan.committed_count)
        found.is_unreadable = scan.is_unreadable
        count = max(found.committed_count, max(seen, default=-1) + 1, scan.suspected)
        missing = [number for number in range(count) if number not in seen and not scan.is_marked(number)]
        found.damaged = [record for record in torn if _is_proved(record, found.committed_count, last_group)]
        found.missing = [number for number in missing if number < found.committed_count]
        if scan.is_closed or (len(torn), len(missing)) == (len(found.damaged), len(found.missing)):
            return found
        # Nothing proves the rest. While the writer runs, such records were simply not committed yet.
        if not self._is_locked_by_others():
            found.doubtful = [record for record in torn if record not in found.damaged]
            found.missing = missing
        return found

    def waiting(self) -> Iterator[Record]:
        """Yield the records that wait and are whole, and so may have been committed."""
        yield from self.examine().waiting

    def is_waiting(self, offset: int) -> bool:
        """Whether a record at this offset waits, with right or wrong bytes.

        Raises:
            OSError: The disk is failing.
        """
        record = self._record(offset)
        return record is not None and not self._is_persisted(record)

    def mark_persisted(self, offset: int) -> bool:
        """Mark a record as persisted; return False if no record of this segment lies at this offset.

        Raises:
            OSError: The disk is failing.
        """
        record = self._record(offset)
        if record is None:
            return False
        if record.number < 0:
            os.pwrite(self.fd, b"\x01", offset - HEADER_BYTES + FIRST_MARK_AT)
        else:
            os.pwrite(self.fd, encode_mark(self.number, record.number), MARKS_AT + MARK_BYTES * record.number)
        return True

    def classify_damage(self, record: Record) -> RecordDamage | None:
        """Return why a record with wrong bytes counts as damaged; None if its writer may still complete it.

        Raises:
            FileNotFoundError: The segment was reused in between.
        """
        found = self.examine()
        if record in found.damaged:
            return RecordDamage.ACKNOWLEDGED
        if record in found.doubtful:
            return RecordDamage.DOUBTFUL
        return None

    def _record(self, offset: int) -> Record | None:
        if not self._may_begin(offset):
            return None
        return self._parse(memoryview(os.pread(self.fd, HEADER_BYTES, offset - HEADER_BYTES)), offset)

    def _parse(self, header: memoryview, offset: int) -> Record | None:
        return _parse(header, offset, self.number)

    def _may_begin(self, offset: int) -> bool:
        return offset % ALIGNMENT == 0 and HEADER_BYTES <= offset < self.size

    def _is_persisted(self, record: Record) -> bool:
        if record.number < 0:
            return record.is_persisted
        found = b""
        # If the mark cannot be read, the record is persisted once more. That is better than never.
        with contextlib.suppress(OSError):
            found = os.pread(self.fd, MARK_BYTES, MARKS_AT + MARK_BYTES * record.number)
        return found == encode_mark(self.number, record.number)

    def _is_locked_by_others(self) -> bool:
        """Whether the writer or another reader has the segment open.

        Raises:
            FileNotFoundError: The segment was reused. flock(2) gives up our shared lock before it takes the
                exclusive one, so another process may come in between.
        """
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            is_locked = True
        else:
            is_locked = False
        self._lock()
        return is_locked

    def _lock(self) -> None:
        # The file may have been renamed between open and lock. INVARIANT 14: never read it under its old
        # name.
        fcntl.flock(self.fd, fcntl.LOCK_SH)
        if not os.path.samestat(os.fstat(self.fd), os.stat(self._path, follow_symlinks=False)):
            raise FileNotFoundError(f"{self._path} was renamed")


class _RecordScan:
    """Iterates over the records of a segment by offset, and collects all damage that it finds.

    Each record comes with its bytes, or with None if the disk fails to read them.

    Attributes:
        committed_count: Number of committed records according to the trailer; 0 without a trailer.
        is_closed: Whether the trailer states that nothing follows.
        suspected: Minimum number of records, if one of the last records has lost its header.
        is_unreadable: Whether the disk failed to read a part.
    """

    def __init__(self, segment: Segment) -> None:
        self.committed_count = self.suspected = 0
        self.is_closed = self.is_unreadable = False
        self._segment = segment
        self._marks = b""
        try:
            self._marks = os.pread(segment.fd, MARK_BYTES * RECORDS_MAX, MARKS_AT)
        except OSError:
            self.is_unreadable = True

    def is_marked(self, number: int) -> bool:
        """Whether a record of today's layout is marked as persisted."""
        at = MARK_BYTES * number
        return self._marks[at : at + MARK_BYTES] == encode_mark(self._segment.number, number)

    def __iter__(self) -> Iterator[tuple[Record, memoryview | None]]:
        window, at, next_number = _Window(self._segment.fd), 0, 0
        expected = {0}  # offsets where the next header may begin
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
            record = record._replace(is_persisted=self.is_marked(record.number))
        try:
            return record, window.view(record.offset, record.length)
        except OSError:
            self.is_unreadable = True
            return record, None

    def _next_beginning(self, window: "_Window", at: int, expected: set[int]) -> int:
        """Return the next offset where a header or a trailer may begin."""
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
            offsets = [offset for offset in found if offset % ALIGNMENT == 0]
            offsets += [offset for offset in expected if at <= offset < at + len(data)]
            if offsets:
                return min(offsets)
            at += len(data)  # a multiple of ALIGNMENT, so no beginning is cut in two
        return self._segment.size

    def _read_trailer(self, header: memoryview) -> None:
        magic, number, count, flags, crc = _TRAILER.unpack_from(header)
        is_own = magic == TRAILER_MAGIC and number == self._segment.number and count <= RECORDS_MAX
        if is_own and crc32c(header[:TRAILER_CRC_AT]) == crc:
            self.committed_count, self.is_closed = count, bool(flags & CLOSED)

    def _resembles(self, header: memoryview, at: int) -> bool:
        """Whether these bytes were a header of this segment before a few of them changed."""
        own = MAGIC + struct.pack("<Q", self._segment.number)
        differing = sum(found != ours for found, ours in zip(header[:LENGTH_AT], own, strict=True))
        earlier = int.from_bytes(header[SEGMENT_NUMBER_AT:LENGTH_AT], "little")
        # A valid header of an earlier life of the file differs in its number only, and is no damage.
        return differing <= 2 and _parse(header, at + HEADER_BYTES, earlier) is None


class _Window:
    """Reads a file in large steps."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._start = 0
        self._data = memoryview(b"")

    def view(self, offset: int, length: int) -> memoryview:
        """Return bytes of the file; fewer at its end.

        Raises:
            OSError: The disk fails to read them.
        """
        start = offset - self._start
        if start < 0 or start + length > len(self._data):
            try:
                self._data = memoryview(os.pread(self._fd, max(length, WINDOW), offset))
            except OSError:
                # The window holds an unreadable page. Read only the requested bytes, so that other pages can
                # be read.
                self._data = memoryview(os.pread(self._fd, length, offset))
            self._start, start = offset, 0
        return self._data[start : start + length]

    def from_here(self, offset: int) -> memoryview:
        """Return the rest of the window in units of ALIGNMENT; empty at the end of the file.

        Raises:
            OSError: The disk fails to read it.
        """
        data = self.view(offset, PAGE_BYTES)
        data = self._data[offset - self._start :]
        return data[: len(data) // ALIGNMENT * ALIGNMENT]


def encode_mark(segment: int, number: int) -> bytes:
    """Return the mark of a persisted record."""
    # INVARIANT 14: the CRC binds the mark to one life of the file. A mark of an earlier life is no mark.
    return MARK_MAGIC + crc32c(_MARK_OWNER.pack(segment, number)).to_bytes(4, "little")


def read_records(path: str | os.PathLike[str]) -> Iterator[Record]:
    """Yield all records of a segment as `Segment.records` does; nothing if the segment is gone."""
    with contextlib.suppress(FileNotFoundError), Segment(path) as segment:
        yield from segment.records()


def mark_persisted(path: str | os.PathLike[str], offset: int) -> bool:
    """Mark one record as `Segment.mark_persisted` does; return False if the segment is gone."""
    try:
        with Segment(path, marking=True) as segment:
            return segment.mark_persisted(offset)
    except FileNotFoundError:
        return False


def list_segments(slot: Path) -> list[str]:
    """Return the names of the segments of a slot, oldest first."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(name for name in os.listdir(slot / FOLDER) if SEGMENT_NAME.fullmatch(name))
    return []


def _parse(header: memoryview, offset: int, number: int) -> Record | None:
    """Return the record of a header; None if the bytes are no header of the segment with this number."""
    if len(header) < HEADER_BYTES:
        return None
    magic, segment, length, crc, flags, received_ms, header_crc = _HEADER.unpack_from(header)
    if magic != MAGIC or segment != number or not 0 < length <= SEGMENT_BYTES - offset:
        return None
    if not flags & SECOND_LAYOUT:
        if zlib.crc32(header[:FIRST_CRC_AT]) != header_crc:
            return None
        return Record(offset, length, crc, flags, received_ms, header[FIRST_MARK_AT] == 1)
    own, header_offset, committed, second_crc = _SECOND.unpack_from(header, RECORD_NUMBER_AT)
    is_own = own < RECORDS_MAX and header_offset == offset - HEADER_BYTES
    if crc32c(header[:SECOND_CRC_AT]) != second_crc or not is_own:
        return None
    return Record(offset, length, crc, flags, received_ms, False, own, committed)


def _is_proved(record: Record, committed_count: int, last_group: int) -> bool:
    """Whether a record was certainly committed, because something was written after its group."""
    return record.offset < last_group if record.number < 0 else record.number < committed_count


def _up(offset: int, to: int) -> int:
    return (offset + to - 1) & -to
