"""The forward worker: drains destinations when wake-ups arrive, or when the ledger has due deliveries.

INVARIANT 2: RQ starts work and remembers nothing. Attempts, times and leases are in the ledger. A second
thread (`LedgerWatch`) looks for due deliveries there and wakes their destinations. A Redis that was emptied,
or a lost job, therefore delays a delivery by seconds.
"""

import contextlib
import itertools
import logging
import os
import random
import signal
import socket
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

import redis
import structlog

from ingest import threads
from ingest.audit.alerts import SecurityAlerts
from ingest.clock import unix_ms
from ingest.config.model import Config
from ingest.errors import BootError, IngestError, LedgerError, StoppedError
from ingest.filesystem.locks import Owner
from ingest.ledger import Circuit, Ledger
from ingest.ledger.announcements import build_announcer
from ingest.ledger.group_choice import make_group_terms
from ingest.outgoing.plan import OutgoingPlan
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
from ingest.workers.forward.circuit import PermittedAction, expedite_probe, find_permitted_action
from ingest.workers.forward.commitment_questions import CommitmentAsker
from ingest.workers.forward.commitment_reports import CommitmentReporter
from ingest.workers.forward.destination_slots import NO_EXPIRY, longest_hold_ms, slot_key
from ingest.workers.forward.drain import DestinationDrain, ForwardResources
from ingest.workers.forward.groups import find_next_members
from ingest.workers.forward.leases import LEASE_MS
from ingest.workers.forward.rq_worker import WakeupConsumer
from ingest.workers.host_recorder import HostRecorder
from ingest.workers.span_export import make_exporter
from ingest.workers.store.filesystem import FileStore

WATCH_SECONDS: Final = 2.0
"""Pause between two looks for due deliveries in the ledger."""

REDIS_SECONDS: Final = 5.0

log = structlog.get_logger()


def count_slots(config: Config) -> int:
    """Return how many workers one destination may keep busy: all but one, if there are several destinations.

    Otherwise a remote that accepts associations and never responds could hold all workers until its deadline.
    """
    workers = max(1, config.workers.forward)
    return workers if len(config.destinations) < 2 else max(1, workers - 1)


def expects_urgent(config: Config) -> bool:
    """Return whether routes or peers may make urgent deliveries."""
    of_routes = any(route.priority == "urgent" for route in config.routes)
    return of_routes or any(peer.allow_priority for peer in config.peers)


