"""The forward worker: RQ jobs wake it, of which it reads the ids alone (`ingest.workers.forward.rq_worker`).

RQ starts work and remembers nothing: attempts, times and leases are in the ledger. A second thread looks
there for what is due and wakes its destinations, so that an emptied Redis and a lost job cost seconds.
"""

import contextlib
import itertools
import logging
import os
import random
import signal
import socket
import threading
from collections.abc import Mapping, Sequence
from typing import Final

import redis
import structlog

from ingest import threads
from ingest.clock import unix_ms
from ingest.config.model import Config
from ingest.errors import BootError, IngestError, LedgerError, StoppedError
from ingest.filesystem.locks import Owner
from ingest.ledger import Ledger
from ingest.queue.client import connect, remove_foreign_keys
from ingest.queue.wakeups import (
    JOB_WAITS,
    RQ_KEYS,
    RQ_QUEUE_KEY,
    WAKE_UP_MILLISECONDS,
    WakeUps,
    drain_key,
    hold_key,
    send_wake_up,
)
from ingest.requestor.transport import Remote
from ingest.tls.observed_certificates import ObservedCertificates
from ingest.workers.backoff import Backoff, retry_with_backoff
from ingest.workers.forward.circuit import asked_anew
from ingest.workers.forward.destination_slots import NO_END, longest_hold_ms, place_key
from ingest.workers.forward.drain import Drain, Tools
from ingest.workers.forward.leases import LEASE_MILLISECONDS
from ingest.workers.forward.rq_worker import Worker
from ingest.workers.store.filesystem import FileStore

WAKE_SECONDS: Final = 2.0
REDIS_SECONDS: Final = 5.0

log = structlog.get_logger()


def places(config: Config) -> int:
    """How many workers one destination may keep busy: where there are others, one less than all.

    A remote that takes associations and never answers would otherwise hold every worker up to its deadline.
    """
    workers = max(1, config.workers.forward)
    return workers if len(config.destinations) < 2 else max(1, workers - 1)


class Forwarder:
    """What one forward worker is made of; made after the fork."""

    def __init__(
        self, config: Config, stop: threading.Event, remotes: Mapping[str, Remote], name: str
    ) -> None:
        """Prepare; waits for nothing.

        Args:
            config: The configuration.
            stop: Ends the worker after the instance on its way.
            remotes: Its destinations.
            name: Of the worker; unique.

        Raises:
            BootError: The ledger's URL cannot be used.
        """
        self.stop = stop
        self.name = name
        self._started_ms = unix_ms()
        self.destinations = {destination.name: destination for destination in config.destinations}
        self.remotes = remotes
        try:
            self.ledger = Ledger(config.ledger_url)
        except LedgerError as error:
            raise BootError(str(error)) from error
        self.client = connect(config, timeout=REDIS_SECONDS)
        self.waker = WakeUps(self.client)
        self.tools = Tools(
            ledger=self.ledger,
            store=FileStore(config.store_root),
            sightings=ObservedCertificates(config.run_dir),
            client=self.client,
            stopping=stop.is_set,
            rng=random.Random().random,  # noqa: S311 - jitter
            others=lambda name: [other for other in self.destinations if other != name],
            places=places(config),
        )

    def keys(self) -> dict[str, str]:
        """The keys in Redis that this worker and its like use, and the type of each."""
        found = dict(RQ_KEYS)
        for name, destination in self.destinations.items():
            found |= {drain_key(name): "string", hold_key(name): "string"}
            found |= {place_key(name, number): "string" for number in range(destination.associations)}
        return found

    def drain(self, name: str) -> None:
        """Drain a destination, and wake it again if there is more; what fails is left to `LedgerWatch`."""
        destination = self.destinations.get(name)
        if destination is None:
            log.warning("destination_unknown", destination=name)
            return
        try:
            if Drain(self.tools, destination, self.remotes[name], self.name).run():
                self.waker.send(name)
        except (redis.RedisError, IngestError, OSError, MemoryError) as error:
            log.warning("drain_failed", destination=name, error=str(error))
            if isinstance(error, redis.RedisError):
                remove_foreign_keys(self.client, self.keys(), error)
        except Exception:
            log.exception("drain_failed", destination=name)

    def ask_anew(self) -> None:
        """Have destinations that are left alone asked at once, for their settings may have changed.

        To be called at the start. What another worker of this configuration has found out meanwhile stays.
        """
        for name in self.destinations:
            try:
                changed = self.ledger.circuits.change_existing_circuit(
                    name, lambda found: asked_anew(found, self._started_ms)
                )
                if changed:
                    send_wake_up(self.client, name)
            except (redis.RedisError, LedgerError) as error:
                log.warning("destination_not_asked_anew", destination=name, error=str(error))

    def close(self) -> None:
        """Close the connections to ledger and Redis."""
        self.ledger.close()
        self.client.close()


