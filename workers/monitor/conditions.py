"""The alarms that an alert tells of: the problems of the status, and those found by its own thresholds.

Everything here is a pure function of values (INVARIANT 10).
"""

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

from ingest.alarms import Alarm, Severity
from ingest.config.model import AlertSettings
from ingest.status import verdict

DELIVERIES_WAITING: Final = "deliveries_waiting"
QUARANTINE_NOT_EMPTY: Final = "quarantine_not_empty"
DISK_NEARLY_FULL: Final = "disk_nearly_full"
PEER_SILENT: Final = "peer_silent"
ALERTS_UNSENT: Final = "alerts_unsent"
WEBHOOKS_UNSENT: Final = "webhooks_unsent"

WATCHED: Final = frozenset(
    {
        DELIVERIES_WAITING,
        QUARANTINE_NOT_EMPTY,
        DISK_NEARLY_FULL,
        PEER_SILENT,
        ALERTS_UNSENT,
        WEBHOOKS_UNSENT,
        verdict.CERTIFICATE_EXPIRING,
    }
)
"""Conditions with thresholds of an alert. The monitor finds them itself, and not in the status, where they
are because the monitor wrote them there."""

_REWORDED: Final = frozenset({verdict.DESTINATION_PAUSED})
"""Conditions whose cause in the status has words that a person typed, which must not leave the node."""

SHARED: Final = frozenset(
    {
        verdict.DESTINATION_DOWN,
        verdict.DESTINATION_PAUSED,
        verdict.DELIVERIES_DEAD,
        DELIVERIES_WAITING,
        QUARANTINE_NOT_EMPTY,
        PEER_SILENT,
        "set_aside",
    }
)
"""Conditions that follow from the ledger alone. All hosts of a ledger see them, and one of them tells."""


def find_alarms(
    alert: AlertSettings, now: Mapping[str, Any], silent: Sequence[Alarm], unsent: Sequence[Alarm]
) -> list[Alarm]:
    """Return the alarms that an alert selects.

    Args:
        alert: The alert.
        now: The status of the node.
        silent: Callers that are silent by the settings of this alert.
        unsent: Alarms of alerts and webhooks whose events cannot be sent.
    """
    problems = map(Alarm.from_json, now["problems"])
    found = {one.name: one for one in problems if one.condition not in WATCHED | _REWORDED}
    others = [alarm for alarm in unsent if alarm.name != f"{ALERTS_UNSENT}.{alert.name}"]
    for alarm in (*find_watched(alert, now), *_find_paused(now), *silent, *others):
        found.setdefault(alarm.name, alarm)
    names = {row["name"] for row in now["ledger"].get("destinations", ())}
    return [alarm for alarm in found.values() if is_selected(alert, alarm, names)]


def is_selected(alert: AlertSettings, alarm: Alarm, destinations: set[str]) -> bool:
    """Whether an alert tells of an alarm. `destinations` are the names that a subject may be."""
    if alert.severity == "failing" and alarm.severity is not Severity.FAILING:
        return False
    if not any(fnmatchcase(alarm.condition, pattern) for pattern in alert.alarms):
        return False
    if alarm.subject not in destinations:
        return True
    return any(fnmatchcase(alarm.subject, pattern) for pattern in alert.destinations)


def find_watched(alert: AlertSettings, now: Mapping[str, Any]) -> Iterator[Alarm]:
    """Yield what the thresholds of an alert find in the status."""
    at_ms = round(now["time"] * 1000)
    if alert.oldest_delivery_minutes:
        yield from _find_late_deliveries(alert.oldest_delivery_minutes, now, at_ms)
    quarantined = now["ledger"].get("instances", {}).get("quarantined", 0)
    if quarantined:
        cause = f"{quarantined} {'instance is' if quarantined == 1 else 'instances are'} in quarantine"
        yield Alarm(QUARANTINE_NOT_EMPTY, cause, "see why with `ingest quarantine list`")
    for row in now["certificates"]:
        if row.get("days_left") is not None and row["days_left"] <= alert.certificate_days:
            yield from verdict.describe_ending_certificate(row, alert.certificate_days)
    for disk in now["disks"]:
        if disk.get("total_bytes") and disk["free_bytes"] < alert.min_free_share * disk["total_bytes"]:
            share = disk["free_bytes"] / disk["total_bytes"]
            cause = f"{disk['use']}: {share:.1%} of the disk are free ({disk['free_bytes'] / 1e9:.1f} GB)"
            remedy = f"free space on {disk['path']}, or let [retention] remove studies"
            yield Alarm(f"{DISK_NEARLY_FULL}.{disk['use']}", cause, remedy)


def _find_paused(now: Mapping[str, Any]) -> Iterator[Alarm]:
    for row in now["ledger"].get("destinations", ()):
        if row["paused_at_ms"]:
            name = row["name"]
            cause, remedy = f"{name}: paused, {row['backlog']} wait", f"`ingest resume {name}`"
            yield Alarm(f"{verdict.DESTINATION_PAUSED}.{name}", cause, remedy, since_ms=row["paused_at_ms"])


def get_delay_ms(alert: AlertSettings, alarm: Alarm) -> int:
    """Return how long an alarm has to stand before an alert tells of it."""
    minutes = {
        verdict.DESTINATION_DOWN: alert.destination_down_minutes,
        verdict.NOT_READY: alert.not_ready_minutes,
        # They begin and end by themselves whenever a node or a database starts.
        verdict.LISTENERS_SILENT: alert.not_ready_minutes,
        verdict.LEDGER_AWAY: alert.not_ready_minutes,
        verdict.QUEUE_AWAY: alert.not_ready_minutes,
    }
    return round(minutes.get(alarm.condition, 0.0) * 60_000)


def _find_late_deliveries(minutes: float, now: Mapping[str, Any], at_ms: int) -> Iterator[Alarm]:
    for row in now["ledger"].get("destinations", ()):
        # A delivery is late only within its hours.
        oldest_seconds = row["oldest_due_seconds"]
        if oldest_seconds is None or oldest_seconds < minutes * 60:
            continue
        name = row["name"]
        cause = f"{name}: {row['backlog']} wait, the oldest for {oldest_seconds / 60:.0f} minutes"
        remedy = f"see `ingest deliveries --destination {name} --state waiting --state retry`"
        since_ms = at_ms - round(oldest_seconds - minutes * 60) * 1000
        yield Alarm(f"{DELIVERIES_WAITING}.{name}", cause, remedy, since_ms=since_ms)
