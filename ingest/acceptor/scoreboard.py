"""The listeners' counters in memory that they share with the supervisor, and a file of them for others.

Every field of a row is one aligned 64-bit word that a single process writes, so readers need no lock; what
they read may be a moment old. Behind the rows lies a table of the associations of all listeners, in which any
of them takes entries (`ingest.ext.association_table`).

The memory is no mapping of a file: if a disk failed, was full, or somebody cut the file short, the kernel
would end every process that touches it (SIGBUS). The file is written with each heartbeat and association, as
far as there is room, and is only read by `ingest status`. It shows what `counters` counts with the next one.

    word 0                      MAGIC
    words 16 to 15 + 16 ROWS    the rows, 16 words each
    the following words         the associations: a count and ENTRIES entries
"""

import contextlib
import mmap
import os
import sys
import weakref
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final, Self

from ingest.clock import monotonic_ms
from ingest.ext import association_table
from ingest.ext.association_table import CALLER_BITS

MAGIC: Final = 0x494E474553543032  # "INGEST02"
ROWS: Final = 256
_WORDS: Final = 16
ENTRIES: Final = 32768
"""The most associations at a time of all listeners together."""
_FIRST_ENTRY: Final = (ROWS + 1) * _WORDS
_SIZE: Final = (_FIRST_ENTRY + 1 + ENTRIES) * 8

_HELD: Final = 1
"""Behind the magic number: whether nothing is to be received."""

PID, HEARTBEAT, STATE, ACTIVE, ASSOCIATIONS, REFUSED, INSTANCES, BYTES, FAILED, NEWCOMERS = range(10)

FREE, BOOTING, ACCEPTING, DRAINING = range(4)