class ForwardWorker:
    """The connections and drains of one forward worker. Created after the fork."""

    def __init__(
        self,
        config: Config,
        stop: threading.Event,
        remotes: Mapping[str, Remote],
        name: str,
        plans: Mapping[str, OutgoingPlan] | None = None,
    ) -> None:
        """Prepare without waiting for any service.

        Args:
            config: The configuration.
            stop: Ends the worker after the instance in flight.
            remotes: Remotes of the destinations, by name.
            name: Unique name of the worker.
            plans: Changes of data sets, by destination; None changes nothing.

        Raises:
            BootError: The URL of the ledger cannot be used.
        """
        self.stop = stop
        self.name = name
        self._started_ms = unix_ms()
        self._give_up_ms = round(config.commitment.give_up_hours * 3_600_000)
        self.destinations = {destination.name: destination for destination in config.destinations}
        self.groups = {group.name: make_group_terms(group) for group in config.groups}
        self.remotes = remotes
        try:
            self.ledger = Ledger(
                config.ledger_url, is_audited=config.records_transfers, announcer=build_announcer(config)
            )
        except LedgerError as error:
            raise BootError(str(error)) from error
        self.host = HostRecorder(config, self.ledger, "forward")
        self.client = connect(config, timeout=REDIS_SECONDS)
        self.wake_ups = WakeUps(self.client)
        self.resources = ForwardResources(
            ledger=self.ledger,
            store=FileStore(config.store_root),
            observed_certificates=ObservedCertificates(config.run_dir),
            security_alerts=SecurityAlerts(config),
            client=self.client,
            is_stopping=stop.is_set,
            rng=random.Random().random,  # noqa: S311 - jitter
            other_destinations=self._list_others,
            slots=count_slots(config),
            spans=make_exporter(config, "forward"),
            groups={
                name: [each for each in self.groups.values() if name in each.members]
                for name in self.destinations
            },
            find_closed=self._find_closed,
            plans=plans or {},
            expects_urgent=expects_urgent(config),
        )

    def redis_keys(self) -> dict[str, str]:
        """Return the Redis keys that forward workers use, with the type of each."""
        keys = dict(RQ_KEYS)
        for name, destination in self.destinations.items():
            keys |= {drain_key(name): "string", hold_key(name): "string"}
            keys |= {slot_key(name, number): "string" for number in range(destination.associations)}
        return keys | {drain_key(name): "string" for name in self.groups}

    def _find_closed(self, names: Collection[str], unix_ms: int) -> frozenset[str]:
        """Return those destinations whose hours are over."""
        return frozenset(name for name in names if self.destinations[name].find_opening_ms(unix_ms) > unix_ms)

    def _list_others(self, name: str) -> list[str]:
        """Return the other destinations, and the groups that a destination is no member of."""
        groups = [group.name for group in self.groups.values() if name not in group.members]
        return [*(other for other in self.destinations if other != name), *groups]

    def wake_members(self, name: str) -> None:
        """Wake the members of a group that a delivery of it may go to now. `LedgerWatch` wakes all others."""
        try:
            self.client.delete(drain_key(name))
            circuits = self.ledger.circuits.read_circuits()
            closed = self._find_closed(self.groups[name].members, self.ledger.unix_ms())
            for member in find_next_members(self.groups[name], circuits, closed):
                self.wake_ups.send(member)
        except (redis.RedisError, LedgerError) as error:
            log.warning("group_not_woken", group=name, error=str(error))

    def drain_destination(self, name: str) -> None:
        """Drain a destination, and wake it again if more is due. `LedgerWatch` retries after a failure."""
        if name in self.groups:
            self.wake_members(name)
            return
        destination = self.destinations.get(name)
        if destination is None:
            log.warning("destination_unknown", destination=name)
            return
        try:
            has_more = DestinationDrain(self.resources, destination, self.remotes[name], self.name).run()
            CommitmentReporter(
                self.resources, destination, self.remotes[name], self._give_up_ms
            ).send_due_reports()
            if destination.commitment:
                CommitmentAsker(self.resources, destination, self.remotes[name]).ask_for_delivered()
            if has_more:
                self.wake_ups.send(name)
        except (redis.RedisError, IngestError, OSError, MemoryError) as error:
            log.warning("drain_failed", destination=name, error=str(error))
            if isinstance(error, redis.RedisError):
                remove_foreign_keys(self.client, self.redis_keys(), error)
        except Exception:
            log.exception("drain_failed", destination=name)

    def expedite_probes(self) -> None:
        """Have destinations with an open circuit probed at once, because their settings may have changed.

        Called once at the start. Failures that another worker of this configuration has recorded stay.
        """
        for name in self.destinations:
            try:
                is_changed = self.ledger.circuits.change_existing_circuit(
                    name, lambda found: expedite_probe(found, self._started_ms)
                )
                if is_changed:
                    send_wake_up(self.client, name)
            except (redis.RedisError, LedgerError) as error:
                log.warning("destination_not_asked_anew", destination=name, error=str(error))

    def close(self) -> None:
        """Send the spans that wait, and close the connections to ledger and Redis."""
        if self.resources.spans is not None:
            self.resources.spans.close()
        if self.resources.security_alerts is not None:
            self.resources.security_alerts.close()
        for plan in self.resources.plans.values():
            plan.close()
        self.ledger.close()
        self.client.close()


