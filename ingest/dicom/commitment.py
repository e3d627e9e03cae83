"""Data sets of the Storage Commitment Push Model as values (PS3.4 Annex J), without I/O."""

# ruff: noqa: PLC0415 - only reports need pydicom, which takes a while to import

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from ingest.dicom.part10 import LONG_VRS
from ingest.dicom.uids import (
    EXPLICIT_LITTLE_ENDIAN,
    IMPLEMENTATION_CLASS_UID,
    IMPLICIT_LITTLE_ENDIAN,
    is_valid_uid,
)
from ingest.errors import PeerError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

TRANSACTION_UID: Final = 0x00081195
_REFERENCED_SOP_SEQUENCE: Final = 0x00081199
_FAILED_SOP_SEQUENCE: Final = 0x00081198
_FAILURE_REASON: Final = 0x00081197
_REFERENCED_SOP_CLASS_UID: Final = 0x00081150
_REFERENCED_SOP_INSTANCE_UID: Final = 0x00081155

# PS3.5 7.5: (FFFE,E000), (FFFE,E00D) and (FFFE,E0DD), as four bytes in little endian order.
_ITEM: Final = 0xE000FFFE
_ITEM_DELIMITER: Final = 0xE00DFFFE
_SEQUENCE_DELIMITER: Final = 0xE0DDFFFE
_DELIMITER_BYTES: Final = 8
_UNDEFINED: Final = 0xFFFFFFFF
_DEPTH_MAX: Final = 16

REQUEST_MAX_BYTES: Final = 4 << 20
"""Upper bound of the data set of a request: tens of thousands of references."""


REPORT_MARK: Final = f"{IMPLEMENTATION_CLASS_UID}.1"
"""SOP Instance UID in the File Meta of a spool entry that holds a report, and no request."""


class EventType(IntEnum):
    """(0000,1002) Event Type ID of a report, PS3.4 J.3.3.1.1."""

    ALL_COMMITTED = 1
    FAILURES_EXIST = 2


class FailureReason(IntEnum):
    """(0008,1197) Failure Reason, PS3.3 C.14.1.1."""

    PROCESSING_FAILURE = 0x0110
    NO_SUCH_INSTANCE = 0x0112
    CLASS_INSTANCE_CONFLICT = 0x0119


@dataclass(frozen=True, slots=True)
class SOPReference:
    """An item of the Referenced SOP Sequence (0008,1199)."""

    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, slots=True)
class CommitmentRequest:
    """The data set of an N-ACTION "Request Storage Commitment" (PS3.4 Table J.3-1)."""

    transaction_uid: str
    references: tuple[SOPReference, ...]


@dataclass(frozen=True, slots=True)
class ReferenceOutcome:
    """The outcome of one instance in a report.

    Attributes:
        reference: The instance.
        failure: (0008,1197) Failure Reason; None if it is committed.
    """

    reference: SOPReference
    failure: int | None = None


def parse_request(data: bytes, transfer_syntax: str) -> CommitmentRequest:
    """Parse the data set of a request.

    Args:
        data: The encoded data set.
        transfer_syntax: Implicit or Explicit VR Little Endian.

    Raises:
        PeerError: It cannot be read, has no Transaction UID, or an item without UIDs.
    """
    transaction, references, _ = _parse(data, transfer_syntax)
    if not references:
        raise PeerError("the request references no instance")
    return CommitmentRequest(transaction, tuple(references))


def parse_report(data: bytes, transfer_syntax: str) -> tuple[str, list[ReferenceOutcome]]:
    """Parse the data set of a report: its Transaction UID, and what it says of each instance.

    Raises:
        PeerError: It cannot be read, has no Transaction UID, or an item without UIDs.
    """
    transaction, committed, failed = _parse(data, transfer_syntax)
    outcomes = [ReferenceOutcome(reference) for reference in committed if reference not in failed]
    return transaction, [*outcomes, *(ReferenceOutcome(one, reason) for one, reason in failed.items())]


