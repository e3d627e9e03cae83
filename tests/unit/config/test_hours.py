"""Hours: windows of the wall clock, with days, midnight and daylight saving."""

from datetime import datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ingest.config.hours import (
    DAYS,
    Hours,
    find_delivery_opening_ms,
    find_longest_closure_ms,
    find_open_since_ms,
    find_opening_ms,
    format_hours,
    have_common_time,
    is_open,
    join_hours,
    load_zone,
    parse_hours,
)

MINUTE_MS = 60_000
VIENNA = "Europe/Vienna"


def at(text: str, zone: str = VIENNA, fold: int = 0) -> int:
    moment = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold)
    return round(moment.timestamp() * 1000)


@pytest.mark.parametrize(
    ("text", "now", "opening"),
    [
        ("22:00-06:00", "2026-06-10T12:00", "2026-06-10T22:00"),
        ("22:00-06:00", "2026-06-10T21:59:59", "2026-06-10T22:00"),
        ("22:00-06:00", "2026-06-10T22:00", None),
        ("22:00-06:00", "2026-06-11T05:59:59", None),
        ("22:00-06:00", "2026-06-11T06:00", "2026-06-11T22:00"),
        # Days name the day on which a window begins: 2026-06-12 is a Friday.
        ("mon-fri 22:00-06:00", "2026-06-13T05:00", None),
        ("mon-fri 22:00-06:00", "2026-06-13T23:00", "2026-06-15T22:00"),
        ("mon-fri 22:00-06:00, sat-sun 00:00-24:00", "2026-06-13T23:00", None),
        ("fri-mon 08:00-09:00", "2026-06-13T08:30", None),
        ("fri-mon 08:00-09:00", "2026-06-16T08:30", "2026-06-19T08:00"),
        ("sun 06:00-07:00", "2026-06-14T07:00", "2026-06-21T06:00"),
        ("00:00-24:00", "2026-06-14T23:59:59", None),
        # The clock skips 02:00 to 03:00 on 2026-03-29: a window begins at the jump, or has no time at all.
        ("02:30-04:00", "2026-03-29T01:00", "2026-03-29T03:00"),
        ("02:15-02:45", "2026-03-29T01:00", "2026-03-30T02:15"),
        ("22:00-02:30", "2026-03-29T01:59", None),
        ("22:00-02:30", "2026-03-29T03:00", "2026-03-29T22:00"),
    ],
)
def test_next_opening(text: str, now: str, opening: str | None) -> None:
    found = find_opening_ms(parse_hours(text, VIENNA), at(now))
    assert found == at(opening or now)


def test_time_that_comes_twice_is_open_both_times() -> None:
    # From 03:00 the clock is set back to 02:00 on 2026-10-25.
    window = parse_hours("02:30-02:45", VIENNA)
    first, second = at("2026-10-25T02:30"), at("2026-10-25T02:45", fold=1)
    assert second - first == 75 * MINUTE_MS
    assert find_opening_ms(window, first - 1) == first
    assert all(is_open(window, first + minute * MINUTE_MS) for minute in range(75))
    assert find_opening_ms(window, second) == at("2026-10-26T02:30")


ZONES = (VIENNA, "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Africa/Casablanca", "UTC")
TRANSITIONS = ("2026-03-08", "2026-03-29", "2026-04-05", "2026-10-04", "2026-10-25", "2026-11-01")


def clock_text(minutes: int) -> str:
    return f"{minutes // 60:02}:{minutes % 60:02}"


@lru_cache(maxsize=500_000)
def read_wall(zone: str, unix_minutes: int) -> datetime:
    return datetime.fromtimestamp(unix_minutes * 60, ZoneInfo(zone)).replace(tzinfo=None)


def is_open_by_the_wall(text: str, zone: str, unix_ms: int) -> bool:
    """Read the wall clock minute by minute. A window is open from its first time until its last."""
    now = unix_ms // MINUTE_MS
    walls = [(minute, read_wall(zone, minute)) for minute in range(now - 3000, now + 3000)]
    for part in text.split(", "):
        day, _, times = part.rpartition(" ")
        begin, end = (int(each[:2]) * 60 + int(each[3:]) for each in times.split("-"))
        end += 1440 * (end <= begin)
        for back in (0, 1):
            date = datetime.combine(walls[3000][1].date(), datetime.min.time()) - timedelta(days=back)
            if day and DAYS[date.weekday()] != day:
                continue
            begins = min(minute for minute, wall in walls if wall >= date + timedelta(minutes=begin))
            ends = max(minute for minute, wall in walls if wall < date + timedelta(minutes=end))
            if begins <= now <= ends:
                return True
    return False


