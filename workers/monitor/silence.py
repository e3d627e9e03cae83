"""Silent callers: when a caller usually sends, and whether it is silent now.

For each caller the ledger has the hours of the last weeks in which it sent something. From them follows, for
each hour of a weekday, a Saturday or a Sunday, on which share of the days the caller sent. Silence is counted
in usual hours: an hour in which the caller sends on every weekday counts as one, and one in which it sends on
half of them as a half. A scanner that works from eight to six is therefore not silent at night.

Some callers pause for long. A silence counts only if it is also clearly longer than nearly all pauses of the
last weeks. A caller that was never silent before may be told of on a holiday, which nobody can learn.

The functions are pure (INVARIANT 10). Local time decides, because people work by it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Final

from ingest.alarms import Alarm
from ingest.config.model import AlertSettings, SilentPeerSettings
from ingest.ledger.peer_hours import HOUR_MS
from ingest.workers.monitor.conditions import PEER_SILENT

LEARNED_HOURS: Final = 28 * 24
MIN_LEARNED_HOURS: Final = 14 * 24
"""Nothing is learned about a caller that was first heard of later than this."""

MIN_ACTIVE_DAYS: Final = 5
LONGEST_PAUSES: Final = 0.02
"""This share of pauses may have been holidays or repairs, and is not learned from."""

PAUSE_FACTOR: Final = 1.25
WEEKDAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

LocalHour = tuple[int, int]
"""Day of the week, from 0 for Monday, and hour of the day."""


def to_local_hour(hour: int) -> LocalHour:
    """Return the local day and hour at the begin of an hour since 1970."""
    local = datetime.fromtimestamp(hour * 3600).astimezone()
    return local.weekday(), local.hour


def find_silent_peers(
    alert: AlertSettings,
    peers: Mapping[str, Mapping[int, int]],
    unix_ms: int,
    started_ms: int,
    local: Callable[[int], LocalHour] = to_local_hour,
) -> list[Alarm]:
    """Return an alarm for each caller that is silent by the settings of an alert.

    Args:
        alert: The settings.
        peers: For each AE title the hours in which it sent something, each with the last arrival.
        unix_ms: Current time.
        started_ms: When the monitor began to look, for callers that never sent anything.
        local: Converts hours to local time.
    """
    named = {peer.ae_title.strip(): peer for peer in alert.silent_peers}
    found = [
        judge_named_peer(peer, peers.get(name, {}), unix_ms, started_ms, local)
        for name, peer in named.items()
    ]
    if alert.silent_hours:
        found += [
            judge_learned_peer(name, hours, alert.silent_hours, unix_ms, local)
            for name, hours in peers.items()
            if name not in named
        ]
    return [alarm for alarm in found if alarm is not None]


def judge_named_peer(
    peer: SilentPeerSettings,
    hours: Mapping[int, int],
    unix_ms: int,
    started_ms: int,
    local: Callable[[int], LocalHour],
) -> Alarm | None:
    """Return an alarm if a caller was silent in as many of its hours as its settings allow."""
    last_ms = max(hours.values(), default=started_ms)
    days = {WEEKDAYS.index(day) for day in peer.days}
    counted = 0.0
    for hour, share in _iterate_hours(last_ms, unix_ms):
        day, hour_of_day = local(hour)
        if day in days and peer.begin_hour <= hour_of_day < peer.end_hour:
            counted += share
    if counted < peer.hours:
        return None
    return _describe_silence(peer.ae_title.strip(), "", last_ms, unix_ms)


def judge_learned_peer(
    name: str,
    hours: Mapping[int, int],
    silent_hours: float,
    unix_ms: int,
    local: Callable[[int], LocalHour],
) -> Alarm | None:
    """Return an alarm if a caller is silent for longer than its history explains."""
    first_hour = unix_ms // HOUR_MS - LEARNED_HOURS
    active = sorted(hour for hour in hours if hour >= first_hour)
    if not active or active[-1] - active[0] < MIN_LEARNED_HOURS:
        return None
    if len({hour // 24 for hour in active}) < MIN_ACTIVE_DAYS:
        return None
    shares = _learn_shares(active, local)
    last_ms = hours[active[-1]]
    silence = sum(
        share * shares.get(_get_slot(local(hour)), 0.0) for hour, share in _iterate_hours(last_ms, unix_ms)
    )
    pauses = sorted(_measure_pauses(active, shares, local))
    usual = pauses[min(len(pauses) - 1, int(len(pauses) * (1 - LONGEST_PAUSES)))] if pauses else 0.0
    if silence < max(silent_hours, PAUSE_FACTOR * usual):
        return None
    return _describe_silence(name, _describe_days(active, local), last_ms, unix_ms)


def _learn_shares(active: Sequence[int], local: Callable[[int], LocalHour]) -> dict[LocalHour, float]:
    """Return for each hour of a kind of day the share of days on which the caller sent in it."""
    days: dict[LocalHour, int] = {}
    sent: dict[LocalHour, int] = {}
    known = set(active)
    for hour in range(active[0], active[-1] + 1):
        slot = _get_slot(local(hour))
        days[slot] = days.get(slot, 0) + 1
        sent[slot] = sent.get(slot, 0) + (hour in known)
    return {slot: sent[slot] / count for slot, count in days.items()}


def _get_slot(local: LocalHour) -> LocalHour:
    """Return the kind of day and the hour: weekdays are alike, Saturday and Sunday are not."""
    return max(4, local[0]), local[1]


def _measure_pauses(
    active: Sequence[int], shares: Mapping[LocalHour, float], local: Callable[[int], LocalHour]
) -> Iterator[float]:
    for before, after in pairwise(active):
        yield sum(shares.get(_get_slot(local(hour)), 0.0) for hour in range(before + 1, after))


def _iterate_hours(from_ms: int, until_ms: int) -> Iterator[tuple[int, float]]:
    """Yield each hour of a time and the share of it that lies within, at most the learned hours."""
    last = until_ms // HOUR_MS
    for hour in range(max(from_ms // HOUR_MS, last - LEARNED_HOURS), last + 1):
        inside = min(until_ms, (hour + 1) * HOUR_MS) - max(from_ms, hour * HOUR_MS)
        if inside > 0:
            yield hour, inside / HOUR_MS


def _describe_days(active: Sequence[int], local: Callable[[int], LocalHour]) -> str:
    at_weekends = sum(local(hour)[0] >= 5 for hour in active)
    return "usually sends on weekdays" if at_weekends * 20 < len(active) else "usually sends at this time"


def _describe_silence(name: str, habit: str, last_ms: int, unix_ms: int) -> Alarm:
    hours = (unix_ms - last_ms) / HOUR_MS
    length = f"{hours:.0f} hours" if hours >= 2 else f"{hours * 60:.0f} minutes"
    cause = f"{name} {habit + ' and ' if habit else ''}has sent nothing for {length}"
    remedy = f"see whether it works and reaches this node (`ingest instances --calling '{name}'`)"
    return Alarm(f"{PEER_SILENT}.{name}", cause, remedy, since_ms=last_ms)
