"""Publishes the references of committed entries: from the spool to the stream, after the C-STORE response.

Each listener has one publisher, a thread with a blocking client. Neither Redis nor the sweep can therefore
block the event loop. The thread shares the interpreter lock with that loop, so its work delays receiving.
Under load the thread sleeps while a batch fills, and publishes the batch with one command.

INVARIANT 2: Redis is a hint. A crash, or a Redis that was emptied, loses references and no entries. The
sweep of the publisher finds them in the spool and publishes them again.
"""

import contextlib
import errno
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import redis
import structlog

from ingest import threads
from ingest.alarms import clear_alarm, raise_alarm
from ingest.config.model import Config
from ingest.errors import LedgerError
from ingest.ext.cstore_service import CStoreService
from ingest.log import RateLimitedLog
from ingest.queue.client import connect, remove_foreign_keys
from ingest.queue.epoch import QueueEpoch
from ingest.queue.keys import DATA_CHUNK_BYTES, SPOOLS_KEY, data_key, persisted_key, stream_key
from ingest.queue.stream_writer import BATCH_REFERENCES, StreamWriter, append_reference
from ingest.queue.sweep import find_missing, release_persisted
from ingest.spool import inventory, segment, segment_upkeep
from ingest.spool.abandoned_partials import AbandonedPartials
from ingest.spool.reference import Location, Reference
from ingest.spool.segment_upkeep import SegmentUpkeep
from ingest.spool.spool import Spool

if TYPE_CHECKING:
    from ingest.ledger import Ledger

WAITING_MAX: Final = 100_000
"""References kept in memory while Redis is away. The sweep finds the rest."""

IDLE_SECONDS: Final = 1.0
"""How long the thread waits for a first reference before it does its other work."""

LINGER_SECONDS: Final = 0.005
"""How long the thread waits for more references after the first one. One round trip then serves all."""

LINGER_EACH_SECONDS: Final = 0.0004
LINGER_SECONDS_MAX: Final = 0.1
"""How much longer the thread waits for each reference of the previous batch, and the upper bound.

The wake-up of a thread is the expensive part. A listener under load that often wakes the publisher and the
workers takes the processor from its own responses.
"""

SWEEP_SECONDS: Final = 4.0
"""The shortest time between two sweeps."""

SWEEP_AGE_SECONDS: Final = 0.5
"""The sweep ignores younger entries, because their references are probably on their way."""

SWEEP_SHARE: Final = 20
"""After a sweep of t seconds, the next one begins 20 t later at the earliest."""

WHOLE_SWEEP_SECONDS: Final = 60.0
"""How often the own slot is swept although the queue epoch is unchanged."""

RECYCLE_SECONDS: Final = 0.5
"""How often segments are checked for reuse."""

RELEASE_SECONDS: Final = 0.5
"""How often entries are released that workers on other hosts have persisted (carrier `redis`)."""

PROOF_SECONDS: Final = 5.0
"""Pause after the ledger could not be asked."""

PROOF_ALARM_SECONDS: Final = 60.0
"""After this time without an answer of the ledger an alarm is raised."""

UNPROVED: Final = "spool_not_let_go"
"""The alarm for a ledger that this listener cannot ask (carrier `redis`)."""

FULL_SECONDS: Final = 0.05
"""Pause while the queue has as many references as `[queue] carrier_max_waiting` allows."""

UNNAMED_SECONDS: Final = 60
"""Lifetime of a data set in Redis that no reference names yet, counted from its last chunk."""

