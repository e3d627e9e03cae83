"""Hours in which a destination is sent to: "mon-fri 22:00-06:00, sat-sun 00:00-24:00". Without a clock.

A window begins and ends at times of the wall clock in a time zone. Days name the day on which it begins. It
may end on the next day.

**Daylight saving.** A time that the clock skips counts as the moment of the jump. Of a time that comes twice,
a window begins at the first and ends at the second.

**What hours promise.** No transfer of an instance begins outside of them. One that has begun is finished.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
EITHER: Final = " | "
"""Stands between the hours of several routes: a delivery may go in any of them."""

_LOCAL_ZONE: Final = Path("/etc/localtime")
_DAY_MINUTES: Final = 24 * 60
_SEARCHED_DAYS: Final = 15
"""Some window of a week begins within these days, even if the clock skips one of them."""

_COMMON_SEARCHES: Final = 64

_WINDOW: Final = re.compile(
    r"(?:(?P<first>[a-z]{3})(?:-(?P<last>[a-z]{3}))? )?"
    r"(?P<begin>[01]\d|2[0-3]):(?P<begin_minute>[0-5]\d)-(?P<end>[01]\d|2[0-4]):(?P<end_minute>[0-5]\d)"
)


@dataclass(frozen=True, slots=True)
class Window:
    """A window of the wall clock.

    Attributes:
        days: Days on which it begins; Monday is 0.
        begin: Minutes after midnight.
        end: Minutes after the midnight of the day on which it begins; up to two days.
    """

    days: frozenset[int]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Hours:
    """Windows in a time zone."""

    windows: tuple[Window, ...]
    zone: ZoneInfo


@lru_cache(maxsize=256)
def parse_hours(text: str, zone_name: str) -> Hours:
    """Parse `hours` and `time_zone`. An empty zone is that of this machine.

    Raises:
        ValueError: The text has no such windows, or this machine knows no such zone.
    """
    windows = tuple(_parse_window(part.strip()) for part in text.split(","))
    return Hours(windows, load_zone(zone_name))


def _parse_window(text: str) -> Window:
    found = _WINDOW.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no window of hours")
    first, last = found["first"], found["last"] or found["first"]
    for day in (first, last):
        if day is not None and day not in DAYS:
            raise ValueError(f"{day!r} is no day")
    begin = int(found["begin"]) * 60 + int(found["begin_minute"])
    end = int(found["end"]) * 60 + int(found["end_minute"])
    if end > _DAY_MINUTES or begin == end:
        raise ValueError(f"{text!r} is no window: the whole day is 00:00-24:00")
    days = range(7)
    if first is not None and last is not None:
        begins_at = DAYS.index(first)
        days = range(begins_at, begins_at + 1 + (DAYS.index(last) - begins_at) % 7)
    return Window(frozenset(day % 7 for day in days), begin, end if end > begin else end + _DAY_MINUTES)


@lru_cache(maxsize=64)
def load_zone(name: str) -> ZoneInfo:
    """Return a time zone; an empty name is the zone of this machine.

    Raises:
        ValueError: This machine knows no such zone.
    """
    name = name or os.environ.get("TZ", "").lstrip(":")
    try:
        if name:
            return ZoneInfo(name)
        with _LOCAL_ZONE.open("rb") as file:
            return ZoneInfo.from_file(file)
    except FileNotFoundError as error:
        if not name:
            return ZoneInfo("UTC")
        raise ValueError(f"{name!r} is no time zone of this machine") from error
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{name or str(_LOCAL_ZONE)!r} is no time zone of this machine") from error


def find_opening_ms(hours: Hours, unix_ms: int) -> int:
    """Return the first time from `unix_ms` on at which a window is open: `unix_ms` itself if one is open."""
    today = _to_local(unix_ms, hours.zone).date()
    opening = None
    for begin, end in _list_intervals(hours, today):
        if begin <= unix_ms < end:
            return unix_ms
        if begin > unix_ms and (opening is None or begin < opening):
            opening = begin
    # Each week has a window, unless a zone skips its whole time: then nothing must wait for ever.
    return unix_ms if opening is None else opening


def is_open(hours: Hours, unix_ms: int) -> bool:
    """Return whether a window is open."""
    return find_opening_ms(hours, unix_ms) == unix_ms


def have_common_time(one: Hours, other: Hours, unix_ms: int) -> bool:
    """Return whether both are open at some time of the coming weeks."""
    today = _to_local(unix_ms, one.zone).date()
    intervals = list(_list_intervals(other, today))
    return any(
        max(begin, other_begin) < min(end, other_end)
        for begin, end in _list_intervals(one, today)
        for other_begin, other_end in intervals
    )


def find_open_since_ms(hours: Hours, unix_ms: int) -> int:
    """Return since when a window has been open without a break: `unix_ms` itself if none is open."""
    since = unix_ms
    today = _to_local(unix_ms, hours.zone).date()
    for begin, end in sorted(_list_intervals(hours, today), reverse=True):
        if begin < since <= end and (end > since or since < unix_ms):
            since = begin
    return since


def find_longest_closure_ms(hours: Hours, unix_ms: int) -> int:
    """Return the longest time without an open window in the coming two weeks."""
    today = _to_local(unix_ms, hours.zone).date()
    longest = 0
    open_until = None
    for begin, end in sorted(_list_intervals(hours, today)):
        if open_until is not None:
            longest = max(longest, begin - open_until)
        open_until = end if open_until is None else max(open_until, end)
    return longest


def _list_intervals(hours: Hours, today: date) -> Iterator[tuple[int, int]]:
    """Yield begin and end of windows in Unix milliseconds, of yesterday and of the coming days."""
    for number in range(-2, _SEARCHED_DAYS):
        day = today + timedelta(days=number)
        for window in hours.windows:
            if day.weekday() in window.days:
                begin = _to_unix_ms(day, window.begin, hours.zone, fold=0)
                end = _to_unix_ms(day, window.end, hours.zone, fold=1)
                if begin < end:
                    yield begin, end


def _to_local(unix_ms: int, zone: ZoneInfo) -> datetime:
    return datetime.fromtimestamp(unix_ms / 1000, UTC).astimezone(zone)


@lru_cache(maxsize=4096)
def _to_unix_ms(day: date, minutes: int, zone: ZoneInfo, *, fold: int) -> int:
    """Return the time at which the wall clock shows this minute; in a gap, the moment of the jump."""
    naive = datetime(day.year, day.month, day.day) + timedelta(minutes=minutes)  # noqa: DTZ001 - wall clock
    meant = naive.replace(tzinfo=zone, fold=fold).astimezone(UTC)
    if meant.astimezone(zone).replace(tzinfo=None) != naive:
        # Before the jump fold=0 has the older offset, which lies behind the jump; fold=1 lies before it.
        before, after = sorted(naive.replace(tzinfo=zone, fold=each).astimezone(UTC) for each in (0, 1))
        meant = _find_jump(before, after, zone)
    return round(meant.timestamp() * 1000)


def _find_jump(before: datetime, after: datetime, zone: ZoneInfo) -> datetime:
    """Return the moment between two times at which the offset of a zone changes, to the second."""
    offset = before.astimezone(zone).utcoffset()
    while after - before > timedelta(seconds=1):
        middle = before + (after - before) // 2
        if middle.astimezone(zone).utcoffset() == offset:
            before = middle
        else:
            after = middle
    return after.replace(microsecond=0)


# --- hours of a delivery, as its row in the ledger has them


def format_hours(text: str, zone_name: str) -> str:
    """Return `hours` and `time_zone` of a route as one text, for a delivery."""
    return f"{text} {zone_name}".strip()


def join_hours(texts: list[str]) -> str:
    """Return the hours of a delivery that several routes make: those of any route; empty if one has none."""
    return EITHER.join(dict.fromkeys(texts)) if all(texts) else ""


@lru_cache(maxsize=1024)
def _parse_delivery_hours(text: str) -> tuple[Hours, ...]:
    found = []
    for part in text.split(EITHER):
        windows, _, zone = part.rpartition(" ")
        # The last word is a zone, unless it is a window.
        if not windows or _WINDOW.fullmatch(zone) is not None:
            windows, zone = part, ""
        found.append(parse_hours(windows, zone))
    return tuple(found)


def find_delivery_opening_ms(text: str, unix_ms: int) -> int:
    """Return the first time from `unix_ms` on at which a delivery with these hours may be sent.

    Hours that this machine cannot read hold nothing back: a delivery must not wait for ever.
    """
    if not text:
        return unix_ms
    try:
        hours = _parse_delivery_hours(text)
    except ValueError:
        return unix_ms
    return min(find_opening_ms(each, unix_ms) for each in hours)


def find_common_opening_ms(text: str, find_other_ms: Callable[[int], int], unix_ms: int) -> int:
    """Return the first time from `unix_ms` on that is in the hours of a delivery and of its destination.

    Args:
        text: Hours of the delivery.
        find_other_ms: Returns the first time from a time on at which the destination may be sent to.
        unix_ms: From when on. Hours without a common time in many windows give the time of the last one.
    """
    for _ in range(_COMMON_SEARCHES):
        opening_ms = find_other_ms(find_delivery_opening_ms(text, unix_ms))
        if opening_ms == unix_ms:
            break
        unix_ms = opening_ms
    return unix_ms
