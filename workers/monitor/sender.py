"""The sender of events: one thread for each target that has something to send.

The monitor's loop must not wait for a mail server, because other tasks wait for the loop. A target that fails
gets its next attempt after a pause that grows, for all of its events, so order is kept and the receiver is
spared. An event that only its receiver refuses (such as HTTP status 400) holds up no other one.

While the ledger is away, events that could not be recorded are sent from memory. That is how people hear that
the ledger is away.
"""

import threading
import time
from collections.abc import Callable
from typing import Final

import structlog

from ingest import threads
from ingest.alarms import Alarm
from ingest.clock import unix_ms
from ingest.config.model import AlertSettings, Config, WebhookSettings
from ingest.errors import LedgerError, SendingError
from ingest.events.event import target_of
from ingest.events.sending import Receiver, send_event
from ingest.ledger import Ledger
from ingest.ledger.announcements import target_of as target_of_webhook
from ingest.ledger.outbox import NewEvent, OutboxEvent
from ingest.workers.monitor.conditions import ALERTS_UNSENT, WEBHOOKS_UNSENT

FIRST_PAUSE_SECONDS: Final = 5.0
MAX_PAUSE_SECONDS: Final = 900.0
LEASE_MARGIN_SECONDS: Final = 60.0
"""Time from the deadline of an attempt until another host may send the event."""

ATTEMPTS_UNTIL_ALARM: Final = 3
REFUSED_MAX: Final = 5
"""Attempts after which an event that its webhook refuses becomes a dead letter."""

_RECORD_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 3.0

log = structlog.get_logger()


def get_pause_seconds(attempts: int) -> float:
    """Return the pause after a number of failed attempts: 5 s, doubled each time, 15 minutes at most."""
    return float(min(FIRST_PAUSE_SECONDS * 2 ** min(attempts - 1, 16), MAX_PAUSE_SECONDS))


