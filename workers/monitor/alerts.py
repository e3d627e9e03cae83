"""The task of alerts: look at the node, decide what to tell, and record it together with its events.

A look changes the state of some groups and makes events. Both are written in one transaction of the ledger:
a process that is killed at any line has either told of a change or will find it again. The sender then sends
the events at least once.

**One monitor for each data folder.** During a reload two generations run. A lock on a file lets one of them
work; the other looks again later.

**One host for what all hosts see.** Hosts with one PostgreSQL see the same destinations. A lease in the
ledger lets one host tell of them. Each host tells of its own disks and processes.

**The ledger may be away.** Then states and events stay in memory, the sender sends these events from memory,
and everything is recorded when the ledger is back. Only a monitor that is killed meanwhile forgets them, and
then it tells of the same alarms again.
"""

import contextlib
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import structlog

from ingest.alarms import Alarm, write_watched_alarms
from ingest.clock import unix_ms
from ingest.config.model import AlertSettings, Config
from ingest.errors import LedgerError
from ingest.events.event import create_event_id, describe_event, target_of
from ingest.filesystem.locks import try_lock
from ingest.ledger import Ledger
from ingest.ledger.alert_groups import Key
from ingest.ledger.outbox import EventState, NewEvent
from ingest.status.report import gather_status
from ingest.workers.monitor import conditions
from ingest.workers.monitor.grouping import NEW_GROUP, GroupState, decide_message, get_group
from ingest.workers.monitor.peer_activity import PeerActivity
from ingest.workers.monitor.sender import EventSender
from ingest.workers.monitor.silence import find_silent_peers

LEASE_MS: Final = 60_000
SHARED_SCOPE: Final = ""
_LEASE: Final = "alerts"
_LOCK: Final = "monitor.lock"
_COST_FACTOR: Final = 20
"""Looking takes at most one part of this many of a core, however long the ledger needs to count."""

_MAX_PAUSE_SECONDS: Final = 60.0
_SILENCE_SECONDS: Final = 30.0
_CLEAN_SECONDS: Final = 3600.0
_UNSENT_SECONDS: Final = 10.0
_KEEP_EVENTS_MS: Final = 30 * 86_400_000
_KEEP_GROUPS_MS: Final = 7 * 86_400_000

log = structlog.get_logger()


def name_owner(config: Config) -> str:
    """Return a name of this data folder on this host, the same after a restart."""
    with contextlib.suppress(OSError):
        facts = config.run_dir.stat()
        return f"{socket.gethostname()}:{config.data_dir}:{facts.st_dev}:{facts.st_ino}"
    return f"{socket.gethostname()}:{config.data_dir}"


