"""Which alarms an alert selects, and what its thresholds find."""

import re
from pathlib import Path
from typing import Any

import pytest

from ingest.alarms import CONDITIONS, Alarm, Severity
from ingest.config.model import AlertSettings
from ingest.status import verdict
from ingest.workers.monitor.conditions import WATCHED, find_alarms, get_delay_ms

NOW: dict[str, Any] = {
    "time": 100_000.0,
    "problems": [
        Alarm("destination_down.pacs", "down", "look", since_ms=5).to_json(),
        Alarm("destination_down.ris", "down", "look", since_ms=5).to_json(),
        Alarm("destination_paused.ris", "ris: paused by a, 1 wait: PLANTED", "resume").to_json(),
        Alarm("store_full", "full", "look", Severity.FAILING).to_json(),
        Alarm("peer_silent.CT9", "written by the monitor earlier", "look").to_json(),
    ],
    "ledger": {
        "destinations": [
            {"name": "pacs", "oldest_due_seconds": 7260.0, "backlog": 4, "paused_at_ms": 0},
            {"name": "ris", "oldest_due_seconds": 60.0, "backlog": 1, "paused_at_ms": 9},
            {"name": "idle", "oldest_due_seconds": None, "backlog": 0, "paused_at_ms": 0},
        ],
        "instances": {"stored": 7, "quarantined": 2},
    },
    "certificates": [
        {
            "role": "peer",
            "whose": ["CT1"],
            "subject": "CN=ct1",
            "section": "",
            "days_left": 10.0,
            "not_after": "2030-01-01T00:00:00+00:00",
        },
        {"role": "trusted", "whose": [], "subject": "CN=ca", "days_left": 1.0, "not_after": "2030-01-01"},
    ],
    "disks": [
        {"use": "spool", "path": "/spool", "free_bytes": 4, "total_bytes": 100},
        {"use": "store", "path": "/store", "free_bytes": 6, "total_bytes": 100},
        {"use": "data", "path": "/data", "error": "Input/output error"},
    ],
}


def names(silent: tuple[Alarm, ...] = (), unsent: tuple[Alarm, ...] = (), **settings: object) -> list[str]:
    alert = AlertSettings(name="a", type="webhook", **settings)  # type: ignore[arg-type]
    return sorted(alarm.name for alarm in find_alarms(alert, NOW, silent, unsent))


def test_all_alarms_and_thresholds_by_default():
    assert names(silent=(Alarm("peer_silent.CT1", "silent", "look"),)) == [
        "certificate_expiring.CN=ct1",
        "deliveries_waiting.pacs",
        "destination_down.pacs",
        "destination_down.ris",
        "destination_paused.ris",
        "disk_nearly_full.spool",
        "peer_silent.CT1",
        "quarantine_not_empty",
        "store_full",
    ]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"severity": "failing"}, ["store_full"]),
        ({"alarms": ["destination_down"]}, ["destination_down.pacs", "destination_down.ris"]),
        (
            {"alarms": ["d*"], "destinations": ["p*"]},
            ["deliveries_waiting.pacs", "destination_down.pacs", "disk_nearly_full.spool"],
        ),
        ({"alarms": ["deliveries_waiting"], "oldest_delivery_minutes": 122}, []),
        ({"alarms": ["deliveries_waiting"], "oldest_delivery_minutes": 0}, []),
        ({"alarms": ["certificate_expiring"], "certificate_days": 9}, []),
        (
            {"alarms": ["disk_*"], "min_free_share": 0.07},
            ["disk_nearly_full.spool", "disk_nearly_full.store"],
        ),
        ({"alarms": ["disk_*"], "min_free_share": 0}, []),
    ],
)
def test_settings_select(settings, expected):
    assert names(**settings) == expected


def test_alert_does_not_tell_of_its_own_failure():
    unsent = (Alarm("alerts_unsent.a", "", ""), Alarm("alerts_unsent.b", "", ""))
    assert names(unsent=unsent, alarms=["alerts_unsent"]) == ["alerts_unsent.b"]


def test_late_delivery_says_since_when_and_how_many():
    alert = AlertSettings(name="a", type="webhook", alarms=("deliveries_waiting",))
    (alarm,) = find_alarms(alert, NOW, (), ())
    assert alarm.cause == "pacs: 4 wait, the oldest for 121 minutes"
    assert alarm.since_ms == 100_000_000 - 61 * 60_000


def test_destination_is_told_after_its_minutes():
    alert = AlertSettings(name="a", type="webhook", destination_down_minutes=7)
    assert get_delay_ms(alert, Alarm("destination_down.pacs", "", "")) == 420_000
    assert get_delay_ms(alert, Alarm("deliveries_dead.pacs", "", "")) == 0


def test_words_that_a_person_typed_do_not_leave_the_node():
    alert = AlertSettings(name="a", type="webhook")
    found = {alarm.name: alarm for alarm in find_alarms(alert, NOW, (), ())}
    assert found["destination_paused.ris"].cause == "ris: paused, 1 wait"
    assert "PLANTED" not in str(found)


def test_every_condition_is_documented_and_can_be_selected():
    page = (Path(__file__).parents[3] / "docs/reference/alerts.md").read_text()
    section = page.partition("## Conditions\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    documented = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert documented == CONDITIONS
    own = {value for name, value in vars(verdict).items() if name.isupper() and isinstance(value, str)}
    assert own | WATCHED <= CONDITIONS
