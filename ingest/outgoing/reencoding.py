"""Reencoding: encode the data elements of a data set in another native transfer syntax (PS3.5 A.1 to A.5).

The new data set consists of stretches of the stored one, of new headers, and of stretches whose words change
their byte order. Values are not decoded. Four things differ from the stored data set:

- sequences and items have undefined lengths, so that one pass through the data set is enough;
- group lengths (gggg,0000) and Length to End (0008,0001), both retired, are left out;
- an odd value is padded (PS3.5 7.1);
- an element of Implicit VR gets the VR of PS3.6. If that allows several, Pixel Representation (0028,0103)
  decides between US and SS, and OW is used for words. A private or unknown one gets UN (PS3.5 6.2.2).
"""

from array import array
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from ingest.dicom.padding import DEPTH_MAX, ITEM, ITEM_END, SEQUENCE_END, SPACE_PADDED_VRS, UNDEFINED_LENGTH
from ingest.errors import PeerError, RewriteError
from ingest.outgoing.data_set import FileParts, Part
from ingest.outgoing.elements import ElementWalk, Encoding, Header
from ingest.outgoing.inflated import InflatedData

Source = FileParts | InflatedData

COPIED_BYTES: Final = 1 << 12
"""Values up to this length are copied, so that a data set does not consist of thousands of parts."""
JOINED_BYTES: Final = 1 << 16

_WORD_BYTES: Final = {
    **dict.fromkeys((b"AT", b"OW", b"SS", b"US"), 2),
    **dict.fromkeys((b"FL", b"OF", b"OL", b"SL", b"UL"), 4),
    **dict.fromkeys((b"FD", b"OD", b"OV", b"SV", b"UV"), 8),
}
"""PS3.5 Table 6.2-1: length of the words that have a byte order. AT is two words."""
_WORD_CODES: Final = {2: "H", 4: "I", 8: "Q"}