BACK_OFF_SECONDS: Final = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Pauses after the first, second, … failure in a row."""

log = structlog.get_logger()


class Publisher:
    """The publishing thread of one listener.

    Attributes:
        spool_used_bytes: Bytes of waiting entries in the whole spool when they were last counted. They are
            only counted if `[receive] spool_max_bytes` is set.
    """

    def __init__(self, config: Config, spool: Spool, cstore_service: CStoreService) -> None:
        """Prepare a publisher; `cstore_service` provides the locations of committed entries."""
        self._cstore_service = cstore_service
        self._config = config
        self._spool = spool
        self._waiting: deque[Location] = deque()
        self._batch: Sequence[Location] = ()
        self._linger_seconds = LINGER_SECONDS
        self._wake = threading.Condition()
        self._closing = False
        self._failures = 0
        self._sweep_at = self._whole_sweep_at = 0.0
        self._count_at = 0.0
        self._release_at = self._recycle_at = 0.0
        self._client = connect(config)
        self._stream = StreamWriter(self._client, spool.id)
        self._abandoned = AbandonedPartials(spool.slot.path)
        self._epoch = QueueEpoch(self._client, spool.id)
        self._damaged_are_delivered = config.queue.carrier == "spool"
        self._upkeep: SegmentUpkeep | None = None
        if spool.segments is not None:
            self._upkeep = SegmentUpkeep(
                spool.slot.path, spool.segments, damaged_are_delivered=self._damaged_are_delivered
            )
        self._thread: threading.Thread | None = None
        self._ledger: Ledger | None = None
        self._proof_at = 0.0
        self._proof_failures = 1  # an alarm of an earlier process may be raised, and has to be cleared
        self._seldom = RateLimitedLog()
        self.spool_used_bytes = 0

    def start(self) -> None:
        """Start the thread; call this after the fork."""
        self._thread = threads.start_guarded("handoff", self._run, lambda: self._closing)

    def close(self, seconds: float) -> bool:
        """Publish what waits, for at most `seconds`; the sweep of the next start finds the rest.

        Returns:
            Whether the thread has ended. If it has not, it may still use the files of the slot.
        """
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                return False
        if self._ledger is not None:
            self._ledger.close()
        return True

    def _run(self) -> None:
        while True:
            self._take_batch()
            if not self._batch and self._closing:
                return
            try:
                is_stuck = not self._run_once()
            except Exception as error:  # if this thread ended, no reference would reach the queue any more
                self._handle_failure(error)
                is_stuck = True
            if is_stuck and self._closing:
                return  # the entries stay in the spool

    def _run_once(self) -> bool:
        """Publish the batch and do all other due work; return whether the queue had room for the batch."""
        has_room = self._publish_batch()
        now = time.monotonic()
        if self._config.receive.spool_max_bytes and now >= self._count_at:
            self.spool_used_bytes = inventory.measure_usage(self._spool.root)
            self._count_at = now + 1.0
        if now >= self._recycle_at:
            if self._upkeep is not None:
                self._upkeep.run_once()
            self._recycle_at = now + RECYCLE_SECONDS
        if self._config.queue.carrier == "redis" and now >= self._release_at:
            self._release_persisted()
            self._release_at = now + RELEASE_SECONDS
        if now >= self._sweep_at and not self._closing:
            self._sweep()
            self._sweep_at = time.monotonic() + max(SWEEP_SECONDS, SWEEP_SHARE * (time.monotonic() - now))
        if self._failures:
            log.info("queue_back")
            self._failures = 0
        if not has_room:
            self._pause(FULL_SECONDS)
        return has_room

    def _take_batch(self) -> None:
        """Wait for references and move them to the batch, where they stay until they are published."""
        if self._batch:
            return
        waiting = self._waiting
        self._fetch_committed()
        with self._wake:
            self._cstore_service.on_unpublished = self._wake_thread
            # Fetch again after `on_unpublished` is set. An entry that was committed in between woke no
            # thread.
            self._fetch_committed()
            if not waiting and not self._closing:
                self._wake.wait(IDLE_SECONDS)
            self._cstore_service.on_unpublished = None
            self._fetch_committed()
            if waiting and len(waiting) < BATCH_REFERENCES and not self._closing:
                self._wake.wait(self._linger_seconds)
        self._fetch_committed()
        count = min(BATCH_REFERENCES, len(waiting))
        self._linger_seconds = min(LINGER_SECONDS + count * LINGER_EACH_SECONDS, LINGER_SECONDS_MAX)
        self._batch = [waiting.popleft() for _ in range(count)]

    def _fetch_committed(self) -> None:
        self._add_waiting(self._cstore_service.take_unpublished())

    def _add_waiting(self, locations: Sequence[Location]) -> None:
        """Keep as many locations as memory allows; a whole sweep finds the others soon."""
        room = max(0, WAITING_MAX - len(self._waiting))
        if len(locations) > room:
            self._whole_sweep_at = 0.0
        self._waiting.extend(locations[:room])

    def _wake_thread(self) -> None:
        with self._wake:
            self._wake.notify()

    def _publish_batch(self) -> bool:
        """Publish the batch; return False if the queue became full before its last reference."""
        if self._config.queue.carrier == "spool":
            if self._batch:
                self._stream.append(self._batch)
                self._batch = ()
            return True
        stream, waiting_max = stream_key(self._spool.id), self._config.queue.carrier_max_waiting
        while self._batch:
            if self._client.xlen(stream) >= waiting_max:
                return False
            self._publish_with_data(self._batch[0])
            self._batch = self._batch[1:]
        return True

    def _publish_with_data(self, location: Location) -> None:
        """Put a file on the queue, and then its reference (carrier `redis`).

        One transaction gives the data set its name and adds the reference. A data set is therefore complete
        or absent. That also holds if two listeners publish one file of a slot whose own listener is dead.
        """
        key = data_key(self._spool.id, location.name)
        temporary = f"{key}:{uuid.uuid4().hex}"
        try:
            length = self._copy_data(location, temporary)
        except redis.RedisError:
            # Redis may be full. Remove the incomplete data set, so that it does not stay full because of us.
            with contextlib.suppress(redis.RedisError):
                self._client.delete(temporary)
            raise
        except FileNotFoundError:
            return  # a worker has persisted the entry
        except OSError as error:
            # Other entries must not wait for this one. The sweep finds it again.
            log.error("spool_read_failed", where=location.path, error=error.strerror, remedy="check its disk")
            return
        if not length:
            log.error(
                "spool_file_empty",
                where=location.path,
                remedy="remove it; it never held an acknowledged image",
            )
            return
        pipeline = self._client.pipeline(transaction=True)
        pipeline.lpop(temporary)
        pipeline.rename(temporary, key)
        pipeline.persist(key)
        append_reference(pipeline, Reference("redis", self._spool.id, location.path, location.offset, length))
        pipeline.execute()

    def _copy_data(self, location: Location, key: str) -> int:
        """Copy the data of an entry to a list in Redis, behind one empty element; return its length in bytes.

        The list expires by itself if this process crashes. A key must exist before it can expire, so the
        empty element comes first.
        """
        # INVARIANT 4: memory does not grow with the image. One chunk is in memory at a time.
        length = 0
        with contextlib.closing(self._read_chunks(location)) as chunks:
            chunk = next(chunks, None)  # an entry that is gone raises here, before Redis has any work
            pipeline = self._client.pipeline(transaction=True)
            pipeline.rpush(key, b"")
            pipeline.expire(key, UNNAMED_SECONDS)
            pipeline.execute()
            while chunk is not None:
                # INVARIANT 9: no pipeline here. If a pipeline fails, redis-py puts its arguments into the
                # error message. That takes long, and patient data would reach the log.
                self._client.rpush(key, chunk)
                self._client.expire(key, UNNAMED_SECONDS)
                length += len(chunk)
                chunk = next(chunks, None)
        return length

    def _read_chunks(self, location: Location) -> Generator[bytes]:
        """Yield the data of an entry, in order.

        Raises:
            FileNotFoundError: The entry is gone, or does not wait any more.
            OSError: The disk is failing, or the data differs from the received data.
        """
        if segment.SEGMENT_PATH.fullmatch(location.path):
            yield from _read_record(self._spool.root / location.path, location)
            return
        length, length_max = 0, location.length or sys.maxsize
        with (self._spool.root / location.path).open("rb", buffering=0) as file:
            file.seek(location.offset)
            while chunk := file.read(min(DATA_CHUNK_BYTES, length_max - length)):
                length += len(chunk)
                yield chunk

    def _sweep(self) -> None:
        """Clear dead slots, and publish again the references that the stream lacks."""
        spool = self._spool
        self._client.sadd(SPOOLS_KEY, spool.id)
        removed = inventory.clear_dead_slots(spool.root, damaged_are_delivered=self._damaged_are_delivered)
        removed += self._abandoned.remove()
        self._update_alarms()
        if removed:
            log.info("partial_files_removed", files=removed)
        if self._config.queue.carrier == "redis":
            self._release_persisted()
        # Sweep the slots of dead listeners and our own. Every living listener sweeps its own slot.
        names = inventory.list_unowned_slots(spool.root)
        for name in names:
            segment_upkeep.update_stuck_alarm(self._config.run_dir, name, [])
        if self._needs_whole_sweep():
            names.append(spool.slot.name)
        missing = find_missing(spool.root, spool.id, self._client, names, SWEEP_AGE_SECONDS)
        if missing and self._config.queue.carrier == "redis":
            # A worker takes an entry off the stream and adds it to the persisted list in one step. An entry
            # that is missing on the stream may therefore be on that list by now.
            self._release_persisted()
            missing = inventory.filter_waiting(spool.root, missing)
        if missing:
            # Entries that were committed meanwhile are not on the stream yet, but will be.
            self._fetch_committed()
            waiting = {(each.path, each.offset) for each in (*self._batch, *self._waiting.copy())}
            missing = [each for each in missing if (each.path, each.offset) not in waiting]
        if missing:
            log.warning("references_put_back", references=len(missing))
            self._add_waiting(missing)

    def _update_alarms(self) -> None:
        """Raise or clear the alarms about segments."""
        run_dir, slot = self._config.run_dir, self._spool.slot.name
        stuck = self._upkeep.list_stuck() if self._upkeep is not None else []
        segment_upkeep.update_damage_alarm(self._spool.root, run_dir)
        segment_upkeep.update_stuck_alarm(run_dir, slot, stuck)

    def _release_persisted(self) -> None:
        """Release entries that the ledger has (carrier `redis`); without an answer of the ledger all stay."""
        if time.monotonic() < self._proof_at:
            return
        try:
            if self._ledger is None:
                from ingest.ledger import Ledger  # noqa: PLC0415 - the carrier "spool" needs no ledger

                self._ledger = Ledger(self._config.ledger_url)
            release_persisted(self._spool.root, self._spool.id, self._client, self._ledger.spool_references)
        except LedgerError as error:
            self._seldom.warning(
                "ledger_away",
                error=str(error),
                remedy="files stay in the spool until [ledger] url can be asked from here",
            )
            self._proof_at = time.monotonic() + PROOF_SECONDS
            self._proof_failures += 1
            if self._proof_failures * PROOF_SECONDS >= PROOF_ALARM_SECONDS:
                raise_alarm(
                    self._config.run_dir,
                    UNPROVED,
                    f"what is persisted stays in the spool: the ledger cannot be asked ({error})",
                    "give this host a [ledger] url that it can reach",
                )
        else:
            if self._proof_failures:
                clear_alarm(self._config.run_dir, UNPROVED)
            self._proof_failures = 0

    def _needs_whole_sweep(self) -> bool:
        """Whether references to entries of our own slot may be missing, and the next sweep has to compare."""
        # With the carrier `redis` every sweep is a whole one.
        is_unchanged = self._config.queue.carrier == "spool" and self._epoch.is_unchanged()
        now = time.monotonic()
        if is_unchanged and now < self._whole_sweep_at:
            return False
        may_miss_some = not is_unchanged or self._whole_sweep_at == 0.0
        # Some of the missing entries may be too young for this sweep, so the next whole one comes soon.
        self._whole_sweep_at = now + (2 * SWEEP_AGE_SECONDS if may_miss_some else WHOLE_SWEEP_SECONDS)
        return True

    def _handle_failure(self, error: Exception) -> None:
        """Log the first failure, remove foreign keys, and wait before the next try."""
        if self._failures == 0 and not isinstance(error, (redis.RedisError, OSError)):
            log.exception("handoff_failed")
        elif self._failures == 0 and isinstance(error, OSError):
            log.warning(
                "spool_failing", error=str(error), remedy="check the disk of the spool; instances wait in it"
            )
        elif self._failures == 0:
            log.warning(
                "queue_away", error=str(error), remedy="receiving goes on; instances wait in the spool"
            )
        remove_foreign_keys(self._client, self._own_keys(), error)
        pause = BACK_OFF_SECONDS[min(self._failures, len(BACK_OFF_SECONDS) - 1)]
        self._failures += 1
        # Redis may come back empty. Sweep as soon as it answers.
        self._sweep_at = self._whole_sweep_at = 0.0
        self._pause(pause)

    def _own_keys(self) -> dict[str, str]:
        """Return the keys in Redis that this listener uses, with their types."""
        spool = self._spool.id
        return {
            SPOOLS_KEY: "set",
            stream_key(spool): "stream",
            persisted_key(spool): "list",
            self._epoch.key: "string",
        }

    def _pause(self, seconds: float) -> None:
        with self._wake:
            self._wake.wait_for(lambda: self._closing, seconds)


def _read_record(path: Path, location: Location) -> Generator[bytes]:
    """Yield the data of a record in chunks; raises as `Publisher._read_chunks` does."""
    with segment.Segment(path) as opened:
        found = opened.read(location.offset, location.length)
    if found is None:
        raise FileNotFoundError(errno.ENOENT, "no such record waits", str(path))
    record, data = found
    if not record.matches(data):
        raise OSError(errno.EIO, f"the record at {location.offset} is not what was received", str(path))
    for start in range(0, len(data), DATA_CHUNK_BYTES):
        yield bytes(data[start : start + DATA_CHUNK_BYTES])
