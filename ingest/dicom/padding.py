"""Padding of odd values: the edits that make each value of a data set even (PS3.5 7.1).

Some senders write an odd last value. Some receivers abort the association when a data set ends in an odd
fragment (PS3.8 E.1). `find_edits` finds each odd value and returns the edits to make while the data set is
sent. The file stays unchanged. Only structure is read: element headers and offset tables.

A value gets one more byte (PS3.5 6.2: a space for text, 00H for UI and bytes; A.4: 00H for a fragment). Four
kinds of numbers change with it:

- the length of the value;
- the lengths of the sequences and items around it, unless they are undefined;
- the length of its group (gggg,0000), if there is one;
- the offsets of later fragments in the Basic Offset Table (A.4) and the Extended Offset Table (PS3.3
  C.7.6.3.1.8).
"""

import struct
from array import array
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cache
from typing import Final

from ingest.dicom import uids
from ingest.errors import PeerError

Read = Callable[[int, int], bytes]
"""Returns bytes from a position of the data set, as many as requested except at its end."""

EDITS_MAX: Final = 1 << 17
TABLE_MAX: Final = 1 << 22
"""Upper bound of an offset table that is corrected, in bytes."""
DEPTH_MAX: Final = 64
TICK_ELEMENTS: Final = 4096

_BLOCK: Final = 1 << 16
UNDEFINED_LENGTH: Final = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD  # PS3.5 Tables 7.5-1 to 7.5-3
_EXTENDED_OFFSET_TABLE: Final = 0x7FE00001
_ITEM_BYTES: Final = b"\xfe\xff\x00\xe0"
# PS3.5 Table 7.1-2: the VRs with a length of 16 bits.
SHORT_VRS: Final = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
# PS3.5 6.2: the VRs that are padded with a space.
SPACE_PADDED_VRS: Final = frozenset(b"AE AS CS DA DS DT IS LO LT PN SH ST TM UC UR UT".split())
IMPLICIT_SYNTAXES: Final = frozenset(
    {uids.IMPLICIT_LITTLE_ENDIAN, "1.2.840.10008.1.20", "1.2.840.113619.5.2"}
)


@dataclass(frozen=True, slots=True, order=True)
class Edit:
    """A replacement of bytes.

    Attributes:
        at: Position in the data set.
        removed: Number of bytes to remove there.
        bytes: Bytes to insert there.
    """

    at: int
    removed: int
    bytes: bytes


def has_odd_value(length: int, transfer_syntax: str) -> bool:
    """Return whether a data set of this length has an odd value. A deflate stream has its own padding."""
    return bool(length & 1) and transfer_syntax not in uids.DEFLATED


def find_edits(
    read: Read, length: int, transfer_syntax: str, on_tick: Callable[[], None] = lambda: None
) -> list[Edit]:
    """Find the edits that make every value even, in order of position.

    Args:
        read: Returns bytes of the data set.
        length: Size of the data set in bytes.
        transfer_syntax: UID of its transfer syntax, not a deflated one.
        on_tick: Called every few thousand elements.

    Raises:
        PeerError: The odd value cannot be found, or its length field has no room.
    """
    return _Walk(read, length, transfer_syntax, on_tick).run()


class _Kind(Enum):
    ELEMENTS = auto()
    """A data set, or an item: data elements up to the end."""
    ITEMS = auto()
    """A sequence."""
    FRAGMENTS = auto()
    """An encapsulated value (PS3.5 A.4)."""


@dataclass(slots=True)
class _Level:
    """One level of nesting: the data set, a sequence, an item or an encapsulated value.

    Attributes:
        end: Position of its end. A level of undefined length has the end of the nearest defined one.
        defined: Whether its length is defined.
        length_at, length_size, length: Position, size and value of its length field.
        length_order: Byte order of the length field.
        added: Number of bytes that its content has grown by.
        group, group_at, group_length, group_added: Number of the current group, and its group length if any.
        offsets: Position and length of the Extended Offset Table of this data set.
        first: FRAGMENTS: position of the first fragment's item; 0 before the Basic Offset Table.
        table: FRAGMENTS: position and length of the Basic Offset Table.
        odd: FRAGMENTS: positions of odd fragments, relative to `first`.
    """

    kind: _Kind
    end: int
    defined: bool
    implicit: bool
    length_at: int = 0
    length_size: int = 0
    length: int = 0
    length_order: str = "<"
    added: int = 0
    group: int = -1
    group_at: int = 0
    group_length: int = 0
    group_added: int = 0
    offsets: tuple[int, int] = (0, 0)
    first: int = 0
    table: tuple[int, int] = (0, 0)
    odd: "array[int]" = field(default_factory=lambda: array("Q"))


