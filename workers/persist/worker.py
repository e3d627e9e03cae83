"""The persist worker: takes references off the streams, and puts what they point to into store and ledger.

Several run side by side, on one host or many. What one of them leaves, killed at any line, is found: its own
entries at its next start, those of others when nobody has touched them for a while.
"""

import contextlib
import itertools
import os
import resource
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, cast

import redis
import structlog

from ingest.alarms import (
    BOUNDED_ALARM,
    QUARANTINE_FULL,
    Severity,
    clear_alarm,
    clear_alarms_of_others,
    raise_alarm,
)
from ingest.clock import unix_ms
from ingest.config.model import Config
from ingest.errors import BootError, LedgerError, SpoolError, StoppedError, StoreError, StoreMissingError
from ingest.ledger import Ledger
from ingest.ledger.store_folders import QUARANTINE, STORE
from ingest.queue.client import SPOOLS_KEY, connect, mend_keys, persisted_key, stream_key
from ingest.queue.consumer import StreamConsumer, StreamEntry
from ingest.queue.wakeups import RQ_KEYS, Waker, drain_key
from ingest.routing.node_router import NodeRouter
from ingest.spool.reference import SPOOL_ID_PATTERN
from ingest.spool.spool import read_spool_id
from ingest.workers.backoff import Backoff, retry_with_backoff
from ingest.workers.fault_attribution import is_ours, is_shortage
from ingest.workers.persist.batch import Results, Tools, Work
from ingest.workers.persist.crash_marks import Deaths
from ingest.workers.persist.duplicates import DELIVERED_MAX
from ingest.workers.persist.ledger_agreement import StoreAgreement
from ingest.workers.persist.placement import Placer
from ingest.workers.persist.spool_leftovers import Leftovers
from ingest.workers.persist.unpersisted_alarm import Unpersisted
from ingest.workers.store.filesystem import Exclusion, FileStore
from ingest.workers.store.keys import Layout
from ingest.workers.worker_slot import slot

BATCH: Final = 256
CARRIED_BATCH: Final = 8
"""The same where the data sets ride on the queue, and lie in the store twice while a batch is at work."""

BATCH_BYTES: Final = 64 << 20
"""What a batch may copy before it stores it."""

PACE_SECONDS: Final = 0.05
"""After a batch that was not full the next is not begun sooner: a batch costs its syncs and its COMMIT,
however small it is. What comes after a pause is begun at once."""

BLOCK_MILLISECONDS: Final = 1000
CLAIM_SECONDS: Final = 3.0
TOUCH_SECONDS: Final = 3.0
TIDY_SECONDS: Final = 5.0
RECORD_SECONDS: Final = 2.0
"""What was placed is recorded after so long, even if the batch has more."""

SUSPECT: Final = 2
"""What was delivered more often than this is worked on alone."""

STREAMS_MAX: Final = 1_000
"""Spools of one node, at most: anybody who may write to Redis can announce more."""

MISSING: Final = "store_missing"
"""The alarm for a store or quarantine that is not mounted."""

NO_STREAM_SECONDS: Final = 0.2

SPARE_DESCRIPTORS: Final = 16
"""Descriptors that a batch leaves free: for what is compared, for connections that are made anew."""

log = structlog.get_logger()


class QuarantineBound:
    """`[receive] quarantine_max_bytes`, with its alarm."""

    def __init__(self, config: Config) -> None:
        self.max_bytes = config.receive.quarantine_max_bytes
        self._run_dir = config.run_dir

    def reached(self) -> None:
        """A copy was not kept: raise the alarm."""
        raise_alarm(
            self._run_dir,
            QUARANTINE_FULL,
            "the quarantine holds as many copies of refused instances as it may: new ones are not kept",
            "look at them with `ingest quarantine list`, drop them with `ingest quarantine drop`, or raise "
            "[receive] quarantine_max_bytes",
        )

    def kept(self) -> None:
        """A copy was kept: the alarm has ended, if it stood."""
        clear_alarm(self._run_dir, QUARANTINE_FULL)


