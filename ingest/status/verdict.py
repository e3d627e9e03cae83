"""The verdict of `ingest status`: the problems of a node, the worst first, each with its remedy.

The verdict is a pure function of the status from `ingest.status.report.gather_status`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from ingest.alarms import Severity
from ingest.ledger.circuits import CircuitState
from ingest.status.states import ListenerState, RunningProcesses


class NodeHealth(IntEnum):
    """The health of a node. The value is the exit code of `ingest status`."""

    WELL = 0
    DEGRADED = 1
    FAILING = 2

    @property
    def word(self) -> str:
        """The health as `ingest status` prints it."""
        return self.name.lower()


MIN_CERTIFICATE_DAYS: Final = 7
"""A certificate that ends within fewer days is a problem."""

MAX_QUEUE_SECONDS: Final = 60
"""A reference that waits longer in the queue is a problem."""

MIN_FREE_BYTES: Final = 1 << 20
"""A disk with fewer free bytes is full, if `min_free_bytes` does not apply to it."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem of a node.

    Attributes:
        severity: FAILING if the node does not run or cannot serve its purpose, otherwise DEGRADED.
        cause: The problem, in a few words.
        remedy: What to do about it: a command or a setting.
    """

    severity: Severity
    cause: str
    remedy: str


@dataclass(frozen=True, slots=True)
class HealthVerdict:
    """The health of a node, with its problems.

    Attributes:
        health: The health, which is also the exit code of `ingest status`.
        problems: The problems, the worst first.
    """

    health: NodeHealth
    problems: Sequence[Problem]


def judge_health(now: Mapping[str, Any]) -> HealthVerdict:
    """Judge the status of a node."""
    # The sort keeps the order of equals, and `_find_problems` yields worse problems first.
    problems = sorted(_find_problems(now), key=lambda one: one.severity is not Severity.FAILING)
    if not problems:
        return HealthVerdict(NodeHealth.WELL, problems)
    fails = problems[0].severity is Severity.FAILING
    return HealthVerdict(NodeHealth.FAILING if fails else NodeHealth.DEGRADED, problems)


def _find_problems(now: Mapping[str, Any]) -> Iterator[Problem]:
    yield from _check_process(now)
    yield from _check_alarms(now)
    yield from _check_receiving(now)
    yield from _check_services(now)
    yield from _check_destinations(now)
    yield from _check_certificates(now)
    if now["reload_refused"]:
        cause = f"the last reload was refused: {now['reload_refused'][0]}"
        yield Problem(Severity.DEGRADED, cause, "correct the configuration and run `ingest reload`")


def _check_process(now: Mapping[str, Any]) -> Iterator[Problem]:
    if not now["running"]:
        remedy = "start it with `ingest serve`, or read in its log why it ended"
        yield Problem(Severity.FAILING, f"no node runs on {now['data_dir']}", remedy)
        return
    listeners = now["listeners"]
    if now["running"] == RunningProcesses.NODE and not any(
        row["state"] == ListenerState.ACCEPTING for row in listeners
    ):
        remedy = "wait a moment if the node is starting or stopping; otherwise read its log"
        yield Problem(Severity.FAILING, "no listener accepts associations", remedy)
    silent = sum(row["state"] == ListenerState.SILENT for row in listeners)
    if silent:
        remedy = "the supervisor replaces them within a minute; read the log if they stay"
        yield Problem(
            Severity.DEGRADED,
            f"{silent} {'listener has' if silent == 1 else 'listeners have'} no recent heartbeat",
            remedy,
        )


def _check_alarms(now: Mapping[str, Any]) -> Iterator[Problem]:
    for alarm in now["alarms"]:
        yield Problem(Severity(alarm["severity"]), alarm["cause"], alarm["remedy"])


def _check_receiving(now: Mapping[str, Any]) -> Iterator[Problem]:
    for disk in now["disks"]:
        if disk.get("error"):
            yield Problem(
                Severity.FAILING, f"{disk['use']}: {disk['error']}", f"mount or repair {disk['path']}"
            )
        elif disk["refuses_below"] and disk["free_bytes"] < disk["refuses_below"]:
            cause = (
                f"{disk['use']}: {disk['free_bytes'] / 1e6:.0f} MB are free, so the node refuses instances"
            )
            remedy = f"free space on {disk['path']}, or lower [receive] min_free_bytes"
            yield Problem(Severity.FAILING, cause, remedy)
        elif not disk["refuses_below"] and disk["free_bytes"] < MIN_FREE_BYTES:
            cause = f"{disk['use']}: the disk is full"
            yield Problem(Severity.FAILING, cause, f"free space on {disk['path']}")
    if now["store"]["full"]:
        remedy = "free space with `ingest retention`, or raise [retention] max_bytes"
        yield Problem(
            Severity.FAILING,
            f"the store is full, so the node refuses instances: {now['store']['full']}",
            remedy,
        )


def _check_services(now: Mapping[str, Any]) -> Iterator[Problem]:
    ledger = now["ledger"]
    if now["running"] and (fault := ledger.get("read_only") if ledger["reachable"] else ledger["error"]):
        remedy = "repair it ([ledger] url); received instances wait in the spool"
        yield Problem(Severity.FAILING, f"nothing is stored or forwarded: {fault}", remedy)
    if now["running"] and not now["queue"]["reachable"]:
        remedy = "repair it ([queue] url); received instances wait in the spool"
        yield Problem(Severity.DEGRADED, f"the queue is away: {now['queue']['error']}", remedy)
    oldest_seconds = now["queue"].get("oldest_seconds", 0)
    if now["running"] and oldest_seconds >= MAX_QUEUE_SECONDS:
        # The workers may end again and again, be stopped or stuck, or run on another host.
        waiting = now["queue"]["references"]
        cause = f"received instances are not stored: {waiting} wait, the first for {oldest_seconds} s"
        remedy = "check that persist workers run, and read their log; nothing is lost"
        yield Problem(Severity.DEGRADED, cause, remedy)


def _check_destinations(now: Mapping[str, Any]) -> Iterator[Problem]:
    for row in now["ledger"].get("destinations", ()):
        if row["circuit"] != CircuitState.CLOSED:
            cause = (
                f"{row['name']}: its circuit is {row['circuit']}, {row['backlog']} wait: {row['last_error']}"
            )
            remedy = f"see `ingest check --connect`; `ingest retry --destination {row['name']}` tries at once"
            yield Problem(Severity.DEGRADED, cause, remedy)
    for name, states in sorted(now["ledger"].get("deliveries", {}).items()):
        if states.get("dead"):
            remedy = (
                f"see why with `ingest deliveries --destination {name} --state dead`, then `ingest retry` or "
                "`ingest drop`"
            )
            yield Problem(
                Severity.DEGRADED,
                f"{name}: {states['dead']} {'delivery is' if states['dead'] == 1 else 'deliveries are'} dead",
                remedy,
            )


def _check_certificates(now: Mapping[str, Any]) -> Iterator[Problem]:
    for row in now["certificates"]:
        left = row.get("days_left")
        if left is None or left > MIN_CERTIFICATE_DAYS or row["role"] == "trusted":
            continue
        whose = " ".join((row["role"], *row["whose"]))
        cause = f"the certificate {row['subject']} ({whose}) " + (
            "has ended" if left <= 0 else f"ends in {left:.0f} days"
        )
        is_ours = row["role"] == "own" and left <= 0
        remedy = (
            f"replace it and run `ingest reload` ({row['section']})"
            if row["role"] == "own"
            else "have it replaced"
        )
        yield Problem(Severity.FAILING if is_ours else Severity.DEGRADED, cause, remedy)
