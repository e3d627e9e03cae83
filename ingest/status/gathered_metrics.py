"""Metrics that are read when somebody asks: run folder, spool, queue, ledger, disks and certificates.

Each part reads one of these and yields its samples. A part may fail or hang without harm to the others
(`ingest.status.exposition`).
"""

import contextlib
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, cast

from ingest.acceptor.scoreboard import Scoreboard
from ingest.alarms import standing_alarms
from ingest.clock import unix_ms
from ingest.config.model import Config
from ingest.ext.tls_context import openssl_version
from ingest.filesystem import node_lock
from ingest.ledger import CircuitState, DeliveryState, InstanceState, Ledger
from ingest.metrics.board import GENERATION, STARTED_AT
from ingest.metrics.board_file import read_boards
from ingest.metrics.families import Choice, Family, Kind
from ingest.queue.client import connect
from ingest.queue.keys import GROUP, stream_key
from ingest.spool import inventory
from ingest.spool.spool import read_spool_id
from ingest.status.health import check_readiness
from ingest.status.report import combine_group_circuits

CERTIFICATES_MAX: Final = 200
"""Limit on certificates with a separate metric: those that end first."""

REDIS_SECONDS: Final = 2.0


def _gauge(name: str, text: str, *labels: str) -> Family:
    return Family(name, Kind.GAUGE, text, tuple(Choice(label, ()) for label in labels))


UP: Final = _gauge("up", "1 while a node or workers run on this data folder, otherwise 0.")
NODE_READY: Final = _gauge("ready", "1 while the node receives, as /ready says, otherwise 0.")
BUILD_INFO: Final = _gauge("build_info", "Versions of the program; always 1.", "version", "python", "openssl")
START_TIME: Final = _gauge("start_time_seconds", "Start of the node, in seconds since 1970.")
CONFIG_GENERATION: Final = _gauge(
    "configuration_generation", "Number of the configuration in force since the start, from 1."
)
CONNECTIONS_OPEN: Final = _gauge("connections_open", "Connections that listeners serve now.")
ASSOCIATIONS_OPEN: Final = _gauge("associations_open", "Associations of all listeners now.")
ALARMS: Final = _gauge("alarms", "Alarms that stand, by condition and severity.", "condition", "severity")
SPOOL_ENTRIES: Final = _gauge("spool_entries", "Received instances that wait in the spool.")
SPOOL_BYTES: Final = _gauge("spool_bytes", "Bytes that they take.")
SPOOL_OLDEST: Final = _gauge("spool_oldest_seconds", "Age of the oldest of them; 0 without one.")
QUEUE_ENTRIES: Final = _gauge("queue_entries", "References on the queue.")
QUEUE_PENDING: Final = _gauge("queue_pending", "References that persist workers have taken.")
QUEUE_OLDEST: Final = _gauge("queue_oldest_seconds", "Age of the oldest reference; 0 without one.")
LEDGER_BYTES: Final = _gauge("ledger_bytes", "Size of the ledger's database.")
LEDGER_INSTANCES: Final = _gauge("ledger_instances", "Instances in the ledger, by state.", "state")
DELIVERIES: Final = _gauge("deliveries", "Deliveries in the ledger.", "destination", "state")
DELIVERY_OLDEST: Final = _gauge(
    "delivery_oldest_seconds", "Age of the oldest open delivery; 0 without one.", "destination"
)
CIRCUIT: Final = _gauge(
    "circuit_state", "1 for the state that the circuit is in, 0 for the others.", "destination", "state"
)
PAUSED: Final = _gauge("destination_paused", "1 while a person has paused the destination.", "destination")
DISK_FREE: Final = _gauge("disk_free_bytes", "Free space of a folder's file system.", "use")
DISK_SIZE: Final = _gauge("disk_size_bytes", "Size of a folder's file system.", "use")
DISK_LEAST: Final = _gauge(
    "disk_free_least_bytes", "Free space below which the node receives nothing.", "use"
)
CERTIFICATE_EXPIRY: Final = _gauge(
    "certificate_expiry_seconds",
    "Time until a certificate ends; negative after its end.",
    "role",
    "name",
    "fingerprint",
)

