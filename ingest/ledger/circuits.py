"""Circuits: whether workers may send to a destination. One circuit serves all workers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Final

from sqlalchemy import Connection, bindparam, select, update
from sqlalchemy.dialects import postgresql, sqlite

from ingest.ledger.database import Database
from ingest.ledger.schema import circuits


class CircuitState(StrEnum):
    """The state of a circuit."""

    CLOSED = "closed"
    """Workers send."""
    OPEN = "open"
    """No worker sends until `Circuit.probe_at`."""
    HALF_OPEN = "half-open"
    """One worker probes the destination. From `Circuit.probe_at` on, another one may."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Circuit:
    """A row of `circuits`; times are Unix milliseconds.

    Attributes:
        failures: Associations in a row that failed or ended early.
        opened_at: When the circuit left the state closed; 0 while it is closed.
        probe_at: No worker probes before this time; 0 allows a probe at once.
        permanent: Whether the remote rejects us permanently (A-ASSOCIATE-RJ, result 1).
        last_error: The last error of an association, never of an instance. It holds no patient data.
        last_error_at: Time of that error; 0 for never.
        breaks: How many of the failures were associations that different instances broke, since the remote
            last answered a C-STORE.
        answered_at: When the remote first answered a C-STORE after such a break; 0 for never.
        paused_at: Since when a person has paused the destination; 0 if it is not paused.
        paused_by: Name of that person.
        pause_reason: Reason that the person gave, or empty.
    """

    destination: str
    state: CircuitState = CircuitState.CLOSED
    failures: int = 0
    opened_at: int = 0
    probe_at: int = 0
    permanent: bool = False
    last_error: str = ""
    last_error_at: int = 0
    breaks: int = 0
    answered_at: int = 0
    paused_at: int = 0
    paused_by: str = ""
    pause_reason: str = ""

    @property
    def is_paused(self) -> bool:
        """Whether a person has paused the destination."""
        return self.paused_at > 0

    def is_left_alone(self, unix_ms: int) -> bool:
        """Whether no worker may send to the destination now."""
        return self.is_paused or self.state is not CircuitState.CLOSED or self.probe_at > unix_ms

    @property
    def reason(self) -> str:
        """Why no worker sends to the destination, as text for people."""
        if self.is_paused:
            return f"paused by {self.paused_by}" + (f": {self.pause_reason}" if self.pause_reason else "")
        what = "it refuses us" if self.permanent else f"circuit {self.state.value}"
        return f"{what}: {self.last_error}" if self.last_error else what


def combine_circuits(group: str, members: Sequence[str], known: Mapping[str, Circuit]) -> Circuit | None:
    """Return the circuit of a group: open while no member can be sent to. Its pause is its own.

    Args:
        group: Name of the group.
        members: Names of its members.
        known: Circuits by name. A destination without one never failed.

    Returns:
        None if neither the group nor a member has a circuit that says more than closed.
    """
    own, of_members = known.get(group), [known.get(name) for name in members]
    down = [
        each
        for each in of_members
        if each is not None and (each.is_paused or each.state is not CircuitState.CLOSED)
    ]
    if not down or len(down) < len(members):
        return own
    base = own or Circuit(destination=group)
    last = max(down, key=lambda each: each.last_error_at)
    is_open = any(each.state is not CircuitState.CLOSED for each in down)
    return replace(
        base,
        state=CircuitState.OPEN,
        failures=max(each.failures for each in down),
        opened_at=max(each.opened_at or each.paused_at for each in down),
        probe_at=min((each.probe_at for each in down if not each.is_paused), default=0),
        last_error=last.last_error if is_open else "all members are paused",
        last_error_at=last.last_error_at,
    )


_ONE: Final = select(circuits).where(circuits.c.destination == bindparam("of"))
_LOCKED: Final = _ONE.with_for_update()
_INSERT: Final = {
    "sqlite": sqlite.insert(circuits).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(circuits).on_conflict_do_nothing(),
}
_CLOSE: Final = (
    update(circuits)
    .where(circuits.c.destination == bindparam("of"))
    .values(state=CircuitState.CLOSED.value, failures=0, breaks=0, opened_at=0, probe_at=0, permanent=False)
)


class Circuits:
    """Keeps one circuit for each destination.

    Every method is one transaction. It raises LedgerError while the database is unavailable.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def read_circuit(self, destination: str) -> Circuit:
        """Return the circuit of a destination; a closed one if the destination never failed."""
        with self._database.begin_read() as connection:
            return _find(connection, destination, for_update=False) or Circuit(destination=destination)

    def change_circuit(
        self, destination: str, change: Callable[[Circuit], Circuit]
    ) -> tuple[Circuit, Circuit]:
        """Change a circuit in one transaction. Several workers change it one after the other.

        Args:
            destination: Name of the destination.
            change: A pure function of the current circuit, which another worker may have changed.

        Returns:
            The circuit before and after.
        """
        with self._database.begin_write() as connection:
            before = _find(connection, destination, for_update=True)
            if before is None:
                connection.execute(_INSERT[self._database.dialect], asdict(Circuit(destination=destination)))
                before = _find(connection, destination, for_update=True) or Circuit(destination=destination)
            after = change(before)
            if after != before:
                connection.execute(
                    update(circuits).where(circuits.c.destination == destination).values(**asdict(after))
                )
        return before, after

    def change_existing_circuit(self, destination: str, change: Callable[[Circuit], Circuit]) -> bool:
        """Change a circuit as `change_circuit` does, but create no row for it; return whether it changed."""
        found = self.read_circuit(destination)
        if change(found) == found:
            return False
        before, after = self.change_circuit(destination, change)
        return before != after

    def read_circuits(self) -> dict[str, Circuit]:
        """Return all circuits by destination."""
        with self._database.begin_read() as connection:
            return read_circuits(connection)

    def pause(self, destination: str, by: str, reason: str, unix_ms: int) -> tuple[Circuit, Circuit]:
        """Pause a destination until `resume`. A second pause replaces name and reason, and keeps the time.

        Returns:
            The circuit before and after.
        """
        return self.change_circuit(
            destination,
            lambda found: replace(
                found, paused_at=found.paused_at or unix_ms, paused_by=by, pause_reason=reason
            ),
        )

    def resume(self, destination: str) -> tuple[Circuit, Circuit]:
        """End a pause. An open circuit may be probed at once, because a person wants to send.

        Returns:
            The circuit before and after.
        """
        return self.change_circuit(
            destination,
            lambda found: replace(
                found,
                paused_at=0,
                paused_by="",
                pause_reason="",
                probe_at=found.probe_at if found.state is CircuitState.HALF_OPEN else 0,
            ),
        )

    def close_circuit(self, destination: str) -> Circuit:
        """Close a circuit regardless of earlier responses: a person wants its deliveries tried at once.

        Returns:
            The circuit before.
        """
        with self._database.begin_write() as connection:
            before = _find(connection, destination, for_update=True)
            connection.execute(_CLOSE, {"of": destination})
        return before or Circuit(destination=destination)


def read_circuits(connection: Connection) -> dict[str, Circuit]:
    """Return all circuits by destination."""
    rows = connection.execute(select(circuits)).mappings()
    return {row["destination"]: Circuit(**{**row, "state": CircuitState(row["state"])}) for row in rows}


def _find(connection: Connection, destination: str, *, for_update: bool) -> Circuit | None:
    query = _LOCKED if for_update else _ONE
    row = connection.execute(query, {"of": destination}).mappings().one_or_none()
    return None if row is None else Circuit(**{**row, "state": CircuitState(row["state"])})