class LedgerWatch:
    """A thread that wakes destinations with due deliveries in the ledger, every `WATCH_SECONDS`."""

    def __init__(self, worker: ForwardWorker) -> None:
        """Prepare. `start` starts the thread."""
        self._worker = worker
        self._queue_backoff = Backoff(worker.stop, "queue_away", "deliveries wait in the ledger")
        self._ledger_backoff = Backoff(worker.stop, "ledger_away", "deliveries wait")
        self._without_job: set[str] = set()
        self._committing = [name for name, each in worker.destinations.items() if each.commitment]
        self._thread: threading.Thread | None = None
        self._refusal: BootError | None = None

    def start(self) -> None:
        """Start the thread. It ends when the worker is asked to stop."""
        self._thread = threads.start_guarded("ledger-watch", self._run, self._worker.stop.is_set)

    def join(self) -> None:
        """Wait until the thread has ended.

        Raises:
            BootError: A newer program has migrated the ledger, so this worker has stopped.
        """
        if self._thread is not None:
            self._thread.join(2 * REDIS_SECONDS)
        if self._refusal is not None:
            raise self._refusal

    def _run(self) -> None:
        while True:
            try:
                self._worker.host.record_if_due()
                self._shorten_waits()
                due = self._find_due_destinations()
                self._ledger_backoff.reset()
                self._wake_destinations(due)
                self._queue_backoff.reset()
            except BootError as error:
                self._refusal = error
                self._worker.stop.set()
            except LedgerError as error:
                self._ledger_backoff.wait_after(error)
            except redis.RedisError as error:
                remove_foreign_keys(self._worker.client, self._worker.redis_keys(), error)
                self._queue_backoff.wait_after(error)
            except Exception as error:
                # Deliveries depend on this thread, so no error may end it. The pause grows each time.
                log.error("ledger_watch_failed", exc_info=error)
                self._ledger_backoff.wait_after(error)
            if self._worker.stop.wait(WATCH_SECONDS):
                return

    def _find_due_destinations(self) -> Sequence[str]:
        """Return the destinations with due deliveries or reports that no person has paused.

        Hours are for deliveries only.
        """
        ledger, groups = self._worker.ledger, self._worker.groups
        now = ledger.unix_ms()
        sending = ledger.deliveries.find_due_destinations(now)
        others = (
            *ledger.commitments.find_due_destinations(now),
            *ledger.commitment_requests.find_wanting(
                self._committing, now, {name: self._groups_of(name) for name in self._committing}
            ),
        )
        circuits = ledger.circuits.read_circuits() if sending or others or groups else {}
        paused = {name for name, circuit in circuits.items() if circuit.is_paused}
        if groups:
            sending = [*self._add_members([name for name in sending if name not in paused], circuits, now)]
        known = self._worker.destinations
        due = (name for name in sending if name in known and known[name].find_opening_ms(now) <= now)
        return [name for name in dict.fromkeys((*due, *others)) if name in known and name not in paused]

    def _add_members(
        self, sending: Sequence[str], circuits: Mapping[str, Circuit], unix_ms: int
    ) -> Iterator[str]:
        """Add the members of groups with due deliveries.

        A member is also due for a probe, although its group sends to another member meanwhile.
        """
        yield from sending
        for terms in self._worker.groups.values():
            for member in terms.members:
                action = find_permitted_action(circuits.get(member, Circuit(destination=member)), unix_ms)
                if terms.name in sending or action is PermittedAction.PROBE:
                    yield member

    def _groups_of(self, name: str) -> list[str]:
        return [terms.name for terms in self._worker.resources.groups.get(name, ())]

    def _shorten_waits(self) -> None:
        """Shorten waits that are longer than any that we begin: the clock was set back."""
        ledger = self._worker.ledger
        longest = {name: each.retry_max_seconds for name, each in self._worker.destinations.items()}
        longest |= {
            name: max(longest[member] for member in terms.members)
            for name, terms in self._worker.groups.items()
        }
        for name, seconds in longest.items():
            longest_ms = round(seconds * 1000)
            count = ledger.deliveries.shorten_waits(name, ledger.unix_ms(), LEASE_MS, longest_ms)
            if count:
                log.warning(
                    "waits_bounded",
                    destination=name,
                    deliveries=count,
                    cause="the clock was set back, or a time zone has changed",
                )

    def _wake_destinations(self, due: Sequence[str]) -> None:
        not_woken = {name for name in due if not self._worker.wake_ups.send(name)}
        without_job = {name for name in not_woken if self._is_job_missing(name)}
        for name in not_woken:
            # A drain key without a job at two looks in a row was left by a worker that was killed. It would
            # suppress wake-ups for half a minute. A key that lasts longer than any of ours comes from another
            # client, or the clock of Redis was set back.
            is_left_over = name in without_job and name in self._without_job
            if is_left_over or self._is_key_endless(name):
                self._worker.client.unlink(drain_key(name))
                self._worker.wake_ups.send(name)
        self._without_job = without_job

    def _is_job_missing(self, name: str) -> bool:
        client = self._worker.client
        return client.get(drain_key(name)) == JOB_WAITS and client.llen(RQ_QUEUE_KEY) == 0

    def _is_key_endless(self, name: str) -> bool:
        longest_ms = longest_hold_ms(self._worker.destinations[name])
        left_ms = self._worker.client.pttl(drain_key(name))
        return left_ms == NO_EXPIRY or left_ms > max(longest_ms, WAKE_UP_MILLISECONDS)