class LedgerWatch:
    """Wakes what the ledger has due, every two seconds: what Redis lost, what is to be tried again by now."""

    def __init__(self, forwarder: Forwarder) -> None:
        """Prepare; `start` starts its thread."""
        self._forwarder = forwarder
        self._queue = Backoff(forwarder.stop, "queue_away", "deliveries wait in the ledger")
        self._ledger = Backoff(forwarder.stop, "ledger_away", "deliveries wait")
        self._suspects: set[str] = set()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Watch from now on, until the forwarder is to stop."""
        self._thread = threads.start_guarded("ledger-watch", self._run, self._forwarder.stop.is_set)

    def join(self) -> None:
        """Wait until it has ended."""
        if self._thread is not None:
            self._thread.join(2 * REDIS_SECONDS)

    def _run(self) -> None:
        while True:
            try:
                self._bound_waits()
                due = self._forwarder.ledger.deliveries.find_due_destinations(
                    self._forwarder.ledger.unix_ms()
                )
                self._ledger.reset()
                self._wake([name for name in due if name in self._forwarder.destinations])
                self._queue.reset()
            except LedgerError as error:
                self._ledger.wait_after(error)
            except redis.RedisError as error:
                remove_foreign_keys(self._forwarder.client, self._forwarder.keys(), error)
                self._queue.wait_after(error)
            except Exception as error:
                # Whatever it is, deliveries wait for this thread; `wait_after` waits longer each time.
                log.error("ledger_watch_failed", exc_info=error)
                self._ledger.wait_after(error)
            if self._forwarder.stop.wait(WAKE_SECONDS):
                return

    def _bound_waits(self) -> None:
        """Whatever the clocks say: nothing waits for longer than its own maximum."""
        ledger = self._forwarder.ledger
        for name, destination in self._forwarder.destinations.items():
            longest = round(destination.retry_max_seconds * 1000)
            count = ledger.deliveries.shorten_waits(name, ledger.unix_ms(), LEASE_MILLISECONDS, longest)
            if count:
                log.warning(
                    "waits_bounded", destination=name, deliveries=count, cause="the clock was set back"
                )

    def _wake(self, due: Sequence[str]) -> None:
        not_woken = {name for name in due if not self._forwarder.waker.send(name)}
        lost = {name for name in not_woken if self._job_is_missing(name)}
        for name in not_woken:
            # A worker was killed with the job in its hands; the mark it left would last for half a minute. Or
            # the mark lasts longer than any of ours: the clock of Redis went back, or somebody else made it.
            if (name in lost and name in self._suspects) or self._mark_is_endless(name):
                self._forwarder.client.unlink(drain_key(name))
                self._forwarder.waker.send(name)
        self._suspects = lost

    def _job_is_missing(self, name: str) -> bool:
        client = self._forwarder.client
        return client.get(drain_key(name)) == JOB_WAITS and client.llen(RQ_QUEUE_KEY) == 0

    def _mark_is_endless(self, name: str) -> bool:
        longest = longest_hold_ms(self._forwarder.destinations[name])
        left = self._forwarder.client.pttl(drain_key(name))
        return left == NO_END or left > max(longest, WAKE_UP_MILLISECONDS)


def _work(forwarder: Forwarder, config: Config) -> None:
    """Take wake-ups until told to stop; a worker of RQ's ends when Redis is away, and another one begins."""
    backoff = Backoff(forwarder.stop, "queue_away", "deliveries wait in the ledger")
    with contextlib.closing(connect(config, timeout=REDIS_SECONDS)) as client:
        for number in itertools.count():
            # RQ refuses the name of a worker that could not say that it had ended.
            name = f"{forwarder.name}-{number}" if number else forwarder.name
            try:
                Worker(name, client, forwarder.stop, forwarder.destinations).run(
                    forwarder.drain, backoff.reset
                )
            except (redis.RedisError, OSError, ValueError) as error:
                if forwarder.stop.is_set():
                    return
                remove_foreign_keys(client, forwarder.keys() | {f"rq:worker:{name}": "hash"}, error)
                backoff.wait_after(error)
            else:
                return


def run(config: Config, stop: threading.Event, remotes: Mapping[str, Remote]) -> None:
    """Forward in this process until `stop` is set; the instance on its way is finished first.

    Raises:
        BootError: The configuration cannot be used.
    """
    for name in ("rq.worker", "rq.job"):
        logging.getLogger(name).setLevel(
            logging.CRITICAL
        )  # it would report every job, and Redis once a second
    name = f"forward-{socket.gethostname()}-{os.getpid()}-{Owner.current()}"
    forwarder = Forwarder(config, stop, remotes, name)
    try:
        with contextlib.suppress(StoppedError):
            retry_with_backoff(Backoff(stop, "ledger_away", "deliveries wait"), forwarder.ledger.migrate)
            forwarder.ask_anew()
            watch = LedgerWatch(forwarder)
            watch.start()
            _work(forwarder, config)
            watch.join()
    finally:
        forwarder.close()


def main(config: Config, stop: threading.Event, remotes: Mapping[str, Remote]) -> int:
    """Entry point of the child process: TERM and INT end it in good order; returns the exit code.

    Raises:
        BootError: As `run`.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    run(config, stop, remotes)
    return 0
