"""The values that go into the ledger and come out of it; times are Unix milliseconds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Final

from ingest.dicom.priority import Priority
from ingest.dicom.study_attributes import StudyAttributes


class InstanceState(StrEnum):
    """The state of a received instance."""

    STORED = "stored"
    """In the store under its own name."""
    VARIANT = "variant"
    """In the store beside the first object of its UID, in another transfer syntax.

    It goes to destinations that have accepted no other object of its UID.
    """
    QUARANTINED = "quarantined"
    """In the quarantine folder; the note says why."""
    REPLACED = "replaced"
    """Another object of the same UID replaced its file (`[store] duplicates = "overwrite"`, or a release)."""
    REMOVING = "removing"
    """Its file is about to be removed from the store."""
    REMOVED = "removed"
    """Its file was removed from the store, or dropped from quarantine."""


class DeliveryState(StrEnum):
    """The state of the delivery of one instance to one destination."""

    WAITING = "waiting"
    SENDING = "sending"
    DELIVERED = "delivered"
    RETRY = "retry"
    DEAD = "dead"
    DROPPED = "dropped"
    HELD = "held"
    """A person releases it; until then no worker sends it."""
    AWAITING = "awaiting"
    """It waits for the end of its series or study; until then no worker sends it."""


UNRELEASED: Final = (DeliveryState.HELD, DeliveryState.AWAITING)
"""States of deliveries that no worker may lease yet. They keep their file, like all that are not finished."""


class Outcome(Enum):
    """What `Instances.record` did with one instance."""

    RECORDED = "recorded"
    """It has a new row, and its deliveries wait."""
    KNOWN = "known"
    """Its spool reference was recorded before; nothing changed."""
    TAKEN = "taken"
    """Its store key belongs to the row of another reference; nothing changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceColumns:
    """The columns of `instances` that a new row and a read one share.

    Attributes:
        state: The state of the instance.
        store_key: Name of its file below the store, or below the quarantine folder if it is quarantined.
        size: Bytes of the whole Part 10 file.
        data_set_offset: Offset of the data set within the file.
        source: Presentation address of the sender, as in the File Meta (0002,0026).
        spool_ref: Spool id, ":" and `Location.name`; never used twice.
        note: Information for an operator, or empty.
        routed: Names of the rules that matched, or why none did.
        copy_digest: Digest of the content, for a further stored copy of its SOP instance UID; otherwise
            empty.
        refused_status: Status of the C-STORE response, for a kept copy of a refused instance; 0 for Success.
        times: How often the same instance came; only quarantined instances count.
        content_digest: Digest of the content, for a quarantined instance; otherwise empty.
        certificate: SHA-256 fingerprint of the certificate that the sender presented; empty without one.
        is_damaged_in_spool: Whether the quarantined file differs from the received one. The file may
            nevertheless be a readable DICOM file.
    """

    state: InstanceState
    sop_instance_uid: str
    sop_class_uid: str
    study_uid: str
    series_uid: str
    transfer_syntax_uid: str
    store_key: str
    size: int
    data_set_offset: int
    calling_ae: str
    called_ae: str
    source: str
    spool_ref: str
    note: str
    received_at: int
    stored_at: int
    routed: str = ""
    copy_digest: str = ""
    refused_status: int = 0
    times: int = 1
    content_digest: str = ""
    certificate: str = ""
    is_damaged_in_spool: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryTerms:
    """How a new delivery begins.

    Attributes:
        state: Its first state: WAITING, or one of `UNRELEASED`.
        priority: Its priority.
        awaits: What an AWAITING one waits for: "series" or "study"; otherwise empty.
        hours: Hours of its routes (`ingest.config.hours`); empty for any time.
    """

    state: DeliveryState = DeliveryState.WAITING
    priority: Priority = Priority.NORMAL
    awaits: str = ""
    hours: str = ""


