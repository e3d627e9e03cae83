"""Plan and do the upgrade of a ledger and a data folder, without starting the node."""

import contextlib
import os
import shutil
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Final

import sqlalchemy

from ingest.build_info import read_version
from ingest.config.model import Config
from ingest.errors import BootError, LedgerVersionError, UpgradeError
from ingest.filesystem import node_lock
from ingest.filesystem.data_format import DataFormat, require_data_format, write_data_format
from ingest.ledger import SCHEMA_VERSION, Ledger
from ingest.ledger.hosts import RUNNING_MS, HostNote
from ingest.ledger.migrations import list_steps
from ingest.operations.times import format_iso_time
from ingest.program import DATA_FORMAT

SPARE_BYTES: Final = 64 << 20
"""Room that every migration needs, however small the ledger is."""

_GROWTH: Final = 1.5
"""Room for a migration that reads or writes tables as a whole, for each byte of the ledger.

SQLite writes the new pages to its log first, and copies them into the file afterwards.
"""

_NEWEST_ID: Final = "SELECT max(id) FROM {}"


class UpgradeVerdict(Enum):
    """What an upgrade would do."""

    NOTHING = "nothing to do"
    NEW = "a new ledger will be made"
    NEEDED = "an upgrade is needed"
    BLOCKED = "an upgrade is needed, and cannot be done now"
    REFUSED = "a newer program has used this ledger or this data folder"


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """One migration of the ledger.

    Attributes:
        revision: Schema version after it.
        sentence: What it does.
        rows: About how many rows of each table it reads or writes; empty if it reads no whole table.
        seconds: About how long it takes.
    """

    revision: str
    sentence: str
    rows: Mapping[str, int]
    seconds: float


@dataclass(frozen=True, slots=True)
class UpgradePlan:
    """An upgrade, before it is done.

    Attributes:
        release: Release of this program.
        data_dir: The data folder.
        data_format: Its version; None for a new folder, or one from before versions.
        ledger: URL of the ledger, without its password.
        schema_version: That of the ledger; None for a ledger that does not exist yet.
        steps: Migrations of the ledger, in their order.
        ledger_bytes: Size of the ledger.
        bytes_needed: Free room that the migrations need.
        bytes_free: Free room on the disk of the ledger; None if it is the server's disk.
        is_node_running: Whether processes of a node use this data folder on this host.
        hosts: Other hosts whose workers used the ledger within the last minutes.
        refusal: Why a newer program is needed; empty if this program may upgrade.
    """

    release: str
    data_dir: Path
    data_format: DataFormat | None
    ledger: str
    schema_version: str | None = None
    steps: tuple[PlannedStep, ...] = ()
    ledger_bytes: int = 0
    bytes_needed: int = 0
    bytes_free: int | None = None
    is_node_running: bool = False
    hosts: tuple[HostNote, ...] = field(default=())
    refusal: str = ""

    @property
    def seconds(self) -> float:
        """About how long all steps take."""
        return sum(step.seconds for step in self.steps)

    @property
    def is_room_missing(self) -> bool:
        """Whether the disk of the ledger has too little room."""
        return bool(self.steps) and self.bytes_free is not None and self.bytes_free < self.bytes_needed

    @property
    def verdict(self) -> UpgradeVerdict:
        """What the upgrade would do. Running processes do not count: a plan is made before they stop."""
        if self.refusal:
            return UpgradeVerdict.REFUSED
        if self.schema_version is None:
            return UpgradeVerdict.NEW
        if not self.steps:
            return UpgradeVerdict.NOTHING
        return UpgradeVerdict.BLOCKED if self.is_room_missing else UpgradeVerdict.NEEDED

    def to_json(self) -> dict[str, Any]:
        """Return the plan for JSON."""
        return {
            "verdict": self.verdict.name.lower(),
            "refusal": self.refusal,
            "release": self.release,
            "data_dir": str(self.data_dir),
            "data_format": {"found": self.data_format and asdict(self.data_format), "needed": DATA_FORMAT},
            "ledger": self.ledger,
            "schema_version": {"found": self.schema_version, "needed": SCHEMA_VERSION},
            "steps": [asdict(step) for step in self.steps],
            "seconds": round(self.seconds, 1),
            "ledger_bytes": self.ledger_bytes,
            "bytes_needed": self.bytes_needed,
            "bytes_free": self.bytes_free,
            "node_running": self.is_node_running,
            "hosts": [
                asdict(host) | {"seen_at": format_iso_time(host.seen_at), "data_dir": host.data_dir}
                for host in self.hosts
            ],
        }


