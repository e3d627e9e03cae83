"""DIMSE messages of Verification, Storage and Storage Commitment as values (PS3.7 9.1, 9.3 and 10.3).

This module reads and writes requests, and writes responses. `ingest.dicom.responses` reads responses.
"""

from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Any, Final

from ingest.dicom.uids import STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE, VERIFICATION, is_valid_uid
from ingest.errors import PeerError
from ingest.ext.command import decode_command, encode_command

# (0000,0100) Command Field, PS3.7 E.1
C_STORE_RQ, C_STORE_RSP = 0x0001, 0x8001
C_ECHO_RQ, C_ECHO_RSP = 0x0030, 0x8030
C_CANCEL_RQ = 0x0FFF
N_EVENT_REPORT_RQ, N_EVENT_REPORT_RSP = 0x0100, 0x8100
N_ACTION_RQ, N_ACTION_RSP = 0x0130, 0x8130
_RESPONSE = 0x8000

_N_SERVICES: Final = {
    N_ACTION_RQ: ("Requested", "ActionTypeID"),
    N_EVENT_REPORT_RQ: ("Affected", "EventTypeID"),
}
"""Keywords of the elements of a request: the beginning of those of its UIDs, and that of its type."""

NO_DATA_SET = 0x0101
"""(0000,0800) Command Data Set Type, PS3.7 9.3. Any other value announces a data set."""
_DATA_SET = 0x0001

_REQUEST_COMMITMENT: Final = 1  # PS3.4 J.3.2.1.1: Action Type ID
_COMMITMENT_EVENTS: Final = (1, 2)  # PS3.4 J.3.3.1.1: Event Type ID

_COMMENT_LENGTH = 64  # PS3.5 6.2, VR LO
_GROUP_LENGTH: Final = b"\0\0\0\0\4\0\0\0"  # (0000,0000), before its value of four bytes
_KINDS_MAX: Final = 256

_Kind = tuple[bytes, bytes]
"""Bytes of a command set before and after its message ID, without group length and SOP instance UID."""


class Status(IntEnum):
    """(0000,0900) Status, PS3.7 Annex C and PS3.4 Table B.2-1."""

    SUCCESS = 0x0000
    PROCESSING_FAILURE = 0x0110
    DUPLICATE_SOP_INSTANCE = 0x0111
    NO_SUCH_SOP_INSTANCE = 0x0112
    NO_SUCH_EVENT_TYPE = 0x0113
    INVALID_ARGUMENT = 0x0115
    INVALID_SOP_INSTANCE = 0x0117
    SOP_CLASS_NOT_SUPPORTED = 0x0122
    NO_SUCH_ACTION = 0x0123
    NOT_AUTHORIZED = 0x0124
    DUPLICATE_INVOCATION = 0x0210
    UNRECOGNIZED_OPERATION = 0x0211
    RESOURCE_LIMITATION = 0x0213
    OUT_OF_RESOURCES = 0xA700
    DATA_SET_MISMATCH = 0xA900
    CANNOT_UNDERSTAND = 0xC000
    CANCEL = 0xFE00


@dataclass(frozen=True, slots=True)
class StoreRequest:
    """C-STORE-RQ (PS3.7 Table 9.3-1).

    UIDs are as received, and empty when missing. `find_store_fault` checks them.
    """

    message_id: int
    sop_class_uid: str
    sop_instance_uid: str
    priority: int = 0
    move_originator_ae: str = ""
    move_originator_message_id: int | None = None


@dataclass(frozen=True, slots=True)
class EchoRequest:
    """C-ECHO-RQ (PS3.7 Table 9.3-12). It has no data set, but one that is announced must be drained."""

    message_id: int
    has_data_set: bool = False


@dataclass(frozen=True, slots=True)
class NServiceRequest:
    """N-ACTION-RQ or N-EVENT-REPORT-RQ (PS3.7 Tables 10.3-7 and 10.3-1).

    UIDs are as received, and empty when missing.

    Attributes:
        command_field: N_ACTION_RQ or N_EVENT_REPORT_RQ.
        type_id: (0000,1008) Action Type ID or (0000,1002) Event Type ID; None when missing.
    """

    command_field: int
    message_id: int
    sop_class_uid: str
    sop_instance_uid: str
    type_id: int | None
    has_data_set: bool

    @property
    def is_event_report(self) -> bool:
        """Whether it is an N-EVENT-REPORT-RQ."""
        return self.command_field == N_EVENT_REPORT_RQ

    @property
    def as_other(self) -> "OtherRequest":
        """The same as a request that is not offered here."""
        return OtherRequest(self.command_field, self.message_id, self.has_data_set, self.sop_class_uid)


