"""Whether a received data set is what its command said, read from the spool before the answer."""

import os
from dataclasses import dataclass
from typing import Final

from ext.errors import PeerError
from ext.header import scan
from ingest.dicom.dimse import Status
from ingest.dicom.uids import IMPLICIT_LITTLE_ENDIAN

SOP_CLASS_UID: Final = 0x00080016
SOP_INSTANCE_UID: Final = 0x00080018
TAGS: Final = (SOP_CLASS_UID, SOP_INSTANCE_UID)

LAST_TAG: Final = 0xFFFCFFFC
"""Data Set Trailing Padding: no element of a data set comes after it."""
UNDEFINED_LENGTH: Final = 0xFFFFFFFF

STEPS: Final = (4096, 65536, 1 << 20, 16 << 20)
"""How much of the data set is read, from try to try: (0008,0018) mostly lies in the first kilobyte."""


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
    fd: int, offset: int, length: int, *, transfer_syntax: str, sop_class: str, sop_instance: str
) -> Verdict:
    """Compare SOP class and instance UID of the data set with those of the C-STORE command (PS3.4 B.2.3).

    A data set that lacks one of them is taken: the command, and with it the File Meta, names the instance.

    Args:
        fd: The spool file.
        offset: Where the data set starts in it.
        length: Bytes of the data set.
        transfer_syntax: That of the presentation context.
        sop_class: Affected SOP Class UID of the command.
        sop_instance: Affected SOP Instance UID of the command.

    Raises:
        OSError: The spool cannot be read.
    """
    if not length:
        return Verdict(Status.CANNOT_UNDERSTAND, "the data set is empty")
    try:
        found = _header(fd, offset, length, transfer_syntax)
    except PeerError as error:
        return Verdict(Status.CANNOT_UNDERSTAND, f"unreadable: {error}")
    for tag, name, expected in (
        (SOP_CLASS_UID, "SOP Class UID", sop_class),
        (SOP_INSTANCE_UID, "SOP Instance UID", sop_instance),
    ):
        value = found.get(tag, b"").rstrip(b"\0 ")
        if value and value != expected.encode("ascii", "replace"):
            return Verdict(Status.DATA_SET_MISMATCH, f"{name} differs between command and data set")
    return SOUND


def _header(fd: int, offset: int, length: int, transfer_syntax: str) -> dict[int, bytes]:
    for step in STEPS:
        data = os.pread(fd, min(step, length), offset)
        found = scan(data, transfer_syntax, TAGS, len(data) >= length or step == STEPS[-1])
        if found:
            return found
        if found is not None:
            break
    _look_closer(os.pread(fd, min(STEPS[0], length), offset), length, transfer_syntax)
    return {}


def _look_closer(data: bytes, length: int, transfer_syntax: str) -> None:
    """Neither UID is there, and the scan may have ended at once, at what only looks like a greater tag.

    Args:
        data: The beginning of the data set.
        length: Bytes of all of it.
        transfer_syntax: How it is encoded.

    Raises:
        PeerError: The elements of the beginning cannot be read.
    """
    scan(data, transfer_syntax, (LAST_TAG,), False)
    if transfer_syntax == IMPLICIT_LITTLE_ENDIAN:
        # There is no VR to tell noise by. PS3.5 Table 7.1-3, bytes 5-8: value length
        first = int.from_bytes(data[4:8], "little")
        if len(data) < 8 or (first != UNDEFINED_LENGTH and first > length - 8):
            raise PeerError("the first element is longer than the data set", PeerError.INVALID_PARAMETER)
