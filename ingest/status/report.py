"""`ingest status`: what a node is doing, gathered from scoreboard, spool, queue, ledger and certificates.

Every part that cannot be read is reported as such; the others are still shown. The verdict stands first, and
decides the exit code: 0 well, 1 degraded, 2 not running or losing its purpose.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, Final, cast

import redis
from rich.console import Console
from rich.live import Live
from rich.text import Text

from ingest.acceptor.accept_gate import STALE_MS
from ingest.acceptor.scoreboard import ACCEPTING, DRAINING, ListenerStatus, Scoreboard
from ingest.alarms import Alarm, standing_alarms
from ingest.checks.node import choices
from ingest.clock import unix_ms
from ingest.config.model import Config
from ingest.errors import IngestError, SpoolError
from ingest.filesystem import node_lock
from ingest.ledger import CircuitState, DestinationProgress, Ledger, store_agreement
from ingest.queue.client import connect
from ingest.queue.keys import GROUP, stream_key
from ingest.spool import inventory, store_capacity
from ingest.spool.spool import read_spool_id
from ingest.status.page import TITLES, page
from ingest.status.verdict import WORDS, judge
from ingest.supervisor import reload_client
from ingest.tls import expiry

STATES: Final = {ACCEPTING: "accepting", DRAINING: "draining"}


def gather(config: Config) -> dict[str, Any]:
    """The state of the node with this configuration, as plain values for JSON."""
    found = {
        "time": time.time(),
        "name": config.node.name or config.node.ae_title,
        "data_dir": str(config.data_dir),
        "running": _running(config),
        "alarms": _alarms(config),
        "listeners": _listeners(config),
        "reload_refused": reload_client.read_outcome(config.run_dir).get("faults", []),
        "spool": _spool(config),
        "store": _store(config),
        "disks": _disks(config),
        "queue": _queue(config),
        "ledger": _ledger(config),
        "certificates": _certificates(config),
        "notices": [
            {"key": note.key, "cause": note.cause, "remedy": note.remedy} for note in choices(config)
        ],
    }
    verdict = judge(found)
    return {
        "verdict": WORDS[verdict.code],
        "exit_code": verdict.code,
        "problems": [asdict(problem) for problem in verdict.problems],
        **found,
    }


def status_command(config: Config, *, as_json: bool, watch: float | None) -> int:
    """Print the state once, or again every `watch` seconds until interrupted; returns the exit code."""
    console = Console(highlight=False, soft_wrap=True, emoji=False)
    now = gather(config)
    if as_json:
        console.print(json.dumps(now, indent=2), markup=False)
        return int(now["exit_code"])
    width = console.width if console.is_terminal else None
    if watch is None:
        for line in page(now, None, width):
            console.print(line, style=_style(line, now), markup=False)
        return int(now["exit_code"])
    before, after = None, now
    try:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                lines = (Text(line, _style(line, after) or "") for line in page(after, before, width))
                live.update(Text("\n").join(lines), refresh=True)
                time.sleep(watch)
                before, after = after, gather(config)
    except KeyboardInterrupt:
        return int(after["exit_code"])


def _style(line: str, now: dict[str, Any]) -> str | None:
    if line.startswith(f"{now['verdict']}"):
        return ("bold green", "bold yellow", "bold red")[now["exit_code"]]
    return "bold" if line in TITLES else None


def _running(config: Config) -> str:
    """Which processes run on this data folder: "listening" (a node), "working" (workers alone), or none."""
    if node_lock.is_node_running(config.run_dir):
        return "listening"
    return "working" if node_lock.are_workers_running(config.run_dir) else ""


def _disks(config: Config) -> list[dict[str, Any]]:
    """Free space where instances are received and kept; one row for each folder."""
    least = config.receive.min_free_bytes
    return [
        _disk("spool", config.spool_dir, least),
        _disk("store", config.store_root, 0),
        _disk("data", config.data_dir, 0),
    ]


def _disk(use: str, path: Path, refuses_below: int) -> dict[str, Any]:
    found: dict[str, Any] = {"use": use, "path": str(path), "refuses_below": refuses_below}
    # A folder that is not made yet will be made on the file system of the nearest one above.
    there = next((one for one in (path, *path.parents) if one.exists()), path)
    try:
        facts = os.statvfs(there)
    except OSError as error:
        return {**found, "error": error.strerror or str(error)}
    free, total = facts.f_bavail * facts.f_frsize, facts.f_blocks * facts.f_frsize
    return {**found, "free_bytes": free, "total_bytes": total}


def _alarms(config: Config) -> list[dict[str, Any]]:
    """The conditions that a person must hear of, the worst first."""
    standing = standing_alarms(config.run_dir)
    behind = [one for one in _behind(config) if one.name not in {alarm.name for alarm in standing}]
    return [asdict(alarm) for alarm in (*_set_aside(config), *behind, *standing)]


def _behind(config: Config) -> Iterator[Alarm]:
    """A ledger that does not know what its store holds, also while no worker runs that would see it."""
    with contextlib.suppress(IngestError), contextlib.closing(Ledger(config.ledger_url)) as ledger:
        cause = store_agreement.find_disagreement(config.store_root, ledger)
        if cause:
            yield Alarm(store_agreement.ALARM, cause, store_agreement.REMEDY)


def _set_aside(config: Config) -> Iterator[Alarm]:
    """What was acknowledged and lies in quarantine, as the ledger has it."""
    try:
        with contextlib.closing(Ledger(config.ledger_url)) as ledger:
            count, since_ms = ledger.quarantine.count_acknowledged()
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
    board = Scoreboard.open_reader(config.run_dir / "scoreboard")
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
        for row in (board.list_listeners() if board else [])
    ]


def _state(row: ListenerStatus) -> str:
    # The rows of a node that was killed stay as they were, also over a restart of the machine and its clock.
    return STATES.get(row.state, "booting") if abs(row.age_ms) <= STALE_MS else "silent"


def _spool(config: Config) -> dict[str, Any]:
    root = config.spool_dir
    found: dict[str, Any] = {"path": str(root), "waiting": 0, "bytes": 0}
    try:
        found["waiting"] = sum(len(inventory.list_waiting(root, slot)) for slot in inventory.list_slots(root))
        found["bytes"] = inventory.measure_usage(root)
    except OSError as error:
        found["error"] = f"{error.filename}: {error.strerror}"
    return found


def _store(config: Config) -> dict[str, Any]:
    """`full` says why a running node takes nothing more, where `[retention] at_max_bytes` has it refuse."""
    looks = config.retention.refuses_when_full and node_lock.is_node_running(config.run_dir)
    return {
        "path": str(config.store_root),
        "full": store_capacity.read_store_full(config.run_dir) if looks else "",
    }


def _queue(config: Config) -> dict[str, Any]:
    client = connect(config, timeout=2.0)
    try:
        client.ping()
        key = stream_key(read_spool_id(config.spool_dir) or "")
        known = bool(client.exists(key))
        groups = client.xinfo_groups(key) if known else []
        oldest = cast("list[tuple[bytes, object]]", client.xrange(key, count=1)) if known else []
        return {
            "reachable": True,
            "references": client.xlen(key) if known else 0,
            "oldest_seconds": _age_seconds(oldest[0][0]) if oldest else 0,
            "in_workers_hands": sum(group["pending"] for group in groups if group["name"] == GROUP.encode()),
        }
    except (redis.RedisError, SpoolError) as error:
        return {"reachable": False, "error": str(error)}
    finally:
        client.close()


def _age_seconds(entry: bytes) -> int:
    """For how long an entry of a stream has been there: its id begins with Redis' time in milliseconds."""
    return max(0, int(time.time() - int(entry.partition(b"-")[0]) / 1000))


