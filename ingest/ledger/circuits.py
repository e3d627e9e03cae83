"""The part of the ledger that knows circuits: whether a destination is asked at all, for all workers."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Final

from sqlalchemy import Connection, bindparam, select, update
from sqlalchemy.dialects import postgresql, sqlite

from ingest.ledger.database import Database
from ingest.ledger.schema import circuits


class CircuitState(StrEnum):
    """What workers do about a destination."""

    CLOSED = "closed"
    """They send."""
    OPEN = "open"
    """They leave it alone until `Circuit.probe_at`."""
    HALF_OPEN = "half-open"
    """One of them asks whether it is there; from `Circuit.probe_at` on another may."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Circuit:
    """A row of `circuits`.

    Attributes:
        failures: Associations in a row that could not be made or ended early.
        opened_at: Since when it is not closed; 0 while it is.
        probe_at: Before this time nobody asks; 0 where that may be done at once.
        permanent: Whether the remote said that it wants no association with us (A-ASSOCIATE-RJ, permanent).
        last_error: Of an association, never of an instance: no patient's data.
        last_error_at: When that was; 0 for never.
        breaks: How many of the failures were associations that an instance broke, each another one, since the
            remote last answered for an instance.
        answered_at: When it first answered for an instance after such a break; 0 for never.
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

    def is_left_alone(self, now_ms: int) -> bool:
        """Whether nothing is sent to the destination now."""
        return self.state is not CircuitState.CLOSED or self.probe_at > now_ms

    @property
    def reason(self) -> str:
        """Why nothing is sent to it, in words."""
        what = "it refuses us" if self.permanent else f"circuit {self.state.value}"
        return f"{what}: {self.last_error}" if self.last_error else what


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
    """Keeps one circuit for each destination."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def read_circuit(self, destination: str) -> Circuit:
        """The circuit of a destination; closed where it never failed.

        Raises:
            LedgerError: The ledger is away.
        """
        with self._database.begin_read() as connection:
            return _found(connection, destination, for_update=False) or Circuit(destination=destination)

    def change_circuit(
        self, destination: str, change: Callable[[Circuit], Circuit]
    ) -> tuple[Circuit, Circuit]:
        """Change a circuit in one transaction; of several workers one after the other.

        Args:
            destination: Its name.
            change: A pure function of what it is now; may be called on what another worker has changed.

        Returns:
            It, before and after.

        Raises:
            LedgerError: The ledger is away.
        """
        with self._database.begin_write() as connection:
            before = _found(connection, destination, for_update=True)
            if before is None:
                connection.execute(_INSERT[self._database.dialect], asdict(Circuit(destination=destination)))
                before = _found(connection, destination, for_update=True) or Circuit(destination=destination)
            after = change(before)
            if after != before:
                connection.execute(
                    update(circuits).where(circuits.c.destination == destination).values(**asdict(after))
                )
        return before, after

    def change_existing_circuit(self, destination: str, change: Callable[[Circuit], Circuit]) -> bool:
        """As `change_circuit`, without a row for a destination that never failed; returns whether it changed.

        Raises:
            LedgerError: The ledger is away.
        """
        found = self.read_circuit(destination)
        if change(found) == found:
            return False
        before, after = self.change_circuit(destination, change)
        return before != after

    def read_circuits(self) -> dict[str, Circuit]:
        """All circuits there are, by destination.

        Raises:
            LedgerError: The ledger is away.
        """
        with self._database.begin_read() as connection:
            return read_circuits(connection)

    def close_circuit(self, destination: str) -> Circuit:
        """Have a destination asked at once, whatever it said: somebody wants its deliveries tried again.

        Returns:
            The circuit as it was.

        Raises:
            LedgerError: The ledger is away.
        """
        with self._database.begin_write() as connection:
            before = _found(connection, destination, for_update=True)
            connection.execute(_CLOSE, {"of": destination})
        return before or Circuit(destination=destination)


def read_circuits(connection: Connection) -> dict[str, Circuit]:
    """All circuits there are, by destination."""
    rows = connection.execute(select(circuits)).mappings()
    return {row["destination"]: Circuit(**{**row, "state": CircuitState(row["state"])}) for row in rows}


def _found(connection: Connection, destination: str, *, for_update: bool) -> Circuit | None:
    query = _LOCKED if for_update else _ONE
    row = connection.execute(query, {"of": destination}).mappings().one_or_none()
    return None if row is None else Circuit(**{**row, "state": CircuitState(row["state"])})