def caller_digest(ae_title: str, holder: str) -> int:
    """What stands for a caller in the table of associations.

    Args:
        ae_title: Calling AE title.
        holder: Address or network, as `ingest.acceptor.pending_connections.holder` gives it.
    """
    digest = blake2b(f"{holder} {ae_title}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> (64 - CALLER_BITS)


@dataclass(frozen=True, slots=True)
class RowView:
    """One listener as its row tells it.

    Attributes:
        row: Number of the row.
        pid: Its process.
        state: FREE, BOOTING, ACCEPTING or DRAINING.
        age_ms: Milliseconds since its last heartbeat.
        active: Connections it serves now, without those whose association is over.
        associations: Associations accepted since its start.
        refused: Associations and connections refused since its start.
        instances: Instances answered with Success since its start.
        bytes: Their data-set bytes.
        failed: Instances answered with a failure since its start.
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


class Scoreboard:
    """The shared rows; `create` makes them and empties the file, `attach` reads that of a running node."""

    def __init__(self, memory: mmap.mmap | bytes, file: int = -1) -> None:
        """Look at words in memory.

        Args:
            memory: The words.
            file: Descriptor of the file that shows them to others, closed with this; -1: there is none.
        """
        self._memory = memory
        self._file = file
        if file >= 0:
            weakref.finalize(self, os.close, file).atexit = False
        self._words = memoryview(memory).cast("Q")
        self._entries = self._words[_FIRST_ENTRY:]

    @classmethod
    def create(cls, path: Path) -> Self:
        """A new scoreboard, to be inherited by what this process forks, with a new file in `path`.

        Without room on the disk there is no file, or an old one; the node does without.
        """
        file = -1
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            flags = os.O_CREAT | os.O_RDWR | os.O_TRUNC | os.O_CLOEXEC
            file = os.open(temporary, flags, 0o640)
            temporary.replace(path)
        board = cls(mmap.mmap(-1, _SIZE), file)
        board._words[0] = MAGIC
        board._show(0, _SIZE // 8)
        return board

    @property
    def is_held(self) -> bool:
        """Whether the supervisor wants nothing received: the disk of the data folder is full."""
        return self._words[_HELD] != 0

    def hold(self, *, held: bool) -> None:
        """Say whether anything is to be received; for the supervisor."""
        self._words[_HELD] = held

    @classmethod
    def attach(cls, path: Path) -> "Reader | None":
        """The scoreboard that a node shows in `path`; None where there is none."""
        reader = Reader(path)
        return reader if reader.is_there else None

    def get(self, row: int, field: int) -> int:
        """One word."""
        return self._words[(row + 1) * _WORDS + field]

    def set(self, row: int, field: int, value: int) -> None:
        """Write one word of the caller's own row, and show the row to others."""
        self._words[(row + 1) * _WORDS + field] = value
        self._show_row(row)

    def add(self, row: int, field: int, value: int = 1) -> None:
        """Add to one word of the caller's own row."""
        self._words[(row + 1) * _WORDS + field] += value

    def counters(self, row: int) -> memoryview:
        """The words of one row, for who adds to them without a call each."""
        start = (row + 1) * _WORDS
        return self._words[start : start + _WORDS]

    def claim_association(self, row: int, caller: int) -> int | None:
        """Count an association of a caller (`caller_digest`).

        Returns:
            Its entry, to be given to `release_association`; None while all are taken.
        """
        entry = association_table.claim(self._entries, row, caller)
        self._show_associations()
        return entry

    def release_association(self, entry: int) -> None:
        """Count an association no more; by the process that claimed the entry."""
        self._entries[entry] = 0
        self._show_associations()

    def count_associations(self, caller: int = 0) -> tuple[int, int]:
        """Associations of all listeners together, also of those that drain: (in all, of `caller`)."""
        return association_table.count(self._entries, caller)

    def clear(self, row: int) -> None:
        """Free a row whose process has ended, and what it held of the table of associations."""
        association_table.free_row_entries(self._entries, row)
        start = (row + 1) * _WORDS
        for word in range(start, start + _WORDS):
            self._words[word] = 0
        self._show_row(row)
        self._show_associations()

    def free_row(self) -> int | None:
        """A row that no process uses."""
        return next((row for row in range(ROWS) if self.get(row, STATE) == FREE), None)

    def free_rows(self) -> int:
        """How many rows no process uses."""
        return sum(self.get(row, STATE) == FREE for row in range(ROWS))

    def rows(self) -> list[RowView]:
        """All rows in use."""
        now = monotonic_ms()
        return [self._view(row, now) for row in range(ROWS) if self.get(row, STATE) != FREE]

    def _view(self, row: int, now: int) -> RowView:
        return RowView(
            row,
            self.get(row, PID),
            self.get(row, STATE),
            now - self.get(row, HEARTBEAT),
            *(self.get(row, field) for field in (ACTIVE, ASSOCIATIONS, REFUSED, INSTANCES, BYTES, FAILED)),
        )

    def _show_row(self, row: int) -> None:
        self._show((row + 1) * _WORDS, _WORDS)

    def _show_associations(self) -> None:
        self._show(_FIRST_ENTRY, min(self._entries[0], ENTRIES) + 1)

    def _show(self, word: int, count: int) -> None:
        """Let readers of the file see some words."""
        if self._file < 0:
            return
        with contextlib.suppress(OSError):  # the disk is full or failing: they see older ones
            if os.fstat(self._file).st_size != _SIZE:
                word, count = 0, _SIZE // 8
            os.pwrite(self._file, self._words[word : word + count], word * 8)


class Reader:
    """The scoreboard of a running node as another process sees it, at most a heartbeat old."""

    def __init__(self, path: Path) -> None:
        """Read the file `path` when asked."""
        self._path = path

    @property
    def is_there(self) -> bool:
        """Whether there is a whole scoreboard."""
        return len(self._content()) == _SIZE

    def get(self, row: int, field: int) -> int:
        """As `Scoreboard.get`."""
        return self._now().get(row, field)

    def count_associations(self, caller: int = 0) -> tuple[int, int]:
        """As `Scoreboard.count_associations`."""
        return self._now().count_associations(caller)

    def rows(self) -> list[RowView]:
        """As `Scoreboard.rows`."""
        return self._now().rows()

    def _now(self) -> Scoreboard:
        """What the file says now; all zero where it is not there, or not whole."""
        return Scoreboard(self._content() or bytes(_SIZE))

    def _content(self) -> bytes:
        with contextlib.suppress(OSError):
            content = self._path.read_bytes()
            if len(content) == _SIZE and int.from_bytes(content[:8], sys.byteorder) == MAGIC:
                return content
        return b""