def _ledger(config: Config) -> dict[str, Any]:
    try:
        with contextlib.closing(Ledger(config.ledger_url)) as ledger:
            now = unix_ms()
            known = ledger.throughput.read_progress(now)
            for destination in config.destinations:
                known.setdefault(destination.name, DestinationProgress(destination=destination.name))
            return {
                "reachable": True,
                "read_only": _read_only(ledger),
                "instances": {
                    state.value: count for state, count in ledger.instances.count_by_state().items()
                },
                "deliveries": {
                    name: {state.value: count for state, count in progress.states.items()}
                    for name, progress in sorted(known.items())
                    if progress.states
                },
                "destinations": [_destination(progress, now) for _, progress in sorted(known.items())],
            }
    except IngestError as error:
        return {"reachable": False, "error": str(error)}


def _read_only(ledger: Ledger) -> str:
    try:
        ledger.require_writable()
    except IngestError as error:
        return str(error)
    return ""


def _destination(progress: DestinationProgress, now_ms: int) -> dict[str, Any]:
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
    for place in expiry.iterate_locations(config):
        try:
            files += map(expiry.to_json_row, expiry.read_certificates(config, place))
        except (IngestError, OSError) as error:
            files.append({"section": place.section, "file": str(place.path), "error": str(error)})
    found, changed = files, False
    if node_lock.is_node_running(config.run_dir) and (
        held := expiry.read_certificates_in_force(config.run_dir)
    ):
        found, changed = held, _digests(held) != _digests(files)
    there = {row.get("sha256") for row in found}
    found = [
        *found,
        *(
            row
            for row in map(expiry.to_json_row, expiry.iterate_observed(config))
            if row["sha256"] not in there
        ),
    ]
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
