"""The text of `ingest status`: the verdict first, then what is wrong, then each part of the node."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from rich.filesize import decimal

from ingest.cli.tables import lines, local_time, printable
from ingest.ledger import DeliveryState

_STATES: Final = tuple(state.value for state in DeliveryState)

PROBLEMS: Final = "Problems"
ALARMS: Final = "Alarms"
RECEIVING: Final = "Receiving"
ON_THE_WAY: Final = "On the way"
DISKS: Final = "Free space"
DELIVERIES: Final = "Deliveries"
DESTINATIONS: Final = "Destinations, over the last minutes"
CERTIFICATES: Final = "Certificates"
WEAK: Final = "Weaker than it could be"
TITLES: Final = frozenset(
    {PROBLEMS, ALARMS, RECEIVING, ON_THE_WAY, DISKS, DELIVERIES, DESTINATIONS, CERTIFICATES, WEAK}
)

Rows = Sequence[Sequence[str]]


def page(now: Mapping[str, Any], before: Mapping[str, Any] | None, width: int | None) -> Iterator[str]:
    """The lines of the page.

    Args:
        now: What `ingest.status.report.gather` found.
        before: What it found earlier, so that rates can be told; None without.
        width: As `ingest.cli.tables.lines`.
    """
    yield printable(_first_line(now))
    for title, columns, rows in (
        (PROBLEMS, ("severity", "problem", "remedy"), _problems(now)),
        (ALARMS, ("since", "alarm", "remedy"), _alarms(now)),
        (
            RECEIVING,
            ("listener", "state", "associations", "instances", "instances/s", "MB/s", "failed", "refused"),
            _listeners(now, before),
        ),
        (ON_THE_WAY, ("stage", "state"), _stages(now)),
        (DISKS, ("use", "free", "of", "folder"), _disks(now)),
        (DELIVERIES, ("destination", *_STATES), _deliveries(now)),
        (
            DESTINATIONS,
            ("destination", "circuit", "backlog", "oldest", "instances/s", "MB/s", "last error"),
            _destinations(now),
        ),
        (CERTIFICATES, ("section", "role", "subject", "valid until", "days left"), _certificates(now)),
        (WEAK, ("setting", "what it means", "remedy"), _notices(now)),
    ):
        if rows:
            yield ""
            yield title
            yield from lines(columns, rows, width)


def _first_line(now: Mapping[str, Any]) -> str:
    problems = now["problems"]
    if not problems:
        return f"{now['verdict']}: {now['name']}"
    worst, more = problems[0], len(problems) - 1
    others = f" (and {more} more)" if more else ""
    return f"{now['verdict']}: {worst['cause']}; {worst['remedy']}{others}"


def _problems(now: Mapping[str, Any]) -> Rows:
    """All problems where there are several: one alone stands in the first line."""
    problems = now["problems"]
    return [(row["severity"], row["cause"], row["remedy"]) for row in problems] if len(problems) > 1 else []


def _alarms(now: Mapping[str, Any]) -> Rows:
    return [(local_time(row["since_ms"]), row["cause"], row["remedy"]) for row in now["alarms"]]


def _listeners(now: Mapping[str, Any], before: Mapping[str, Any] | None) -> Rows:
    earlier = {row["pid"]: row for row in before["listeners"]} if before else {}
    seconds = now["time"] - before["time"] if before else 0.0
    found = []
    for row in now["listeners"]:
        old = earlier.get(row["pid"])
        rates = ("", "")
        if old is not None and seconds > 0:
            rates = (
                f"{(row['instances'] - old['instances']) / seconds:.0f}",
                f"{(row['bytes'] - old['bytes']) / seconds / 1e6:.1f}",
            )
        found.append(
            (
                str(row["pid"]),
                row["state"],
                f"{row['active']} of {row['associations']}",
                str(row["instances"]),
                *rates,
                str(row["failed"]),
                str(row["refused"]),
            )
        )
    return found


def _stages(now: Mapping[str, Any]) -> Rows:
    spool, queue, ledger = now["spool"], now["queue"], now["ledger"]
    found = [
        ("spool", spool.get("error") or f"{spool['waiting']} instances, {spool['bytes'] / 1e6:.1f} MB"),
        (
            "queue",
            f"{queue['references']} references, {queue['in_workers_hands']} of them in workers' hands"
            if queue["reachable"]
            else f"away: {queue['error']}",
        ),
        (
            "ledger",
            ", ".join(f"{count} {state}" for state, count in ledger["instances"].items()) or "empty"
            if ledger["reachable"]
            else f"away: {ledger['error']}",
        ),
    ]
    if now["store"]["full"]:
        found.append(("store", f"full, so nothing is received: {now['store']['full']}"))
    return found


def _disks(now: Mapping[str, Any]) -> Rows:
    return [
        (row["use"], row["error"], "", row["path"])
        if row.get("error")
        else (row["use"], decimal(row["free_bytes"]), decimal(row["total_bytes"]), row["path"])
        for row in now["disks"]
    ]


def _deliveries(now: Mapping[str, Any]) -> Rows:
    return [
        (name, *(str(states.get(state, 0)) for state in _STATES))
        for name, states in sorted(now["ledger"].get("deliveries", {}).items())
    ]


def _destinations(now: Mapping[str, Any]) -> Rows:
    found = []
    for row in now["ledger"].get("destinations", []):
        oldest, error_age = row["oldest_seconds"], row["last_error_seconds"]
        found.append(
            (
                row["name"],
                "open: it refuses us" if row["refuses"] else row["circuit"],
                str(row["backlog"]),
                "" if oldest is None else _age(oldest),
                f"{row['delivered_per_second']:.1f}",
                f"{row['mb_per_second']:.1f}",
                f"{row['last_error']}, {_age(error_age)} ago" if error_age is not None else "",
            )
        )
    return found


def _age(seconds: float) -> str:
    """To the second; of days, without them: `2 days, 1:02:03`."""
    return str(timedelta(seconds=round(seconds)))


def _certificates(now: Mapping[str, Any]) -> Rows:
    return [
        (row["section"], "", row["error"], "", "")
        if "error" in row
        else (
            row["section"],
            " ".join((row["role"], *row["whose"])),
            row["subject"],
            row["not_after"][:10],
            str(row["days_left"]),
        )
        for row in now["certificates"]
    ]


def _notices(now: Mapping[str, Any]) -> Rows:
    return [(row["key"], row["cause"], row["remedy"]) for row in now["notices"]]
