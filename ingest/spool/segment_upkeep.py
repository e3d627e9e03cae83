"""Upkeep of segments: those whose records are all done are used again or removed, broken ones are kept.

A record that never gets done keeps its own segment, and no other: the writer goes on in new ones. A segment
with something that cannot be read any more is renamed once everything else in it is done, and is never used
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
from ingest.ext.segment import SEGMENT_BYTES, Segments
from ingest.spool import segment
from ingest.spool.segment import Examined, Segment

DAMAGED: Final = ".damaged"
"""What takes the place of `.seg` in the name of a segment that is kept for a person."""

OLDEST: Final = 4
OTHERS: Final = 16
"""How many segments are looked at in one turn: the oldest, and of the others these, in turn."""

STUCK_SECONDS: Final = 600.0
"""What waits for so long in a segment, while others of the slot were persisted, is an alarm."""

UNREADABLE_SECONDS: Final = 60.0
"""How often a segment is read that the disk refused: each try may hold a disk for seconds."""

TOLD: Final = 20
"""How many damaged segments an alarm looks into."""

log = structlog.get_logger()


@dataclass(slots=True)
class Wait:
    """Why a segment cannot be used again yet.

    Attributes:
        offset: Of a record that waits; 0: the segment could not be read.
        since: When that was seen first, seconds of the monotonic clock.
        look_at: When to look again.
    """

    offset: int
    since: float
    look_at: float


class Upkeep:
    """Retires the segments of a slot, for its owner."""

    def __init__(self, slot: Path, segments: Segments, *, damaged_are_delivered: bool) -> None:
        """Prepare.

        Args:
            slot: The slot's folder.
            segments: Its writer.
            damaged_are_delivered: Whether persist workers get damaged records too, and quarantine them.
        """
        self._folder = slot / segment.FOLDER
        self._slot = slot
        self._segments = segments
        self._damaged_are_delivered = damaged_are_delivered
        self._waits: dict[str, Wait] = {}
        self._last = ""  # looked at
        self._newest_retired = ""

    def turn(self) -> None:
        """Look at some segments that are not written to, and retire what is not needed any more."""
        listed = segment.names(self._slot)
        current = self._segments.current  # asked later: a listed one can be left meanwhile, but not taken up
        listed = [name for name in listed if name != current]
        self._waits = {name: wait for name, wait in self._waits.items() if name in set(listed)}
        for name in self._chosen(listed):
            self._look(name)

    def stuck(self) -> list[str]:
        """Segments in which something waits although younger ones were persisted long ago."""
        now = time.monotonic()
        return [
            name
            for name, wait in sorted(self._waits.items())
            if name < self._newest_retired and now - wait.since > STUCK_SECONDS
        ]

    def _chosen(self, listed: Sequence[str]) -> list[str]:
        oldest, others = list(listed[:OLDEST]), listed[OLDEST:]
        later = [name for name in others if name > self._last][:OTHERS]
        chosen = later + list(others[: OTHERS - len(later)])
        self._last = chosen[-1] if chosen else ""
        return oldest + list(dict.fromkeys(chosen))

    def _look(self, name: str) -> None:
        wait, now = self._waits.get(name), time.monotonic()
        if wait is not None and (now < wait.look_at or _still_waits(self._folder / name, wait.offset)):
            return
        why = _why_kept(self._folder / name, damaged_are_delivered=self._damaged_are_delivered)
        if isinstance(why, int):
            pause = 0.0 if why else UNREADABLE_SECONDS
            self._waits[name] = Wait(why, wait.since if wait else now, now + pause)
        elif why is not None and why.is_broken:
            keep_damaged(self._folder / name, why)
        elif why is not None and self._segments.retire(name):
            self._newest_retired = max(self._newest_retired, name)


def _still_waits(path: Path, offset: int) -> bool:
    """Whether what waited at a place waits there yet, as far as that is told by a short look."""
    with contextlib.suppress(OSError), Segment(path) as opened:
        return bool(offset) and opened.waits(offset)
    return False


def _why_kept(path: Path, *, damaged_are_delivered: bool) -> Examined | int | None:
    """What a segment holds if nothing in it waits.

    Returns:
        Otherwise the offset of a record that waits, 0 if the disk does not give all of it, and None if it is
        gone.
    """
    try:
        with Segment(path) as opened:
            found = opened.examine()
    except FileNotFoundError:
        return None
    except OSError:
        return 0  # the sweep says so
    waiting = [*found.waiting, *found.damaged, *found.doubtful] if damaged_are_delivered else found.waiting
    if waiting:
        return waiting[0].offset
    return 0 if found.is_unreadable else found


def is_done(path: Path) -> bool:
    """Whether nothing of a segment is needed any more; False where it cannot be read.

    Says nothing of one that is still written to.
    """
    found = _why_kept(path, damaged_are_delivered=True)
    return found is None or (isinstance(found, Examined) and found.is_done)


@contextlib.contextmanager
def unused(path: str | os.PathLike[str]) -> Iterator[bool]:
    """Whether nobody reads, marks or writes a segment; while in here, nobody begins to.

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
            free = os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
        except (BlockingIOError, FileNotFoundError):
            free = False
        yield free
    finally:
        os.close(fd)


