"""The top level of a data set: where each data element begins and ends. Values are stepped over, not read.

The walk goes through the whole data set, because some writers do not order its elements, and an attribute
that is to be removed must not be missed. A value of defined length costs one read of its header. Within
values of undefined length each item or fragment costs one.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ingest.dicom import uids
from ingest.dicom.padding import (
    DEPTH_MAX,
    IMPLICIT_SYNTAXES,
    ITEM,
    ITEM_END,
    SEQUENCE_END,
    SHORT_VRS,
    TICK_ELEMENTS,
    UNDEFINED_LENGTH,
    Read,
    find_vr,
)
from ingest.errors import PeerError

ELEMENTS_MAX: Final = 1 << 16
"""Elements of the top level. PS3.6 has about 5,000 attributes."""

_BLOCK_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Element:
    """A data element of the top level.

    Attributes:
        tag: Its tag.
        vr: Its VR; that of PS3.6 in Implicit VR.
        begin, value_at, end: Positions of its header, of its value, and behind it with its delimiter.
        is_undefined: Whether its length is undefined.
    """

    tag: int
    vr: bytes
    begin: int
    value_at: int
    end: int
    is_undefined: bool = False

    @property
    def length(self) -> int:
        """Length of the value in bytes, with its delimiter."""
        return self.end - self.value_at


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a transfer syntax encodes data elements: `order` is "<" or ">" of `struct`."""

    order: str
    is_implicit: bool

    @classmethod
    def of_syntax(cls, transfer_syntax: str) -> "Encoding":
        """Return the encoding of a transfer syntax. Compressed ones are Explicit VR Little Endian."""
        order = ">" if transfer_syntax == uids.EXPLICIT_BIG_ENDIAN else "<"
        return cls(order, transfer_syntax in IMPLICIT_SYNTAXES)

    def encode_header(self, tag: int, vr: bytes, length: int) -> bytes:
        """Encode the header of an element (PS3.5 7.1), or of an item with an empty VR.

        Raises:
            ValueError: The length field has no room.
        """
        head = struct.pack(self.order + "HH", tag >> 16, tag & 0xFFFF)
        is_short = bool(vr) and vr in SHORT_VRS and not self.is_implicit
        if length >= (1 << 16 if is_short else UNDEFINED_LENGTH):
            raise ValueError(f"{length} bytes do not fit into an element")
        if self.is_implicit or not vr:
            return head + struct.pack(self.order + "L", length)
        if is_short:
            return head + vr + struct.pack(self.order + "H", length)
        return head + vr + b"\0\0" + struct.pack(self.order + "L", length)


def list_elements(
    read: Read,
    length: int,
    transfer_syntax: str,
    on_tick: Callable[[], None] = lambda: None,
    *,
    is_whole: bool = True,
) -> list[Element]:
    """List the elements of the top level, in the order of the data set.

    Args:
        read: Returns bytes of the data set.
        length: Length of the data set in bytes.
        transfer_syntax: UID of its transfer syntax; an inflated data set is Explicit VR Little Endian.
        on_tick: Called every few thousand elements.
        is_whole: Whether the data set is complete. Otherwise the list ends where elements cannot be read.

    Raises:
        PeerError: The data set is not encoded in its transfer syntax.
    """
    walk = _Walk(read, length, Encoding.of_syntax(transfer_syntax), on_tick)
    found: list[Element] = []
    try:
        walk.run(found)
    except PeerError:
        if is_whole or not found:
            raise
    return found


