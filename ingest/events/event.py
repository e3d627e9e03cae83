"""The payload of an event: one report of an alert, as values for JSON.

A payload holds names of configured things, UIDs, AE titles, states and times. It holds no patient data
(INVARIANT 9). docs/reference/alerts.md documents the fields, and receivers rely on them.
"""

import json
import socket
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from ingest.alarms import Alarm, Severity, explain_effect
from ingest.config.model import AlertSettings, Config

VERSION: Final = 1


class EventType(StrEnum):
    """The type of an event."""

    ALARM = "alarm"
    REMINDER = "reminder"
    RECOVERY = "recovery"
    TEST = "test"


def create_event_id() -> str:
    """Return an id that no other event has."""
    return str(uuid.uuid4())


def target_of(alert: AlertSettings) -> str:
    """Return the name of an alert as a target of the outbox. Other senders have other prefixes."""
    return f"alerts.{alert.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """The content of one event.

    Attributes:
        type: The type of the event.
        event_id: Id of the event, the same in each attempt to send it.
        incident: Id of the event that reported the begin.
        unix_ms: Time of the event.
        subject: The destination or other subject; the condition for an alarm of the node itself.
        alarms: The alarms that stand.
        ended: The alarms that have ended since the last event.
        repeats: How often the alarms began again meanwhile, without an event.
    """

    type: EventType
    event_id: str
    incident: str
    unix_ms: int
    subject: str
    alarms: Sequence[Alarm] = ()
    ended: Sequence[Alarm] = ()
    repeats: int = 0


def describe_event(config: Config, alert: AlertSettings, told: Announcement) -> str:
    """Return the payload of an event of an alert as JSON."""
    is_failing = any(alarm.severity is Severity.FAILING for alarm in told.alarms)
    severity = (Severity.FAILING if is_failing else Severity.DEGRADED).value if told.alarms else None
    values = {
        "version": VERSION,
        "id": told.event_id,
        "type": told.type.value,
        "time": format_time(told.unix_ms),
        "incident": told.incident,
        "alert": alert.name,
        "node": {
            "name": config.node.name or config.node.ae_title,
            "ae_title": config.node.ae_title,
            "host": socket.gethostname(),
        },
        "subject": told.subject,
        "severity": severity,
        "alarms": [_describe_alarm(alarm) for alarm in told.alarms],
        "ended": [_describe_alarm(alarm) for alarm in told.ended],
        "repeats": told.repeats,
        "console_url": alert.console_url or (config.console.public_url if config.console else ""),
    }
    return json.dumps(values, ensure_ascii=False)


def format_time(unix_ms: int) -> str | None:
    """Write Unix milliseconds as an ISO 8601 time in UTC; None for 0, which means unknown."""
    if not unix_ms:
        return None
    return datetime.fromtimestamp(unix_ms // 1000, UTC).isoformat()


def _describe_alarm(alarm: Alarm) -> dict[str, Any]:
    return {
        "name": alarm.name,
        "condition": alarm.condition,
        "subject": alarm.subject,
        "severity": alarm.severity.value,
        "since": format_time(alarm.since_ms),
        "cause": alarm.cause,
        "effect": explain_effect(alarm),
        "remedy": alarm.remedy,
    }
