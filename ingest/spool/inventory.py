"""The inventory of a spool: its slots, the entries that wait in them, and what dead listeners left behind.

The functions here read and change the spool alone. `ingest.queue.sweep` compares the inventory with Redis.
"""

import contextlib
import itertools
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, cast

import structlog

from ingest.errors import PathEscapesError
from ingest.ext.segment_writer import SEGMENT_BYTES
from ingest.filesystem.beneath import unlink_beneath
from ingest.spool import segment, segment_upkeep
from ingest.spool.reference import READY_PATH, Location
from ingest.spool.slot import Slot

RECORD_NAME: Final = re.compile(rf"(?P<path>{segment.SEGMENT_PATH.pattern})#(?P<offset>[0-9]{{1,19}})")
"""Pattern of `Location.name` for a record of a segment."""

log = structlog.get_logger()


def list_slots(root: Path) -> list[str]:
    """Return the names of all slots of a spool."""
    found = (path for path in root.glob("L*") if path.name[1:].isdigit() and not path.is_symlink())
    return sorted(path.name for path in found)


def list_waiting(root: Path, slot: str, *, older_than: float = 0.0) -> list[Location]:
    """Return the entries that have waited in one slot for at least `older_than` seconds, oldest first.

    Records of one segment are sorted by the name of the segment.
    """
    found = [Location(path) for path in _list_files(root, slot, older_than)]
    found += _list_records(root, slot, older_than)
    return sorted(found, key=lambda each: (each.path.rpartition("/")[2], each.offset))


def measure_usage(root: Path) -> int:
    """Return the bytes that waiting entries take in all slots together.

    A segment counts as a whole while any of its records waits. One image that cannot be persisted keeps the
    whole file. The newest segment of a slot is still being filled, so only its waiting records count.
    """
    total = 0
    for slot in list_slots(root):
        for entry in _scan(root / slot / "ready"):
            with contextlib.suppress(OSError):  # a worker reports the file that it cannot open
                total += entry.stat().st_size
        names = segment.list_segments(root / slot)
        for name in names:
            with contextlib.suppress(OSError):  # `list_waiting` reports the segment
                records = segment.read_records(root / slot / segment.FOLDER / name)
                waiting = sum(record.length for record in records if not record.is_persisted)
                total += SEGMENT_BYTES if waiting and name != names[-1] else waiting
    return total


def filter_waiting(root: Path, locations: Iterable[Location]) -> list[Location]:
    """Return those locations whose entries still wait.

    Locations of one segment that follow each other are checked with one open file.
    """
    found: list[Location] = []
    for path, group in itertools.groupby(locations, key=lambda each: each.path):
        of_path = list(group)
        try:
            if segment.SEGMENT_PATH.fullmatch(path):
                with segment.Segment(root / path) as opened:
                    of_path = [each for each in of_path if opened.is_waiting(each.offset)]
            else:
                os.stat(root / path, follow_symlinks=False)
        except FileNotFoundError:
            continue
        except OSError as error:
            # The entry may wait. It must not be forgotten, and it must not keep back the others.
            log.debug("spool_file_unreadable", file=path, error=error.strerror)
        found += of_path
    return found


def release_entries(root: Path, names: Iterable[str]) -> int:
    """Remove files, and mark records, that store and ledger have; return how many.

    Args:
        root: The folder of the spool.
        names: `Location.name` of each entry. A name that cannot belong to an entry is ignored.

    Raises:
        OSError: The disk is failing.
    """
    count, offsets = 0, cast("dict[str, list[int]]", {})
    for name in names:
        # INVARIANT 12: a name may come from Redis. It must match, and the path must not leave the spool.
        if READY_PATH.fullmatch(name):
            with contextlib.suppress(FileNotFoundError, PathEscapesError):
                unlink_beneath(root, name)
                count += 1
        elif record := RECORD_NAME.fullmatch(name):
            offsets.setdefault(record["path"], []).append(int(record["offset"]))
    for path, of_segment in offsets.items():
        with contextlib.suppress(FileNotFoundError), segment.Segment(root / path, marking=True) as opened:
            count += sum(opened.mark_persisted(offset) for offset in of_segment)
    return count


