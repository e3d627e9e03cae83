"""How fast a destination takes what it is sent, and how much it is still owed since when."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection, bindparam, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite

from ingest.ledger.circuits import Circuit, read_circuits
from ingest.ledger.database import Database
from ingest.ledger.records import DeliveryResult, DeliveryState
from ingest.ledger.schema import deliveries, throughput

KEPT_MINUTES: Final = 60
RATE_MINUTES: Final = 5
"""A rate is that of the last whole minutes, as many as this."""

_MINUTE_MS: Final = 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationProgress:
    """What people ask of a destination.

    Attributes:
        states: Number of deliveries by state; a state without rows is missing.
        oldest_at: Since when the oldest delivery is owed that is not delivered, dead or dropped, in Unix
            milliseconds; None where nothing is owed.
        delivered_per_second: Instances, over the last five whole minutes and this one.
        bytes_per_second: Of Part 10 files, likewise.
        circuit: Whether it is asked at all, and its last error; None where it never failed.
    """

    destination: str
    states: dict[DeliveryState, int] = field(default_factory=dict)
    oldest_at: int | None = None
    delivered_per_second: float = 0.0
    bytes_per_second: float = 0.0
    circuit: Circuit | None = None

    @property
    def backlog(self) -> int:
        """How many deliveries are owed."""
        return sum(self.states.get(state, 0) for state in _OWED)


_OWED: Final = (DeliveryState.WAITING, DeliveryState.SENDING, DeliveryState.RETRY)
_COUNTS: Final = select(deliveries.c.destination, deliveries.c.state, func.count()).group_by(
    deliveries.c.destination, deliveries.c.state
)
_RATES: Final = (
    select(throughput.c.destination, func.sum(throughput.c.delivered), func.sum(throughput.c.bytes))
    .where(throughput.c.minute >= bindparam("since"))
    .group_by(throughput.c.destination)
)
# What waits was made in the order of its instances; the index gives its first row.
_OLDEST_WAITING: Final = (
    select(deliveries.c.created_at)
    .where(deliveries.c.destination == bindparam("of"), deliveries.c.state == DeliveryState.WAITING.value)
    .order_by(deliveries.c.next_at, deliveries.c.instance_id)
    .limit(1)
)
_OLDEST_OTHER: Final = select(func.min(deliveries.c.created_at)).where(
    deliveries.c.destination == bindparam("of"),
    deliveries.c.state.in_((DeliveryState.SENDING.value, DeliveryState.RETRY.value)),
)
_INSERT: Final = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_FORGET: Final = delete(throughput).where(
    throughput.c.destination == bindparam("of"), throughput.c.minute < bindparam("before")
)


def count_delivered(
    connection: Connection, dialect: str, results: Sequence[DeliveryResult], destination: str, now_ms: int
) -> None:
    """Add what was delivered to this minute of its destination; a part of the transaction that says so."""
    sizes = [result.size for result in results if result.state is DeliveryState.DELIVERED]
    if not sizes:
        return
    minute = now_ms // _MINUTE_MS
    values = {"destination": destination, "minute": minute, "delivered": len(sizes), "bytes": sum(sizes)}
    insert: Any = _INSERT[dialect](throughput).values(**values)
    insert = insert.on_conflict_do_update(
        index_elements=[throughput.c.destination, throughput.c.minute],
        set_={
            "delivered": throughput.c.delivered + insert.excluded.delivered,
            "bytes": throughput.c.bytes + insert.excluded.bytes,
        },
    )
    connection.execute(insert)
    connection.execute(_FORGET, {"of": destination, "before": minute - KEPT_MINUTES})


class Throughput:
    """Says how far destinations are."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def read_progress(self, now_ms: int) -> dict[str, DestinationProgress]:
        """By destination, those that ever were owed something or failed.

        Raises:
            LedgerError: The ledger is away.
        """
        minute = now_ms // _MINUTE_MS
        seconds = RATE_MINUTES * 60 + (now_ms % _MINUTE_MS) / 1000
        with self._database.begin_read() as connection:
            states: dict[str, dict[DeliveryState, int]] = {}
            for name, state, count in connection.execute(_COUNTS):
                states.setdefault(name, {})[DeliveryState(state)] = count
            rates = {
                # PostgreSQL adds integers up to a numeric, and a numeric cannot be divided by a float.
                name: (int(delivered) / seconds, int(size) / seconds)
                for name, delivered, size in connection.execute(_RATES, {"since": minute - RATE_MINUTES})
            }
            circuits = read_circuits(connection)
            oldest = {name: _oldest(connection, name) for name in states}
        return {
            name: DestinationProgress(
                destination=name,
                states=states.get(name, {}),
                oldest_at=oldest.get(name),
                delivered_per_second=rates.get(name, (0.0, 0.0))[0],
                bytes_per_second=rates.get(name, (0.0, 0.0))[1],
                circuit=circuits.get(name),
            )
            for name in sorted(states.keys() | circuits.keys())
        }


def _oldest(connection: Connection, destination: str) -> int | None:
    times = (
        connection.execute(query, {"of": destination}).scalar() for query in (_OLDEST_WAITING, _OLDEST_OTHER)
    )
    return min((time for time in times if time is not None), default=None)
