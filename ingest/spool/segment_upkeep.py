"""Upkeep of segments: reuses or removes those whose records are all persisted, and keeps damaged ones.

A record that cannot be persisted keeps its own segment and no other, because the writer continues in new
ones. A segment with unreadable records is renamed once all other records are persisted. It is never used
again.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from ingest.alarms import clear_alarm, raise_alarm
from ingest.ext.segment_writer import SEGMENT_BYTES, Segments
from ingest.spool import segment
from ingest.spool.segment import Record, Segment, SegmentReport

DAMAGED_SUFFIX: Final = ".damaged"
"""Suffix of a segment that is kept for a person, instead of `.seg`."""

OLDEST_COUNT: Final = 4
OTHERS_COUNT: Final = 16
"""How many segments one run examines: the oldest ones, and some of the others in turn."""

STUCK_SECONDS: Final = 600.0
"""An alarm is raised if a record waits this long while younger segments of the slot were persisted."""

UNREADABLE_SECONDS: Final = 60.0
"""Pause before an unreadable segment is read again. Each attempt may block a disk for seconds."""

ALARM_SEGMENTS_MAX: Final = 20
"""How many damaged segments are examined for one alarm."""

log = structlog.get_logger()


@dataclass(slots=True)
class Wait:
    """Why a segment cannot be reused yet.

    Attributes:
        offset: Offset of a record that waits; 0 if the segment could not be read.
        since: When that was first seen, in seconds of the monotonic clock.
        look_at: When to examine the segment again, on the same clock.
    """

    offset: int
    since: float
    look_at: float


class SegmentUpkeep:
    """Retires the segments of a slot, for the owner of the slot."""

    def __init__(self, slot: Path, segments: Segments, *, damaged_are_delivered: bool) -> None:
        """Prepare.

        Args:
            slot: The folder of the slot.
            segments: The writer of its segments.
            damaged_are_delivered: Whether persist workers get damaged records too, and quarantine them.
        """
        self._folder = slot / segment.FOLDER
        self._slot = slot
        self._segments = segments
        self._damaged_are_delivered = damaged_are_delivered
        self._waits: dict[str, Wait] = {}
        self._last_examined = ""
        self._newest_retired = ""

    def run_once(self) -> None:
        """Examine some segments that are not being written, and retire those that are not needed any more."""
        listed = segment.list_segments(self._slot)
        # Ask for the current segment after the list was made. The writer may leave a listed segment
        # meanwhile, but it never returns to one.
        current = self._segments.current
        listed = [name for name in listed if name != current]
        self._waits = {name: wait for name, wait in self._waits.items() if name in set(listed)}
        for name in self._choose(listed):
            self._examine(name)

    def list_stuck(self) -> list[str]:
        """Return the segments in which a record waits although younger ones were persisted long ago."""
        now = time.monotonic()
        return [
            name
            for name, wait in sorted(self._waits.items())
            if name < self._newest_retired and now - wait.since > STUCK_SECONDS
        ]

    def _choose(self, listed: Sequence[str]) -> list[str]:
        oldest, others = list(listed[:OLDEST_COUNT]), listed[OLDEST_COUNT:]
        later = [name for name in others if name > self._last_examined][:OTHERS_COUNT]
        chosen = later + list(others[: OTHERS_COUNT - len(later)])
        self._last_examined = chosen[-1] if chosen else ""
        return oldest + list(dict.fromkeys(chosen))

    def _examine(self, name: str) -> None:
        path, wait, now = self._folder / name, self._waits.get(name), time.monotonic()
        if wait is not None and (now < wait.look_at or _still_waits(path, wait.offset)):
            return
        found = _examine(path)
        if found is None:
            return
        waiting = _list_needed(found, damaged_are_delivered=self._damaged_are_delivered)
        since = wait.since if wait else now
        if waiting:
            self._waits[name] = Wait(waiting[0].offset, since, now)
        elif found.is_unreadable:
            self._waits[name] = Wait(0, since, now + UNREADABLE_SECONDS)
        elif found.is_broken:
            keep_damaged_segment(path, found)
        elif self._segments.retire(name):
            self._newest_retired = max(self._newest_retired, name)


def _still_waits(path: Path, offset: int) -> bool:
    """Whether the record that waited at an offset still waits; reads its header only."""
    with contextlib.suppress(OSError), Segment(path) as opened:
        return bool(offset) and opened.is_waiting(offset)
    return False


def _examine(path: Path) -> SegmentReport | None:
    """Return the report about a segment; None if the segment is gone."""
    try:
        with Segment(path) as opened:
            return opened.examine()
    except FileNotFoundError:
        return None
    except OSError:
        return SegmentReport(is_unreadable=True)  # the sweep logs the error


def _list_needed(found: SegmentReport, *, damaged_are_delivered: bool) -> list[Record]:
    """Return the records that a persist worker still has to get."""
    return [*found.waiting, *found.damaged, *found.doubtful] if damaged_are_delivered else found.waiting


def is_disposable(path: Path) -> bool:
    """Whether no record of a segment is needed any more; False if it cannot be read.

    The answer means nothing for a segment that is still being written.
    """
    found = _examine(path)
    return found is None or found.is_disposable


@contextlib.contextmanager
def lock_unused(path: str | os.PathLike[str]) -> Iterator[bool]:
    """Try to lock a segment exclusively; yield whether that succeeded.

    Inside the block no other process can open, mark or write the segment.

    Raises:
        OSError: The file cannot be opened.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between open and lock another process may have renamed the file (INVARIANT 3).
            is_unused = os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
        except (BlockingIOError, FileNotFoundError):
            is_unused = False
        yield is_unused
    finally:
        os.close(fd)


