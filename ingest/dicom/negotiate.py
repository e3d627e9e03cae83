"""Negotiation: an acceptor's answer to an A-ASSOCIATE-RQ, as a pure function (PS3.8 7.1, PS3.7 D.3)."""

from dataclasses import dataclass, replace

from ingest.dicom import (
    registry,  # noqa: F401 - before the fork: all listeners share its memory
    uids,
)
from ingest.dicom.admission import RejectionCause, is_same_title
from ingest.dicom.pdus import (
    APPLICATION_CONTEXT_NOT_SUPPORTED,
    CALLED_AE_NOT_RECOGNIZED,
    LOCAL_LIMIT_EXCEEDED,
    NO_REASON_GIVEN,
    PROTOCOL_VERSION_NOT_SUPPORTED,
    AssociateAccept,
    AssociateReject,
    AssociateRequest,
    ContextResult,
    ProposedContext,
    RoleSelection,
)

__all__ = ["Accepted", "AcceptedContext", "AcceptorPolicy", "Rejected", "local_limit_exceeded", "negotiate"]

# PS3.8 Table 9-18, byte 7: result/reason
ACCEPTANCE, ABSTRACT_SYNTAX_NOT_SUPPORTED, TRANSFER_SYNTAXES_NOT_SUPPORTED = 0, 3, 4

_COMMITMENT_SYNTAXES = (uids.EXPLICIT_LITTLE_ENDIAN, uids.IMPLICIT_LITTLE_ENDIAN)
_LAST_CHOICE = uids.DEFLATED | {uids.EXPLICIT_BIG_ENDIAN}


@dataclass(frozen=True, slots=True)
class AcceptorPolicy:
    """The contexts that this node accepts, with the permissions of one requestor.

    Attributes:
        ae_title: Our AE title.
        check_called_ae: Whether to reject a called AE title that is not ours.
        other_ae_titles: Further AE titles of ours.
        max_pdu_length: Maximum length of a P-DATA-TF to us, in bytes; 0 is unlimited.
        transfer_syntaxes: UIDs or glob patterns. "*" alone means all that DICOM defines for data sets, now or
            later. A private one must be named, because its encoding is unknown.
        prefer_transfer_syntaxes: UIDs or glob patterns. Of the proposed transfer syntaxes, the first of this
            list is chosen. Without one of them, the requestor's order counts.
        accept_unknown_sop_classes: Whether to accept SOP classes as storage that no register has, because
            they are private or newer than ours.
        max_operations: Upper bound of outstanding operations, if the requestor proposes a window.
        sop_classes: Glob patterns of what this requestor may store: UIDs, keywords or names of PS3.6.
        node_sop_classes: Glob patterns of what any requestor may store.
        rejected_sop_classes: Glob patterns of what no requestor may store.
        ignore_ae_title_case: Whether AE titles that differ only in capitals are equal.
        allow_commitment: Whether this requestor may ask for storage commitment (PS3.4 J).
        allow_commitment_reports: Whether it may report storage commitment to us, as the SCP of the class.
    """

    ae_title: str
    check_called_ae: bool = False
    max_pdu_length: int = 131072
    transfer_syntaxes: tuple[str, ...] = ("*",)
    prefer_transfer_syntaxes: tuple[str, ...] = (uids.EXPLICIT_LITTLE_ENDIAN, uids.IMPLICIT_LITTLE_ENDIAN)
    accept_unknown_sop_classes: bool = True
    max_operations: int = 1
    allow_store: bool = True
    allow_echo: bool = True
    sop_classes: tuple[str, ...] = ("*",)
    node_sop_classes: tuple[str, ...] = ("*",)
    rejected_sop_classes: tuple[str, ...] = ()
    ignore_ae_title_case: bool = False
    allow_commitment: bool = False
    allow_commitment_reports: bool = False
    other_ae_titles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AcceptedContext:
    """An accepted presentation context."""

    abstract_syntax: str
    transfer_syntax: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """The association is accepted, perhaps without any accepted context. Each rejected context has a reason.

    Attributes:
        pdu: The answer.
        contexts: Accepted contexts by ID.
        peer_max_pdu_length: Maximum length of a P-DATA-TF to the requestor, in bytes; 0 is unlimited.
        operations: Upper bound of the requestor's outstanding operations; 1 is synchronous.
        allows_priority: Whether Priority HIGH of the requestor counts (`Admission`).
    """

    pdu: AssociateAccept
    contexts: dict[int, AcceptedContext]
    peer_max_pdu_length: int
    operations: int
    allows_priority: bool = False


