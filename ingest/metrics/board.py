"""The metrics board: counters of all processes of one supervisor, in memory that they share.

The supervisor makes the board before its first fork, so every child inherits it. Each word is changed by
atomic additions only (`ingest.ext.shared_counters`), so a child that dies loses nothing of what it counted.
A restart of the supervisor begins at zero with all words together.

The memory is not a mapping of a file, for the reason that `ingest.acceptor.scoreboard` gives. `BoardFile`
copies it to a file once a second. Commands and the console read that copy.

    word 0          MAGIC and a digest of the layout
    word 1          state of the node: STARTING, READY or STOPPING
    word 2          heartbeat of the supervisor, in monotonic milliseconds
    word 3          process id of the supervisor
    word 4          start of the supervisor, in Unix milliseconds
    word 5          number of the configuration generation
    words 6 to 31   unused
    name tables     for each of TABLES: the number of names, then the names, padded with NUL
    metrics         for each of FAMILIES: a word or a histogram for each combination of labels

A process without a supervisor counts on a board of its own, which nobody reads.
"""

import itertools
import math
import mmap
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Self

from ingest.ext import shared_counters
from ingest.ext.shared_counters import DURATION_BOUNDS_NS, HISTOGRAM_WORDS
from ingest.metrics.families import CALLING_AE, FAMILIES, OTHER, TABLES, Choice, Family, Kind, NameTable

STARTING, READY, STOPPING = range(3)
STATE, HEARTBEAT, PID, STARTED_AT, GENERATION = range(1, 6)
_HEADER_WORDS: Final = 32


def _count_cells(family: Family) -> int:
    return math.prod(label.size for label in family.labels)


def _lay_out() -> tuple[dict[str, int], dict[str, int], int]:
    """Return the first word of each table, the first word of each family, and the number of words."""
    at, tables, families = _HEADER_WORDS, {}, {}
    for table in TABLES:
        tables[table.name] = at
        at += 1 + (table.size - 1) * table.name_bytes // 8
    for family in FAMILIES:
        families[family.name] = at
        at += _count_cells(family) * (HISTOGRAM_WORDS if family.kind is Kind.HISTOGRAM else 1)
    return tables, families, at


_TABLE_WORDS, _FAMILY_WORDS, _WORDS = _lay_out()
BOARD_BYTES: Final = 8 * _WORDS
_LAYOUT: Final = f"{TABLES} {FAMILIES} {DURATION_BOUNDS_NS}".encode()
_MAGIC: Final = 0x494E4742 << 32 | zlib.crc32(_LAYOUT)  # "INGB"


@dataclass(frozen=True, slots=True)
class Histogram:
    """A histogram of durations.

    Attributes:
        counts: Durations up to each bound of DURATION_BOUNDS_NS and beyond the one before; at last those
            beyond all bounds.
        sum_seconds: Sum of all durations.
    """

    counts: tuple[int, ...]
    sum_seconds: float

    @property
    def count(self) -> int:
        """Number of durations."""
        return sum(self.counts)


@dataclass(frozen=True, slots=True)
class Sample:
    """The value of one time series.

    Attributes:
        labels: Values of the labels, in the order of `Family.labels`.
        value: A number in the unit of the name, or a histogram.
    """

    labels: tuple[str, ...]
    value: float | Histogram