def keep_damaged_segment(path: Path, found: SegmentReport) -> None:
    """Rename a broken segment, so that it is neither read nor reused."""
    with contextlib.suppress(OSError), lock_unused(path) as is_unused:
        if is_unused:
            path.rename(path.with_suffix(DAMAGED_SUFFIX))
            log.error(
                "segment_damaged",
                file=f"{path.parents[1].name}/{segment.FOLDER}/{path.stem}{DAMAGED_SUFFIX}",
                acknowledged=_count_lost(found),
                doubtful=len(found.doubtful)
                + sum(number >= found.committed_count for number in found.missing),
                is_cut=found.is_cut,
                remedy="ask the senders for the images of its time again, then look at the disk",
            )


def remove_unfinished_segments(slot: Path) -> int:
    """Remove the segments that a dead owner was creating or kept as spares; the caller holds the slot's lock.

    Returns:
        The number of files.
    """
    removed = 0
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(slot / segment.FOLDER):
            if name.endswith(".tmp"):
                # A file that cannot be removed now must not keep a listener from starting.
                with contextlib.suppress(OSError):
                    (slot / segment.FOLDER / name).unlink(missing_ok=True)
                    removed += 1
    return removed


def remove_persisted_segments(slot: Path, *, damaged_are_delivered: bool = True) -> int:
    """Remove the segments in which no record waits.

    The caller holds the lock of the slot and writes to none of them.

    Args:
        slot: The folder of the slot.
        damaged_are_delivered: See `SegmentUpkeep`.

    Returns:
        The number of segments.
    """
    removed = 0
    for name in segment.list_segments(slot):
        path = slot / segment.FOLDER / name
        found = _examine(path)
        if found is None or found.is_unreadable:
            continue
        if _list_needed(found, damaged_are_delivered=damaged_are_delivered):
            continue
        if found.is_broken:
            keep_damaged_segment(path, found)
            continue
        with lock_unused(path) as is_unused:
            if is_unused:
                path.unlink(missing_ok=True)
                removed += 1
    return removed


def update_damage_alarm(root: Path, run_dir: Path) -> None:
    """Raise or clear the alarm about damaged segments of a spool."""
    paths = sorted(root.glob(f"L*/{segment.FOLDER}/*{DAMAGED_SUFFIX}"))
    if not paths:
        clear_alarm(run_dir, "spool_damaged")
        return
    examined = [_examine(path) for path in paths[:ALARM_SEGMENTS_MAX]]
    acknowledged = sum(_count_lost(found) for found in examined if found is not None)
    raise_alarm(
        run_dir,
        "spool_damaged",
        f"{len(paths)} segments of the spool hold records that cannot be read any more; "
        f"at least {acknowledged} of these were acknowledged",
        "ask the senders for the images of that time again (segment_damaged in the log), look at the disk, "
        f"then move {root}/L*/{segment.FOLDER}/*{DAMAGED_SUFFIX} out of the spool",
    )


def update_stuck_alarm(run_dir: Path, slot: str, names: Sequence[str]) -> None:
    """Raise or clear the alarm about segments of a slot in which a record waits for very long."""
    if not names:
        clear_alarm(run_dir, f"segments_stuck.{slot}")
        return
    raise_alarm(
        run_dir,
        f"segments_stuck.{slot}",
        f"{len(names)} segments of {slot}, of {len(names) * SEGMENT_BYTES >> 20} MiB, hold images that do "
        f"not get persisted, the oldest is {names[0]}",
        "look in the log of the persist workers for why; receiving goes on in other segments",
    )


def _count_lost(found: SegmentReport) -> int:
    """Return how many acknowledged records of a segment are damaged or missing."""
    return len(found.damaged) + sum(number < found.committed_count for number in found.missing)