def _parse(data: bytes, transfer_syntax: str) -> tuple[str, dict[SOPReference, int], dict[SOPReference, int]]:
    """Return Transaction UID, and the items of the Referenced and of the Failed SOP Sequence."""
    if transfer_syntax not in {IMPLICIT_LITTLE_ENDIAN, EXPLICIT_LITTLE_ENDIAN}:
        raise PeerError("the data set is in a transfer syntax that was not accepted")
    reader = _Reader(data, is_implicit=transfer_syntax == IMPLICIT_LITTLE_ENDIAN)
    transaction, found = "", {_REFERENCED_SOP_SEQUENCE: {}, _FAILED_SOP_SEQUENCE: {}}  # type: ignore[var-annotated]
    for tag, start, stop in reader.read_elements(0, len(data)):
        if tag == TRANSACTION_UID:
            transaction = reader.read_uid(start, stop)
        elif tag in found:
            for item in reader.read_items(start, stop):
                reference, reason = _read_reference(reader, *item)
                found[tag][reference] = reason
    if not is_valid_uid(transaction):
        raise PeerError("the data set has no Transaction UID")
    return transaction, found[_REFERENCED_SOP_SEQUENCE], found[_FAILED_SOP_SEQUENCE]


def _read_reference(reader: "_Reader", start: int, stop: int) -> tuple[SOPReference, int]:
    """Return an item and its Failure Reason; without one it is a processing failure."""
    uids, reason = {}, int(FailureReason.PROCESSING_FAILURE)
    for tag, begin, end in reader.read_elements(start, stop):
        if tag in {_REFERENCED_SOP_CLASS_UID, _REFERENCED_SOP_INSTANCE_UID}:
            uids[tag] = reader.read_uid(begin, end)
        elif tag == _FAILURE_REASON and end - begin >= 2:
            reason = reader.read_us(begin) or reason
    sop_class, sop_instance = (
        uids.get(_REFERENCED_SOP_CLASS_UID, ""),
        uids.get(_REFERENCED_SOP_INSTANCE_UID, ""),
    )
    if not (sop_class and sop_instance):
        raise PeerError("an item of a sequence lacks a UID")
    return SOPReference(sop_class, sop_instance), reason


