"""The attributes that the node needs of a data set in a file, also of a damaged one, in bounded memory.

Attributes before the damage count. After it the reader goes on wherever the next element can be found, as
DCMTK does: an element whose VR is no letters has a length of 16 bits, of two elements with one tag the first
counts, and elements may come in any order. docs/reference/conformance.md compares it with DCMTK and pydicom.
"""

import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ingest.dicom.uids import DEFLATED, EXPLICIT_BIG_ENDIAN
from ingest.ext.header import HeaderReader

SOP_CLASS_UID: Final = 0x0008_0016
SOP_INSTANCE_UID: Final = 0x0008_0018
STUDY_INSTANCE_UID: Final = 0x0020_000D
SERIES_INSTANCE_UID: Final = 0x0020_000E
UIDS: Final = (SOP_CLASS_UID, SOP_INSTANCE_UID, STUDY_INSTANCE_UID, SERIES_INSTANCE_UID)

VALUE_MAX: Final = 16 << 10
"""Bytes of a value that are read; a UID has 64 at most (PS3.5 9.1), and routes compare short texts."""

FIRST_WINDOW: Final = 16 << 10
"""Nearly always enough."""
WINDOW: Final = 64 << 10
AFTER_JUMP: Final = 4 << 10
"""Bytes read behind a value that was passed over, such as one frame of many."""

_DAMAGE: Final = {
    1: "an element has no VR that is known",
    2: "an attribute is there twice with different values; the first counts",
    4: "elements are not in ascending order",
    8: "it ends within an element",
    16: "items or delimiters are out of place",
    32: "a value is too long; its beginning counts",
    64: "it cannot be inflated",
}
"""By the numbers of `Damage` in ext/header.pxd."""
_CUT: Final = 8


@dataclass(frozen=True, slots=True)
class Header:
    """What was read.

    Attributes:
        values: Raw values by tag, padding included, of the attributes asked for that are there.
        damage: What was wrong, as the sum of numbers.
        is_whole: False where the search ended at its bound, so that what is missing may still come.
    """

    values: Mapping[int, bytes]
    damage: int
    is_whole: bool

    @property
    def is_empty(self) -> bool:
        """Whether no attribute asked for has a value."""
        return not any(self.values.values())

    @property
    def is_cut(self) -> bool:
        """Whether the data set ends within an element."""
        return bool(self.damage & _CUT)

    @property
    def remarks(self) -> list[str]:
        """What was wrong, for people."""
        return [text for number, text in _DAMAGE.items() if self.damage & number]

    def uid(self, tag: int) -> str:
        """A UID without padding and spaces, as DCMTK reads it; empty where it is missing."""
        return plain_uid(self.values.get(tag, b"").decode("ascii", "replace"))


def plain_uid(text: str) -> str:
    """A UID without its padding (PS3.5 9.1: one NUL) and without the spaces that some writers put into it."""
    return text.rstrip("\0 ").replace(" ", "")


def read_header(  # noqa: PLR0917 - a part of a file has three numbers
    fd: int, offset: int, length: int, transfer_syntax_uid: str, tags: Sequence[int], bytes_max: int
) -> Header:
    """Read attributes of the data set that a file holds.

    Args:
        fd: The file.
        offset: Where the data set begins in it.
        length: Bytes of the data set.
        transfer_syntax_uid: How it is encoded.
        tags: The attributes asked for: ascending, each once.
        bytes_max: Bytes to read, or to inflate, before the search ends. Values that are passed over do not
            count.

    Raises:
        OSError: The file cannot be read, or is shorter than that.
    """
    reader = HeaderReader(transfer_syntax_uid, tags, VALUE_MAX, bytes_max)
    window, read, end, damage = min(FIRST_WINDOW, bytes_max), 0, 0, 0
    while not (reader.is_done or reader.is_exhausted) and read < bytes_max:
        start = reader.position
        if start > length:
            damage = _CUT
            break
        data = os.pread(fd, min(window, length - start), offset + start)
        if len(data) < min(window, length - start):
            raise OSError(errno.EIO, "the file is shorter than the data set that was written to it")
        reader.feed(data, start + len(data) == length)
        read += len(data)
        end = start + len(data)
        window = (
            AFTER_JUMP
            if reader.position > end
            else max(WINDOW, 2 * window if reader.position == start else 0)
        )
    return Header(reader.values, reader.damage | damage, reader.is_done or bool(damage))


def begins_with_file_meta(fd: int, offset: int, transfer_syntax_uid: str) -> bool:
    """Whether a data set begins with an element of group 0002, which belongs to the File Meta (PS3.10 7.1).

    Readers such as pydicom take what follows the File Meta for a part of it for as long as the group is 0002,
    whatever the group length says: with a data set that begins so, a peer could replace our File Meta.

    Raises:
        OSError: The file cannot be read.
    """
    if transfer_syntax_uid in DEFLATED:
        return False  # a deflate stream may begin with these bytes
    group = b"\x00\x02" if transfer_syntax_uid == EXPLICIT_BIG_ENDIAN else b"\x02\x00"
    return os.pread(fd, 2, offset) == group
