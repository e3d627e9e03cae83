"""A small shared file of the listeners' counters, read by accept gate, supervisor and `ingest status`.

Every field is one aligned 64-bit word that a single process writes, so readers need no lock; what they read
may be a moment old.
"""

import mmap
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

MAGIC: Final = 0x494E474553543031  # "INGEST01"
ROWS: Final = 256
_WORDS: Final = 16
_SIZE: Final = (ROWS + 1) * _WORDS * 8

PID, HEARTBEAT, STATE, ACTIVE, ASSOCIATIONS, REFUSED, INSTANCES, BYTES, FAILED, NEWCOMERS = range(10)

FREE, BOOTING, ACCEPTING, DRAINING = range(4)


def now_ms() -> int:
    """Milliseconds of the machine's monotonic clock, the same in every process."""
    return time.monotonic_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class RowView:
    """One listener as its row tells it.

    Attributes:
        row: Number of the row.
        pid: Its process.
        state: FREE, BOOTING, ACCEPTING or DRAINING.
        age_ms: Milliseconds since its last heartbeat.
        active: Associations it serves now.
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

    def clear(self, row: int) -> None:
        """Free a row whose process has ended."""
        start = (row + 1) * _WORDS
        for word in range(start, start + _WORDS):
            self._words[word] = 0

    def free_row(self) -> int | None:
        """A row that no process uses."""
        return next((row for row in range(ROWS) if self.get(row, STATE) == FREE), None)

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
