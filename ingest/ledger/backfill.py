"""Backfill: creates deliveries to a destination for instances that are stored already."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, Select, and_, bindparam, func, literal, select, update
from sqlalchemy.dialects import postgresql, sqlite

from ingest.ledger.database import Database
from ingest.ledger.instance_filter import InstanceFilter
from ingest.ledger.records import DeliveryState, InstanceState
from ingest.ledger.schema import FIRST_DUE, deliveries, instances
from ingest.ledger.variants import find_accepted

CHUNK: Final = 1000
"""Deliveries created in one transaction. On SQLite a running node waits for each of these transactions."""

SPAN: Final = 50_000
"""Rows of `instances` that one query reads if no index selects the matching ones."""

# The concatenation keeps SQLite from the index of `state`, which would read nearly all rows.
_IS_KEPT: Final = instances.c.state.concat("").in_((InstanceState.STORED.value, InstanceState.VARIANT.value))
_IDS: Final = instances.c.id.in_(bindparam("ids", expanding=True))
_NEWEST: Final = select(func.max(instances.c.id))
# PostgreSQL: retention locks these rows too, so it removes none of them meanwhile.
_LOCK: Final = select(instances.c.id).where(_IDS).order_by(instances.c.id).with_for_update()
_NEW: Final = {
    "instance_id": instances.c.id,
    "destination": bindparam("of"),
    "state": literal(DeliveryState.WAITING.value),
    "attempts": literal(0),
    "next_at": literal(0),
    "created_at": bindparam("now"),
    "updated_at": bindparam("now"),
}
_CREATE: Final = {
    name: insert(deliveries)
    .from_select(list(_NEW), select(*_NEW.values()).where(_IDS, _IS_KEPT))
    .on_conflict_do_nothing()
    .returning(deliveries.c.id)
    for name, insert in (("sqlite", sqlite.insert), ("postgresql", postgresql.insert))
}
_AGAIN: Final = (
    update(deliveries)
    .where(
        deliveries.c.destination == bindparam("of"),
        deliveries.c.state == DeliveryState.DELIVERED.value,
        deliveries.c.instance_id.in_(select(instances.c.id).where(_IDS, _IS_KEPT)),
    )
    .values(
        state=DeliveryState.WAITING.value,
        attempts=0,
        next_at=FIRST_DUE,
        hours="",
        breaks=0,
        suspect_since=0,
        last_status=None,
        last_error=None,
        commitment="none",
        commitment_request_id=None,
        # The time until the delivery expires starts again, too.
        created_at=bindparam("now"),
        updated_at=bindparam("now"),
    )
)


@dataclass(slots=True)
class BackfillCounts:
    """The result for the matching instances.

    Attributes:
        new: Instances that had no delivery to the destination, and have one now.
        again: Instances that were delivered, and are to be delivered again.
        left: Deliveries that did not change, by state. A variant counts as delivered if another object of its
            SOP instance UID was delivered.
    """

    new: int = 0
    again: int = 0
    left: Counter[DeliveryState] = field(default_factory=Counter)


class Backfill:
    """Creates deliveries of stored instances."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create_deliveries(
        self,
        destination: str,
        which: InstanceFilter,
        unix_ms: int,
        *,
        again: bool = False,
        dry_run: bool = False,
        progress: Callable[[float], None] = lambda _: None,
    ) -> BackfillCounts:
        """Create the deliveries that a destination is missing.

        Instances that arrive meanwhile are left to the routes. After an interruption the same call continues.

        Args:
            destination: Name of the destination.
            which: Conditions for the stored instances. Its states do not apply.
            unix_ms: Current time.
            again: Whether to deliver delivered instances again.
            dry_run: Only count.
            progress: Called after each step with the share of the ledger that was read, from 0 to 1.

        Raises:
            LedgerError: The database is unavailable. Deliveries that were created before stay.
        """
        counts = BackfillCounts()
        with self._database.begin_read() as connection:
            newest = connection.execute(_NEWEST).scalar() or 0
        query = _select_matching(destination, which)
        # An index selects these. Any other filter may match few of many rows, so it reads them in spans.
        few = which.study_uid is not None or which.sop_instance_uid is not None
        last = 0
        while last < newest:
            until = newest if few else min(newest, last + SPAN)
            with self._database.begin_read() as connection:
                rows = connection.execute(query, {"after": last, "until": until}).mappings().all()
                missing = _find_missing(connection, destination, rows, counts)
            delivered = [row["id"] for row in rows if row["delivery"] == DeliveryState.DELIVERED.value]
            for row in rows:
                if row["delivery"] and not (again and row["delivery"] == DeliveryState.DELIVERED.value):
                    counts.left[DeliveryState(row["delivery"])] += 1
            if dry_run:
                counts.new += len(missing)
                counts.again += len(delivered) if again else 0
            else:
                self._create(destination, missing, delivered if again else [], unix_ms, counts)
            last = rows[-1]["id"] if len(rows) == CHUNK else until
            progress(last / newest)
        return counts

    def _create(
        self,
        destination: str,
        missing: Sequence[int],
        delivered: Sequence[int],
        unix_ms: int,
        counts: BackfillCounts,
    ) -> None:
        if not missing and not delivered:
            return
        parameters = {"of": destination, "now": unix_ms}
        with self._database.begin_write() as connection:
            if self._database.dialect == "postgresql":
                connection.execute(_LOCK, {"ids": sorted([*missing, *delivered])})
            new = connection.execute(_CREATE[self._database.dialect], {**parameters, "ids": missing}).all()
            again = connection.execute(_AGAIN, {**parameters, "ids": delivered}).rowcount
        counts.new += len(new)
        counts.again += again


def _select_matching(destination: str, which: InstanceFilter) -> Select[Any]:
    """Select the next matching instances, with the states of their deliveries to a destination."""
    of_destination = and_(deliveries.c.instance_id == instances.c.id, deliveries.c.destination == destination)
    return (
        select(
            instances.c.id,
            instances.c.state,
            instances.c.sop_instance_uid,
            deliveries.c.state.label("delivery"),
        )
        .outerjoin(deliveries, of_destination)
        .where(
            instances.c.id > bindparam("after"),
            instances.c.id <= bindparam("until"),
            _IS_KEPT,
            *which.build_clauses(),
        )
        .order_by(instances.c.id)
        .limit(CHUNK)
    )


def _find_missing(
    connection: Connection, destination: str, rows: Sequence[RowMapping], counts: BackfillCounts
) -> list[int]:
    """Return the ids of instances that need a delivery; count variants that the destination does not need."""
    without = [row for row in rows if row["delivery"] is None]
    variants = {row["sop_instance_uid"] for row in without if row["state"] == InstanceState.VARIANT.value}
    accepted = find_accepted(connection, variants)
    missing = []
    for row in without:
        is_variant = row["state"] == InstanceState.VARIANT.value
        if is_variant and (row["sop_instance_uid"], destination) in accepted:
            counts.left[DeliveryState.DELIVERED] += 1
        else:
            missing.append(row["id"])
    return missing
