"""Padding of odd values: what has to change in a data set so that each value is even (PS3.5 7.1).

Senders exist whose last value is odd, and receivers that abort the association when a data set ends in an
odd fragment (PS3.8 E.1). The walk below finds each odd value, and gives the edits that mend the data set
while it is sent; the file stays as it came. Only structure is read: headers, and tables of offsets.

A value gets one byte more (PS3.5 6.2: a space for text, 00H for UI and bytes; A.4: 00H for a fragment). These
numbers change with it: its own length; the lengths of sequences and items around it, unless they are of
undefined length; the length of its group (gggg,0000), where there is one; and the offsets to later fragments
in the Basic Offset Table (A.4) and the Extended Offset Table (PS3.3 C.7.6.3.1.8).
"""

import struct
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cache
from typing import Final

from ingest.dicom import uids
from ingest.errors import PeerError

Read = Callable[[int, int], bytes]
"""Gives up to so many bytes from a position of the data set on; fewer only at its end."""

EDITS_MAX: Final = 1 << 17
TABLE_MAX: Final = 1 << 22
"""Bytes of an offset table that is mended."""
DEPTH_MAX: Final = 64
TICK_ELEMENTS: Final = 4096

_BLOCK: Final = 1 << 16
_UNDEFINED: Final = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD  # PS3.5 Tables 7.5-1 to 7.5-3
_EXTENDED_OFFSET_TABLE: Final = 0x7FE00001
_ITEM_BYTES: Final = b"\xfe\xff\x00\xe0"
# PS3.5 Table 7.1-2: the VRs with a length of 16 bits.
_SHORT: Final = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
# PS3.5 6.2: the VRs that are padded with a space.
_TEXT: Final = frozenset(b"AE AS CS DA DS DT IS LO LT PN SH ST TM UC UR UT".split())
_IMPLICIT: Final = frozenset({uids.IMPLICIT_LITTLE_ENDIAN, "1.2.840.10008.1.20", "1.2.840.113619.5.2"})


@dataclass(frozen=True, slots=True, order=True)
class Edit:
    """Bytes that take the place of others.

    Attributes:
        at: Where, from the beginning of the data set.
        removed: How many bytes of the data set are left out there.
        bytes: What comes in their place.
    """

    at: int
    removed: int
    bytes: bytes


def is_odd(length: int, transfer_syntax: str) -> bool:
    """Whether a data set of so many bytes has an odd value; a deflate stream is padded whole (PS3.5 A.5)."""
    return bool(length & 1) and transfer_syntax not in uids.DEFLATED


def find_edits(
    read: Read, length: int, transfer_syntax: str, on_tick: Callable[[], None] = lambda: None
) -> list[Edit]:
    """Find what has to change so that every value is even, in order of position.

    Args:
        read: Gives the bytes of the data set.
        length: How many there are.
        transfer_syntax: The UID of its transfer syntax; not a deflated one.
        on_tick: Called every few thousand elements.

    Raises:
        PeerError: The odd value cannot be told, or its length cannot be raised.
    """
    return _Walk(read, length, transfer_syntax, on_tick).run()


def changed_length(length: int, edits: Sequence[Edit]) -> int:
    """Bytes of a data set of so many once it is changed."""
    return length + sum(len(edit.bytes) - edit.removed for edit in edits)


def changed(read: Read, length: int, edits: Sequence[Edit]) -> Iterator[bytes]:
    """The changed data set in pieces of at most 64 KiB, none of them empty."""
    at = 0
    for edit in (*edits, Edit(length, 0, b"")):
        while at < edit.at:
            piece = read(at, min(_BLOCK, edit.at - at))
            yield piece
            at += len(piece)
        if edit.bytes:
            yield edit.bytes
        at += edit.removed


class _Kind(Enum):
    ELEMENTS = auto()
    """A data set, or an item: data elements up to the end."""
    ITEMS = auto()
    """A sequence."""
    FRAGMENTS = auto()
    """An encapsulated value (PS3.5 A.4)."""


