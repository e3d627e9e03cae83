"""Alarms: conditions of a running node that need a person, kept as small files in `run/alarms/`.

A process raises an alarm when a condition begins and clears it when the condition has ended. `ingest status`
lists the alarms that stand. `ingest.status` derives further alarms from ledger, spool, disks and
certificates. They are of the same class and are not kept here.

An alarm never blocks or fails the work of the process that raises it: if the disk is full, the log line is
all that remains. Texts hold no patient data: UIDs and AE titles at most.
"""

import contextlib
import json
import os
import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import structlog

from ingest.clock import unix_ms

FOLDER: Final = "alarms"
QUARANTINE_FULL: Final = "quarantine_full"
"""Alarm: copies of refused data sets have reached `[receive] quarantine_max_bytes`."""
BOUNDED_ALARM: Final = "replacements_bounded"
"""Alarm of a destination: no more objects of one SOP Instance UID are sent to it for now."""

EFFECTS: Final[Mapping[str, str]] = {
    "node_not_running": "The node receives, stores and forwards nothing.",
    "node_not_ready": "Senders cannot associate with the node.",
    "listeners_silent": "The other listeners receive.",
    "disk_away": "Instances cannot be received or stored until the disk is back.",
    "disk_full": "The node refuses new instances. Acknowledged instances are safe.",
    "disk_nearly_full": "Nothing yet. When the disk is full, the node refuses new instances.",
    "store_full": "The node refuses new instances. Acknowledged instances are safe.",
    "store_missing": "Received instances wait in the spool, and nothing is forwarded.",
    "spool_unusable": "The node refuses new instances.",
    "ledger_away": "Received instances wait in the spool, and nothing is forwarded.",
    "queue_away": "Received instances wait in the spool.",
    "queue_stalled": "Received instances wait in the spool, and are not forwarded yet.",
    "not_persisted": "These instances wait in the spool, and are not forwarded yet.",
    "destination_down": "Instances for this destination wait and are sent when it is back.",
    "deliveries_dead": "These instances did not reach the destination, and the node does not try again.",
    "studies_overdue": "Deliveries that wait for complete studies are late.",
    "deliveries_waiting": "Instances for this destination are late.",
    "quarantine_not_empty": "These instances are neither in the store nor forwarded.",
    "set_aside": "These instances were acknowledged, and are neither in the store nor forwarded.",
    "certificate_expiring": "When a certificate has ended, peers refuse the connection.",
    "peer_silent": "Images of this sender may be missing.",
    "reload_refused": "The node runs with the earlier configuration.",
    "destination_paused": "Instances for this destination wait until a person resumes it.",
    "console_away": "People see no pages. Receiving and forwarding go on.",
    "audit_away": "Audit messages wait. Receiving and forwarding go on.",
    "audit_queue_full": "Audit messages are lost. Receiving and forwarding go on.",
    "alerts_unsent": "People do not hear of alarms by this way.",
    "webhooks_unsent": "A receiver does not hear of events. They wait, and are sent later.",
}
"""What each condition means for the images, for messages to people."""

CONDITIONS: Final = frozenset(EFFECTS) | {
    "ledger_behind_store",
    "quarantine_full",
    "replacements_bounded",
    "retention_clock",
    "segments_stuck",
    "spool_damaged",
    "spool_not_let_go",
}
"""Every condition that an alert can select."""

WATCHED_MAX_SECONDS: Final = 180.0
"""Watched alarms that are older than this were written by a monitor that does not run any more."""

_WATCHED: Final = "watched-alarms.json"
_NAME: Final = re.compile(r"[a-z0-9_]+(\.[A-Za-z0-9_.-]{1,80})?")

log = structlog.get_logger()


class Severity(StrEnum):
    """Severity of a condition. `ingest status` exits with 1 for DEGRADED and with 2 for FAILING."""

    DEGRADED = "degraded"
    FAILING = "failing"