def _consume_wakeups(worker: ForwardWorker, config: Config) -> None:
    """Consume wake-ups until asked to stop. A consumer ends while Redis is away, and another one follows."""
    backoff = Backoff(worker.stop, "queue_away", "deliveries wait in the ledger")
    with contextlib.closing(connect(config, timeout=REDIS_SECONDS)) as client:
        for number in itertools.count():
            # RQ refuses a registered name, and a consumer that lost Redis is still registered.
            name = f"{worker.name}-{number}" if number else worker.name
            try:
                consumer = WakeupConsumer(name, client, worker.stop, {**worker.destinations, **worker.groups})
                consumer.run(worker.drain_destination, backoff.reset)
            except (redis.RedisError, OSError, ValueError) as error:
                if worker.stop.is_set():
                    return
                remove_foreign_keys(client, worker.redis_keys() | {f"rq:worker:{name}": "hash"}, error)
                backoff.wait_after(error)
            else:
                return


def run_forward_worker(
    config: Config,
    stop: threading.Event,
    remotes: Mapping[str, Remote],
    plans: Mapping[str, OutgoingPlan],
) -> None:
    """Forward in this process until `stop` is set. The instance in flight is sent first.

    Raises:
        BootError: The configuration cannot be used.
    """
    for name in ("rq.worker", "rq.job"):
        # RQ would log every job, and once a second that Redis is away.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    name = f"forward-{socket.gethostname()}-{os.getpid()}-{Owner.current()}"
    worker = ForwardWorker(config, stop, remotes, name, plans)
    try:
        with contextlib.suppress(StoppedError):
            retry_with_backoff(Backoff(stop, "ledger_away", "deliveries wait"), worker.ledger.migrate)
            worker.expedite_probes()
            watch = LedgerWatch(worker)
            watch.start()
            _consume_wakeups(worker, config)
            watch.join()
    finally:
        worker.close()


def main(
    config: Config,
    stop: threading.Event,
    remotes: Mapping[str, Remote],
    plans: Mapping[str, OutgoingPlan],
) -> int:
    """Run the child process of a forward worker, and return its exit code. SIGTERM and SIGINT stop it.

    Raises:
        BootError: The configuration cannot be used.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    run_forward_worker(config, stop, remotes, plans)
    return 0
