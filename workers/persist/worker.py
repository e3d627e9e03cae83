"""The persist worker: consumes spool references and persists their instances in store and ledger.

One instance goes through these calls:

1. `PersistWorker.run` calls `_persist_next` until the worker is asked to stop.
2. `_read_entries` reads or claims stream entries, and `_persist_batch` takes a batch of them.
3. `PersistBatch.persist` opens the file of each entry and reads its header.
4. `BatchStorage.store_entry` gives the file its store key, or puts it into quarantine, and composes its row.
5. `PersistBatch._commit` syncs the store, commits the rows, and releases the spool entries.
6. `PersistWorker._acknowledge_entries` acknowledges the stream entries and wakes the destinations.

Several workers run side by side, on one host or many. A worker may be killed at any line. Its own next start
finds the entries that it had claimed, and otherwise another worker takes them over after a while.
"""

import contextlib
import os
import resource
import signal
import threading
import time
from collections.abc import Sequence
from typing import Final

import redis
import structlog

from ingest.alarms import BOUNDED_ALARM, Severity, clear_alarm, clear_alarms_of_others, raise_alarm
from ingest.config.model import Config
from ingest.dicom.study_attributes import StudyAttributeReader
from ingest.errors import (
    BootError,
    LedgerError,
    SpoolError,
    StoppedError,
    StoreError,
    StoreMissingError,
)
from ingest.ledger import Ledger
from ingest.ledger.announcements import build_announcer
from ingest.ledger.store_folders import QUARANTINE, STORE
from ingest.queue.client import connect, remove_foreign_keys
from ingest.queue.consumer import StreamConsumer, StreamEntry
from ingest.queue.wakeups import WakeUps
from ingest.routing.node_router import NodeRouter
from ingest.workers.backoff import Backoff, retry_with_backoff
from ingest.workers.delivery_terms import CompletionPolicy
from ingest.workers.fault_attribution import is_our_fault, is_shortage
from ingest.workers.host_recorder import HostRecorder
from ingest.workers.persist.batch import BatchResult, PersistBatch
from ingest.workers.persist.caller_recorder import CallerRecorder
from ingest.workers.persist.claim_renewal import ClaimRenewal
from ingest.workers.persist.context import PersistContext
from ingest.workers.persist.crash_marks import CrashMarks
from ingest.workers.persist.ledger_agreement import StoreAgreement
from ingest.workers.persist.spool_leftovers import SpoolLeftovers
from ingest.workers.persist.streams import SpoolStreams
from ingest.workers.persist.unpersisted_alarm import UnpersistedAlarm
from ingest.workers.quarantine.limit import QuarantineLimit
from ingest.workers.span_export import make_exporter
from ingest.workers.store.filesystem import FileStore
from ingest.workers.store.keys import StoreKeyTemplate
from ingest.workers.study_reindex import LEASE_SECONDS, StudyReindexer
from ingest.workers.worker_slot import claim_worker_slot

BATCH: Final = 256
"""Largest number of entries in a batch."""

CARRIED_BATCH: Final = 8
"""The same with carrier "redis": such data sets lie on the queue and in the store while a batch runs."""

BATCH_BYTES: Final = 64 << 20
"""Limit on the bytes that a batch copies before it stores them."""

PACE_SECONDS: Final = 0.05
"""Shortest time between two batches that are not full. Each batch costs its syncs and its COMMIT, however
small it is. The first entry after a pause does not wait."""

BLOCK_MILLISECONDS: Final = 1000
REINDEX_BLOCK_MILLISECONDS: Final = 100
"""The same between two steps of reindexing, so that a step takes a sixth of the time."""

REINDEX_CHECK_SECONDS: Final = 600.0
"""How often a worker looks for studies that have to be read for the index."""
CLAIM_SECONDS: Final = 3.0
CLEANUP_SECONDS: Final = 5.0

SUSPECT_DELIVERIES: Final = 2
"""An entry that was delivered more often gets a separate batch."""

STORE_MISSING_ALARM: Final = "store_missing"
"""The alarm for a store or quarantine that is not mounted."""

NO_STREAM_SECONDS: Final = 0.2

