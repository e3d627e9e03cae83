"""The answer of an acceptor to an A-ASSOCIATE-RQ, as a pure function (PS3.8 7.1, PS3.7 D.3)."""

from dataclasses import dataclass, replace

from ingest.dicom import (
    registry,  # noqa: F401 - before the fork: all listeners share its memory
    uids,
)
from ingest.dicom.admission import is_same_title
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
    Role,
)

__all__ = ["Accepted", "AcceptedContext", "AcceptorPolicy", "Rejected", "local_limit_exceeded", "negotiate"]

# PS3.8 Table 9-18, byte 7: result/reason
ACCEPTANCE, ABSTRACT_SYNTAX_NOT_SUPPORTED, TRANSFER_SYNTAXES_NOT_SUPPORTED = 0, 3, 4

_LAST_CHOICE = uids.DEFLATED | {uids.EXPLICIT_BIG_ENDIAN}


@dataclass(frozen=True, slots=True)
class AcceptorPolicy:
    """What this node takes; the caller's own permissions are in `allow_store` and `allow_echo`.

    Attributes:
        ae_title: Our AE title.
        check_called_ae: Refuse callers that call somebody else.
        max_pdu_length: The longest P-DATA-TF that we take, in bytes; 0 is unlimited.
        transfer_syntaxes: UIDs or glob patterns. "*" alone means all that DICOM defines for data sets, now
            or later; a private one has to be named, since how it encodes a data set cannot be known.
        prefer_transfer_syntaxes: UIDs or glob patterns: of those that are proposed together the first of this
            list is taken. What is not on the list keeps the place that the caller gave it.
        accept_unknown_sop_classes: Take SOP classes that no register names (private, or newer than ours) as
            storage.
        max_operations: The most operations that a requestor may have outstanding, if it asks.
        sop_classes: Glob patterns of what the caller may store: UIDs, keywords or names of PS3.6.
        node_sop_classes: The same of what anybody may.
        rejected_sop_classes: The same of what nobody may.
        ignore_ae_title_case: Whether AE titles that differ in capitals only are one.
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


@dataclass(frozen=True, slots=True)
class AcceptedContext:
    """An accepted presentation context."""

    abstract_syntax: str
    transfer_syntax: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """The association is accepted, even when no context is: then each carries its reason.

    Attributes:
        pdu: The answer.
        contexts: The accepted contexts by ID.
        peer_max_pdu_length: The longest P-DATA-TF to send, in bytes; 0 is unlimited.
        operations: How many operations the requestor may have outstanding; 1 is synchronous.
    """

    pdu: AssociateAccept
    contexts: dict[int, AcceptedContext]
    peer_max_pdu_length: int
    operations: int


@dataclass(frozen=True, slots=True)
class Rejected:
    """The association is refused.

    Attributes:
        pdu: The answer.
        reason: One line for the log.
        is_failure: Whether it counts among the failures of the caller's address.
        count: How often this caller was refused for the same kind of reason in this minute.
    """

    pdu: AssociateReject
    reason: str
    is_failure: bool = True
    count: int = 1


def local_limit_exceeded(reason: str, count: int = 1) -> Rejected:
    """The transient refusal of too many associations, a full spool or a node that is draining."""
    return Rejected(LOCAL_LIMIT_EXCEEDED, reason, is_failure=False, count=count)


def negotiate(request: AssociateRequest, policy: AcceptorPolicy) -> Accepted | Rejected:
    """The answer to `request`; admission of the caller (`ingest.dicom.admission`) comes before."""
    if not request.protocol_version & 1:  # PS3.8 Table 9-11: a receiver tests bit 0 alone
        version = f"protocol version {request.protocol_version:04X}H lacks bit 0"
        return Rejected(PROTOCOL_VERSION_NOT_SUPPORTED, version)
    if request.application_context != uids.APPLICATION_CONTEXT:
        name = f"application context {request.application_context!r} is not DICOM's"
        return Rejected(APPLICATION_CONTEXT_NOT_SUPPORTED, name)
    if not request.called_ae:  # PS3.8 Table 9-11: 16 spaces are no AE title
        return Rejected(CALLED_AE_NOT_RECOGNIZED, "the called AE title is empty")
    if policy.check_called_ae and not is_same_title(
        policy.ae_title, request.called_ae, ignore_case=policy.ignore_ae_title_case
    ):
        called = f"called AE title {request.called_ae!r} is not ours, {policy.ae_title!r}"
        return Rejected(CALLED_AE_NOT_RECOGNIZED, called)
    if not request.contexts:
        # PS3.8 Table 9-17: an A-ASSOCIATE-AC has one at least. Monitors ask in this way whether we live.
        return Rejected(NO_REASON_GIVEN, "no presentation context is proposed", is_failure=False)
    return _accept(request, policy)


class _Chooser:
    """Choose a transfer syntax of those that a context proposes; many contexts propose the same ones."""

    def __init__(self, policy: AcceptorPolicy) -> None:
        patterns = policy.transfer_syntaxes
        self._takes_all = "*" in patterns
        self._match = uids.any_of(tuple(pattern for pattern in patterns if pattern != "*")).match
        self._preferred = [uids.any_of((pattern,)).match for pattern in policy.prefer_transfer_syntaxes]
        self._chosen: dict[tuple[str, ...], str | None] = {}

    def choose(self, proposed: tuple[str, ...]) -> str | None:
        """The one to take, or None where none can be."""
        if proposed not in self._chosen:
            self._chosen[proposed] = self._first([uid for uid in proposed if self._takes(uid)])
        return self._chosen[proposed]

    def _first(self, acceptable: list[str]) -> str | None:
        """The first one as proposed; deflated or (retired) big endian if there is nothing else.

        Where that is one of the preferred, the most preferred of those proposed is taken instead.
        """
        if not acceptable:
            return None
        first = next((uid for uid in acceptable if uid not in _LAST_CHOICE), acceptable[0])
        if not any(match(first) for match in self._preferred):
            return first
        return next(uid for match in self._preferred for uid in acceptable if match(uid))

    def _takes(self, uid: str) -> bool:
        if self._takes_all and uids.is_data_set_transfer_syntax(uid):
            return True
        return self._match(uid) is not None and uids.is_valid_uid(uid)


def _accept(request: AssociateRequest, policy: AcceptorPolicy) -> Accepted:
    # Where a class is proposed in several role selections, the first counts.
    roles = {role.sop_class_uid: role for role in reversed(request.roles)}
    # A C-ECHO carries no data set, so what instances are taken in says nothing of it.
    echo, store = _Chooser(replace(policy, transfer_syntaxes=("*",))), _Chooser(policy)
    results = tuple(
        _decide(context, policy, roles, echo if context.abstract_syntax == uids.VERIFICATION else store)
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
        # PS3.7 D.3.3.4: answered when asked; the requestor is SCU, never SCP, of what we accept.
        roles=tuple(Role(uid, scu=True, scp=False) for uid in roles if uid in classes),
        title_fields=request.title_fields,
    )
    return Accepted(answer, accepted, request.max_pdu_length, window[0] if window else 1)


def _operations(request: AssociateRequest, policy: AcceptorPolicy) -> tuple[int, int] | None:
    """PS3.7 D.3.3.3: neither number may exceed what was asked; we invoke none, of which 1 is the least."""
    if request.async_operations is None:
        return None
    invoked = request.async_operations[0]
    return min(invoked or policy.max_operations, policy.max_operations), 1


def _decide(
    context: ProposedContext, policy: AcceptorPolicy, roles: dict[str, Role], chooser: _Chooser
) -> ContextResult:
    """One context; PS3.8 9.3.3.2 wants a transfer syntax in a refused one, too, though it means nothing."""
    abstract = context.abstract_syntax
    unused = next(iter(context.transfer_syntaxes), uids.IMPLICIT_LITTLE_ENDIAN)
    role = roles.get(abstract)
    if not _serves(abstract, policy) or (role is not None and not role.scu):
        # A requestor that would be SCP only (C-GET) has no use for what we do with this class.
        return ContextResult(context.context_id, ABSTRACT_SYNTAX_NOT_SUPPORTED, unused)
    chosen = chooser.choose(context.transfer_syntaxes)
    if chosen is None:
        return ContextResult(context.context_id, TRANSFER_SYNTAXES_NOT_SUPPORTED, unused)
    return ContextResult(context.context_id, ACCEPTANCE, chosen)


def _serves(abstract_syntax: str, policy: AcceptorPolicy) -> bool:
    if abstract_syntax == uids.VERIFICATION:
        return policy.allow_echo
    return (
        policy.allow_store
        and _is_storage(abstract_syntax, policy)
        and uids.is_like(abstract_syntax, policy.sop_classes)
        and uids.is_like(abstract_syntax, policy.node_sop_classes)
        and not uids.is_like(abstract_syntax, policy.rejected_sop_classes)
    )


def _is_storage(abstract_syntax: str, policy: AcceptorPolicy) -> bool:
    if abstract_syntax in uids.storage_classes():
        return True
    return (
        policy.accept_unknown_sop_classes
        and abstract_syntax not in uids.other_registered()
        and uids.is_valid_uid(abstract_syntax)
    )
