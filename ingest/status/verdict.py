"""The verdict of `ingest status`: the problems of a node, the worst first, each with its remedy.

The verdict is a pure function of the status from `ingest.status.report.gather_status`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Any, Final

from ingest.alarms import Alarm, Severity
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


NOT_RUNNING: Final = "node_not_running"
NOT_READY: Final = "node_not_ready"
LISTENERS_SILENT: Final = "listeners_silent"
DISK_AWAY: Final = "disk_away"
DISK_FULL: Final = "disk_full"
STORE_FULL: Final = "store_full"
LEDGER_AWAY: Final = "ledger_away"
QUEUE_AWAY: Final = "queue_away"
QUEUE_STALLED: Final = "queue_stalled"
DESTINATION_DOWN: Final = "destination_down"
DESTINATION_PAUSED: Final = "destination_paused"
DELIVERIES_DEAD: Final = "deliveries_dead"
STUDIES_OVERDUE: Final = "studies_overdue"
CERTIFICATE_EXPIRING: Final = "certificate_expiring"
RELOAD_REFUSED: Final = "reload_refused"

MIN_CERTIFICATE_DAYS: Final = 7
"""A certificate that ends within fewer days is a problem."""

MAX_OVERDUE_SECONDS: Final = 1800
"""A study that is held up for longer after its time to be complete is a problem."""

MAX_QUEUE_SECONDS: Final = 60
"""A reference that waits longer in the queue is a problem."""

MIN_FREE_BYTES: Final = 1 << 20
"""A disk with fewer free bytes is full, if `min_free_bytes` does not apply to it."""


@dataclass(frozen=True, slots=True)
class HealthVerdict:
    """The health of a node, with its problems.

    Attributes:
        health: The health, which is also the exit code of `ingest status`.
        problems: The problems, the worst first: alarms that stand, and those that follow from the status.
    """

    health: NodeHealth
    problems: Sequence[Alarm]


def judge_health(now: Mapping[str, Any]) -> HealthVerdict:
    """Judge the status of a node."""
    # The monitor may have found an alarm earlier that follows from the status too. The newer one counts.
    found = {problem.name: problem for problem in _find_problems(now)}
    # The sort keeps the order of equals, and `_find_problems` yields worse problems first.
    problems = sorted(found.values(), key=lambda one: one.severity is not Severity.FAILING)
    if not problems:
        return HealthVerdict(NodeHealth.WELL, problems)
    fails = problems[0].severity is Severity.FAILING
    return HealthVerdict(NodeHealth.FAILING if fails else NodeHealth.DEGRADED, problems)


def _find_problems(now: Mapping[str, Any]) -> Iterator[Alarm]:
    yield from _check_process(now)
    yield from map(Alarm.from_json, now["alarms"])
    yield from _check_receiving(now)
    yield from _check_services(now)
    yield from _check_destinations(now)
    yield from _check_completion(now)
    yield from _check_certificates(now)
    if now["reload_refused"]:
        cause = f"the last reload was refused: {now['reload_refused'][0]}"
        yield Alarm(RELOAD_REFUSED, cause, "correct the configuration and run `ingest reload`")


def _check_process(now: Mapping[str, Any]) -> Iterator[Alarm]:
    if not now["running"]:
        remedy = "start it with `ingest serve`, or read in its log why it ended"
        yield Alarm(NOT_RUNNING, f"no node runs on {now['data_dir']}", remedy, Severity.FAILING)
        return
    listeners = now["listeners"]
    if now["running"] == RunningProcesses.NODE and not any(
        row["state"] == ListenerState.ACCEPTING for row in listeners
    ):
        remedy = "wait a moment if the node is starting or stopping; otherwise read its log"
        yield Alarm(NOT_READY, "no listener accepts associations", remedy, Severity.FAILING)
    silent = sum(row["state"] == ListenerState.SILENT for row in listeners)
    if silent:
        remedy = "the supervisor replaces them within a minute; read the log if they stay"
        cause = f"{silent} {'listener has' if silent == 1 else 'listeners have'} no recent heartbeat"
        yield Alarm(LISTENERS_SILENT, cause, remedy)


def _check_receiving(now: Mapping[str, Any]) -> Iterator[Alarm]:
    for disk in now["disks"]:
        use, path = disk["use"], disk["path"]
        if disk.get("error"):
            cause, remedy = f"{use}: {disk['error']}", f"mount or repair {path}"
            yield Alarm(f"{DISK_AWAY}.{use}", cause, remedy, Severity.FAILING)
        elif disk["refuses_below"] and disk["free_bytes"] < disk["refuses_below"]:
            cause = f"{use}: {disk['free_bytes'] / 1e6:.0f} MB are free, so the node refuses instances"
            remedy = f"free space on {path}, or lower [receive] min_free_bytes"
            yield Alarm(f"{DISK_FULL}.{use}", cause, remedy, Severity.FAILING)
        elif not disk["refuses_below"] and disk["free_bytes"] < MIN_FREE_BYTES:
            cause, remedy = f"{use}: the disk is full", f"free space on {path}"
            yield Alarm(f"{DISK_FULL}.{use}", cause, remedy, Severity.FAILING)
    if now["store"]["full"]:
        cause = f"the store is full, so the node refuses instances: {now['store']['full']}"
        remedy = "free space with `ingest retention`, or raise [retention] max_bytes"
        yield Alarm(STORE_FULL, cause, remedy, Severity.FAILING)


def _check_services(now: Mapping[str, Any]) -> Iterator[Alarm]:
    ledger = now["ledger"]
    if now["running"] and (fault := ledger.get("read_only") if ledger["reachable"] else ledger["error"]):
        remedy = "repair it ([ledger] url); received instances wait in the spool"
        yield Alarm(LEDGER_AWAY, f"nothing is stored or forwarded: {fault}", remedy, Severity.FAILING)
    if now["running"] and not now["queue"]["reachable"]:
        remedy = "repair it ([queue] url); received instances wait in the spool"
        yield Alarm(QUEUE_AWAY, f"the queue is away: {now['queue']['error']}", remedy)
    oldest_seconds = now["queue"].get("oldest_seconds", 0)
    if now["running"] and oldest_seconds >= MAX_QUEUE_SECONDS:
        # The workers may end again and again, be stopped or stuck, or run on another host.
        waiting = now["queue"]["references"]
        cause = f"received instances are not stored: {waiting} wait, the first for {oldest_seconds} s"
        remedy = "check that persist workers run, and read their log; nothing is lost"
        since_ms = round((now["time"] - oldest_seconds) * 1000)
        yield Alarm(QUEUE_STALLED, cause, remedy, since_ms=since_ms)


def _check_destinations(now: Mapping[str, Any]) -> Iterator[Alarm]:
    for row in now["ledger"].get("destinations", ()):
        if row["paused_at_ms"]:
            name, reason = row["name"], row["pause_reason"]
            cause = f"{name}: paused by {row['paused_by']}, {row['backlog']} wait"
            yield Alarm(
                f"{DESTINATION_PAUSED}.{name}",
                f"{cause}: {reason}" if reason else cause,
                f"`ingest resume {name}` when it may be sent to again",
                since_ms=row["paused_at_ms"],
            )
        elif row["circuit"] != CircuitState.CLOSED:
            name = row["name"]
            cause = f"{name}: its circuit is {row['circuit']}, {row['backlog']} wait: {row['last_error']}"
            remedy = f"see `ingest check --connect`; `ingest retry --destination {name}` tries at once"
            yield Alarm(f"{DESTINATION_DOWN}.{name}", cause, remedy, since_ms=row["opened_at_ms"])
    for name, states in sorted(now["ledger"].get("deliveries", {}).items()):
        if states.get("dead"):
            cause = (
                f"{name}: {states['dead']} {'delivery is' if states['dead'] == 1 else 'deliveries are'} dead"
            )
            remedy = (
                f"see why with `ingest deliveries --destination {name} --state dead`, then `ingest retry` or "
                "`ingest drop`"
            )
            yield Alarm(f"{DELIVERIES_DEAD}.{name}", cause, remedy)


def _check_completion(now: Mapping[str, Any]) -> Iterator[Alarm]:
    overdue_seconds = now["ledger"].get("receiving", {}).get("overdue_seconds", 0)
    if overdue_seconds >= MAX_OVERDUE_SECONDS:
        minutes = overdue_seconds / 60
        cause = f"a study is held up: it should have been complete {minutes:.0f} minutes ago"
        remedy = "check that the monitor and persist workers run, and read their log; "
        remedy += "`ingest retry --state awaiting` sends at once what waits for complete studies"
        since_ms = round((now["time"] - overdue_seconds) * 1000)
        yield Alarm(STUDIES_OVERDUE, cause, remedy, since_ms=since_ms)


def _check_certificates(now: Mapping[str, Any]) -> Iterator[Alarm]:
    for row in now["certificates"]:
        if row.get("days_left") is not None and row["days_left"] <= MIN_CERTIFICATE_DAYS:
            yield from describe_ending_certificate(row, MIN_CERTIFICATE_DAYS)


def describe_ending_certificate(row: Mapping[str, Any], days: float) -> Iterator[Alarm]:
    """Yield an alarm for a certificate that ends soon, unless it is a trusted one.

    Args:
        row: A certificate of the status, with `days_left`.
        days: Days before the end at which the condition begins.
    """
    if row["role"] == "trusted":
        return
    left = row["days_left"]
    whose = " ".join((row["role"], *row["whose"]))
    ending = "has ended" if left <= 0 else f"ends in {left:.0f} days"
    cause = f"the certificate {row['subject']} ({whose}) {ending}"
    is_own = row["role"] == "own"
    remedy = f"replace it and run `ingest reload` ({row['section']})" if is_own else "have it replaced"
    severity = Severity.FAILING if is_own and left <= 0 else Severity.DEGRADED
    since_ms = round((datetime.fromisoformat(row["not_after"]).timestamp() - days * 86400) * 1000)
    yield Alarm(f"{CERTIFICATE_EXPIRING}.{row['subject']}", cause, remedy, severity, since_ms)
