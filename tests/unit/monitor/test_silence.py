"""When a caller is silent: learned from weeks of sending, or by its own settings."""

import random

import pytest

from ingest.config.model import AlertSettings, SilentPeerSettings
from ingest.workers.monitor.silence import find_silent_peers

HOUR = 3_600_000
MONDAY = 24 * 7 * 3000 + 24 * 4
"""An hour: 1970 began on a Thursday, so a Monday came four days later. Local time is UTC here."""


def local(hour):
    return (hour // 24 + 3) % 7, hour % 24


def at(week, day, hour, minutes=0):
    return (MONDAY + week * 168 + day * 24 + hour) * HOUR + minutes * 60_000


def sent(*, share=1.0, days=range(5), hours=range(8, 18), weeks=range(4)):
    """Hours in which a caller sent, at half past."""
    chance = random.Random(7)
    moments = [at(week, day, hour, 30) for week in weeks for day in days for hour in hours]
    return {moment // HOUR: moment for moment in moments if chance.random() < share}


def silent(hours, now, **settings):
    alert = AlertSettings(name="a", type="webhook", **settings)
    found = find_silent_peers(alert, {"CT1": hours}, now, 0, local)
    return [alarm.cause for alarm in found]


def test_scanner_of_weekdays_is_missed_after_four_hours_and_not_at_night_or_on_sunday():
    hours = sent()
    assert silent(hours, at(3, 5, 12)) == []  # Saturday
    assert silent(hours, at(3, 6, 23)) == []  # Sunday
    assert silent(hours, at(4, 0, 7)) == []  # Monday before it works
    # Half an hour of Friday counts too.
    assert silent(hours, at(4, 0, 11, 29)) == []
    cause = "CT1 usually sends on weekdays and has sent nothing for 66 hours"
    assert silent(hours, at(4, 0, 11, 31)) == [cause]
    assert silent(hours, at(4, 0, 20)) != []  # it stands until the scanner sends
    assert silent(hours | {at(4, 0, 12) // HOUR: at(4, 0, 12)}, at(4, 0, 12, 30)) == []


def test_caller_with_long_pauses_needs_a_longer_silence():
    rare = sent(share=0.15)
    last = max(rare.values())
    assert last > at(3, 3, 0)
    assert silent(rare, last + 20 * HOUR) == []
    assert silent(rare, at(8, 0, 12)) == []  # nothing is learned from what is older than four weeks


@pytest.mark.parametrize(
    "hours", [{}, sent(weeks=range(3, 4)), sent(days=[2]), {at(0, 0, 9) // HOUR: at(0, 0, 9)}]
)
def test_too_little_history_teaches_nothing(hours):
    assert silent(hours, at(4, 2, 17)) == []


def test_holiday_in_the_history_does_not_hide_a_silence():
    hours = {hour: moment for hour, moment in sent().items() if local(hour) != (2, 9) or hour % 2}
    holiday = {hour for hour in hours if at(1, 2, 0) <= hour * HOUR < at(1, 3, 0)}
    hours = {hour: moment for hour, moment in hours.items() if hour not in holiday}
    assert silent(hours, at(4, 0, 14)) != []


def test_learning_can_be_turned_off():
    assert silent(sent(), at(4, 0, 17), silent_hours=0) == []


def test_named_caller_counts_only_its_own_hours_and_needs_no_history():
    peer = SilentPeerSettings(ae_title="CT1", hours=3, days=("mon",), begin_hour=8, end_hour=12)
    last = at(0, 0, 9)
    hours = {last // HOUR: last}
    assert silent(hours, at(0, 0, 11, 59), silent_peers=(peer,)) == []
    assert silent(hours, at(0, 0, 12, 1), silent_peers=(peer,)) == ["CT1 has sent nothing for 3 hours"]
    other = SilentPeerSettings(ae_title="MR1", hours=1)
    assert silent(hours, HOUR * 2, silent_peers=(other,)) == ["MR1 has sent nothing for 2 hours"]
