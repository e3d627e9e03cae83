"""The status of a node: scoreboard, spool, queue, ledger, disks, alarms and certificates.

If a part cannot be read, the status says so, and still has the other parts.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import redis

from ingest.acceptor.accept_gate import STALE_MS
from ingest.acceptor.scoreboard import ACCEPTING, DRAINING, ListenerStatus, Scoreboard
from ingest.alarms import Alarm, read_watched_alarms, standing_alarms
from ingest.checks.weak_settings import find_weak_settings
from ingest.clock import unix_ms
from ingest.config.model import Config, Group
from ingest.cores import read_cores
from ingest.errors import IngestError, SpoolError
from ingest.filesystem import node_lock
from ingest.ledger import CircuitState, DeliveryState, DestinationProgress, Ledger, store_agreement
from ingest.ledger.circuits import combine_circuits
from ingest.queue.client import connect
from ingest.queue.keys import GROUP, stream_key
from ingest.spool import inventory, store_capacity
from ingest.spool.spool import read_spool_id
from ingest.status.health import check_liveness
from ingest.status.states import ListenerState, RunningProcesses
from ingest.status.verdict import judge_health
from ingest.supervisor import reload_client

_LISTENER_STATES: Final = {ACCEPTING: ListenerState.ACCEPTING, DRAINING: ListenerState.DRAINING}


class Wait(NamedTuple):
    """Times in Unix milliseconds for which a destination waits; 0 without any."""

    opens_at_ms: int = 0
    next_attempt_at_ms: int = 0
    open_since_ms: int = 0


NO_WAIT: Final = Wait()


def gather_status(config: Config) -> dict[str, Any]:
    """Return the status of the node with this configuration, as values for JSON."""
    found = {
        "time": time.time(),
        "name": config.node.name or config.node.ae_title,
        "data_dir": str(config.data_dir),
        "running": _find_running_processes(config),
        "processes": _gather_processes(config),
        "cores": _gather_cores(config),
        "alarms": _gather_alarms(config),
        "listeners": _gather_listeners(config),
        "reload_refused": reload_client.read_outcome(config.run_dir).get("faults", []),
        "spool": _gather_spool(config),
        "store": _gather_store(config),
        "disks": _gather_disks(config),
        "queue": _gather_queue(config),
        "ledger": _gather_ledger(config),
        "certificates": _gather_certificates(config),
        "notices": [
            {"key": note.key, "cause": note.cause, "remedy": note.remedy}
            for note in find_weak_settings(config)
        ],
    }
    verdict = judge_health(found)
    return {
        "verdict": verdict.health.word,
        "exit_code": int(verdict.health),
        "problems": [problem.to_json() for problem in verdict.problems],
        **found,
    }


def _find_running_processes(config: Config) -> RunningProcesses:
    if node_lock.is_node_running(config.run_dir):
        return RunningProcesses.NODE
    are_workers = node_lock.are_workers_running(config.run_dir)
    return RunningProcesses.WORKERS if are_workers else RunningProcesses.NONE


def _gather_processes(config: Config) -> dict[str, Any]:
    """Return the running and the wanted processes of each role, while any run."""
    roles = check_liveness(config.run_dir).roles if _find_running_processes(config) else {}
    return {name: asdict(role) for name, role in roles.items()}


def _gather_cores(config: Config) -> dict[str, Any] | None:
    """Return the cores that a running node may use; None without one."""
    try:
        cores = read_cores(node_lock.find_node_pid(config.run_dir))
    except (IngestError, OSError):
        return None
    return {"usable": cores.usable, "affinity": cores.allowed, "quota": cores.quota}


def _gather_disks(config: Config) -> list[dict[str, Any]]:
    """Return the free space of spool, store and data folder."""
    min_free_bytes = config.receive.min_free_bytes
    return [
        _measure_disk("spool", config.spool_dir, min_free_bytes),
        _measure_disk("store", config.store_root, 0),
        _measure_disk("data", config.data_dir, 0),
    ]


def _measure_disk(use: str, path: Path, refuses_below: int) -> dict[str, Any]:
    found: dict[str, Any] = {"use": use, "path": str(path), "refuses_below": refuses_below}
    # A folder that does not exist will be created on the file system of the nearest one above.
    existing = next((one for one in (path, *path.parents) if one.exists()), path)
    try:
        facts = os.statvfs(existing)
    except OSError as error:
        return {**found, "error": error.strerror or str(error)}
    free, total = facts.f_bavail * facts.f_frsize, facts.f_blocks * facts.f_frsize
    return {**found, "free_bytes": free, "total_bytes": total}


def _gather_alarms(config: Config) -> list[dict[str, Any]]:
    """Return the conditions that need a person, the worst first."""
    standing = standing_alarms(config.run_dir)
    doubts = [one for one in _find_ledger_doubt(config) if one.name not in {alarm.name for alarm in standing}]
    watched = read_watched_alarms(config.run_dir)
    found = (*_find_acknowledged_in_quarantine(config), *doubts, *standing, *watched)
    return [alarm.to_json() for alarm in found]


def _find_ledger_doubt(config: Config) -> Iterator[Alarm]:
    """Yield an alarm if the ledger may not belong to the store, even if no worker runs to notice it."""
    with contextlib.suppress(IngestError), contextlib.closing(Ledger(config.ledger_url)) as ledger:
        cause = store_agreement.find_disagreement(config.store_root, ledger)
        if cause:
            yield Alarm(store_agreement.ALARM, cause, store_agreement.REMEDY)


def _find_acknowledged_in_quarantine(config: Config) -> Iterator[Alarm]:
    """Yield an alarm if acknowledged instances are in quarantine."""
    try:
        with contextlib.closing(Ledger(config.ledger_url)) as ledger:
            count, since_ms = ledger.quarantine.count_acknowledged()
    except IngestError:
        return  # the part about the ledger reports it
    if count:
        instances = "instance is" if count == 1 else "instances are"
        yield Alarm(
            "set_aside",
            f"{count} acknowledged {instances} in quarantine, neither stored nor forwarded",
            "see why with `ingest quarantine list`, then `ingest quarantine retry`, `release` or `drop`",
            since_ms=since_ms,
        )


def _gather_listeners(config: Config) -> list[dict[str, Any]]:
    board = Scoreboard.open_reader(config.run_dir / "scoreboard")
    return [
        {
            "pid": row.pid,
            "state": _name_listener_state(row),
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


def _name_listener_state(row: ListenerStatus) -> ListenerState:
    # The rows of a killed node stay, even after a restart of the machine, which may have reset the clock.
    if abs(row.age_ms) > STALE_MS:
        return ListenerState.SILENT
    return _LISTENER_STATES.get(row.state, ListenerState.BOOTING)


def _gather_spool(config: Config) -> dict[str, Any]:
    root = config.spool_dir
    found: dict[str, Any] = {"path": str(root), "waiting": 0, "bytes": 0, "oldest_seconds": None}
    try:
        waiting = [inventory.list_waiting(root, slot) for slot in inventory.list_slots(root)]
        found["waiting"] = sum(map(len, waiting))
        received = [inventory.find_received_ms(root, each[0]) for each in waiting if each]
        oldest_ms = min((each for each in received if each is not None), default=None)
        if oldest_ms is not None:
            found["oldest_seconds"] = max(0.0, time.time() - oldest_ms / 1000)
        found["bytes"] = inventory.measure_usage(root)
    except OSError as error:
        found["error"] = f"{error.filename}: {error.strerror}"
    return found


def _gather_store(config: Config) -> dict[str, Any]:
    """Return the store folder, and under `full` why a running node refuses instances."""
    may_refuse = config.retention.refuses_when_full and node_lock.is_node_running(config.run_dir)
    full = store_capacity.read_store_full(config.run_dir) if may_refuse else ""
    return {"path": str(config.store_root), "full": full}


def _gather_queue(config: Config) -> dict[str, Any]:
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
            "oldest_seconds": _measure_age_seconds(oldest[0][0]) if oldest else 0,
            "in_workers_hands": sum(group["pending"] for group in groups if group["name"] == GROUP.encode()),
        }
    except (redis.RedisError, SpoolError) as error:
        return {"reachable": False, "error": str(error)}
    finally:
        client.close()


def _measure_age_seconds(entry: bytes) -> int:
    """Return the age of a stream entry. Its id begins with the time of Redis in milliseconds."""
    return max(0, int(time.time() - int(entry.partition(b"-")[0]) / 1000))


def _gather_ledger(config: Config) -> dict[str, Any]:
    try:
        with contextlib.closing(Ledger(config.ledger_url)) as ledger:
            now = unix_ms()
            known = ledger.throughput.read_progress(now)
            for name in config.target_names:
                known.setdefault(name, DestinationProgress(destination=name))
            known |= combine_group_circuits(config, known)
            groups = {group.name: group for group in config.groups}
            waits = _find_waits(config, ledger, known, now)
            return {
                "reachable": True,
                "read_only": _explain_read_only(ledger),
                "instances": {
                    state.value: count for state, count in ledger.instances.count_by_state().items()
                },
                "receiving": _describe_receptions(config, ledger, now),
                "deliveries": {
                    name: {state.value: count for state, count in progress.states.items()}
                    for name, progress in sorted(known.items())
                    if progress.states
                },
                "destinations": [
                    _describe_destination(progress, now, waits.get(name, NO_WAIT), groups.get(name))
                    for name, progress in sorted(known.items())
                ],
            }
    except IngestError as error:
        return {"reachable": False, "error": str(error)}


def _describe_receptions(config: Config, ledger: Ledger, now_ms: int) -> dict[str, Any]:
    """Return how many studies and series are not complete; nothing if that is not judged."""
    if not config.judges_completion:
        return {}
    counts = ledger.receptions.count_receptions()
    overdue = 0.0 if counts.due_at is None else max(0.0, (now_ms - counts.due_at) / 1000)
    # An open association or an entry in the spool holds up the one that is overdue.
    return {"studies": counts.studies, "series": counts.series, "overdue_seconds": round(overdue, 1)}


def _explain_read_only(ledger: Ledger) -> str:
    try:
        ledger.require_writable()
    except IngestError as error:
        return str(error)
    return ""


def combine_group_circuits(
    config: Config, known: Mapping[str, DestinationProgress]
) -> dict[str, DestinationProgress]:
    """Return the progress of groups with the circuits that follow from those of their members."""
    circuits = {name: each.circuit for name, each in known.items() if each.circuit is not None}
    return {
        group.name: replace(
            known.get(group.name, DestinationProgress(destination=group.name)),
            circuit=combine_circuits(group.name, group.members, circuits),
        )
        for group in config.groups
    }


def _find_waits(
    config: Config, ledger: Ledger, known: Mapping[str, DestinationProgress], now_ms: int
) -> dict[str, Wait]:
    """Find when destinations are sent to next, if not now."""
    waits = {}
    for destination in config.destinations:
        progress = known[destination.name]
        opens_at = destination.find_opening_ms(now_ms)
        due_at = 0
        if progress.backlog and not progress.states.get(DeliveryState.SENDING):
            due_at = ledger.deliveries.find_next_due_ms(destination.name) or 0
        probe_at = progress.circuit.probe_at if progress.circuit else 0
        next_at = max(opens_at, due_at, probe_at) if progress.backlog else now_ms
        waits[destination.name] = Wait(
            opens_at if opens_at > now_ms else 0,
            destination.find_opening_ms(next_at) if next_at > now_ms else 0,
            destination.find_open_since_ms(now_ms),
        )
    return waits


def _measure_due_seconds(progress: DestinationProgress, now_ms: int, wait: Wait) -> float | None:
    if progress.oldest_due_at is None or wait.opens_at_ms:
        return None
    return (now_ms - max(progress.oldest_due_at, wait.open_since_ms)) / 1000


def _describe_destination(
    progress: DestinationProgress, now_ms: int, wait: Wait, group: Group | None
) -> dict[str, Any]:
    circuit = progress.circuit
    return {
        "name": progress.destination,
        "policy": group.policy if group else "",
        "members": list(group.members) if group else [],
        "backlog": progress.backlog,
        "waiting_urgent": progress.waiting_urgent,
        "waiting_bulk": progress.waiting_bulk,
        "oldest_seconds": None if progress.oldest_at is None else (now_ms - progress.oldest_at) / 1000,
        # The same since it may be sent, by the hours of its route and of the destination.
        "oldest_due_seconds": _measure_due_seconds(progress, now_ms, wait),
        "delivered_per_second": round(progress.delivered_per_second, 3),
        "mb_per_second": round(progress.bytes_per_second / 1e6, 3),
        "circuit": circuit.state.value if circuit else CircuitState.CLOSED.value,
        "refuses": circuit.permanent if circuit else False,
        "failures": circuit.failures if circuit else 0,
        "opened_at_ms": circuit.opened_at if circuit else 0,
        "next_probe_seconds": max(0.0, (circuit.probe_at - now_ms) / 1000) if circuit else 0.0,
        # When its hours begin; 0 within them.
        "opens_at_ms": wait.opens_at_ms,
        # When its first delivery is tried; 0 if one may be tried now, and without deliveries.
        "next_attempt_at_ms": wait.next_attempt_at_ms,
        "paused_at_ms": circuit.paused_at if circuit else 0,
        "paused_by": circuit.paused_by if circuit else "",
        "pause_reason": circuit.pause_reason if circuit else "",
        "last_error": circuit.last_error if circuit else "",
        "last_error_seconds": (now_ms - circuit.last_error_at) / 1000
        if circuit and circuit.last_error_at
        else None,
    }


def _gather_certificates(config: Config) -> list[dict[str, Any]]:
    """Return the certificates in force and those that peers and destinations presented.

    The certificates in force are those that the running node has read. Without a running node, they are those
    in the files.
    """
    is_running = node_lock.is_node_running(config.run_dir)
    if not config.tls and not is_running:
        return []
    from ingest.tls import expiry  # noqa: PLC0415 - it imports cryptography, and there are certificates

    files: list[dict[str, Any]] = []
    for place in expiry.iterate_locations(config):
        try:
            files += map(expiry.to_json_row, expiry.read_certificates(config, place))
        except (IngestError, OSError) as error:
            files.append({"section": place.section, "file": str(place.path), "error": str(error)})
    in_force = expiry.read_certificates_in_force(config.run_dir) if is_running else []
    differs = bool(in_force) and _list_digests(in_force) != _list_digests(files)
    found = in_force or files
    known = {row.get("sha256") for row in found}
    observed = map(expiry.to_json_row, expiry.iterate_observed(config))
    found = [*found, *(row for row in observed if row["sha256"] not in known)]
    for row in found:
        if "not_after" in row:
            left = datetime.fromisoformat(row["not_after"]).timestamp() - time.time()
            row["days_left"] = round(left / 86400, 1)
    if differs:
        cause = "the files differ from the certificates in force; `ingest reload` reads them"
        found.append({"section": "", "file": "", "error": cause})
    return found


def _list_digests(rows: list[dict[str, Any]]) -> set[tuple[str, str]]:
    return {(row["section"], row["sha256"]) for row in rows if "sha256" in row}
