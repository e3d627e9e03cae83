"""The sweep: compares the spool with the stream, and publishes the references that are missing.

INVARIANT 2: the spool is the truth, and Redis is a hint. A reference that is on the stream twice is harmless,
because a worker that persists an entry again changes nothing.
"""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import redis
import structlog

from ingest.config.model import Config
from ingest.errors import IngestError
from ingest.filesystem.data_format import require_data_format
from ingest.log import RateLimitedLog
from ingest.queue.client import connect
from ingest.queue.keys import persisted_key, stream_key
from ingest.queue.stream_writer import StreamWriter
from ingest.spool.inventory import (
    RECORD_NAME,
    clear_dead_slots,
    filter_waiting,
    list_slots,
    list_waiting,
    release_entries,
)
from ingest.spool.reference import READY_PATH, Location
from ingest.spool.spool import read_spool_id

if TYPE_CHECKING:
    from ingest.ledger.spool_references import SpoolReferences

PAGE: Final = 1000
"""Entries of a stream or a list that are read at once."""

log = structlog.get_logger()
_seldom: Final = RateLimitedLog()


@dataclass(slots=True)
class SweepResult:
    """The result of one sweep.

    Attributes:
        waiting: Entries that wait in the spool.
        published: How many of them were missing on the stream, and were published again.
        partials_removed: Partial files of dead listeners.
        released: Entries that store and ledger had, and that were removed from the spool.
    """

    waiting: int = 0
    published: int = 0
    partials_removed: int = 0
    released: int = 0


def read_stream_locations(client: redis.Redis, spool: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield path and offset of each reference on the stream, delivered to a worker or not.

    The values are yielded as Redis has them, one after the other: a backlog may have millions.

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


def find_missing(
    root: Path, spool: str, client: redis.Redis, slots: Iterable[str], older_than: float
) -> list[Location]:
    """Return the entries that wait in these slots and are not on the stream.

    Raises:
        redis.RedisError: Redis is away.
    """
    locations = (each for slot in slots for each in list_waiting(root, slot, older_than=older_than))
    waiting = {(each.path.encode(), b"%d" % each.offset): each for each in locations}
    if not waiting:
        return []
    for published in read_stream_locations(client, spool):
        waiting.pop(published, None)
    # The spool was listed before the stream was read. A worker may have persisted an entry in between.
    return filter_waiting(root, waiting.values())


def release_persisted(root: Path, spool: str, client: redis.Redis, references: "SpoolReferences") -> int:
    """Release the entries that workers on other hosts have persisted (carrier `redis`); return how many.

    Raises:
        redis.RedisError: Redis is away.
        LedgerError: The ledger is away; nothing was removed.
    """
    released, key = 0, persisted_key(spool)
    # The order is: read a page, release its entries, take it off the list. A crash in between repeats the
    # release, which is harmless.
    while page := cast("list[bytes]", client.lrange(key, 0, PAGE - 1)):
        names = [name.decode(errors="replace") for name in page]
        by_reference = {
            f"{spool}:{name}": name
            for name in names
            if READY_PATH.fullmatch(name) or RECORD_NAME.fullmatch(name)
        }
        # INVARIANT 12: Redis only names the entries. Those that the ledger does not have stay in the spool.
        removable = references.find_removable(by_reference)
        released += release_entries(root, (by_reference[reference] for reference in removable))
        if len(removable) < len(set(names)):
            _seldom.warning(
                "persisted_without_proof",
                count=len(set(names)) - len(removable),
                remedy="the files stay; see who else writes to this Redis",
            )
        references.delete_duplicates(removable)
        pipeline = client.pipeline(transaction=False)
        for name in page:
            # Remove by value. If two listeners read the same page, removal by position would remove two
            # pages.
            pipeline.lrem(key, 1, cast("Any", name))
        pipeline.execute()
    return released


def sweep_spool(config: Config) -> SweepResult:
    """Sweep the whole spool once.

    The sweep of a listener works without the ledger. This one also removes the entries that the ledger has.

    Raises:
        IngestError: Spool, queue or ledger cannot be used.
    """
    from ingest.ledger import Ledger  # noqa: PLC0415 - listeners import this module and need no SQL

    root, result = config.spool_dir, SweepResult()
    spool = read_spool_id(root)
    if spool is None:
        return result
    require_data_format(config.data_dir)
    client = connect(config)
    try:
        with contextlib.closing(Ledger(config.ledger_url)) as ledger:
            ledger.database.refuse_newer_schema()
            result.partials_removed = clear_dead_slots(root)
            result.released = release_persisted(root, spool, client, ledger.spool_references)
            waiting = {each.name for slot in list_slots(root) for each in list_waiting(root, slot)}
            references = [f"{spool}:{name}" for name in waiting]
            removable = ledger.spool_references.find_removable(references) if references else set()
        persisted = {name for name in waiting if f"{spool}:{name}" in removable}
        release_entries(root, persisted)
        result.released += len(persisted)
        result.waiting = len(waiting) - len(persisted)
        if config.queue.carrier == "redis":
            # Only a listener can put data sets on the queue, and each listener finds missing ones itself.
            return result
        missing = find_missing(root, spool, client, list_slots(root), 0.0)
        if missing:
            StreamWriter(client, spool).append(missing)
        result.published = len(missing)
    except redis.RedisError as error:
        raise IngestError(f"the queue cannot be reached: {error}; is the node running?") from error
    finally:
        client.close()
    return result