class AlertTask:
    """Looks at the node and tells of what changed. `run` is called again and again."""

    def __init__(
        self, config: Config, ledger: Ledger, sender: EventSender, owner: str, *, lease_ms: int = LEASE_MS
    ) -> None:
        self._lease_ms = lease_ms
        self._config = config
        self._ledger = ledger
        self._sender = sender
        self._owner = owner
        self._lock_fd = -1
        self._activity = PeerActivity(ledger.peer_hours)
        self._silent: dict[str, list[Alarm]] = {}
        self._groups: dict[Key, GroupState] = {}
        self._loaded: set[str] = set()
        self._changes: dict[Key, str] = {}
        self._events: list[NewEvent] = []
        self._first_seen: dict[str, int] = {}
        self._started_ms = unix_ms()
        self._lease_until = 0.0
        self._silence_at = self._clean_at = self._look_at = self._unsent_at = 0.0

    def run(self) -> None:
        """Look at the node once, unless another monitor of this data folder works or looking is expensive."""
        if time.monotonic() < self._look_at or not self._hold_lock():
            return
        began = time.monotonic()
        now = gather_status(self._config)
        found = self._find_alarms(now)
        self._write_watched(found)
        at_ms = self._read_clock()
        scopes = self._list_scopes(now, at_ms)
        for alert in self._config.alerts:
            for scope in scopes:
                is_shared = scope == SHARED_SCOPE
                alarms = [
                    alarm
                    for alarm in found[alert.name]
                    if (alarm.condition in conditions.SHARED) is is_shared
                ]
                self._tell(alert, scope, alarms, at_ms)
        self._record(at_ms)
        self._sender.start_due()
        pause = (time.monotonic() - began) * _COST_FACTOR
        self._look_at = time.monotonic() + min(pause, _MAX_PAUSE_SECONDS)

    def send_due(self) -> None:
        """Send events that are due. Two monitors of one data folder would send the same ones."""
        if self._hold_lock():
            self._sender.start_due()
            self._clean(self._read_clock())
            if not self._config.alerts and time.monotonic() >= self._unsent_at:
                self._unsent_at = time.monotonic() + _UNSENT_SECONDS
                write_watched_alarms(self._config.run_dir, self._sender.list_unsent_alarms())

    def close(self) -> None:
        """End the sender, and then let another monitor work."""
        self._sender.close()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _hold_lock(self) -> bool:
        if self._lock_fd >= 0:
            return True
        try:
            path = self._config.run_dir / _LOCK
            fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o640)
        except OSError:
            return True  # a full or broken disk is what people must hear of
        with contextlib.suppress(OSError):
            if not try_lock(fd):
                os.close(fd)
                return False
        self._lock_fd = fd
        return True

    def _find_alarms(self, now: Mapping[str, Any]) -> dict[str, list[Alarm]]:
        """Return the alarms of each alert, each with its begin."""
        self._judge_silence()
        unsent = self._sender.list_unsent_alarms()
        at_ms = unix_ms()
        found = {
            alert.name: conditions.find_alarms(alert, now, self._silent.get(alert.name, ()), unsent)
            for alert in self._config.alerts
        }
        names = {alarm.name for alarms in found.values() for alarm in alarms}
        self._first_seen = {name: self._first_seen.get(name, at_ms) for name in names}
        return {
            alert: [
                alarm if alarm.since_ms else replace(alarm, since_ms=self._first_seen[alarm.name])
                for alarm in alarms
            ]
            for alert, alarms in found.items()
        }

    def _judge_silence(self) -> None:
        if time.monotonic() < self._silence_at:
            return
        with contextlib.suppress(LedgerError):
            self._activity.learn(self._list_named_peers())
            at_ms = unix_ms()
            self._silent = {
                alert.name: find_silent_peers(alert, self._activity.peers, at_ms, self._started_ms)
                for alert in self._config.alerts
            }
            if not self._activity.is_behind:
                self._silence_at = time.monotonic() + _SILENCE_SECONDS

    def _list_named_peers(self) -> set[str]:
        named = {peer.ae_title.strip() for alert in self._config.alerts for peer in alert.silent_peers}
        return named | {peer.ae_title.strip() for peer in self._config.peers}

    def _write_watched(self, found: Mapping[str, Sequence[Alarm]]) -> None:
        watched = {
            alarm.name: alarm
            for alarms in found.values()
            for alarm in alarms
            if alarm.condition in conditions.WATCHED
        } | {alarm.name: alarm for alarm in self._sender.list_unsent_alarms()}
        write_watched_alarms(self._config.run_dir, list(watched.values()))

    def _read_clock(self) -> int:
        try:
            return self._ledger.unix_ms()
        except LedgerError:
            return unix_ms()

    def _list_scopes(self, now: Mapping[str, Any], at_ms: int) -> list[str]:
        """Return the scopes of which this monitor tells now, with their states loaded."""
        scopes = [self._owner]
        # Without the ledger nobody knows whether a destination is still down. Its alarms have not ended.
        if now["ledger"]["reachable"] and self._hold_lease(at_ms):
            scopes.append(SHARED_SCOPE)
        for scope in scopes:
            if scope not in self._loaded:
                with contextlib.suppress(LedgerError):
                    self._load(scope)
        return [scope for scope in scopes if scope in self._loaded or scope == self._owner]

    def _hold_lease(self, at_ms: int) -> bool:
        if self._ledger.database.dialect == "sqlite":
            return True  # one host
        if time.monotonic() < self._lease_until - self._lease_ms / 2000:
            return True
        began = time.monotonic()
        try:
            is_ours = self._ledger.alert_groups.take_lease(_LEASE, self._owner, at_ms, self._lease_ms)
        except LedgerError:
            return time.monotonic() < self._lease_until
        if not is_ours:
            # The other host changes the states. They are read again when the lease is ours.
            self._loaded.discard(SHARED_SCOPE)
            self._lease_until = 0.0
            return False
        if began > self._lease_until:
            self._loaded.discard(SHARED_SCOPE)
        self._lease_until = began + self._lease_ms / 1000
        return True

    def _load(self, scope: str) -> None:
        kept = {key: text for key, text in self._changes.items() if key[1] == scope}
        read = self._ledger.alert_groups.read_groups(scope) | kept
        self._groups = {key: state for key, state in self._groups.items() if key[1] != scope}
        self._groups |= {key: GroupState.from_json(text) for key, text in read.items() if text}
        self._loaded.add(scope)

    def _tell(self, alert: AlertSettings, scope: str, alarms: Sequence[Alarm], at_ms: int) -> None:
        groups: dict[str, list[Alarm]] = {}
        for alarm in alarms:
            if unix_ms() - alarm.since_ms >= conditions.get_delay_ms(alert, alarm):
                groups.setdefault(get_group(alarm), []).append(alarm)
        known = {key[2] for key in self._groups if key[:2] == (alert.name, scope)}
        for subject in sorted(groups.keys() | known):
            key = (alert.name, scope, subject)
            before = self._groups.get(key, NEW_GROUP)
            after, message = decide_message(
                before,
                groups.get(subject, ()),
                alert,
                subject=subject,
                unix_ms=at_ms,
                event_id=create_event_id(),
            )
            if message is not None:
                payload = describe_event(self._config, alert, message)
                self._events.append(NewEvent(message.event_id, target_of(alert), payload, at_ms))
                log.info(
                    "alert_told",
                    alert=alert.name,
                    subject=subject,
                    type=message.type,
                    event_id=message.event_id,
                )
            if after == before:
                continue
            self._changes[key] = after.to_json() if after else ""
            if after is None:
                self._groups.pop(key, None)
            else:
                self._groups[key] = after

    def _record(self, at_ms: int) -> None:
        """Write states and events in one transaction, or keep them and let the events be sent from memory."""
        if not self._changes and not self._events:
            return
        events = [
            replace(event, state=EventState.SENT) if self._sender.was_sent(event.event_id) else event
            for event in self._events
        ]
        try:
            self._ledger.alert_groups.record(self._changes, events, at_ms)
        except LedgerError:
            self._sender.keep_unrecorded(events)
            return
        self._changes, self._events = {}, []
        self._sender.keep_unrecorded([])

    def _clean(self, at_ms: int) -> None:
        if time.monotonic() < self._clean_at:
            return
        hours = [alert.give_up_hours for alert in self._config.alerts]
        hours += [webhook.give_up_hours for webhook in self._config.webhooks]
        give_up_hours = max(hours)
        with contextlib.suppress(LedgerError):
            count = self._ledger.outbox.expire(at_ms - round(give_up_hours * 3_600_000), at_ms)
            if count:
                log.error("events_given_up", count=count, hours=give_up_hours)
            self._ledger.outbox.remove_ended(at_ms - _KEEP_EVENTS_MS)
            self._ledger.alert_groups.remove_unused(at_ms - _KEEP_GROUPS_MS)
            self._clean_at = time.monotonic() + _CLEAN_SECONDS
