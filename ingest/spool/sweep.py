"""Putting back on the queue what waits in the spool and is not on it, and clearing what dead listeners left.

The spool is the truth and Redis a hint: a reference that is on the queue twice does no harm, since persisting
is idempotent.
"""

import contextlib
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import redis
import structlog

from ingest.config.model import Config
from ingest.errors import IngestError
from ingest.queue import connect, persisted_key, stream_key
from ingest.spool.push import Pusher
from ingest.spool.reference import Place
from ingest.spool.spool import Slot, spool_id

PAGE: Final = 1000

PLACE: Final = re.compile(r"L[0-9]+/ready/[0-9a-fA-F.-]+\.dcm")
"""What a place in the spool looks like."""

log = structlog.get_logger()


@dataclass(slots=True)
class Swept:
    """What one sweep found and did, in files."""

    waiting: int = 0
    put_back: int = 0
    partials_removed: int = 0
    done_removed: int = 0


def slots(root: Path) -> list[str]:
    """The names of all slots of a spool."""
    return sorted(path.name for path in root.glob("L*") if path.name[1:].isdigit())


def ready(root: Path, slot: str, *, older_than: float = 0.0) -> list[str]:
    """What waits in one slot for at least `older_than` seconds, oldest first, as references say it."""
    now = time.time()
    found = []
    for entry in _scan(root / slot / "ready"):
        try:
            # rename(2) sets the change time: it tells when the file became ready. One in the future was set
            # by a clock that has been put right since, and may not wait until that time has come.
            if older_than <= 0 or not now - older_than < entry.stat().st_ctime <= now:
                found.append(f"{slot}/ready/{entry.name}")
        except FileNotFoundError:
            continue
    return sorted(found)


def usage(root: Path) -> int:
    """Bytes that wait in all slots together."""
    total = 0
    for slot in slots(root):
        for entry in _scan(root / slot / "ready"):
            try:
                total += entry.stat().st_size
            except FileNotFoundError:
                continue
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
    places = (Place(where) for name in names for where in ready(root, name, older_than=older_than))
    waiting = {(place.where.encode(), b"%d" % place.offset): place for place in places}
    if not waiting:
        return []
    for found in on_stream(client, spool):
        waiting.pop(found, None)
    # Listed before the stream was read: one that has been persisted meanwhile is gone from the folder.
    return [place for place in waiting.values() if (root / place.where).exists()]


def remove_persisted(root: Path, spool: str, client: redis.Redis) -> int:
    """Remove the files that workers elsewhere have persisted (`redis` carrier); returns how many.

    Raises:
        redis.RedisError: Redis is away.
    """
    removed, key = 0, persisted_key(spool)
    # Read, unlink, then take off the list: a crash between repeats the unlink, which does no harm.
    while page := cast("list[bytes]", client.lrange(key, 0, PAGE - 1)):
        pipeline = client.pipeline(transaction=False)
        for where in page:
            if PLACE.fullmatch(where.decode(errors="replace")):
                with contextlib.suppress(FileNotFoundError):
                    (root / where.decode()).unlink()
                    removed += 1
            # By its value: by its position, two listeners with the same page would take off two pages.
            pipeline.lrem(key, 1, cast("Any", where))
        pipeline.execute()
    return removed


def clear_orphans(root: Path) -> int:
    """Remove the partial files of slots whose listener is dead; returns how many."""
    removed = 0
    for name in slots(root):
        slot = Slot.lock(root, name)
        if slot is not None:
            try:
                removed += slot.remove_partials()
            finally:
                slot.release()
    return removed


def unowned(root: Path) -> list[str]:
    """Slots that no living process holds."""
    free = []
    for name in slots(root):
        slot = Slot.lock(root, name)
        if slot is not None:
            slot.release()
            free.append(name)
    return free


def sweep_command(config: Config) -> int:
    """`ingest sweep`: sweep once and say what was done; returns the exit code."""
    from rich.console import Console  # noqa: PLC0415 - only commands need it

    done = sweep(config)
    Console().print(
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
        result.done_removed = remove_persisted(root, identity, client)
        waiting = [where for name in slots(root) for where in ready(root, name)]
        with contextlib.closing(Ledger(config.ledger_url)) as ledger:
            refs = [f"{identity}:{where}" for where in waiting]
            known = ledger.known_spool_refs(refs) if refs else set()
        for where in waiting:
            if f"{identity}:{where}" in known:
                (root / where).unlink(missing_ok=True)
                result.done_removed += 1
        result.waiting = len(waiting) - len(known)
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


def _scan(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if entry.name.endswith(".dcm"))
    except FileNotFoundError:
        return
