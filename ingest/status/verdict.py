"""The verdict of `ingest status`: what is wrong with a node, the worst first, each with its remedy.

Pure: the problems are read off what `ingest.status.report.gather` found.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ingest.alarms import Severity

WELL: Final = 0
DEGRADED: Final = 1
FAILING: Final = 2

SOON_DAYS: Final = 7
"""A certificate that ends within so many days is a problem."""

BEHIND_SECONDS: Final = 60
"""What was received waits for a moment to be stored; a reference that waits longer is a problem."""

FULL_BYTES: Final = 1 << 20
"""Where `min_free_bytes` does not hold, a disk with less than this free is full."""

WORDS: Final = {WELL: "well", DEGRADED: "degraded", FAILING: "failing"}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        severity: FAILING while the node does not run or does not serve its purpose, otherwise DEGRADED.
        cause: What is wrong, in a few words.
        remedy: What to do about it: a command or a setting.
    """

    severity: Severity
    cause: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a node is.

    Attributes:
        code: WELL, DEGRADED or FAILING: the exit code of `ingest status`.
        problems: What is wrong, the worst first.
    """

    code: int
    problems: Sequence[Problem]


def judge(now: Mapping[str, Any]) -> Verdict:
    """Judge what `ingest.status.report.gather` found."""
    # A sort keeps the order of equals: what comes first below is worse.
    problems = sorted(_problems(now), key=lambda one: one.severity is not Severity.FAILING)
    if not problems:
        return Verdict(WELL, problems)
    return Verdict(FAILING if problems[0].severity is Severity.FAILING else DEGRADED, problems)


def _problems(now: Mapping[str, Any]) -> Iterator[Problem]:
    yield from _process(now)
    yield from _alarms(now)
    yield from _receiving(now)
    yield from _services(now)
    yield from _destinations(now)
    yield from _certificates(now)
    if now["reload_refused"]:
        cause = f"the last reload was refused: {now['reload_refused'][0]}"
        yield Problem(Severity.DEGRADED, cause, "correct the configuration and run `ingest reload`")


def _process(now: Mapping[str, Any]) -> Iterator[Problem]:
    if not now["running"]:
        remedy = "start it with `ingest serve`, or look into its log for why it ended"
        yield Problem(Severity.FAILING, f"no node runs on {now['data_dir']}", remedy)
        return
    listeners = now["listeners"]
    if now["running"] == "listening" and not any(row["state"] == "accepting" for row in listeners):
        remedy = "wait a moment if it was just started or is stopping; otherwise look into its log"
        yield Problem(Severity.FAILING, "no listener accepts associations", remedy)
    silent = sum(row["state"] == "silent" for row in listeners)
    if silent:
        remedy = "the supervisor replaces them within a minute; look into the log if they stay"
        yield Problem(Severity.DEGRADED, f"{silent} listeners give no sign of life", remedy)


def _alarms(now: Mapping[str, Any]) -> Iterator[Problem]:
    for alarm in now["alarms"]:
        yield Problem(Severity(alarm["severity"]), alarm["cause"], alarm["remedy"])


def _receiving(now: Mapping[str, Any]) -> Iterator[Problem]:
    for disk in now["disks"]:
        if disk.get("error"):
            yield Problem(
                Severity.FAILING, f"{disk['use']}: {disk['error']}", f"mount or mend {disk['path']}"
            )
        elif disk["refuses_below"] and disk["free_bytes"] < disk["refuses_below"]:
            cause = f"{disk['use']}: {disk['free_bytes'] / 1e6:.0f} MB are free, so nothing is received"
            remedy = f"make room on {disk['path']}, or lower [receive] min_free_bytes"
            yield Problem(Severity.FAILING, cause, remedy)
        elif not disk["refuses_below"] and disk["free_bytes"] < FULL_BYTES:
            cause = f"{disk['use']}: the disk is full"
            yield Problem(Severity.FAILING, cause, f"make room on {disk['path']}")
    if now["store"]["full"]:
        remedy = "make room with `ingest retention`, or raise [retention] max_bytes"
        yield Problem(
            Severity.FAILING, f"the store is full, so nothing is received: {now['store']['full']}", remedy
        )


def _services(now: Mapping[str, Any]) -> Iterator[Problem]:
    ledger = now["ledger"]
    if now["running"] and (fault := ledger.get("read_only") if ledger["reachable"] else ledger["error"]):
        remedy = "mend it ([ledger] url); what is received waits in the spool"
        yield Problem(Severity.FAILING, f"nothing is stored or forwarded: {fault}", remedy)
    if now["running"] and not now["queue"]["reachable"]:
        remedy = "mend it ([queue] url); what is received waits in the spool"
        yield Problem(Severity.DEGRADED, f"the queue is away: {now['queue']['error']}", remedy)
    behind = now["queue"].get("oldest_seconds", 0)
    if now["running"] and behind >= BEHIND_SECONDS:
        # Whatever the reason: workers that end again and again, that are stopped, stuck, or elsewhere.
        cause = (
            f"what was received is not stored: {now['queue']['references']} wait, the first for {behind} s"
        )
        remedy = "see that persist workers run, and look into their log; nothing is lost"
        yield Problem(Severity.DEGRADED, cause, remedy)


def _destinations(now: Mapping[str, Any]) -> Iterator[Problem]:
    for row in now["ledger"].get("destinations", ()):
        if row["circuit"] != "closed":
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
            yield Problem(Severity.DEGRADED, f"{name}: {states['dead']} deliveries are dead", remedy)


def _certificates(now: Mapping[str, Any]) -> Iterator[Problem]:
    for row in now["certificates"]:
        left = row.get("days_left")
        if left is None or left > SOON_DAYS or row["role"] == "trusted":
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
