"""The outbox: events that are kept until they are sent, for days if need be.

An event is inserted in the transaction that records its cause, so neither exists without the other. One
process leases an event, sends it, and records the result. If the process dies in between, the lease ends and
the event is sent again under the same event id: at least once, never in silence.

**Order.** The first open event of a target stands for the others: while it waits for its next attempt, so do
they. This keeps the order of events and spares a receiver that is away, however many events wait. An event
that its receiver refuses for itself, such as with HTTP status 400, is tried apart from the others.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, and_, bindparam, delete, func, or_, select, update

from ingest.ledger.database import INSERT_BY_DIALECT, Database
from ingest.ledger.schema import IS_DEAD_EVENT, IS_OPEN_EVENT, outbox

ERROR_MAX: Final = 500
"""Maximum length of an error text."""


class EventState(StrEnum):
    """The state of an event."""

    WAITING = "waiting"
    SENDING = "sending"
    SENT = "sent"
    DEAD = "dead"
    """The event could not be sent for so long that it is useless now."""


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event to send.

    Attributes:
        event_id: Its id, which every attempt repeats.
        target: The configured receiver: `alerts.NAME` or `webhooks.NAME`.
        payload: JSON without patient data.
        created_at: Its time in Unix milliseconds.
        state: SENT if it was sent already, while the ledger was away.
    """

    event_id: str
    target: str
    payload: str
    created_at: int
    state: EventState = EventState.WAITING


@dataclass(frozen=True, slots=True)
class OutboxEvent:
    """A row of `outbox`; times are Unix milliseconds."""

    id: int
    event_id: str
    target: str
    payload: str
    state: EventState
    attempts: int
    next_at: int
    lease_owner: str
    last_error: str
    created_at: int
    updated_at: int
    is_refused: bool = False


_IS_DUE: Final = or_(
    (outbox.c.state == EventState.WAITING.value) & (outbox.c.next_at <= bindparam("now")),
    # A lease that has ended, or one of an earlier process in our place: its owner cannot be sending now.
    (outbox.c.state == EventState.SENDING.value)
    & ((outbox.c.next_at <= bindparam("now")) | (outbox.c.lease_owner == bindparam("me"))),
)
_OF_TARGET: Final = select(outbox).where(IS_OPEN_EVENT, outbox.c.target == bindparam("of"))
_FIRST: Final = _OF_TARGET.where(outbox.c.is_refused.is_(False)).order_by(outbox.c.id).limit(1)
_FIRST_REFUSED: Final = _OF_TARGET.where(outbox.c.is_refused, _IS_DUE).order_by(outbox.c.id).limit(1)
_LEASED_ROW: Final = (
    outbox.c.id == bindparam("row"),
    outbox.c.state == EventState.SENDING.value,
    outbox.c.lease_owner == bindparam("me"),
)
_COUNT_OPEN: Final = (
    select(outbox.c.target, func.count(), func.min(outbox.c.created_at))
    .where(IS_OPEN_EVENT)
    .group_by(outbox.c.target)
)