SPARE_DESCRIPTORS: Final = 16
"""Descriptors that a batch leaves free, for files to compare and for new connections."""

_WAITS_IN_SPOOL: Final = "what is received waits in the spool"

log = structlog.get_logger()


class PersistWorker:
    """One process of the consumer group.

    The loop reads entries, persists them in batches and acknowledges them. `PersistBatch` does the work of
    one batch. This class chooses the next step, the pause after a failure, and the entries to acknowledge.
    """

    def __init__(self, config: Config, stop: threading.Event, consumer: str) -> None:
        """Prepare the worker without waiting for anything.

        Args:
            config: The configuration.
            stop: Ends the loop after the current batch. Entries in no batch yet are put back.
            consumer: Name of this worker in the consumer group, the same again after a restart.

        Raises:
            BootError: The configuration cannot be used.
        """
        self._config = config
        self._stop = stop
        self._client = connect(config)
        self._streams = SpoolStreams(config, self._client)
        carriers = {"spool", config.queue.carrier}
        self._consumer = StreamConsumer(self._client, consumer, self._streams.find_streams, carriers)
        self._claims = ClaimRenewal(self._consumer)
        self._wake_ups = WakeUps(self._client)
        self._queue_backoff = Backoff(stop, "queue_away", _WAITS_IN_SPOOL)
        self._spool_backoff = Backoff(stop, "spool_away", "mount it, or see [receive] spool_dir")
        self._store_backoff = Backoff(stop, "store_away", _WAITS_IN_SPOOL)
        self._ledger_backoff = Backoff(
            stop,
            "ledger_away",
            _WAITS_IN_SPOOL,
            between_attempts=lambda: self._claims.renew_if_due(forgives=True),
        )
        self._host_backoff = Backoff(
            stop,
            "persisting_fails",
            "what is received waits in the spool; see to its disk, memory and limit of open files",
        )
        try:
            self._key_template = StoreKeyTemplate(config.store.path)
            self._router = NodeRouter(config, logs=True)
            self._ledger = Ledger(
                config.ledger_url, is_audited=config.records_transfers, announcer=build_announcer(config)
            )
        except (StoreError, LedgerError) as error:
            raise BootError(str(error)) from error
        self._agreement = StoreAgreement(config.store_root, config.run_dir, self._ledger)
        self._leftovers = SpoolLeftovers(config.spool_dir)
        self._callers = CallerRecorder(config.run_dir, self._ledger)
        self._host = HostRecorder(config, self._ledger, "persist")
        self._unpersisted = UnpersistedAlarm(config.run_dir)
        self._batch_size = self._batch_max = CARRIED_BATCH if config.queue.carrier == "redis" else BATCH
        # Entries and destinations for the next `_acknowledge_entries`. A lost connection loses none of them.
        self._persisted: list[StreamEntry] = []
        self._lost: list[StreamEntry] = []
        self._forgiven: list[StreamEntry] = []
        self._put_back: list[StreamEntry] = []
        self._destinations: dict[str, None] = {}
        self._new_folder_ids: dict[str, str] = {}
        self._has_missing_alarm = True  # a worker that died may have left the alarm
        self._reindexer = StudyReindexer(config, self._ledger, consumer)
        self._is_reindexing = False
        self._reindex_at = 0.0
        self._reads_own = True
        self._claim_at = self._next_batch_at = self._cleanup_at = 0.0

    def run(self) -> None:
        """Persist until asked to stop.

        Raises:
            ConfigError: The configuration cannot be used.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(self._client.close)
            stack.callback(self._ledger.close)
            with contextlib.suppress(StoppedError):
                self._prepare_stores(stack)
                while not self._stop.is_set():
                    self._persist_next()
            if self._is_reindexing:
                with contextlib.suppress(LedgerError):  # the lease ends by itself
                    self._reindexer.release_lease()
            self._agreement.advance_counters(at_once=True)
            with contextlib.suppress(redis.RedisError):
                self._acknowledge_entries()

    def _persist_next(self) -> None:
        """Read entries and persist them. After a failure of a service, wait with backoff.

        No batch begins after the worker was asked to stop.
        """
        try:
            self._clean_up_if_due()
            self._acknowledge_entries()
            self._agreement.advance_counters()
            entries = self._read_entries()
            self._queue_backoff.reset()
            self._spool_backoff.reset()
            batches = split_into_batches(entries, self._limit_batch_size())
            for number, batch in enumerate(batches):
                # The request to stop may have come while we waited for entries. After a reload these belong
                # to the workers of the new configuration, because their routes are in force.
                if self._stop.is_set():
                    self._consumer.put_back([entry for left in batches[number:] for entry in left])
                    return
                self._persist_batch(batch)
        except redis.RedisError as error:
            # INVARIANT 2: Redis is a hint. Start again with the entries that this consumer had claimed.
            self._reads_own = True
            self._consumer.restart_own()
            remove_foreign_keys(self._client, self._streams.key_types(), error)
            self._queue_backoff.wait_after(error)
        except SpoolError as error:
            self._spool_backoff.wait_after(error)
        except (OSError, MemoryError) as error:
            self._host_backoff.wait_after(error)

    # --- read

    def _read_entries(self) -> list[StreamEntry]:
        """Read entries of an earlier run of this worker, then abandoned entries, then new ones."""
        if self._reads_own:
            entries = self._consumer.read_own(self._batch_size)
            if entries:
                return entries
            self._reads_own = False
        if time.monotonic() >= self._claim_at:
            entries = self._consumer.claim_abandoned(self._batch_size)
            if entries:
                return entries
            self._consumer.redeliver_orphans()
            self._claim_at = time.monotonic() + CLAIM_SECONDS
        if not self._consumer.find_streams():
            # No listener has made its spool yet.
            time.sleep(NO_STREAM_SECONDS)
            return []
        time.sleep(max(0.0, self._next_batch_at - time.monotonic()))
        block = BLOCK_MILLISECONDS
        if self._is_reindexing:
            block = min(block, REINDEX_BLOCK_MILLISECONDS)
        entries = self._consumer.read_new(self._batch_size, block)
        if not entries:
            self._reindex_if_due()
        if entries and len(entries) < self._batch_size:
            self._next_batch_at = time.monotonic() + PACE_SECONDS
        return entries

    def _limit_batch_size(self) -> int:
        """Return how many entries a batch may have with the descriptors that are left to this process."""
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if limit == resource.RLIM_INFINITY or limit > 16 * BATCH:
            return self._batch_size
        free = limit - len(os.listdir("/proc/self/fd")) - SPARE_DESCRIPTORS
        # Each entry holds its file open, and the folders of its store key.
        return max(1, min(self._batch_size, free // (2 + self._config.store.path.count("/"))))

    # --- persist

    def _persist_batch(self, entries: Sequence[StreamEntry]) -> None:
        self._claims.begin_batch(entries)
        batch = PersistBatch(self._context)
        result = batch.result
        alone: Sequence[StreamEntry] = ()
        try:
            self._consumer.begin_attempts(entries)
            batch.persist(entries)
        except (redis.RedisError, StoppedError):
            self._forgiven += result.find_unresolved(entries)
            raise
        except Exception as error:
            alone = self._handle_broken_batch(result.find_unresolved(entries), result, error)
        else:
            # A batch that ends early, because the worker is to stop, has begun with fewer entries.
            unbegun = result.find_unresolved(entries)
            self._put_back += [entry for entry in unbegun if entry not in result.held_up]
            self._handle_result(result, is_full=len(entries) >= self._limit_batch_size())
        finally:
            self._claims.end_batch()
            self._collect_result(result)
        left = list(alone)
        try:
            self._acknowledge_entries()
            while left and not self._stop.is_set():
                self._persist_batch([left.pop(0)])
        finally:
            # Nothing shows that these entries broke their batch, because none of them was tried alone.
            self._put_back += left

    def _handle_broken_batch(
        self, unresolved: Sequence[StreamEntry], result: BatchResult, error: Exception
    ) -> Sequence[StreamEntry]:
        """Judge a batch that raised an error. Returns the entries to try again at once, each alone."""
        if isinstance(error, StoreError) or is_our_fault(error):
            # INVARIANT 11: our faults quarantine no image.
            self._forgiven += unresolved
            self._unpersisted.add_entries(unresolved, error)
            self._wait_after(error)
            return ()
        if len(unresolved) > 1:
            log.error("batch_not_persisted", entries=len(unresolved), exc_info=error)
            return unresolved
        for entry in unresolved:
            result.failed[entry.id] = f"{type(error).__name__}: {error}"
            log.error("not_persisted", where=entry.path, attempt=entry.deliveries, exc_info=error)
        return ()

    def _handle_result(self, result: BatchResult, *, is_full: bool) -> None:
        """Wait a little if a fault of ours held entries up: a failing disk must not be asked without end."""
        self._forgiven += result.held_up
        if result.error is not None:
            self._unpersisted.add_entries(result.held_up, result.error)
            self._wait_after(result.error)
        elif result.persisted:
            self._store_backoff.reset()
            self._host_backoff.reset()
            self._clear_missing_alarm()
            self._record_folder_ids()
            self._agreement.note_stored()
            if is_full:
                self._batch_size = min(self._batch_max, 2 * self._batch_size)

    def _wait_after(self, error: Exception) -> None:
        """Wait a little, and halve the batch: smaller batches need less, and fewer entries fail together."""
        self._batch_size = max(1, self._batch_size // 2)
        if is_shortage(error) or not isinstance(error, StoreError):
            self._host_backoff.wait_after(error)
        else:
            self._raise_missing_alarm(error)
            self._store_backoff.wait_after(error)

    # --- acknowledge

    def _collect_result(self, result: BatchResult) -> None:
        self._persisted += result.persisted
        self._lost += result.lost
        self._unpersisted.discard_entries((*result.persisted, *result.lost))
        self._destinations.update(result.destinations)

    def _acknowledge_entries(self) -> None:
        """Acknowledge entries, forgive deliveries that failed without blame, and wake destinations.

        Raises:
            redis.RedisError: Redis is away. The next call does the rest.
        """
        if self._persisted:
            self._consumer.acknowledge_entries(self._persisted)
            self._persisted = []
        if self._lost:
            self._consumer.discard_entries(self._lost)
            self._lost = []
        if self._forgiven:
            self._consumer.renew_claims(self._forgiven, forgives=True)
            self._forgiven = []
        if self._put_back:
            self._consumer.put_back(self._put_back)
            self._put_back = []
        for destination in list(self._destinations):
            self._wake_ups.send(destination)
            del self._destinations[destination]

    # --- start and upkeep

    def _prepare_stores(self, stack: contextlib.ExitStack) -> None:
        config = self._config
        retry_with_backoff(self._ledger_backoff, self._ledger.migrate)
        clear_alarms_of_others(config.run_dir, BOUNDED_ALARM, config.target_names)
        is_durable = config.receive.durability == "fsync"
        progress = self._claims.renew_if_due
        self._store = FileStore(
            config.store_root,
            durable=is_durable,
            progress=progress,
            shared_lock=self._ledger.create_removal_lock(),
        )
        self._quarantine = FileStore(config.quarantine_dir, durable=is_durable, progress=progress)
        for kind, store in ((STORE, self._store), (QUARANTINE, self._quarantine)):
            retry_with_backoff(self._store_backoff, self._prepare_folder, kind, store)
            stack.callback(store.close)
        self._clear_missing_alarm()
        with contextlib.suppress(LedgerError):  # the next mark compares again
            self._agreement.compare_counters()
        spans = make_exporter(config, "persist")
        if spans is not None:
            stack.callback(spans.close)
        self._context = PersistContext(
            config=config,
            client=self._client,
            streams=self._streams,
            claims=self._claims,
            store=self._store,
            quarantine=self._quarantine,
            quarantine_limit=QuarantineLimit(config),
            key_template=self._key_template,
            router=self._router,
            completion=CompletionPolicy.from_config(config),
            attribute_reader=StudyAttributeReader(config.ledger.index),
            ledger=self._ledger,
            ledger_backoff=self._ledger_backoff,
            leftovers=self._leftovers,
            crash_marks=CrashMarks(config.run_dir),
            callers=self._callers,
            stop=self._stop,
            spans=spans,
        )

    def _prepare_folder(self, kind: str, store: FileStore) -> None:
        """Prepare store or quarantine, and note its id if the ledger does not know it."""
        known = retry_with_backoff(self._ledger_backoff, self._ledger.store_folders.find_folder, kind)
        try:
            folder_id = store.prepare(known)
        except StoreError as error:
            self._raise_missing_alarm(error)
            raise
        if known.id != folder_id:
            self._new_folder_ids[kind] = folder_id

    def _record_folder_ids(self) -> None:
        """Record new ids of folders. The first batch is recorded before them."""
        while self._new_folder_ids:
            kind, folder_id = self._new_folder_ids.popitem()
            retry_with_backoff(
                self._ledger_backoff, self._ledger.store_folders.record_folder, kind, folder_id
            )

    def _clean_up_if_due(self) -> None:
        """Remove files that could not be removed before."""
        if time.monotonic() >= self._cleanup_at:
            self._cleanup_at = time.monotonic() + CLEANUP_SECONDS
            self._leftovers.remove_if_due()
            self._store.retry_removals()
            self._quarantine.retry_removals()
            self._unpersisted.discard_entries(())
            self._callers.write_if_due()
            self._host.record_if_due()

    def _reindex_if_due(self) -> None:
        """Read a few files of studies that the index does not have, while no other work waits."""
        if time.monotonic() < self._reindex_at:
            return
        pause = REINDEX_CHECK_SECONDS
        self._is_reindexing = False
        try:
            if self._reindexer.is_pending():
                self._is_reindexing = self._reindexer.run_step()
                # Another process reads. It may die.
                pause = 0.0 if self._is_reindexing else LEASE_SECONDS
        except (LedgerError, StoreError, OSError) as error:
            log.warning("reindexing_waits", error=str(error), remedy="see `ingest status`")
        self._reindex_at = time.monotonic() + pause

    def _raise_missing_alarm(self, error: StoreError) -> None:
        """Raise the alarm about a store or quarantine that is not mounted, if the error says so."""
        if isinstance(error, StoreMissingError):
            self._has_missing_alarm = True
            remedy = "mount it; nothing is lost, what is received waits in the spool"
            run_dir = self._config.run_dir
            raise_alarm(run_dir, STORE_MISSING_ALARM, str(error), remedy, severity=Severity.FAILING)

    def _clear_missing_alarm(self) -> None:
        if self._has_missing_alarm:
            self._has_missing_alarm = False
            clear_alarm(self._config.run_dir, STORE_MISSING_ALARM)


def split_into_batches(entries: Sequence[StreamEntry], size: int) -> list[Sequence[StreamEntry]]:
    """Split entries into batches. An entry that was delivered often gets its own, so that it harms no other.

    A second limit holds for the bytes that are copied before they are stored: out of segments, off the queue.
    """
    batches: list[list[StreamEntry]] = [[]]
    copied_bytes = 0
    for entry in entries:
        if entry.deliveries > SUSPECT_DELIVERIES:
            continue
        length = entry.length
        if len(batches[-1]) >= size or (batches[-1] and copied_bytes + length > BATCH_BYTES):
            batches.append([])
            copied_bytes = 0
        batches[-1].append(entry)
        copied_bytes += length
    alone = [[entry] for entry in entries if entry.deliveries > SUSPECT_DELIVERIES]
    return [batch for batch in (*batches, *alone) if batch]


def run(config: Config, stop: threading.Event) -> None:
    """Persist in this process until `stop` is set. The current batch is finished first.

    Raises:
        BootError: The configuration cannot be used.
        ConfigError: The configuration cannot be used.
    """
    with claim_worker_slot(config.run_dir, "persist") as consumer:
        PersistWorker(config, stop, consumer).run()


def main(config: Config, stop: threading.Event) -> int:
    """Run the child process until SIGTERM or SIGINT, and return its exit code.

    Raises:
        BootError: The configuration cannot be used.
        ConfigError: The configuration cannot be used.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    # A batch holds its files open, and the folders of their store keys.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    run(config, stop)
    return 0
