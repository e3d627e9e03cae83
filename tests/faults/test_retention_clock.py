"""A clock that is set ahead, under a node that removes studies for their age."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ingest.alarms import standing_alarms
from tests.faults.caller import Caller
from tests.support.clocks import Clock, require_clock
from tests.support.instances import Made
from tests.support.nodes import Node, eventually

YEAR_SECONDS = 365 * 86400
RETENTION = "[retention]\nkeep_days = 30\ncheck_seconds = 0.2"


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return require_clock(tmp_path)


def receive(node: Node, *numbers: int) -> None:
    with Caller.plain(node) as caller:
        caller.associate()
        for number in numbers:
            assert caller.store(Made(sop=f"1.9.{number}", study=f"1.8.{number}")).status == 0
        caller.release()
    eventually(lambda: {f"1.9.{number}" for number in numbers} <= set(node.stored()), 60, "stored")


def alarms(node: Node) -> set[str]:
    return {alarm.name for alarm in standing_alarms(node.data / "run")}


@pytest.mark.parametrize("meanwhile", ["running", "stopped"])
def test_a_clock_set_ahead_removes_nothing_for_its_age(
    make_node: Callable[..., Node], clock: Clock, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    clock.preload(monkeypatch)
    node = make_node(retention=RETENTION)
    node.start()
    receive(node, *range(5))
    eventually(lambda: (node.data / "run" / "retention_clock.json").exists(), 10, "a pass")
    if meanwhile == "stopped":
        node.stop()
        clock.step(YEAR_SECONDS)
        node.start()
    else:
        clock.step(YEAR_SECONDS)
    receive(node, 5)
    eventually(lambda: "retention_clock" in alarms(node), 10, "an alarm")
    time.sleep(1)
    assert len(node.stored()) == 6
    clock.step(0)
    eventually(lambda: "retention_clock" not in alarms(node), 10, "the alarm is cleared")
    assert len(node.stored()) == 6


def test_a_clock_that_a_person_accepts_is_believed(
    make_node: Callable[..., Node], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock.preload(monkeypatch)
    node = make_node(retention=RETENTION)
    node.start()
    receive(node, *range(3))
    eventually(lambda: (node.data / "run" / "retention_clock.json").exists(), 10, "a pass")
    clock.step(YEAR_SECONDS)
    eventually(lambda: "retention_clock" in alarms(node), 10, "an alarm")
    assert command(node).returncode == 1
    assert len(node.stored()) == 3
    done = command(node, "--accept-clock")
    # The node's own remover may be at it in that very moment.
    assert done.returncode == 0 or "another process" in done.stderr
    eventually(lambda: len(node.stored()) == 0, 60, "what is older than 30 days by the clock has gone")
    eventually(lambda: "retention_clock" not in alarms(node), 10, "the alarm is cleared")


def command(node: Node, *options: str) -> "subprocess.CompletedProcess[str]":
    process = node.launch("retention", *options)
    out, _ = process.communicate(timeout=30)
    return subprocess.CompletedProcess([], process.returncode, out, node.log)
