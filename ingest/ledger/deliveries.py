"""The half of the ledger that knows deliveries: leases, attempts and what came of them."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import (
    Connection,
    Select,
    and_,
    bindparam,
    case,
    exists,
    func,
    null,
    or_,
    select,
    union_all,
    update,
)

from ingest.ledger.database import Database
from ingest.ledger.instances import clean
from ingest.ledger.records import Delivery, DeliveryResult, DeliveryRow, DeliveryState
from ingest.ledger.schema import SUSPECT, deliveries, instances
from ingest.ledger.throughput import count_delivered
from ingest.ledger.variants import IS_VARIED, drop_superseded, without_superseded

WINDOW: Final = 512
"""How far into the backlog a worker looks for series that no other worker has in hand."""

CAREFUL_WINDOW: Final = 8192
"""How far it looks for series without a suspect, after an association broke."""

SUSPECTS_LOOKED_AT: Final = 64

RETRIES_SHARE: Final = 8
"""One in so many places of a batch is for what is tried again, however much was not tried yet."""

# In each of these states `next_at` says from when on a row may be taken.
_OPEN: Final = (DeliveryState.WAITING.value, DeliveryState.RETRY.value, DeliveryState.SENDING.value)

_COLUMNS: Final = (
    deliveries.c.id,
    deliveries.c.instance_id,
    deliveries.c.destination,
    deliveries.c.attempts,
    deliveries.c.created_at,
    deliveries.c.breaks,
    deliveries.c.suspect_since,
    instances.c.store_key,
    instances.c.size,
    instances.c.data_set_offset,
    instances.c.series_uid,
    instances.c.sop_class_uid,
    instances.c.sop_instance_uid,
    instances.c.transfer_syntax_uid,
    IS_VARIED,
)


def _to_lease(query: Select[Any]) -> Select[Any]:
    """In the order of arrival, at most so many."""
    return (
        query.order_by(deliveries.c.next_at, deliveries.c.instance_id)
        .limit(bindparam("at_most"))
        # PostgreSQL only: what another worker is leasing is passed over. SQLite has one writer at a time.
        .with_for_update(skip_locked=True, of=deliveries)
    )


_DUE_AT_ALL: Final = (
    select(*_COLUMNS)
    .join(instances, instances.c.id == deliveries.c.instance_id)
    .where(
        deliveries.c.destination == bindparam("of"),
        deliveries.c.state == bindparam("in_state"),
        deliveries.c.next_at <= bindparam("now"),
    )
)
_DUE: Final = _to_lease(_DUE_AT_ALL.where(deliveries.c.suspect_since == 0))
_SUSPECTS: Final = _to_lease(
    select(*_COLUMNS)
    .join(instances, instances.c.id == deliveries.c.instance_id)
    .where(
        deliveries.c.destination == bindparam("of"),
        deliveries.c.next_at <= bindparam("now"),
        # Not the bare column: SQLite would go by the index of all that is due.
        deliveries.c.state.concat("").in_(_OPEN),
        SUSPECT,
    )
)
_SUSPECT_SERIES: Final = (
    select(instances.c.series_uid)
    .distinct()
    .join(deliveries, instances.c.id == deliveries.c.instance_id)
    # The bound on `next_at` leads SQLite to the index of suspects.
    .where(deliveries.c.destination == bindparam("of"), deliveries.c.next_at >= 0, SUSPECT)
)
# The part of the backlog that is looked at for other series. It is read first: by way of the index, for its
# order, SQLite would look at the whole backlog.
_window: Final = (
    select(deliveries.c.id)
    .where(
        deliveries.c.destination == bindparam("of"),
        deliveries.c.state == bindparam("in_state"),
        deliveries.c.next_at <= bindparam("now"),
        deliveries.c.suspect_since == 0,
    )
    .order_by(deliveries.c.next_at, deliveries.c.instance_id)
    .limit(CAREFUL_WINDOW)
    .subquery("looked_at")
)
_DUE_ELSEWHERE: Final = _to_lease(
    select(*_COLUMNS)
    .select_from(_window)
    .join(deliveries, deliveries.c.id == _window.c.id)
    .join(instances, instances.c.id == deliveries.c.instance_id)
    .where(instances.c.series_uid.not_in(_SUSPECT_SERIES))
)
_IN_OTHER_HANDS: Final = (
    select(deliveries.c.id)
    .where(
        deliveries.c.destination == bindparam("of"),
        deliveries.c.state == DeliveryState.SENDING.value,
        deliveries.c.next_at > bindparam("now"),
        deliveries.c.lease_owner != bindparam("owner"),
    )
    .limit(1)
)
_SUSPECT_IN_OTHER_HANDS: Final = _IN_OTHER_HANDS.where(SUSPECT)
_FIRST_UNTRIED: Final = (
    select(deliveries.c.id)
    .where(
        deliveries.c.destination == bindparam("of"),
        deliveries.c.state == DeliveryState.WAITING.value,
        deliveries.c.next_at <= bindparam("now"),
    )
    .limit(1)
)
_FIRST_SUSPECT: Final = select(func.min(deliveries.c.next_at)).where(
    deliveries.c.destination == bindparam("of"), deliveries.c.next_at >= 0, SUSPECT
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
        # A suspect is out of its turn: what follows it goes on.
        deliveries.c.suspect_since == 0,
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
        # A suspect that was not attempted is a suspect still.
        state=case(
            (deliveries.c.suspect_since > 0, DeliveryState.RETRY.value), else_=DeliveryState.WAITING.value
        ),
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
        breaks=bindparam("broken"),
        suspect_since=bindparam("since"),
        attempts=deliveries.c.attempts - bindparam("uncounted"),
        updated_at=bindparam("now"),
    )
)


_AHEAD: Final = and_(
    deliveries.c.destination == bindparam("of"),
    deliveries.c.state == bindparam("in_state"),
    deliveries.c.next_at > bindparam("latest"),
)
_FIRST_AHEAD: Final = select(deliveries.c.id).where(_AHEAD).limit(1)
_BOUND: Final = update(deliveries).where(_AHEAD).values(next_at=bindparam("latest"))


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
_DELIVERED_SINCE: Final = (
    select(deliveries.c.destination, func.count())
    .join(instances, instances.c.id == deliveries.c.instance_id)
    .where(
        instances.c.sop_instance_uid == bindparam("uid"),
        deliveries.c.state == DeliveryState.DELIVERED.value,
        deliveries.c.updated_at >= bindparam("since"),
    )
    .group_by(deliveries.c.destination)
)
_COUNTS: Final = select(deliveries.c.destination, deliveries.c.state, func.count()).group_by(
    deliveries.c.destination, deliveries.c.state
)
_EXPIRE: Final = (
    update(deliveries)
    .where(_IDS)
    .values(
        state=DeliveryState.DEAD.value,
        next_at=0,
        suspect_since=0,
        last_error=bindparam("error"),
        updated_at=bindparam("now"),
    )
)


class Deliveries:
    """Leases deliveries and keeps what became of them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def lease_due(  # noqa: PLR0917 - each is a number of its own
        self,
        destination: str,
        owner: str,
        limit: int,
        now_ms: int,
        lease_ms: int,
        workers: int = 1,
        *,
        careful: bool = False,
    ) -> list[Delivery]:
        """Take what is due: waiting, to be tried again by now, or leased by somebody whose time is over.

        A suspect is not among it: see `lease_suspect`.

        Args:
            destination: Its name.
            owner: Who takes them; unique to one worker's run.
            limit: At most so many.
            now_ms: The time, in Unix milliseconds.
            lease_ms: How long nobody else will take them, in milliseconds.
            workers: How many lease of this destination at a time: some series are left for the others.
            careful: Whether series that have a suspect come last: one instance broke an association, and
                those that are like it may as well.

        Returns:
            Those that were not tried yet, then those that are tried again, each in the order in which their
            instances were recorded; attempts count this one. Of a series of which another owner has
            leased instances there are none: its order is kept.

        Raises:
            LedgerError: The ledger is away.
        """
        asked = {"of": destination, "owner": owner, "now": now_ms}
        with self._database.begin_write() as connection:
            rows = self._due(connection, asked, limit, workers, careful=careful)
            return _taken(connection, rows, asked, now_ms + lease_ms)

    def lease_suspect(
        self, destination: str, owner: str, now_ms: int, lease_ms: int, patience_ms: int
    ) -> Delivery | None:
        """Take one instance that is suspected of breaking associations, and is to be tried again by now.

        One at a time is in hand, of all workers: the blame for what happens is then certain. The one that
        broke the fewest comes first, since it was perhaps only in company.

        Args:
            destination: Its name.
            owner: Who takes it.
            now_ms: The time, in Unix milliseconds.
            lease_ms: How long nobody else will take it, in milliseconds.
            patience_ms: While others have instances in hand it waits for so long after its time: a remote
                that it brings down takes those along.

        Raises:
            LedgerError: The ledger is away.
        """
        asked = {"of": destination, "owner": owner, "now": now_ms}
        with self._database.begin_write() as connection:
            if self._database.dialect == "postgresql":
                connection.execute(_ONE_AT_A_TIME, {"of": destination})
            if connection.execute(_SUSPECT_IN_OTHER_HANDS, asked).first() is not None:
                return None
            are_busy = connection.execute(_IN_OTHER_HANDS, asked).first() is not None
            by = now_ms - patience_ms if are_busy else now_ms
            rows = self._rows(connection, _SUSPECTS, "", SUSPECTS_LOOKED_AT, {**asked, "now": by}, set())
            rows.sort(key=lambda row: (row["breaks"], row["instance_id"]))
            found = _taken(connection, rows[:1], asked, now_ms + lease_ms)
        return found[0] if found else None

    def find_next_suspect_ms(self, destination: str) -> int | None:
        """From when on the first suspect may be tried again; None where there is none.

        Raises:
            LedgerError: The ledger is away.
        """
        with self._database.begin_read() as connection:
            at: int | None = connection.execute(_FIRST_SUSPECT, {"of": destination}).scalar()
        return at

    def has_untried(self, destination: str, now_ms: int) -> bool:
        """Whether something waits that was not tried yet, and that nobody has in hand.

        Raises:
            LedgerError: The ledger is away.
        """
        with self._database.begin_read() as connection:
            asked = {"of": destination, "now": now_ms}
            return connection.execute(_FIRST_UNTRIED, asked).first() is not None

    def renew_leases(self, ids: Sequence[int], owner: str, now_ms: int, lease_ms: int) -> set[int]:
        """Extend leases; returns the ids that are still the owner's. The others must not be sent any more.

        Raises:
            LedgerError: The ledger is away.
        """
        parameters = {"ids": list(ids), "owner": owner, "until": now_ms + lease_ms, "now": now_ms}
        with self._database.begin_write() as connection:
            return set(connection.execute(_RENEW, parameters).scalars())

    def record_results(self, destination: str, results: Sequence[DeliveryResult], now_ms: int) -> int:
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
                "broken": result.breaks,
                "uncounted": int(not result.attempted),
                "since": result.suspect_since if result.state is DeliveryState.RETRY else 0,
                "now": now_ms,
            }
            for result in results
        ]
        with self._database.begin_write() as connection:
            count_delivered(connection, self._database.dialect, results, destination, now_ms)
            written = connection.execute(_FINISH, parameters).rowcount
            delivered = [result.id for result in results if result.state is DeliveryState.DELIVERED]
            if delivered:
                drop_superseded(connection, destination, delivered, now_ms)
            return written

    def release_leases(self, ids: Sequence[int], owner: str) -> None:
        """Give back what was not attempted: it waits again, and the attempt does not count.

        Raises:
            LedgerError: The ledger is away; the leases end by themselves.
        """
        if ids:
            with self._database.begin_write() as connection:
                connection.execute(_RELEASE, {"ids": list(ids), "owner": owner})

    def shorten_waits(self, destination: str, now_ms: int, lease_ms: int, retry_ms: int) -> int:
        """Shorten waits that are longer than any that was ever begun: the clock was set back since.

        Args:
            destination: Its name.
            now_ms: The time, in Unix milliseconds.
            lease_ms: The longest lease. A living owner renews a shortened one before it ends.
            retry_ms: The longest pause before another attempt.

        Returns:
            How many were shortened.

        Raises:
            LedgerError: The ledger is away.
        """
        bounds = (
            {"of": destination, "in_state": DeliveryState.SENDING.value, "latest": now_ms + lease_ms},
            {"of": destination, "in_state": DeliveryState.RETRY.value, "latest": now_ms + retry_ms},
        )
        with self._database.begin_read() as connection:
            ahead = [bound for bound in bounds if connection.execute(_FIRST_AHEAD, bound).first() is not None]
        if not ahead:
            return 0
        with self._database.begin_write() as connection:
            return sum(connection.execute(_BOUND, bound).rowcount for bound in ahead)

    def find_due_destinations(self, now_ms: int) -> list[str]:
        """Names of the destinations for which `lease` would find something.

        Raises:
            LedgerError: The ledger is away.
        """
        with self._database.begin_read() as connection:
            return list(connection.execute(_DUE_DESTINATIONS, {"now": now_ms}).scalars())

    def find_next_due_ms(self, destination: str) -> int | None:
        """From when on `lease` finds something (0: at once); None while there is nothing to come.

        Raises:
            LedgerError: The ledger is away.
        """
        with self._database.begin_read() as connection:
            times = connection.execute(_NEXT_DUE, {"of": destination}).scalars().all()
        return min((time for time in times if time is not None), default=None)

    def find_by_instance(self, instance_id: int) -> list[DeliveryRow]:
        """All deliveries of one instance.

        Raises:
            LedgerError: The ledger is away.
        """
        query = (
            select(deliveries)
            .where(deliveries.c.instance_id == instance_id)
            .order_by(deliveries.c.destination)
        )
        with self._database.begin_read() as connection:
            return [
                DeliveryRow(**{**row, "state": DeliveryState(row["state"])})
                for row in connection.execute(query).mappings()
            ]

    def count_delivered_since(self, uid: str, since_ms: int) -> dict[str, int]:
        """How many objects of a SOP instance UID were delivered since, by destination.

        Raises:
            LedgerError: The ledger is away.
        """
        with self._database.begin_read() as connection:
            found = connection.execute(_DELIVERED_SINCE, {"uid": clean(uid), "since": since_ms})
            return {row[0]: row[1] for row in found}

    def count_by_state(self) -> dict[str, dict[DeliveryState, int]]:
        """How many deliveries there are, by destination and state; a state without rows is missing.

        Raises:
            LedgerError: The ledger is away.
        """
        counts: dict[str, dict[DeliveryState, int]] = {}
        with self._database.begin_read() as connection:
            for destination, state, count in connection.execute(_COUNTS):
                counts.setdefault(destination, {})[DeliveryState(state)] = count
        return counts

    def expire_overdue(self, destination: str, before_ms: int, reason: str, now_ms: int) -> int:
        """Give up what is owed since before a time and is not on its way; returns how many are dead now.

        At most `WINDOW` rows a call, the oldest first.

        Raises:
            LedgerError: The ledger is away.
        """
        parameters = {"of": destination, "before": before_ms, "at_most": WINDOW}
        with self._database.begin_write() as connection:
            waiting = connection.execute(_OLDEST_WAITING, parameters).all()
            ids = [row.id for row in waiting if row.created_at < before_ms]
            ids += connection.execute(_OLD_RETRIES, parameters).scalars()
            if ids:
                connection.execute(_EXPIRE, {"ids": ids, "error": reason, "now": now_ms})
        return len(ids)

    def _due(
        self, connection: Connection, asked: dict[str, Any], limit: int, workers: int, *, careful: bool
    ) -> list[dict[str, Any]]:
        if self._database.dialect == "postgresql":
            connection.execute(_ONE_AT_A_TIME, {"of": asked["of"]})
        busy = set(connection.execute(_BUSY_SERIES, asked).scalars())
        window = WINDOW if busy or workers > 1 else limit
        found = {state: self._rows(connection, _DUE, state, window, asked, busy) for state in _OPEN}
        # The lease of a worker that died: its rows keep their turn, unless that has happened to them before.
        left = found[DeliveryState.SENDING.value]
        fresh = found[DeliveryState.WAITING.value] + [row for row in left if row["attempts"] == 1]
        again = found[DeliveryState.RETRY.value] + [row for row in left if row["attempts"] > 1]
        if careful and fresh:
            fresh = self._elsewhere(connection, window, asked, busy) or fresh
        for rows in (fresh, again):
            rows.sort(key=lambda row: int(row["instance_id"]))
        if workers > 1:
            series = list(dict.fromkeys(row["series_uid"] for row in fresh + again))
            share = set(series[: -(-len(series) // workers)])
            fresh, again = ([row for row in rows if row["series_uid"] in share] for rows in (fresh, again))
        # A backlog must not keep for ever what is tried again from its turn.
        room = limit - min(len(again), limit // RETRIES_SHARE)
        batch = fresh[:room]
        return batch + again[: limit - len(batch)]

    def _elsewhere(
        self, connection: Connection, window: int, asked: dict[str, Any], busy: set[str]
    ) -> list[dict[str, Any]]:
        """What waits and is of no series that has a suspect."""
        return self._rows(connection, _DUE_ELSEWHERE, DeliveryState.WAITING.value, window, asked, busy)

    @staticmethod
    def _rows(  # noqa: PLR0917 - as lease
        connection: Connection,
        query: Select[Any],
        state: str,
        at_most: int,
        asked: dict[str, Any],
        busy: set[str],
    ) -> list[dict[str, Any]]:
        rows = connection.execute(query, {**asked, "in_state": state, "at_most": at_most}).mappings()
        free = [row for row in rows if row["series_uid"] not in busy]
        return without_superseded(connection, asked["of"], free, asked["now"])


def _taken(
    connection: Connection, rows: list[dict[str, Any]], asked: dict[str, Any], until: int
) -> list[Delivery]:
    """Lease these rows, in the transaction that has found them."""
    if rows:
        connection.execute(_LEASE, {**asked, "ids": [row["id"] for row in rows], "until": until})
    for row in rows:
        del row[IS_VARIED.name]
        row.update(attempts=row["attempts"] + 1, lease_until=until)
    return [Delivery(**row) for row in rows]
