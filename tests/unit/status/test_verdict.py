"""What `ingest status` says first, and its exit code."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from ingest.status.verdict import DEGRADED, FAILING, WELL, judge

SOUND: dict[str, Any] = {
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
        "destinations": [{"name": "pacs", "circuit": "closed", "backlog": 0, "last_error": ""}],
    },
    "certificates": [
        {"role": "own", "whose": [], "subject": "CN=node", "section": "tls.node", "days_left": 90.0}
    ],
}


def changed(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    now = copy.deepcopy(SOUND)
    change(now)
    return now


def alarm(severity: str) -> dict[str, Any]:
    return {"severity": severity, "cause": "a record rots", "remedy": "see the disk"}


def test_a_sound_node_is_well() -> None:
    assert judge(SOUND).code == WELL
    assert judge(SOUND).problems == []
    assert judge(changed(lambda now: now.update(running="working", listeners=[]))).code == WELL


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (lambda now: now.update(running=""), FAILING, "no node runs on /data"),
        (lambda now: now["listeners"].clear(), FAILING, "no listener accepts"),
        (lambda now: now["listeners"].append({"state": "silent"}), DEGRADED, "1 listeners give no sign"),
        (lambda now: now["alarms"].append(alarm("failing")), FAILING, "a record rots"),
        (lambda now: now["alarms"].append(alarm("degraded")), DEGRADED, "a record rots"),
        (lambda now: now["disks"][0].update(free_bytes=99), FAILING, "nothing is received"),
        (lambda now: now["disks"][0].update(error="Input/output error"), FAILING, "Input/output error"),
        (
            lambda now: now["disks"].append(
                {"use": "store", "path": "/store", "refuses_below": 0, "free_bytes": 0}
            ),
            FAILING,
            "store: the disk is full",
        ),
        (
            lambda now: now["queue"].update(references=7, oldest_seconds=60),
            DEGRADED,
            "7 wait, the first for 60 s",
        ),
        (lambda now: now["queue"].update(references=7, oldest_seconds=59), WELL, ""),
        (lambda now: now["store"].update(full="10 GB are in it"), FAILING, "the store is full"),
        (lambda now: now.update(ledger={"reachable": False, "error": "malformed"}), FAILING, "malformed"),
        (lambda now: now["ledger"].update(read_only="it is read-only"), FAILING, "it is read-only"),
        (lambda now: now["ledger"].update(read_only=""), WELL, ""),
        (lambda now: now.update(queue={"reachable": False, "error": "refused"}), DEGRADED, "refused"),
        (lambda now: now["ledger"]["destinations"][0].update(circuit="open"), DEGRADED, "circuit is open"),
        (lambda now: now["ledger"]["deliveries"]["pacs"].update(dead=3), DEGRADED, "3 deliveries are dead"),
        (lambda now: now["reload_refused"].append("tls.node: no"), DEGRADED, "tls.node: no"),
        (lambda now: now["certificates"][0].update(days_left=6.0), DEGRADED, "ends in 6 days"),
        (lambda now: now["certificates"][0].update(days_left=-1.0), FAILING, "has ended"),
        (lambda now: now["certificates"][0].update(days_left=-1.0, role="peer"), DEGRADED, "has ended"),
        (lambda now: now["certificates"][0].update(days_left=-1.0, role="trusted"), WELL, ""),
    ],
)
def test_each_problem_has_its_code_and_a_remedy(
    change: Callable[[dict[str, Any]], Any], code: int, said: str
) -> None:
    verdict = judge(changed(change))
    assert verdict.code == code
    if code != WELL:
        assert said in verdict.problems[0].cause
        assert verdict.problems[0].remedy


def test_the_worst_comes_first() -> None:
    def several(now: dict[str, Any]) -> None:
        now["queue"] = {"reachable": False, "error": "refused"}
        now["certificates"][0]["days_left"] = -1.0

    assert "has ended" in judge(changed(several)).problems[0].cause
