"""What `ingest status` says first, and its exit code."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from ingest.alarms import Alarm, Severity
from ingest.status.verdict import NodeHealth, judge_health

SOUND: dict[str, Any] = {
    "time": 1_000_000.0,
    "running": "listening",
    "data_dir": "/data",
    "alarms": [],
    "listeners": [{"state": "accepting"}],
    "reload_refused": [],
    "store": {"full": ""},
    "disks": [{"use": "spool", "path": "/data/spool", "refuses_below": 100, "free_bytes": 1000}],
    "queue": {"reachable": True},
    "ledger": {
        "reachable": True,
        "deliveries": {"pacs": {"delivered": 5, "dead": 0}},
        "destinations": [
            {
                "name": "pacs",
                "circuit": "closed",
                "backlog": 0,
                "last_error": "",
                "opened_at_ms": 0,
                "paused_at_ms": 0,
                "paused_by": "",
                "pause_reason": "",
            }
        ],
    },
    "certificates": [
        {
            "role": "own",
            "whose": [],
            "subject": "CN=node",
            "section": "tls.node",
            "days_left": 90.0,
            "not_after": "2030-01-08T00:00:00+00:00",
        }
    ],
}


def changed(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    now = copy.deepcopy(SOUND)
    change(now)
    return now


def alarm(severity: str) -> dict[str, Any]:
    return Alarm("spool_damaged", "a record rots", "see the disk", Severity(severity), 7).to_json()


def test_a_sound_node_is_well() -> None:
    assert judge_health(SOUND).health == NodeHealth.WELL
    assert judge_health(SOUND).problems == []
    assert (
        judge_health(changed(lambda now: now.update(running="working", listeners=[]))).health
        == NodeHealth.WELL
    )


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (lambda now: now.update(running=""), NodeHealth.FAILING, "no node runs on /data"),
        (lambda now: now["listeners"].clear(), NodeHealth.FAILING, "no listener accepts"),
        (
            lambda now: now["listeners"].append({"state": "silent"}),
            NodeHealth.DEGRADED,
            "1 listener has no recent heartbeat",
        ),
        (lambda now: now["alarms"].append(alarm("failing")), NodeHealth.FAILING, "a record rots"),
        (lambda now: now["alarms"].append(alarm("degraded")), NodeHealth.DEGRADED, "a record rots"),
        (lambda now: now["disks"][0].update(free_bytes=99), NodeHealth.FAILING, "node refuses instances"),
        (
            lambda now: now["disks"][0].update(error="Input/output error"),
            NodeHealth.FAILING,
            "Input/output error",
        ),
        (
            lambda now: now["disks"].append(
                {"use": "store", "path": "/store", "refuses_below": 0, "free_bytes": 0}
            ),
            NodeHealth.FAILING,
            "store: the disk is full",
        ),
        (
            lambda now: now["queue"].update(references=7, oldest_seconds=60),
            NodeHealth.DEGRADED,
            "7 wait, the first for 60 s",
        ),
        (lambda now: now["queue"].update(references=7, oldest_seconds=59), NodeHealth.WELL, ""),
        (lambda now: now["store"].update(full="10 GB are in it"), NodeHealth.FAILING, "the store is full"),
        (
            lambda now: now.update(ledger={"reachable": False, "error": "malformed"}),
            NodeHealth.FAILING,
            "malformed",
        ),
        (
            lambda now: now["ledger"].update(read_only="it is read-only"),
            NodeHealth.FAILING,
            "it is read-only",
        ),
        (lambda now: now["ledger"].update(read_only=""), NodeHealth.WELL, ""),
        (
            lambda now: now.update(queue={"reachable": False, "error": "refused"}),
            NodeHealth.DEGRADED,
            "refused",
        ),
        (
            lambda now: now["ledger"]["destinations"][0].update(circuit="open"),
            NodeHealth.DEGRADED,
            "circuit is open",
        ),
        (
            lambda now: now["ledger"]["destinations"][0].update(
                circuit="open", paused_at_ms=5, paused_by="ann", pause_reason="upgrade", backlog=3
            ),
            NodeHealth.DEGRADED,
            "pacs: paused by ann, 3 wait: upgrade",
        ),
        (
            lambda now: now["ledger"]["deliveries"]["pacs"].update(dead=3),
            NodeHealth.DEGRADED,
            "3 deliveries are dead",
        ),
        (lambda now: now["ledger"].update(receiving={"overdue_seconds": 1799}), NodeHealth.WELL, ""),
        (
            lambda now: now["ledger"].update(receiving={"overdue_seconds": 1800}),
            NodeHealth.DEGRADED,
            "have been complete 30 minutes ago",
        ),
        (lambda now: now["reload_refused"].append("tls.node: no"), NodeHealth.DEGRADED, "tls.node: no"),
        (lambda now: now["certificates"][0].update(days_left=6.0), NodeHealth.DEGRADED, "ends in 6 days"),
        (lambda now: now["certificates"][0].update(days_left=-1.0), NodeHealth.FAILING, "has ended"),
        (
            lambda now: now["certificates"][0].update(days_left=-1.0, role="peer"),
            NodeHealth.DEGRADED,
            "has ended",
        ),
        (lambda now: now["certificates"][0].update(days_left=-1.0, role="trusted"), NodeHealth.WELL, ""),
    ],
)
def test_each_problem_has_its_code_and_a_remedy(
    change: Callable[[dict[str, Any]], Any], code: int, said: str
) -> None:
    verdict = judge_health(changed(change))
    assert verdict.health == code
    if code != NodeHealth.WELL:
        assert said in verdict.problems[0].cause
        assert verdict.problems[0].remedy


def test_the_worst_comes_first() -> None:
    def several(now: dict[str, Any]) -> None:
        now["queue"] = {"reachable": False, "error": "refused"}
        now["certificates"][0]["days_left"] = -1.0

    assert "has ended" in judge_health(changed(several)).problems[0].cause


def test_each_problem_is_an_alarm_with_name_subject_and_begin() -> None:
    def several(now: dict[str, Any]) -> None:
        now["alarms"].append(alarm("degraded"))
        now["queue"].update(references=7, oldest_seconds=90)
        now["ledger"]["destinations"][0].update(circuit="open", opened_at_ms=5)
        now["ledger"]["deliveries"]["pacs"].update(dead=3)
        now["certificates"][0].update(days_left=6.0)

    problems = [problem.to_json() for problem in judge_health(changed(several)).problems]
    assert [(row["name"], row["condition"], row["subject"], row["since_ms"]) for row in problems] == [
        ("spool_damaged", "spool_damaged", "", 7),
        ("queue_stalled", "queue_stalled", "", 999_910_000),
        ("destination_down.pacs", "destination_down", "pacs", 5),
        ("deliveries_dead.pacs", "deliveries_dead", "pacs", 0),
        ("certificate_expiring.CN=node", "certificate_expiring", "CN=node", 1893456000000),
    ]
