"""Configuration generations: what one reading of the configuration makes a supervisor run with.

A generation holds everything that its processes need: the configuration, listening sockets, TLS contexts
with their certificates and keys, and one worker slot for each process. All of it is made before a process
is forked. A process that dies later is therefore forked again with the same certificates, even if a person
is replacing the files at that moment. `ingest.supervisor.reload` replaces one generation by the next.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from ingest.acceptor.endpoints import Endpoint, bind_endpoints
from ingest.checks.tls import Validity, find_untimely, list_validities
from ingest.config.model import Config
from ingest.config.reader import load_config
from ingest.cores import plan_listeners
from ingest.errors import ConfigError
from ingest.outgoing.plan import OutgoingPlan
from ingest.outgoing.plans import build_plans
from ingest.requestor.remotes import build_remotes
from ingest.requestor.transport import Remote
from ingest.tls.contexts import build_contexts

ALL_ROLES: Final = frozenset({"listen", "persist", "forward", "retain", "monitor", "console"})
"""Roles of a whole node. Only a whole node runs the embedded queue."""

BACK_OFF_SECONDS: Final = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)
"""Pauses before a process that died is forked again: after its first death, its second, and so on."""

CONSOLE_BACK_OFF_SECONDS: Final = (0.0, 1.0, 5.0, 15.0, 30.0)
"""The same for the console. The node does its work without it, so its attempts cost less."""

STABLE_SECONDS: Final = 10.0
"""A process that lived this long was stable, so its death starts the back-off from the beginning."""


@dataclass(slots=True)
class WorkerSlot:
    """The slot of one process in a generation, with the back-off after its deaths.

    Attributes:
        role: Role of the process.
        pid: Process in this slot; 0 while it is empty.
        failures: Deaths since the last stable process.
        fork_at: Earliest time of the next fork, in seconds of the monotonic clock.
    """

    role: str
    pid: int = 0
    failures: int = 0
    fork_at: float = 0.0

    def record_death(self, lived_seconds: float, now: float) -> float:
        """Empty the slot, and return the pause in seconds before the next fork."""
        self.pid = 0
        if lived_seconds >= STABLE_SECONDS:
            self.failures = 0
        pauses = CONSOLE_BACK_OFF_SECONDS if self.role == "console" else BACK_OFF_SECONDS
        pause = pauses[min(self.failures, len(pauses) - 1)]
        self.failures += 1
        self.fork_at = now + pause
        return pause


@dataclass(slots=True)
class Generation:
    """One reading of the configuration, with all that was made from it.

    Attributes:
        number: Count of readings, from 1.
        config: The configuration.
        endpoints: Listening sockets of the listeners, each with its TLS context.
        remotes: Destinations of the forward workers by name, each with its TLS context.
        terms: Validity of certificates, keys and CRLs.
        plans: Changes of data sets for destinations of the forward workers, by name.
        slots: One for each process.
    """

    number: int
    config: Config
    endpoints: tuple[Endpoint, ...] = ()
    remotes: Mapping[str, Remote] = field(default_factory=dict)
    terms: Sequence[Validity] = ()
    plans: Mapping[str, OutgoingPlan] = field(default_factory=dict)
    slots: list[WorkerSlot] = field(default_factory=list)


def read_first_generation(config: Config, roles: frozenset[str]) -> Generation:
    """Make the generation that a node starts with.

    An expired certificate is accepted here. Some peers do not check it, and a node that is down receives
    nothing.

    Raises:
        ConfigError: A certificate, key or map cannot be used.
        BootError: An address cannot be bound.
    """
    return _make(Generation(0, config), config, list_validities(config, datetime.now(UTC)), roles)


def read_next_generation(old: Generation, path: Path, roles: frozenset[str]) -> Generation:
    """Make the generation of a reload. Every file is read and examined before anything changes.

    Args:
        old: The generation in force. The new one shares its sockets where host and port are the same.
        path: File of the configuration.
        roles: Roles of this node.

    Raises:
        ConfigError: The configuration, a certificate, a key or a map cannot be used.
        BootError: An address cannot be bound.
    """
    config = load_config(path, roles=roles)
    now = datetime.now(UTC)
    new_terms = list_validities(config, now)
    faults = [*_find_fixed_changes(old.config, config), *find_untimely(new_terms, old.terms, now)]
    if faults:
        raise ConfigError(faults)
    return _make(old, config, new_terms, roles)


def _find_fixed_changes(old: Config, new: Config) -> list[str]:
    """Return a fault for each key that must keep its value while the node runs."""
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


def _make(
    old: Generation, config: Config, new_terms: Sequence[Validity], roles: frozenset[str]
) -> Generation:
    made = build_contexts(config, roles)
    destinations = build_remotes(config, made.calling) if "forward" in roles else {}
    plans = build_plans(config) if "forward" in roles else {}
    endpoints = bind_endpoints(config, made.listening, old.endpoints) if "listen" in roles else ()
    return Generation(
        old.number + 1, config, endpoints, destinations, new_terms, plans, plan_worker_slots(config, roles)
    )


def plan_worker_slots(config: Config, roles: frozenset[str]) -> list[WorkerSlot]:
    """Return an empty slot for each process of `roles`.

    A role that runs alone has one process even if the configuration asks for none.
    """
    counts = {
        "listen": plan_listeners(config.receive.processes),
        "persist": config.workers.persist,
        "forward": config.workers.forward if config.destinations else 0,
        "retain": int(config.retention.needs_remover),
        "monitor": int(config.needs_monitor),
        "console": int(config.console is not None),
    }
    if roles != ALL_ROLES:
        counts = {role: max(count, 1) for role, count in counts.items()}
    return [WorkerSlot(role) for role in counts if role in roles for _ in range(counts[role])]
