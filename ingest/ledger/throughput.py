"""Throughput and backlog of each destination."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection, bindparam, delete, func, select

from ingest.dicom.priority import Priority
from ingest.ledger.circuits import Circuit, read_circuits
from ingest.ledger.database import INSERT_BY_DIALECT, Database
from ingest.ledger.lease_order import WAITING_RANGES, find_first_due, find_time_ms
from ingest.ledger.records import DeliveryResult, DeliveryState
from ingest.ledger.row_counts import count_deliveries
from ingest.ledger.schema import deliveries, throughput

KEPT_MINUTES: Final = 60
"""Older minutes are deleted."""

RATE_MINUTES: Final = 5
"""A rate covers this many whole minutes, and the current one."""

COUNTED_MAX: Final = 1000
"""Rows of one priority that are counted. Counting all of a long backlog would take too long for a status."""

_MINUTE_MS: Final = 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationProgress:
    """The figures of one destination.

    Attributes:
        states: Number of deliveries by state; a state without rows is missing.
        oldest_at: When the oldest open delivery was created, in Unix milliseconds; None without an open one.
        oldest_due_at: Since when, by the hours of its route, the first open delivery may be sent, or None.
        delivered_per_second: Instances per second, over the last five whole minutes and the current one.
        bytes_per_second: Bytes of Part 10 files per second, likewise.
        circuit: The circuit; None if the destination never failed.
        waiting_urgent, waiting_bulk: Waiting deliveries of these priorities, `COUNTED_MAX` at most.
    """

    destination: str
    states: dict[DeliveryState, int] = field(default_factory=dict)
    oldest_at: int | None = None
    oldest_due_at: int | None = None
    delivered_per_second: float = 0.0
    bytes_per_second: float = 0.0
    circuit: Circuit | None = None
    waiting_urgent: int = 0
    waiting_bulk: int = 0

    @property
    def backlog(self) -> int:
        """Number of open deliveries."""
        return sum(self.states.get(state, 0) for state in _OWED)


_OWED: Final = (DeliveryState.WAITING, DeliveryState.SENDING, DeliveryState.RETRY)
_RATES: Final = (
    select(throughput.c.destination, func.sum(throughput.c.delivered), func.sum(throughput.c.bytes))
    .where(throughput.c.minute >= bindparam("since"))
    .group_by(throughput.c.destination)
)
# Waiting deliveries of one priority were created in the order of their instances, so the first row of the
# index is the oldest.
_OLDEST_WAITING: Final = (
    select(deliveries.c.created_at, deliveries.c.next_at)
    .where(
        deliveries.c.destination == bindparam("of"),
        deliveries.c.state == DeliveryState.WAITING.value,
        deliveries.c.next_at >= bindparam("low"),
        deliveries.c.next_at <= bindparam("high"),
    )
    .order_by(deliveries.c.next_at, deliveries.c.instance_id)
    .limit(1)
)
_FIRST_OF_PRIORITY: Final = (
    select(deliveries.c.id)
    .where(
        deliveries.c.destination == bindparam("of"),
        deliveries.c.state == DeliveryState.WAITING.value,
        deliveries.c.next_at == bindparam("first_due"),
    )
    .limit(COUNTED_MAX)
    .subquery()
)
_COUNT_OF_PRIORITY: Final = select(func.count()).select_from(_FIRST_OF_PRIORITY)
_OLDEST_OTHER: Final = select(func.min(deliveries.c.created_at)).where(
    deliveries.c.destination == bindparam("of"),
    deliveries.c.state.in_((DeliveryState.SENDING.value, DeliveryState.RETRY.value)),
)
_FORGET: Final = delete(throughput).where(
    throughput.c.destination == bindparam("of"), throughput.c.minute < bindparam("before")
)


def count_delivered(
    connection: Connection, dialect: str, results: Sequence[DeliveryResult], destination: str, unix_ms: int
) -> None:
    """Add delivered instances to the current minute, within the transaction that records the results."""
    sizes = [result.size for result in results if result.state is DeliveryState.DELIVERED]
    if not sizes:
        return
    minute = unix_ms // _MINUTE_MS
    values = {"destination": destination, "minute": minute, "delivered": len(sizes), "bytes": sum(sizes)}
    insert: Any = INSERT_BY_DIALECT[dialect](throughput).values(**values)
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
    """Reads the progress of destinations. It raises LedgerError while the database is unavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def read_progress(self, unix_ms: int) -> dict[str, DestinationProgress]:
        """Return the progress of all destinations that have deliveries or a circuit, by name."""
        minute = unix_ms // _MINUTE_MS
        seconds = RATE_MINUTES * 60 + (unix_ms % _MINUTE_MS) / 1000
        with self._database.begin_read() as connection:
            states = count_deliveries(connection)
            rates = {
                # PostgreSQL returns sums of integers as numeric, which cannot be divided by a float.
                name: (int(delivered) / seconds, int(size) / seconds)
                for name, delivered, size in connection.execute(_RATES, {"since": minute - RATE_MINUTES})
            }
            circuits = read_circuits(connection)
            oldest = {name: _find_oldest(connection, name, unix_ms) for name in states}
            urgent = {name: _count_waiting(connection, name, Priority.URGENT) for name in states}
            bulk = {name: _count_waiting(connection, name, Priority.BULK) for name in states}
        return {
            name: DestinationProgress(
                destination=name,
                states=states.get(name, {}),
                oldest_at=oldest.get(name, (None, None))[0],
                oldest_due_at=oldest.get(name, (None, None))[1],
                delivered_per_second=rates.get(name, (0.0, 0.0))[0],
                bytes_per_second=rates.get(name, (0.0, 0.0))[1],
                circuit=circuits.get(name),
                waiting_urgent=urgent.get(name, 0),
                waiting_bulk=bulk.get(name, 0),
            )
            for name in sorted(states.keys() | circuits.keys())
        }


def _count_waiting(connection: Connection, destination: str, priority: Priority) -> int:
    parameters = {"of": destination, "first_due": find_first_due(priority)}
    return int(connection.execute(_COUNT_OF_PRIORITY, parameters).scalar_one())


def _find_oldest(connection: Connection, destination: str, unix_ms: int) -> tuple[int | None, int | None]:
    """Return when the oldest open delivery was created, and since when the first one may be sent."""
    created, due = [], []
    for low, high in WAITING_RANGES:
        row = connection.execute(_OLDEST_WAITING, {"of": destination, "low": low, "high": high}).first()
        if row is not None:
            created.append(row.created_at)
            # A row that waited for its hours has a time in `next_at`.
            due.append(find_time_ms(row.next_at) or row.created_at)
    other = connection.execute(_OLDEST_OTHER, {"of": destination}).scalar()
    if other is not None:
        created.append(other)
        due.append(other)
    due = [time for time in due if time <= unix_ms]
    return min(created, default=None), min(due, default=None)