@dataclass(frozen=True, slots=True)
class Rejected:
    """The association is rejected.

    Attributes:
        pdu: The answer.
        reason: One line for the log.
        is_failure: Whether the rejection counts as a failure of the requestor's address.
        count: Rejections of this requestor by a limit in this minute, with this one.
        cause: The reason for counting.
    """

    pdu: AssociateReject
    reason: str
    is_failure: bool = True
    count: int = 1
    cause: RejectionCause = RejectionCause.OTHER


def local_limit_exceeded(
    reason: str, count: int = 1, cause: RejectionCause = RejectionCause.LIMIT
) -> Rejected:
    """Make the transient rejection for too many associations, a full spool or a draining node."""
    return Rejected(LOCAL_LIMIT_EXCEEDED, reason, is_failure=False, count=count, cause=cause)


def negotiate(request: AssociateRequest, policy: AcceptorPolicy) -> Accepted | Rejected:
    """Return the answer to `request`. Admission (`ingest.dicom.admission`) has been decided before."""
    if not request.protocol_version & 1:  # PS3.8 Table 9-11: a receiver tests bit 0 alone
        version = f"protocol version {request.protocol_version:04X}H lacks bit 0"
        return Rejected(PROTOCOL_VERSION_NOT_SUPPORTED, version, cause=RejectionCause.PROTOCOL_VERSION)
    if request.application_context != uids.APPLICATION_CONTEXT:
        name = f"application context {request.application_context!r} is not DICOM's"
        return Rejected(APPLICATION_CONTEXT_NOT_SUPPORTED, name, cause=RejectionCause.APPLICATION_CONTEXT)
    if not request.called_ae:  # PS3.8 Table 9-11: 16 spaces are no AE title
        cause = RejectionCause.CALLED_AE
        return Rejected(CALLED_AE_NOT_RECOGNIZED, "the called AE title is empty", cause=cause)
    ours = (policy.ae_title, *policy.other_ae_titles)
    if policy.check_called_ae and not any(
        is_same_title(title, request.called_ae, ignore_case=policy.ignore_ae_title_case) for title in ours
    ):
        called = f"called AE title {request.called_ae!r} is not ours, {' or '.join(map(repr, ours))}"
        return Rejected(CALLED_AE_NOT_RECOGNIZED, called, cause=RejectionCause.CALLED_AE)
    if not request.contexts:
        # PS3.8 Table 9-17: an A-ASSOCIATE-AC has at least one. Monitors test in this way whether we run.
        reason = "no presentation context is proposed"
        return Rejected(NO_REASON_GIVEN, reason, is_failure=False, cause=RejectionCause.NO_CONTEXT)
    return _accept(request, policy)


class _Chooser:
    """Chooser of a transfer syntax. Many contexts propose the same ones, so patterns are compiled once."""

    def __init__(self, policy: AcceptorPolicy) -> None:
        patterns = policy.transfer_syntaxes
        self._takes_all = "*" in patterns
        self._match = uids.compile_patterns(tuple(pattern for pattern in patterns if pattern != "*")).match
        self._preferred = [
            uids.compile_patterns((pattern,)).match for pattern in policy.prefer_transfer_syntaxes
        ]
        self._chosen: dict[tuple[str, ...], str | None] = {}

    def choose(self, proposed: tuple[str, ...]) -> str | None:
        """Choose one of the proposed transfer syntaxes; None if none is acceptable."""
        if proposed not in self._chosen:
            self._chosen[proposed] = self._choose_first([uid for uid in proposed if self._is_acceptable(uid)])
        return self._chosen[proposed]

    def _choose_first(self, acceptable: list[str]) -> str | None:
        """Choose the first as proposed. Deflated and (retired) big endian come last.

        If the first is a preferred transfer syntax, the most preferred of the proposed ones takes its place.
        """
        if not acceptable:
            return None
        first = next((uid for uid in acceptable if uid not in _LAST_CHOICE), acceptable[0])
        if not any(match(first) for match in self._preferred):
            return first
        return next(uid for match in self._preferred for uid in acceptable if match(uid))

    def _is_acceptable(self, uid: str) -> bool:
        if self._takes_all and uids.is_data_set_transfer_syntax(uid):
            return True
        return self._match(uid) is not None and uids.is_valid_uid(uid)