class Persister:
    """One worker's loop."""

    def __init__(self, config: Config, stop: threading.Event, consumer: str) -> None:
        """Prepare; waits for nothing.

        Args:
            config: The configuration.
            stop: Ends the loop after the batch in hand.
            consumer: The name of this worker in the consumer group; the same again after a restart.

        Raises:
            BootError: The configuration cannot be used.
        """
        self._config = config
        self._stop = stop
        self._client = connect(config)
        self._spool: str | None = None
        self._known_streams: list[str] = []
        carriers = {"spool", config.queue.carrier}
        self._consumer = StreamConsumer(self._client, consumer, self._streams, carriers)
        self._waker = Waker(self._client)
        self._queue_backoff = Backoff(stop, "queue_away", "what is received waits in the spool")
        self._spool_backoff = Backoff(stop, "spool_away", "mount it, or see [receive] spool_dir")
        self._store_backoff = Backoff(stop, "store_away", "what is received waits in the spool")
        self._ledger_backoff = Backoff(
            stop,
            "ledger_away",
            "what is received waits in the spool",
            between_attempts=lambda: self._touch(forgive=True),
        )
        self._host_backoff = Backoff(
            stop,
            "persisting_fails",
            "what is received waits in the spool; see to its disk, memory and limit of open files",
        )
        try:
            self._layout, self._router = Layout(config.store.path), NodeRouter(config, logs=True)
            self._ledger = Ledger(config.ledger_url)
            self._agreement = StoreAgreement(config.store_root, config.run_dir, self._ledger)
        except (StoreError, LedgerError) as error:
            raise BootError(str(error)) from error
        self._batch = self._batch_max = CARRIED_BATCH if config.queue.carrier == "redis" else BATCH
        # What is still to be said to Redis; none of it is lost with a connection.
        self._done: list[StreamEntry] = []
        self._lost: list[StreamEntry] = []
        self._forgive: list[StreamEntry] = []
        self._wake: dict[str, None] = {}
        self._leftovers = Leftovers(config.spool_dir)
        self._unpersisted = Unpersisted(config.run_dir)
        self._in_hand: Sequence[StreamEntry] = ()
        self._current: StreamEntry | None = None
        self._touched_at = self._recorded_at = self._began_at = self._claim_at = self._fresh_at = 0.0
        self._tidy_at = 0.0
        self._own = True
        self._unremembered: dict[str, str] = {}
        self._is_missing = True  # a worker that died may have left the alarm

    def run(self) -> None:
        """Persist until told to stop.

        Raises:
            ConfigError: As `__init__`.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(self._client.close)
            stack.callback(self._ledger.close)
            with contextlib.suppress(StoppedError):
                retry_with_backoff(self._ledger_backoff, self._ledger.migrate)
                names = [destination.name for destination in self._config.destinations]
                clear_alarms_of_others(self._config.run_dir, BOUNDED_ALARM, names)
                self._store = self._opened(
                    stack, STORE, self._config.store_root, self._ledger.create_removal_lock()
                )
                self._quarantine = self._opened(stack, QUARANTINE, self._config.quarantine_dir)
                with contextlib.suppress(LedgerError):  # seen again with what is stored next
                    self._agreement.compare()
                self._tools = self._make_tools(self._quarantine)
                while not self._stop.is_set():
                    self._turn()
            self._agreement.mark(at_once=True)
            with contextlib.suppress(redis.RedisError):
                self._settle()

    def _turn(self) -> None:
        try:
            self._tidy()
            self._settle()
            self._agreement.mark()
            entries = self._next()
            self._queue_backoff.reset()
            self._spool_backoff.reset()
            for share in _shares(entries, self._room()):
                self._work(share)
                if self._stop.is_set():
                    return
        except redis.RedisError as error:
            self._own = True
            self._consumer.restart_own()
            mend_keys(self._client, self._keys(), error)
            self._queue_backoff.wait_after(error)
        except SpoolError as error:
            self._spool_backoff.wait_after(error)
        except (OSError, MemoryError) as error:
            self._host_backoff.wait_after(error)

    def _tidy(self) -> None:
        """Remove what could not be removed before, now and then."""
        if time.monotonic() >= self._tidy_at:
            self._tidy_at = time.monotonic() + TIDY_SECONDS
            self._leftovers.retry()
            self._store.tidy()
            self._quarantine.tidy()
            self._unpersisted.ended(())

    def _next(self) -> list[StreamEntry]:
        """What to do next: what a former run left, what others left, what is new."""
        if self._own:
            entries = self._consumer.read_own(self._batch)
            if entries:
                return entries
            self._own = False
        if time.monotonic() >= self._claim_at:
            entries = self._consumer.claim_abandoned(self._batch)
            if entries:
                return entries
            self._consumer.redeliver_orphans()
            self._claim_at = time.monotonic() + CLAIM_SECONDS
        if not self._consumer.find_streams():
            # No listener has made its spool yet.
            time.sleep(NO_STREAM_SECONDS)
            return []
        time.sleep(max(0.0, self._fresh_at - time.monotonic()))
        entries = self._consumer.read_new(self._batch, BLOCK_MILLISECONDS)
        if entries and len(entries) < self._batch:
            self._fresh_at = time.monotonic() + PACE_SECONDS
        return entries

    def _room(self) -> int:
        """How many entries a batch may have, for the descriptors that are left to this process."""
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if most == resource.RLIM_INFINITY or most > 16 * BATCH:
            return self._batch
        free = most - len(os.listdir("/proc/self/fd")) - SPARE_DESCRIPTORS
        # Each holds its file, and the folders that it goes to.
        return max(1, min(self._batch, free // (2 + self._config.store.path.count("/"))))

    def _work(self, entries: Sequence[StreamEntry]) -> None:
        self._in_hand = entries
        self._touched_at = self._recorded_at = self._began_at = time.monotonic()
        work = Work(self._tools)
        alone: Sequence[StreamEntry] = ()
        try:
            work.persist(entries)
        except (redis.RedisError, StoppedError):
            self._forgive += _left(entries, work.results)
            raise
        except Exception as error:
            alone = self._broken_off(_left(entries, work.results), work.results, error)
        else:
            self._judge(work.results, full=len(entries) >= self._room())
        finally:
            self._in_hand = ()
            self._take(work.results)
        self._settle()
        for entry in alone:
            self._work([entry])
            if self._stop.is_set():
                return

    def _broken_off(
        self, left: Sequence[StreamEntry], results: Results, error: Exception
    ) -> Sequence[StreamEntry]:
        """Judge a batch that broke off; returns what is to be tried again at once, each alone."""
        if isinstance(error, StoreError) or is_ours(error):
            self._forgive += left
            self._unpersisted.failed(left, error)
            self._wait_for(error)
            return ()
        if len(left) > 1:
            log.error("batch_not_persisted", entries=len(left), exc_info=error)
            return left
        for entry in left:
            results.failed[entry.id] = f"{type(error).__name__}: {error}"
            log.error("not_persisted", where=entry.reference.path, attempt=entry.deliveries, exc_info=error)
        return ()

    def _judge(self, results: Results, *, full: bool) -> None:
        """Wait a little where trouble kept some back, so that the disk is not asked without end."""
        self._forgive += results.away
        if results.error is not None:
            self._unpersisted.failed(results.away, results.error)
            self._wait_for(results.error)
        elif results.done:
            self._store_backoff.reset()
            self._host_backoff.reset()
            self._tell(None)
            self._remember_folders()
            self._agreement.stored()
            if full:
                self._batch = min(self._batch_max, 2 * self._batch)

    def _wait_for(self, error: Exception) -> None:
        """Wait a little; the next batches are smaller: they need less, and fail together with fewer."""
        self._batch = max(1, self._batch // 2)
        if is_shortage(error) or not isinstance(error, StoreError):
            self._host_backoff.wait_after(error)
        else:
            self._tell(error)
            self._store_backoff.wait_after(error)

    def _take(self, results: Results) -> None:
        self._done += results.done
        self._lost += results.lost
        self._unpersisted.ended((*results.done, *results.lost))
        self._wake.update(results.wake)

    def _settle(self) -> None:
        """Tell Redis what is done, what is not to blame, and whom to wake.

        Raises:
            redis.RedisError: Redis is away; what was not said is said later.
        """
        if self._done:
            self._consumer.acknowledge(self._done)
            self._done = []
        if self._lost:
            self._consumer.discard(self._lost)
            self._lost = []
        if self._forgive:
            self._consumer.renew_claims(self._forgive, forgives=True)
            self._forgive = []
        for destination in list(self._wake):
            self._waker.send(destination)
            del self._wake[destination]

    def _touch(self, *, forgive: bool = False) -> None:
        """Keep what is in hand from being taken for abandoned, as often as is needed."""
        now = time.monotonic()
        if now - self._touched_at < TOUCH_SECONDS or not self._in_hand:
            return
        self._touched_at = now
        try:
            self._consumer.renew_claims(self._in_hand, forgives=forgive)
            if self._current is not None:
                # It has been worked on for seconds: whatever ends this worker now, reading it did not.
                self._consumer.renew_claims([self._current], forgives=True)
        except redis.RedisError:
            # Others may take it then; twice does no harm.
            self._touched_at = now + 10 * TOUCH_SECONDS

    def _enough(self) -> bool:
        self._touch()
        if time.monotonic() - self._recorded_at < RECORD_SECONDS:
            return False
        self._recorded_at = time.monotonic()
        return True

    def _hurried(self) -> bool:
        """Whether the worker was told to stop, and its batch takes longer than batches mostly do."""
        return self._stop.is_set() and time.monotonic() - self._began_at > RECORD_SECONDS

    def _streams(self) -> list[str]:
        self._spool = read_spool_id(self._config.spool_dir)
        streams = {stream_key(self._spool)} if self._spool else set()
        if self._config.queue.carrier == "redis":
            streams |= self._streams_of_others()
        self._known_streams = sorted(streams)
        return self._known_streams

    def _streams_of_others(self) -> set[str]:
        """The streams that listeners elsewhere have announced, and that there are."""
        names = cast("set[bytes]", self._client.smembers(SPOOLS_KEY))
        spools = [name.decode("ascii", "replace") for name in names]
        streams = sorted(stream_key(spool) for spool in spools if SPOOL_ID_PATTERN.fullmatch(spool))
        pipeline = self._client.pipeline(transaction=False)
        for stream in streams:
            pipeline.exists(stream)
        there = pipeline.execute()
        return set(itertools.islice(itertools.compress(streams, there), STREAMS_MAX))

    def _keys(self) -> dict[str, str]:
        """The keys in Redis that persist workers use, and the type of each."""
        kinds = {**RQ_KEYS, SPOOLS_KEY: "set", **dict.fromkeys(self._known_streams, "stream")}
        kinds |= {
            persisted_key(stream.removeprefix(stream_key(""))): "list" for stream in self._known_streams
        }
        return kinds | {drain_key(destination.name): "string" for destination in self._config.destinations}

    def _opened(
        self, stack: contextlib.ExitStack, kind: str, root: Path, exclusion: Exclusion | None = None
    ) -> FileStore:
        durable = self._config.receive.durability == "fsync"
        store = FileStore(root, durable=durable, progress=self._touch, exclusion=exclusion)
        retry_with_backoff(self._store_backoff, self._prepare, kind, store)
        stack.callback(store.close)
        return store

    def _prepare(self, kind: str, store: FileStore) -> None:
        known = retry_with_backoff(self._ledger_backoff, self._ledger.store_folders.find_folder, kind)
        try:
            identity = store.prepare(known)
        except StoreError as error:
            self._tell(error)
            raise
        if kind == QUARANTINE:  # the last of them
            self._tell(None)
        if known.id != identity:
            self._unremembered[kind] = identity

    def _remember_folders(self) -> None:
        """Have the ledger remember new ids; once it has taken a batch, so that it keeps nothing back."""
        while self._unremembered:
            kind, identity = self._unremembered.popitem()
            retry_with_backoff(self._ledger_backoff, self._ledger.store_folders.record_folder, kind, identity)

    def _tell(self, error: StoreError | None) -> None:
        """Have people hear of a store that is not mounted, and no longer once there is no error."""
        if isinstance(error, StoreMissingError):
            self._is_missing = True
            remedy = "mount it; nothing is lost, what is received waits in the spool"
            raise_alarm(self._config.run_dir, MISSING, str(error), remedy, severity=Severity.FAILING)
        elif error is None and self._is_missing:
            self._is_missing = False
            clear_alarm(self._config.run_dir, MISSING)

    def _make_tools(self, quarantine: FileStore) -> Tools:
        placer = Placer(
            store=self._store,
            quarantine=quarantine,
            ledger=self._ledger,
            ledger_backoff=self._ledger_backoff,
            layout=self._layout,
            policy=self._config.store.duplicates,
            router=self._router,
            now=unix_ms,
            progress=self._touch,
            bound=QuarantineBound(self._config),
            too_many=self._alarm_too_many,
        )
        return Tools(
            spool_dir=self._config.spool_dir,
            spool=lambda: self._spool,
            synced=self._config.receive.durability == "fsync",
            client=self._client,
            store=self._store,
            placer=placer,
            ledger=self._ledger,
            ledger_backoff=self._ledger_backoff,
            leftovers=self._leftovers,
            deaths=Deaths(self._config.run_dir),
            enough=self._enough,
            current=self._set_current,
            stopping=self._hurried,
        )

    def _alarm_too_many(self, destination: str, uid: str) -> None:
        raise_alarm(
            self._config.run_dir,
            f"{BOUNDED_ALARM}.{destination}",
            f"{destination} was sent {DELIVERED_MAX} objects of the SOP instance UID {uid} within an hour; "
            "further ones are not sent there, since images may be going round in a circle",
            f"see docs/explanation/loops.md; then `ingest deliver --to {destination} --sop {uid}` sends what "
            "was kept back",
        )

    def _set_current(self, entry: StreamEntry | None) -> None:
        self._current = entry


def _left(entries: Sequence[StreamEntry], results: Results) -> list[StreamEntry]:
    """Those of a batch of which nothing is known that would let go of them."""
    known = {entry.id for entry in (*results.done, *results.lost)} | results.failed.keys()
    return [entry for entry in entries if entry.id not in known]


def _shares(entries: Sequence[StreamEntry], size: int) -> list[Sequence[StreamEntry]]:
    """Batches: many at once of what was not delivered often; each other alone, so that only it does harm.

    What is copied before it is stored (out of segments, off the queue) has a bound in bytes, too.
    """
    shares: list[list[StreamEntry]] = [[]]
    copied = 0
    for entry in entries:
        if entry.deliveries > SUSPECT:
            continue
        length = entry.reference.length
        if len(shares[-1]) >= size or (shares[-1] and copied + length > BATCH_BYTES):
            shares.append([])
            copied = 0
        shares[-1].append(entry)
        copied += length
    alone = [[entry] for entry in entries if entry.deliveries > SUSPECT]
    return [share for share in (*shares, *alone) if share]


def run(config: Config, stop: threading.Event) -> None:
    """Persist in this process until `stop` is set; what is in hand then is finished first.

    Raises:
        BootError: The configuration cannot be used.
        ConfigError: Likewise.
    """
    with slot(config.run_dir, "persist") as consumer:
        Persister(config, stop, consumer).run()


def main(config: Config, stop: threading.Event) -> int:
    """StreamEntry point of the child process: TERM and INT end it in good order; returns the exit code.

    Raises:
        BootError: As `run`.
        ConfigError: As `run`.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    # A batch holds its files open, and the folders that they go to.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    run(config, stop)
    return 0
