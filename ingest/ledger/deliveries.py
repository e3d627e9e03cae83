"""The half of the ledger that knows deliveries: leases, attempts and what came of them."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import (
    Connection,
    Select,
    and_,
    bindparam,
    exists,
    func,
    null,
    or_,
    select,
    union_all,
    update,
)

from ingest.ledger.database import Database
from ingest.ledger.progress import count_delivered
from ingest.ledger.rows import Delivery, DeliveryResult, DeliveryRow, DeliveryState
from ingest.ledger.schema import deliveries, instances
from ingest.ledger.variants import drop_superseded, without_superseded

# In each of these states `next_at` says from when on a row may be taken.
WINDOW: Final = 512
"""How far into the backlog a worker looks for series that no other worker has in hand."""

_OPEN: Final = (DeliveryState.WAITING.value, DeliveryState.RETRY.value, DeliveryState.SENDING.value)

_DUE: Final = (
    select(
        deliveries.c.id,
        deliveries.c.instance_id,
        deliveries.c.destination,
        deliveries.c.attempts,
        deliveries.c.created_at,
        instances.c.store_key,
        instances.c.size,
        instances.c.data_set_offset,
        instances.c.series_uid,
        instances.c.sop_class_uid,
        instances.c.sop_instance_uid,
        instances.c.transfer_syntax_uid,
        instances.c.state.label("instance_state"),
    )
    .join(instances, instances.c.id == deliveries.c.instance_id)
    .where(
        deliveries.c.destination == bindparam("of"),
        deliveries.c.state == bindparam("in_state"),
        deliveries.c.next_at <= bindparam("now"),
    )
    .order_by(deliveries.c.next_at, deliveries.c.instance_id)
    .limit(bindparam("at_most"))
    # PostgreSQL only: what another worker is leasing is passed over. SQLite has one writer at a time.
    .with_for_update(skip_locked=True, of=deliveries)
)
# Series of which another worker has instances on their way: what follows in them waits for those.
_BUSY_SERIES: Final = (
    select(instances.c.series_uid)
    .distinct()
    .join(deliveries, instances.c.id == deliveries.c.instance_id)
    .where(
        deliveries.c.destination == bindparam("of"),
        deliveries.c.state == DeliveryState.SENDING.value,
        deliveries.c.next_at > bindparam("now"),
        deliveries.c.lease_owner != bindparam("owner"),
    )
)
# PostgreSQL: two workers that lease of one destination would each not see what the other one takes.
_ONE_AT_A_TIME: Final = select(func.pg_advisory_xact_lock(func.hashtext(bindparam("of"))))
_IDS: Final = deliveries.c.id.in_(bindparam("ids", expanding=True))
_OURS: Final = and_(
    _IDS,
    deliveries.c.lease_owner == bindparam("owner"),
    deliveries.c.state == DeliveryState.SENDING.value,
)
_LEASE: Final = (
    update(deliveries)
    .where(_IDS)
    .values(
        state=DeliveryState.SENDING.value,
        attempts=deliveries.c.attempts + 1,
        next_at=bindparam("until"),
        lease_owner=bindparam("owner"),
        lease_until=bindparam("until"),
        updated_at=bindparam("now"),
    )
)
_RENEW: Final = (
    update(deliveries)
    .where(_OURS)
    .values(next_at=bindparam("until"), lease_until=bindparam("until"), updated_at=bindparam("now"))
    .returning(deliveries.c.id)
)
_RELEASE: Final = (
    update(deliveries)
    .where(_OURS)
    .values(
        state=DeliveryState.WAITING.value,
        attempts=deliveries.c.attempts - 1,
        next_at=0,
        lease_owner=null(),
        lease_until=null(),
    )
)
_FINISH: Final = (
    update(deliveries)
    .where(
        deliveries.c.id == bindparam("of"),
        deliveries.c.lease_owner == bindparam("owner"),
        deliveries.c.state == DeliveryState.SENDING.value,
    )
    .values(
        state=bindparam("to"),
        next_at=bindparam("at"),
        lease_owner=null(),
        lease_until=null(),
        last_status=bindparam("status"),
        last_error=bindparam("error"),
        updated_at=bindparam("now"),
    )
)


def _destinations() -> Any:
    """All names in `deliveries`, by one seek in the index each, not by reading all rows."""
    names = select(func.min(deliveries.c.destination).label("name")).cte("names", recursive=True)
    next_name = (
        select(func.min(deliveries.c.destination))
        .where(deliveries.c.destination > names.c.name)
        .correlate(names)
        .scalar_subquery()
    )
    return names.union_all(select(next_name).where(names.c.name.is_not(None)))


def _due_destinations() -> Select[Any]:
    names = _destinations()
    due = (
        exists().where(
            deliveries.c.destination == names.c.name,
            deliveries.c.state == state,
            deliveries.c.next_at <= bindparam("now"),
        )
        for state in _OPEN
    )
    return select(names.c.name).where(names.c.name.is_not(None), or_(*due)).order_by(names.c.name)


_DUE_DESTINATIONS: Final = _due_destinations()
_NEXT_DUE: Final = union_all(
    *(
        select(func.min(deliveries.c.next_at)).where(
            deliveries.c.destination == bindparam("of"), deliveries.c.state == state
        )
        for state in _OPEN
    )
)


# What waits was made in the order of its instances: the oldest come first, and the index has them so.
_OLDEST_WAITING: Final = (
    select(deliveries.c.id, deliveries.c.created_at)
    .where(deliveries.c.destination == bindparam("of"), deliveries.c.state == DeliveryState.WAITING.value)
    .order_by(deliveries.c.next_at, deliveries.c.instance_id)
    .limit(bindparam("at_most"))
    .with_for_update(skip_locked=True)
)
_OLD_RETRIES: Final = (
    select(deliveries.c.id)
    .where(
        deliveries.c.destination == bindparam("of"),
        deliveries.c.state == DeliveryState.RETRY.value,
        deliveries.c.created_at < bindparam("before"),
    )
    .limit(bindparam("at_most"))
    .with_for_update(skip_locked=True)
)
_EXPIRE: Final = (
    update(deliveries)
    .where(_IDS)
    .values(
        state=DeliveryState.DEAD.value,
        next_at=0,
        last_error=bindparam("error"),
        updated_at=bindparam("now"),
    )
)


class Deliveries(Database):
    """Leases deliveries and keeps what became of them."""

    def lease(  # noqa: PLR0917 - each is a number of its own
        self, destination: str, owner: str, limit: int, now_ms: int, lease_ms: int, workers: int = 1
    ) -> list[Delivery]:
        """Take what is due: waiting, to be tried again by now, or leased by somebody whose time is over.

        Args:
            destination: Its name.
            owner: Who takes them; unique to one worker's run.
            limit: At most so many.
            now_ms: The time, in Unix milliseconds.
            lease_ms: How long nobody else will take them, in milliseconds.
            workers: How many lease of this destination at a time: some series are left for the others.

        Returns:
            Them in the order in which their instances were recorded; attempts count this one. Of
            a series of which another owner has leased instances there are none: its order is kept.

        Raises:
            LedgerError: The ledger is away.
        """
        until = now_ms + lease_ms
        with self.write() as connection:
            rows = self._due(connection, destination, owner, now_ms, limit, workers)
            if rows:
                ids = [row["id"] for row in rows]
                connection.execute(_LEASE, {"ids": ids, "owner": owner, "until": until, "now": now_ms})
        return [Delivery(**{**row, "attempts": row["attempts"] + 1, "lease_until": until}) for row in rows]

    def renew(self, ids: Sequence[int], owner: str, now_ms: int, lease_ms: int) -> set[int]:
        """Extend leases; returns the ids that are still the owner's. The others must not be sent any more.

        Raises:
            LedgerError: The ledger is away.
        """
        parameters = {"ids": list(ids), "owner": owner, "until": now_ms + lease_ms, "now": now_ms}
        with self.write() as connection:
            return set(connection.execute(_RENEW, parameters).scalars())

    def finish(self, destination: str, results: Sequence[DeliveryResult], now_ms: int) -> int:
        """Write how attempts ended, in one transaction; returns how many of them were still their owner's.

        Args:
            destination: Whose deliveries they are.
            results: How they ended.
            now_ms: The time, in Unix milliseconds.

        Raises:
            LedgerError: The ledger is away.
        """
        if not results:
            return 0
        parameters = [
            {
                "of": result.id,
                "owner": result.owner,
                "to": result.state.value,
                "at": result.next_at if result.state is DeliveryState.RETRY else 0,
                "status": result.last_status,
                "error": result.last_error or None,
                "now": now_ms,
            }
            for result in results
        ]
        with self.write() as connection:
            count_delivered(connection, self.dialect, results, destination, now_ms)
            written = connection.execute(_FINISH, parameters).rowcount
            delivered = [result.id for result in results if result.state is DeliveryState.DELIVERED]
            if delivered:
                drop_superseded(connection, destination, delivered, now_ms)
            return written

    def release(self, ids: Sequence[int], owner: str) -> None:
        """Give back what was not attempted: it waits again, and the attempt does not count.

        Raises:
            LedgerError: The ledger is away; the leases end by themselves.
        """
        if ids:
            with self.write() as connection:
                connection.execute(_RELEASE, {"ids": list(ids), "owner": owner})

    def due_destinations(self, now_ms: int) -> list[str]:
        """Names of the destinations for which `lease` would find something.

        Raises:
            LedgerError: The ledger is away.
        """
        with self.read() as connection:
            return list(connection.execute(_DUE_DESTINATIONS, {"now": now_ms}).scalars())

    def next_due(self, destination: str) -> int | None:
        """From when on `lease` finds something (0: at once); None while there is nothing to come.

        Raises:
            LedgerError: The ledger is away.
        """
        with self.read() as connection:
            times = connection.execute(_NEXT_DUE, {"of": destination}).scalars().all()
        return min((time for time in times if time is not None), default=None)

    def deliveries_of(self, instance_id: int) -> list[DeliveryRow]:
        """All deliveries of one instance.

        Raises:
            LedgerError: The ledger is away.
        """
        query = (
            select(deliveries)
            .where(deliveries.c.instance_id == instance_id)
            .order_by(deliveries.c.destination)
        )
        with self.read() as connection:
            return [
                DeliveryRow(**{**row, "state": DeliveryState(row["state"])})
                for row in connection.execute(query).mappings()
            ]

    def expire(self, destination: str, before_ms: int, reason: str, now_ms: int) -> int:
        """Give up what is owed since before a time and is not on its way; returns how many are dead now.

        At most `WINDOW` rows a call, the oldest first.

        Raises:
            LedgerError: The ledger is away.
        """
        parameters = {"of": destination, "before": before_ms, "at_most": WINDOW}
        with self.write() as connection:
            waiting = connection.execute(_OLDEST_WAITING, parameters).all()
            ids = [row.id for row in waiting if row.created_at < before_ms]
            ids += connection.execute(_OLD_RETRIES, parameters).scalars()
            if ids:
                connection.execute(_EXPIRE, {"ids": ids, "error": reason, "now": now_ms})
        return len(ids)

    def _due(  # noqa: PLR0917 - as lease
        self, connection: Connection, destination: str, owner: str, now_ms: int, limit: int, workers: int
    ) -> list[dict[str, Any]]:
        if self.dialect == "postgresql":
            connection.execute(_ONE_AT_A_TIME, {"of": destination})
        asked = {"of": destination, "owner": owner, "now": now_ms}
        busy = set(connection.execute(_BUSY_SERIES, asked).scalars())
        window = WINDOW if busy or workers > 1 else limit
        found: list[dict[str, Any]] = []
        for state in _OPEN:
            rows = connection.execute(_DUE, {**asked, "in_state": state, "at_most": window}).mappings()
            free = [row for row in rows if row["series_uid"] not in busy]
            found.extend(without_superseded(connection, destination, free, now_ms))
        found.sort(key=lambda row: row["instance_id"])
        if workers > 1:
            series = list(dict.fromkeys(row["series_uid"] for row in found))
            share = set(series[: -(-len(series) // workers)])
            found = [row for row in found if row["series_uid"] in share]
        return found[:limit]
