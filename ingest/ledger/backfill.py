"""Deliveries of what is stored already: a destination that a person names gets it, whenever it came."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, Select, and_, bindparam, func, literal, select, update
from sqlalchemy.dialects import postgresql, sqlite

from ingest.ledger.database import Database
from ingest.ledger.index import InstanceFilter
from ingest.ledger.records import DeliveryState, InstanceState
from ingest.ledger.schema import deliveries, instances
from ingest.ledger.variants import accepted_already

CHUNK: Final = 1000
"""Deliveries made in one transaction: a running node waits for each on SQLite."""

SPAN: Final = 50_000
"""Rows of `instances` that one query looks at, where no index tells which are meant."""

# Not the bare column: SQLite would go by its index, and read nearly all rows there are.
_IS_KEPT: Final = instances.c.state.concat("").in_((InstanceState.STORED.value, InstanceState.VARIANT.value))
_IDS: Final = instances.c.id.in_(bindparam("ids", expanding=True))
_NEWEST: Final = select(func.max(instances.c.id))
# PostgreSQL only: retention, which locks these rows as well, removes none of them meanwhile.
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
_MAKE: Final = {
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
        next_at=0,
        breaks=0,
        suspect_since=0,
        last_status=None,
        last_error=None,
        # The age after which it is given up starts anew, too.
        created_at=bindparam("now"),
        updated_at=bindparam("now"),
    )
)


@dataclass(slots=True)
class BackfillCounts:
    """What became of the instances that were meant.

    Attributes:
        new: Have a delivery now, and had none.
        again: Were delivered, and are to be delivered again.
        left: Had a delivery, which stays as it is, by its state. A variant counts as delivered where another
            object of its SOP instance UID was.
    """

    new: int = 0
    again: int = 0
    left: Counter[DeliveryState] = field(default_factory=Counter)


class Backfill:
    """Makes deliveries of what the store holds."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create_deliveries(
        self,
        destination: str,
        which: InstanceFilter,
        now_ms: int,
        *,
        again: bool = False,
        dry_run: bool = False,
        progress: Callable[[float], None] = lambda _: None,
    ) -> BackfillCounts:
        """Have instances wait for a destination that has no delivery of them.

        What comes while this runs is left to the routes. Interrupted, the same call again does what is left.

        Args:
            destination: Its name.
            which: Instances that are meant, of those that the store holds; its states count for nothing.
            now_ms: The time, in Unix milliseconds.
            again: Whether what was delivered is to be delivered again.
            dry_run: Count only.
            progress: Told after each step which part of the ledger was looked at, from 0 to 1.

        Raises:
            LedgerError: The ledger is away; what was made so far stays.
        """
        counts = BackfillCounts()
        with self._database.begin_read() as connection:
            newest = connection.execute(_NEWEST).scalar() or 0
        query = _meant(destination, which)
        # An index knows these; other filters may fit few rows of many.
        few = which.study_uid is not None or which.sop_instance_uid is not None
        last = 0
        while last < newest:
            until = newest if few else min(newest, last + SPAN)
            with self._database.begin_read() as connection:
                rows = connection.execute(query, {"after": last, "until": until}).mappings().all()
                missing = _missing(connection, destination, rows, counts)
            delivered = [row["id"] for row in rows if row["delivery"] == DeliveryState.DELIVERED.value]
            for row in rows:
                if row["delivery"] and not (again and row["delivery"] == DeliveryState.DELIVERED.value):
                    counts.left[DeliveryState(row["delivery"])] += 1
            if dry_run:
                counts.new += len(missing)
                counts.again += len(delivered) if again else 0
            else:
                self._make(destination, missing, delivered if again else [], now_ms, counts)
            last = rows[-1]["id"] if len(rows) == CHUNK else until
            progress(last / newest)
        return counts

    def _make(
        self,
        destination: str,
        missing: Sequence[int],
        delivered: Sequence[int],
        now_ms: int,
        counts: BackfillCounts,
    ) -> None:
        if not missing and not delivered:
            return
        asked = {"of": destination, "now": now_ms}
        with self._database.begin_write() as connection:
            if self._database.dialect == "postgresql":
                connection.execute(_LOCK, {"ids": sorted([*missing, *delivered])})
            new = connection.execute(_MAKE[self._database.dialect], {**asked, "ids": missing}).all()
            again = connection.execute(_AGAIN, {**asked, "ids": delivered}).rowcount
        counts.new += len(new)
        counts.again += again


def _meant(destination: str, which: InstanceFilter) -> Select[Any]:
    """The next of the instances that are meant, with the state of their deliveries to a destination."""
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
            *which.clauses(),
        )
        .order_by(instances.c.id)
        .limit(CHUNK)
    )


def _missing(
    connection: Connection, destination: str, rows: Sequence[RowMapping], counts: BackfillCounts
) -> list[int]:
    """Ids of the instances that a destination is to be owed; notes variants that it needs no more."""
    without = [row for row in rows if row["delivery"] is None]
    variants = {row["sop_instance_uid"] for row in without if row["state"] == InstanceState.VARIANT.value}
    accepted = accepted_already(connection, variants)
    missing = []
    for row in without:
        is_variant = row["state"] == InstanceState.VARIANT.value
        if is_variant and (row["sop_instance_uid"], destination) in accepted:
            counts.left[DeliveryState.DELIVERED] += 1
        else:
            missing.append(row["id"])
    return missing