def _accept(request: AssociateRequest, policy: AcceptorPolicy) -> Accepted:
    # If a SOP class has several role selections, the first counts.
    roles = {role.sop_class_uid: role for role in reversed(request.roles)}
    # `transfer_syntaxes` is about stored data sets: C-ECHO has none, and N-ACTION one that is not stored.
    choosers = {
        uids.VERIFICATION: _Chooser(replace(policy, transfer_syntaxes=("*",))),
        uids.STORAGE_COMMITMENT: _Chooser(replace(policy, transfer_syntaxes=_COMMITMENT_SYNTAXES)),
    }
    store = _Chooser(policy)
    results = tuple(
        _decide(context, policy, roles, choosers.get(context.abstract_syntax, store))
        for context in request.contexts
    )
    accepted = {
        result.context_id: AcceptedContext(context.abstract_syntax, result.transfer_syntax)
        for context, result in zip(request.contexts, results, strict=True)
        if result.result == ACCEPTANCE
    }
    classes = {context.abstract_syntax for context in accepted.values()}
    window = _operations(request, policy)
    answer = AssociateAccept(
        called_ae=request.called_ae,
        calling_ae=request.calling_ae,
        contexts=results,
        max_pdu_length=policy.max_pdu_length,
        async_operations=window,
        # PS3.7 D.3.3.4: answer a proposal.
        roles=tuple(_answer_role(role, policy) for uid, role in roles.items() if uid in classes),
        title_fields=request.title_fields,
    )
    return Accepted(answer, accepted, request.max_pdu_length, window[0] if window else 1)


def _answer_role(role: RoleSelection, policy: AcceptorPolicy) -> RoleSelection:
    """Answer a proposed role: SCU of what we accept, or SCP that reports storage commitment."""
    if role.sop_class_uid != uids.STORAGE_COMMITMENT:
        return RoleSelection(role.sop_class_uid, scu=True, scp=False)
    return RoleSelection(
        role.sop_class_uid,
        scu=role.scu and policy.allow_commitment,
        scp=role.scp and policy.allow_commitment_reports,
    )


def _may_take_role(abstract_syntax: str, role: RoleSelection | None, policy: AcceptorPolicy) -> bool:
    """Return whether the requestor has a role that we can serve. A requestor that proposes none is SCU."""
    if abstract_syntax != uids.STORAGE_COMMITMENT:
        # A requestor that wants to be SCP only (C-GET) cannot use our storage of this class.
        return role is None or role.scu
    if role is None:
        return policy.allow_commitment
    answer = _answer_role(role, policy)
    return answer.scu or answer.scp


def _operations(request: AssociateRequest, policy: AcceptorPolicy) -> tuple[int, int] | None:
    """Answer PS3.7 D.3.3.3: neither number may exceed the proposal. We invoke none, and 1 is the minimum."""
    if request.async_operations is None:
        return None
    invoked = request.async_operations[0]
    return min(invoked or policy.max_operations, policy.max_operations), 1


def _decide(
    context: ProposedContext, policy: AcceptorPolicy, roles: dict[str, RoleSelection], chooser: _Chooser
) -> ContextResult:
    """Decide about one context. PS3.8 9.3.3.2 demands a transfer syntax also in a refused one."""
    abstract = context.abstract_syntax
    unused = next(iter(context.transfer_syntaxes), uids.IMPLICIT_LITTLE_ENDIAN)
    role = roles.get(abstract)
    if not _serves(abstract, policy) or not _may_take_role(abstract, role, policy):
        return ContextResult(context.context_id, ABSTRACT_SYNTAX_NOT_SUPPORTED, unused)
    chosen = chooser.choose(context.transfer_syntaxes)
    if chosen is None:
        return ContextResult(context.context_id, TRANSFER_SYNTAXES_NOT_SUPPORTED, unused)
    return ContextResult(context.context_id, ACCEPTANCE, chosen)


def _serves(abstract_syntax: str, policy: AcceptorPolicy) -> bool:
    if abstract_syntax == uids.VERIFICATION:
        return policy.allow_echo
    if abstract_syntax == uids.STORAGE_COMMITMENT:
        return policy.allow_commitment or policy.allow_commitment_reports
    return (
        policy.allow_store
        and _is_storage(abstract_syntax, policy)
        and uids.matches_any_pattern(abstract_syntax, policy.sop_classes)
        and uids.matches_any_pattern(abstract_syntax, policy.node_sop_classes)
        and not uids.matches_any_pattern(abstract_syntax, policy.rejected_sop_classes)
    )


def _is_storage(abstract_syntax: str, policy: AcceptorPolicy) -> bool:
    if abstract_syntax in uids.storage_classes():
        return True
    return (
        policy.accept_unknown_sop_classes
        and abstract_syntax not in uids.other_registered_uids()
        and uids.is_valid_uid(abstract_syntax)
    )
