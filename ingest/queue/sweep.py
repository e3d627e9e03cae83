"""Putting back on the queue what waits in the spool and is not on it, and clearing what dead listeners left.

The spool is the truth and Redis a hint: a reference that is on the queue twice does no harm, since persisting
is idempotent.
"""

import contextlib
import itertools
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import redis
import structlog

from ingest.config.model import Config
from ingest.errors import IngestError, PathEscapesError
from ingest.ext.segment import SEGMENT_BYTES
from ingest.filesystem.beneath import unlink_beneath
from ingest.log import Seldom
from ingest.queue.client import connect, persisted_key, stream_key
from ingest.queue.stream_append import Pusher
from ingest.spool import segment, segment_upkeep
from ingest.spool.reference import READY, Place
from ingest.spool.spool import Slot, spool_id

if TYPE_CHECKING:
    from ingest.ledger.spool_references import SpoolReferences

PAGE: Final = 1000

RECORD: Final = re.compile(rf"(?P<where>{segment.PLACE.pattern})#(?P<offset>[0-9]{{1,19}})")
"""What the name of a place in a segment looks like."""

log = structlog.get_logger()
_seldom: Final = Seldom()


@dataclass(slots=True)
class Swept:
    """What one sweep found and did, in instances and files."""

    waiting: int = 0
    put_back: int = 0
    partials_removed: int = 0
    done_removed: int = 0


def slots(root: Path) -> list[str]:
    """The names of all slots of a spool."""
    found = (path for path in root.glob("L*") if path.name[1:].isdigit() and not path.is_symlink())
    return sorted(path.name for path in found)


def ready(root: Path, slot: str, *, older_than: float = 0.0) -> list[Place]:
    """What waits in one slot for at least `older_than` seconds, oldest first.

    That of one segment counts as old as the segment.
    """
    found = [Place(where) for where in _files(root, slot, older_than)]
    found += _in_segments(root, slot, older_than)
    return sorted(found, key=lambda place: (place.where.rpartition("/")[2], place.offset))


def usage(root: Path) -> int:
    """Bytes that wait in all slots together.

    A segment counts whole for as long as anything waits in it, except the newest of its slot, which is being
    filled: one image that does not get persisted keeps all of it on the disk.
    """
    total = 0
    for slot in slots(root):
        for entry in _scan(root / slot / "ready"):
            with contextlib.suppress(OSError):  # of one that cannot be looked at a worker says so
                total += entry.stat().st_size
        names = segment.names(root / slot)
        for name in names:
            with contextlib.suppress(OSError):  # `ready` says so
                records = segment.walk(root / slot / segment.FOLDER / name)
                waiting = sum(record.length for record in records if not record.done)
                total += SEGMENT_BYTES if waiting and name != names[-1] else waiting
    return total


def on_stream(client: redis.Redis, spool: str) -> Iterator[tuple[bytes, bytes]]:
    """What the references that are on the stream now point to, delivered to a worker or not.

    One after the other, `where` and offset as they stand there: of a backlog there may be millions.

    Raises:
        redis.RedisError: Redis is away.
    """
    start = "-"
    while True:
        page = cast(
            "list[tuple[bytes, dict[bytes, bytes]]]", client.xrange(stream_key(spool), start, "+", PAGE)
        )
        for _, fields in page:
            yield fields.get(b"w", b""), fields.get(b"o", b"0")
        if len(page) < PAGE:
            return
        start = f"({page[-1][0].decode()}"


def missing(
    root: Path, spool: str, client: redis.Redis, names: Iterable[str], older_than: float
) -> list[Place]:
    """What waits in the named slots and is not on the stream.

    Raises:
        redis.RedisError: Redis is away.
    """
    places = (place for name in names for place in ready(root, name, older_than=older_than))
    waiting = {(place.where.encode(), b"%d" % place.offset): place for place in places}
    if not waiting:
        return []
    for found in on_stream(client, spool):
        waiting.pop(found, None)
    # Listed before the stream was read: one that has been persisted meanwhile is gone from the spool.
    return still_waiting(root, waiting.values())


