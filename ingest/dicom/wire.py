"""Decode and encode A-ASSOCIATE, A-RELEASE and A-ABORT PDUs (PS3.8 9.3).

Every `decode_…` takes one complete PDU with its header, as the parser of ext/ frames it. INVARIANT 5: bad
bytes raise one error, PeerError. Every `encode_…` takes our own values, and raises ValueError for values
that cannot be sent.

pynetdicom's PDU classes are not used, because they are not made for hostile peers. They trust lengths, refuse
unknown items, and raise any exception (AssertionError, KeyError, struct.error; fewer under `python -O`). They
also issue a warning for each odd UID, whose text Python keeps. Code that checks all of this beforehand would
leave no work for them. The tests compare every PDU with them.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

from ingest.dicom import items
from ingest.dicom.pdus import (
    APPLICATION_CONTEXT_NOT_SUPPORTED,
    CALLED_AE_NOT_RECOGNIZED,
    CALLING_AE_NOT_RECOGNIZED,
    DEFAULT_PEER_PDU_LENGTH,
    LOCAL_LIMIT_EXCEEDED,
    NO_REASON_GIVEN,
    PROTOCOL_VERSION_NOT_SUPPORTED,
    Abort,
    AssociateAccept,
    AssociateReject,
    AssociateRequest,
    ContextResult,
    ProposedContext,
    RoleSelection,
)
from ingest.dicom.uids import APPLICATION_CONTEXT
from ingest.errors import PeerError

__all__ = [
    "ABORT",
    "APPLICATION_CONTEXT_NOT_SUPPORTED",
    "ASSOCIATE_AC",
    "ASSOCIATE_RJ",
    "ASSOCIATE_RQ",
    "CALLED_AE_NOT_RECOGNIZED",
    "CALLING_AE_NOT_RECOGNIZED",
    "DEFAULT_PEER_PDU_LENGTH",
    "LOCAL_LIMIT_EXCEEDED",
    "NO_REASON_GIVEN",
    "PROTOCOL_VERSION_NOT_SUPPORTED",
    "P_DATA_TF",
    "RELEASE_RP",
    "RELEASE_RQ",
    "SERVICE_PROVIDER",
    "SERVICE_USER",
    "Abort",
    "AssociateAccept",
    "AssociateReject",
    "AssociateRequest",
    "ContextResult",
    "ProposedContext",
    "RoleSelection",
    "decode_abort",
    "decode_associate_ac",
    "decode_associate_rj",
    "decode_associate_rq",
    "encode_abort",
    "encode_associate_ac",
    "encode_associate_rj",
    "encode_associate_rq",
]

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA_TF, RELEASE_RQ_TYPE, RELEASE_RP_TYPE, ABORT = range(1, 8)
"""PS3.8 9.3.1: PDU-type."""

RELEASE_RQ = b"\x05\x00\x00\x00\x00\x04\x00\x00\x00\x00"
"""PS3.8 Table 9-24."""
RELEASE_RP = b"\x06\x00\x00\x00\x00\x04\x00\x00\x00\x00"
"""PS3.8 Table 9-25."""

SERVICE_USER, SERVICE_PROVIDER = 0, 2
"""PS3.8 Table 9-26, byte 9: sources of an A-ABORT."""

_TITLES = 74  # PS3.8 Table 9-11: variable items begin at byte 75


def decode_associate_rq(data: bytes) -> AssociateRequest:
    """Decode an A-ASSOCIATE-RQ.

    A request that can still be answered is no error. The application context name and the contexts may be
    missing (both are then empty), and of repeated items the first counts. A context whose ID is even or
    repeated is left out.

    Raises:
        PeerError: Lengths do not agree.
    """
    _check_pdu(data, ASSOCIATE_RQ, _TITLES)
    variable = _variable_items(data)
    return AssociateRequest(
        called_ae=items.decode_ae_title(data[10:26]),  # PS3.8 Table 9-11, bytes 11-26
        calling_ae=items.decode_ae_title(data[26:42]),  # bytes 27-42
        application_context=variable.application_context,
        contexts=_proposed_contexts(variable.contexts),
        protocol_version=int.from_bytes(data[6:8]),  # bytes 7-8
        title_fields=data[10:_TITLES],
        **variable.user,
    )


def decode_associate_ac(data: bytes) -> AssociateAccept:
    """Decode an A-ASSOCIATE-AC, strict only where the requestor needs it (RFC 1122 1.2.2).

    An odd presentation context is left out or returned as rejected, without effect on the others. If an item
    is too long, the items before it count. Of the user information only the maximum length and the
    operations window are needed, and each has a default if it is unreadable.

    Raises:
        PeerError: The PDU has another type, is damaged before its first presentation context, or has a
            maximum length without room for a fragment.
    """
    _check_pdu(data, ASSOCIATE_AC, _TITLES)
    contexts: dict[int, ContextResult] = {}
    user: list[tuple[int, bytes]] = []
    end = _TITLES
    for kind, raw in items.iterate_items_to_damage(data, _TITLES):
        end += len(raw)
        if kind == items.CONTEXT_RESULT_ITEM:
            _add_result(contexts, items.read_context_result(raw))
        elif kind == items.USER_INFORMATION_ITEM:
            user.extend(items.iterate_items_to_damage(raw, 4))
    if not contexts and end < len(data):
        raise items.make_item_error("an A-ASSOCIATE-AC that is damaged before its first presentation context")
    first = dict(reversed(user))
    length, window = first.get(items.MAXIMUM_LENGTH, b""), first.get(items.ASYNC_OPERATIONS, b"")
    return AssociateAccept(
        called_ae=items.decode_text(data[10:26]),  # PS3.8 Table 9-17: reserved, shall not be tested
        calling_ae=items.decode_text(data[26:42]),
        contexts=tuple(contexts.values()),
        max_pdu_length=items.read_maximum_length(length) if len(length) == 8 else DEFAULT_PEER_PDU_LENGTH,
        implementation_class_uid=items.decode_text(first.get(items.IMPLEMENTATION_CLASS, b"")[4:]),
        implementation_version=items.decode_text(first.get(items.IMPLEMENTATION_VERSION, b"")[4:]),
        async_operations=items.read_async_operations(window) if len(window) == 8 else None,
        roles=tuple(_roles(raw for kind, raw in user if kind == items.ROLE_SELECTION)),
        title_fields=data[10:_TITLES],
    )


def _add_result(contexts: dict[int, ContextResult], found: tuple[int, int, str] | None) -> None:
    """Add the result of one context. Two different results for one context reject it."""
    if found is None:
        return
    result = ContextResult(*found)
    if contexts.setdefault(result.context_id, result) != result:
        contexts[result.context_id] = ContextResult(result.context_id, items.NO_REASON, "")


def _roles(sub_items: Iterable[bytes]) -> Iterator[RoleSelection]:
    for raw in sub_items:
        with suppress(PeerError):
            yield RoleSelection(*items.read_role(raw))


def decode_associate_rj(data: bytes) -> AssociateReject:
    """Decode an A-ASSOCIATE-RJ; PeerError if its length is not 4."""
    _check_pdu(data, ASSOCIATE_RJ, 10, exact=True)
    return AssociateReject(data[7], data[8], data[9])  # PS3.8 Table 9-21, bytes 8 to 10


def decode_abort(data: bytes) -> Abort:
    """Decode an A-ABORT; PeerError if its length is not 4."""
    _check_pdu(data, ABORT, 10, exact=True)
    return Abort(data[8], data[9])  # PS3.8 Table 9-26, bytes 9 and 10


def encode_associate_rq(request: AssociateRequest) -> bytes:
    """Encode an A-ASSOCIATE-RQ.

    Raises:
        ValueError: An AE title, UID, context ID or number does not fit into its field.
    """
    body = [_encode_proposed(context) for context in request.contexts]
    return _encode_associate(
        ASSOCIATE_RQ, request, request.application_context, body, request.protocol_version
    )


def encode_associate_ac(accept: AssociateAccept) -> bytes:
    """Encode an A-ASSOCIATE-AC; ValueError as for `encode_associate_rq`."""
    body = [_encode_result(context) for context in accept.contexts]
    return _encode_associate(ASSOCIATE_AC, accept, APPLICATION_CONTEXT, body, 1)


def encode_associate_rj(reject: AssociateReject) -> bytes:
    """Encode an A-ASSOCIATE-RJ."""
    return b"\x03\x00\x00\x00\x00\x04\x00" + bytes((reject.result, reject.source, reject.reason))


def encode_abort(source: int, reason: int = 0) -> bytes:
    """Encode an A-ABORT. From source 0 (service-user) the reason is not significant, and sent as 0."""
    return b"\x07\x00\x00\x00\x00\x04\x00\x00" + bytes((source, reason if source else 0))


@dataclass(slots=True)
class _Variable:
    application_context: str
    contexts: list[bytes]
    user: dict[str, Any]


_READERS: dict[int, tuple[str, Callable[[bytes], Any]]] = {
    items.MAXIMUM_LENGTH: ("max_pdu_length", items.read_maximum_length),
    items.IMPLEMENTATION_CLASS: ("implementation_class_uid", lambda item: items.decode_text(item[4:])),
    items.IMPLEMENTATION_VERSION: ("implementation_version", lambda item: items.decode_text(item[4:])),
    items.ASYNC_OPERATIONS: ("async_operations", items.read_async_operations),
    items.USER_IDENTITY: ("user_identity", lambda _: True),
}


def _check_pdu(data: bytes, pdu_type: int, minimum: int, *, exact: bool = False) -> None:
    """Check type and length (PS3.8 9.3: byte 1 type, byte 2 reserved, bytes 3-6 length of the rest)."""
    if len(data) < minimum or data[0] != pdu_type:
        raise items.make_item_error(f"{len(data)} bytes that are no PDU of type {pdu_type:02X}H")
    if int.from_bytes(data[2:6]) != len(data) - 6 or (exact and len(data) != minimum):
        raise items.make_item_error(f"a PDU of type {pdu_type:02X}H whose length is not that of its fields")


def _variable_items(data: bytes) -> _Variable:
    """Collect the items, in any order; skip unknown ones (PS3.8 9.3.1)."""
    names, users, contexts = [], [], []
    for kind, raw in items.iterate_items(data, _TITLES, len(data)):
        if kind == items.APPLICATION_CONTEXT_ITEM:
            names.append(raw)
        elif kind == items.PROPOSED_CONTEXT_ITEM:
            contexts.append(raw)
        elif kind == items.USER_INFORMATION_ITEM:
            users.append(raw)
    name = items.read_application_context(names[0]) if names else ""
    return _Variable(name, contexts, _user_information(users))


def _user_information(users: list[bytes]) -> dict[str, Any]:
    """Return keyword arguments of AssociateRequest from user information (PS3.8 Table 9-16, PS3.7 D.3.3).

    Of repeated sub-items the first readable one counts. An unreadable one counts as missing, because the
    standard has a default for each.
    """
    found: dict[str, Any] = {}
    roles = []
    for kind, raw in chain.from_iterable(items.iterate_items(item, 4, len(item)) for item in users):
        with suppress(PeerError):
            if kind == items.ROLE_SELECTION:
                roles.append(RoleSelection(*items.read_role(raw)))
            elif kind in _READERS:
                name, read = _READERS[kind]
                if name not in found:
                    found[name] = read(raw)
    defaults = {"implementation_class_uid": "", "implementation_version": "", "user_identity": False}
    return defaults | found | {"roles": tuple(roles)}


def _proposed_contexts(raw_contexts: list[bytes]) -> tuple[ProposedContext, ...]:
    """Return the contexts that can be answered: at most 128, because each needs an odd one-byte ID."""
    contexts: dict[int, ProposedContext] = {}
    for raw in raw_contexts:
        read = items.read_proposed_context(raw)
        if read is not None:
            contexts.setdefault(read[0], ProposedContext(*read))
    return tuple(contexts.values())


def _title_fields(called: str, calling: str) -> bytes:
    for title in (called, calling):
        if not 0 < len(title.strip()) <= len(title) <= 16 or not title.isascii() or not title.isprintable():
            raise ValueError(f"AE title {title!r} is not 1 to 16 printable ASCII characters")
    return called.ljust(16).encode() + calling.ljust(16).encode() + bytes(32)


def _encode_associate(
    pdu_type: int,
    pdu: AssociateRequest | AssociateAccept,
    application_context: str,
    contexts: list[bytes],
    protocol_version: int,
) -> bytes:
    body = b"".join(
        (
            protocol_version.to_bytes(2),  # PS3.8 Tables 9-11 and 9-17, bytes 7-8
            bytes(2),
            pdu.title_fields or _title_fields(pdu.called_ae, pdu.calling_ae),  # bytes 11-74
            _uid_item(items.APPLICATION_CONTEXT_ITEM, application_context),
            *contexts,
            _encode_user_information(pdu),
        )
    )
    return bytes((pdu_type, 0)) + len(body).to_bytes(4) + body


def _encode_user_information(pdu: AssociateRequest | AssociateAccept) -> bytes:
    """Encode PS3.8 Table 9-16, with the sub-items in the order of PS3.7 D.3.3."""
    version = pdu.implementation_version.encode("ascii")
    if len(version) > 16:
        raise ValueError(f"implementation version name {pdu.implementation_version!r} is longer than 16")
    user = [
        _item(items.MAXIMUM_LENGTH, _number(pdu.max_pdu_length, 4)),
        _uid_item(items.IMPLEMENTATION_CLASS, pdu.implementation_class_uid),
    ]
    if pdu.async_operations is not None:
        invoked, performed = pdu.async_operations
        user.append(_item(items.ASYNC_OPERATIONS, _number(invoked, 2) + _number(performed, 2)))
    for role in pdu.roles:
        uid = _uid(role.sop_class_uid)
        user.append(_item(items.ROLE_SELECTION, _number(len(uid), 2) + uid + bytes((role.scu, role.scp))))
    if version:
        user.append(_item(items.IMPLEMENTATION_VERSION, version))
    return _item(items.USER_INFORMATION_ITEM, b"".join(user))


def _encode_proposed(context: ProposedContext) -> bytes:
    """PS3.8 Table 9-13."""
    syntaxes = (_uid_item(items.TRANSFER_SYNTAX, uid) for uid in context.transfer_syntaxes)
    fixed = bytes((_sendable_id(context.context_id), 0, 0, 0))
    abstract = _uid_item(items.ABSTRACT_SYNTAX, context.abstract_syntax)
    return _item(items.PROPOSED_CONTEXT_ITEM, fixed + abstract + b"".join(syntaxes))


def _encode_result(context: ContextResult) -> bytes:
    """PS3.8 Table 9-18."""
    fixed = bytes((_sendable_id(context.context_id), 0, context.result, 0))
    syntax = _uid_item(items.TRANSFER_SYNTAX, context.transfer_syntax)
    return _item(items.CONTEXT_RESULT_ITEM, fixed + syntax)


def _item(kind: int, value: bytes) -> bytes:
    """PS3.8 9.3: byte 1 item type, byte 2 reserved, bytes 3-4 length of the rest."""
    return bytes((kind, 0)) + _number(len(value), 2) + value


def _uid_item(kind: int, uid: str) -> bytes:
    return _item(kind, _uid(uid))


def _uid(text: str) -> bytes:
    """Encode a UID without padding, even if its length is odd (PS3.8 Annex F)."""
    if not 0 < len(text) <= 64:
        raise ValueError(f"a UID of {len(text)} characters")
    return text.encode("ascii")


def _number(value: int, size: int) -> bytes:
    if not 0 <= value < 1 << 8 * size:
        raise ValueError(f"{value} does not fit into {size} bytes")
    return value.to_bytes(size)


def _sendable_id(context_id: int) -> int:
    if context_id % 2 == 0 or not 0 < context_id < 256:
        raise ValueError(f"presentation context ID {context_id} is not an odd number from 1 to 255")
    return context_id
