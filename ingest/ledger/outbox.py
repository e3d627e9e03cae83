"""The outbox: events that are kept until they are sent, for days if need be.

An event is inserted in the transaction that records its cause, so neither exists without the other. One
process leases an event, sends it, and records the result. If the process dies in between, the lease ends and
the event is sent again under the same event id: at least once, never in silence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import Connection, bindparam, delete, func, or_, select, update

from ingest.ledger.database import INSERT_BY_DIALECT, Database
from ingest.ledger.schema import IS_OPEN_EVENT, outbox

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
        target: The configured receiver: `alerts.NAME`.
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


_IS_DUE: Final = or_(
    (outbox.c.state == EventState.WAITING.value) & (outbox.c.next_at <= bindparam("now")),
    # A lease that has ended, or one of an earlier process in our place: its owner cannot be sending now.
    (outbox.c.state == EventState.SENDING.value)
    & ((outbox.c.next_at <= bindparam("now")) | (outbox.c.lease_owner == bindparam("me"))),
)
_FIRST_DUE: Final = (
    select(outbox)
    .where(IS_OPEN_EVENT, outbox.c.target == bindparam("of"), _IS_DUE)
    .order_by(outbox.c.id)
    .limit(1)
    .with_for_update(skip_locked=True)
)
_DUE_TARGETS: Final = select(outbox.c.target).where(IS_OPEN_EVENT, _IS_DUE).distinct()
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

    def list_due_targets(self, owner: str, unix_ms: int) -> list[str]:
        """Return the targets that have events to send now."""
        with self._database.begin_read() as connection:
            rows = connection.execute(_DUE_TARGETS, {"now": unix_ms, "me": owner})
            return [str(row[0]) for row in rows]

    def lease_next(self, target: str, owner: str, unix_ms: int, lease_ms: int) -> OutboxEvent | None:
        """Lease the oldest due event of a target. Its attempt counts from now on.

        Args:
            target: The receiver.
            owner: The sender, unique among the processes that run at a time, and the same after a restart.
            unix_ms: Current time.
            lease_ms: How long no other sender can lease the event.
        """
        with self._database.begin_write() as connection:
            parameters = {"of": target, "now": unix_ms, "me": owner}
            row = connection.execute(_FIRST_DUE, parameters).mappings().first()
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

    def record_sent(self, event: OutboxEvent, unix_ms: int) -> bool:
        """Record that an event was sent. Return False if its lease was lost: it may be sent twice."""
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
            blames_target: Whether other events of the target would fail too. They wait as well then, which
                keeps the order of events and spares the receiver.
        """
        state = EventState.WAITING if next_at else EventState.DEAD
        values = {
            "state": state.value,
            "next_at": next_at,
            "last_error": error[:ERROR_MAX],
            "updated_at": unix_ms,
        }
        is_ours = self._end_lease(event, values)
        if blames_target and next_at:
            waiting = (
                outbox.c.target == event.target,
                outbox.c.state == EventState.WAITING.value,
                outbox.c.next_at < next_at,
            )
            with self._database.begin_write() as connection:
                connection.execute(update(outbox).where(*waiting).values(next_at=next_at))
        return is_ours

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

    def list_events(self, limit: int, target: str | None = None) -> list[OutboxEvent]:
        """Return events, the newest first."""
        query = select(outbox).order_by(outbox.c.id.desc()).limit(limit)
        if target is not None:
            query = query.where(outbox.c.target == target)
        with self._database.begin_read() as connection:
            return [_read_event(row) for row in connection.execute(query).mappings()]

    def count_open(self) -> dict[str, tuple[int, int]]:
        """Return for each target with open events their number and the creation time of the oldest."""
        with self._database.begin_read() as connection:
            rows = connection.execute(_COUNT_OPEN)
            return {str(target): (int(count), int(oldest)) for target, count, oldest in rows}

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


def _read_event(row: Mapping[Any, Any]) -> OutboxEvent:
    return OutboxEvent(**{**row, "state": EventState(row["state"])})