class EventSender:
    """Sends what is due, without making its caller wait."""

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        owner: str,
        *,
        send: Callable[[Config, Receiver, str], None] = send_event,
    ) -> None:
        """Prepare.

        Args:
            config: The configuration.
            ledger: The ledger with the outbox.
            owner: This data folder on this host, the same after a restart of the monitor. Only one monitor
                works for it at a time, so a lease of this owner belongs to a dead process.
            send: Sends one event.
        """
        self._config = config
        self._ledger = ledger
        self._owner = owner
        self._send = send
        self._receivers: dict[str, Receiver] = {target_of(alert): alert for alert in config.alerts}
        self._receivers |= {target_of_webhook(webhook): webhook for webhook in config.webhooks}
        self._stop = threading.Event()
        self._threads: dict[str, threading.Thread] = {}
        self._lock = threading.Lock()
        self._unrecorded: dict[str, NewEvent] = {}
        self._sent_unrecorded: set[str] = set()
        self._attempts: dict[str, int] = {}
        self._failing: dict[str, Alarm] = {}

    def start_due(self) -> None:
        """Start a thread for each target that has events to send and no thread."""
        try:
            now = self._ledger.unix_ms()
            due = set(self._ledger.outbox.list_due_targets(self._receivers, self._owner, now))
        except LedgerError:
            due = set()
        with self._lock:
            due |= {event.target for event in self._unrecorded.values()}
        for target in due & self._receivers.keys():
            thread = self._threads.get(target)
            if thread is None or not thread.is_alive():
                name = f"send-{target}"
                self._threads[target] = threads.start_task(name, lambda of=target: self._drain(of))  # type: ignore[misc]

    def keep_unrecorded(self, events: list[NewEvent]) -> None:
        """Take events that the ledger could not record, to send them from memory."""
        with self._lock:
            self._unrecorded = {
                event.event_id: event for event in events if event.event_id not in self._sent_unrecorded
            }
            if not events:
                self._sent_unrecorded.clear()

    def was_sent(self, event_id: str) -> bool:
        """Whether an event was sent from memory."""
        with self._lock:
            return event_id in self._sent_unrecorded

    def list_unsent_alarms(self) -> list[Alarm]:
        """Return an alarm for each alert or webhook whose events cannot be sent."""
        with self._lock:
            return list(self._failing.values())

    def close(self) -> None:
        """Ask the threads to end, and wait a moment for them."""
        self._stop.set()
        until = time.monotonic() + _STOP_SECONDS
        for thread in self._threads.values():
            thread.join(max(0.0, until - time.monotonic()))

    def _drain(self, target: str) -> None:
        """Thread body: send events of one target until none is due or one fails."""
        receiver = self._receivers[target]
        for event in self._list_unrecorded(target):
            if not self._send_unrecorded(receiver, event):
                return
        lease_ms = round((receiver.timeout_seconds + LEASE_MARGIN_SECONDS) * 1000)
        while not self._stop.is_set():
            try:
                now = self._ledger.unix_ms()
                leased = self._ledger.outbox.lease_next(target, self._owner, now, lease_ms)
            except LedgerError:
                return
            if leased is None or not self._send_leased(receiver, leased):
                return

    def _send_leased(self, receiver: Receiver, event: OutboxEvent) -> bool:
        """Send one event and record the result; return whether the next event may be sent now."""
        try:
            self._send(self._config, receiver, event.payload)
        except SendingError as error:
            self._note_failure(receiver, error, event.attempts)
            self._record_failure(receiver, event, error)
            return not error.blames_target
        self._note_success(receiver, event.event_id)
        # One event for each instance would fill the ledger.
        keeps = isinstance(receiver, AlertSettings)
        return self._record(
            lambda: self._ledger.outbox.record_sent(event, self._ledger.unix_ms(), keeps=keeps)
        )

    def _record_failure(self, receiver: Receiver, event: OutboxEvent, error: SendingError) -> None:
        def record() -> None:
            now = self._ledger.unix_ms()
            next_at = now + round(get_pause_seconds(event.attempts) * 1000)
            is_late = now - event.created_at > receiver.give_up_hours * 3_600_000
            is_refused = isinstance(receiver, WebhookSettings) and not error.blames_target
            if is_late or (is_refused and event.attempts >= REFUSED_MAX):
                log.error("event_given_up", target=event.target, event_id=event.event_id, error=str(error))
                next_at = 0
            self._ledger.outbox.record_failure(
                event, str(error), next_at, now, blames_target=error.blames_target
            )

        self._record(record)

    def _record(self, record: Callable[[], object]) -> bool:
        """Record a result, and try again for a while if the ledger is away.

        Without a record the lease ends, and the event is sent again under the same id.
        """
        until = time.monotonic() + _RECORD_SECONDS
        while True:
            try:
                record()
            except LedgerError as error:
                if time.monotonic() > until or self._stop.wait(1.0):
                    log.warning("event_result_lost", error=str(error))
                    return False
            else:
                return True

    def _list_unrecorded(self, target: str) -> list[NewEvent]:
        with self._lock:
            return [event for event in self._unrecorded.values() if event.target == target]

    def _send_unrecorded(self, receiver: Receiver, event: NewEvent) -> bool:
        try:
            self._send(self._config, receiver, event.payload)
        except SendingError as error:
            attempts = self._attempts[event.target] = self._attempts.get(event.target, 0) + 1
            self._note_failure(receiver, error, attempts)
            if error.blames_target:
                # The thread keeps its place during the pause, so no other one tries meanwhile.
                self._stop.wait(get_pause_seconds(attempts))
            return not error.blames_target
        self._attempts.pop(event.target, None)
        with self._lock:
            self._sent_unrecorded.add(event.event_id)
            self._unrecorded.pop(event.event_id, None)
        self._note_success(receiver, event.event_id)
        return True

    def _note_failure(self, receiver: Receiver, error: SendingError, attempts: int) -> None:
        is_alert = isinstance(receiver, AlertSettings)
        kind, condition = ("alert", ALERTS_UNSENT) if is_alert else ("webhook", WEBHOOKS_UNSENT)
        log.warning("event_not_sent", attempts=attempts, error=str(error), **{kind: receiver.name})
        if attempts < ATTEMPTS_UNTIL_ALARM:
            return
        name = f"{condition}.{receiver.name}"
        cause = f"the {kind} {receiver.name} cannot be sent: {error.cause}"
        remedy = f"{error.remedy}; `ingest {kind}s test {receiver.name}` tries at once"
        with self._lock:
            since_ms = self._failing[name].since_ms if name in self._failing else unix_ms()
            self._failing[name] = Alarm(name, cause, remedy, since_ms=since_ms)

    def _note_success(self, receiver: Receiver, event_id: str) -> None:
        if isinstance(receiver, AlertSettings):
            log.info("event_sent", alert=receiver.name, event_id=event_id)
            name = f"{ALERTS_UNSENT}.{receiver.name}"
        else:
            log.debug("event_sent", webhook=receiver.name, event_id=event_id)
            name = f"{WEBHOOKS_UNSENT}.{receiver.name}"
        with self._lock:
            self._failing.pop(name, None)
