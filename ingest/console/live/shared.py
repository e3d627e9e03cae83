"""What pages read when they refresh themselves: shared by all viewers, so that its cost has a bound.

An open page asks for its list again whenever the node changes. A busy node changes all the time, and fifty
people may have pages open. Therefore a refresh reads nothing of its own:

- Viewers of one page share one reading. Those that ask meanwhile wait for it.
- A reading is used again until the page has another version, and at least `BUSY_FACTOR` times as long as the
  readings of all open pages take together. So all refreshes together keep less than one thread in
  `BUSY_FACTOR` busy, whatever the number of viewers, pages and rows.
- A refresh never searches the spool. It shows what the last search for the page has found.

The event loop alone uses these objects, so they have no locks. The readings themselves run in threads.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, TypeVar

from ingest.operations.waiting import SpoolSearch

T = TypeVar("T")

BUSY_FACTOR: Final = 3
"""A reading is used for this many times the duration of the readings of all open pages."""

IDLE_SECONDS: Final = 60.0
"""A page that has not asked for so long is closed, and its reading is forgotten."""

READINGS_MAX: Final = 256
"""Readings that are kept. Beyond it, the page that has not asked for longest is read again when it does."""

SEARCHES_MAX: Final = 256
FOUND_MAX: Final = 500
"""Entries of one search of the spool that are kept."""


@dataclass(frozen=True, slots=True)
class Shared(Generic[T]):
    """A value, and the version of the page that it was read for."""

    value: T
    version: str


@dataclass(slots=True)
class _Reading:
    """The last reading of one page: its task, and once that has ended, when and how long it took."""

    task: "asyncio.Task[Any]"
    version: str
    asked_at: float
    ended_at: float = 0.0
    seconds: float = 0.0
    has_failed: bool = False


class SharedReadings:
    """The readings of all open pages."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._readings: OrderedDict[Hashable, _Reading] = OrderedDict()

    async def read(self, key: Hashable, version: str, function: Callable[[], Awaitable[T]]) -> Shared[T]:
        """Return the value of a page, read for this version, or for an earlier one to bound the cost.

        Args:
            key: The page: its path and query.
            version: A word that changes with the content of the page.
            function: Reads the value. An error is shared like a value.
        """
        now = self._clock()
        reading = self._readings.get(key)
        if reading is None or self._is_old(reading, version, now):
            reading = self._begin(key, version, function, now)
        reading.asked_at = now
        self._readings.move_to_end(key)
        # The reading goes on if this viewer vanishes, because others may wait for it.
        return Shared(await asyncio.shield(reading.task), reading.version)

    def _is_old(self, reading: _Reading, version: str, now: float) -> bool:
        if not reading.task.done() or (reading.version == version and not reading.has_failed):
            return False
        return now - reading.ended_at >= BUSY_FACTOR * self._sum_seconds(now)

    def _sum_seconds(self, now: float) -> float:
        """Return the time that the readings of all open pages take, and forget those of closed ones."""
        for key in [key for key, each in self._readings.items() if now - each.asked_at > IDLE_SECONDS]:
            if self._readings[key].task.done():
                del self._readings[key]
        return sum(each.seconds for each in self._readings.values())

    def _begin(
        self, key: Hashable, version: str, function: Callable[[], Awaitable[T]], now: float
    ) -> _Reading:
        before = self._readings.get(key)
        reading = _Reading(asyncio.ensure_future(self._run(function)), version, now)
        reading.seconds = before.seconds if before is not None else 0.0
        reading.task.add_done_callback(lambda task: self._note_end(reading, task, now))
        self._readings[key] = reading
        if len(self._readings) > READINGS_MAX:
            self._readings.popitem(last=False)
        return reading

    @staticmethod
    async def _run(function: Callable[[], Awaitable[T]]) -> T:
        return await function()

    def _note_end(self, reading: _Reading, task: "asyncio.Task[Any]", began: float) -> None:
        reading.ended_at = self._clock()
        reading.seconds = reading.ended_at - began
        # Look at the error, even if no viewer waits for it any more: asyncio reports it otherwise.
        reading.has_failed = task.cancelled() or task.exception() is not None


class SpoolSearches:
    """The last searches of the spool, for pages that refresh themselves."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, SpoolSearch] = OrderedDict()

    def keep(self, wanted: str, search: SpoolSearch) -> None:
        """Keep the result of a search that a person has asked for."""
        self._kept[wanted] = replace(search, found=search.found[:FOUND_MAX], is_fresh=False)
        self._kept.move_to_end(wanted)
        if len(self._kept) > SEARCHES_MAX:
            self._kept.popitem(last=False)

    def find(self, wanted: str) -> SpoolSearch:
        """Return what the last search for this UID has found; nothing without one."""
        return self._kept.get(wanted, SpoolSearch((), True, is_fresh=False))