@dataclass(frozen=True, slots=True)
class OtherRequest:
    """A request of an operation that the node does not offer. `message_id` of a C-CANCEL-RQ is its target."""

    command_field: int
    message_id: int
    has_data_set: bool
    sop_class_uid: str = ""

    @property
    def wants_response(self) -> bool:
        """Whether the request gets a response: every one but C-CANCEL-RQ (PS3.7 9.3.2.3)."""
        return self.command_field != C_CANCEL_RQ


Request = StoreRequest | EchoRequest | NServiceRequest | OtherRequest


def decode_request(data: bytes) -> Request:
    """Decode the request in a command set.

    Elements that the operation does not need may be odd or missing.

    Raises:
        PeerError: The command set is invalid, lacks an element of every request, is a response, or is a
            C-STORE-RQ without a data set.
    """
    elements = decode_command(data)
    field = _integer(elements, "CommandField")
    if field & _RESPONSE:
        raise PeerError(f"the response {field:04X}H to nothing that was asked", PeerError.NOT_SPECIFIED)
    has_data_set = _integer(elements, "CommandDataSetType") != NO_DATA_SET
    if field == C_CANCEL_RQ:
        return OtherRequest(field, _optional(elements, "MessageIDBeingRespondedTo") or 0, has_data_set)
    message_id = _integer(elements, "MessageID")
    if field == C_STORE_RQ:
        if not has_data_set:
            raise PeerError(f"C-STORE-RQ {message_id} announces no data set")
        return StoreRequest(
            message_id,
            _text(elements, "AffectedSOPClassUID"),
            _text(elements, "AffectedSOPInstanceUID"),
            _optional(elements, "Priority") or 0,
            _text(elements, "MoveOriginatorApplicationEntityTitle"),
            _optional(elements, "MoveOriginatorMessageID"),
        )
    if field == C_ECHO_RQ:
        return EchoRequest(message_id, has_data_set)
    if field in _N_SERVICES:
        kind, type_id = _N_SERVICES[field]
        return NServiceRequest(
            field,
            message_id,
            _text(elements, f"{kind}SOPClassUID"),
            _text(elements, f"{kind}SOPInstanceUID"),
            _optional(elements, type_id),
            has_data_set,
        )
    sop_class = _text(elements, "AffectedSOPClassUID") or _text(elements, "RequestedSOPClassUID")
    return OtherRequest(field, message_id, has_data_set, sop_class)


def find_store_fault(request: StoreRequest, abstract_syntax: str) -> tuple[Status, str] | None:
    """Return status and Error Comment that refuse a C-STORE-RQ before its data set; None if it is sound.

    Args:
        request: The request.
        abstract_syntax: Abstract syntax of the presentation context. It must equal the SOP class (PS3.7
            9.1.1.1.2).
    """
    # Never store on a context of another service. Its requestor may not have the permission to store.
    if request.sop_class_uid != abstract_syntax or abstract_syntax in {VERIFICATION, STORAGE_COMMITMENT}:
        return Status.SOP_CLASS_NOT_SUPPORTED, "SOP class is not that of the presentation context"
    if not is_valid_uid(request.sop_instance_uid):
        return Status.INVALID_SOP_INSTANCE, "Affected SOP Instance UID is no UID"
    return None


def encode_store_request(
    message_id: int,
    sop_class_uid: str,
    sop_instance_uid: str,
    *,
    priority: int = 0,
    move_originator_ae: str = "",
    move_originator_message_id: int | None = None,
) -> bytes:
    """Encode a C-STORE-RQ (PS3.7 Table 9.3-1). Priority 0 is medium, 1 high, 2 low.

    Raises:
        ValueError: A value does not fit its representation.
    """
    if not (priority or move_originator_ae) and move_originator_message_id is None:
        return _filled(_store_kind(sop_class_uid), message_id, sop_instance_uid)
    elements: dict[str, Any] = {
        "AffectedSOPClassUID": sop_class_uid,
        "CommandField": C_STORE_RQ,
        "MessageID": message_id,
        "Priority": priority,
        "CommandDataSetType": _DATA_SET,
        "AffectedSOPInstanceUID": sop_instance_uid,
    }
    if move_originator_ae:
        elements["MoveOriginatorApplicationEntityTitle"] = move_originator_ae
    if move_originator_message_id is not None:
        elements["MoveOriginatorMessageID"] = move_originator_message_id
    return encode_command(elements)


