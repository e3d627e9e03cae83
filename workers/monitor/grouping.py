"""Which message an alert sends about a group of alarms, and when: pure functions (INVARIANT 10).

The alarms of one destination, or of another subject, form a group, and so do those of all disks and those of
all certificates. Any other alarm without a subject is a group of its own. For each group an alert sends at
most one message about begins in each interval, and one about ends. A destination that comes and goes every
minute is therefore told of once in each interval. The message counts how often it came back. Only an alarm
that makes a group failing does not wait.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from ingest.alarms import Alarm, Severity
from ingest.config.model import AlertSettings
from ingest.events.event import Announcement, EventType

_MINUTE_MS: Final = 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupState:
    """What was told about a group; times are Unix milliseconds.

    Attributes:
        told: The alarms that stand according to the last message.
        standing: Names of the alarms that stood at the last look.
        incident: Id of the event that told of the begin.
        begin_at: When a begin was told last; 0 for never.
        end_at: When an end was told last.
        told_at: When the last message was made.
        was_failing: Whether the message at `begin_at` told of a failing node.
        repeats: How often alarms began since, without a message.
    """

    told: tuple[Alarm, ...] = ()
    standing: tuple[str, ...] = ()
    incident: str = ""
    begin_at: int = 0
    end_at: int = 0
    told_at: int = 0
    was_failing: bool = False
    repeats: int = 0

    def to_json(self) -> str:
        """Return the state as JSON."""
        return json.dumps(
            {
                "told": [alarm.to_json() for alarm in self.told],
                "standing": self.standing,
                "incident": self.incident,
                "begin_at": self.begin_at,
                "end_at": self.end_at,
                "told_at": self.told_at,
                "was_failing": self.was_failing,
                "repeats": self.repeats,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "GroupState":
        """Read the text of `to_json`."""
        values = json.loads(text)
        told = tuple(Alarm.from_json(alarm) for alarm in values["told"])
        return cls(**{**values, "told": told, "standing": tuple(values["standing"])})


NEW_GROUP: Final = GroupState()

_GROUPS: Final = {
    "disk_away": "disks",
    "disk_full": "disks",
    "disk_nearly_full": "disks",
    "certificate_expiring": "certificates",
    "quarantine_not_empty": "quarantine",
    "set_aside": "quarantine",
}
"""Groups of conditions that usually come together: spool and store share a disk."""


def get_group(alarm: Alarm) -> str:
    """Return the name of the group of an alarm."""
    return _GROUPS.get(alarm.condition) or alarm.subject or alarm.condition


def decide_message(
    before: GroupState,
    now: Sequence[Alarm],
    alert: AlertSettings,
    *,
    subject: str,
    unix_ms: int,
    event_id: str,
) -> tuple[GroupState | None, Announcement | None]:
    """Decide what to tell about a group.

    Args:
        before: The state after the last look; `NEW_GROUP` for a new group.
        now: The alarms that stand long enough to be told.
        alert: The settings.
        subject: Name of the group.
        unix_ms: Current time.
        event_id: Id for the event, if there will be one.

    Returns:
        The new state, None if nothing needs to be remembered; and the message, None without one.
    """
    looked = _take_look(before, now)
    told = {alarm.name for alarm in before.told}
    names = {alarm.name for alarm in now}
    ended = [alarm for alarm in before.told if alarm.name not in names]
    is_failing = any(alarm.severity is Severity.FAILING for alarm in now)
    interval_ms = alert.interval_minutes * _MINUTE_MS
    begins_may_be_told = unix_ms - before.begin_at >= interval_ms or (is_failing and not before.was_failing)

    def tell(kind: EventType, state: GroupState) -> tuple[GroupState, Announcement]:
        message = Announcement(
            type=kind,
            event_id=event_id,
            incident=state.incident,
            unix_ms=unix_ms,
            subject=subject,
            alarms=now,
            ended=ended,
            repeats=before.repeats if kind is EventType.ALARM else 0,
        )
        return replace(state, told_at=unix_ms), message

    if not names and not told:
        is_over = unix_ms - max(before.begin_at, before.end_at) >= interval_ms
        return (None if is_over else looked), None
    if names - told and begins_may_be_told:
        incident = before.incident if told else event_id
        state = replace(
            looked, told=tuple(now), incident=incident, begin_at=unix_ms, was_failing=is_failing, repeats=0
        )
        return tell(EventType.ALARM, state)
    if ended and unix_ms - before.end_at >= interval_ms:
        state = replace(looked, end_at=unix_ms)
        if alert.recovery:
            return tell(EventType.RECOVERY, replace(state, told=tuple(now)))
        return replace(state, told=tuple(alarm for alarm in now if alarm.name in told)), None
    remind_ms = alert.remind_hours * 60 * _MINUTE_MS
    if names & told and remind_ms and unix_ms - before.told_at >= remind_ms:
        return tell(EventType.REMINDER, replace(looked, told=tuple(now)))
    return looked, None


def _take_look(before: GroupState, now: Sequence[Alarm]) -> GroupState:
    """Note which alarms stand, and count those that began again although their begin was told recently."""
    standing = tuple(sorted(alarm.name for alarm in now))
    began = set(standing) - set(before.standing)
    is_repeat = bool(began) and before.begin_at > 0
    return replace(before, standing=standing, repeats=before.repeats + is_repeat)