_LENGTH_TO_END: Final = 0x0008_0001
_BITS_ALLOCATED: Final = 0x0028_0100
_PIXEL_REPRESENTATION: Final = 0x0028_0103
_PIXEL_DATA: Final = 0x7FE0_0010


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of the stored data set, by its positions; `word_bytes` above 1 changes the byte order."""

    begin: int
    end: int
    word_bytes: int = 1


Piece = bytes | Stretch


@dataclass(slots=True)
class _Scope:
    """What the elements of one data set or item depend on. Items begin with what is around them."""

    is_signed: bool = False
    bits_allocated: int = 0


def reencode(  # noqa: PLR0917 - the range is the last pair
    source: Source,
    from_: Encoding,
    to: Encoding,
    on_tick: Callable[[], None],
    begin: int = 0,
    end: int | None = None,
) -> Iterator[Piece]:
    """Yield the pieces of a data set, or of some of its elements, in an encoding.

    Args:
        source: The data set. A deflated one is inflated.
        from_: Its encoding.
        to: The encoding of the pieces.
        on_tick: Called every few thousand elements.
        begin: Position of the first element, at the top level.
        end: Position behind the last one; None means the end of the data set.

    Raises:
        PeerError: The data set is not encoded as it should be.
        RewriteError: It has something that cannot be encoded.
        OSError: The file cannot be read.
    """
    return _Reencoding(source, from_, to, on_tick).run(begin, source.length if end is None else end)


def count_bytes(pieces: Iterable[Piece]) -> int:
    """Return the length of pieces in bytes."""
    return sum(len(each) if isinstance(each, bytes) else each.end - each.begin for each in pieces)


def make_parts(source: Source, pieces: Iterable[Piece]) -> Iterator[Part]:
    """Yield the parts of pieces. Short ones are joined."""
    waiting = bytearray()
    for piece in pieces:
        if isinstance(piece, bytes):
            waiting += piece
        elif piece.end - piece.begin <= COPIED_BYTES:
            waiting += swap_words(source.read(piece.begin, piece.end - piece.begin), piece.word_bytes)
        else:
            if waiting:
                yield bytes(waiting)
                waiting.clear()
            yield from _make_long(source, piece)
        if len(waiting) >= JOINED_BYTES:
            yield bytes(waiting)
            waiting.clear()
    if waiting:
        yield bytes(waiting)


def _make_long(source: Source, piece: Stretch) -> Iterator[Part]:
    if piece.word_bytes == 1:
        yield from source.cut(piece.begin, piece.end)
        return
    for begin in range(piece.begin, piece.end, JOINED_BYTES):
        count = min(JOINED_BYTES, piece.end - begin)
        yield swap_words(source.read(begin, count), piece.word_bytes)


def swap_words(data: bytes, word_bytes: int) -> bytes:
    """Return bytes with the byte order of their words changed."""
    if word_bytes == 1:
        return data
    words = array(_WORD_CODES[word_bytes], data)
    words.byteswap()
    return words.tobytes()


class _Reencoding:
    """The reencoding of one data set. Its generators return the position behind what they have encoded."""

    def __init__(self, source: Source, from_: Encoding, to: Encoding, on_tick: Callable[[], None]) -> None:
        self._source = source
        self._from = from_
        self._to = to
        self._walk = ElementWalk(source.read, source.length, from_, on_tick)

    def run(self, begin: int, end: int) -> Iterator[Piece]:
        at = yield from self._encode_elements(begin, end, self._from.is_implicit, 0, _Scope())
        if end == self._source.length:
            self._walk.require_padding(at)

    def _encode_elements(
        self, at: int, end: int | None, implicit: bool, depth: int, scope: _Scope
    ) -> Generator[Piece, None, int]:
        """Encode the elements of a data set or an item. An end of None means up to the delimiter."""
        limit = self._source.length if end is None else end
        while limit - at >= 8:
            head = self._walk.read_header(at, implicit, depth)
            if head.tag == ITEM_END and end is None:
                return head.value_at
            is_left_out = head.tag & 0xFFFF == 0 or head.tag == _LENGTH_TO_END
            if head.tag >> 16 == 0xFFFE or (is_left_out and head.length is not None):
                # Readers skip other delimiters here.
                at = head.value_at + (head.length or 0)
                continue
            at = yield from self._encode_element(head, depth, scope)
            if at > limit:
                raise PeerError(f"{_name(head)} ends behind the value around it")
        if depth and end is not None and at != end:
            raise PeerError(f"{end - at} bytes at the end of an item are no data element")
        return at

    def _encode_element(self, head: Header, depth: int, scope: _Scope) -> Generator[Piece, None, int]:
        if head.length is None:
            return (yield from self._encode_undefined(head, depth, scope))
        vr = self._choose_vr(head, scope)
        if vr == b"SQ":
            end = head.value_at + head.length
            return (yield from self._encode_items(head, vr, end, head.is_implicit, depth, scope))
        if head.tag == _PIXEL_REPRESENTATION:
            scope.is_signed = b"\1" in self._source.read(head.value_at, head.length)
        elif head.tag == _BITS_ALLOCATED:
            scope.bits_allocated = sum(self._source.read(head.value_at, min(head.length, 2)))  # one is zero
        elif (
            head.tag == _PIXEL_DATA and scope.bits_allocated in {32, 64} and vr == b"OW" and self._swaps(head)
        ):
            # Some programs change the order of two bytes in OW, others that of a whole pixel.
            raise RewriteError("programs differ about the byte order of pixels above 16 bits")
        yield from self._encode_value(head, vr, head.length)
        return head.value_at + head.length

    def _encode_value(self, head: Header, vr: bytes, length: int) -> Iterator[Piece]:
        even = length + (length & 1)
        if even >= self._to.find_length_limit(vr):
            if self._order_of(head) == ">" or self._to.order == ">":
                raise RewriteError(f"{_name(head)} is too long for its VR")
            vr = b"UN"  # PS3.5 6.2.2, note 2
        yield self._to.encode_header(head.tag, vr, even)
        word_bytes = _WORD_BYTES.get(vr, 1) if self._swaps(head) else 1
        if word_bytes > 1 and length % word_bytes:
            raise PeerError(f"{_name(head)} has {length} bytes, which are no whole words")
        if length:
            yield Stretch(head.value_at, head.value_at + length, word_bytes)
        if length & 1:
            yield b" " if vr in SPACE_PADDED_VRS else b"\0"

    def _encode_undefined(self, head: Header, depth: int, scope: _Scope) -> Generator[Piece, None, int]:
        if head.vr == b"UN" and not head.is_implicit:
            # PS3.5 6.2.2: its items are in Implicit VR Little Endian in every transfer syntax.
            end = self._walk.skip_undefined(head, depth)
            yield self._to.encode_undefined(head.tag, head.vr)
            yield Stretch(head.value_at, end)
            return end
        if not head.is_implicit and head.vr != b"SQ":
            raise RewriteError(f"{_name(head)} is encapsulated")
        return (yield from self._encode_items(head, b"SQ", None, head.is_implicit, depth, scope))

    def _encode_items(  # noqa: PLR0917 - what every level of nesting hands down
        self, head: Header, vr: bytes, end: int | None, implicit: bool, depth: int, scope: _Scope
    ) -> Generator[Piece, None, int]:
        """Encode a sequence. An end of None means up to its delimiter, which may be missing."""
        if depth >= DEPTH_MAX:
            raise PeerError(f"it nests more than {DEPTH_MAX} sequences")
        at = head.value_at
        if at == end:
            yield self._to.encode_header(head.tag, vr, 0)
            return at
        yield self._to.encode_undefined(head.tag, vr)
        limit = self._source.length if end is None else end
        while at < limit:
            tag, length = self._walk.read_item(at, implicit)
            at += 8
            if tag == SEQUENCE_END:
                if end is None:
                    break
                continue
            if tag != ITEM:
                raise PeerError(f"{_name_tag(tag)} in a sequence, where an item has to be")
            stop = None if length == UNDEFINED_LENGTH else at + length
            if stop is not None and stop > limit:
                raise PeerError("an item ends behind its sequence")
            yield self._to.encode_undefined(ITEM, b"")
            inner = _Scope(scope.is_signed)
            at = yield from self._encode_elements(at, stop, implicit, depth + 1, inner)
            yield self._to.encode_header(ITEM_END, b"", 0)
        yield self._to.encode_header(SEQUENCE_END, b"", 0)
        return at

    def _choose_vr(self, head: Header, scope: _Scope) -> bytes:
        if not head.is_implicit:
            return head.vr
        vr = _find_vr(head.tag)
        return (b"SS" if scope.is_signed else b"US") if vr == b"US or SS" else vr

    def _swaps(self, head: Header) -> bool:
        return self._order_of(head) != self._to.order

    def _order_of(self, head: Header) -> str:
        return "<" if head.is_implicit else self._from.order


@lru_cache(maxsize=1 << 13)
def _find_vr(tag: int) -> bytes:
    """Return the VR of an element of Implicit VR: one of PS3.5 6.2, or "US or SS"."""
    from ingest.dicom import registry  # noqa: PLC0415 - slow to import, and most nodes transcode nothing

    if tag >> 16 & 1:
        return b"LO" if 0x10 <= tag & 0xFFFF <= 0xFF else b"UN"  # PS3.5 7.8.1: private creators
    found = registry.find_vr(tag) or "UN"
    if " or " not in found or found == "US or SS":
        return found.encode()
    return b"OW"


def _name(head: Header) -> str:
    return _name_tag(head.tag)


def _name_tag(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
