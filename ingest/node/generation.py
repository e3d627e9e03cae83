"""What one reading of the configuration asks of a supervisor: which processes, on which sockets."""

import os
from dataclasses import dataclass, field
from typing import Final

from ingest.config.model import Config
from ingest.node.endpoints import Endpoint

ALL_ROLES: Final = frozenset({"listen", "persist", "forward"})
"""A whole node; it alone runs the embedded queue."""


@dataclass(slots=True)
class Child:
    """A process that we forked."""

    pid: int
    role: str
    generation: int
    started: float
    row: int | None = None
    stopping: bool = False
    stuck: bool = False


@dataclass(slots=True)
class Place:
    """One of the processes that a generation shall have; remembers how its last ones ended."""

    role: str
    pid: int = 0
    failures: int = 0
    fork_at: float = 0.0


@dataclass(slots=True)
class Generation:
    """What one reading of the configuration asks for."""

    number: int
    config: Config
    endpoints: tuple[Endpoint, ...]
    places: list[Place] = field(default_factory=list)


def plan(number: int, config: Config, endpoints: tuple[Endpoint, ...], roles: frozenset[str]) -> Generation:
    """The processes of `roles`; a role that runs alone has one even where the configuration says none."""
    counts = {
        "listen": config.receive.processes or os.cpu_count() or 1,
        "persist": config.workers.persist,
        "forward": config.workers.forward if config.destinations else 0,
    }
    if roles != ALL_ROLES:
        counts = {role: max(count, 1) for role, count in counts.items()}
    places = [Place(role) for role in counts if role in roles for _ in range(counts[role])]
    return Generation(number, config, endpoints, places)
