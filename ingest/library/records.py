"""What the ledger knows of instances, studies and deliveries, as values with times of Python."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from ingest.config.model import Config
from ingest.dicom.priority import Priority
from ingest.ledger import DeliveryState, InstanceState
from ingest.ledger.instance_lists import FoundInstance
from ingest.ledger.study_lists import FoundStudy
from ingest.operations.deliveries import ListedDelivery
from ingest.operations.trace import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceRecord:
    """A received instance.

    Attributes:
        id: Number of its row, which grows with each instance.
        state: Its state; only `STORED` and `VARIANT` have a file in the store.
        sop_instance_uid, sop_class_uid, study_uid, series_uid, transfer_syntax_uid: Its UIDs.
        calling_ae: AE title of the sender.
        called_ae: AE title that the sender called.
        received_at: Time of arrival.
        path: Its Part 10 file in the store or in the quarantine; None after it was removed or replaced.
        size_bytes: Bytes of the file.
        note: Information for a person, or empty.
        routes: Names of the matching routes, or why none matched.
        deliveries: State of the delivery to each destination, by its name.
    """

    id: int
    state: InstanceState
    sop_instance_uid: str
    sop_class_uid: str
    study_uid: str
    series_uid: str
    transfer_syntax_uid: str
    calling_ae: str
    called_ae: str
    received_at: datetime
    path: Path | None
    size_bytes: int
    note: str
    routes: str
    deliveries: Mapping[str, DeliveryState] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRecord:
    """A study, as far as it was received.

    Attributes of the patient are empty unless `[ledger] index` keeps them. They are personal data.

    Attributes:
        study_uid: Study Instance UID.
        instances: Number of stored SOP instances.
        size_bytes: Bytes of their files.
        first_at, last_at: Arrival of the first and of the last instance.
        is_stable: Whether no instance was stored within `[node] stable_seconds`.
        calling_ae: Sender of the newest instance.
        modalities: Modalities of its series.
        deliveries: Number of deliveries by state.
    """

    study_uid: str
    instances: int
    size_bytes: int
    first_at: datetime
    last_at: datetime
    is_stable: bool
    calling_ae: str
    modalities: tuple[str, ...]
    accession_number: str
    patient_id: str
    patient_name: str
    study_date: str
    study_description: str
    deliveries: Mapping[DeliveryState, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryRecord:
    """The delivery of one instance to one destination.

    Attributes:
        id: Number of its row, which grows with each delivery.
        destination: Name of the destination.
        state: Its state; `WAITING`, `SENDING` and `RETRY` are not finished.
        attempts: Number of attempts so far.
        last_status: DIMSE status of the last response; None without one.
        last_error: Why the last attempt failed, or empty. It may quote the remote.
        created_at, updated_at: When the delivery was created, and when it last changed.
        next_attempt_at: When it is tried next; None if it will not be tried.
        waits_for: Why a due delivery is not sent now, or empty.
        priority: "urgent", "normal" or "bulk".
        sop_instance_uid, series_uid, study_uid: UIDs of the instance.
        member: If the destination is a group: the member that it was sent to last. Otherwise empty.
    """

    id: int
    destination: str
    state: DeliveryState
    attempts: int
    last_status: int | None
    last_error: str
    created_at: datetime
    updated_at: datetime
    next_attempt_at: datetime | None
    waits_for: str
    priority: str
    sop_instance_uid: str
    series_uid: str
    study_uid: str
    member: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceLine:
    """What happened to an instance, or to several instances alike.

    Attributes:
        at: When; None if the time was not recorded.
        kind: What happened, such as "received", "stored", "delivered" or "dead".
        text: One line for people. It may quote a remote.
        destination: Name of the destination, or empty.
        count: Number of instances or attempts that this line stands for.
    """

    at: datetime | None
    kind: str
    text: str
    destination: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRecord:
    """The way of a study, a series or an instance.

    Attributes:
        wanted: The UID or accession number that was asked for.
        kind: "study", "series", "instance" or "accession number".
        study_uids: Studies that were found.
        lines: What happened, the oldest first.
        next_steps: What happens next, one line for each step.
    """

    wanted: str
    kind: str
    study_uids: tuple[str, ...]
    lines: tuple[TraceLine, ...]
    next_steps: tuple[str, ...]


_WITHOUT_FILE = frozenset({InstanceState.REPLACED, InstanceState.REMOVED})


def make_instance_record(config: Config, found: FoundInstance) -> InstanceRecord:
    """Make a record of a row of the ledger."""
    row = found.instance
    folder = config.quarantine_dir if row.state is InstanceState.QUARANTINED else config.store_root
    return InstanceRecord(
        id=row.id,
        state=row.state,
        sop_instance_uid=row.sop_instance_uid,
        sop_class_uid=row.sop_class_uid,
        study_uid=row.study_uid,
        series_uid=row.series_uid,
        transfer_syntax_uid=row.transfer_syntax_uid,
        calling_ae=row.calling_ae,
        called_ae=row.called_ae,
        received_at=_make_time(row.received_at),
        path=None if row.state in _WITHOUT_FILE else folder / row.store_key,
        size_bytes=row.size,
        note=row.note,
        routes=row.routed,
        deliveries=dict(found.deliveries),
    )


def make_study_record(found: FoundStudy) -> StudyRecord:
    """Make a record of a study of the index."""
    return StudyRecord(
        study_uid=found.study_uid,
        instances=found.instances,
        size_bytes=found.size,
        first_at=_make_time(found.first_at),
        last_at=_make_time(found.last_at),
        is_stable=found.stable,
        calling_ae=found.calling_ae,
        modalities=found.modalities,
        accession_number=found.accession_number,
        patient_id=found.patient_id,
        patient_name=found.patient_name,
        study_date=found.study_date,
        study_description=found.study_description,
        deliveries=dict(found.deliveries),
    )


def make_delivery_record(listed: ListedDelivery) -> DeliveryRecord:
    """Make a record of a delivery and of what it waits for."""
    row = listed.delivery
    return DeliveryRecord(
        id=row.id,
        destination=row.destination,
        state=row.state,
        attempts=row.attempts,
        last_status=row.last_status,
        last_error=row.last_error or "",
        created_at=_make_time(row.created_at),
        updated_at=_make_time(row.updated_at),
        next_attempt_at=_make_time(listed.next_attempt_ms) if listed.next_attempt_ms else None,
        waits_for=listed.waits_for,
        priority=Priority(row.priority).word,
        sop_instance_uid=row.sop_instance_uid,
        series_uid=row.series_uid,
        study_uid=row.study_uid,
        member=row.member,
    )


def make_trace_record(trace: Trace) -> TraceRecord:
    """Make a record of a trace."""
    return TraceRecord(
        wanted=trace.wanted,
        kind=trace.kind,
        study_uids=trace.study_uids,
        lines=tuple(
            TraceLine(
                at=_make_time(event.at_ms) if event.at_ms else None,
                kind=event.kind.value,
                text=event.text,
                destination=event.destination,
                count=event.count,
            )
            for event in trace.events
        ),
        next_steps=tuple(step.text for step in trace.next_steps),
    )


def _make_time(unix_ms: int) -> datetime:
    return datetime.fromtimestamp(unix_ms / 1000, UTC)