@dataclass(slots=True)
class _Level:
    """What the walk is in.

    Attributes:
        end: Where it ends; for one of undefined length, where the nearest around it does.
        defined: Whether its length is known.
        length_at, length_size, length: Its own length field.
        length_order: The byte order of that.
        added: By how many bytes what is in it has grown.
        group, group_at, group_length, group_added: The group length of the group that the walk is in, if any.
        offsets: Where the Extended Offset Table of this data set is, and its length.
        first: FRAGMENTS: where the first fragment's item begins; 0 before the Basic Offset Table was seen.
        table: FRAGMENTS: where the Basic Offset Table is, and its length.
        odd: FRAGMENTS: where odd fragments begin, from `first`.
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
        self._levels = [_Level(_Kind.ELEMENTS, length, True, transfer_syntax in _IMPLICIT)]
        self._block, self._block_at = b"", 0

    def run(self) -> list[Edit]:
        at = count = 0
        while at < self._length:
            level = self._levels[-1]
            if at == level.end:  # of one of undefined length the delimiter is missing, which readers bear
                self._leave()
                continue
            at = self._step(level, at)
            if at > level.end:
                raise PeerError(f"a value ends {at - level.end} bytes behind what holds it")
            count += 1
            if count % TICK_ELEMENTS == 0:
                self._on_tick()
        while len(self._levels) > 1:
            self._leave()
        self._close_group(self._levels[0])
        return sorted(self._edits)

    def _step(self, level: _Level, at: int) -> int:
        """Take one element, item or delimiter; gives where the next one begins."""
        if level.kind is not _Kind.ELEMENTS:
            return self._item(level, at)
        left = level.end - at
        if left < 8:
            return self._rest(at, left)
        tag = self._tag(at)
        if tag >> 16 == 0xFFFE:
            if tag == _ITEM_END and not level.defined:
                self._leave()
            return at + 8  # others do not belong here; readers step over them
        self._enter_group(level, tag >> 16)
        return self._element(level, at, tag)

    def _element(self, level: _Level, at: int, tag: int) -> int:
        vr, length_at, length_size, implicit = self._header(level, at, tag)
        length = self._number(length_at, length_size, implicit=implicit)
        value_at = length_at + length_size
        if length == _UNDEFINED and length_size == 4:
            is_sequence = implicit or vr in {b"SQ", b"UN"}
            kind = _Kind.ITEMS if is_sequence else _Kind.FRAGMENTS
            self._enter(_Level(kind, level.end, False, implicit or vr == b"UN"))
            return value_at
        end = value_at + length
        if end > level.end:
            raise PeerError(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) ends behind what holds it")
        if vr == b"SQ" or (vr == b"UN" and length & 1 and length > 8 and self._begins_item(value_at)):
            inner, order = implicit or vr == b"UN", self._order_of(implicit)
            self._enter(_Level(_Kind.ITEMS, end, True, inner, length_at, length_size, length, order))
            return value_at
        if tag & 0xFFFF == 0 and length == 4:
            level.group_at, level.group_length = value_at, self._number(value_at, 4, implicit=implicit)
        elif tag == _EXTENDED_OFFSET_TABLE:
            level.offsets = value_at, length
        if length & 1:
            self._pad(level, end, b" " if vr in _TEXT else b"\0")
            self._lengthen(length_at, length_size, length + 1, self._order_of(implicit), tag)
        return end

    def _begins_item(self, at: int) -> bool:
        """Whether a value of an unknown VR is a sequence: in Implicit VR, or PS3.5 6.2.2."""
        return self._bytes(at, 4) == _ITEM_BYTES

    def _item(self, level: _Level, at: int) -> int:
        """An item or a delimiter of a sequence or of an encapsulated value."""
        if level.end - at < 8:
            raise PeerError("a sequence ends within the header of an item")
        tag = self._tag(at, implicit=level.implicit)
        length = self._number(at + 4, 4, implicit=level.implicit)
        value_at = at + 8
        if tag == _SEQUENCE_END:
            if not level.defined:
                self._leave()
            return value_at
        if tag != _ITEM:
            raise PeerError(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) in a sequence, where an item has to be")
        if level.kind is _Kind.FRAGMENTS:
            return self._fragment(level, at, length)
        defined = length != _UNDEFINED
        if defined and value_at + length > level.end:
            raise PeerError("an item ends behind its sequence")
        end = value_at + length if defined else level.end
        order = self._order_of(level.implicit)
        self._enter(_Level(_Kind.ELEMENTS, end, defined, level.implicit, at + 4, 4, length, order))
        return value_at

    def _fragment(self, level: _Level, at: int, length: int) -> int:
        end = at + 8 + length
        if length == _UNDEFINED or end > level.end:
            raise PeerError("a fragment ends behind its value")
        if not level.first:
            level.first, level.table = end, (at + 8, length)
        elif length & 1:
            level.odd.append(at - level.first)
        if length & 1:
            self._pad(level, end, b"\0")
            self._lengthen(at + 4, 4, length + 1, "<", _ITEM)
        return end

    def _rest(self, at: int, left: int) -> int:
        """Fewer bytes than an element has: what some writers pad their files with is left out."""
        if len(self._levels) > 1 or self._bytes(at, left).strip(b"\0"):
            raise PeerError(f"{left} bytes at the end are no data element")
        self._edit(Edit(at, left, b""))
        return at + left

    def _header(self, level: _Level, at: int, tag: int) -> tuple[bytes, int, int, bool]:
        """VR, place and size of the length field, and whether the element is in Implicit VR."""
        vr = b"" if level.implicit else self._bytes(at + 4, 2)
        if not vr.isalpha() or not vr.isupper():
            # Some writers put Implicit VR elements into the items of an explicit data set.
            if not level.implicit and (len(self._levels) == 1 or self._order == ">"):
                raise PeerError(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) has no VR")
            return _vr_of(tag), at + 4, 4, True
        if vr in _SHORT:
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
            self._mend_offsets(level.table, 4, level.odd)
            self._mend_offsets(outer.offsets, 8, level.odd)
        if level.added:
            if level.defined:
                grown = level.length + level.added
                self._lengthen(level.length_at, level.length_size, grown, level.length_order, _ITEM)
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
        if length >= (_UNDEFINED if size == 4 else 1 << 16):
            raise PeerError(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) is odd, and its length can be no larger")
        self._edit(Edit(at, size, struct.pack(order + ("L" if size == 4 else "H"), length)))

    def _mend_offsets(self, table: tuple[int, int], size: int, odd: "array[int]") -> None:
        """Raise each offset by the number of odd fragments ahead of what it points to."""
        at, length = table
        if not length or length % size:
            return
        if length > TABLE_MAX:
            raise PeerError(f"an offset table of {length} bytes, which is too large to be mended")
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


def _vr_of(tag: int) -> bytes:
    """The VR that PS3.6 gives to a tag; UN for what it does not know."""
    return _dictionary().get(tag, b"UN")