class MetricsBoard:
    """The board in memory, or a copy of it that was read from a file."""

    def __init__(self, memory: mmap.mmap | bytearray | bytes) -> None:
        """Wrap memory of BOARD_BYTES bytes."""
        self.words = memoryview(memory).cast("Q")
        self._indexes: dict[NameTable | Choice, dict[str, int]] = {}
        self._found: dict[tuple[str, ...], int] = {}

    @classmethod
    def create(cls) -> Self:
        """Make a board that children of this process inherit."""
        board = cls(mmap.mmap(-1, BOARD_BYTES))
        board.words[0] = _MAGIC
        return board

    @property
    def is_complete(self) -> bool:
        """Whether the words are a board with the layout of this version."""
        return len(self.words) == _WORDS and self.words[0] == _MAGIC

    # --- names

    def add_names(self, table: NameTable, names: Iterable[str]) -> None:
        """Add names of the configuration to a table, as far as they fit. Only the supervisor calls this."""
        for name in names:
            known = self.list_names(table)
            encoded = name.encode()
            if name in known or not name or len(known) >= table.size or len(encoded) > table.name_bytes:
                continue
            at = self._find_name(table, len(known))
            self.words.cast("B")[at : at + table.name_bytes] = encoded.ljust(table.name_bytes, b"\0")
            self.words[_TABLE_WORDS[table.name]] = len(known)
        self._indexes.clear()
        self._found.clear()

    def list_names(self, label: NameTable | Choice) -> tuple[str, ...]:
        """Return the values of a label, `OTHER` first."""
        if isinstance(label, Choice):
            return label.values
        count, content = self.words[_TABLE_WORDS[label.name]], self.words.cast("B")
        places = (self._find_name(label, number) for number in range(1, min(count, label.size - 1) + 1))
        names = (bytes(content[at : at + label.name_bytes]).rstrip(b"\0") for at in places)
        return OTHER, *(name.decode(errors="replace") for name in names)

    @staticmethod
    def _find_name(table: NameTable, number: int) -> int:
        """Return the byte at which a name of a table begins; numbers begin with 1."""
        return 8 * (_TABLE_WORDS[table.name] + 1) + (number - 1) * table.name_bytes

    def _find_indexes(self, label: NameTable | Choice) -> dict[str, int]:
        indexes = self._indexes.get(label)
        if indexes is None:
            # The supervisor adds names before it forks, so the names of a child stay as they are.
            indexes = self._indexes[label] = {
                name: index for index, name in enumerate(self.list_names(label))
            }
        return indexes

    # --- words

    def find_word(self, family: Family, *labels: str) -> int:
        """Return the word of a time series, or the first word of its histogram."""
        key = (family.name, *labels)
        word = self._found.get(key)
        if word is not None:
            return word
        cell, is_known = 0, True
        for label, value in zip(family.labels, labels, strict=True):
            indexes = self._find_indexes(label)
            is_known = is_known and value in indexes
            cell = cell * label.size + indexes.get(value, 0)
        word = _FAMILY_WORDS[family.name] + cell * (HISTOGRAM_WORDS if family.kind is Kind.HISTOGRAM else 1)
        if is_known:  # others are chosen by peers, and have no end
            self._found[key] = word
        return word

    def add(self, family: Family, *labels: str, value: int = 1) -> None:
        """Add to a counter."""
        shared_counters.add(self.words, self.find_word(family, *labels), value)

    def set(self, family: Family, value: int, *labels: str) -> None:
        """Set a gauge. Only one process may set one."""
        self.words[self.find_word(family, *labels)] = value

    def observe(self, family: Family, seconds: float, *labels: str, count: int = 1) -> None:
        """Count a duration in a histogram. A negative one, after a step of the clock, counts as zero."""
        duration_ns = max(0, round(seconds * 1e9))
        shared_counters.observe(self.words, self.find_word(family, *labels), duration_ns, count)

    # --- read

    def read(self, family: Family) -> Iterator[Sample]:
        """Yield the time series of a metric, one for each combination of values.

        `OTHER` callers are always among them. Any other series with `OTHER` is only there if it is not empty.
        """
        for labels in itertools.product(*(self.list_names(label) for label in family.labels)):
            at = self.find_word(family, *labels)
            if family.kind is Kind.HISTOGRAM:
                *counts, sum_ns = self.words[at : at + HISTOGRAM_WORDS]
                value: float | Histogram = Histogram(tuple(counts), sum_ns / 1e9)
                is_empty = not any(counts)
            else:
                value = self.words[at] * family.scale if family.scale != 1.0 else self.words[at]
                is_empty = not value
            if is_empty and OTHER in labels and family.labels != (CALLING_AE,):
                continue
            yield Sample(labels, value)


def merge_samples(
    boards: Iterable[MetricsBoard], family: Family
) -> Mapping[tuple[str, ...], float | Histogram]:
    """Return the time series of a metric, added up over the boards of several supervisors."""
    merged: dict[tuple[str, ...], float | Histogram] = {}
    for board in boards:
        for sample in board.read(family):
            known = merged.get(sample.labels)
            if known is None:
                merged[sample.labels] = sample.value
            elif isinstance(known, Histogram) and isinstance(sample.value, Histogram):
                merged[sample.labels] = Histogram(
                    tuple(map(sum, zip(known.counts, sample.value.counts, strict=True))),
                    known.sum_seconds + sample.value.sum_seconds,
                )
            elif not isinstance(known, Histogram) and not isinstance(sample.value, Histogram):
                merged[sample.labels] = known + sample.value
    return merged


_current: list[MetricsBoard] = []


def current_board() -> MetricsBoard:
    """Return the board of this process: that of its supervisor, or one of its own."""
    if not _current:
        _current.append(MetricsBoard(bytearray(BOARD_BYTES)))
    return _current[-1]


def use_board(board: MetricsBoard) -> None:
    """Let this process and its children count on a board. Only a supervisor calls this, before it forks."""
    _current[:] = [board]
