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


def _path(run_dir: Path, name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of an alarm")
    return run_dir / FOLDER / name


def _read(path: Path) -> Alarm | None:
    try:
        return Alarm.from_json(json.loads(path.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):
        return None
