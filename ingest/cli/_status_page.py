"""The page of `ingest status`: the verdict first, then the problems, then each part of the node."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from rich.filesize import decimal

from ingest.cli._tables import escape_controls, format_count, format_local_time, lay_out_table
from ingest.ledger import DeliveryState
from ingest.ledger.throughput import COUNTED_MAX

_DELIVERY_STATES: Final = tuple(state.value for state in DeliveryState)

PROBLEMS: Final = "Problems"
PROCESSES: Final = "Processes"
RECEIVING: Final = "Receiving"
ON_THE_WAY: Final = "On the way"
DISKS: Final = "Free space"
DELIVERIES: Final = "Deliveries"
DESTINATIONS: Final = "Destinations, over the last minutes"
CERTIFICATES: Final = "Certificates"
WEAK: Final = "Weaker than it could be"
TITLES: Final = frozenset(
    {PROBLEMS, PROCESSES, RECEIVING, ON_THE_WAY, DISKS, DELIVERIES, DESTINATIONS, CERTIFICATES, WEAK}
)

Rows = Sequence[Sequence[str]]


def lay_out_page(
    now: Mapping[str, Any], before: Mapping[str, Any] | None, width: int | None
) -> Iterator[str]:
    """Lay out the page as lines.

    Args:
        now: The status from `ingest.status.report.gather_status`.
        before: An earlier status, to calculate rates; None if there is none.
        width: The width of the terminal in cells; None if the output is not a terminal.
    """
    yield escape_controls(_format_verdict(now))
    for title, columns, rows in (
        (PROBLEMS, ("severity", "since", "problem", "remedy"), _list_problems(now)),
        (PROCESSES, ("role", "running", "wanted", "cores"), _list_processes(now)),
        (
            RECEIVING,
            ("listener", "state", "associations", "instances", "instances/s", "MB/s", "failed", "refused"),
            _list_listeners(now, before),
        ),
        (ON_THE_WAY, ("stage", "state"), _list_stages(now)),
        (DISKS, ("use", "free", "of", "folder"), _list_disks(now)),
        (DELIVERIES, ("destination", *_DELIVERY_STATES), _list_deliveries(now)),
        (
            DESTINATIONS,
            ("destination", "circuit", "backlog", "oldest", "instances/s", "MB/s", "last error"),
            _list_destinations(now),
        ),
        (CERTIFICATES, ("section", "role", "subject", "valid until", "days left"), _list_certificates(now)),
        (WEAK, ("setting", "what it means", "remedy"), _list_weak_settings(now)),
    ):
        if rows:
            yield ""
            yield title
            yield from lay_out_table(columns, rows, width)


def _format_verdict(now: Mapping[str, Any]) -> str:
    problems = now["problems"]
    if not problems:
        return f"{now['verdict']}: {now['name']}"
    worst, more = problems[0], len(problems) - 1
    others = f" (and {more} more)" if more else ""
    return f"{now['verdict']}: {worst['cause']}; {worst['remedy']}{others}"


def _list_problems(now: Mapping[str, Any]) -> Rows:
    """Return the problems, except a single one that has no begin: all of it is in the first line."""
    problems = now["problems"]
    if len(problems) == 1 and not problems[0]["since_ms"]:
        return []
    return [
        (
            row["severity"],
            format_local_time(row["since_ms"]) if row["since_ms"] else "",
            row["cause"],
            row["remedy"],
        )
        for row in problems
    ]


def _list_processes(now: Mapping[str, Any]) -> Rows:
    return [
        (
            role,
            str(row["running"]),
            str(row["wanted"]),
            _describe_cores(now["cores"]) if role == "listen" else "",
        )
        for role, row in now["processes"].items()
    ]


def _describe_cores(cores: Mapping[str, Any] | None) -> str:
    """Write the usable cores, as `2 usable: affinity 8, quota 1.5`."""
    if cores is None:
        return ""
    quota = "no quota" if cores["quota"] is None else f"quota {cores['quota']:g}"
    return f"{cores['usable']} usable: affinity {cores['affinity']}, {quota}"


def _list_listeners(now: Mapping[str, Any], before: Mapping[str, Any] | None) -> Rows:
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
                f"{row['active']} open, {row['associations']} in all",
                str(row["instances"]),
                *rates,
                str(row["failed"]),
                str(row["refused"]),
            )
        )
    return found


def _list_stages(now: Mapping[str, Any]) -> Rows:
    spool, queue, ledger = now["spool"], now["queue"], now["ledger"]
    found = [
        (
            "spool",
            spool.get("error")
            or f"{format_count(spool['waiting'], 'instance')}, {spool['bytes'] / 1e6:.1f} MB",
        ),
        (
            "queue",
            f"{format_count(queue['references'], 'reference')}, {queue['in_workers_hands']} read by workers"
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
    if receiving := ledger.get("receiving"):
        text = f"{format_count(receiving['studies'], 'study', 'studies')} not complete"
        if receiving["overdue_seconds"] > 0:
            text += f", the oldest held up for {receiving['overdue_seconds']:.0f} s"
        found.append(("receiving", text))
    if now["store"]["full"]:
        found.append(("store", f"full, so the node refuses instances: {now['store']['full']}"))
    return found


def _list_disks(now: Mapping[str, Any]) -> Rows:
    return [
        (row["use"], row["error"], "", row["path"])
        if row.get("error")
        else (row["use"], decimal(row["free_bytes"]), decimal(row["total_bytes"]), row["path"])
        for row in now["disks"]
    ]


def _list_deliveries(now: Mapping[str, Any]) -> Rows:
    return [
        (name, *(str(states.get(state, 0)) for state in _DELIVERY_STATES))
        for name, states in sorted(now["ledger"].get("deliveries", {}).items())
    ]


def _list_destinations(now: Mapping[str, Any]) -> Rows:
    found = []
    for row in now["ledger"].get("destinations", []):
        oldest, error_age = row["oldest_seconds"], row["last_error_seconds"]
        found.append(
            (
                _name_destination(row),
                _name_circuit(row),
                _format_backlog(row),
                "" if oldest is None else _format_age(oldest),
                f"{row['delivered_per_second']:.1f}",
                f"{row['mb_per_second']:.1f}",
                f"{row['last_error']}, {_format_age(error_age)} ago" if error_age is not None else "",
            )
        )
    return found


def _format_backlog(row: Mapping[str, Any]) -> str:
    """Write a backlog with the waiting deliveries of other priorities than normal, as `12 (2 urgent)`."""
    counts = ((row.get("waiting_urgent", 0), "urgent"), (row.get("waiting_bulk", 0), "bulk"))
    words = [f"{count}{'+' * (count >= COUNTED_MAX)} {word}" for count, word in counts if count]
    return f"{row['backlog']} ({', '.join(words)})" if words else str(row["backlog"])


def _name_destination(row: Mapping[str, Any]) -> str:
    members = ", ".join(row["members"])
    return f"{row['name']} ({row['policy']}: {members})" if members else str(row["name"])


def _name_circuit(row: Mapping[str, Any]) -> str:
    if row["paused_at_ms"]:
        return f"paused by {row['paused_by']}"
    if row["opens_at_ms"] and row["circuit"] == "closed":
        return f"outside its hours, until {format_local_time(row['opens_at_ms'])}"
    if row["next_attempt_at_ms"] and row["circuit"] == "closed":
        return f"closed; next attempt {format_local_time(row['next_attempt_at_ms'])}"
    return "open: the remote refuses this node" if row["refuses"] else str(row["circuit"])


def _format_age(seconds: float) -> str:
    """Write an age to the second, as `2 days, 1:02:03`."""
    return str(timedelta(seconds=round(seconds)))


def _list_certificates(now: Mapping[str, Any]) -> Rows:
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


def _list_weak_settings(now: Mapping[str, Any]) -> Rows:
    return [(row["key"], row["cause"], row["remedy"]) for row in now["notices"]]
