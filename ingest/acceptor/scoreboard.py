"""The scoreboard: counters of all listeners in memory that they share with the supervisor.

Each field of a row is one aligned 64-bit word that a single process writes. Readers therefore need no lock,
and may see a value that is a moment old. After the rows comes a table of the associations of all listeners.
Any listener may claim an entry there (`ingest.ext.association_table`).

The memory is not a mapping of a file. The kernel would end every process that touches the mapping (SIGBUS) if
the file was truncated, or if its disk failed or was full. A copy for `ingest status` is
written to a file at each heartbeat and association instead. Words that `counters` increments reach the file
with the next heartbeat.

    word 0                      MAGIC
    word 1                      1 while nothing may be received, otherwise 0
    words 16 to 15 + 16 ROWS    the rows, 16 words each
    the following words         the associations: a count, and ENTRIES entries
    the following words         the id of the association of each entry, or 0
    the following words         the monotonic time in ms of its last progress
"""

import contextlib
import mmap
import os
import sys
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final, Self

from ingest.clock import monotonic_ms
from ingest.ext import association_table
from ingest.ext.association_table import CALLER_BITS

MAGIC: Final = 0x494E474553543033  # "INGEST03"
ROWS: Final = 256
_WORDS: Final = 16
ENTRIES: Final = 32768
"""Upper bound of the associations of all listeners together, at one time."""
_FIRST_ENTRY: Final = (ROWS + 1) * _WORDS
_FIRST_ID: Final = _FIRST_ENTRY + 1 + ENTRIES
_FIRST_PROGRESS: Final = _FIRST_ID + 1 + ENTRIES
_SIZE: Final = (_FIRST_PROGRESS + 1 + ENTRIES) * 8

_PAUSED: Final = 1

PID, HEARTBEAT, STATE, ACTIVE, ASSOCIATIONS, REFUSED, INSTANCES, BYTES, FAILED, PENDING, FULL = range(11)

FREE, BOOTING, ACCEPTING, DRAINING = range(4)


