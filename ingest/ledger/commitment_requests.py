"""What this node asks its destinations: whether they commit to keep what was delivered (PS3.4 Annex J).

`deliveries.commitment` is a second state of a delivery, so `delivered` keeps its meaning. A delivery to a
destination that is asked becomes `wanted` in the transaction that records it as delivered. A request takes
many of them; they are `asked` until its report comes or its time is over. Then they are `wanted` again.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import bindparam, func, select, update

from ingest.dicom.commitment import CommitmentRequest, ReferenceOutcome, SOPReference
from ingest.ledger.commitments import ERROR_MAX
from ingest.ledger.database import Database
from ingest.ledger.records import DeliveryState
from ingest.ledger.schema import IS_COMMITMENT_OPEN, commitment_requests, deliveries, instances


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


_WANTED: Final = (
    select(deliveries.c.id, instances.c.sop_class_uid, instances.c.sop_instance_uid)
    .join(instances, instances.c.id == deliveries.c.instance_id)
    .where(
        IS_COMMITMENT_OPEN,
        deliveries.c.destination == bindparam("of"),
        deliveries.c.commitment == DeliveryCommitment.WANTED.value,
    )
    .order_by(deliveries.c.id)
    .limit(bindparam("at_most"))
    .with_for_update(skip_locked=True, of=deliveries)
)
_FIRST_WANTED: Final = (
    select(deliveries.c.id)
    .where(
        IS_COMMITMENT_OPEN,
        deliveries.c.destination == bindparam("of"),
        deliveries.c.commitment == DeliveryCommitment.WANTED.value,
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
_ASKED_ROWS: Final = (
    select(deliveries.c.id, instances.c.sop_class_uid, instances.c.sop_instance_uid)
    .join(instances, instances.c.id == deliveries.c.instance_id)
    .where(
        IS_COMMITMENT_OPEN,
        deliveries.c.destination == bindparam("of"),
        deliveries.c.commitment == DeliveryCommitment.ASKED.value,
        deliveries.c.commitment_request_id == bindparam("request"),
    )
)


class CommitmentRequests:
    """Keeps what was asked and answered.

    Every method is one transaction, durable on return. It raises LedgerError while the database is
    unavailable.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def find_wanting(self, destinations: Collection[str], unix_ms: int) -> list[str]:
        """Return those destinations that have to be asked now."""
        found = []
        with self._database.begin_read() as connection:
            for name in destinations:
                if connection.execute(_OVERDUE, {"of": name, "now": unix_ms}).first() is not None:
                    found.append(name)
                    continue
                if connection.execute(_FIRST_WANTED, {"of": name}).first() is None:
                    continue
                last = connection.execute(_LAST, {"of": name}).mappings().first()
                if last is None or not _is_held(last, unix_ms):
                    found.append(name)
        return found

    def begin_request(
        self, destination: str, transaction_uid: str, limit: int, deadline_ms: int, unix_ms: int
    ) -> tuple[int, CommitmentRequest] | None:
        """Take wanted deliveries of a destination into a new request. None if there is nothing to ask now.

        Deliveries of requests whose time is over are wanted again first.

        Args:
            destination: Name of the destination.
            transaction_uid: A new UID.
            limit: Maximum number of instances.
            deadline_ms: Time at which the wait for the report ends.
            unix_ms: Current time.
        """
        with self._database.begin_write() as connection:
            for (number,) in connection.execute(_OVERDUE, {"of": destination, "now": unix_ms}).all():
                _end(connection, number, RequestState.EXPIRED, unix_ms, error="no report came in time")
                _want_again(connection, destination, number)
            last = connection.execute(_LAST, {"of": destination}).mappings().first()
            if last is not None and _is_held(last, unix_ms):
                return None
            rows = connection.execute(_WANTED, {"of": destination, "at_most": limit}).all()
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
                .where(deliveries.c.id.in_(bindparam("ids", expanding=True)))
                .values(commitment=DeliveryCommitment.ASKED.value, commitment_request_id=number),
                {"ids": [row[0] for row in rows]},
            )
        references = dict.fromkeys(SOPReference(sop_class, uid) for _, sop_class, uid in rows)
        return number, CommitmentRequest(transaction_uid, tuple(references))

    def record_refusal(self, destination: str, number: int, error: str, next_at: int, unix_ms: int) -> None:
        """Record that a request could not be sent. Its deliveries are wanted again, from `next_at` on."""
        with self._database.begin_write() as connection:
            _end(connection, number, RequestState.REFUSED, unix_ms, error=error, next_at=next_at)
            _want_again(connection, destination, number)

    def record_report(
        self, destination: str, transaction_uid: str, outcomes: Sequence[ReferenceOutcome], unix_ms: int
    ) -> bool:
        """Record a report of a destination. What it does not commit is sent again.

        What the report does not name is wanted again. A report that comes late, or twice, changes nothing.

        Returns:
            Whether this node had asked that destination with this transaction.
        """
        committed = {each.reference for each in outcomes if each.failure is None}
        failed = {each.reference: each.failure for each in outcomes if each.failure is not None}
        query = select(commitment_requests.c.id).where(
            commitment_requests.c.transaction_uid == transaction_uid,
            commitment_requests.c.destination == destination,
        )
        with self._database.begin_write() as connection:
            number = connection.execute(query).scalar()
            if number is None:
                return False
            rows = connection.execute(_ASKED_ROWS, {"of": destination, "request": number}).all()
            good, bad = [], []
            for row, sop_class, uid in rows:
                reference = SOPReference(sop_class, uid)
                if reference in failed:
                    bad.append((row, failed[reference]))
                elif reference in committed:
                    good.append(row)
            if good:
                connection.execute(
                    update(deliveries)
                    .where(deliveries.c.id.in_(bindparam("ids", expanding=True)))
                    .values(commitment=DeliveryCommitment.COMMITTED.value, updated_at=unix_ms),
                    {"ids": good},
                )
            if bad:
                connection.execute(
                    update(deliveries)
                    .where(
                        deliveries.c.id == bindparam("row"),
                        deliveries.c.state == DeliveryState.DELIVERED.value,
                    )
                    .values(
                        state=DeliveryState.RETRY.value,
                        next_at=unix_ms,
                        commitment=DeliveryCommitment.FAILED.value,
                        last_error=bindparam("error"),
                        updated_at=unix_ms,
                    ),
                    [
                        {"row": row, "error": f"not committed by the destination ({reason:04X}H); sent again"}
                        for row, reason in bad
                    ],
                )
            _want_again(connection, destination, number)
            _end(connection, number, RequestState.ANSWERED, unix_ms, failures=len(bad))
        return True

    def list_requests(self, limit: int) -> list[SentCommitment]:
        """Return what was asked, the newest first."""
        query = select(commitment_requests).order_by(commitment_requests.c.id.desc()).limit(limit)
        with self._database.begin_read() as connection:
            return [
                SentCommitment(**{**row, "state": RequestState(row["state"])})
                for row in connection.execute(query).mappings()
            ]

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
    return bool(last["state"] == RequestState.REFUSED.value and last["next_at"] > unix_ms)


def _want_again(connection: Any, destination: str, number: int) -> None:
    connection.execute(
        update(deliveries)
        .where(
            IS_COMMITMENT_OPEN,
            deliveries.c.destination == destination,
            deliveries.c.commitment == DeliveryCommitment.ASKED.value,
            deliveries.c.commitment_request_id == number,
        )
        .values(commitment=DeliveryCommitment.WANTED.value)
    )


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
            last_error=error[:ERROR_MAX],
            next_at=next_at,
            failures=failures,
            updated_at=unix_ms,
        )
    )
