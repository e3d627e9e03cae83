"""From the spool to the queue: references of what was promised, in pipelined batches, after the answer.

One thread of each listener does it with a blocking client, so that neither Redis nor the sweep ever holds the
event loop. What it loses (a crash, a Redis that was emptied) its own sweep puts back from the spool.
"""

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Final

import redis
import structlog

from ingest.config.model import Config
from ingest.queue import CHUNK, SPOOLS_KEY, connect, data_key, stream_key
from ingest.spool import sweep
from ingest.spool.reference import Reference
from ingest.spool.spool import Spool

BATCH: Final = 256
WAITING_MAX: Final = 100_000
"""References kept in memory while Redis is away; the sweep finds the rest."""

SWEEP_SECONDS: Final = 4.0
SWEEP_AGE_SECONDS: Final = 0.5
SWEEP_SHARE: Final = 20
"""A sweep that took t seconds is not repeated before 20 t have passed."""

FULL_SECONDS: Final = 0.1
BACK_OFF_SECONDS: Final = (0.05, 0.1, 0.2, 0.5, 1.0)

log = structlog.get_logger()


class Handoff:
    """The hand-off thread of one listener.

    Attributes:
        used: Bytes waiting in the whole spool when last counted (only where `[receive] spool_max_bytes` is
            set).
    """

    def __init__(self, config: Config, spool: Spool) -> None:
        self._config = config
        self._spool = spool
        self._waiting: deque[str] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._failures = 0
        self._sweep_at = 0.0
        self._count_at = 0.0
        self._client = connect(config)
        self._thread = threading.Thread(target=self._run, name="handoff", daemon=True)
        self.used = 0

    def start(self) -> None:
        """Start the thread; after the fork."""
        self._thread.start()

    def put(self, where: str) -> None:
        """Have the entry at `where` (as the spool's commit gave it) put on the queue; never waits."""
        with self._wake:
            if len(self._waiting) < WAITING_MAX:
                self._waiting.append(where)
            self._wake.notify()

    def close(self, seconds: float) -> None:
        """Hand off what waits, for at most `seconds`; the rest is for the next start's sweep."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(seconds)

    def _run(self) -> None:
        while True:
            batch = self._peek()
            if not batch and self._closing:
                return
            try:
                self._turn(batch)
            except (redis.RedisError, OSError) as error:
                self._failed(error)
                if self._closing:
                    return

    def _turn(self, batch: Sequence[str]) -> None:
        if batch:
            self._push(batch)
        now = time.monotonic()
        if self._config.receive.spool_max_bytes and now >= self._count_at:
            self.used = sweep.usage(self._spool.root)
            self._count_at = now + 1.0
        if now >= self._sweep_at and not self._closing:
            self._sweep()
            self._sweep_at = time.monotonic() + max(SWEEP_SECONDS, SWEEP_SHARE * (time.monotonic() - now))
        if self._failures:
            log.info("queue_back")
            self._failures = 0

    def _peek(self) -> list[str]:
        """What is pushed next; it stays in front of the line until it was."""
        with self._wake:
            if not self._waiting and not self._closing:
                self._wake.wait(1.0)
            return [self._waiting[i] for i in range(min(BATCH, len(self._waiting)))]

    def _pushed(self, count: int) -> None:
        with self._wake:
            for _ in range(count):
                self._waiting.popleft()

    def _push(self, batch: Sequence[str]) -> None:
        if self._config.queue.carrier == "spool":
            sweep.push(self._client, [Reference("spool", self._spool.id, where) for where in batch])
            self._pushed(len(batch))
            return
        for where in batch:
            self._carry(where)
            self._pushed(1)

    def _carry(self, where: str) -> None:
        """Put the file itself on the queue, chunk by chunk, then its reference (`redis` carrier).

        A data set without a reference, left by a crash in between, is replaced by the next try of the same
        file.
        """
        while self._client.xlen(stream_key(self._spool.id)) >= self._config.queue.carrier_max_waiting:
            if self._closing:
                raise redis.BusyLoadingError("the queue is full; what is left stays in the spool")
            time.sleep(FULL_SECONDS)
        key = data_key(self._spool.id, where)
        try:
            file = (self._spool.root / where).open("rb", buffering=0)
        except FileNotFoundError:
            return  # persisted already
        with file:
            self._client.delete(key)
            while chunk := file.read(CHUNK):
                self._client.rpush(key, chunk)
        sweep.push(self._client, [Reference("redis", self._spool.id, where)])

    def _sweep(self) -> None:
        spool = self._spool
        self._client.sadd(SPOOLS_KEY, spool.id)
        removed = sweep.clear_orphans(spool.root)
        if removed:
            log.info("partial_files_removed", files=removed)
        if self._config.queue.carrier == "redis":
            sweep.remove_persisted(spool.root, spool.id, self._client)
        # Our own slot, and those whose listener is gone; every living listener minds its own.
        names = [spool.slot.name, *sweep.unowned(spool.root)]
        with self._wake:
            waiting = set(self._waiting)
        lost = sweep.missing(spool.root, spool.id, self._client, names, SWEEP_AGE_SECONDS)
        lost = [where for where in lost if where not in waiting]
        if lost:
            log.warning("references_put_back", references=len(lost))
            with self._wake:
                self._waiting.extend(lost[: WAITING_MAX - len(self._waiting)])

    def _failed(self, error: Exception) -> None:
        if self._failures == 0:
            log.warning(
                "queue_away", error=str(error), remedy="receiving goes on; instances wait in the spool"
            )
        pause = BACK_OFF_SECONDS[min(self._failures, len(BACK_OFF_SECONDS) - 1)]
        self._failures += 1
        self._sweep_at = 0.0  # what it forgot is looked for as soon as it is back
        with self._wake:
            if not self._closing:
                self._wake.wait_for(lambda: self._closing, pause)
