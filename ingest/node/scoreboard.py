"""A small shared file of the listeners' counters, read by accept gate, supervisor and `ingest status`.

Every field of a row is one aligned 64-bit word that a single process writes, so readers need no lock; what
they read may be a moment old. Behind the rows lies a table of the associations of all listeners, in which any
of them takes entries (`ext.association_table`).

    word 0                      MAGIC
    words 16 to 15 + 16 ROWS    the rows, 16 words each
    the following words         the associations: a count and ENTRIES entries
"""

import mmap
import os
import time
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final, Self

from ext import association_table
from ext.association_table import CALLER_BITS

MAGIC: Final = 0x494E474553543032  # "INGEST02"
ROWS: Final = 256
_WORDS: Final = 16
ENTRIES: Final = 32768
"""The most associations at a time of all listeners together."""
_FIRST_ENTRY: Final = (ROWS + 1) * _WORDS
_SIZE: Final = (_FIRST_ENTRY + 1 + ENTRIES) * 8

PID, HEARTBEAT, STATE, ACTIVE, ASSOCIATIONS, REFUSED, INSTANCES, BYTES, FAILED, NEWCOMERS = range(10)

FREE, BOOTING, ACCEPTING, DRAINING = range(4)


def now_ms() -> int:
    """Milliseconds of the machine's monotonic clock, the same in every process."""
    return time.monotonic_ns() // 1_000_000


def caller_digest(ae_title: str, holder: str) -> int:
    """What stands for a caller in the table of associations.

    Args:
        ae_title: Calling AE title.
        holder: Address or network, as `ingest.node.newcomers.holder` gives it.
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
    """The shared rows; `create` empties the file, `attach` reads the one of a running node."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._words = memoryview(memory).cast("Q")
        self._entries = self._words[_FIRST_ENTRY:]

    @classmethod
    def create(cls, path: Path) -> Self:
        """A new scoreboard in the file `path`; an earlier one goes."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        fd = os.open(temporary, os.O_CREAT | os.O_RDWR | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        try:
            # Not ftruncate: to write to a hole in a mapping is SIGBUS once the disk is full.
            os.posix_fallocate(fd, 0, _SIZE)
            board = cls(mmap.mmap(fd, _SIZE))
        finally:
            os.close(fd)
        board._words[0] = MAGIC
        temporary.replace(path)
        return board

    @classmethod
    def attach(cls, path: Path) -> Self | None:
        """The scoreboard that a node keeps in `path`; None where there is none."""
        try:
            with path.open("rb") as file:
                board = cls(mmap.mmap(file.fileno(), _SIZE, prot=mmap.PROT_READ))
        except (OSError, ValueError):
            return None
        return board if board._words[0] == MAGIC else None

    def get(self, row: int, field: int) -> int:
        """One word."""
        return self._words[(row + 1) * _WORDS + field]

    def set(self, row: int, field: int, value: int) -> None:
        """Write one word of the caller's own row."""
        self._words[(row + 1) * _WORDS + field] = value

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
        return association_table.claim(self._entries, row, caller)

    def release_association(self, entry: int) -> None:
        """Count an association no more; by the process that claimed the entry."""
        self._entries[entry] = 0

    def count_associations(self, caller: int = 0) -> tuple[int, int]:
        """Associations of all listeners together, also of those that drain: (in all, of `caller`)."""
        return association_table.count(self._entries, caller)

    def clear(self, row: int) -> None:
        """Free a row whose process has ended, and what it held of the table of associations."""
        association_table.free_row_entries(self._entries, row)
        start = (row + 1) * _WORDS
        for word in range(start, start + _WORDS):
            self._words[word] = 0

    def free_row(self) -> int | None:
        """A row that no process uses."""
        return next((row for row in range(ROWS) if self.get(row, STATE) == FREE), None)

    def free_rows(self) -> int:
        """How many rows no process uses."""
        return sum(self.get(row, STATE) == FREE for row in range(ROWS))

    def rows(self) -> list[RowView]:
        """All rows in use."""
        now = now_ms()
        return [self._view(row, now) for row in range(ROWS) if self.get(row, STATE) != FREE]

    def _view(self, row: int, now: int) -> RowView:
        return RowView(
            row,
            self.get(row, PID),
            self.get(row, STATE),
            now - self.get(row, HEARTBEAT),
            *(self.get(row, field) for field in (ACTIVE, ASSOCIATIONS, REFUSED, INSTANCES, BYTES, FAILED)),
        )