class _Reader:
    """Reads elements of a small data set strictly: an element that is cut is an error.

    pydicom takes what is left of such an element for its value. A UID that is cut may name another instance.
    """

    def __init__(self, data: bytes, *, is_implicit: bool) -> None:
        self._data = data
        self._is_implicit = is_implicit

    def read_elements(self, at: int, stop: int, depth: int = 0) -> Iterator[tuple[int, int, int]]:
        """Yield tag, begin and end of the value of each element (PS3.5 7.1)."""
        while at < stop:
            tag, length, at = self._read_head(at, stop)
            end = self._find_end(at, stop, depth) if length == _UNDEFINED else at + length
            if end > stop:
                raise PeerError("the request ends within an element")
            yield tag, at, end
            at = end + (_DELIMITER_BYTES if length == _UNDEFINED else 0)

    def read_items(self, at: int, stop: int, depth: int = 0) -> Iterator[tuple[int, int]]:
        """Yield begin and end of each item of a sequence (PS3.5 7.5)."""
        while at < stop:
            tag, length = self._read_item_head(at, stop)
            if tag != _ITEM:
                raise PeerError("a sequence of the request has no item where one should begin")
            at += _DELIMITER_BYTES
            end = self._find_item_end(at, stop, depth) if length == _UNDEFINED else at + length
            if end > stop:
                raise PeerError("the request ends within an item")
            yield at, end
            at = end + (_DELIMITER_BYTES if length == _UNDEFINED else 0)

    def read_uid(self, start: int, stop: int) -> str:
        """Return a UID without padding; an invalid one is empty."""
        text = self._data[start:stop].rstrip(b"\0 ").decode("ascii", "replace")
        return text if is_valid_uid(text) else ""

    def read_us(self, start: int) -> int:
        """Return a number of two bytes."""
        return int.from_bytes(self._data[start : start + 2], "little")

    def _read_head(self, at: int, stop: int) -> tuple[int, int, int]:
        """Return tag and length of the element at an offset, and where its value begins."""
        data = self._data
        if stop - at < _DELIMITER_BYTES:
            raise PeerError("the request ends within an element")
        tag = int.from_bytes(data[at : at + 2], "little") << 16 | int.from_bytes(
            data[at + 2 : at + 4], "little"
        )
        if self._is_implicit:
            return tag, int.from_bytes(data[at + 4 : at + 8], "little"), at + 8
        if data[at + 4 : at + 6] not in LONG_VRS:
            return tag, int.from_bytes(data[at + 6 : at + 8], "little"), at + 8
        if stop - at < 12:
            raise PeerError("the request ends within an element")
        return tag, int.from_bytes(data[at + 8 : at + 12], "little"), at + 12

    def _read_item_head(self, at: int, stop: int) -> tuple[int, int]:
        if stop - at < _DELIMITER_BYTES:
            raise PeerError("the request ends within a sequence")
        return (
            int.from_bytes(self._data[at : at + 4], "little"),
            int.from_bytes(self._data[at + 4 : at + 8], "little"),
        )

    def _find_end(self, at: int, stop: int, depth: int) -> int:
        """Return where the sequence delimiter of a sequence of undefined length begins."""
        if depth >= _DEPTH_MAX:
            raise PeerError("the request is nested too deeply")
        while True:
            tag, length = self._read_item_head(at, stop)
            if tag == _SEQUENCE_DELIMITER:
                return at
            if tag != _ITEM:
                raise PeerError("a sequence of the request has no item where one should begin")
            at += _DELIMITER_BYTES
            at = (
                self._find_item_end(at, stop, depth) + _DELIMITER_BYTES
                if length == _UNDEFINED
                else at + length
            )

    def _find_item_end(self, at: int, stop: int, depth: int) -> int:
        """Return where the delimiter of an item of undefined length begins."""
        while True:
            tag, _ = self._read_item_head(at, stop)
            if tag == _ITEM_DELIMITER:
                return at
            _, length, at = self._read_head(at, stop)
            is_open = length == _UNDEFINED
            at = self._find_end(at, stop, depth + 1) + _DELIMITER_BYTES if is_open else at + length


def encode_report(transaction_uid: str, outcomes: Sequence[ReferenceOutcome], transfer_syntax: str) -> bytes:
    """Encode the data set of an N-EVENT-REPORT (PS3.4 Table J.3-2)."""
    from pydicom.dataset import Dataset

    report = Dataset()
    report.TransactionUID = transaction_uid
    failed, committed = [], []
    for outcome in outcomes:
        item = Dataset()
        item.ReferencedSOPClassUID = outcome.reference.sop_class_uid
        item.ReferencedSOPInstanceUID = outcome.reference.sop_instance_uid
        if outcome.failure is None:
            committed.append(item)
        else:
            item.FailureReason = int(outcome.failure)
            failed.append(item)
    if failed:
        report.FailedSOPSequence = failed
    if committed:
        report.ReferencedSOPSequence = committed
    return _write(report, transfer_syntax)


def encode_request(request: CommitmentRequest, transfer_syntax: str) -> bytes:
    """Encode the data set of a request (PS3.4 Table J.3-1)."""
    outcomes = [ReferenceOutcome(reference) for reference in request.references]
    return encode_report(request.transaction_uid, outcomes, transfer_syntax)


def event_type_of(outcomes: Sequence[ReferenceOutcome]) -> EventType:
    """Return the event type of a report."""
    is_failed = any(outcome.failure is not None for outcome in outcomes)
    return EventType.FAILURES_EXIST if is_failed else EventType.ALL_COMMITTED


def _write(dataset: "Dataset", transfer_syntax: str) -> bytes:
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_dataset

    buffer = DicomBytesIO()
    buffer.is_little_endian = True
    buffer.is_implicit_VR = transfer_syntax == IMPLICIT_LITTLE_ENDIAN
    write_dataset(buffer, dataset)
    return buffer.getvalue()
