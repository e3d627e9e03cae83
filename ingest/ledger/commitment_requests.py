"""Requests of this node to its destinations to commit to delivered instances (PS3.4 Annex J).

`deliveries.commitment` is a second state of a delivery, so `delivered` keeps its meaning. A delivery to a
destination that is asked becomes `wanted` in the transaction that records it as delivered. A request takes
many of them; they are `asked` until its report comes or its time is over. Then they are `wanted` again.

A report may come after its time, when a later request has asked for the same instances. Its commitments count
for each instance that was delivered before its request. An archive that takes longer than
`commitment_seconds` would never be believed otherwise. Failures in a late report change nothing, because the
later request is still open.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

from sqlalchemy import and_, bindparam, delete, func, or_, select, update

from ingest.dicom.commitment import CommitmentRequest, ReferenceOutcome, SOPReference
from ingest.ledger.announcements import Announcer
from ingest.ledger.commitments import ERROR_MAX
from ingest.ledger.database import Database
from ingest.ledger.records import DeliveryState
from ingest.ledger.row_values import clean_value
from ingest.ledger.schema import IS_COMMITMENT_OPEN, commitment_requests, deliveries, instances

UNNAMED_PAUSE_MS: Final = 60_000
"""Pause of a destination whose report left instances out, before they are asked again."""

_CHUNK: Final = 500
"""Maximum number of values of an IN list."""


class DeliveryCommitment(StrEnum):
    """The state of a delivery beside its own: what is known of its commitment."""

    NONE = "none"
    WANTED = "wanted"
    ASKED = "asked"
    COMMITTED = "committed"
    FAILED = "failed"
    """The destination does not commit. The instance is sent again."""


class RequestState(StrEnum):
    """The state of a request of ours."""

    ASKED = "asked"
    ANSWERED = "answered"
    EXPIRED = "expired"
    """No report came in time."""
    REFUSED = "refused"
    """The destination did not take the request."""


@dataclass(frozen=True, slots=True)
class SentCommitment:
    """A row of `commitment_requests`; times are Unix milliseconds."""

    id: int
    transaction_uid: str
    destination: str
    state: RequestState
    instances: int
    failures: int
    asked_at: int
    next_at: int
    last_error: str
    updated_at: int


@dataclass(frozen=True, slots=True)
class Uncommitted:
    """The next state of a delivery that its destination does not commit.

    Attributes:
        state: RETRY, or DEAD after too many attempts.
        next_at: Time of the next attempt in Unix milliseconds.
        error: Text for a person.
    """

    state: DeliveryState
    next_at: int
    error: str


# The concatenation keeps SQLite from the index of all deliveries of a destination.
_IS_DELIVERED: Final = deliveries.c.state.concat("") == DeliveryState.DELIVERED.value
# Deliveries to a destination, also as a member of groups. `names` are the destination and its groups.
_IS_SENT_TO: Final = and_(
    deliveries.c.destination.in_(bindparam("names", expanding=True)),
    or_(deliveries.c.destination == bindparam("of"), deliveries.c.member == bindparam("of")),
)
_WANTED: Final = (
    select(deliveries.c.id, instances.c.sop_class_uid, instances.c.sop_instance_uid)
    .join(instances, instances.c.id == deliveries.c.instance_id)
    .where(
        IS_COMMITMENT_OPEN,
        _IS_SENT_TO,
        deliveries.c.commitment == DeliveryCommitment.WANTED.value,
        _IS_DELIVERED,
    )
    .order_by(deliveries.c.id)
    .limit(bindparam("at_most"))
    .with_for_update(skip_locked=True, of=deliveries)
)
_FIRST_WANTED: Final = (
    select(deliveries.c.id)
    .where(
        IS_COMMITMENT_OPEN,
        _IS_SENT_TO,
        deliveries.c.commitment == DeliveryCommitment.WANTED.value,
        _IS_DELIVERED,
    )
    .limit(1)
)
_LAST: Final = (
    select(commitment_requests)
    .where(commitment_requests.c.destination == bindparam("of"))
    .order_by(commitment_requests.c.id.desc())
    .limit(1)
)
_OVERDUE: Final = select(commitment_requests.c.id).where(
    commitment_requests.c.destination == bindparam("of"),
    commitment_requests.c.state == RequestState.ASKED.value,
    commitment_requests.c.next_at <= bindparam("now"),
)
_NAMED_ROWS: Final = (
    select(
        deliveries.c.id,
        deliveries.c.attempts,
        deliveries.c.commitment,
        deliveries.c.commitment_request_id,
        instances.c.sop_class_uid,
        instances.c.sop_instance_uid,
    )
    .join(instances, instances.c.id == deliveries.c.instance_id)
    .where(
        IS_COMMITMENT_OPEN,
        _IS_SENT_TO,
        instances.c.sop_instance_uid.in_(bindparam("uids", expanding=True)),
        _IS_DELIVERED,
        or_(
            deliveries.c.commitment_request_id == bindparam("request"),
            deliveries.c.updated_at <= bindparam("asked_at"),
        ),
    )
)
_BY_ID: Final = deliveries.c.id.in_(bindparam("ids", expanding=True))
_COMMIT: Final = (
    update(deliveries)
    .where(_BY_ID)
    .values(commitment=DeliveryCommitment.COMMITTED.value, updated_at=bindparam("now"))
)
_FAIL: Final = (
    update(deliveries)
    .where(deliveries.c.id == bindparam("row"))
    .values(
        state=bindparam("to"),
        next_at=bindparam("at"),
        commitment=DeliveryCommitment.FAILED.value,
        last_error=bindparam("error"),
        updated_at=bindparam("now"),
    )
)
_IS_ASKED: Final = and_(
    IS_COMMITMENT_OPEN,
    _IS_SENT_TO,
    deliveries.c.commitment == DeliveryCommitment.ASKED.value,
    deliveries.c.commitment_request_id == bindparam("request"),
)
_FIRST_ASKED: Final = select(deliveries.c.id).where(_IS_ASKED).limit(1)
_WANT_AGAIN: Final = update(deliveries).where(_IS_ASKED).values(commitment=DeliveryCommitment.WANTED.value)


class CommitmentRequests:
    """Keeps what was asked and answered.

    Every method is one transaction, durable on return. It raises LedgerError while the database is
    unavailable.
    """

    def __init__(self, database: Database, *, announcer: Announcer | None = None) -> None:
        self._database = database
        self._announcer = announcer

    def find_wanting(
        self,
        destinations: Collection[str],
        unix_ms: int,
        groups: Mapping[str, Collection[str]] = MappingProxyType({}),
    ) -> list[str]:
        """Return those destinations that have to be asked now.

        Args:
            destinations: Names of destinations that are asked.
            unix_ms: Current time.
            groups: Names of the groups of which a destination is a member, by its name.
        """
        found = []
        with self._database.begin_read() as connection:
            for name in destinations:
                if connection.execute(_OVERDUE, {"of": name, "now": unix_ms}).first() is not None:
                    found.append(name)
                    continue
                if connection.execute(_FIRST_WANTED, _sent_to(name, groups.get(name, ()))).first() is None:
                    continue
                last = connection.execute(_LAST, {"of": name}).mappings().first()
                if last is None or not _is_held(last, unix_ms):
                    found.append(name)
        return found

    def begin_request(  # noqa: PLR0917 - each is a value of its own
        self,
        destination: str,
        transaction_uid: str,
        limit: int,
        deadline_ms: int,
        unix_ms: int,
        groups: Collection[str] = (),
    ) -> tuple[int, CommitmentRequest] | None:
        """Take wanted deliveries of a destination into a new request. None if there is nothing to ask now.

        Deliveries of requests whose time is over are wanted again first.

        Args:
            destination: Name of the destination.
            transaction_uid: A new UID.
            limit: Maximum number of instances.
            deadline_ms: Time at which the wait for the report ends.
            unix_ms: Current time.
            groups: Names of the groups of which the destination is a member.
        """
        with self._database.begin_write() as connection:
            for (number,) in connection.execute(_OVERDUE, {"of": destination, "now": unix_ms}).all():
                _end(connection, number, RequestState.EXPIRED, unix_ms, error="no report came in time")
                connection.execute(_WANT_AGAIN, {**_sent_to(destination, groups), "request": number})
            last = connection.execute(_LAST, {"of": destination}).mappings().first()
            if last is not None and _is_held(last, unix_ms):
                return None
            rows = connection.execute(_WANTED, {**_sent_to(destination, groups), "at_most": limit}).all()
            if not rows:
                return None
            number = connection.execute(
                commitment_requests.insert()
                .values(
                    transaction_uid=transaction_uid,
                    destination=destination,
                    state=RequestState.ASKED.value,
                    instances=len(rows),
                    failures=0,
                    asked_at=unix_ms,
                    next_at=deadline_ms,
                    last_error="",
                    updated_at=unix_ms,
                )
                .returning(commitment_requests.c.id)
            ).scalar_one()
            connection.execute(
                update(deliveries)
                .where(_BY_ID)
                .values(commitment=DeliveryCommitment.ASKED.value, commitment_request_id=number),
                {"ids": [row[0] for row in rows]},
            )
        references = dict.fromkeys(SOPReference(sop_class, uid) for _, sop_class, uid in rows)
        return number, CommitmentRequest(transaction_uid, tuple(references))

    def record_refusal(  # noqa: PLR0917 - as begin_request
        self,
        destination: str,
        number: int,
        error: str,
        next_at: int,
        unix_ms: int,
        groups: Collection[str] = (),
    ) -> None:
        """Record that a request could not be sent. Its deliveries are wanted again, from `next_at` on."""
        with self._database.begin_write() as connection:
            _end(connection, number, RequestState.REFUSED, unix_ms, error=error, next_at=next_at)
            connection.execute(_WANT_AGAIN, {**_sent_to(destination, groups), "request": number})

    def record_report(  # noqa: PLR0917 - as begin_request
        self,
        destination: str,
        transaction_uid: str,
        outcomes: Sequence[ReferenceOutcome],
        decide_uncommitted: Callable[[int, int], Uncommitted],
        unix_ms: int,
        groups: Collection[str] = (),
    ) -> bool:
        """Record a report of a destination. Instances that it leaves out are wanted again, after a pause.

        A report that comes twice changes nothing.

        Args:
            destination: Name of the destination.
            transaction_uid: Its Transaction UID.
            outcomes: What it says.
            decide_uncommitted: Decides about a delivery that is not committed, from the number of its
                attempts and the Failure Reason.
            unix_ms: Current time.
            groups: Names of the groups of which the destination is a member.

        Returns:
            Whether this node had asked that destination with this transaction.
        """
        query = select(commitment_requests).where(
            commitment_requests.c.transaction_uid == transaction_uid,
            commitment_requests.c.destination == destination,
        )
        said = {outcome.reference: outcome.failure for outcome in outcomes}
        with self._database.begin_write() as connection:
            request = connection.execute(query).mappings().first()
            if request is None:
                return False
            parameters = _sent_to(destination, groups)
            parameters |= {"request": request["id"], "asked_at": request["asked_at"]}
            good, bad = [], []
            for row in _read_named(connection, parameters, said):
                reason = said[SOPReference(row.sop_class_uid, row.sop_instance_uid)]
                if reason is None:
                    good.append(row.id)
                elif (
                    row.commitment_request_id == request["id"] and row.commitment == DeliveryCommitment.ASKED
                ):
                    bad.append((row.id, decide_uncommitted(row.attempts, reason)))
            for ids in (good[at : at + _CHUNK] for at in range(0, len(good), _CHUNK)):
                connection.execute(_COMMIT, {"ids": ids, "now": unix_ms})
            for row, step in bad:
                values = {"to": step.state.value, "at": step.next_at, "error": step.error, "now": unix_ms}
                connection.execute(_FAIL, {"row": row, **values})
            if self._announcer is not None:
                dead = [row for row, step in bad if step.state is DeliveryState.DEAD]
                for name in (destination, *groups):
                    self._announcer.announce_deliveries(connection, dead, name, unix_ms)
            is_partial = connection.execute(_FIRST_ASKED, parameters).first() is not None
            connection.execute(_WANT_AGAIN, parameters)
            if request["state"] != RequestState.ANSWERED.value:
                next_at = unix_ms + UNNAMED_PAUSE_MS if is_partial else 0
                _end(
                    connection,
                    request["id"],
                    RequestState.ANSWERED,
                    unix_ms,
                    error="the report left instances out" if is_partial else "",
                    next_at=next_at,
                    failures=len(bad),
                )
        return True

    def list_requests(self, limit: int) -> list[SentCommitment]:
        """Return requests, the newest first."""
        query = select(commitment_requests).order_by(commitment_requests.c.id.desc()).limit(limit)
        with self._database.begin_read() as connection:
            return [
                SentCommitment(**{**row, "state": RequestState(row["state"])})
                for row in connection.execute(query).mappings()
            ]

    def remove_ended(self, updated_before: int) -> int:
        """Remove requests that ended long ago."""
        ended = (
            commitment_requests.c.state != RequestState.ASKED.value,
            commitment_requests.c.updated_at < updated_before,
        )
        with self._database.begin_write() as connection:
            return connection.execute(delete(commitment_requests).where(*ended)).rowcount

    def count_by_commitment(self, destination: str) -> dict[str, int]:
        """Return the number of deliveries of a destination whose commitment is open, by its state."""
        query = (
            select(deliveries.c.commitment, func.count())
            .where(IS_COMMITMENT_OPEN, deliveries.c.destination == destination)
            .group_by(deliveries.c.commitment)
        )
        with self._database.begin_read() as connection:
            return {str(state): int(count) for state, count in connection.execute(query)}


def _is_held(last: Mapping[Any, Any], unix_ms: int) -> bool:
    """Return whether the last request of a destination asks for a pause. One without a report does not."""
    return bool(last["state"] != RequestState.ASKED.value and last["next_at"] > unix_ms)


def _sent_to(destination: str, groups: Collection[str]) -> dict[str, Any]:
    return {"of": destination, "names": [destination, *groups]}


def _read_named(
    connection: Any, parameters: Mapping[str, Any], said: Collection[SOPReference]
) -> Iterator[Any]:
    """Yield the open deliveries that a report names."""
    uids = sorted({reference.sop_instance_uid for reference in said})
    for at in range(0, len(uids), _CHUNK):
        rows = connection.execute(_NAMED_ROWS, {**parameters, "uids": uids[at : at + _CHUNK]}).all()
        yield from (row for row in rows if SOPReference(row.sop_class_uid, row.sop_instance_uid) in said)


def _end(
    connection: Any,
    number: int,
    state: RequestState,
    unix_ms: int,
    *,
    error: str = "",
    next_at: int = 0,
    failures: int = 0,
) -> None:
    connection.execute(
        update(commitment_requests)
        .where(commitment_requests.c.id == number)
        .values(
            state=state.value,
            last_error=clean_value(error[:ERROR_MAX]),
            next_at=next_at,
            failures=failures,
            updated_at=unix_ms,
        )
    )