def still_waiting(root: Path, places: Iterable[Place]) -> list[Place]:
    """Those of some places that are waited for yet; in runs of one segment where they are in its order."""
    found: list[Place] = []
    for where, run in itertools.groupby(places, key=lambda place: place.where):
        places_there = list(run)
        try:
            if segment.PLACE.fullmatch(where):
                with segment.Segment(root / where) as opened:
                    places_there = [place for place in places_there if opened.waits(place.offset)]
            else:
                os.stat(root / where, follow_symlinks=False)
        except FileNotFoundError:
            continue
        except OSError as error:
            # It may wait: the others must not wait for this one, and it must not be forgotten.
            log.debug("spool_file_unreadable", file=where, error=error.strerror)
        found += places_there
    return found


def let_go(root: Path, names: Iterable[str]) -> int:
    """Remove or mark what store and ledger have, by the names of its places; returns how many.

    A name that can be none of a place is passed over.

    Raises:
        OSError: The disk is failing.
    """
    count, offsets = 0, cast("dict[str, list[int]]", {})
    for name in names:
        if READY.fullmatch(name):
            with contextlib.suppress(FileNotFoundError, PathEscapesError):
                unlink_beneath(root, name)
                count += 1
        elif record := RECORD.fullmatch(name):
            offsets.setdefault(record["where"], []).append(int(record["offset"]))
    for where, of_segment in offsets.items():
        with contextlib.suppress(FileNotFoundError), segment.Segment(root / where, marking=True) as opened:
            count += sum(opened.mark_done(offset) for offset in of_segment)
    return count


def remove_persisted(root: Path, spool: str, client: redis.Redis, references: "SpoolReferences") -> int:
    """Let go of what workers elsewhere have persisted (`redis` carrier); returns how many.

    The list in Redis says only where to look. What the ledger does not hold stays, and comes off the list.

    Raises:
        redis.RedisError: Redis is away.
        LedgerError: The ledger is away; nothing has been removed.
    """
    removed, key = 0, persisted_key(spool)
    # Read, let go, then take off the list: a crash between repeats the letting go, which does no harm.
    while page := cast("list[bytes]", client.lrange(key, 0, PAGE - 1)):
        names = [name.decode(errors="replace") for name in page]
        places = {
            f"{spool}:{name}": name for name in names if READY.fullmatch(name) or RECORD.fullmatch(name)
        }
        settled = references.find_removable(places)
        removed += let_go(root, (places[ref] for ref in settled))
        if len(settled) < len(set(names)):
            _seldom.warning(
                "persisted_without_proof",
                count=len(set(names)) - len(settled),
                remedy="the files stay; see who else writes to this Redis",
            )
        references.delete_duplicates(settled)
        pipeline = client.pipeline(transaction=False)
        for name in page:
            # By its value: by its position, two listeners with the same page would take off two pages.
            pipeline.lrem(key, 1, cast("Any", name))
        pipeline.execute()
    return removed


def clear_orphans(root: Path, *, damaged_are_delivered: bool = True) -> int:
    """Remove the partial files of slots whose listener is dead, and its segments of which nothing is needed.

    Args:
        root: The spool's folder.
        damaged_are_delivered: As for `ingest.spool.segment_upkeep.Upkeep`.

    Returns:
        How many partial files.
    """
    removed = 0
    for name in slots(root):
        slot = _lock(root, name)
        if slot is not None:
            try:
                removed += slot.remove_partials()
                segment_upkeep.remove_done(slot.path, damaged_are_delivered=damaged_are_delivered)
            except OSError as error:
                _say_unusable(name, error)
            finally:
                slot.release()
    return removed


def unowned(root: Path) -> list[str]:
    """Slots that no living process holds; perhaps one on another host, if its lock does not come so far.

    What such a one hands off is then handed off twice, which does no harm.
    """
    free = []
    for name in slots(root):
        slot = _lock(root, name, leased=False)
        if slot is not None:
            slot.release()
            free.append(name)
    return free