class Outbox:
    """Keeps and leases events.

    Every method is one transaction, durable on return. It raises LedgerError while the database is
    unavailable.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def list_due_targets(self, targets: Collection[str], owner: str, unix_ms: int) -> list[str]:
        """Return those of the targets that have an event to send now."""
        with self._database.begin_read() as connection:
            return [
                target
                for target in sorted(targets)
                if _find_due(connection, {"of": target, "now": unix_ms, "me": owner}, locks=False)
            ]

    def lease_next(self, target: str, owner: str, unix_ms: int, lease_ms: int) -> OutboxEvent | None:
        """Lease the next event of a target, if it is due. Its attempt counts from now on.

        Args:
            target: The receiver.
            owner: The sender, unique among the processes that run at a time, and the same after a restart.
            unix_ms: Current time.
            lease_ms: How long no other sender can lease the event.
        """
        with self._database.begin_write() as connection:
            parameters = {"of": target, "now": unix_ms, "me": owner}
            row = _find_due(connection, parameters, locks=True)
            if row is None:
                return None
            values = {
                "state": EventState.SENDING.value,
                "attempts": row["attempts"] + 1,
                "next_at": unix_ms + lease_ms,
                "lease_owner": owner,
                "updated_at": unix_ms,
            }
            connection.execute(update(outbox).where(outbox.c.id == row["id"]).values(**values))
        return _read_event({**row, **values})

    def record_sent(self, event: OutboxEvent, unix_ms: int, *, keeps: bool = True) -> bool:
        """Record that an event was sent. Return False if its lease was lost: it may be sent twice.

        Args:
            event: The leased event.
            unix_ms: Current time.
            keeps: Whether the row stays, for people to see. Many events would fill the ledger.
        """
        if not keeps:
            with self._database.begin_write() as connection:
                parameters = {"row": event.id, "me": event.lease_owner}
                return bool(connection.execute(delete(outbox).where(*_LEASED_ROW), parameters).rowcount)
        values = {"state": EventState.SENT.value, "last_error": "", "updated_at": unix_ms}
        return self._end_lease(event, values)

    def record_failure(
        self, event: OutboxEvent, error: str, next_at: int, unix_ms: int, *, blames_target: bool
    ) -> bool:
        """Record a failed attempt. Return False if the lease was lost.

        Args:
            event: The leased event.
            error: Why the attempt failed.
            next_at: Time of the next attempt; 0 if there will be none.
            unix_ms: Current time.
            blames_target: Whether other events of the target would fail too. They wait as well then.
        """
        state = EventState.WAITING if next_at else EventState.DEAD
        values = {
            "state": state.value,
            "next_at": next_at,
            "last_error": error[:ERROR_MAX],
            "updated_at": unix_ms,
            "is_refused": not blames_target,
        }
        return self._end_lease(event, values)

    def replay_dead(self, target: str, event_ids: Collection[str] | None, unix_ms: int) -> int:
        """Send events again that were given up, under their ids; return how many.

        Args:
            target: The receiver.
            event_ids: Their ids; None for all.
            unix_ms: Current time. The time until an event is given up begins again.
        """
        which = and_(outbox.c.target == target, IS_DEAD_EVENT)
        if event_ids is not None:
            which &= outbox.c.event_id.in_(event_ids)
        values = {
            "state": EventState.WAITING.value,
            "attempts": 0,
            "next_at": 0,
            "created_at": unix_ms,
            "updated_at": unix_ms,
            "is_refused": False,
        }
        with self._database.begin_write() as connection:
            return connection.execute(update(outbox).where(which).values(**values)).rowcount

    def expire(self, created_before: int, unix_ms: int) -> int:
        """Give up events without a sender, such as those of a target that the configuration has no more."""
        values = {"state": EventState.DEAD.value, "updated_at": unix_ms}
        which = outbox.c.state == EventState.WAITING.value, outbox.c.created_at < created_before
        with self._database.begin_write() as connection:
            return connection.execute(update(outbox).where(*which).values(**values)).rowcount

    def remove_ended(self, updated_before: int) -> int:
        """Remove rows of events that were sent or given up long ago."""
        ended = outbox.c.state.in_((EventState.SENT.value, EventState.DEAD.value))
        with self._database.begin_write() as connection:
            return connection.execute(
                delete(outbox).where(ended, outbox.c.updated_at < updated_before)
            ).rowcount

    def list_events(
        self, limit: int, target: str | None = None, states: Collection[EventState] = ()
    ) -> list[OutboxEvent]:
        """Return events, the newest first: of one target or of all, in some states or in any."""
        query = select(outbox).order_by(outbox.c.id.desc()).limit(limit)
        if target is not None:
            query = query.where(outbox.c.target == target)
        if states:
            query = query.where(outbox.c.state.in_([state.value for state in states]))
        with self._database.begin_read() as connection:
            return [_read_event(row) for row in connection.execute(query).mappings()]

    def count_open(self) -> dict[str, tuple[int, int]]:
        """Return for each target with open events their number and the creation time of the oldest."""
        with self._database.begin_read() as connection:
            rows = connection.execute(_COUNT_OPEN)
            return {str(target): (int(count), int(oldest)) for target, count, oldest in rows}

    def count_dead(self) -> dict[str, int]:
        """Return for each target the number of events that were given up."""
        query = select(outbox.c.target, func.count()).where(IS_DEAD_EVENT).group_by(outbox.c.target)
        with self._database.begin_read() as connection:
            return {str(target): int(count) for target, count in connection.execute(query)}

    def read_first_error(self, target: str) -> str:
        """Return why the first open event of a target, or else its newest dead one, was not accepted."""
        error = select(outbox.c.last_error).where(outbox.c.target == target).limit(1)
        with self._database.begin_read() as connection:
            first = connection.execute(
                error.where(IS_OPEN_EVENT).order_by(outbox.c.is_refused, outbox.c.id)
            ).scalar()
            if first is not None:
                return str(first)
            return connection.execute(error.where(IS_DEAD_EVENT).order_by(outbox.c.id.desc())).scalar() or ""

    def _end_lease(self, event: OutboxEvent, values: Mapping[str, Any]) -> bool:
        statement = update(outbox).where(*_LEASED_ROW).values(**values, lease_owner="")
        with self._database.begin_write() as connection:
            changed = connection.execute(statement, {"row": event.id, "me": event.lease_owner})
            return bool(changed.rowcount)


def insert_events(connection: Connection, events: Sequence[NewEvent]) -> None:
    """Insert events within a transaction of the caller. One that is known already is left as it is.

    If the reply to a COMMIT was lost, the caller inserts the same events again.
    """
    if events:
        insert: Any = INSERT_BY_DIALECT[connection.dialect.name](outbox)
        connection.execute(
            insert.on_conflict_do_nothing(index_elements=["event_id"]),
            [
                {
                    "event_id": event.event_id,
                    "target": event.target,
                    "payload": event.payload,
                    "state": event.state.value,
                    "attempts": 0,
                    "next_at": 0,
                    "lease_owner": "",
                    "last_error": "",
                    "created_at": event.created_at,
                    "updated_at": event.created_at,
                }
                for event in events
            ],
        )


def _find_due(connection: Connection, parameters: Mapping[str, Any], *, locks: bool) -> RowMapping | None:
    """Return the event that a target gets next; None if it has to wait."""
    for query in (_FIRST, _FIRST_REFUSED):
        found = query.with_for_update() if locks else query
        row = connection.execute(found, parameters).mappings().first()
        is_due = row is not None and (
            row["next_at"] <= parameters["now"]
            or (row["state"] == EventState.SENDING.value and row["lease_owner"] == parameters["me"])
        )
        if is_due:
            return row
    return None


def _read_event(row: Mapping[Any, Any]) -> OutboxEvent:
    return OutboxEvent(**{**row, "state": EventState(row["state"])})