GATHERED: Final = (
    UP,
    NODE_READY,
    BUILD_INFO,
    START_TIME,
    CONFIG_GENERATION,
    CONNECTIONS_OPEN,
    ASSOCIATIONS_OPEN,
    ALARMS,
    SPOOL_ENTRIES,
    SPOOL_BYTES,
    SPOOL_OLDEST,
    QUEUE_ENTRIES,
    QUEUE_PENDING,
    QUEUE_OLDEST,
    LEDGER_BYTES,
    LEDGER_INSTANCES,
    DELIVERIES,
    DELIVERY_OLDEST,
    CIRCUIT,
    PAUSED,
    DISK_FREE,
    DISK_SIZE,
    DISK_LEAST,
    CERTIFICATE_EXPIRY,
)
"""Every metric of the parts below."""


@dataclass(frozen=True, slots=True)
class GatheredSample:
    """The value of one time series."""

    family: Family
    value: float
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Part:
    """One thing to read.

    Attributes:
        name: Its name in `dicom_ingest_scrape_errors_total`.
        fresh_seconds: How long its samples may be used again.
        read: Yields its samples, or raises any error.
    """

    name: str
    fresh_seconds: float
    read: Callable[[Config], Iterator[GatheredSample]]


def _read_node(config: Config) -> Iterator[GatheredSample]:
    run_dir = config.run_dir
    is_running = node_lock.is_node_running(run_dir)
    yield GatheredSample(UP, is_running or node_lock.are_workers_running(run_dir))
    boards = read_boards(run_dir)
    node = boards.get("node")
    if is_running and node is not None:
        yield GatheredSample(START_TIME, node.words[STARTED_AT] / 1000)
        yield GatheredSample(CONFIG_GENERATION, node.words[GENERATION])
    yield GatheredSample(NODE_READY, check_readiness(run_dir).is_ok)
    labels = (version("dicom-ingest"), platform.python_version(), openssl_version())
    yield GatheredSample(BUILD_INFO, 1, labels)
    board = Scoreboard.open_reader(run_dir / "scoreboard") if is_running else None
    if board is not None:
        yield GatheredSample(CONNECTIONS_OPEN, sum(row.active for row in board.list_listeners()))
        yield GatheredSample(ASSOCIATIONS_OPEN, board.count_associations()[0])


def _read_alarms(config: Config) -> Iterator[GatheredSample]:
    counts = Counter(
        (alarm.name.partition(".")[0], alarm.severity.value) for alarm in standing_alarms(config.run_dir)
    )
    for labels, count in sorted(counts.items()):
        yield GatheredSample(ALARMS, count, labels)


def _read_spool(config: Config) -> Iterator[GatheredSample]:
    root = config.spool_dir
    count, oldest_ms = 0, None
    for slot in inventory.list_slots(root):
        waiting = inventory.list_waiting(root, slot)
        count += len(waiting)
        if waiting:
            received_ms = inventory.find_received_ms(root, waiting[0])
            # The entry may be gone by now.
            oldest_ms = min((each for each in (oldest_ms, received_ms) if each is not None), default=None)
    yield GatheredSample(SPOOL_ENTRIES, count)
    yield GatheredSample(SPOOL_BYTES, inventory.measure_usage(root))
    yield GatheredSample(SPOOL_OLDEST, 0 if oldest_ms is None else _age_seconds(oldest_ms))


def _age_seconds(since_ms: float) -> float:
    return max(0.0, (unix_ms() - since_ms) / 1000)