def _lock(root: Path, name: str, *, leased: bool = True) -> Slot | None:
    """As `Slot.lock`; a slot whose disk is failing keeps back no other."""
    try:
        return Slot.lock(root, name, leased=leased)
    except OSError as error:
        _say_unusable(name, error)
        return None


def _say_unusable(name: str, error: OSError) -> None:
    log.error(
        "slot_unusable", slot=name, error=str(error), remedy="see to the spool's disk; it is tried again"
    )


def sweep_command(config: Config) -> int:
    """`ingest sweep`: sweep once and say what was done; returns the exit code."""
    from rich.console import Console  # noqa: PLC0415 - only commands need it

    done = sweep(config)
    Console(highlight=False, soft_wrap=True).print(
        f"{done.waiting} waiting in the spool, {done.put_back} of them put back on the queue; "
        f"{done.done_removed} already kept and removed; {done.partials_removed} partial files removed"
    )
    return 0


def sweep(config: Config) -> Swept:
    """One whole sweep, for `ingest sweep`: also removes what the ledger already holds.

    Raises:
        IngestError: Spool, queue or ledger cannot be used.
    """
    from ingest.ledger import Ledger  # noqa: PLC0415 - listeners import this module and need no SQL

    root, result = config.spool_dir, Swept()
    identity = spool_id(root)
    if identity is None:
        return result
    client = connect(config)
    try:
        result.partials_removed = clear_orphans(root)
        with contextlib.closing(Ledger(config.ledger_url)) as ledger:
            result.done_removed = remove_persisted(root, identity, client, ledger.spool_references)
            waiting = {place.name for name in slots(root) for place in ready(root, name)}
            refs = [f"{identity}:{name}" for name in waiting]
            known = ledger.spool_references.find_removable(refs) if refs else set()
        kept = {name for name in waiting if f"{identity}:{name}" in known}
        let_go(root, kept)
        result.done_removed += len(kept)
        result.waiting = len(waiting) - len(kept)
        if config.queue.carrier == "redis":
            # Its data sets are moved by the listeners, which see for themselves what is missing.
            return result
        back = missing(root, identity, client, slots(root), 0.0)
        if back:
            Pusher(client, identity).push(back)
        result.put_back = len(back)
    except redis.RedisError as error:
        raise IngestError(f"the queue cannot be reached: {error}; is the node running?") from error
    finally:
        client.close()
    return result


def _files(root: Path, slot: str, older_than: float) -> Iterator[str]:
    now = time.time()
    for entry in _scan(root / slot / "ready"):
        try:
            # rename(2) sets the change time: it tells when the file became ready.
            is_due = older_than <= 0 or _is_old(entry.stat().st_ctime, older_than, now)
        except FileNotFoundError:
            continue
        except OSError:
            is_due = True  # the worker that gets it says why, and waits
        if is_due:
            yield f"{slot}/ready/{entry.name}"


def _in_segments(root: Path, slot: str, older_than: float) -> Iterator[Place]:
    now = time.time()
    for name in segment.names(root / slot):
        where = f"{slot}/{segment.FOLDER}/{name}"
        try:
            with segment.Segment(root / where) as opened:
                found = opened.examine()
        except FileNotFoundError:
            continue
        except OSError as error:
            # What waits in others must not wait for this one.
            log.error("segment_unreadable", file=where, error=error.strerror, remedy="look at its disk")
            continue
        if found.is_unreadable:
            log.error("segment_unreadable", file=where, remedy="look at its disk")
        # Damaged ones go to the workers too, which set them aside for a person.
        for record in sorted([*found.waiting, *found.damaged, *found.doubtful]):
            if older_than <= 0 or _is_old(record.received_ms / 1000, older_than, now):
                yield Place(where, record.offset, record.length)


def _is_old(at: float, seconds: float, now: float) -> bool:
    """Whether that was at least so long ago.

    What lies in the future was dated by a clock that has been put right since, and may not wait until then.
    """
    return not now - seconds < at <= now


def _scan(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if entry.name.endswith(".dcm"))
    except FileNotFoundError:
        return