windows = st.builds(
    lambda day, begin, length: f"{day} {clock_text(begin)}-{clock_text((begin + length) % 1440)}".strip(),
    st.sampled_from(("", *DAYS)),
    st.integers(0, 1439),
    st.integers(1, 1439),
)


@given(
    st.lists(windows, min_size=1, max_size=2).map(", ".join),
    st.sampled_from(ZONES),
    st.sampled_from(TRANSITIONS),
    st.integers(-2000, 2000),
)
@example("02:30-03:30", VIENNA, "2026-03-29", 60)
@example("02:30-03:30", VIENNA, "2026-10-25", 45)
@example("01:45-02:10", "Australia/Lord_Howe", "2026-10-04", -540)
def test_hours_agree_with_a_clock_on_the_wall(text: str, zone: str, day: str, minutes: int) -> None:
    hours = parse_hours(text, zone)
    now = at(f"{day}T00:00", "UTC") + minutes * MINUTE_MS
    assert is_open(hours, now) is is_open_by_the_wall(text, zone, now)
    opening = find_opening_ms(hours, now)
    if not is_open(hours, now):
        assert opening > now
        assert is_open_by_the_wall(text, zone, opening)
        assert not is_open(hours, opening - 1)
        assert find_opening_ms(hours, (now + opening) // 2) == opening
        assert opening - now <= 8 * 1440 * MINUTE_MS


@pytest.mark.parametrize(
    "text",
    [
        "",
        "22-06",
        "22:00",
        "24:00-06:00",
        "22:00-22:00",
        "xyz 22:00-06:00",
        "10:00-24:30",
        "mon 1:00-2:00",
        ",",
    ],
)
def test_other_texts_are_no_hours(text: str) -> None:
    with pytest.raises(ValueError, match=r"window|day"):
        parse_hours(text, "UTC")


def test_unknown_zone_is_refused_and_every_machine_knows_those_of_tzdata(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ValueError, match="'Mars/Olympus' is no time zone of this machine"):
        load_zone("Mars/Olympus")
    with pytest.raises(ValueError, match="no time zone"):
        load_zone("../etc/passwd")
    # A machine without the zones of the system: the package tzdata has them.
    monkeypatch.setattr("zoneinfo.TZPATH", ())
    import zoneinfo

    zoneinfo.reset_tzpath(to=())
    try:
        assert str(ZoneInfo.no_cache(VIENNA)) == VIENNA
    finally:
        zoneinfo.reset_tzpath()


def test_empty_zone_is_that_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    load_zone.cache_clear()
    try:
        assert str(load_zone("")) == "Asia/Kathmandu"
    finally:
        load_zone.cache_clear()


def test_delivery_of_several_routes_goes_in_the_hours_of_any_of_them() -> None:
    night, noon = format_hours("22:00-06:00", VIENNA), format_hours("12:00-13:00", VIENNA)
    assert join_hours([night, ""]) == ""
    assert join_hours([night, night]) == night
    both = join_hours([night, noon])
    assert find_delivery_opening_ms(both, at("2026-06-10T11:00")) == at("2026-06-10T12:00")
    assert find_delivery_opening_ms(both, at("2026-06-10T14:00")) == at("2026-06-10T22:00")
    now = at("2026-06-10T14:00")
    assert find_delivery_opening_ms("", now) == now
    assert find_delivery_opening_ms("hours that a later version writes", now) == now


def test_hours_of_a_route_and_its_destination_need_a_common_time() -> None:
    now = at("2026-06-10T14:00")
    night: Hours = parse_hours("22:00-06:00", VIENNA)
    assert have_common_time(night, parse_hours("05:00-07:00", VIENNA), now)
    assert not have_common_time(night, parse_hours("06:00-22:00", VIENNA), now)
    assert have_common_time(night, parse_hours("06:00-22:00", "America/New_York"), now)
    assert find_longest_closure_ms(night, now) == 16 * 60 * MINUTE_MS
    assert find_longest_closure_ms(parse_hours("sun 06:00-07:00", "UTC"), now) == 167 * 60 * MINUTE_MS
    assert find_longest_closure_ms(parse_hours("00:00-24:00", VIENNA), now) == 0


def test_time_since_which_a_window_is_open() -> None:
    night = parse_hours("22:00-06:00", VIENNA)
    assert find_open_since_ms(night, at("2026-06-11T05:00")) == at("2026-06-10T22:00")
    assert find_open_since_ms(night, at("2026-06-10T22:00")) == at("2026-06-10T22:00")
    assert find_open_since_ms(night, at("2026-06-11T07:00")) == at("2026-06-11T07:00")
    joined = parse_hours("22:00-24:00, 00:00-06:00", VIENNA)
    assert find_open_since_ms(joined, at("2026-06-11T05:00")) == at("2026-06-10T22:00")
