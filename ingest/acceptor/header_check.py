"""Check of a received data set against its C-STORE command, before the response."""

from dataclasses import dataclass
from typing import Final

from ingest.dicom.commitment import TRANSACTION_UID
from ingest.dicom.dimse import Status
from ingest.dicom.instance_header import (
    SOP_CLASS_UID,
    SOP_INSTANCE_UID,
    DataSetHeader,
    begins_with_file_meta,
    read_data_set_header,
    strip_uid_padding,
)
from ingest.dicom.uids import is_valid_uid

TAGS: Final = (SOP_CLASS_UID, SOP_INSTANCE_UID)


@dataclass(frozen=True, slots=True)
class StoreResult:
    """Status of a C-STORE response, and the reason for a failure.

    Attributes:
        status: (0000,0900) of the response.
        comment: Error Comment (PS3.7 C.4.2). It contains no value of the data set.
        remedy: The next step of a person, for the log.
    """

    status: int
    comment: str = ""
    remedy: str = ""


SUCCESS: Final = StoreResult(Status.SUCCESS)


def check_header(
    fd: int,
    offset: int,
    length: int,
    *,
    transfer_syntax: str,
    sop_class: str,
    sop_instance: str,
    header_max_bytes: int,
) -> StoreResult:
    """Compare SOP Class UID and SOP Instance UID of the data set with those of the command (PS3.4 B.2.3).

    A data set without one of them is accepted, because command and File Meta Information name the
    instance. A data set that has not reached them within `header_max_bytes` is accepted as well. The
    persist worker reads further.

    Args:
        fd: Descriptor of the spool file.
        offset: Position of the data set in the file.
        length: Size of the data set in bytes.
        transfer_syntax: Transfer syntax of the presentation context.
        sop_class: Affected SOP Class UID of the command.
        sop_instance: Affected SOP Instance UID of the command.
        header_max_bytes: Upper bound of the bytes to read.

    Raises:
        OSError: The spool cannot be read.
    """
    if not length:
        return StoreResult(Status.CANNOT_UNDERSTAND, "the data set is empty")
    if begins_with_file_meta(fd, offset, transfer_syntax):
        return StoreResult(Status.CANNOT_UNDERSTAND, "the data set begins with group 0002")
    header = read_data_set_header(fd, offset, length, transfer_syntax, TAGS, header_max_bytes)
    for tag, name, expected in (
        (SOP_CLASS_UID, "SOP Class UID", sop_class),
        (SOP_INSTANCE_UID, "SOP Instance UID", sop_instance),
    ):
        if header.uid(tag) not in {"", strip_uid_padding(expected)}:
            return StoreResult(Status.DATA_SET_MISMATCH, f"{name} differs between command and data set")
    if is_unreadable(header):
        return StoreResult(Status.CANNOT_UNDERSTAND, f"unreadable: {header.remarks[0]}"[:64])
    return SUCCESS


def check_commitment_header(fd: int, offset: int, length: int, transfer_syntax: str) -> StoreResult:
    """Check that a request for storage commitment has a Transaction UID (PS3.4 Table J.3-1).

    The references are read later, because thousands of them would hold up the other associations.

    Args:
        fd: Descriptor of the spool file.
        offset: Position of the data set in the file.
        length: Size of the data set in bytes.
        transfer_syntax: Transfer syntax of the presentation context.

    Raises:
        OSError: The spool cannot be read.
    """
    header = read_data_set_header(fd, offset, length, transfer_syntax, (TRANSACTION_UID,), length)
    if not is_valid_uid(header.uid(TRANSACTION_UID)):
        return StoreResult(Status.INVALID_ARGUMENT, "the request has no Transaction UID")
    return SUCCESS


def is_unreadable(header: DataSetHeader) -> bool:
    """Return whether a damaged data set has no requested attribute, or ends before its SOP Instance UID."""
    if header.is_empty:
        return header.is_whole and bool(header.damage)
    return header.is_cut and SOP_INSTANCE_UID not in header.values