def keep_damaged(path: Path, found: Examined) -> None:
    """Give a broken segment a name under which it is neither read nor used again."""
    with contextlib.suppress(OSError), unused(path) as free:
        if free:
            path.rename(path.with_suffix(DAMAGED))
            log.error(
                "segment_damaged",
                file=f"{path.parents[1].name}/{segment.FOLDER}/{path.stem}{DAMAGED}",
                acknowledged=len(found.damaged) + sum(number < found.promised for number in found.missing),
                doubtful=len(found.doubtful) + sum(number >= found.promised for number in found.missing),
                is_cut=found.is_cut,
                remedy="ask the senders for the images of its time again, then look at the disk",
            )


def remove_unfinished(slot: Path) -> int:
    """Remove what a slot's dead owner was making, or kept for later; for who holds its lock.

    Returns:
        How many files.
    """
    removed = 0
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(slot / segment.FOLDER):
            if name.endswith(".tmp"):
                # One that cannot be removed now must not keep a listener from starting.
                with contextlib.suppress(OSError):
                    (slot / segment.FOLDER / name).unlink(missing_ok=True)
                    removed += 1
    return removed


def remove_done(slot: Path, *, damaged_are_delivered: bool = True) -> int:
    """Remove the segments in which nothing waits; for a holder of the slot's lock that writes to none.

    Args:
        slot: The slot's folder.
        damaged_are_delivered: As for `Upkeep`.

    Returns:
        How many.
    """
    removed = 0
    for name in segment.names(slot):
        path = slot / segment.FOLDER / name
        why = _why_kept(path, damaged_are_delivered=damaged_are_delivered)
        if why is None or isinstance(why, int):
            continue
        if why.is_broken:
            keep_damaged(path, why)
            continue
        with unused(path) as free:
            if free:
                path.unlink(missing_ok=True)
                removed += 1
    return removed


def tell_damage(root: Path, run_dir: Path) -> None:
    """Raise or clear the alarm of what was damaged in the spool and is kept there."""
    paths = sorted(root.glob(f"L*/{segment.FOLDER}/*{DAMAGED}"))
    if not paths:
        clear_alarm(run_dir, "spool_damaged")
        return
    acknowledged = sum(_lost(path) for path in paths[:TOLD])
    raise_alarm(
        run_dir,
        "spool_damaged",
        f"{len(paths)} segments of the spool hold records that cannot be read any more; "
        f"at least {acknowledged} of these were acknowledged",
        "ask the senders for the images of that time again (segment_damaged in the log), look at the disk, "
        f"then move {root}/L*/{segment.FOLDER}/*{DAMAGED} out of the spool",
    )


def tell_stuck(run_dir: Path, slot: str, names: Sequence[str]) -> None:
    """Raise or clear the alarm of segments of a slot in which something waits for very long."""
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


def _lost(path: Path) -> int:
    with contextlib.suppress(OSError), Segment(path) as opened:
        found = opened.examine()
        return len(found.damaged) + sum(number < found.promised for number in found.missing)
    return 0