def clear_dead_slots(root: Path, *, damaged_are_delivered: bool = True) -> int:
    """Remove what dead listeners left: partial files, and segments whose records are all persisted.

    Args:
        root: The folder of the spool.
        damaged_are_delivered: See `ingest.spool.segment_upkeep.SegmentUpkeep`.

    Returns:
        The number of partial files.
    """
    removed = 0
    for name in list_slots(root):
        # INVARIANT 3: partial files are removed only while we hold the lock of their slot.
        slot = _try_lock(root, name)
        if slot is not None:
            try:
                removed += slot.remove_partials()
                segment_upkeep.remove_persisted_segments(
                    slot.path, damaged_are_delivered=damaged_are_delivered
                )
            except OSError as error:
                _log_unusable(name, error)
            finally:
                slot.release()
    return removed


def list_unowned_slots(root: Path) -> list[str]:
    """Return the slots that no living process holds.

    The owner may live on another host whose lock is not visible here. Then both hosts publish the entries of
    the slot, which is harmless.
    """
    free = []
    for name in list_slots(root):
        slot = _try_lock(root, name, leased=False)
        if slot is not None:
            slot.release()
            free.append(name)
    return free


def _try_lock(root: Path, name: str, *, leased: bool = True) -> Slot | None:
    """Lock a slot as `Slot.try_lock` does; a slot on a failing disk must not keep back the others."""
    try:
        return Slot.try_lock(root, name, leased=leased)
    except OSError as error:
        _log_unusable(name, error)
        return None


def _log_unusable(name: str, error: OSError) -> None:
    log.error(
        "slot_unusable", slot=name, error=str(error), remedy="check the disk of the spool; this is retried"
    )


def _list_files(root: Path, slot: str, older_than: float) -> Iterator[str]:
    now = time.time()
    for entry in _scan(root / slot / "ready"):
        try:
            # rename(2) sets the change time, so it is the time of the commit.
            is_due = older_than <= 0 or _is_old(entry.stat().st_ctime, older_than, now)
        except FileNotFoundError:
            continue
        except OSError:
            is_due = True  # the worker that gets the reference reports the error, and waits
        if is_due:
            yield f"{slot}/ready/{entry.name}"


def _list_records(root: Path, slot: str, older_than: float) -> Iterator[Location]:
    now = time.time()
    for name in segment.list_segments(root / slot):
        path = f"{slot}/{segment.FOLDER}/{name}"
        try:
            with segment.Segment(root / path) as opened:
                found = opened.examine()
        except FileNotFoundError:
            continue
        except OSError as error:
            # Entries of other segments must not wait for this one.
            log.error("segment_unreadable", file=path, error=error.strerror, remedy="check its disk")
            continue
        if found.is_unreadable:
            log.error("segment_unreadable", file=path, remedy="check its disk")
        # Workers also get damaged records, and send them to quarantine.
        for record in sorted([*found.waiting, *found.damaged, *found.doubtful]):
            if older_than <= 0 or _is_old(record.received_ms / 1000, older_than, now):
                yield Location(path, record.offset, record.length)


def _is_old(at: float, seconds: float, now: float) -> bool:
    """Whether a time lies at least that many seconds ago.

    A time in the future counts as old. It was taken before the clock was set back, and the entry must not
    wait until that time comes again.
    """
    return not now - seconds < at <= now


def _scan(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if entry.name.endswith(".dcm"))
    except FileNotFoundError:
        return


def find_received_ms(root: Path, location: Location) -> int | None:
    """Return when a waiting entry was received, in Unix milliseconds; None if it is gone.

    Raises:
        OSError: The disk is failing.
    """
    if location.offset:
        with contextlib.suppress(FileNotFoundError), segment.Segment(root / location.path) as opened:
            found = opened.read(location.offset, location.length)
            return found[0].received_ms if found is not None else None
        return None
    return _read_name_ms(location.path.rpartition("/")[2])


def find_oldest_received_ms(root: Path) -> int | None:
    """Return when the oldest entry was received that still waits, in Unix milliseconds; None without one.

    Raises:
        OSError: The disk is failing.
    """
    times = []
    for slot in list_slots(root):
        # Names begin with the time of their creation, and sort by it. Other files are none of ours.
        names = (entry.name for entry in _scan(root / slot / "ready"))
        first = min((name for name in names if READY_PATH.fullmatch(f"{slot}/ready/{name}")), default=None)
        if first is not None:
            times.append(_read_name_ms(first))
        for name in segment.list_segments(root / slot):
            records = segment.read_records(root / slot / segment.FOLDER / name)
            waiting = [record.received_ms for record in records if not record.is_persisted]
            if waiting:
                times.append(min(waiting))
                break  # later segments have later records
    return min(times, default=None)


def _read_name_ms(name: str) -> int:
    # `Committer.open` names a file after the time of its creation in nanoseconds.
    return int(name.partition("-")[0].partition(".")[0], 16) // 1_000_000