@dataclass(frozen=True, slots=True)
class Alarm:
    """A condition that has begun and not ended.

    Attributes:
        name: Name of the condition in snake_case. If each of several things may have the condition, a dot and
            the thing follow, as in `replacements_bounded.PACS`. No two standing alarms share a name. It never
            holds patient data.
        cause: The cause, in one sentence.
        remedy: The next step: a command or a setting.
        severity: DEGRADED while the node still serves its purpose, otherwise FAILING.
        since_ms: Begin of the condition, in Unix milliseconds; 0 if it is not known.
    """

    name: str
    cause: str
    remedy: str
    severity: Severity = Severity.DEGRADED
    since_ms: int = 0

    @property
    def condition(self) -> str:
        """The name without its subject: `replacements_bounded`."""
        return self.name.partition(".")[0]

    @property
    def subject(self) -> str:
        """The thing that has the condition, such as a destination; empty for the node itself."""
        return self.name.partition(".")[2]

    def to_json(self) -> dict[str, Any]:
        """Return the alarm as values for JSON."""
        return {
            "name": self.name,
            "condition": self.condition,
            "subject": self.subject,
            "severity": self.severity.value,
            "since_ms": self.since_ms,
            "cause": self.cause,
            "remedy": self.remedy,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Alarm":
        """Read the values of `to_json`.

        Raises:
            KeyError: A value is missing.
            ValueError: The severity is not known.
        """
        severity = Severity(values["severity"])
        return cls(values["name"], values["cause"], values["remedy"], severity, values["since_ms"])


def explain_effect(alarm: Alarm) -> str:
    """Return what an alarm means for the images; empty if its cause says all."""
    return EFFECTS.get(alarm.condition, "")


def raise_alarm(
    run_dir: Path, name: str, cause: str, remedy: str, *, severity: Severity = Severity.DEGRADED
) -> None:
    """Raise an alarm, or update its texts if it stands already. The log gets a line when it begins.

    Args:
        run_dir: Run folder of the node.
        name: `Alarm.name`.
        cause: `Alarm.cause`.
        remedy: `Alarm.remedy`.
        severity: `Alarm.severity`.

    Raises:
        ValueError: The name is no file name.
    """
    path = _path(run_dir, name)
    standing = _read(path)
    if standing is None:
        log.error("alarm_raised", alarm=name, cause=cause, remedy=remedy)
    since_ms = standing.since_ms if standing else unix_ms()
    text = json.dumps(Alarm(name, cause, remedy, severity, since_ms).to_json())
    # Several processes may raise one alarm at the same time. Each writes its own file and renames it.
    new = path.with_name(f".{os.getpid()}.{path.name}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        new.write_text(text)
        new.replace(path)


def clear_alarm(run_dir: Path, name: str) -> None:
    """Clear an alarm, if it stands.

    Raises:
        ValueError: As `raise_alarm`.
    """
    with contextlib.suppress(OSError):
        _path(run_dir, name).unlink()
        log.info("alarm_cleared", alarm=name)


def clear_alarms_of_others(run_dir: Path, condition: str, subjects: Collection[str]) -> None:
    """Clear alarms of a condition whose subject is not among `subjects`, such as a removed destination."""
    for alarm in standing_alarms(run_dir):
        if alarm.condition == condition and alarm.subject not in subjects:
            clear_alarm(run_dir, alarm.name)


def standing_alarms(run_dir: Path) -> list[Alarm]:
    """Return the readable alarms that stand, the worst and oldest first."""
    with contextlib.suppress(OSError):
        paths = [path for path in (run_dir / FOLDER).iterdir() if not path.name.startswith(".")]
        found = [alarm for alarm in map(_read, paths) if alarm is not None]
        return sorted(found, key=lambda alarm: (alarm.severity is Severity.DEGRADED, alarm.since_ms))
    return []


def write_watched_alarms(run_dir: Path, alarms: Collection[Alarm]) -> None:
    """Write the alarms that the monitor found by thresholds of `[[alerts]]`, in place of the earlier ones.

    They are in one file with its time. If the monitor ends, they expire, and no process has to clear them.
    """
    text = json.dumps({"at": time.time(), "alarms": [alarm.to_json() for alarm in alarms]})
    new = run_dir / f".{os.getpid()}.{_WATCHED}"
    with contextlib.suppress(OSError):
        new.write_text(text)
        new.replace(run_dir / _WATCHED)


def read_watched_alarms(run_dir: Path) -> list[Alarm]:
    """Return the alarms that a running monitor found last."""
    try:
        found = json.loads((run_dir / _WATCHED).read_bytes())
        if abs(time.time() - found["at"]) > WATCHED_MAX_SECONDS:
            return []
        return [Alarm.from_json(values) for values in found["alarms"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _path(run_dir: Path, name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of an alarm")
    return run_dir / FOLDER / name


def _read(path: Path) -> Alarm | None:
    try:
        return Alarm.from_json(json.loads(path.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):
        return None