def plan_upgrade(config: Config) -> UpgradePlan:
    """Find out what an upgrade to this program would do. Nothing is changed, and a node may run.

    Raises:
        LedgerError: The ledger is away.
        OSError: The data folder cannot be read.
    """
    release, is_running = read_version(), _is_node_running(config)
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        name = ledger.database.name
        try:
            data_format = require_data_format(config.data_dir)
            ledger.database.refuse_newer_schema()
        except (BootError, LedgerVersionError) as error:
            return UpgradePlan(
                release, config.data_dir, None, name, is_node_running=is_running, refusal=str(error)
            )
        found = ledger.read_schema_version()
        if found is None:
            return UpgradePlan(release, config.data_dir, data_format, name, is_node_running=is_running)
        steps = _plan_steps(ledger, found)
        size = ledger.database.measure_bytes()
        return UpgradePlan(
            release=release,
            data_dir=config.data_dir,
            data_format=data_format,
            ledger=name,
            schema_version=found,
            steps=steps,
            ledger_bytes=size,
            bytes_needed=_estimate_room(steps, size),
            bytes_free=_measure_free_room(config),
            is_node_running=is_running,
            hosts=_list_other_hosts(config, ledger),
        )


def upgrade_node(
    config: Config, *, is_forced: bool = False, report_step: Callable[[str], None] = lambda _: None
) -> UpgradePlan:
    """Upgrade the ledger and the data folder of a node that is stopped.

    Args:
        config: The configuration.
        is_forced: Whether to upgrade although other hosts have used the ledger lately.
        report_step: Called with the revision of each migration that was run.

    Returns:
        The plan that was carried out.

    Raises:
        BootError: A newer program has used data folder or ledger.
        UpgradeError: Processes of the node run, here or on another host, or there is too little room.
        LedgerError: The ledger is away.
        OSError: The data folder cannot be written to.
    """
    plan = plan_upgrade(config)
    _require_readiness(plan, is_forced=is_forced)
    config.run_dir.mkdir(parents=True, exist_ok=True, mode=0o750)
    lock = node_lock.take_node_lock(config.run_dir)
    try:
        with contextlib.closing(Ledger(config.ledger_url)) as ledger:
            ledger.database.migrate(report_step)
        # Last: an older program refuses a newer format, so a migration that fails must not leave one.
        write_data_format(config.data_dir)
    finally:
        os.close(lock)
    return plan


def _require_readiness(plan: UpgradePlan, *, is_forced: bool) -> None:
    if plan.refusal:
        raise BootError(plan.refusal)
    if plan.is_node_running:
        raise UpgradeError(f"a node, or workers, run on {plan.data_dir}; stop them first")
    if plan.hosts and plan.steps and not is_forced:
        names = ", ".join(sorted({f"{host.host} ({host.release})" for host in plan.hosts}))
        raise UpgradeError(
            f"workers on other hosts used the ledger within the last {RUNNING_MS // 1000} s: {names}; stop "
            "them, and try again after that time, or add --force if they have stopped"
        )
    if plan.is_room_missing:
        raise UpgradeError(
            f"the migration needs {plan.bytes_needed} free bytes beside {plan.ledger}, and there are "
            f"{plan.bytes_free}; make room"
        )


def _is_node_running(config: Config) -> bool:
    return node_lock.is_node_running(config.run_dir) or node_lock.are_workers_running(config.run_dir)


def _plan_steps(ledger: Ledger, found: str) -> tuple[PlannedStep, ...]:
    steps = list_steps(found)
    rows = _estimate_rows(ledger, {table for step in steps for table in step.cost})
    return tuple(
        PlannedStep(
            revision=step.revision,
            sentence=step.sentence,
            rows={table: rows[table] for table in step.cost},
            seconds=sum(rows[table] / 1e6 * seconds for table, seconds in step.cost.items()),
        )
        for step in steps
    )


def _estimate_rows(ledger: Ledger, tables: set[str]) -> dict[str, int]:
    """Return the largest id of each table: nearly the number of rows, and found without counting."""
    with ledger.database.begin_read() as connection:
        return {
            table: int(connection.execute(sqlalchemy.text(_NEWEST_ID.format(table))).scalar() or 0)
            for table in sorted(tables)
        }


def _estimate_room(steps: Sequence[PlannedStep], ledger_bytes: int) -> int:
    if not steps:
        return 0
    return SPARE_BYTES + (round(_GROWTH * ledger_bytes) if any(step.rows for step in steps) else 0)


def _measure_free_room(config: Config) -> int | None:
    path = sqlalchemy.make_url(config.ledger_url).database
    if not config.ledger_url.startswith("sqlite") or not path:
        return None
    with contextlib.suppress(OSError):
        return shutil.disk_usage(Path(path).parent).free
    return None


def _list_other_hosts(config: Config, ledger: Ledger) -> tuple[HostNote, ...]:
    ours = socket.gethostname(), str(config.data_dir)
    since = ledger.unix_ms() - RUNNING_MS
    return tuple(
        note
        for note in ledger.hosts.list_hosts()
        if note.seen_at >= since and (note.host, note.data_dir) != ours
    )