def _read_queue(config: Config) -> Iterator[GatheredSample]:
    with contextlib.closing(connect(config, timeout=REDIS_SECONDS)) as client:
        client.ping()
        key = stream_key(read_spool_id(config.spool_dir) or "")
        is_known = bool(client.exists(key))
        groups = client.xinfo_groups(key) if is_known else []
        oldest = cast("list[tuple[bytes, object]]", client.xrange(key, count=1)) if is_known else []
        yield GatheredSample(QUEUE_ENTRIES, client.xlen(key) if is_known else 0)
        pending = sum(group["pending"] for group in groups if group["name"] == GROUP.encode())
        yield GatheredSample(QUEUE_PENDING, pending)
        # The id of a stream entry begins with the time of Redis in milliseconds.
        age = _age_seconds(int(oldest[0][0].partition(b"-")[0])) if oldest else 0
        yield GatheredSample(QUEUE_OLDEST, age)


def _read_ledger(config: Config) -> Iterator[GatheredSample]:
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        yield GatheredSample(LEDGER_BYTES, ledger.database.measure_bytes())
        counts = ledger.instances.count_by_state()
        for state in InstanceState:
            yield GatheredSample(LEDGER_INSTANCES, counts.get(state, 0), (state.value,))
        known = ledger.throughput.read_progress(unix_ms())
        known |= combine_group_circuits(config, known)
        # Destinations that left the configuration may still have dead deliveries, and somebody must see them.
        for name in dict.fromkeys([*config.target_names, *known]):
            progress = known.get(name)
            states = progress.states if progress is not None else {}
            for delivery_state in DeliveryState:
                count = states.get(delivery_state, 0)
                yield GatheredSample(DELIVERIES, count, (name, delivery_state.value))
            oldest_at = progress.oldest_at if progress is not None else None
            age = 0 if oldest_at is None else _age_seconds(oldest_at)
            yield GatheredSample(DELIVERY_OLDEST, age, (name,))
            circuit = progress.circuit if progress is not None else None
            current = circuit.state if circuit is not None else CircuitState.CLOSED
            for circuit_state in CircuitState:
                yield GatheredSample(CIRCUIT, circuit_state is current, (name, circuit_state.value))
            yield GatheredSample(PAUSED, circuit is not None and circuit.is_paused, (name,))


def _read_disks(config: Config) -> Iterator[GatheredSample]:
    folders = {"spool": config.spool_dir, "store": config.store_root, "data": config.data_dir}
    for use, path in folders.items():
        facts = os.statvfs(_find_existing(path))
        yield GatheredSample(DISK_FREE, facts.f_bavail * facts.f_frsize, (use,))
        yield GatheredSample(DISK_SIZE, facts.f_blocks * facts.f_frsize, (use,))
    yield GatheredSample(DISK_LEAST, config.receive.min_free_bytes, ("spool",))


def _find_existing(path: Path) -> Path:
    """Return a folder, or the nearest one above that exists. Its file system will hold the folder."""
    return next((one for one in (path, *path.parents) if one.exists()), path)


def _read_certificates(config: Config) -> Iterator[GatheredSample]:
    is_running = node_lock.is_node_running(config.run_dir)
    if not config.tls and not is_running:
        return
    from ingest.tls import expiry  # noqa: PLC0415 - it imports cryptography, and there are certificates

    rows: list[dict[str, Any]] = expiry.read_certificates_in_force(config.run_dir) if is_running else []
    if not rows:
        for place in expiry.iterate_locations(config):
            rows += map(expiry.to_json_row, expiry.read_certificates(config, place))
    rows += map(expiry.to_json_row, expiry.iterate_observed(config))
    ends: dict[tuple[str, ...], float] = {}
    for row in rows:
        if "not_after" in row:
            name = " ".join(row["whose"]) or row["section"]
            ends[row["role"], name, row["sha256"][:16]] = datetime.fromisoformat(row["not_after"]).timestamp()
    for labels, end in sorted(ends.items(), key=lambda item: item[1])[:CERTIFICATES_MAX]:
        yield GatheredSample(CERTIFICATE_EXPIRY, end - time.time(), labels)


PARTS: Final = (
    Part("node", 0.0, _read_node),
    Part("alarms", 0.0, _read_alarms),
    Part("spool", 2.0, _read_spool),
    Part("queue", 1.0, _read_queue),
    Part("ledger", 5.0, _read_ledger),
    Part("disks", 1.0, _read_disks),
    Part("certificates", 60.0, _read_certificates),
)
