"""Deliveries: leases, attempts and their results.

INVARIANT 2: times, attempts and leases of deliveries are in the ledger. RQ and Redis only start work.

In each of the states `waiting`, `retry` and `sending`, the column `next_at` holds the time from which a
worker may lease the row. One index therefore serves all three states, however long the backlog is. In the
state `waiting` it holds the priority instead (`ingest.ledger.lease_order`).
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Final

from sqlalchemy import (
    Connection,
    RowMapping,
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

from ingest.dicom.priority import Priority
from ingest.ledger.announcements import Announcer
from ingest.ledger.attempts import record_attempts
from ingest.ledger.database import Database
from ingest.ledger.group_leases import GroupMember, MemberRows, RowSearch
from ingest.ledger.lease_order import (
    WAITING_RANGES,
    arrange_due,
    find_first_due,
    find_time_ms,
    find_wait_ms,
)
from ingest.ledger.records import Delivery, DeliveryResult, DeliveryRow, DeliveryState
from ingest.ledger.row_counts import count_deliveries
from ingest.ledger.row_values import clean_value
from ingest.ledger.schema import FIRST_DUE, SUSPECT, deliveries, instances
from ingest.ledger.throughput import count_delivered
from ingest.ledger.transfer_notes import note_sent
from ingest.ledger.variants import DEFER_MILLISECONDS, IS_VARIED, drop_superseded, select_leasable

WINDOW: Final = 512
"""How many due rows a lease examines to find series that no other worker has leased."""

CAREFUL_WINDOW: Final = 8192
"""How many due rows a careful lease examines to find series without a suspect."""

SUSPECTS_EXAMINED: Final = 64

CLOSED_WINDOW: Final = 4096
"""How many due rows a lease examines to let those outside their hours wait."""

BEHIND_ROWS: Final = 8
"""How many rows of each lower priority a lease examines behind a full window."""

_OPEN: Final = (DeliveryState.WAITING.value, DeliveryState.RETRY.value, DeliveryState.SENDING.value)

_COLUMNS: Final = (
    deliveries.c.id,
    deliveries.c.instance_id,
    deliveries.c.destination,
    deliveries.c.attempts,
    deliveries.c.created_at,
    deliveries.c.breaks,
    deliveries.c.suspect_since,
    deliveries.c.priority,
    deliveries.c.hours,
    instances.c.store_key,
    instances.c.size,
    instances.c.data_set_offset,
    instances.c.series_uid,
    instances.c.sop_class_uid,
    instances.c.sop_instance_uid,
    instances.c.transfer_syntax_uid,
    instances.c.stored_at,
    instances.c.calling_ae,
    instances.c.called_ae,
    instances.c.study_uid,
    IS_VARIED,
)


def _for_lease(query: Select[Any]) -> Select[Any]:
    """Order a query by arrival, limit it, and lock the rows that it finds."""
    return (
        query.order_by(deliveries.c.next_at, deliveries.c.instance_id)
        .limit(bindparam("at_most"))
        # PostgreSQL: skip rows that another worker is leasing. SQLite has one writer at a time.
        .with_for_update(skip_locked=True, of=deliveries)
    )


_IN_STATE: Final = (
    select(*_COLUMNS)
    .join(instances, instances.c.id == deliveries.c.instance_id)
    .where(
        deliveries.c.destination == bindparam("of"),
        deliveries.c.state == bindparam("in_state"),
        deliveries.c.suspect_since == 0,
    )
)
_DUE: Final = _for_lease(_IN_STATE.where(deliveries.c.next_at <= bindparam("now")))
# Rows of lower priorities, and rows that wait for a time, behind a window that others fill.
_BEHIND: Final = _for_lease(
    _IN_STATE.where(deliveries.c.next_at >= bindparam("low"), deliveries.c.next_at <= bindparam("high"))
)
_FOUND: Final = (
    select(*_COLUMNS)
    .join(instances, instances.c.id == deliveries.c.instance_id)
    .where(
        deliveries.c.id.in_(bindparam("ids", expanding=True)),
        # Another process may have dropped them since they were found.
        deliveries.c.destination == bindparam("of"),
        deliveries.c.state == bindparam("in_state"),
        deliveries.c.next_at <= bindparam("now"),
        deliveries.c.suspect_since == 0,
    )
    .with_for_update(skip_locked=True, of=deliveries)
)
_FIRST_BEHIND: Final = (
    select(deliveries.c.id)
    .where(
        deliveries.c.destination == bindparam("of"),
        deliveries.c.state == DeliveryState.WAITING.value,
        deliveries.c.next_at > bindparam("last"),
        deliveries.c.next_at <= bindparam("now"),
    )
    .limit(1)
)
_FIRST_URGENT: Final = (
    select(deliveries.c.id)
    .where(
        deliveries.c.destination == bindparam("of"),
        deliveries.c.state == DeliveryState.WAITING.value,
        deliveries.c.next_at == find_first_due(Priority.URGENT),
    )
    .limit(1)
)
_SUSPECTS: Final = _for_lease(
    select(*_COLUMNS)
    .join(instances, instances.c.id == deliveries.c.instance_id)
    .where(
        deliveries.c.destination == bindparam("of"),
        deliveries.c.next_at <= bindparam("now"),
        # The concatenation keeps SQLite from the index of all due rows. The index of suspects is far smaller.
        deliveries.c.state.concat("").in_(_OPEN),
        SUSPECT,
    )
)
_SUSPECT_SERIES: Final = (
    select(instances.c.series_uid)
    .distinct()
    .join(deliveries, instances.c.id == deliveries.c.instance_id)
    # The condition on `next_at` makes SQLite use the index of suspects.
    .where(deliveries.c.destination == bindparam("of"), deliveries.c.next_at >= 0, SUSPECT)
)
# The part of the backlog in which other series are searched. A subquery reads it first. Otherwise SQLite
# would follow the index for its order, and read the whole backlog.
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
_DUE_WITHOUT_SUSPECTS: Final = _for_lease(
    select(*_COLUMNS)
    .select_from(_window)
    .join(deliveries, deliveries.c.id == _window.c.id)
    .join(instances, instances.c.id == deliveries.c.instance_id)
    .where(instances.c.series_uid.not_in(_SUSPECT_SERIES))
)
_LEASED_BY_OTHERS: Final = (
    select(deliveries.c.id)
    .where(
        deliveries.c.destination == bindparam("of"),
        deliveries.c.state == DeliveryState.SENDING.value,
        deliveries.c.next_at > bindparam("now"),
        deliveries.c.lease_owner != bindparam("owner"),
    )
    .limit(1)
)
_SUSPECT_LEASED_BY_OTHERS: Final = _LEASED_BY_OTHERS.where(SUSPECT)
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
# Series of which another worker is sending instances. Later instances of such a series have to wait.
_BUSY_SERIES: Final = (
    select(instances.c.series_uid)
    .distinct()
    .join(deliveries, instances.c.id == deliveries.c.instance_id)
    .where(
        deliveries.c.destination == bindparam("of"),
        deliveries.c.state == DeliveryState.SENDING.value,
        deliveries.c.next_at > bindparam("now"),
        deliveries.c.lease_owner != bindparam("owner"),
        # A suspect does not keep its position in the order, so later instances need not wait for it.
        deliveries.c.suspect_since == 0,
    )
)
# What is due of one study. The concatenation keeps SQLite from reading the whole backlog of the destination.
_OF_STUDY: Final = and_(
    deliveries.c.instance_id.in_(select(instances.c.id).where(instances.c.study_uid == bindparam("study"))),
    deliveries.c.destination == bindparam("of"),
    deliveries.c.state.concat("") == bindparam("in_state"),
    deliveries.c.next_at <= bindparam("now"),
    deliveries.c.suspect_since == 0,
)
_DUE_OF_STUDY: Final = _for_lease(
    select(*_COLUMNS).join(instances, instances.c.id == deliveries.c.instance_id).where(_OF_STUDY)
)
_CONTEXTS_OF_STUDY: Final = (
    select(instances.c.sop_class_uid, instances.c.transfer_syntax_uid)
    .distinct()
    .join(deliveries, instances.c.id == deliveries.c.instance_id)
    .where(
        instances.c.study_uid == bindparam("study"),
        deliveries.c.destination == bindparam("of"),
        deliveries.c.state.concat("").in_(_OPEN),
    )
)
_BUSY_STUDIES: Final = (
    select(instances.c.study_uid)
    .distinct()
    .join(deliveries, instances.c.id == deliveries.c.instance_id)
    .where(
        deliveries.c.destination == bindparam("of"),
        deliveries.c.state == DeliveryState.SENDING.value,
        deliveries.c.next_at > bindparam("now"),
        deliveries.c.lease_owner != bindparam("owner"),
    )
)
# PostgreSQL: of two workers that lease from one destination at once, neither would see the rows of the other.
_LOCK_DESTINATION: Final = select(func.pg_advisory_xact_lock(func.hashtext(bindparam("of"))))
_IDS: Final = deliveries.c.id.in_(bindparam("ids", expanding=True))
_LEASED_BY_OWNER: Final = and_(
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
_LEASE_FOR_MEMBER: Final = _LEASE.values(member=bindparam("for_member"))
_RENEW: Final = (
    update(deliveries)
    .where(_LEASED_BY_OWNER)
    .values(next_at=bindparam("until"), lease_until=bindparam("until"), updated_at=bindparam("now"))
    .returning(deliveries.c.id)
)
_RELEASE: Final = (
    update(deliveries)
    .where(_LEASED_BY_OWNER)
    .values(
        # A suspect that was not attempted stays a suspect.
        state=case(
            (deliveries.c.suspect_since > 0, DeliveryState.RETRY.value), else_=DeliveryState.WAITING.value
        ),
        attempts=deliveries.c.attempts - 1,
        next_at=case((deliveries.c.suspect_since > 0, 0), else_=FIRST_DUE),
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
        duration_ms=bindparam("took"),
        attempts=deliveries.c.attempts - bindparam("uncounted"),
        updated_at=bindparam("now"),
    )
)


# In the transaction that records them as delivered, so that none is forgotten.
_WANT_COMMITMENT: Final = (
    update(deliveries)
    .where(
        _IDS, deliveries.c.state == DeliveryState.DELIVERED.value, deliveries.c.updated_at == bindparam("now")
    )
    .values(commitment="wanted", commitment_request_id=null())
)

# Deliveries outside the hours of their routes wait for these: those at hand, and many of the same hours.
_DEFERRED: Final = {
    # A suspect stays a suspect. The others leave `retry`, of which `shorten_waits` examines each long wait.
    "state": case(
        (deliveries.c.suspect_since > 0, DeliveryState.RETRY.value), else_=DeliveryState.WAITING.value
    ),
    "next_at": bindparam("opening") + FIRST_DUE,
    "lease_owner": null(),
    "lease_until": null(),
}
_DEFER: Final = update(deliveries).where(_IDS).values(_DEFERRED)
_DUE_IN_STATE: Final = and_(
    deliveries.c.destination == bindparam("of"),
    deliveries.c.state == bindparam("in_state"),
    deliveries.c.next_at <= bindparam("now"),
)
_closed_window: Final = (
    select(deliveries.c.id, deliveries.c.hours)
    .where(_DUE_IN_STATE)
    .order_by(deliveries.c.next_at, deliveries.c.instance_id)
    .limit(CLOSED_WINDOW)
    .subquery("closed")
)
_DEFER_WINDOW: Final = (
    update(deliveries)
    .where(
        deliveries.c.id.in_(select(_closed_window.c.id).where(_closed_window.c.hours == bindparam("closed"))),
        # PostgreSQL compares again after a wait: a person may have dropped or held the row meanwhile.
        _DUE_IN_STATE,
    )
    .values(_DEFERRED)
)
_AHEAD: Final = and_(
    deliveries.c.destination == bindparam("of"),
    deliveries.c.state == bindparam("in_state"),
    deliveries.c.next_at > bindparam("latest"),
)
_FIRST_AHEAD: Final = select(deliveries.c.id).where(_AHEAD).limit(1)
_BOUND: Final = update(deliveries).where(_AHEAD).values(next_at=bindparam("latest"))
_BOUND_HOURS: Final = _BOUND.where(deliveries.c.hours == bindparam("of_hours"))
_HOURS_AHEAD: Final = (
    select(deliveries.c.hours, func.max(deliveries.c.next_at)).where(_AHEAD).group_by(deliveries.c.hours)
)
# One seek, however many rows wait for hours.
_LAST_AHEAD: Final = (
    select(deliveries.c.hours, deliveries.c.next_at)
    .where(_AHEAD)
    .order_by(deliveries.c.next_at.desc())
    .limit(1)
)


def _destinations() -> Any:
    """Select all names in `deliveries` with one seek in the index for each, without reading all rows."""
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


# Waiting deliveries of one priority were created in the order of their instances, and the index has that
# order: oldest first.
_OLDEST_WAITING: Final = (
    select(deliveries.c.id, deliveries.c.created_at, instances.c.study_uid)
    .join(instances, instances.c.id == deliveries.c.instance_id)
    .where(
        deliveries.c.destination == bindparam("of"),
        deliveries.c.state == DeliveryState.WAITING.value,
        deliveries.c.next_at >= bindparam("low"),
        deliveries.c.next_at <= bindparam("high"),
    )
    .order_by(deliveries.c.next_at, deliveries.c.instance_id)
    .limit(bindparam("at_most"))
    .with_for_update(skip_locked=True, of=deliveries)
)
_OLD_RETRIES: Final = (
    select(deliveries.c.id, instances.c.study_uid)
    .join(instances, instances.c.id == deliveries.c.instance_id)
    .where(
        deliveries.c.destination == bindparam("of"),
        deliveries.c.state == DeliveryState.RETRY.value,
        deliveries.c.created_at < bindparam("before"),
    )
    .limit(bindparam("at_most"))
    .with_for_update(skip_locked=True, of=deliveries)
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
    """Leases deliveries to workers and records the results.

    Every method is one transaction. It raises LedgerError while the database is unavailable.
    """

    def __init__(
        self, database: Database, *, is_audited: bool = False, announcer: Announcer | None = None
    ) -> None:
        self._database = database
        self._announcer = announcer
        self._is_audited = is_audited
        self._search = RowSearch()

    def lease_due(  # noqa: PLR0917 - each is a number of its own
        self,
        destination: str,
        owner: str,
        limit: int,
        unix_ms: int,
        lease_ms: int,
        workers: int = 1,
        *,
        careful: bool = False,
        group: GroupMember | None = None,
    ) -> list[Delivery]:
        """Lease due deliveries: waiting ones, retries whose time has come, and those whose lease has ended.

        Suspects are left to `lease_suspect`.

        Args:
            destination: Name of the destination or group.
            owner: Name of the leasing worker, unique for each run.
            limit: Maximum number of deliveries.
            unix_ms: Current time.
            lease_ms: Time in which no other worker can lease them.
            workers: How many workers lease from this destination at a time. Some series are left for the
                others.
            careful: Whether series with a suspect come last. One instance broke an association, and similar
                instances may do the same.
            group: The group that `destination` names, and the member that leases: only studies that go to
                that member. None for a destination.

        Returns:
            Urgent deliveries before normal ones, and these before bulk ones, as
            `ingest.ledger.lease_order.arrange_batch` arranges them. Of one priority: deliveries that were
            never tried, then retries, each in the order in which the instances were recorded. `attempts`
            counts this attempt. A series of which another owner leases instances is left out, because its
            order must be kept.
        """
        parameters = {"of": destination, "owner": owner, "now": unix_ms}
        with self._database.begin_write() as connection:
            rows = self._select_due(connection, parameters, limit, workers, careful=careful, group=group)
            return _lease_rows(connection, rows, parameters, unix_ms + lease_ms, group)

    def lease_study(  # noqa: PLR0917 - as lease_due
        self,
        destination: str,
        owner: str,
        limit: int,
        unix_ms: int,
        lease_ms: int,
        study: str | None,
        group: GroupMember | None = None,
    ) -> list[Delivery]:
        """Lease due deliveries of one study.

        Args:
            destination: As in `lease_due`.
            owner: As in `lease_due`.
            limit: As in `lease_due`.
            unix_ms: As in `lease_due`.
            lease_ms: As in `lease_due`.
            study: The Study Instance UID; None for the study of the delivery that `lease_due` would send
                first. A study of which another owner leases instances is left out.
            group: As in `lease_due`.
        """
        parameters = {"of": destination, "owner": owner, "now": unix_ms}
        with self._database.begin_write() as connection:
            if study is None:
                busy = set(connection.execute(_BUSY_STUDIES, parameters).scalars())
                window = WINDOW if busy else limit
                first = self._select_due(connection, parameters, window, 1, careful=False, group=group)
                study = next((row["study_uid"] for row in first if row["study_uid"] not in busy), None)
            if study is None:
                return []
            rows: list[dict[str, Any]] = []
            of_study = {**parameters, "study": study}
            if group is not None and self._database.dialect == "postgresql":
                connection.execute(_LOCK_DESTINATION, {"of": destination})
            mine = None if group is None else MemberRows(connection, group, unix_ms)
            for state in _OPEN:
                rows += self._select_rows(connection, _DUE_OF_STUDY, state, limit, of_study, set(), mine)
            rows.sort(key=lambda row: (int(row["priority"]), int(row["instance_id"])))
            return _lease_rows(connection, rows[:limit], parameters, unix_ms + lease_ms, group)

    def find_study_contexts(self, destination: str, study: str) -> list[tuple[str, str]]:
        """Return the SOP classes, with their transfer syntaxes, of the open deliveries of a study."""
        with self._database.begin_read() as connection:
            found = connection.execute(_CONTEXTS_OF_STUDY, {"of": destination, "study": study})
            return sorted((sop_class, syntax) for sop_class, syntax in found)

    def lease_suspect(  # noqa: PLR0917 - as lease_due
        self,
        destination: str,
        owner: str,
        unix_ms: int,
        lease_ms: int,
        patience_ms: int,
        group: GroupMember | None = None,
    ) -> Delivery | None:
        """Lease one suspect, an instance that may break associations, whose time has come.

        All workers together lease one suspect at a time. If an association breaks then, the blame is certain.
        The suspect that broke the fewest associations comes first, because it may only have been in bad
        company.

        Args:
            destination: Name of the destination.
            owner: Name of the leasing worker.
            unix_ms: Current time.
            lease_ms: Time in which no other worker can lease it.
            patience_ms: How long the suspect waits after its time while other instances are being sent. A
                remote that it brings down would interrupt those too.
            group: As for `lease_due`.
        """
        parameters = {"of": destination, "owner": owner, "now": unix_ms}
        with self._database.begin_write() as connection:
            if self._database.dialect == "postgresql":
                connection.execute(_LOCK_DESTINATION, {"of": destination})
            if connection.execute(_SUSPECT_LEASED_BY_OTHERS, parameters).first() is not None:
                return None
            are_busy = connection.execute(_LEASED_BY_OTHERS, parameters).first() is not None
            by = unix_ms - patience_ms if are_busy else unix_ms
            mine = None if group is None else MemberRows(connection, group, unix_ms)
            at_most = SUSPECTS_EXAMINED if mine is None else WINDOW
            rows = self._select_rows(
                connection, _SUSPECTS, "", at_most, {**parameters, "now": by}, set(), mine
            )
            rows.sort(key=lambda row: (row["breaks"], row["instance_id"]))
            found = _lease_rows(connection, rows[:1], parameters, unix_ms + lease_ms, group)
        return found[0] if found else None

    def has_urgent(self, destination: str) -> bool:
        """Return whether an urgent delivery waits."""
        with self._database.begin_read() as connection:
            return connection.execute(_FIRST_URGENT, {"of": destination}).first() is not None

    def find_next_suspect_ms(self, destination: str) -> int | None:
        """Return the time from which the first suspect may be tried again; None if there is no suspect."""
        with self._database.begin_read() as connection:
            at: int | None = connection.execute(_FIRST_SUSPECT, {"of": destination}).scalar()
        return at

    def has_untried(self, destination: str, unix_ms: int) -> bool:
        """Return whether a waiting delivery exists that was never tried and is not leased."""
        with self._database.begin_read() as connection:
            parameters = {"of": destination, "now": unix_ms}
            return connection.execute(_FIRST_UNTRIED, parameters).first() is not None

    def renew_leases(self, ids: Sequence[int], owner: str, unix_ms: int, lease_ms: int) -> set[int]:
        """Extend leases; return the ids that the owner still holds. The others must not be sent any more."""
        parameters = {"ids": list(ids), "owner": owner, "until": unix_ms + lease_ms, "now": unix_ms}
        with self._database.begin_write() as connection:
            return set(connection.execute(_RENEW, parameters).scalars())

    def record_results(
        self, destination: str, results: Sequence[DeliveryResult], unix_ms: int, member: str = ""
    ) -> int:
        """Record how attempts ended, in one transaction; return how many of them their owner still held.

        Args:
            destination: Name of the destination or group.
            results: How the attempts ended.
            unix_ms: Current time.
            member: If `destination` is a group: the member that the instances were sent to.
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
                "error": clean_value(result.last_error) or None,
                "broken": result.breaks,
                "uncounted": int(not result.attempted),
                "since": result.suspect_since if result.state is DeliveryState.RETRY else 0,
                "took": result.duration_ms,
                "now": unix_ms,
            }
            for result in results
        ]
        with self._database.begin_write() as connection:
            count_delivered(connection, self._database.dialect, results, destination, unix_ms)
            record_attempts(connection, results, unix_ms)
            written = connection.execute(_FINISH, parameters).rowcount
            if self._is_audited:
                note_sent(connection, results, member or destination, unix_ms)
            if self._announcer is not None:
                ids = [result.id for result in results]
                self._announcer.announce_deliveries(connection, ids, destination, unix_ms)
            delivered = [result.id for result in results if result.state is DeliveryState.DELIVERED]
            wanted = [
                result.id
                for result in results
                if result.wants_commitment and result.state is DeliveryState.DELIVERED
            ]
            if wanted:
                connection.execute(_WANT_COMMITMENT, {"ids": wanted, "now": unix_ms})
            if delivered:
                drop_superseded(connection, destination, delivered, unix_ms)
            return written

    def release_leases(self, ids: Sequence[int], owner: str) -> None:
        """Give leases back without an attempt: the deliveries wait again, and the attempt does not count.

        If the ledger is unavailable, the leases end by themselves.
        """
        if ids:
            with self._database.begin_write() as connection:
                connection.execute(_RELEASE, {"ids": list(ids), "owner": owner})

    def shorten_waits(self, destination: str, unix_ms: int, lease_ms: int, retry_ms: int) -> int:
        """Shorten waits that are longer than any wait can be: the clock was set back since they began.

        Args:
            destination: Name of the destination.
            unix_ms: Current time.
            lease_ms: The longest lease. A living owner renews a shortened lease before it ends.
            retry_ms: The longest pause before another attempt.

        Returns:
            How many waits were shortened.
        """
        lease = {"of": destination, "in_state": DeliveryState.SENDING.value, "latest": unix_ms + lease_ms}
        with self._database.begin_read() as connection:
            has_leases = connection.execute(_FIRST_AHEAD, lease).first() is not None
            bounds = list(_find_long_waits(connection, destination, unix_ms, retry_ms))
        if not has_leases and not bounds:
            return 0
        with self._database.begin_write() as connection:
            count = connection.execute(_BOUND, lease).rowcount if has_leases else 0
            return count + sum(connection.execute(_BOUND_HOURS, bound).rowcount for bound in bounds)

    def find_due_destinations(self, unix_ms: int) -> list[str]:
        """Return the names of destinations for which `lease_due` would find a delivery."""
        with self._database.begin_read() as connection:
            return list(connection.execute(_DUE_DESTINATIONS, {"now": unix_ms}).scalars())

    def find_next_due_ms(self, destination: str) -> int | None:
        """Return the time from which `lease_due` finds a delivery (0: now); None if no delivery is open."""
        with self._database.begin_read() as connection:
            times = connection.execute(_NEXT_DUE, {"of": destination}).scalars().all()
        first = min((time for time in times if time is not None), default=None)
        return None if first is None else find_time_ms(first)

    def find_by_instance(self, instance_id: int) -> list[DeliveryRow]:
        """Return all deliveries of one instance."""
        query = (
            select(deliveries)
            .where(deliveries.c.instance_id == instance_id)
            .order_by(deliveries.c.destination)
        )
        with self._database.begin_read() as connection:
            return [_to_row(row) for row in connection.execute(query).mappings()]

    def find_by_instances(self, ids: Collection[int]) -> dict[int, list[DeliveryRow]]:
        """Return the deliveries of several instances by the ids of these, sorted by destination."""
        query = (
            select(deliveries)
            .where(deliveries.c.instance_id.in_(ids))
            .order_by(deliveries.c.instance_id, deliveries.c.destination)
        )
        found: dict[int, list[DeliveryRow]] = {}
        with self._database.begin_read() as connection:
            for row in connection.execute(query).mappings():
                delivery = _to_row(row)
                found.setdefault(delivery.instance_id, []).append(delivery)
        return found

    def count_delivered_since(self, uid: str, since_ms: int) -> dict[str, int]:
        """Count the delivered objects of a SOP instance UID since a time, by destination."""
        with self._database.begin_read() as connection:
            found = connection.execute(_DELIVERED_SINCE, {"uid": clean_value(uid), "since": since_ms})
            return {row[0]: row[1] for row in found}

    def count_by_state(self) -> dict[str, dict[DeliveryState, int]]:
        """Count deliveries by destination and state; a state without rows is missing."""
        with self._database.begin_read() as connection:
            return count_deliveries(connection)

    def expire_overdue(
        self,
        destination: str,
        before_ms: int,
        reason: str,
        unix_ms: int,
        group: GroupMember | None = None,
    ) -> int:
        """Declare deliveries dead that were created before a time and are not being sent; return how many.

        One call declares at most `WINDOW` waiting rows of each priority and `WINDOW` retries dead, the oldest
        first. With a group only those of studies that go to its member, which cannot be reached.
        """
        parameters = {"of": destination, "before": before_ms, "at_most": WINDOW}
        with self._database.begin_write() as connection:
            if group is not None and self._database.dialect == "postgresql":
                connection.execute(_LOCK_DESTINATION, {"of": destination})
            found: list[RowMapping] = []
            for low, high in WAITING_RANGES:
                waiting = connection.execute(_OLDEST_WAITING, {**parameters, "low": low, "high": high})
                found += [row for row in waiting.mappings() if row["created_at"] < before_ms]
            found += connection.execute(_OLD_RETRIES, parameters).mappings()
            if group is not None:
                # Studies that another member may get do not expire because this one cannot be reached.
                found = MemberRows(connection, group, unix_ms, without=group.name).keep(found)
            ids = [row["id"] for row in found]
            if ids:
                connection.execute(_EXPIRE, {"ids": ids, "error": reason, "now": unix_ms})
                if self._announcer is not None:
                    self._announcer.announce_deliveries(connection, ids, destination, unix_ms)
        return len(ids)

    def _select_due(
        self,
        connection: Connection,
        parameters: dict[str, Any],
        limit: int,
        workers: int,
        *,
        careful: bool,
        group: GroupMember | None,
    ) -> list[dict[str, Any]]:
        if self._database.dialect == "postgresql":
            connection.execute(_LOCK_DESTINATION, {"of": parameters["of"]})
        mine = None if group is None else MemberRows(connection, group, parameters["now"])
        busy = set(connection.execute(_BUSY_SERIES, parameters).scalars())
        window = WINDOW if busy or workers > 1 else limit
        found, full = {}, set()
        for state in _OPEN:
            found[state], is_full = self._read_rows(connection, _DUE, state, window, parameters, busy, mine)
            if is_full:
                full.add(state)
        hidden = [state for state in _OPEN if state in full and not found[state]]
        if group is not None and mine is not None and hidden:
            # Rows of other members fill the window.
            found |= self._search_rows(connection, group, mine, hidden, parameters, limit, busy)
            workers = 1  # a row that is left now would be found only after later ones of its series
        waiting = found[DeliveryState.WAITING.value]
        # A search has looked at all priorities.
        is_searched = mine is not None and DeliveryState.WAITING.value in hidden
        if (busy or DeliveryState.WAITING.value in full) and not is_searched:
            waiting += self._select_behind(connection, waiting, parameters, busy, mine)
        # Rows with an ended lease belong to a worker that died. At the first time they keep their position,
        # later they count as retries.
        left = found[DeliveryState.SENDING.value]
        fresh = found[DeliveryState.WAITING.value] + [row for row in left if row["attempts"] == 1]
        again = found[DeliveryState.RETRY.value] + [row for row in left if row["attempts"] > 1]
        if careful and fresh:
            fresh = self._select_without_suspects(connection, window, parameters, busy, mine) or fresh
        return arrange_due(fresh, again, limit, workers, parameters["now"])

    def _search_rows(  # noqa: PLR0917 - as lease_due
        self,
        connection: Connection,
        group: GroupMember,
        mine: MemberRows,
        states: Sequence[str],
        parameters: dict[str, Any],
        limit: int,
        busy: set[str],
    ) -> dict[str, list[dict[str, Any]]]:
        """Search rows of a member behind those of the other members."""
        now = parameters["now"]
        found = {}
        for state in states:
            ids = self._search.find_ids(connection, group, mine, state, limit, now, busy)
            given = {**parameters, "in_state": state, "ids": ids}
            rows = connection.execute(_FOUND, given).mappings().all() if ids else []
            leasable = select_leasable(connection, parameters["of"], rows, now)
            found[state] = _defer_closed(connection, leasable, state, parameters)
        return found

    def _select_behind(
        self,
        connection: Connection,
        window: list[dict[str, Any]],
        parameters: dict[str, Any],
        busy: set[str],
        mine: MemberRows | None,
    ) -> list[dict[str, Any]]:
        """Select a few waiting rows behind a window: of lower priorities, and those that waited for a time.

        A backlog of one priority without others costs one seek.
        """
        # Without a row, all of the window were of busy series. Then look at all priorities.
        last = find_first_due(window[-1]["priority"] if window else Priority.URGENT) - (not window)
        if connection.execute(_FIRST_BEHIND, {**parameters, "last": last}).first() is None:
            return []
        known = {row["id"] for row in window}
        behind: list[dict[str, Any]] = []
        for low, high in WAITING_RANGES:
            if low > last:
                bounds = {**parameters, "low": low, "high": min(high, parameters["now"])}
                # Rows of other members of a group may stand before those of this one.
                at_most = BEHIND_ROWS if mine is None else WINDOW
                behind += self._select_rows(
                    connection, _BEHIND, DeliveryState.WAITING.value, at_most, bounds, busy, mine
                )[:BEHIND_ROWS]
        return [row for row in behind if row["id"] not in known]

    def _select_without_suspects(
        self,
        connection: Connection,
        window: int,
        parameters: dict[str, Any],
        busy: set[str],
        mine: MemberRows | None,
    ) -> list[dict[str, Any]]:
        """Select waiting deliveries of series without a suspect."""
        return self._select_rows(
            connection, _DUE_WITHOUT_SUSPECTS, DeliveryState.WAITING.value, window, parameters, busy, mine
        )

    def _select_rows(  # noqa: PLR0917 - as lease_due
        self,
        connection: Connection,
        query: Select[Any],
        state: str,
        at_most: int,
        parameters: dict[str, Any],
        busy: set[str],
        mine: MemberRows | None,
    ) -> list[dict[str, Any]]:
        return self._read_rows(connection, query, state, at_most, parameters, busy, mine)[0]

    @staticmethod
    def _read_rows(  # noqa: PLR0917 - as lease_due
        connection: Connection,
        query: Select[Any],
        state: str,
        at_most: int,
        parameters: dict[str, Any],
        busy: set[str],
        mine: MemberRows | None,
    ) -> tuple[list[dict[str, Any]], bool]:
        """Return the rows that may be leased, and whether there were as many rows as were read at most."""
        given = {**parameters, "in_state": state, "at_most": at_most}
        rows = connection.execute(query, given).mappings().all()
        free = [row for row in rows if row["series_uid"] not in busy]
        if mine is not None:
            free = mine.keep(free)
        leasable = select_leasable(connection, parameters["of"], free, parameters["now"])
        return _defer_closed(connection, leasable, state, parameters), len(rows) >= at_most