class _Walk:
    """One walk through a data set."""

    def __init__(self, read: Read, length: int, transfer_syntax: str, on_tick: Callable[[], None]) -> None:
        self._read = read
        self._length = length
        self._on_tick = on_tick
        self._order = ">" if transfer_syntax == uids.EXPLICIT_BIG_ENDIAN else "<"
        self._edits: list[Edit] = []
        self._levels = [_Level(_Kind.ELEMENTS, length, True, transfer_syntax in IMPLICIT_SYNTAXES)]
        self._block, self._block_at = b"", 0

    def run(self) -> list[Edit]:
        at = count = 0
        while at < self._length:
            level = self._levels[-1]
            if at == level.end:  # without a delimiter if the length is undefined; readers accept that
                self._leave()
                continue
            at = self._step(level, at)
            if at > level.end:
                raise PeerError(f"a value ends {at - level.end} bytes beyond the value around it")
            count += 1
            if count % TICK_ELEMENTS == 0:
                self._on_tick()
        while len(self._levels) > 1:
            self._leave()
        self._close_group(self._levels[0])
        return sorted(self._edits)

    def _step(self, level: _Level, at: int) -> int:
        """Process one element, item or delimiter; return the position of the next one."""
        if level.kind is not _Kind.ELEMENTS:
            return self._item(level, at)
        left = level.end - at
        if left < 8:
            return self._rest(at, left)
        tag = self._tag(at)
        if tag >> 16 == 0xFFFE:
            if tag == ITEM_END and not level.defined:
                self._leave()
            return at + 8  # readers skip any other item or delimiter here
        self._enter_group(level, tag >> 16)
        return self._element(level, at, tag)

    def _element(self, level: _Level, at: int, tag: int) -> int:
        vr, length_at, length_size, implicit = self._header(level, at, tag)
        length = self._number(length_at, length_size, implicit=implicit)
        value_at = length_at + length_size
        if length == UNDEFINED_LENGTH and length_size == 4:
            is_sequence = implicit or vr in {b"SQ", b"UN"}
            kind = _Kind.ITEMS if is_sequence else _Kind.FRAGMENTS
            self._enter(_Level(kind, level.end, False, implicit or vr == b"UN"))
            return value_at
        end = value_at + length
        if end > level.end:
            raise PeerError(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) ends beyond the value around it")
        if vr == b"SQ" or (vr == b"UN" and length & 1 and length > 8 and self._begins_item(value_at)):
            inner, order = implicit or vr == b"UN", self._order_of(implicit)
            self._enter(_Level(_Kind.ITEMS, end, True, inner, length_at, length_size, length, order))
            return value_at
        if tag & 0xFFFF == 0 and length == 4:
            level.group_at, level.group_length = value_at, self._number(value_at, 4, implicit=implicit)
        elif tag == _EXTENDED_OFFSET_TABLE:
            level.offsets = value_at, length
        if length & 1:
            self._pad(level, end, b" " if vr in SPACE_PADDED_VRS else b"\0")
            self._lengthen(length_at, length_size, length + 1, self._order_of(implicit), tag)
        return end

    def _begins_item(self, at: int) -> bool:
        """Return whether a value of an unknown VR is a sequence (PS3.5 6.2.2)."""
        return self._bytes(at, 4) == _ITEM_BYTES

    def _item(self, level: _Level, at: int) -> int:
        """Process an item or a delimiter of a sequence or of an encapsulated value."""
        if level.end - at < 8:
            raise PeerError("a sequence ends within the header of an item")
        tag = self._tag(at, implicit=level.implicit)
        length = self._number(at + 4, 4, implicit=level.implicit)
        value_at = at + 8
        if tag == SEQUENCE_END:
            if not level.defined:
                self._leave()
            return value_at
        if tag != ITEM:
            raise PeerError(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) in a sequence, where an item has to be")
        if level.kind is _Kind.FRAGMENTS:
            return self._fragment(level, at, length)
        defined = length != UNDEFINED_LENGTH
        if defined and value_at + length > level.end:
            raise PeerError("an item ends behind its sequence")
        end = value_at + length if defined else level.end
        order = self._order_of(level.implicit)
        self._enter(_Level(_Kind.ELEMENTS, end, defined, level.implicit, at + 4, 4, length, order))
        return value_at

    def _fragment(self, level: _Level, at: int, length: int) -> int:
        end = at + 8 + length
        if length == UNDEFINED_LENGTH or end > level.end:
            raise PeerError("a fragment ends behind its value")
        if not level.first:
            level.first, level.table = end, (at + 8, length)
        elif length & 1:
            level.odd.append(at - level.first)
        if length & 1:
            self._pad(level, end, b"\0")
            self._lengthen(at + 4, 4, length + 1, "<", ITEM)
        return end

    def _rest(self, at: int, left: int) -> int:
        """Remove fewer bytes than an element has, if they are the padding that some writers add to files."""
        if len(self._levels) > 1 or self._bytes(at, left).strip(b"\0"):
            raise PeerError(f"{left} bytes at the end are no data element")
        self._edit(Edit(at, left, b""))
        return at + left

    def _header(self, level: _Level, at: int, tag: int) -> tuple[bytes, int, int, bool]:
        """Return VR, position and size of the length field, and whether the element is in Implicit VR."""
        vr = b"" if level.implicit else self._bytes(at + 4, 2)
        if not vr.isalpha() or not vr.isupper():
            # Some writers put Implicit VR elements into the items of an explicit data set.
            if not level.implicit and (len(self._levels) == 1 or self._order == ">"):
                raise PeerError(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) has no VR")
            return find_vr(tag), at + 4, 4, True
        if vr in SHORT_VRS:
            return vr, at + 6, 2, False
        if level.end - at < 12:
            raise PeerError(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) ends within its header")
        return vr, at + 8, 4, False

    def _enter(self, level: _Level) -> None:
        if len(self._levels) > DEPTH_MAX:
            raise PeerError(f"it nests more than {DEPTH_MAX} sequences")
        self._levels.append(level)

    def _leave(self) -> None:
        level = self._levels.pop()
        outer = self._levels[-1]
        self._close_group(level)
        if level.kind is _Kind.FRAGMENTS and level.odd:
            self._correct_offsets(level.table, 4, level.odd)
            self._correct_offsets(outer.offsets, 8, level.odd)
        if level.added:
            if level.defined:
                grown = level.length + level.added
                self._lengthen(level.length_at, level.length_size, grown, level.length_order, ITEM)
            self._grow(outer, level.added)

    def _pad(self, level: _Level, at: int, padding: bytes) -> None:
        self._edit(Edit(at, 0, padding))
        self._grow(level, 1)

    @staticmethod
    def _grow(level: _Level, count: int) -> None:
        level.added += count
        level.group_added += count

    def _enter_group(self, level: _Level, group: int) -> None:
        if group != level.group:
            self._close_group(level)
            level.group, level.group_at, level.group_added = group, 0, 0

    def _close_group(self, level: _Level) -> None:
        if level.group_at and level.group_added:
            grown = level.group_length + level.group_added
            self._lengthen(level.group_at, 4, grown, self._order_of(level.implicit), level.group << 16)

    def _order_of(self, implicit: bool) -> str:
        return "<" if implicit else self._order

    def _lengthen(self, at: int, size: int, length: int, order: str, tag: int) -> None:
        if length >= (UNDEFINED_LENGTH if size == 4 else 1 << 16):
            raise PeerError(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) is odd, and its length can be no larger")
        self._edit(Edit(at, size, struct.pack(order + ("L" if size == 4 else "H"), length)))

    def _correct_offsets(self, table: tuple[int, int], size: int, odd: "array[int]") -> None:
        """Add to each offset the number of odd fragments before its target."""
        at, length = table
        if not length or length % size:
            return
        if length > TABLE_MAX:
            raise PeerError(f"an offset table of {length} bytes, which is too large to be corrected")
        for begin in range(0, length, _BLOCK):
            block = self._read(at + begin, min(_BLOCK, length - begin))
            offsets = struct.unpack(f"<{len(block) // size}{'L' if size == 4 else 'Q'}", block)
            mended = [offset + bisect_left(odd, offset) for offset in offsets]
            if size == 4 and max(mended) > 0xFFFFFFFF:
                raise PeerError("an offset would no longer fit into the Basic Offset Table")
            if list(offsets) != mended:
                packed = struct.pack(f"<{len(mended)}{'L' if size == 4 else 'Q'}", *mended)
                self._edit(Edit(at + begin, len(block), packed))

    def _edit(self, edit: Edit) -> None:
        if len(self._edits) >= EDITS_MAX:
            raise PeerError(f"it needs more than {EDITS_MAX} changes")
        self._edits.append(edit)

    def _tag(self, at: int, *, implicit: bool = False) -> int:
        group, number = struct.unpack(("<" if implicit else self._order) + "HH", self._bytes(at, 4))
        return int(group) << 16 | int(number)

    def _number(self, at: int, size: int, *, implicit: bool) -> int:
        order = "<" if implicit else self._order
        return int(struct.unpack(order + ("L" if size == 4 else "H"), self._bytes(at, size))[0])

    def _bytes(self, at: int, count: int) -> bytes:
        begin = at - self._block_at
        if begin < 0 or begin + count > len(self._block):
            self._block, self._block_at, begin = self._read(at, _BLOCK), at, 0
        found = self._block[begin : begin + count]
        if len(found) < count:
            raise PeerError("it ends within the header of an element")
        return found


@cache
def _dictionary() -> dict[int, bytes]:
    from ingest.dicom import registry  # noqa: PLC0415 - slow to import, and seldom needed

    return registry.list_vrs()


def find_vr(tag: int) -> bytes:
    """Return the VR of a tag in PS3.6; UN for an unknown tag."""
    return _dictionary().get(tag, b"UN")
