"""From the spool to the queue: references of what was promised, in batches of one command, after the answer.

One thread of each listener does it with a blocking client, so that neither Redis nor the sweep ever holds the
event loop. It shares the interpreter's lock with that loop, so that what it costs is taken from receiving:
under load it sleeps while a batch fills. What it loses (a crash, a Redis that was emptied) its own sweep puts
back from the spool.
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
from ingest.ext.store import Intake
from ingest.log import Seldom
from ingest.queue import sweep
from ingest.queue.client import CHUNK, SPOOLS_KEY, connect, data_key, mend_keys, persisted_key, stream_key
from ingest.queue.epoch import Witness
from ingest.queue.stream_append import AT_ONCE, Pusher, append
from ingest.spool import segment, segment_upkeep
from ingest.spool.abandoned_partials import ForgottenPartials
from ingest.spool.reference import Place, Reference
from ingest.spool.segment_upkeep import Upkeep
from ingest.spool.spool import Spool

if TYPE_CHECKING:
    from ingest.ledger import Ledger

BATCH: Final = AT_ONCE
WAITING_MAX: Final = 100_000
"""References kept in memory while Redis is away; the sweep finds the rest."""

IDLE_SECONDS: Final = 1.0
LINGER_SECONDS: Final = 0.005
"""After the first reference of a batch, how long others may join it: one round trip then serves all."""

LINGER_EACH_SECONDS: Final = 0.0004
LINGER_SECONDS_MAX: Final = 0.1
"""How much longer after a batch, for each reference that it had: waking up is what costs most, and under load
a listener that wakes the queue and its workers often takes the processor from its own answers."""

SWEEP_SECONDS: Final = 4.0
SWEEP_AGE_SECONDS: Final = 0.5
SWEEP_SHARE: Final = 20
"""A sweep that took t seconds is not repeated before 20 t have passed."""

WHOLE_SWEEP_SECONDS: Final = 60.0
"""How often everything is looked through although Redis cannot have forgotten anything."""

RECYCLE_SECONDS: Final = 0.5
"""How often segments are looked for that can be used again."""

LET_GO_SECONDS: Final = 0.5
"""How often the spool lets go of what workers elsewhere have persisted."""

PROOF_SECONDS: Final = 5.0
"""How long the ledger is not asked after it could not be."""

PROOF_ALARM_SECONDS: Final = 60.0
UNPROVED: Final = "spool_not_let_go"
"""The alarm for a ledger that this listener cannot ask (`redis` carrier)."""

FULL_SECONDS: Final = 0.05
UNNAMED_SECONDS: Final = 60
"""How long Redis keeps a data set that no reference names yet, from its last chunk on."""

BACK_OFF_SECONDS: Final = (0.05, 0.1, 0.2, 0.5, 1.0)

log = structlog.get_logger()


class Handoff:
    """The hand-off thread of one listener.

    Attributes:
        used: Bytes waiting in the whole spool when last counted (only where `[receive] spool_max_bytes` is
            set).
    """

    def __init__(self, config: Config, spool: Spool, intake: Intake) -> None:
        """Prepare; `intake` is where promises are taken from."""
        self._intake = intake
        self._config = config
        self._spool = spool
        self._waiting: deque[Place] = deque()
        self._in_hand: Sequence[Place] = ()
        self._linger = LINGER_SECONDS
        self._wake = threading.Condition()
        self._closing = False
        self._failures = 0
        self._sweep_at = self._whole_sweep_at = 0.0
        self._count_at = 0.0
        self._let_go_at = self._recycle_at = 0.0
        self._client = connect(config)
        self._pusher = Pusher(self._client, spool.id)
        self._forgotten = ForgottenPartials(spool.slot.path)
        self._witness = Witness(self._client, spool.id)
        self._delivers_damaged = config.queue.carrier == "spool"
        self._upkeep: Upkeep | None = None
        if spool.segments is not None:
            self._upkeep = Upkeep(
                spool.slot.path, spool.segments, damaged_are_delivered=self._delivers_damaged
            )
        self._thread: threading.Thread | None = None
        self._ledger: Ledger | None = None
        self._proof_at = 0.0
        self._proof_failures = 1  # an alarm of a former run may stand
        self._seldom = Seldom()
        self.used = 0

    def start(self) -> None:
        """Start the thread; after the fork."""
        self._thread = threads.guard("handoff", self._run, lambda: self._closing)

    def close(self, seconds: float) -> bool:
        """Hand off what waits, for at most `seconds`; the rest is for the next start's sweep.

        Returns:
            Whether the thread has ended. If not, it may still be at the slot's files.
        """
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is None:
            return True
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            self._take()
            if not self._in_hand and self._closing:
                return
            try:
                stuck = not self._turn()
            except Exception as error:  # without this thread nothing more would reach the queue
                self._failed(error)
                stuck = True
            if stuck and self._closing:
                return  # what is left stays in the spool

    def _turn(self) -> bool:
        """Push, count and sweep; whether the queue had room for the batch."""
        room = self._push()
        now = time.monotonic()
        if self._config.receive.spool_max_bytes and now >= self._count_at:
            self.used = sweep.usage(self._spool.root)
            self._count_at = now + 1.0
        if now >= self._recycle_at:
            if self._upkeep is not None:
                self._upkeep.turn()
            self._recycle_at = now + RECYCLE_SECONDS
        if self._config.queue.carrier == "redis" and now >= self._let_go_at:
            self._remove_persisted()
            self._let_go_at = now + LET_GO_SECONDS
        if now >= self._sweep_at and not self._closing:
            self._sweep()
            self._sweep_at = time.monotonic() + max(SWEEP_SECONDS, SWEEP_SHARE * (time.monotonic() - now))
        if self._failures:
            log.info("queue_back")
            self._failures = 0
        if not room:
            self._pause(FULL_SECONDS)
        return room

    def _take(self) -> None:
        """Wait for a batch and take it in hand, where it stays until it was pushed."""
        if self._in_hand:
            return
        waiting = self._waiting
        self._fetch()
        with self._wake:
            self._intake.sleeper = self._rouse
            self._fetch()  # said first, looked then
            if not waiting and not self._closing:
                self._wake.wait(IDLE_SECONDS)
            self._intake.sleeper = None
            self._fetch()
            if waiting and len(waiting) < BATCH and not self._closing:
                self._wake.wait(self._linger)
        self._fetch()
        count = min(BATCH, len(waiting))
        self._linger = min(LINGER_SECONDS + count * LINGER_EACH_SECONDS, LINGER_SECONDS_MAX)
        self._in_hand = [waiting.popleft() for _ in range(count)]

    def _fetch(self) -> None:
        promised = self._intake.take_promised()
        self._keep([Place(place) if isinstance(place, str) else Place(*place) for place in promised])

    def _keep(self, places: Sequence[Place]) -> None:
        """Keep in memory what there is room for; the rest is looked for soon."""
        room = max(0, WAITING_MAX - len(self._waiting))
        if len(places) > room:
            self._whole_sweep_at = 0.0
        self._waiting.extend(places[:room])

    def _rouse(self) -> None:
        with self._wake:
            self._wake.notify()

    def _push(self) -> bool:
        """Put what is in hand on the queue; False when the queue became full before the last of it."""
        if self._config.queue.carrier == "spool":
            if self._in_hand:
                self._pusher.push(self._in_hand)
                self._in_hand = ()
            return True
        stream, most = stream_key(self._spool.id), self._config.queue.carrier_max_waiting
        while self._in_hand:
            if self._client.xlen(stream) >= most:
                return False
            self._carry(self._in_hand[0])
            self._in_hand = self._in_hand[1:]
        return True

    def _carry(self, place: Place) -> None:
        """Put the file itself on the queue, then its reference (`redis` carrier).

        The data set gets its name together with its reference: it is there whole or not at all, also where
        two listeners carry the same file, which both found in a slot whose own listener is gone.
        """
        where, offset, _ = place
        key = data_key(self._spool.id, place.name)
        temporary = f"{key}:{uuid.uuid4().hex}"
        try:
            length = self._copy(place, temporary)
        except redis.RedisError:
            # A Redis that is full must not stay so because of what could not be put there.
            with contextlib.suppress(redis.RedisError):
                self._client.delete(temporary)
            raise
        except FileNotFoundError:
            return  # persisted already
        except OSError as error:
            # The others must not wait behind it. The sweep finds it again.
            log.error("spool_read_failed", where=where, error=error.strerror, remedy="look at its disk")
            return
        if not length:
            log.error("spool_file_empty", where=where, remedy="remove it; no data set was promised by it")
            return
        pipeline = self._client.pipeline(transaction=True)
        pipeline.lpop(temporary)
        pipeline.rename(temporary, key)
        pipeline.persist(key)
        append(pipeline, Reference("redis", self._spool.id, where, offset, length))
        pipeline.execute()

    def _copy(self, place: Place, key: str) -> int:
        """Put data on the queue chunk by chunk, behind an empty one; returns its length in bytes.

        What a crash leaves under `key` ends by itself, for which the key has to be there before the data.
        """
        length = 0
        with contextlib.closing(self._chunks(place)) as chunks:
            first = next(chunks, None)  # what is not there costs Redis nothing
            pipeline = self._client.pipeline(transaction=True)
            pipeline.rpush(key, b"")
            pipeline.expire(key, UNNAMED_SECONDS)
            pipeline.execute()
            while first is not None:
                # Not through a pipeline: when one fails, redis-py puts into words what was sent, which takes
                # long and has no place in a log.
                self._client.rpush(key, first)
                self._client.expire(key, UNNAMED_SECONDS)
                length += len(first)
                first = next(chunks, None)
        return length

    def _chunks(self, place: Place) -> Generator[bytes]:
        """The data of one place, in order.

        Raises:
            FileNotFoundError: It is not there, or not waited for any more.
            OSError: The disk is failing, or the data is not what was received.
        """
        if segment.PLACE.fullmatch(place.where):
            yield from _record(self._spool.root / place.where, place)
            return
        length, most = 0, place.length or sys.maxsize
        with (self._spool.root / place.where).open("rb", buffering=0) as file:
            file.seek(place.offset)
            while chunk := file.read(min(CHUNK, most - length)):
                length += len(chunk)
                yield chunk

    def _sweep(self) -> None:
        spool = self._spool
        self._client.sadd(SPOOLS_KEY, spool.id)
        removed = sweep.clear_orphans(spool.root, damaged_are_delivered=self._delivers_damaged)
        removed += self._forgotten.remove()
        self._tell()
        if removed:
            log.info("partial_files_removed", files=removed)
        if self._config.queue.carrier == "redis":
            self._remove_persisted()
        # Those whose listener is gone, and our own slot; every living listener minds its own.
        names = sweep.unowned(spool.root)
        for name in names:
            segment_upkeep.tell_stuck(self._config.run_dir, name, [])
        if self._may_miss_some():
            names.append(spool.slot.name)
        lost = sweep.missing(spool.root, spool.id, self._client, names, SWEEP_AGE_SECONDS)
        if lost and self._config.queue.carrier == "redis":
            # Off the stream and on the list of what is persisted are one step: looked at in that order.
            self._remove_persisted()
            lost = sweep.still_waiting(spool.root, lost)
        if lost:
            # What was put meanwhile is on neither list.
            self._fetch()
            waiting = {(place.where, place.offset) for place in (*self._in_hand, *self._waiting.copy())}
            lost = [place for place in lost if (place.where, place.offset) not in waiting]
        if lost:
            log.warning("references_put_back", references=len(lost))
            self._keep(lost)

    def _tell(self) -> None:
        """Raise or clear the alarms of segments."""
        run_dir, slot = self._config.run_dir, self._spool.slot.name
        segment_upkeep.tell_damage(self._spool.root, run_dir)
        segment_upkeep.tell_stuck(run_dir, slot, self._upkeep.stuck() if self._upkeep is not None else [])

    def _remove_persisted(self) -> None:
        """Let go of what the ledger holds (`redis` carrier); while the ledger is away, all stays."""
        if time.monotonic() < self._proof_at:
            return
        try:
            if self._ledger is None:
                from ingest.ledger import Ledger  # noqa: PLC0415 - with the carrier "spool" none is needed

                self._ledger = Ledger(self._config.ledger_url)
            sweep.remove_persisted(
                self._spool.root, self._spool.id, self._client, self._ledger.spool_references
            )
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

    def _may_miss_some(self) -> bool:
        """Whether something of our own slot may be on no list, as far as can be told without looking."""
        stands, now = self._config.queue.carrier == "spool" and self._witness.stands(), time.monotonic()
        if stands and now < self._whole_sweep_at:
            return False
        forgotten = not stands or self._whole_sweep_at == 0.0
        # Among what was forgotten, some may be too young to be looked at now.
        self._whole_sweep_at = now + (2 * SWEEP_AGE_SECONDS if forgotten else WHOLE_SWEEP_SECONDS)
        return True

    def _failed(self, error: Exception) -> None:
        if self._failures == 0 and not isinstance(error, (redis.RedisError, OSError)):
            log.exception("handoff_failed")
        elif self._failures == 0 and isinstance(error, OSError):
            log.warning(
                "spool_failing", error=str(error), remedy="see to the spool's disk; instances wait in it"
            )
        elif self._failures == 0:
            log.warning(
                "queue_away", error=str(error), remedy="receiving goes on; instances wait in the spool"
            )
        mend_keys(self._client, self._keys(), error)
        pause = BACK_OFF_SECONDS[min(self._failures, len(BACK_OFF_SECONDS) - 1)]
        self._failures += 1
        self._sweep_at = self._whole_sweep_at = 0.0  # what it forgot is looked for as soon as it is back
        self._pause(pause)

    def _keys(self) -> dict[str, str]:
        """The keys in Redis that this listener uses, and the type of each."""
        spool = self._spool.id
        return {
            SPOOLS_KEY: "set",
            stream_key(spool): "stream",
            persisted_key(spool): "list",
            self._witness.key: "string",
        }

    def _pause(self, seconds: float) -> None:
        with self._wake:
            self._wake.wait_for(lambda: self._closing, seconds)


def _record(path: Path, place: Place) -> Generator[bytes]:
    """The data of a record, in chunks; raises as `Handoff._chunks`."""
    with segment.Segment(path) as opened:
        found = opened.read(place.offset, place.length)
    if found is None:
        raise FileNotFoundError(errno.ENOENT, "no such record waits", str(path))
    record, data = found
    if not record.holds(data):
        raise OSError(errno.EIO, f"the record at {place.offset} is not what was received", str(path))
    for start in range(0, len(data), CHUNK):
        yield bytes(data[start : start + CHUNK])