def digest_caller(ae_title: str, network: str) -> int:
    """Return the number that stands for a caller in the table of associations.

    Args:
        ae_title: Calling AE title.
        network: Network of the caller (`ingest.acceptor.pending_connections.find_client_network`).
    """
    digest = blake2b(f"{network} {ae_title}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> (64 - CALLER_BITS)


@dataclass(frozen=True, slots=True)
class ListenerStatus:
    """One row of the scoreboard. All counts begin with the start of the listener.

    Attributes:
        row: Number of the row.
        pid: Process of the listener.
        state: FREE, BOOTING, ACCEPTING or DRAINING.
        age_ms: Milliseconds since its last heartbeat.
        active: Connections that it serves now, without those whose association has ended.
        associations: Accepted associations.
        refused: Refused associations and connections.
        instances: Instances answered with Success.
        bytes: Data-set bytes of these instances.
        failed: Instances answered with a failure.
        is_full: Whether it refuses everything now, because a disk is full or the spool cannot be used.
    """

    row: int
    pid: int
    state: int
    age_ms: int
    active: int
    associations: int
    refused: int
    instances: int
    bytes: int
    failed: int
    is_full: bool


class Scoreboard:
    """The shared memory. `create` makes it; `open_reader` reads the file of a running node."""

    def __init__(self, memory: mmap.mmap | bytes, file: int = -1) -> None:
        """Wrap words in memory.

        Args:
            memory: The words.
            file: Descriptor of the file that shows them to other processes; -1 without a file. It is closed
                with this object.
        """
        self._memory = memory
        self._file = file
        if file >= 0:
            weakref.finalize(self, os.close, file).atexit = False
        self._words = memoryview(memory).cast("Q")
        self._entries = self._words[_FIRST_ENTRY:_FIRST_ID]
        self._ids = self._words[_FIRST_ID:_FIRST_PROGRESS]
        self._progress = self._words[_FIRST_PROGRESS:]

    @classmethod
    def create(cls, path: Path) -> Self:
        """Make a new scoreboard, which children of this process inherit, with a new file at `path`.

        On a full disk there is no file, or an old one. The node works without it.
        """
        file = -1
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            flags = os.O_CREAT | os.O_RDWR | os.O_TRUNC | os.O_CLOEXEC
            file = os.open(temporary, flags, 0o640)
            temporary.replace(path)
        board = cls(mmap.mmap(-1, _SIZE), file)
        board._words[0] = MAGIC
        board._write_words(0, _SIZE // 8)
        return board

    @property
    def is_receiving_paused(self) -> bool:
        """Whether listeners must receive nothing, because the disk of the data folder is full."""
        return self._words[_PAUSED] != 0

    def set_receiving_paused(self, *, paused: bool) -> None:
        """Set whether listeners must receive nothing. Only the supervisor calls this."""
        self._words[_PAUSED] = paused

    @classmethod
    def open_reader(cls, path: Path) -> "ScoreboardReader | None":
        """Return a reader of the file at `path`; None if there is no complete file."""
        reader = ScoreboardReader(path)
        return reader if reader.exists else None

    def get(self, row: int, field: int) -> int:
        """Return one word."""
        return self._words[(row + 1) * _WORDS + field]

    def set(self, row: int, field: int, value: int) -> None:
        """Write one word of the caller's own row, and write the row to the file."""
        self._words[(row + 1) * _WORDS + field] = value
        self._write_row(row)

    def add(self, row: int, field: int, value: int = 1) -> None:
        """Add to one word of the caller's own row."""
        self._words[(row + 1) * _WORDS + field] += value

    def counters(self, row: int) -> memoryview:
        """Return the words of one row, for code that increments them without a call."""
        start = (row + 1) * _WORDS
        return self._words[start : start + _WORDS]

    def claim_association(self, row: int, caller: int) -> int | None:
        """Count an association of a caller (`digest_caller`).

        Returns:
            The entry to pass to `release_association`; None while all entries are claimed.
        """
        entry = association_table.claim(self._entries, row, caller)
        self._write_associations()
        return entry

    def release_association(self, entry: int) -> None:
        """Free an entry. Only the process that claimed it may call this."""
        self._entries[entry] = 0
        if self._ids[entry]:
            self._ids[entry] = 0
            self._write_words(_FIRST_ID + entry, 1)
        self._write_associations()

    def name_association(self, entry: int, association: int) -> None:
        """Give the association of an entry an id, by which its instances name it."""
        self._progress[entry] = monotonic_ms()
        self._ids[entry] = association
        for first in (_FIRST_PROGRESS, _FIRST_ID):
            self._write_words(first + entry, 1)

    def find_association_id(self, entry: int) -> int:
        """Return the id of the association of an entry; 0 if it has none."""
        return self._ids[entry]

    def note_progress(self, progress_ms: Mapping[int, int]) -> None:
        """Note when associations made their last progress, in monotonic milliseconds, by entry."""
        for entry, at_ms in progress_ms.items():
            self._progress[entry] = at_ms
        self._write_words(_FIRST_PROGRESS, self._count_used() + 1)

    def list_open_associations(self) -> dict[int, int]:
        """Return the milliseconds since the last progress of each association that has an id, by that id."""
        now = monotonic_ms()
        return {
            self._ids[entry]: now - self._progress[entry]
            for entry in range(1, self._count_used() + 1)
            if self._entries[entry] and self._ids[entry]
        }

    def count_associations(self, caller: int = 0) -> tuple[int, int]:
        """Return the associations of all listeners, draining ones included: (in total, of `caller`)."""
        return association_table.count(self._entries, caller)

    def clear_row(self, row: int) -> None:
        """Free a row whose process has ended, and its entries in the table of associations."""
        association_table.free_row_entries(self._entries, row)
        start = (row + 1) * _WORDS
        for word in range(start, start + _WORDS):
            self._words[word] = 0
        self._write_row(row)
        self._write_associations()

    def find_free_row(self) -> int | None:
        """Return a row that no process uses; None if there is none."""
        return next((row for row in range(ROWS) if self.get(row, STATE) == FREE), None)

    def count_free_rows(self) -> int:
        """Return the number of rows that no process uses."""
        return sum(self.get(row, STATE) == FREE for row in range(ROWS))

    def list_listeners(self) -> list[ListenerStatus]:
        """Return the status of each listener."""
        now = monotonic_ms()
        return [self._read_status(row, now) for row in range(ROWS) if self.get(row, STATE) != FREE]

    def _read_status(self, row: int, now: int) -> ListenerStatus:
        return ListenerStatus(
            row,
            pid=self.get(row, PID),
            state=self.get(row, STATE),
            age_ms=now - self.get(row, HEARTBEAT),
            active=self.get(row, ACTIVE),
            associations=self.get(row, ASSOCIATIONS),
            refused=self.get(row, REFUSED),
            instances=self.get(row, INSTANCES),
            bytes=self.get(row, BYTES),
            failed=self.get(row, FAILED),
            is_full=self.get(row, FULL) != 0,
        )

    def _write_row(self, row: int) -> None:
        self._write_words((row + 1) * _WORDS, _WORDS)

    def _count_used(self) -> int:
        """Return the highest index of an entry that was ever in use."""
        return min(self._entries[0], ENTRIES)

    def _write_associations(self) -> None:
        self._write_words(_FIRST_ENTRY, self._count_used() + 1)

    def _write_words(self, word: int, count: int) -> None:
        """Write some words to the file."""
        if self._file < 0:
            return
        with contextlib.suppress(OSError):  # on a full or failing disk readers see older values
            if os.fstat(self._file).st_size != _SIZE:
                word, count = 0, _SIZE // 8
            os.pwrite(self._file, self._words[word : word + count], word * 8)


class ScoreboardReader:
    """The scoreboard of a running node as another process sees it, at most one heartbeat old."""

    def __init__(self, path: Path) -> None:
        """Prepare. Each method reads the file at `path` again."""
        self._path = path

    @property
    def exists(self) -> bool:
        """Whether there is a complete scoreboard."""
        return len(self._read_file()) == _SIZE

    def get(self, row: int, field: int) -> int:
        """As `Scoreboard.get`."""
        return self._load().get(row, field)

    def count_associations(self, caller: int = 0) -> tuple[int, int]:
        """As `Scoreboard.count_associations`."""
        return self._load().count_associations(caller)

    def list_open_associations(self) -> dict[int, int]:
        """As `Scoreboard.list_open_associations`."""
        return self._load().list_open_associations()

    def list_listeners(self) -> list[ListenerStatus]:
        """As `Scoreboard.list_listeners`."""
        return self._load().list_listeners()

    def _load(self) -> Scoreboard:
        """Return the content of the file; all zero if there is no complete file."""
        return Scoreboard(self._read_file() or bytes(_SIZE))

    def _read_file(self) -> bytes:
        with contextlib.suppress(OSError):
            content = self._path.read_bytes()
            if len(content) == _SIZE and int.from_bytes(content[:8], sys.byteorder) == MAGIC:
                return content
        return b""