def _find_long_waits(
    connection: Connection, destination: str, unix_ms: int, retry_ms: int
) -> Iterator[dict[str, Any]]:
    """Yield states and hours with rows that wait beyond a pause and beyond the next opening of their hours.

    Of the rows that wait for hours, only those with the last time are examined. The rows of other hours wait
    for a shorter time.
    """
    for query, state, latest in (
        (_HOURS_AHEAD, DeliveryState.RETRY, unix_ms + retry_ms),
        # An object of a SOP instance UID waits a moment for one that came before it.
        (_LAST_AHEAD, DeliveryState.WAITING, unix_ms + DEFER_MILLISECONDS),
    ):
        given = {"of": destination, "in_state": state.value}
        for hours, next_at in connection.execute(query, {**given, "latest": latest}).all():
            until = max(latest, find_first_due(Priority.BULK, find_wait_ms(hours, unix_ms)))
            if next_at > until:
                yield {**given, "latest": until, "of_hours": hours}


def _defer_closed(
    connection: Connection, rows: list[dict[str, Any]], state: str, parameters: dict[str, Any]
) -> list[dict[str, Any]]:
    """Let rows outside the hours of their routes wait for these, and return the others."""
    if not any(row["hours"] for row in rows):
        return rows
    now = parameters["now"]
    waits = {hours: find_wait_ms(hours, now) for hours in {row["hours"] for row in rows}}
    closed = {hours: opening for hours, opening in waits.items() if opening}
    for hours, opening in closed.items():
        ids = [row["id"] for row in rows if row["hours"] == hours]
        connection.execute(_DEFER, {"ids": ids, "opening": opening})
        if state in {DeliveryState.WAITING.value, DeliveryState.RETRY.value}:
            given = {"of": parameters["of"], "in_state": state, "now": now}
            connection.execute(_DEFER_WINDOW, {**given, "closed": hours, "opening": opening})
    return [row for row in rows if row["hours"] not in closed]


def _to_row(row: RowMapping) -> DeliveryRow:
    values = {**row, "state": DeliveryState(row["state"]), "next_at": find_time_ms(row["next_at"])}
    return DeliveryRow(**values)


def _lease_rows(
    connection: Connection,
    rows: list[dict[str, Any]],
    parameters: dict[str, Any],
    until: int,
    group: GroupMember | None,
) -> list[Delivery]:
    """Lease these rows within the transaction that selected them."""
    values = {**parameters, "ids": [row["id"] for row in rows], "until": until}
    if rows and group is None:
        connection.execute(_LEASE, values)
    elif rows and group is not None:
        connection.execute(_LEASE_FOR_MEMBER, {**values, "for_member": group.name})
        for row in rows:
            row["member"] = group.name
    for row in rows:
        del row[IS_VARIED.name]
        row.update(attempts=row["attempts"] + 1, lease_until=until)
    return [Delivery(**row) for row in rows]
