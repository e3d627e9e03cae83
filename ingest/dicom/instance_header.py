"""Read the instance header of a data set in a file: the few attributes that the node needs.

Memory is bounded, and a damaged data set is read as far as possible, as DCMTK does it. Attributes before the
damage count. After the damage the reader continues at the next element. It applies three rules. An element
whose VR is not two letters has a length of 16 bits. The first of two elements with one tag counts. Elements
may be in any order. docs/reference/conformance.md compares the reader with DCMTK and pydicom.
"""

import errno
import os
from collections.abc import Collection, Mapping, Sequence
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
"""Upper bound of a value. A UID has at most 64 bytes (PS3.5 9.1), and routes compare short texts."""

FIRST_WINDOW: Final = 16 << 10
"""Size of the first read, which is nearly always enough."""
WINDOW: Final = 64 << 10
AFTER_JUMP: Final = 4 << 10
"""Size of a read after a value that was skipped, such as one frame of many."""

_DAMAGE: Final = {
    1: "an element has no VR that is known",
    2: "an attribute is there twice with different values; the first counts",
    4: "elements are not in ascending order",
    8: "it ends within an element",
    16: "items or delimiters are out of place",
    32: "a value is too long; its beginning counts",
    64: "it cannot be inflated",
}
"""Text for each bit of `Damage` in ext/header.pxd."""
_CUT: Final = 8


@dataclass(frozen=True, slots=True)
class DataSetHeader:
    """Attributes read from the first part of a data set.

    Attributes:
        values: Raw values by tag, with padding, of the requested attributes that were found.
        damage: Faults of the data set, as bits of `Damage` in ext/header.pxd.
        is_whole: Whether the search was complete. Otherwise it ended at its bound, and a missing attribute
        may
            follow later.
    """

    values: Mapping[int, bytes]
    damage: int
    is_whole: bool

    @property
    def is_empty(self) -> bool:
        """Whether no requested attribute has a value."""
        return not any(self.values.values())

    @property
    def is_cut(self) -> bool:
        """Whether the data set ends within an element."""
        return bool(self.damage & _CUT)

    @property
    def remarks(self) -> list[str]:
        """Faults of the data set, in words."""
        return [text for number, text in _DAMAGE.items() if self.damage & number]

    def uid(self, tag: int) -> str:
        """Return a UID without padding and spaces, as DCMTK reads it; empty if it is missing."""
        return strip_uid_padding(self.values.get(tag, b"").decode("ascii", "replace"))


def strip_uid_padding(text: str) -> str:
    """Remove the padding of a UID (PS3.5 9.1: one NUL), and the spaces that some writers add."""
    return text.rstrip("\0 ").replace(" ", "")


def read_data_set_header(  # noqa: PLR0917 - a part of a file has three numbers
    fd: int,
    offset: int,
    length: int,
    transfer_syntax_uid: str,
    tags: Sequence[int],
    bytes_max: int,
    optional: Collection[int] = frozenset(),
) -> DataSetHeader:
    """Read requested attributes of the data set in a file.

    Args:
        fd: Descriptor of the file.
        offset: Position of the data set in the file.
        length: Size of the data set in bytes.
        transfer_syntax_uid: Transfer syntax of the data set.
        tags: Requested attributes, in ascending order, each once.
        bytes_max: Bytes to read, or to inflate, before the search ends. Skipped values do not count.
        optional: Those of `tags` that are not searched for behind their position in ascending order.

    Raises:
        OSError: The file cannot be read, or is shorter than the data set.
    """
    reader = HeaderReader(transfer_syntax_uid, tags, VALUE_MAX, bytes_max, optional)
    window, read, end, damage = min(FIRST_WINDOW, bytes_max), 0, 0, 0
    while not (reader.is_done or reader.is_exhausted) and read < bytes_max:
        start = reader.position
        if start > length:
            damage = 0 if reader.has_required else _CUT
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
    is_whole = reader.is_done or reader.has_required or bool(damage)
    return DataSetHeader(reader.values, reader.damage | damage, is_whole)


def begins_with_file_meta(fd: int, offset: int, transfer_syntax_uid: str) -> bool:
    """Return whether a data set begins with group 0002, which belongs to the File Meta (PS3.10 7.1).

    Readers such as pydicom ignore the group length and add all following elements of group 0002 to the File
    Meta. With such a data set a peer could replace our File Meta.

    Raises:
        OSError: The file cannot be read.
    """
    if transfer_syntax_uid in DEFLATED:
        return False  # a deflate stream may begin with these bytes
    group = b"\x00\x02" if transfer_syntax_uid == EXPLICIT_BIG_ENDIAN else b"\x02\x00"
    return os.pread(fd, 2, offset) == group
