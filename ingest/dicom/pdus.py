"""Content of A-ASSOCIATE and A-ABORT PDUs (PS3.8 9.3). `ingest.dicom.wire` reads and writes the bytes."""

from dataclasses import dataclass

from ingest.dicom.uids import APPLICATION_CONTEXT, IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION

DEFAULT_PEER_PDU_LENGTH = 16384
"""Assumed for a peer that omits the mandatory maximum length. Implementations commonly receive this much."""


@dataclass(frozen=True, slots=True)
class ProposedContext:
    """A presentation context of an A-ASSOCIATE-RQ (PS3.8 Table 9-13)."""

    context_id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RoleSelection:
    """SCP/SCU role selection (PS3.7 D.3.3.4): roles that the requestor proposes, or that it may take."""

    sop_class_uid: str
    scu: bool
    scp: bool


@dataclass(frozen=True, slots=True)
class AssociateRequest:
    """A-ASSOCIATE-RQ (PS3.8 9.3.2).

    Attributes:
        called_ae: Called AE title up to its first NUL, without spaces around it (PS3.8 says that they are not
            significant). May be empty. Characters outside VR AE are "?".
        calling_ae: Calling AE title, likewise.
        max_pdu_length: Maximum length of a P-DATA-TF to the requestor, in bytes; 0 is unlimited.
        async_operations: Proposed maximum operations (invoked, performed), 0 unlimited; None without a
            proposal.
        user_identity: Whether there is a user identity sub-item. Its content is not kept.
        protocol_version: Bit 0 is version 1.
        title_fields: Bytes 11 to 74 as received: both AE titles and reserved bytes. The acceptor returns
            them.
            Empty if the request was not decoded from bytes.
    """

    called_ae: str
    calling_ae: str
    application_context: str = APPLICATION_CONTEXT
    contexts: tuple[ProposedContext, ...] = ()
    max_pdu_length: int = DEFAULT_PEER_PDU_LENGTH
    implementation_class_uid: str = IMPLEMENTATION_CLASS_UID
    implementation_version: str = IMPLEMENTATION_VERSION
    async_operations: tuple[int, int] | None = None
    roles: tuple[RoleSelection, ...] = ()
    user_identity: bool = False
    protocol_version: int = 1
    title_fields: bytes = b""


@dataclass(frozen=True, slots=True)
class ContextResult:
    """A presentation context of an A-ASSOCIATE-AC (PS3.8 Table 9-18).

    Attributes:
        result: 0 acceptance, 1 user-rejection, 2 no reason (provider-rejection), 3 abstract syntax not
            supported, 4 transfer syntaxes not supported.
        transfer_syntax: The chosen one; empty if the context was not accepted.
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
    roles: tuple[RoleSelection, ...] = ()
    title_fields: bytes = b""


@dataclass(frozen=True, slots=True)
class AssociateReject:
    """A-ASSOCIATE-RJ (PS3.8 Table 9-21). `str()` returns it in words."""

    result: int  # 1 rejected-permanent, 2 rejected-transient
    source: int  # 1 service-user, 2 service-provider (ACSE), 3 service-provider (presentation)
    reason: int

    @property
    def permanent(self) -> bool:
        """Whether the same proposal will be rejected again."""
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
