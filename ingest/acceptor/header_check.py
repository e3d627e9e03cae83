"""Whether a received data set is what its command said, read from the spool before the answer."""

from dataclasses import dataclass
from typing import Final

from ingest.dicom.dimse import Status
from ingest.dicom.instance_header import (
    SOP_CLASS_UID,
    SOP_INSTANCE_UID,
    Header,
    begins_with_file_meta,
    plain_uid,
    read_header,
)

TAGS: Final = (SOP_CLASS_UID, SOP_INSTANCE_UID)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to answer, and for the log what to do about it.

    `comment` is the Error Comment (PS3.7 C.4.2) and names no value of the data set.
    """

    status: int
    comment: str = ""
    remedy: str = ""


SOUND: Final = Verdict(Status.SUCCESS)


def check(
    fd: int,
    offset: int,
    length: int,
    *,
    transfer_syntax: str,
    sop_class: str,
    sop_instance: str,
    header_max_bytes: int,
) -> Verdict:
    """Compare SOP class and instance UID of the data set with those of the C-STORE command (PS3.4 B.2.3).

    A data set that lacks one of them is taken: the command, and with it the File Meta, names the instance.
    So is one that has not come to them within `header_max_bytes`: the persist worker reads on.

    Args:
        fd: The spool file.
        offset: Where the data set starts in it.
        length: Bytes of the data set.
        transfer_syntax: That of the presentation context.
        sop_class: Affected SOP Class UID of the command.
        sop_instance: Affected SOP Instance UID of the command.
        header_max_bytes: Bytes to read at most.

    Raises:
        OSError: The spool cannot be read.
    """
    if not length:
        return Verdict(Status.CANNOT_UNDERSTAND, "the data set is empty")
    if begins_with_file_meta(fd, offset, transfer_syntax):
        return Verdict(Status.CANNOT_UNDERSTAND, "the data set begins with group 0002")
    header = read_header(fd, offset, length, transfer_syntax, TAGS, header_max_bytes)
    for tag, name, expected in (
        (SOP_CLASS_UID, "SOP Class UID", sop_class),
        (SOP_INSTANCE_UID, "SOP Instance UID", sop_instance),
    ):
        if header.uid(tag) not in {"", plain_uid(expected)}:
            return Verdict(Status.DATA_SET_MISMATCH, f"{name} differs between command and data set")
    if is_unreadable(header):
        return Verdict(Status.CANNOT_UNDERSTAND, f"unreadable: {header.remarks[0]}"[:64])
    return SOUND


def is_unreadable(header: Header) -> bool:
    """Whether a damaged data set gives nothing that was asked for, or ends before it names its instance."""
    if header.is_empty:
        return header.is_whole and bool(header.damage)
    return header.is_cut and SOP_INSTANCE_UID not in header.values
