"""Responses as an SCU reads them (PS3.7 6.3, 9.3.1.2 and 9.3.5.2), and the operations that they answer.

An instance is delivered when the remote has confirmed it. Message type, message ID, presentation context,
UIDs and order are therefore checked before a status counts. No other element of a response decides anything
(RFC 1122 1.2.2), so an element that is unknown, repeated or invalid is skipped. An error there would abort
an association although the remote has stored the instance, and the same instance would be sent again for
ever.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ingest.dicom.dimse import C_STORE_RQ, NO_DATA_SET, Status, encode_store_success
from ingest.dicom.statuses import Category, classify_status
from ingest.dicom.uids import is_valid_uid
from ingest.errors import PeerError
from ingest.ext.events import Command

# PS3.7 E.1: element numbers within group 0000.
_AFFECTED_SOP_CLASS_UID: Final = 0x0002
_COMMAND_FIELD: Final = 0x0100
_MESSAGE_ID_BEING_RESPONDED_TO: Final = 0x0120
_COMMAND_DATA_SET_TYPE: Final = 0x0800
_STATUS: Final = 0x0900
_ERROR_COMMENT: Final = 0x0902
_AFFECTED_SOP_INSTANCE_UID: Final = 0x1000

_RESPONSE: Final = 0x8000
_HEADER_BYTES: Final = 8  # PS3.7 6.3.1: group 2, element 2, length 4, all little endian
COMMENT_CHARACTERS: Final = 256
"""Length to which an Error Comment is cut. PS3.5 6.2 allows 64, but some remotes send more."""

_Elements = dict[int, list[bytes]]


@dataclass(frozen=True, slots=True)
class Response:
    """A response, as an SCU sees it.

    Attributes:
        command_field: (0000,0100).
        message_id: (0000,0120) Message ID Being Responded To.
        status: (0000,0900).
        error_comment: (0000,0902), printable, cut to `COMMENT_CHARACTERS`.
        sop_instance_uid: (0000,1000) without padding; empty if it is missing.
        has_data_set: Whether a data set is announced (0000,0800).
        sop_class_uid: (0000,0002) without padding; empty if it is missing.
    """

    command_field: int
    message_id: int
    status: int
    error_comment: str = ""
    sop_instance_uid: str = ""
    has_data_set: bool = False
    sop_class_uid: str = ""

    @property
    def category(self) -> Category:
        """Class of the status."""
        return classify_status(self.status)


def decode_response(data: bytes) -> Response:
    """Read the response in a command set.

    Raises:
        PeerError: The message is a request, or a decisive element is missing or contradictory.
    """
    elements = _read_elements(data)
    field = _number(elements, _COMMAND_FIELD, "Command Field")
    if not field & _RESPONSE:
        raise PeerError(f"the request {field:04X}H where a response is due", PeerError.NOT_SPECIFIED)
    return Response(
        field,
        _number(elements, _MESSAGE_ID_BEING_RESPONDED_TO, "Message ID Being Responded To"),
        _number(elements, _STATUS, "Status"),
        _comment(elements),
        _uid(elements, _AFFECTED_SOP_INSTANCE_UID, "Affected SOP Instance UID"),
        # An unreadable value announces no data set. If one arrives nevertheless, it is an unexpected PDU.
        bool(_numbers(elements, _COMMAND_DATA_SET_TYPE) - {NO_DATA_SET}),
        _uid(elements, _AFFECTED_SOP_CLASS_UID, "Affected SOP Class UID"),
    )


@dataclass(frozen=True, slots=True)
class SentRequest:
    """The values of a sent request that its response must match.

    Attributes:
        message_id: (0000,0110).
        context_id: Presentation context of the request.
        command_field: (0000,0100) of the request.
        sop_class_uid: (0000,0002).
        sop_instance_uid: (0000,1000); empty for C-ECHO.
    """

    message_id: int
    context_id: int
    command_field: int
    sop_class_uid: str
    sop_instance_uid: str = ""


class OutstandingRequests:
    """Requests of one association without a response, and responses that are not collected yet.

    Attributes:
        answers: Message ID and response of each valid response, in order of arrival.
    """

    def __init__(self) -> None:
        """Begin without operations."""
        self.answers: deque[tuple[int, Response]] = deque()
        self._open: dict[int, SentRequest] = {}
        self._sending = 0
        self._latest = 0

    @property
    def count(self) -> int:
        """Number of operations without a collected response."""
        return len(self._open) + len(self.answers)

    @property
    def is_answered_early(self) -> bool:
        """Whether the operation whose request is still being sent has its response already."""
        return bool(self._sending) and self._sending not in self._open

    def begin_request(self, operation: SentRequest) -> None:
        """Note that the request of `operation` is about to be sent."""
        self._open[operation.message_id] = operation
        self._sending = self._latest = operation.message_id

    def end_request(self, *, answer_has_begun: bool) -> None:
        """Note that the last fragment of the request was passed to the network.

        Args:
            answer_has_begun: Whether the first part of a response has arrived.

        Raises:
            PeerError: That response can only belong to this request, and came too early.
        """
        alone = len(self._open) == 1 and self._sending in self._open
        self._sending = 0
        if answer_has_begun and alone:
            raise PeerError("an answer that began before the data set was sent", PeerError.UNEXPECTED_PDU)

    def _match_usual_success(self, data: bytes) -> Response | None:
        """Return the response if it is the usual Success of the first outstanding C-STORE, byte by byte.

        Comparing is cheaper than decoding. Remotes usually keep the order, but need not.
        """
        first = next(iter(self._open.values()), None)
        if first is None or first.command_field != C_STORE_RQ:
            return None
        number, sop_class, uid = first.message_id, first.sop_class_uid, first.sop_instance_uid
        if data != encode_store_success(number, sop_class, uid):
            return None
        return Response(C_STORE_RQ | _RESPONSE, number, Status.SUCCESS, "", uid, False, sop_class)

    def record_response(self, command: Command, is_unread: Callable[[], bool]) -> None:
        """Check a response and keep it for collection.

        Args:
            command: The command set, with its presentation context.
            is_unread: Returns whether the remote's TCP has not confirmed all bytes yet. The segment that
            carries
                a response confirms all bytes before it, and so the whole request (RFC 9293 3.10.7.4).

        Raises:
            PeerError: The response belongs to no operation of this association, or comes too early.
        """
        response = self._match_usual_success(command.data) or decode_response(command.data)
        operation = self._open.get(response.message_id)
        if operation is None:
            asked = ", ".join(map(str, sorted(self._open))) or "nothing"
            raise PeerError(f"it answers message {response.message_id}, but {asked} was asked")
        if fault := _find_mismatch(operation, command.context_id, response):
            raise PeerError(f"its answer to message {response.message_id} {fault}")
        number = operation.message_id
        # A failure may come as soon as it is known. Any other status needs the whole data set.
        if response.category is not Category.FAILURE and (
            number == self._sending or (number == self._latest and is_unread())
        ):
            said = f"{response.status:04X}H before the data set was sent"
            raise PeerError(f"it answers message {number} with {said}", PeerError.UNEXPECTED_PDU)
        del self._open[number]
        self.answers.append((number, response))


def _find_mismatch(operation: SentRequest, context_id: int, response: Response) -> str:
    """Return why a response does not answer `operation`; empty if it does."""
    if context_id != operation.context_id:
        return f"came on presentation context {context_id}, not {operation.context_id}"
    if response.command_field != operation.command_field | _RESPONSE:
        return f"is of type {response.command_field:04X}H, not {operation.command_field | _RESPONSE:04X}H"
    if response.has_data_set:
        return "announces a data set, which it cannot have"
    if response.sop_class_uid not in {"", operation.sop_class_uid}:
        return f"names the SOP class {_format_uid(response.sop_class_uid)}, not {operation.sop_class_uid}"
    wanted = operation.sop_instance_uid
    if wanted and response.sop_instance_uid not in {"", wanted}:
        return f"names the SOP instance {_format_uid(response.sop_instance_uid)}, not {wanted}"
    return ""


def _format_uid(uid: str) -> str:
    """Return a UID for the log. No other text of a remote may reach it."""
    return uid if is_valid_uid(uid) else "(no UID)"


def _read_elements(data: bytes) -> _Elements:
    """Return all values of group 0000 by element number, up to the point where `data` is cut.

    Order and group length do not matter. A cut at the end is no fault by itself, but a decisive element
    after it is missing.
    """
    found: _Elements = {}
    at, end = 0, len(data)
    while at + _HEADER_BYTES <= end:
        group = int.from_bytes(data[at : at + 2], "little")
        element = int.from_bytes(data[at + 2 : at + 4], "little")
        start = at + _HEADER_BYTES
        at = start + int.from_bytes(data[at + 4 : start], "little")
        if at > end:
            break
        if group == 0:
            found.setdefault(element, []).append(data[start:at])
    return found


def _number(elements: _Elements, element: int, name: str) -> int:
    """Return a decisive US (PS3.5 6.2). Several values, or several elements, must agree."""
    values = _numbers(elements, element)
    if len(values) != 1:
        raise PeerError(f"a response with {len(values) or 'no'} values of {name}")
    return values.pop()


def _numbers(elements: _Elements, element: int) -> set[int]:
    return {
        int.from_bytes(raw[at : at + 2], "little")
        for raw in elements.get(element, ())
        for at in range(0, len(raw) - 1, 2)
    }


def _uid(elements: _Elements, element: int, name: str) -> str:
    """Return a UI (PS3.5 6.2) without padding. Several values must agree."""
    given = {raw.partition(b"\0")[0].strip(b" ") for raw in elements.get(element, ())} - {b""}
    if len(given) > 1:
        raise PeerError(f"a response with {len(given)} values of {name}")
    return given.pop().decode("latin-1") if given else ""


def _comment(elements: _Elements) -> str:
    raw = next(iter(elements.get(_ERROR_COMMENT, ())), b"")
    text = raw.strip(b"\0 ")[:COMMENT_CHARACTERS].decode("latin-1")
    return "".join(each if each.isprintable() else "?" for each in text)
