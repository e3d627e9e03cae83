"""Requests for storage commitment to this node: references, the decision about each, and the report.

A request waits until each of its references is judged. Then a report is due at the destination of its
requestor. A worker leases it, sends it, and records the result. If the worker dies in between, the lease ends
and the report is sent again: at least once.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import and_, bindparam, delete, exists, func, select, update

from ingest.dicom.commitment import CommitmentRequest, ReferenceOutcome, SOPReference
from ingest.ledger.database import INSERT_BY_DIALECT, Database
from ingest.ledger.records import InstanceState
from ingest.ledger.row_values import clean_value
from ingest.ledger.schema import IS_OPEN_COMMITMENT, commitment_references, commitments, deliveries, instances

ERROR_MAX: Final = 500
"""Maximum length of an error text."""

COMMITTED: Final = 0
"""Outcome of a reference that is committed. Other outcomes are Failure Reasons."""


class CommitmentState(StrEnum):
    """The state of a request."""

    WAITING = "waiting"
    """An instance is not judged yet."""
    DUE = "due"
    """The report has to be sent."""
    REPORTED = "reported"
    FAILED = "failed"
    """The report could not be sent, or the request could not be read."""


@dataclass(frozen=True, slots=True)
class NewCommitment:
    """A request that was received.

    Attributes:
        destination: Where the report goes; empty if the requestor has no destination.
        spool_ref: The spool entry that it came in.
        fault: Why it cannot be answered; empty for a sound one.
    """

    request: CommitmentRequest
    calling_ae: str
    called_ae: str
    destination: str
    spool_ref: str
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Commitment:
    """A row of `commitments`; times are Unix milliseconds.

    Attributes:
        references: Number of its references.
        failures: How many of them are judged as not committed.
    """

    id: int
    transaction_uid: str
    calling_ae: str
    called_ae: str
    destination: str
    state: CommitmentState
    requested_at: int
    next_at: int
    attempts: int
    last_error: str
    updated_at: int
    references: int = 0
    failures: int = 0


@dataclass(frozen=True, slots=True)
class Evidence:
    """Facts in the ledger about one object with a referenced SOP Instance UID.

    Attributes:
        state: State of the instance.
        routed: Names of the routes that took it, as `instances.routed`.
        deliveries: State of each delivery, by destination or group.
        committed: The destinations and groups that have committed to keep it.
        is_set_aside: Whether the requestor sent it, was answered with Success, and it lies in quarantine.
        members: State of each delivery that a member of a group got or gets, by the member.
    """

    state: str
    sop_class_uid: str
    routed: str
    deliveries: Mapping[str, str]
    committed: Set[str] = frozenset()
    is_set_aside: bool = False
    members: Mapping[str, str] = field(default_factory=dict)


_ROW: Final = (
    commitments.c.id,
    commitments.c.transaction_uid,
    commitments.c.calling_ae,
    commitments.c.called_ae,
    commitments.c.destination,
    commitments.c.state,
    commitments.c.requested_at,
    commitments.c.next_at,
    commitments.c.attempts,
    commitments.c.last_error,
    commitments.c.updated_at,
)
_JUDGEABLE: Final = (
    select(*_ROW)
    .where(
        IS_OPEN_COMMITMENT,
        commitments.c.state == CommitmentState.WAITING.value,
        commitments.c.next_at <= bindparam("now"),
    )
    .order_by(commitments.c.next_at, commitments.c.id)
    .limit(bindparam("at_most"))
)
_UNJUDGED: Final = select(
    commitment_references.c.number,
    commitment_references.c.sop_class_uid,
    commitment_references.c.sop_instance_uid,
).where(commitment_references.c.commitment_id == bindparam("of"), commitment_references.c.outcome.is_(None))
_IS_SET_ASIDE: Final = and_(
    instances.c.state == InstanceState.QUARANTINED.value,
    instances.c.refused_status == 0,
    instances.c.calling_ae == commitments.c.calling_ae,
)
_EVIDENCE: Final = (
    select(
        commitment_references.c.number,
        instances.c.id,
        instances.c.state,
        instances.c.sop_class_uid,
        instances.c.routed,
        deliveries.c.destination,
        deliveries.c.state.label("delivery_state"),
        deliveries.c.commitment,
        _IS_SET_ASIDE.label("is_set_aside"),
        deliveries.c.member,
    )
    .join(commitments, commitments.c.id == commitment_references.c.commitment_id)
    .join(instances, instances.c.sop_instance_uid == commitment_references.c.sop_instance_uid)
    .outerjoin(deliveries, deliveries.c.instance_id == instances.c.id)
    .where(
        commitment_references.c.commitment_id == bindparam("of"), commitment_references.c.outcome.is_(None)
    )
    .order_by(commitment_references.c.number, instances.c.id)
)
_SET_OUTCOME: Final = (
    update(commitment_references)
    .where(
        commitment_references.c.commitment_id == bindparam("of"),
        commitment_references.c.number == bindparam("at"),
    )
    .values(outcome=bindparam("is_now"))
)
_DUE: Final = (
    select(*_ROW)
    .where(
        IS_OPEN_COMMITMENT,
        commitments.c.state == CommitmentState.DUE.value,
        commitments.c.destination == bindparam("of"),
        commitments.c.next_at <= bindparam("now"),
    )
    # The one that was tried most often: its pause is the longest, and all others wait as long.
    .order_by(commitments.c.attempts.desc(), commitments.c.id)
    .limit(1)
    .with_for_update(skip_locked=True)
)
_DUE_DESTINATIONS: Final = (
    select(commitments.c.destination)
    .where(
        IS_OPEN_COMMITMENT,
        commitments.c.state == CommitmentState.DUE.value,
        commitments.c.next_at <= bindparam("now"),
    )
    .distinct()
)
_OUTCOMES: Final = (
    select(
        commitment_references.c.sop_class_uid,
        commitment_references.c.sop_instance_uid,
        commitment_references.c.outcome,
    )
    .where(commitment_references.c.commitment_id == bindparam("of"))
    .order_by(commitment_references.c.number)
)


class Commitments:
    """Keeps requests and their reports.

    Every method is one transaction, durable on return. It raises LedgerError while the database is
    unavailable.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def record_request(self, new: NewCommitment, unix_ms: int) -> bool:
        """Record a request; without effect if its spool entry was recorded before.

        Returns:
            Whether it is new.
        """
        insert: Any = INSERT_BY_DIALECT[self._database.dialect](commitments)
        row = {
            "transaction_uid": new.request.transaction_uid,
            "calling_ae": clean_value(new.calling_ae),
            "called_ae": clean_value(new.called_ae),
            "destination": new.destination,
            "spool_ref": new.spool_ref,
            "state": CommitmentState.FAILED.value if new.fault else CommitmentState.WAITING.value,
            "requested_at": unix_ms,
            "next_at": unix_ms,
            "attempts": 0,
            "last_error": new.fault[:ERROR_MAX],
            "updated_at": unix_ms,
        }
        with self._database.begin_write() as connection:
            statement = insert.values(**row).on_conflict_do_nothing(index_elements=["spool_ref"])
            number = connection.execute(statement.returning(commitments.c.id)).scalar()
            if number is None:
                return False
            rows = [
                {
                    "commitment_id": number,
                    "number": at,
                    "sop_class_uid": reference.sop_class_uid,
                    "sop_instance_uid": reference.sop_instance_uid,
                }
                for at, reference in enumerate(new.request.references)
            ]
            if rows:
                connection.execute(commitment_references.insert(), rows)
        return True

    # --- judge

    def find_judgeable(self, unix_ms: int, limit: int) -> list[Commitment]:
        """Return waiting requests whose time to be judged has come."""
        with self._database.begin_read() as connection:
            rows = connection.execute(_JUDGEABLE, {"now": unix_ms, "at_most": limit}).mappings()
            return [_read_row(row) for row in rows]

    def read_evidence(self, number: int) -> list[tuple[int, SOPReference, list[Evidence]]]:
        """Return the references of a request that are not judged yet, each with what is known of it."""
        with self._database.begin_read() as connection:
            references = connection.execute(_UNJUDGED, {"of": number}).all()
            found: dict[int, dict[int, Evidence]] = {}
            for row in connection.execute(_EVIDENCE, {"of": number}):
                known = found.setdefault(row.number, {}).setdefault(
                    row.id,
                    Evidence(
                        row.state,
                        row.sop_class_uid,
                        row.routed,
                        {},
                        set(),
                        is_set_aside=bool(row.is_set_aside),
                        members={},
                    ),
                )
                if row.destination is not None:
                    known.deliveries[row.destination] = row.delivery_state  # type: ignore[index]
                if row.member:
                    known.members[row.member] = row.delivery_state  # type: ignore[index]
                if row.commitment == "committed":
                    known.committed.update((row.destination, row.member))  # type: ignore[attr-defined]
        return [
            (at, SOPReference(sop_class, sop_instance), list(found.get(at, {}).values()))
            for at, sop_class, sop_instance in references
        ]

    def record_judgement(
        self, number: int, outcomes: Mapping[int, int], state: CommitmentState, next_at: int, unix_ms: int
    ) -> None:
        """Record what was decided of references, and the next step of their request.

        Args:
            number: Id of the request.
            outcomes: `COMMITTED` or a Failure Reason, by the number of the reference.
            state: WAITING if references are left, otherwise DUE, or FAILED if nobody can be told.
            next_at: Time of the next step in Unix milliseconds.
            unix_ms: Current time.
        """
        rows = [{"of": number, "at": at, "is_now": outcome} for at, outcome in outcomes.items()]
        change = (
            update(commitments)
            .where(commitments.c.id == number, commitments.c.state == CommitmentState.WAITING.value)
            .values(state=state.value, next_at=next_at, updated_at=unix_ms)
        )
        with self._database.begin_write() as connection:
            if rows:
                connection.execute(_SET_OUTCOME, rows)
            connection.execute(change)

    # --- report

    def find_due_destinations(self, unix_ms: int) -> list[str]:
        """Return the destinations to which reports have to be sent now."""
        with self._database.begin_read() as connection:
            return [str(name) for name in connection.execute(_DUE_DESTINATIONS, {"now": unix_ms}).scalars()]

    def lease_report(self, destination: str, unix_ms: int, lease_ms: int) -> Commitment | None:
        """Lease the due report of a destination that was tried most often. The attempt counts from now on."""
        with self._database.begin_write() as connection:
            row = connection.execute(_DUE, {"of": destination, "now": unix_ms}).mappings().first()
            if row is None:
                return None
            values = {"attempts": row["attempts"] + 1, "next_at": unix_ms + lease_ms, "updated_at": unix_ms}
            connection.execute(update(commitments).where(commitments.c.id == row["id"]).values(**values))
        return _read_row({**row, **values})

    def read_outcomes(self, number: int) -> list[ReferenceOutcome]:
        """Return what was decided of each reference, in the order of the request."""
        with self._database.begin_read() as connection:
            return [
                ReferenceOutcome(SOPReference(sop_class, sop_instance), outcome or None)
                for sop_class, sop_instance, outcome in connection.execute(_OUTCOMES, {"of": number})
            ]

    def record_report(
        self, number: int, state: CommitmentState, error: str, next_at: int, unix_ms: int
    ) -> None:
        """Record the result of an attempt to report: REPORTED, FAILED, or DUE again at `next_at`."""
        values = {
            "state": state.value,
            "next_at": next_at,
            "last_error": clean_value(error[:ERROR_MAX]),
            "updated_at": unix_ms,
        }
        which = commitments.c.id == number, commitments.c.state == CommitmentState.DUE.value
        with self._database.begin_write() as connection:
            connection.execute(update(commitments).where(*which).values(**values))

    def postpone_reports(self, destination: str, next_at: int, unix_ms: int) -> None:
        """Let all reports of a destination wait, since it could not be reached for one of them."""
        which = (
            IS_OPEN_COMMITMENT,
            commitments.c.state == CommitmentState.DUE.value,
            commitments.c.destination == destination,
            commitments.c.next_at < next_at,
        )
        with self._database.begin_write() as connection:
            connection.execute(update(commitments).where(*which).values(next_at=next_at, updated_at=unix_ms))

    # --- list and clean up

    def list_requests(self, limit: int, state: CommitmentState | None = None) -> list[Commitment]:
        """Return requests, the newest first."""
        query = select(*_ROW).order_by(commitments.c.id.desc()).limit(limit)
        if state is not None:
            query = query.where(commitments.c.state == state.value)
        with self._database.begin_read() as connection:
            rows = [dict(row) for row in connection.execute(query).mappings()]
            counts = {
                number: (references, failures)
                for number, references, failures in connection.execute(
                    select(
                        commitment_references.c.commitment_id,
                        func.count(),
                        func.count().filter(commitment_references.c.outcome != COMMITTED),
                    )
                    .where(commitment_references.c.commitment_id.in_([row["id"] for row in rows]))
                    .group_by(commitment_references.c.commitment_id)
                )
            }
        return [_read_row(row, *counts.get(row["id"], (0, 0))) for row in rows]

    def count_by_state(self) -> dict[str, int]:
        """Return the number of requests in each state."""
        query = select(commitments.c.state, func.count()).group_by(commitments.c.state)
        with self._database.begin_read() as connection:
            return {str(state): int(count) for state, count in connection.execute(query)}

    def remove_ended(self, updated_before: int) -> int:
        """Remove requests that were reported or given up long ago, with their references."""
        ended = (
            commitments.c.state.in_((CommitmentState.REPORTED.value, CommitmentState.FAILED.value)),
            commitments.c.updated_at < updated_before,
        )
        of_ended = exists().where(commitments.c.id == commitment_references.c.commitment_id, *ended)
        with self._database.begin_write() as connection:
            connection.execute(delete(commitment_references).where(of_ended))
            return connection.execute(delete(commitments).where(*ended)).rowcount


def _read_row(row: Mapping[Any, Any], references: int = 0, failures: int = 0) -> Commitment:
    return Commitment(
        **{**row, "state": CommitmentState(row["state"])}, references=references, failures=failures
    )
