"""What one reading of the configuration asks of a supervisor: which processes, on which sockets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from ingest.acceptor.endpoints import Endpoint, bind
from ingest.checks.tls import Term, terms, untimely
from ingest.config.model import Config
from ingest.config.reader import load_config
from ingest.cores import usable_cores
from ingest.errors import ConfigError
from ingest.requestor.remotes import build_remotes
from ingest.requestor.transport import Remote
from ingest.tls.contexts import contexts

ALL_ROLES: Final = frozenset({"listen", "persist", "forward", "retain"})
"""A whole node; it alone runs the embedded queue."""

BACK_OFF_SECONDS: Final = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)
SOUND_AFTER_SECONDS: Final = 10.0
"""A process that lived so long was sound; its end does not count towards the back-off."""


@dataclass(slots=True)
class Child:
    """A process that we forked.

    Attributes:
        pid: Its process id.
        role: What it does.
        generation: Number of the configuration that it runs with.
        started: When it was forked (monotonic seconds).
        row: Of the scoreboard, for a listener.
        stopping: Whether it was told to end.
        stuck: Whether it was asked to end for want of a heartbeat.
        retired_at: When a newer configuration was put in force; None before.
        ended_at: When it was told to abort what it still serves; None before.
    """

    pid: int
    role: str
    generation: int
    started: float
    row: int | None = None
    stopping: bool = False
    stuck: bool = False
    retired_at: float | None = None
    ended_at: float | None = None


@dataclass(slots=True)
class Place:
    """One of the processes that a generation shall have; remembers how its last ones ended."""

    role: str
    pid: int = 0
    failures: int = 0
    fork_at: float = 0.0

    def died(self, lived: float, now: float) -> float:
        """Note that its process ended after `lived` seconds; returns how many to wait for the next one."""
        self.pid = 0
        if lived >= SOUND_AFTER_SECONDS:
            self.failures = 0
        pause = BACK_OFF_SECONDS[min(self.failures, len(BACK_OFF_SECONDS) - 1)]
        self.failures += 1
        self.fork_at = now + pause
        return pause


@dataclass(slots=True)
class Generation:
    """What one reading of the configuration asks for, with all key material that it names.

    Attributes:
        number: Counts readings, from 1.
        endpoints: Of listeners.
        remotes: Of forward workers, by the destination's name. As endpoints, they are made before the fork:
            a process that is started again later does not read files that are being replaced meanwhile.
        terms: How long what it read is good.
    """

    number: int
    config: Config
    endpoints: tuple[Endpoint, ...] = ()
    remotes: Mapping[str, Remote] = field(default_factory=dict)
    terms: Sequence[Term] = ()
    places: list[Place] = field(default_factory=list)


def first(config: Config, roles: frozenset[str]) -> Generation:
    """What a start asks for. What has ended is taken: peers may not mind, and a node that is down helps none.

    Raises:
        ConfigError: Key material cannot be used.
        BootError: An address cannot be bound.
    """
    return _read(Generation(0, config), config, terms(config, datetime.now(UTC)), roles)


def following(old: Generation, path: Path, roles: frozenset[str]) -> Generation:
    """What a reload asks for; all that it names is read and looked at before anything changes.

    Args:
        old: What is in force; its sockets are used again, and stay as they are where this raises.
        path: Of the configuration.
        roles: Of this node.

    Raises:
        ConfigError: It cannot be used.
        BootError: An address cannot be bound.
    """
    config = load_config(path, roles=roles)
    now = datetime.now(UTC)
    dated = terms(config, now)
    faults = [*_unchangeable(old.config, config), *untimely(dated, old.terms, now)]
    if faults:
        raise ConfigError(faults)
    return _read(old, config, dated, roles)


def _unchangeable(old: Config, new: Config) -> list[str]:
    return [
        f"{key}: cannot change while the node runs; restart it"
        for key, before, after in (
            ("node.data_dir", old.data_dir, new.data_dir),
            ("receive.spool_dir", old.spool_dir, new.spool_dir),
            ("queue.url", old.queue.url, new.queue.url),
            ("store.root", old.store_root, new.store_root),
            ("ledger.url", old.ledger_url, new.ledger_url),
        )
        if before != after
    ]


def _read(old: Generation, config: Config, dated: Sequence[Term], roles: frozenset[str]) -> Generation:
    made = contexts(config, roles)
    called = build_remotes(config, made.calling) if "forward" in roles else {}
    endpoints = bind(config, made.listening, old.endpoints) if "listen" in roles else ()
    return Generation(old.number + 1, config, endpoints, called, dated, plan(config, roles))


def plan(config: Config, roles: frozenset[str]) -> list[Place]:
    """The processes of `roles`; a role that runs alone has one even where the configuration says none."""
    counts = {
        "listen": config.receive.processes or usable_cores(),
        "persist": config.workers.persist,
        "forward": config.workers.forward if config.destinations else 0,
        "retain": int(config.retention.needs_remover),
    }
    if roles != ALL_ROLES:
        counts = {role: max(count, 1) for role, count in counts.items()}
    return [Place(role) for role in counts if role in roles for _ in range(counts[role])]
