"""When an alert tells of a group of alarms: one message for an interval, one recovery, reminders."""

from dataclasses import replace

from ingest.alarms import Alarm, Severity
from ingest.config.model import AlertSettings
from ingest.workers.monitor.grouping import NEW_GROUP, GroupState, decide_message

MINUTE = 60_000
DOWN = Alarm("destination_down.PACS", "PACS is down", "look", since_ms=1)
DEAD = Alarm("deliveries_dead.PACS", "3 are dead", "look", since_ms=1)
ALERT = AlertSettings(name="a", type="webhook", interval_minutes=15, remind_hours=2)


class Group:
    """One group over time."""

    def __init__(self, alert: AlertSettings = ALERT) -> None:
        self.alert, self.state, self.messages = alert, NEW_GROUP, []

    def at(self, minute: float, *alarms: Alarm) -> str:
        """Look, and return the type of the message."""
        after, message = decide_message(
            self.state,
            alarms,
            self.alert,
            subject="PACS",
            unix_ms=round((1000 + minute) * MINUTE),
            event_id=f"id-{len(self.messages)}",
        )
        self.state = NEW_GROUP if after is None else GroupState.from_json(after.to_json())
        assert after is None or self.state == after
        if message is not None:
            self.messages.append(message)
        return message.type.value if message else ""


def test_begin_and_end_are_told_once():
    group = Group()
    assert [group.at(minute, DOWN) for minute in (0, 1, 14, 16)] == ["alarm", "", "", ""]
    assert [group.at(minute) for minute in (17, 18)] == ["recovery", ""]
    begin, end = group.messages
    assert (end.incident, list(end.ended), list(end.alarms)) == (begin.event_id, [DOWN], [])
    assert group.at(40) == ""
    assert group.state == NEW_GROUP


def test_destination_that_comes_and_goes_is_told_once_in_an_interval_with_a_count():
    group = Group()
    told = [group.at(minute, *([DOWN] if minute % 2 == 0 else [])) for minute in range(15)]
    assert told == ["alarm", "recovery", *[""] * 13]
    assert [group.at(15), group.at(16, DOWN)] == ["", "alarm"]
    assert group.messages[-1].repeats == 7
    assert group.messages[-1].incident == group.messages[-1].event_id


def test_second_alarm_of_a_group_waits_for_the_interval_and_belongs_to_the_incident():
    group = Group()
    assert [group.at(0, DOWN), group.at(3, DOWN, DEAD), group.at(15, DOWN, DEAD)] == ["alarm", "", "alarm"]
    assert group.messages[1].incident == "id-0"
    assert list(group.messages[1].alarms) == [DOWN, DEAD]


def test_part_that_ended_is_told_with_what_still_stands():
    group = Group()
    assert [group.at(0, DOWN, DEAD), group.at(5, DEAD), group.at(6)] == ["alarm", "recovery", ""]
    assert (list(group.messages[1].alarms), list(group.messages[1].ended)) == ([DEAD], [DOWN])
    assert group.at(20) == "recovery"
    assert list(group.messages[2].ended) == [DEAD]


def test_group_that_begins_to_fail_does_not_wait():
    failing = replace(DEAD, severity=Severity.FAILING)
    group = Group()
    assert [group.at(0, DOWN), group.at(1, DOWN, failing)] == ["alarm", "alarm"]
    # It does not tell of each further begin of a failure at once.
    assert [group.at(2), group.at(3, failing), group.at(4)] == ["recovery", "", ""]


def test_what_stands_is_told_again_after_the_time_of_reminders():
    group = Group()
    assert [group.at(minute, DOWN) for minute in (0, 60, 119, 120, 121, 240)] == [
        "alarm", "", "", "reminder", "", "reminder",
    ]  # fmt: skip
    silent = Group(ALERT.model_copy(update={"remind_hours": 0}))
    assert [silent.at(minute, DOWN) for minute in (0, 10_000)] == ["alarm", ""]


def test_without_recovery_only_begins_are_told():
    group = Group(ALERT.model_copy(update={"recovery": False}))
    assert [group.at(0, DOWN), group.at(1), group.at(20, DOWN)] == ["alarm", "", "alarm"]
