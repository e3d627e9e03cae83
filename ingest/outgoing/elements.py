"""The top level of a data set: where each data element begins and ends. Values are stepped over, not read.

The walk goes through the whole data set, because some writers do not order its elements, and an attribute
that is to be removed must not be missed. A value of defined length costs one read of its header. Within
values of undefined length each item or fragment costs one.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

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
        if length >= self.find_length_limit(vr):
            raise ValueError(f"{length} bytes do not fit into an element")
        return self._encode(tag, vr, length)

    def encode_undefined(self, tag: int, vr: bytes) -> bytes:
        """Encode the header of an element or item of undefined length."""
        return self._encode(tag, vr, UNDEFINED_LENGTH)

    def find_length_limit(self, vr: bytes) -> int:
        """Return the first length that does not fit into an element of this VR."""
        return 1 << 16 if self._is_short(vr) else UNDEFINED_LENGTH

    def _is_short(self, vr: bytes) -> bool:
        return vr in SHORT_VRS and not self.is_implicit

    def _encode(self, tag: int, vr: bytes, length: int) -> bytes:
        head = struct.pack(self.order + "HH", tag >> 16, tag & 0xFFFF)
        if self.is_implicit or not vr:
            return head + struct.pack(self.order + "L", length)
        if self._is_short(vr):
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
    walk = ElementWalk(read, length, Encoding.of_syntax(transfer_syntax), on_tick)
    found: list[Element] = []
    try:
        walk.run(found)
    except PeerError:
        if is_whole or not found:
            raise
    return found


class Header(NamedTuple):
    """The header of a data element.

    Attributes:
        tag: Its tag; that of an item or a delimiter if its group is FFFEH.
        vr: Its VR; that of PS3.6 in Implicit VR; empty for an item or a delimiter.
        value_at: Position of its value.
        length: Length of its value; None if it is undefined.
        is_implicit: Whether it is in Implicit VR Little Endian.
    """

    tag: int
    vr: bytes
    value_at: int
    length: int | None
    is_implicit: bool


class ElementReader:
    """Reads headers of data elements and items at positions of a data set."""

    def __init__(self, read: Read, length: int, encoding: Encoding, on_tick: Callable[[], None]) -> None:
        """Take a data set. Nothing is read yet."""
        self._read = read
        self._length = length
        self._order = encoding.order
        self._implicit = encoding.is_implicit
        self._on_tick = on_tick
        self._steps = 0
        self._block, self._block_at = b"", 0

    def read_header(self, at: int, implicit: bool, depth: int) -> Header:
        """Read the header of an element, whose value has to end within the data set.

        Raises:
            PeerError: There is none.
            OSError: The file cannot be read.
        """
        self._tick()
        tag = self._tag(at, implicit)
        if tag >> 16 == 0xFFFE:
            return Header(tag, b"", at + 8, 0, implicit)
        vr, length_at, length_size, implicit = self._header(at, tag, implicit, depth)
        length = self._number(length_at, length_size, implicit)
        value_at = length_at + length_size
        if length_size == 4 and length == UNDEFINED_LENGTH:
            return Header(tag, vr, value_at, None, implicit)
        if value_at + length > self._length:
            raise PeerError(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) ends behind the data set")
        return Header(tag, vr, value_at, length, implicit)

    def read_item(self, at: int, implicit: bool) -> tuple[int, int]:
        """Read tag and length of an item or a delimiter.

        Raises:
            PeerError: The data set ends within it.
            OSError: The file cannot be read.
        """
        self._tick()
        return self._tag(at, implicit), self._number(at + 4, 4, implicit)

    def _header(self, at: int, tag: int, implicit: bool, depth: int) -> tuple[bytes, int, int, bool]:
        """Return VR, position and size of the length field, and whether the element is in Implicit VR."""
        vr = b"" if implicit else self._bytes(at + 4, 2)
        if not vr.isalpha() or not vr.isupper():
            # Some writers put Implicit VR elements into the items of an explicit data set.
            if not implicit and (depth == 0 or self._order == ">"):
                raise PeerError(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) has no VR")
            return find_vr(tag), at + 4, 4, True
        return (vr, at + 6, 2, False) if vr in SHORT_VRS else (vr, at + 8, 4, False)

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


class ElementWalk(ElementReader):
    """Steps over the elements of a data set."""

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
        self.require_padding(at)

    def require_padding(self, at: int) -> None:
        """Require that nothing but zeros follows. Some writers pad files with them.

        Raises:
            PeerError: There is something else.
            OSError: The file cannot be read.
        """
        if self._bytes(at, self._length - at).strip(b"\0"):
            raise PeerError(f"{self._length - at} bytes at its end are no data element")

    def _element(self, at: int, implicit: bool, depth: int) -> Element:
        head = self.read_header(at, implicit, depth)
        if head.length is not None:
            return Element(head.tag, head.vr, at, head.value_at, head.value_at + head.length)
        return Element(
            head.tag, head.vr, at, head.value_at, self.skip_undefined(head, depth), is_undefined=True
        )

    def skip_undefined(self, head: Header, depth: int) -> int:
        """Return the position behind a value of undefined length, with its delimiter.

        Raises:
            PeerError: It is not encoded correctly.
            OSError: The file cannot be read.
        """
        inner = head.is_implicit or head.vr == b"UN"  # PS3.5 6.2.2
        if inner or head.vr == b"SQ":
            return self._skip_items(head.value_at, inner, depth + 1)
        return self._skip_fragments(head.value_at)

    def _skip_items(self, at: int, implicit: bool, depth: int) -> int:
        """Return the position behind a sequence of undefined length; its delimiter may be missing."""
        if depth > DEPTH_MAX:
            raise PeerError(f"it nests more than {DEPTH_MAX} sequences")
        while at < self._length:
            tag, length = self.read_item(at, implicit)
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
            tag, length = self.read_item(at, False)
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