def encode_echo_request(message_id: int) -> bytes:
    """Encode a C-ECHO-RQ (PS3.7 Table 9.3-12)."""
    return encode_command(
        {
            "AffectedSOPClassUID": VERIFICATION,
            "CommandField": C_ECHO_RQ,
            "MessageID": message_id,
            "CommandDataSetType": NO_DATA_SET,
        }
    )


def encode_store_success(message_id: int, sop_class_uid: str, sop_instance_uid: str) -> bytes:
    """Encode the C-STORE-RSP that most remotes send: 0000H and both UIDs.

    Raises:
        ValueError: A value does not fit its representation.
    """
    return _filled(_success_kind(sop_class_uid), message_id, sop_instance_uid)


def encode_store_response(request: StoreRequest, status: int, comment: str = "") -> bytes:
    """Encode a C-STORE-RSP (PS3.7 Table 9.3-2).

    Args:
        request: The answered request. An invalid UID in it is left out.
        status: (0000,0900).
        comment: (0000,0902) Error Comment, cut to 64 characters. It must contain no patient data.
    """
    elements = _response(C_STORE_RSP, request.message_id, status, request.sop_class_uid, comment)
    if is_valid_uid(request.sop_instance_uid):
        elements["AffectedSOPInstanceUID"] = request.sop_instance_uid
    return encode_command(elements)


def encode_echo_response(request: EchoRequest, status: int = Status.SUCCESS) -> bytes:
    """Encode a C-ECHO-RSP (PS3.7 Table 9.3-13)."""
    return encode_command(_response(C_ECHO_RSP, request.message_id, status, VERIFICATION, ""))


def encode_n_service_request(
    field: int, message_id: int, sop_class_uid: str, sop_instance_uid: str, type_id: int
) -> bytes:
    """Encode an N-ACTION-RQ or N-EVENT-REPORT-RQ that a data set follows (PS3.7 Tables 10.3-7 and 10.3-1).

    Raises:
        ValueError: A value does not fit its representation.
    """
    kind, keyword = _N_SERVICES[field]
    return encode_command(
        {
            f"{kind}SOPClassUID": sop_class_uid,
            "CommandField": field,
            "MessageID": message_id,
            "CommandDataSetType": _DATA_SET,
            f"{kind}SOPInstanceUID": sop_instance_uid,
            keyword: type_id,
        }
    )


def encode_n_service_response(request: NServiceRequest, status: int, comment: str = "") -> bytes:
    """Encode an N-ACTION-RSP or N-EVENT-REPORT-RSP without a data set (PS3.7 Tables 10.3-8 and 10.3-2).

    Args:
        request: The answered request. An invalid UID in it is left out.
        status: (0000,0900).
        comment: (0000,0902) Error Comment, cut to 64 characters. It must contain no patient data.
    """
    field = request.command_field | _RESPONSE
    elements = _response(field, request.message_id, status, request.sop_class_uid, comment)
    if is_valid_uid(request.sop_instance_uid):
        elements["AffectedSOPInstanceUID"] = request.sop_instance_uid
    if request.type_id is not None and not status:
        elements[_N_SERVICES[request.command_field][1]] = request.type_id
    return encode_command(elements)


def encode_unsupported_response(
    request: OtherRequest, status: int = Status.UNRECOGNIZED_OPERATION, comment: str = ""
) -> bytes:
    """Encode the response to an operation that the node does not offer.

    Raises:
        ValueError: `request` is a C-CANCEL-RQ, which has no response.
    """
    if not request.wants_response:
        raise ValueError("C-CANCEL-RQ has no response")
    field = request.command_field | _RESPONSE
    return encode_command(_response(field, request.message_id, status, request.sop_class_uid, comment))


