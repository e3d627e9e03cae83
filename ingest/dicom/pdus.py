"""What A-ASSOCIATE and A-ABORT PDUs say (PS3.8 9.3); `ingest.dicom.wire` reads and writes their bytes."""

from dataclasses import dataclass

from ingest.dicom.uids import APPLICATION_CONTEXT, IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION

DEFAULT_PEER_PDU_LENGTH = 16384
"""Taken for a peer that leaves out the mandatory maximum length; what implementations commonly receive."""


@dataclass(frozen=True, slots=True)
class ProposedContext:
    """A presentation context of an A-ASSOCIATE-RQ (PS3.8 Table 9-13)."""

    context_id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Role:
    """SCP/SCU role selection (PS3.7 D.3.3.4): what the requestor proposes to be, or may be."""

    sop_class_uid: str
    scu: bool
    scp: bool


@dataclass(frozen=True, slots=True)
class AssociateRequest:
    """A-ASSOCIATE-RQ (PS3.8 9.3.2).

    Attributes:
        called_ae: Up to its first NUL, without leading and trailing spaces, which PS3.8 says do not count;
            may be empty. What VR AE does not have is "?".
        calling_ae: Likewise.
        max_pdu_length: The longest P-DATA-TF that the requestor takes, in bytes; 0 is unlimited.
        async_operations: Maximum operations (invoked, performed) asked for, 0 unlimited; None when not asked.
        user_identity: Whether there is a user identity sub-item; what it says is not kept.
        protocol_version: Bit 0 is version 1.
        title_fields: Bytes 11 to 74 as received (both AE titles and what is reserved): the acceptor sends
            them back. Empty where the request was not decoded from bytes.
    """

    called_ae: str
    calling_ae: str
    application_context: str = APPLICATION_CONTEXT
    contexts: tuple[ProposedContext, ...] = ()
    max_pdu_length: int = DEFAULT_PEER_PDU_LENGTH
    implementation_class_uid: str = IMPLEMENTATION_CLASS_UID
    implementation_version: str = IMPLEMENTATION_VERSION
    async_operations: tuple[int, int] | None = None
    roles: tuple[Role, ...] = ()
    user_identity: bool = False
    protocol_version: int = 1
    title_fields: bytes = b""


@dataclass(frozen=True, slots=True)
class ContextResult:
    """A presentation context of an A-ASSOCIATE-AC (PS3.8 Table 9-18).

    Attributes:
        result: 0 acceptance, 1 user-rejection, 2 no reason (provider-rejection), 3 abstract syntax not
            supported, 4 transfer syntaxes not supported.
        transfer_syntax: The chosen one; empty when decoded from a context that was not accepted.
    """

    context_id: int
    result: int
    transfer_syntax: str


@dataclass(frozen=True, slots=True)
class AssociateAccept:
    """A-ASSOCIATE-AC (PS3.8 9.3.3); attributes as in AssociateRequest."""

    called_ae: str
    calling_ae: str
    contexts: tuple[ContextResult, ...] = ()
    max_pdu_length: int = DEFAULT_PEER_PDU_LENGTH
    implementation_class_uid: str = IMPLEMENTATION_CLASS_UID
    implementation_version: str = IMPLEMENTATION_VERSION
    async_operations: tuple[int, int] | None = None
    roles: tuple[Role, ...] = ()
    title_fields: bytes = b""


@dataclass(frozen=True, slots=True)
class AssociateReject:
    """A-ASSOCIATE-RJ (PS3.8 Table 9-21); `str()` of it says it in words."""

    result: int  # 1 rejected-permanent, 2 rejected-transient
    source: int  # 1 service-user, 2 service-provider (ACSE), 3 service-provider (presentation)
    reason: int

    @property
    def permanent(self) -> bool:
        """Whether the same proposal will be refused again."""
        return self.result != 2

    def __str__(self) -> str:
        kind = "permanent" if self.permanent else "transient"
        return f"rejected ({kind}): {_REJECT_REASONS.get((self.source, self.reason), 'no reason given')}"


_REJECT_REASONS = {
    (1, 2): "application context name not supported",
    (1, 3): "calling AE title not recognized",
    (1, 7): "called AE title not recognized",
    (2, 2): "protocol version not supported",
    (3, 1): "temporary congestion",
    (3, 2): "local limit exceeded",
}

APPLICATION_CONTEXT_NOT_SUPPORTED = AssociateReject(1, 1, 2)
CALLING_AE_NOT_RECOGNIZED = AssociateReject(1, 1, 3)
CALLED_AE_NOT_RECOGNIZED = AssociateReject(1, 1, 7)
PROTOCOL_VERSION_NOT_SUPPORTED = AssociateReject(1, 2, 2)
NO_REASON_GIVEN = AssociateReject(1, 2, 1)
"""For a request that proposes nothing."""
LOCAL_LIMIT_EXCEEDED = AssociateReject(2, 3, 2)
"""For too many associations, a full spool, a node that is draining."""


@dataclass(frozen=True, slots=True)
class Abort:
    """A-ABORT (PS3.8 Table 9-26): source 0 service-user, 2 service-provider; reason as in PeerError."""

    source: int
    reason: int
