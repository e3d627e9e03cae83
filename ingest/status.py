"""`ingest status`: what a node is doing, gathered from scoreboard, spool, queue, ledger and certificates.

Every part that cannot be read is reported as such; the others are still shown.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any, Final

import redis
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from ingest import room
from ingest.alarms import Alarm, standing_alarms
from ingest.config.check import choices
from ingest.config.model import Config
from ingest.errors import IngestError, SpoolError
from ingest.ledger import CircuitState, DeliveryState, Ledger, Progress
from ingest.node import reload
from ingest.node.accept_gate import STALE_MS
from ingest.node.scoreboard import ACCEPTING, DRAINING, RowView, Scoreboard
from ingest.queue import GROUP, connect, stream_key
from ingest.spool import sweep
from ingest.spool.spool import spool_id
from ingest.tls import expiry

STATES: Final = {ACCEPTING: "accepting", DRAINING: "draining"}
STATE_COLUMNS: Final = tuple(state.value for state in DeliveryState)


def gather(config: Config) -> dict[str, Any]:
    """The state of the node with this configuration, as plain values for JSON."""
    return {
        "time": time.time(),
        "name": config.node.name or config.node.ae_title,
        "alarms": _alarms(config),
        "listeners": _listeners(config),
        "reload_refused": reload.outcome(config.run_dir).get("faults", []),
        "spool": _spool(config),
        "store": _store(config),
        "queue": _queue(config),
        "ledger": _ledger(config),
        "certificates": _certificates(config),
        "notices": [
            {"key": note.key, "cause": note.cause, "remedy": note.remedy} for note in choices(config)
        ],
    }


def status_command(config: Config, *, as_json: bool, watch: float | None) -> int:
    """Print the state once, or again every `watch` seconds until interrupted; returns the exit code."""
    console = Console()
    if as_json:
        console.print_json(json.dumps(gather(config)))
        return 0
    before = gather(config)
    if watch is None:
        console.print(_page(before, None))
        return 0
    try:
        with Live(_page(before, None), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(watch)
                after = gather(config)
                live.update(_page(after, before), refresh=True)
                before = after
    except KeyboardInterrupt:
        return 0


def _alarms(config: Config) -> list[dict[str, Any]]:
    """The conditions that a person must hear of, the worst first."""
    return [asdict(alarm) for alarm in (*_set_aside(config), *standing_alarms(config.run_dir))]


def _set_aside(config: Config) -> Iterator[Alarm]:
    """What was acknowledged and lies in quarantine, as the ledger has it."""
    try:
        with contextlib.closing(Ledger(config.ledger_url)) as ledger:
            count, since_ms = ledger.set_aside_count()
    except IngestError:
        return  # the ledger's own part says so
    if count:
        yield Alarm(
            "set_aside",
            f"{count} acknowledged instances lie in quarantine: they are neither in the store nor forwarded",
            "`ingest quarantine list` says why; then `ingest quarantine retry`, `release` or `drop`",
            since_ms=since_ms,
        )


def _listeners(config: Config) -> list[dict[str, Any]]:
    board = Scoreboard.attach(config.run_dir / "scoreboard")
    return [
        {
            "pid": row.pid,
            "state": _state(row),
            "heartbeat_age_ms": row.age_ms,
            "active": row.active,
            "associations": row.associations,
            "refused": row.refused,
            "instances": row.instances,
            "bytes": row.bytes,
            "failed": row.failed,
        }
        for row in (board.rows() if board else [])
    ]


def _state(row: RowView) -> str:
    # The rows of a node that was killed stay as they were, also over a restart of the machine and its clock.
    return STATES.get(row.state, "booting") if abs(row.age_ms) <= STALE_MS else "silent"


def _spool(config: Config) -> dict[str, Any]:
    root = config.spool_dir
    found: dict[str, Any] = {"path": str(root), "waiting": 0, "bytes": 0}
    try:
        found["waiting"] = sum(len(sweep.ready(root, slot)) for slot in sweep.slots(root))
        found["bytes"] = sweep.usage(root)
    except OSError as error:
        found["error"] = f"{error.filename}: {error.strerror}"
    return found


def _store(config: Config) -> dict[str, Any]:
    """`full` says why a running node takes nothing more, where `[retention] at_max_bytes` has it refuse."""
    looks = config.retention.refuses and reload.is_running(config.run_dir)
    return {"path": str(config.store_root), "full": room.full(config.run_dir) if looks else ""}


def _queue(config: Config) -> dict[str, Any]:
    client = connect(config, timeout=2.0)
    try:
        client.ping()
        key = stream_key(spool_id(config.spool_dir) or "")
        known = bool(client.exists(key))
        groups = client.xinfo_groups(key) if known else []
        return {
            "reachable": True,
            "references": client.xlen(key) if known else 0,
            "in_workers_hands": sum(group["pending"] for group in groups if group["name"] == GROUP.encode()),
        }
    except (redis.RedisError, SpoolError) as error:
        return {"reachable": False, "error": str(error)}
    finally:
        client.close()


def _ledger(config: Config) -> dict[str, Any]:
    try:
        with contextlib.closing(Ledger(config.ledger_url)) as ledger:
            now = time.time_ns() // 1_000_000
            known = ledger.progress(now)
            for destination in config.destinations:
                known.setdefault(destination.name, Progress(destination=destination.name))
            return {
                "reachable": True,
                "instances": {state.value: count for state, count in ledger.instance_counts().items()},
                "deliveries": {
                    name: {state.value: count for state, count in progress.states.items()}
                    for name, progress in sorted(known.items())
                    if progress.states
                },
                "destinations": [_destination(progress, now) for _, progress in sorted(known.items())],
            }
    except IngestError as error:
        return {"reachable": False, "error": str(error)}


def _destination(progress: Progress, now_ms: int) -> dict[str, Any]:
    circuit = progress.circuit
    return {
        "name": progress.destination,
        "backlog": progress.backlog,
        "oldest_seconds": None if progress.oldest_at is None else (now_ms - progress.oldest_at) / 1000,
        "delivered_per_second": round(progress.delivered_per_second, 3),
        "mb_per_second": round(progress.bytes_per_second / 1e6, 3),
        "circuit": circuit.state.value if circuit else CircuitState.CLOSED.value,
        "refuses": circuit.permanent if circuit else False,
        "failures": circuit.failures if circuit else 0,
        "next_probe_seconds": max(0.0, (circuit.probe_at - now_ms) / 1000) if circuit else 0.0,
        "last_error": circuit.last_error if circuit else "",
        "last_error_seconds": (now_ms - circuit.last_error_at) / 1000
        if circuit and circuit.last_error_at
        else None,
    }


def _certificates(config: Config) -> list[dict[str, Any]]:
    """What a running node has read, else what the files hold; and what peers and destinations showed."""
    files: list[dict[str, Any]] = []
    for place in expiry.places(config):
        try:
            files += map(expiry.as_row, expiry.certificates(config, place))
        except (IngestError, OSError) as error:
            files.append({"section": place.section, "file": str(place.path), "error": str(error)})
    found, changed = files, False
    if reload.is_running(config.run_dir) and (held := expiry.in_force(config.run_dir)):
        found, changed = held, _digests(held) != _digests(files)
    there = {row.get("sha256") for row in found}
    found = [*found, *(row for row in map(expiry.as_row, expiry.shown(config)) if row["sha256"] not in there)]
    for row in found:
        if "not_after" in row:
            left = datetime.fromisoformat(row["not_after"]).timestamp() - time.time()
            row["days_left"] = round(left / 86400, 1)
    if changed:
        said = "the files hold others than the node has in force; `ingest reload` takes them"
        found.append({"section": "", "file": "", "error": said})
    return found


def _digests(rows: list[dict[str, Any]]) -> set[tuple[str, str]]:
    return {(row["section"], row["sha256"]) for row in rows if "sha256" in row}


def _page(now: dict[str, Any], before: dict[str, Any] | None) -> Group:
    return Group(
        *_alarm_table(now),
        *_refusal(now),
        _listener_table(now, before),
        _stage_table(now),
        _delivery_table(now),
        _destination_table(now),
        _certificate_table(now),
        *_notices(now),
    )


def _alarm_table(now: dict[str, Any]) -> Iterator[Table]:
    """The alarms that stand; no table where there is none."""
    if now["alarms"]:
        table = Table("since", "alarm", "remedy")
        table.title = "Alarms"
        for row in now["alarms"]:
            since = datetime.fromtimestamp(row["since_ms"] / 1000).astimezone()
            table.add_row(f"{since:%Y-%m-%d %H:%M %Z}", escape(row["cause"]), escape(row["remedy"]))
        yield table


def _refusal(now: dict[str, Any]) -> Iterator[Table]:
    """What the node did not take at the last reload; no table where it took all."""
    if now["reload_refused"]:
        table = Table("the configuration read before is in force")
        table.title = "The last reload was refused"
        for fault in now["reload_refused"]:
            table.add_row(escape(fault))
        yield table


def _listener_table(now: dict[str, Any], before: dict[str, Any] | None) -> Table:
    table = Table(
        "listener", "state", "associations", "instances", "instances/s", "MB/s", "failed", "refused"
    )
    table.title = f"Receiving: {escape(now['name'])}"
    earlier = {row["pid"]: row for row in before["listeners"]} if before else {}
    for row in now["listeners"]:
        old = earlier.get(row["pid"])
        rates = ("", "")
        if old is not None and before is not None:
            seconds = now["time"] - before["time"]
            rates = (
                f"{(row['instances'] - old['instances']) / seconds:.0f}",
                f"{(row['bytes'] - old['bytes']) / seconds / 1e6:.1f}",
            )
        table.add_row(
            str(row["pid"]),
            row["state"],
            f"{row['active']} of {row['associations']}",
            str(row["instances"]),
            *rates,
            str(row["failed"]),
            str(row["refused"]),
        )
    return table


def _stage_table(now: dict[str, Any]) -> Table:
    table = Table("stage", "state")
    table.title = "On the way"
    spool, queue, ledger = now["spool"], now["queue"], now["ledger"]
    table.add_row(
        "spool", spool.get("error") or f"{spool['waiting']} instances, {spool['bytes'] / 1e6:.1f} MB"
    )
    if now["store"]["full"]:
        table.add_row("store", f"full, so nothing is taken: {escape(now['store']['full'])}")
    table.add_row(
        "queue",
        f"{queue['references']} references, {queue['in_workers_hands']} of them in workers' hands"
        if queue["reachable"]
        else f"away: {queue['error']}",
    )
    table.add_row(
        "ledger",
        ", ".join(f"{count} {state}" for state, count in ledger["instances"].items()) or "empty"
        if ledger["reachable"]
        else f"away: {ledger['error']}",
    )
    return table


def _delivery_table(now: dict[str, Any]) -> Table:
    table = Table("destination", *STATE_COLUMNS)
    table.title = "Deliveries"
    for name, states in sorted(now["ledger"].get("deliveries", {}).items()):
        table.add_row(name, *(str(states.get(state, 0)) for state in STATE_COLUMNS))
    return table


def _destination_table(now: dict[str, Any]) -> Table:
    table = Table("destination", "circuit", "backlog", "oldest", "instances/s", "MB/s", "last error")
    table.title = "Destinations, over the last minutes"
    for row in now["ledger"].get("destinations", []):
        oldest, error_age = row["oldest_seconds"], row["last_error_seconds"]
        error = f"{escape(row['last_error'])}, {_age(error_age)} ago" if error_age is not None else ""
        table.add_row(
            row["name"],
            "open: it refuses us" if row["refuses"] else row["circuit"],
            str(row["backlog"]),
            "" if oldest is None else _age(oldest),
            f"{row['delivered_per_second']:.1f}",
            f"{row['mb_per_second']:.1f}",
            error,
        )
    return table


def _age(seconds: float) -> str:
    """To the second; of days, without them: `2 days, 1:02:03`."""
    return str(timedelta(seconds=round(seconds)))


def _notices(now: dict[str, Any]) -> Iterator[Table]:
    """What the configuration weakens; no table where it does not."""
    if now["notices"]:
        table = Table("setting", "what it means", "remedy")
        table.title = "Weaker than it could be"
        for row in now["notices"]:
            table.add_row(*(escape(row[name]) for name in ("key", "cause", "remedy")))
        yield table


def _certificate_table(now: dict[str, Any]) -> Table:
    table = Table("section", "role", "subject", "valid until", "days left")
    table.title = "Certificates"
    for row in now["certificates"]:
        if "error" in row:
            table.add_row(row["section"], "", escape(row["error"]), "", "")
        else:
            role = " ".join((row["role"], *row["whose"]))
            end = (row["not_after"][:10], str(row["days_left"]))
            table.add_row(row["section"], escape(role), escape(row["subject"]), *end)
    return table