PLAIN_TERMS: Final = DeliveryTerms()


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionTerms:
    """When the study and the series of an instance are complete.

    Attributes:
        association: Id of the association that carried it; 0 if it is not known.
        default_ms: The time without an instance, unless a route has one.
        study_ms: The longest time of the routes that wait for its study; 0 without one.
        series_ms: The same for its series; None if no series is judged.
    """

    association: int = 0
    default_ms: int
    study_ms: int = 0
    series_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewInstance(InstanceColumns):
    """An instance to record.

    Attributes:
        destinations: Names of the destinations that get it.
        terms: How its deliveries begin, by destination; `PLAIN_TERMS` for a destination that is missing.
        completion: When its study is complete; None if that is not judged.
        replaces: Whether it replaces the stored object of its SOP instance UID.
        attributes: What the study index learns from it; None if nothing was read.
    """

    destinations: tuple[str, ...] = ()
    terms: Mapping[str, DeliveryTerms] = field(default_factory=dict)
    completion: CompletionTerms | None = None
    replaces: bool = False
    attributes: StudyAttributes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance(InstanceColumns):
    """A row of `instances`."""

    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A leased delivery, with all that a worker needs to send its instance.

    Attributes:
        attempts: How often it was leased, this time included.
        lease_until: End of the lease.
        created_at: When the delivery was created.
        breaks: Number of associations that ended while this instance was being sent.
        suspect_since: Since when it is suspected of breaking them; 0 if it is no suspect.
        store_key, size, data_set_offset, stored_at: As in `InstanceColumns`.
        calling_ae, called_ae: Of the association that received the instance.
        priority, hours: As in `DeliveryTerms`.
        study_uid: Study of its instance.
        member: If `destination` is a group: the member that gets it. Otherwise empty.
    """

    id: int
    instance_id: int
    destination: str
    attempts: int
    lease_until: int
    created_at: int
    breaks: int
    suspect_since: int
    store_key: str
    size: int
    data_set_offset: int
    series_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    stored_at: int
    calling_ae: str = ""
    called_ae: str = ""
    priority: int = Priority.NORMAL
    study_uid: str = ""
    hours: str = ""
    member: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryResult:
    """How an attempt ended.

    Attributes:
        owner: The worker that leased the delivery. If another owner has it by now, the result is ignored.
        state: DELIVERED, RETRY (with `next_at`), DEAD or DROPPED.
        last_status: DIMSE status of the response (PS3.7 Annex C); None without a response.
        last_error: Why the attempt failed, for people, or empty.
        next_at: Time of the next attempt; 0 unless `state` is RETRY.
        size: Bytes that were sent, for the throughput.
        breaks, suspect_since: New values, as in `Delivery`.
        attempted: Whether it counts as an attempt.
        duration_ms: Time from the first byte of the attempt to its end; None if nothing was sent.
        calling_ae, called_ae: AE titles of the association, for the audit trail; empty for the configured
            ones.
        wants_commitment: Whether the destination is to be asked to commit, if `state` is DELIVERED.
    """

    id: int
    owner: str
    state: DeliveryState
    last_status: int | None = None
    last_error: str = ""
    next_at: int = 0
    size: int = 0
    breaks: int = 0
    suspect_since: int = 0
    attempted: bool = True
    duration_ms: int | None = None
    calling_ae: str = ""
    called_ae: str = ""
    wants_commitment: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryRow:
    """A row of `deliveries`."""

    id: int
    instance_id: int
    destination: str
    state: DeliveryState
    attempts: int
    next_at: int
    lease_owner: str | None
    lease_until: int | None
    last_status: int | None
    last_error: str | None
    created_at: int
    updated_at: int
    breaks: int
    suspect_since: int
    duration_ms: int | None = None
    priority: int = Priority.NORMAL
    commitment: str = "none"
    commitment_request_id: int | None = None
    awaits: str = ""
    hours: str = ""
    member: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """An attempt that did not deliver.

    Attributes:
        number: 1 for the first attempt of a delivery. A gap shows that attempts in between were not kept.
        ended_at: End of the attempt, in Unix milliseconds.
        duration_ms: As in `DeliveryResult`.
        state: State of the delivery after it.
        status: DIMSE status of the response; None without a response.
        error: Why it failed, for people. An error comment of a remote may contain patient data.
        next_at: Time of the next attempt; 0 if there was none.
    """

    delivery_id: int
    number: int
    ended_at: int
    duration_ms: int | None
    state: DeliveryState
    status: int | None
    error: str
    next_at: int


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of rows.

    Attributes:
        instances: By state; a state without rows is missing.
        deliveries: By destination and then by state; a state without rows is missing.
    """

    instances: Mapping[InstanceState, int]
    deliveries: Mapping[str, Mapping[DeliveryState, int]]