class _Walk:
    """One walk through a data set."""

    def __init__(self, read: Read, length: int, encoding: Encoding, on_tick: Callable[[], None]) -> None:
        self._read = read
        self._length = length
        self._order = encoding.order
        self._implicit = encoding.is_implicit
        self._on_tick = on_tick
        self._steps = 0
        self._block, self._block_at = b"", 0

    def run(self, found: list[Element]) -> None:
        """Add the elements of the top level to a list."""
        at = 0
        while self._length - at >= 8:
            element = self._element(at, self._implicit, 0)
            if element.tag >> 16 != 0xFFFE:  # readers skip delimiters here, and so does padding
                found.append(element)
            if len(found) > ELEMENTS_MAX:
                raise PeerError(f"it has more than {ELEMENTS_MAX} data elements")
            at = element.end
        # Some writers pad files with zeros. The padding of odd data sets removes them, if it is needed.
        if self._bytes(at, self._length - at).strip(b"\0"):
            raise PeerError(f"{self._length - at} bytes at its end are no data element")

    def _element(self, at: int, implicit: bool, depth: int) -> Element:
        self._tick()
        tag = self._tag(at, implicit)
        if tag >> 16 == 0xFFFE:
            return Element(tag, b"", at, at + 8, at + 8)
        vr, length_at, length_size, implicit = self._header(at, tag, implicit, depth)
        length = self._number(length_at, length_size, implicit)
        value_at = length_at + length_size
        if length_size == 4 and length == UNDEFINED_LENGTH:
            inner = implicit or vr == b"UN"  # PS3.5 6.2.2
            if inner or vr == b"SQ":
                end = self._skip_items(value_at, inner, depth + 1)
            else:
                end = self._skip_fragments(value_at)
            return Element(tag, vr, at, value_at, end, is_undefined=True)
        if value_at + length > self._length:
            raise PeerError(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) ends behind the data set")
        return Element(tag, vr, at, value_at, value_at + length)

    def _header(self, at: int, tag: int, implicit: bool, depth: int) -> tuple[bytes, int, int, bool]:
        """Return VR, position and size of the length field, and whether the element is in Implicit VR."""
        vr = b"" if implicit else self._bytes(at + 4, 2)
        if not vr.isalpha() or not vr.isupper():
            # Some writers put Implicit VR elements into the items of an explicit data set.
            if not implicit and (depth == 0 or self._order == ">"):
                raise PeerError(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) has no VR")
            return find_vr(tag), at + 4, 4, True
        return (vr, at + 6, 2, False) if vr in SHORT_VRS else (vr, at + 8, 4, False)

    def _skip_items(self, at: int, implicit: bool, depth: int) -> int:
        """Return the position behind a sequence of undefined length; its delimiter may be missing."""
        if depth > DEPTH_MAX:
            raise PeerError(f"it nests more than {DEPTH_MAX} sequences")
        while at < self._length:
            tag, length = self._item(at, implicit)
            at += 8
            if tag == SEQUENCE_END:
                return at
            if tag != ITEM:
                raise PeerError(
                    f"({tag >> 16:04X},{tag & 0xFFFF:04X}) in a sequence, where an item has to be"
                )
            at = self._skip_elements(at, implicit, depth) if length == UNDEFINED_LENGTH else at + length
        return self._require_within(at)

    def _skip_elements(self, at: int, implicit: bool, depth: int) -> int:
        """Return the position behind an item of undefined length."""
        while at < self._length:
            element = self._element(at, implicit, depth)
            at = element.end
            if element.tag == ITEM_END:
                return at
        return at

    def _skip_fragments(self, at: int) -> int:
        """Return the position behind an encapsulated value (PS3.5 A.4)."""
        while at < self._length:
            tag, length = self._item(at, False)
            at += 8
            if tag == SEQUENCE_END:
                return at
            if tag != ITEM or length == UNDEFINED_LENGTH:
                raise PeerError("an encapsulated value has something other than fragments")
            at += length
        return self._require_within(at)

    def _require_within(self, at: int) -> int:
        if at > self._length:
            raise PeerError("an item ends behind the data set")
        return at

    def _item(self, at: int, implicit: bool) -> tuple[int, int]:
        self._tick()
        return self._tag(at, implicit), self._number(at + 4, 4, implicit)

    def _tick(self) -> None:
        self._steps += 1
        if self._steps % TICK_ELEMENTS == 0:
            self._on_tick()

    def _tag(self, at: int, implicit: bool) -> int:
        group, number = struct.unpack(("<" if implicit else self._order) + "HH", self._bytes(at, 4))
        return int(group) << 16 | int(number)

    def _number(self, at: int, size: int, implicit: bool) -> int:
        order = "<" if implicit else self._order
        return int(struct.unpack(order + ("L" if size == 4 else "H"), self._bytes(at, size))[0])

    def _bytes(self, at: int, count: int) -> bytes:
        begin = at - self._block_at
        if begin < 0 or begin + count > len(self._block):
            self._block, self._block_at, begin = self._read(at, _BLOCK_BYTES), at, 0
        found = self._block[begin : begin + count]
        if len(found) < count:
            raise PeerError("it ends within the header of an element")
        return found
