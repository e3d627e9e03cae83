"""Test alerts, and list the alarms that they have reported and the events that wait to be sent."""

import contextlib
import difflib
import json
from dataclasses import dataclass
from typing import Any, Final

from ingest.clock import unix_ms
from ingest.config.model import AlertSettings, Config
from ingest.errors import SendingError, UnknownAlertError
from ingest.events.event import Announcement, EventType, create_event_id, describe_event, target_of
from ingest.events.sending import send_event
from ingest.ledger import Ledger
from ingest.ledger.outbox import OutboxEvent
from ingest.operations.times import format_iso_time

ALERT_FIELDS: Final = ("alert", "type", "receiver", "standing", "waiting", "oldest_at", "last")
"""Fields of `ingest alerts list`; docs/reference/lists.md describes them."""


@dataclass(frozen=True, slots=True)
class AlertTest:
    """The result of a test of one alert.

    Attributes:
        alert: Name of the alert.
        receiver: The server that was asked.
        event_id: Id of the test event.
        cause: Why the event was not accepted; empty if it was.
        remedy: The next step; empty if none is needed.
    """

    alert: str
    receiver: str
    event_id: str
    cause: str = ""
    remedy: str = ""

    @property
    def is_sent(self) -> bool:
        """Whether the receiver accepted the event."""
        return not self.cause

    def to_json(self) -> dict[str, Any]:
        """Return the result as values for JSON."""
        return {
            "alert": self.alert,
            "receiver": self.receiver,
            "event_id": self.event_id,
            "sent": self.is_sent,
            "cause": self.cause,
            "remedy": self.remedy,
        }


@dataclass(frozen=True, slots=True)
class AlertOverview:
    """An alert with the alarms that it has reported, and the events that wait to be sent.

    Attributes:
        alert: Its settings.
        standing: The alarms that stand according to the last messages, as values for JSON.
        waiting: Number of events that wait to be sent.
        oldest_ms: When the oldest of them was created; 0 without one.
        last: The newest event; None without one.
    """

    alert: AlertSettings
    standing: tuple[dict[str, Any], ...] = ()
    waiting: int = 0
    oldest_ms: int = 0
    last: OutboxEvent | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the overview as values for JSON."""
        return {
            "alert": self.alert.name,
            "type": self.alert.type,
            "receiver": name_receiver(self.alert),
            "standing": list(self.standing),
            "waiting": self.waiting,
            "oldest_at": format_iso_time(self.oldest_ms),
            "last": _event_to_json(self.last) if self.last else None,
        }


def send_test_events(config: Config, name: str | None) -> list[AlertTest]:
    """Send a test event to one alert, or to all, at once and without the outbox.

    Raises:
        UnknownAlertError: The configuration has no such alert, or none at all.
    """
    return [_send_test_event(config, alert) for alert in select_alerts(config, name)]


def list_alerts(config: Config) -> list[AlertOverview]:
    """Return the state of each alert. Raises LedgerError while the ledger is away."""
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        groups = ledger.alert_groups.read_groups()
        counts = ledger.outbox.count_open()
        last = {alert.name: ledger.outbox.list_events(1, target_of(alert)) for alert in config.alerts}
    overviews = []
    for alert in config.alerts:
        told = [json.loads(text)["told"] for key, text in sorted(groups.items()) if key[0] == alert.name]
        standing = tuple(alarm for alarms in told for alarm in alarms)
        waiting, oldest_ms = counts.get(target_of(alert), (0, 0))
        newest = last[alert.name][0] if last[alert.name] else None
        overviews.append(AlertOverview(alert, standing, waiting, oldest_ms, newest))
    return overviews


def select_alerts(config: Config, name: str | None) -> list[AlertSettings]:
    """Return one alert by name, or all.

    Raises:
        UnknownAlertError: The configuration has no such alert, or none at all.
    """
    known = [alert.name for alert in config.alerts]
    if not known:
        raise UnknownAlertError("the configuration has no [[alerts]]; docs/how-to/alerts.md shows one")
    if name is not None and name not in known:
        similar = difflib.get_close_matches(name, known, 1, 0.5)
        question = f'did you mean "{similar[0]}"? ' if similar else ""
        raise UnknownAlertError(
            f'there is no alert "{name}"; {question}the configuration has {", ".join(known)}'
        )
    return [alert for alert in config.alerts if name in {None, alert.name}]


def name_receiver(alert: AlertSettings) -> str:
    """Return the server of an alert. The path of a webhook may hold a token and is left out."""
    if alert.type == "email":
        return f"{', '.join(alert.recipients)} by {alert.host}:{alert.smtp_port}"
    return "/".join(alert.url.split("/", 3)[:3])


def _send_test_event(config: Config, alert: AlertSettings) -> AlertTest:
    event_id = create_event_id()
    told = Announcement(
        type=EventType.TEST, event_id=event_id, incident=event_id, unix_ms=unix_ms(), subject="test"
    )
    receiver = name_receiver(alert)
    try:
        send_event(config, alert, describe_event(config, alert, told))
    except SendingError as error:
        return AlertTest(alert.name, receiver, event_id, error.cause, error.remedy)
    return AlertTest(alert.name, receiver, event_id)


def _event_to_json(event: OutboxEvent) -> dict[str, Any]:
    return {
        "event_id": event.event_id,
        "state": event.state.value,
        "attempts": event.attempts,
        "created_at": format_iso_time(event.created_at),
        "updated_at": format_iso_time(event.updated_at),
        "last_error": event.last_error,
    }
