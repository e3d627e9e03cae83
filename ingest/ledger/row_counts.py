"""Numbers of rows by state, which triggers of the database keep (`r0014_row_counters`).

Counting the rows of a ledger with ten million instances would take seconds for each page of a status.
"""

from typing import Final

from sqlalchemy import Connection, func, select

from ingest.ledger.records import DeliveryState, InstanceState
from ingest.ledger.schema import row_counts

_NUMBERS: Final = select(
    row_counts.c.counted,
    row_counts.c.destination,
    row_counts.c.state,
    func.sum(row_counts.c.number).label("number"),
).group_by(row_counts.c.counted, row_counts.c.destination, row_counts.c.state)
_INSTANCES: Final = _NUMBERS.where(row_counts.c.counted == "instances")
_DELIVERIES: Final = _NUMBERS.where(row_counts.c.counted == "deliveries")


def count_instances(connection: Connection) -> dict[InstanceState, int]:
    """Return the number of instances by state; a state without rows is missing."""
    return {
        InstanceState(state): int(number) for _, _, state, number in connection.execute(_INSTANCES) if number
    }


def count_deliveries(connection: Connection) -> dict[str, dict[DeliveryState, int]]:
    """Return the number of deliveries by destination and state; a state without rows is missing."""
    counts: dict[str, dict[DeliveryState, int]] = {}
    for _, destination, state, number in connection.execute(_DELIVERIES):
        if number:
            counts.setdefault(destination, {})[DeliveryState(state)] = int(number)
    return counts
