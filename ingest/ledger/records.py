"""What goes into the ledger and comes out of it, as values; times are Unix milliseconds."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Final

SPOOL_DAMAGE: Final = "damaged in the spool"
"""First words of `Instance.note` of a record with wrong bytes; a colon and the explanation follow."""


class InstanceState(StrEnum):
    """What became of an instance that was received."""

    STORED = "stored"
    """In the store under its own name."""
    VARIANT = "variant"
    """In the store beside the first one of its UID, in another transfer syntax. It goes to those
    destinations that have accepted no other object of its UID."""
    QUARANTINED = "quarantined"
    """In the quarantine folder; the note says why."""
    REPLACED = "replaced"
    """Its file gave way to another of the same UID: `[store] duplicates = "overwrite"`, or a release."""
    REMOVING = "removing"
    """Its file is about to be removed from the store."""
    REMOVED = "removed"
    """Its file was removed from the store, or dropped from quarantine."""


class DeliveryState(StrEnum):
    """How far the delivery of one instance to one destination is."""

    WAITING = "waiting"
    SENDING = "sending"
    DELIVERED = "delivered"
    RETRY = "retry"
    DEAD = "dead"
    DROPPED = "dropped"


class Outcome(Enum):
    """What `Instances.record` did with one instance."""

    RECORDED = "recorded"
    """It has a new row, and its deliveries wait."""
    KNOWN = "known"
    """Its spool reference had a row already; nothing changed."""
    TAKEN = "taken"
    """Its file in the store belongs to the row of another reference; nothing changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewInstance:
    """An instance to record.

    Attributes:
        state: What became of it.
        store_key: Its name below the store's root; below the quarantine folder where it is quarantined.
        size: Bytes of the whole Part 10 file.
        data_set_offset: Where in the file its data set begins.
        source: Presentation address of who sent it, as in the File Meta (0002,0026).
        spool_ref: Spool id, ":", and place in the spool; unique for ever.
        note: What an operator should know, or empty.
        routed: Names of the rules that took it, or why none did.
        destinations: Names of the destinations that it is to be delivered to.
        replaces: Whether what is stored of the same SOP instance UID gives way to this one.
        copy_digest: Of a further stored copy of its SOP instance UID the digest of its content; else empty.
        refused_status: What its sender was answered, where only a copy of a refused instance is kept; 0 where
            it was Success.
        times: How often the same thing came; more than once only in quarantine.
        content_digest: Of its content, in quarantine; else empty.
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
    destinations: tuple[str, ...] = ()
    replaces: bool = False
    copy_digest: str = ""
    refused_status: int = 0
    times: int = 1
    content_digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """A row of `instances`; the names are those of `NewInstance`."""

    id: int
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

    @property
    def is_damaged_in_spool(self) -> bool:
        """Whether the file is not what was received, though it may well be a readable DICOM file."""
        return self.note.startswith(SPOOL_DAMAGE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A leased delivery, with what is needed to send its instance.

    Attributes:
        attempts: How often it was leased, this time included.
        lease_until: When others may take it.
        created_at: Since when it is owed.
        breaks: Associations that ended with this instance in hand.
        suspect_since: Since when it is suspected of breaking them, in Unix milliseconds; 0 where it is not.
        store_key, size, data_set_offset: Of the instance's file.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryResult:
    """How an attempt ended.

    Attributes:
        owner: Who leased the delivery; if it is somebody else's by now, the result counts for nothing.
        state: DELIVERED, RETRY (with `next_at`), DEAD or DROPPED.
        last_status: The DIMSE status of the answer (PS3.7 C), or None where there was none.
        last_error: Why it failed, in words, or empty.
        next_at: When to try again; 0 unless `state` is RETRY.
        size: Bytes that went to the remote, for its throughput.
        breaks, suspect_since: As in `Delivery`, from now on.
        attempted: Whether it counts as an attempt.
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


@dataclass(frozen=True, slots=True)
class Counts:
    """How many rows there are.

    Attributes:
        instances: By state; a state without rows is missing.
        deliveries: By destination, then by state; likewise.
    """

    instances: Mapping[InstanceState, int]
    deliveries: Mapping[str, Mapping[DeliveryState, int]]