def find_commitment_fault(request: NServiceRequest, abstract_syntax: str) -> tuple[Status, str] | None:
    """Return status and Error Comment that refuse a message before its data set; None if it is sound.

    The only action is "Request Storage Commitment" (PS3.4 J.3.2). A report has one of two types (J.3.3). Both
    are about the well-known SOP instance.

    Args:
        request: The request.
        abstract_syntax: Abstract syntax of the presentation context.
    """
    if request.sop_class_uid != abstract_syntax or abstract_syntax != STORAGE_COMMITMENT:
        return Status.SOP_CLASS_NOT_SUPPORTED, "SOP class is not that of the presentation context"
    kind, keyword = _N_SERVICES[request.command_field]
    if request.sop_instance_uid != STORAGE_COMMITMENT_INSTANCE:
        said = f"{kind} SOP Instance UID is not {STORAGE_COMMITMENT_INSTANCE}"
        return Status.NO_SUCH_SOP_INSTANCE, said
    if request.is_event_report and request.type_id not in _COMMITMENT_EVENTS:
        return Status.NO_SUCH_EVENT_TYPE, f"{keyword} is neither 1 nor 2"
    if not request.is_event_report and request.type_id != _REQUEST_COMMITMENT:
        return Status.NO_SUCH_ACTION, f"{keyword} is not {_REQUEST_COMMITMENT}"
    if not request.has_data_set:
        return Status.INVALID_ARGUMENT, "the message has no data set"
    return None


@lru_cache(maxsize=_KINDS_MAX)
def _store_kind(sop_class_uid: str) -> _Kind:
    return _kind_of(
        {
            "AffectedSOPClassUID": sop_class_uid,
            "CommandField": C_STORE_RQ,
            "MessageID": 0,
            "Priority": 0,
            "CommandDataSetType": _DATA_SET,
            "AffectedSOPInstanceUID": "",
        },
        "MessageID",
    )


@lru_cache(maxsize=_KINDS_MAX)
def _success_kind(sop_class_uid: str) -> _Kind:
    return _kind_of(
        {
            "AffectedSOPClassUID": sop_class_uid,
            "CommandField": C_STORE_RSP,
            "MessageIDBeingRespondedTo": 0,
            "CommandDataSetType": NO_DATA_SET,
            "Status": 0,
            "AffectedSOPInstanceUID": "",
        },
        "MessageIDBeingRespondedTo",
    )


def _kind_of(elements: dict[str, Any], number: str) -> _Kind:
    """Encode the bytes that command sets share which differ only in message ID and SOP instance UID.

    Elements ascend (PS3.7 6.3.1), and (0000,1000) is the last. The part up to the message ID is therefore
    encoded separately.
    """
    at = list(elements).index(number)
    before = encode_command(dict(list(elements.items())[: at + 1]))[len(_GROUP_LENGTH) + 4 :]
    whole = encode_command(elements)[len(_GROUP_LENGTH) + 4 :]
    return before[:-2], whole[len(before) : -4]


def _filled(kind: _Kind, message_id: int, sop_instance_uid: str) -> bytes:
    """Fill message ID and UID into the bytes of a kind. The result equals that of `encode_command`."""
    try:
        number, uid = message_id.to_bytes(2, "little"), sop_instance_uid.encode("ascii")
    except OverflowError:
        raise ValueError(f"a message ID is 0 to 65535, not {message_id}") from None
    if len(uid) & 1:
        uid += b"\0"
    before, after = kind
    body = before + number + after + len(uid).to_bytes(4, "little") + uid
    return _GROUP_LENGTH + len(body).to_bytes(4, "little") + body


def _response(field: int, message_id: int, status: int, sop_class_uid: str, comment: str) -> dict[str, Any]:
    elements: dict[str, Any] = {
        "CommandField": field,
        "MessageIDBeingRespondedTo": message_id,
        "CommandDataSetType": NO_DATA_SET,
        "Status": int(status),
    }
    if is_valid_uid(sop_class_uid):
        elements["AffectedSOPClassUID"] = sop_class_uid
    if comment:
        elements["ErrorComment"] = comment[:_COMMENT_LENGTH]
    return elements


def _integer(elements: dict[str, Any], keyword: str) -> int:
    """Return a number that the operation needs."""
    value = elements.get(keyword)
    if isinstance(value, PeerError):
        raise value  # the fault that the decoder found
    if not isinstance(value, int):
        raise PeerError(f"a command set without {keyword}")
    return value


def _optional(elements: dict[str, Any], keyword: str) -> int | None:
    value = elements.get(keyword)
    return value if isinstance(value, int) else None


def _text(elements: dict[str, Any], keyword: str) -> str:
    value = elements.get(keyword)
    return value if isinstance(value, str) else ""
