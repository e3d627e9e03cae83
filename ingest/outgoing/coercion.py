"""Coercion: rewrite the data set of an instance with changed attributes. Everything else is copied.

The new data set consists of stretches of the stored one and of new elements between them. Nested data sets
and pixel data are never parsed for their values. These elements change with the attributes:

- group lengths (gggg,0000) of changed groups and Length to End (0008,0001), both retired, are removed;
- Specific Character Set (0008,0005) becomes UTF-8 if all text was ASCII and a new value is not;
- the Original Attributes Sequence (0400,0561) gets an item with the previous values (PS3.3 C.12.1.1.9). Its
  time is that at which the instance was stored, so that each attempt sends the same bytes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from ingest.dicom import padding, uids
from ingest.dicom.padding import ITEM, SEQUENCE_END, SPACE_PADDED_VRS
from ingest.dicom.text import SPECIFIC_CHARACTER_SET, decode_text
from ingest.errors import PeerError, RewriteError
from ingest.outgoing.attributes import AttributeChange, WantedChanges, decide_changes, name_tag
from ingest.outgoing.data_set import FileParts, OutgoingDataSet, Part
from ingest.outgoing.elements import Element, Encoding, list_elements
from ingest.outgoing.inflated import InflatedData, deflate
from ingest.outgoing.plan import StoredDataSet

VALUE_BYTES_MAX: Final = 1 << 16
"""Bytes of a value that are read for a decision. A longer one equals no new value."""

COPIED_BYTES: Final = 4096
"""Previous values up to this length become bytes. Longer ones stay ranges of the file."""
INFLATED_COPY_MAX: Final = 1 << 20
"""Longest previous value of a deflated data set: it has no range that could be copied later."""

_LENGTH_TO_END: Final = 0x0008_0001
_ORIGINALS: Final = 0x0400_0561
_MODIFIED: Final = 0x0400_0550
_MODIFIED_AT: Final = 0x0400_0562
_SYSTEM: Final = 0x0400_0563
_SOURCE: Final = 0x0400_0564
_REASON: Final = 0x0400_0565
_DELIMITER_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class _Stretch:
    """A stretch of the stored data set, by its positions."""

    begin: int
    end: int


_Piece = bytes | _Stretch
_Source = FileParts | InflatedData


@dataclass(frozen=True, slots=True)
class ShownChange:
    """One change for people: names and decoded values; None where there is no attribute."""

    attribute: str
    before: str | None
    after: str | None


class Coercion:
    """The rewrite of attributes for one destination."""

    def __init__(self, wanted: WantedChanges) -> None:
        self._wanted = wanted
        self._tags = wanted.tags

    def rewrite(
        self, data_set: OutgoingDataSet, stored: StoredDataSet, on_tick: Callable[[], None] = lambda: None
    ) -> OutgoingDataSet:
        """Return the data set with its attributes changed, as `ingest.outgoing.plan.Rewrite` says."""
        try:
            made = _DataSetRewrite(self._wanted, self._tags, data_set, on_tick)
            changes = made.decide()
            if not changes:
                return data_set
            pieces = made.compose(changes, stored.stored_at)
            note = "changed for this destination: " + ", ".join(name_tag(change.tag) for change in changes)
            return replace(made.encode(pieces), note="; ".join(filter(None, (data_set.note, note))))
        except (PeerError, RewriteError, ValueError) as error:
            raise RewriteError(f"its attributes cannot be changed: {error}") from error

    def show_changes(self, data_set: OutgoingDataSet, *, is_whole: bool = True) -> list[ShownChange]:
        """Return the changes of a data set, or of its first part, for people.

        Raises:
            RewriteError: It cannot be changed.
        """
        try:
            made = _DataSetRewrite(self._wanted, self._tags, data_set, lambda: None, is_whole=is_whole)
            changes = made.decide()
            made.compose(changes, 0)
        except (PeerError, RewriteError, ValueError) as error:
            raise RewriteError(f"its attributes cannot be changed: {error}") from error
        return [made.show(change, changes) for change in changes]


class _DataSetRewrite:
    """The rewrite of one data set."""

    def __init__(
        self,
        wanted: WantedChanges,
        tags: frozenset[int],
        data_set: OutgoingDataSet,
        on_tick: Callable[[], None],
        *,
        is_whole: bool = True,
    ) -> None:
        self._wanted = wanted
        self._data_set = data_set
        self._on_tick = on_tick
        self._syntax = data_set.transfer_syntax_uid
        self._encoding = Encoding.of_syntax(self._syntax)
        stored = FileParts(data_set.fd, data_set.parts)
        is_deflated = self._syntax in uids.DEFLATED
        self._source: _Source = InflatedData(stored, on_tick) if is_deflated else stored
        self._elements = list_elements(
            self._source.read, self._source.length, self._syntax, on_tick, is_whole=is_whole
        )
        self._by_tag: dict[int, Element] = {}
        for element in self._elements:
            self._by_tag.setdefault(element.tag, element)
        self._present = {tag: self._read(self._by_tag[tag]) for tag in sorted(tags & self._by_tag.keys())}

    def decide(self) -> list[AttributeChange]:
        return decide_changes(self._wanted, self._present, self._encoding.order, self._is_text_ascii)

    def show(self, change: AttributeChange, changes: Sequence[AttributeChange]) -> ShownChange:
        before_set = self._present.get(SPECIFIC_CHARACTER_SET, b"")
        switched = [each.after for each in changes if each.tag == SPECIFIC_CHARACTER_SET]
        element = self._by_tag.get(change.tag)
        return ShownChange(
            name_tag(change.tag),
            None if element is None else _show_value(change.before, element.vr.decode(), before_set),
            _show_value(change.after, change.vr, (switched[0] if switched else None) or before_set),
        )

    def compose(self, changes: Sequence[AttributeChange], stored_at: int) -> list[_Piece]:
        """Return the changed data set as stretches of the stored one and new bytes."""
        keeps = self._wanted.keeps_originals
        groups = {change.tag >> 16 for change in changes} | ({_ORIGINALS >> 16} if keeps else set())
        dropped = {_LENGTH_TO_END, *(group << 16 for group in groups)}
        edits: list[tuple[int, int, int, list[_Piece]]] = [
            (element.begin, element.end, element.tag, [])
            for element in self._elements
            if element.tag in dropped
        ]
        for change in changes:
            edits += self._edit_element(change)
        if keeps:
            edits.append(self._edit_originals(self._make_item(changes, stored_at)))
        # An insertion comes before the element at its position, and insertions are in order of tags.
        edits.sort(key=lambda edit: edit[:3])
        pieces: list[_Piece] = []
        at = 0
        for begin, end, _, new in edits:
            if begin > at:
                pieces.append(_Stretch(at, begin))
            pieces += new
            at = max(at, end)
        if at < self._source.length:
            pieces.append(_Stretch(at, self._source.length))
        return pieces

    def encode(self, pieces: Sequence[_Piece]) -> OutgoingDataSet:
        """Return the data set of pieces: parts of the file, or a new deflate stream."""
        source = self._source
        if isinstance(source, InflatedData):
            return replace(self._data_set, parts=deflate(_inflated_pieces(source, pieces)), length=None)
        made = FileParts(self._data_set.fd, _file_pieces(source, pieces))
        if padding.has_odd_value(made.length, self._syntax):
            edits = padding.find_edits(made.read, made.length, self._syntax, self._on_tick)
            made = FileParts(self._data_set.fd, made.edit(edits))
        return replace(self._data_set, parts=made.parts, length=made.length)

    # --- elements

    def _read(self, element: Element) -> bytes:
        return self._source.read(element.value_at, min(element.length, VALUE_BYTES_MAX))

    def _is_text_ascii(self) -> bool:
        """Return whether the text of the top level is ASCII. That of nested data sets is not looked at."""
        return all(
            (raw := self._read(element)).isascii() and b"\x1b" not in raw
            for element in self._elements
            if element.vr in SPACE_PADDED_VRS
        )

    def _edit_element(self, change: AttributeChange) -> Iterator[tuple[int, int, int, list[_Piece]]]:
        """Yield the edits for an attribute. A second element of its tag is removed."""
        new: list[_Piece] = []
        if change.after is not None:
            new = [self._encode_element(change.tag, change.vr.encode(), change.after)]
        if change.tag not in self._by_tag:
            at = self._find_position(change.tag)
            yield at, at, change.tag, new
            return
        for element in self._elements:
            if element.tag == change.tag:
                yield element.begin, element.end, element.tag, new
                new = []

    def _encode_element(self, tag: int, vr: bytes, value: bytes) -> bytes:
        padded = value + (b" " if vr in SPACE_PADDED_VRS else b"\0") * (len(value) & 1)
        return self._encoding.encode_header(tag, vr, len(padded)) + padded

    def _find_position(self, tag: int) -> int:
        """Return where a new element belongs: before the first one with a higher tag."""
        for element in self._elements:
            if element.tag > tag:
                return element.begin
        if not self._elements:
            return 0
        self._require_delimiter(self._elements[-1])
        return self._elements[-1].end

    def _require_delimiter(self, element: Element) -> None:
        """Require that a value of undefined length ends with its delimiter, before bytes follow it."""
        if element.is_undefined and not self._has_delimiter(element):
            raise RewriteError(f"{name_tag(element.tag)} ends without its delimiter")

    def _has_delimiter(self, element: Element) -> bool:
        orders = {self._encoding.order, "<"}
        expected = {Encoding(order, True).encode_header(SEQUENCE_END, b"", 0) for order in orders}
        found = self._source.read(element.end - _DELIMITER_BYTES, _DELIMITER_BYTES)
        return element.length >= _DELIMITER_BYTES and found in expected

    # --- Original Attributes Sequence

    def _make_item(self, changes: Sequence[AttributeChange], stored_at: int) -> list[_Piece]:
        """Make the item of the Original Attributes Sequence (PS3.3 C.12.1.1.9)."""
        previous = self._list_previous(changes)
        seconds, milliseconds = divmod(stored_at, 1000)
        time = f"{datetime.fromtimestamp(seconds, UTC):%Y%m%d%H%M%S}.{milliseconds:03d}+0000"
        modified = [self._encoding.encode_header(ITEM, b"", _count(previous)), *previous]
        item = [
            self._encoding.encode_header(_MODIFIED, b"SQ", _count(modified)),
            *modified,
            self._encode_element(_MODIFIED_AT, b"DT", time.encode()),
            self._encode_element(_SYSTEM, b"LO", self._wanted.system.encode("ascii")),
            self._encode_element(_SOURCE, b"LO", b""),
            self._encode_element(_REASON, b"CS", b"COERCE"),
        ]
        return [self._encoding.encode_header(ITEM, b"", _count(item)), *item]

    def _list_previous(self, changes: Sequence[AttributeChange]) -> list[_Piece]:
        """List the previous elements in order of tags; one that was added has a value of length zero."""
        previous: dict[int, _Piece] = {}
        for change in changes:
            element = self._by_tag.get(change.tag)
            if element is None:
                previous[change.tag] = self._encode_element(change.tag, change.vr.encode(), b"")
                continue
            previous[change.tag] = self._copy(element)
            # PS3.5 7.8.1: the block of a private element is named by its creator.
            creator = self._by_tag.get(change.tag & ~0xFFFF | change.tag >> 8 & 0xFF)
            if change.tag >> 16 & 1 and creator is not None:
                previous[creator.tag] = self._copy(creator)
        return [previous[tag] for tag in sorted(previous)]

    def _copy(self, element: Element) -> _Piece:
        self._require_delimiter(element)
        size = element.end - element.begin
        is_inflated = isinstance(self._source, InflatedData)
        if size > COPIED_BYTES and not is_inflated:
            return _Stretch(element.begin, element.end)
        if size > INFLATED_COPY_MAX:
            raise RewriteError(f"{name_tag(element.tag)} is too long to be kept in a deflated data set")
        return self._source.read(element.begin, size)

    def _edit_originals(self, item: list[_Piece]) -> tuple[int, int, int, list[_Piece]]:
        """Return the edit that appends an item to the sequence, or that inserts the sequence."""
        found = self._by_tag.get(_ORIGINALS)
        if found is None:
            at = self._find_position(_ORIGINALS)
            head = self._encoding.encode_header(_ORIGINALS, b"SQ", _count(item))
            return at, at, _ORIGINALS, [head, *item]
        if found.vr != b"SQ":
            raise RewriteError(f"its Original Attributes Sequence has VR {found.vr.decode()}")
        self._require_delimiter(found)
        if found.is_undefined:
            at = found.end - _DELIMITER_BYTES
            return at, at, _ORIGINALS, item
        head = self._encoding.encode_header(_ORIGINALS, b"SQ", found.length + _count(item))
        kept: list[_Piece] = [_Stretch(found.value_at, found.end)] if found.length else []
        return found.begin, found.end, _ORIGINALS, [head, *kept, *item]


def _count(pieces: Iterable[_Piece]) -> int:
    return sum(len(piece) if isinstance(piece, bytes) else piece.end - piece.begin for piece in pieces)


def _file_pieces(source: FileParts, pieces: Iterable[_Piece]) -> Iterator[Part]:
    for piece in pieces:
        if isinstance(piece, bytes):
            yield piece
        else:
            yield from source.cut(piece.begin, piece.end)


def _inflated_pieces(source: InflatedData, pieces: Iterable[_Piece]) -> Iterator[bytes]:
    for piece in pieces:
        if isinstance(piece, bytes):
            yield piece
        else:
            yield from source.cut(piece.begin, piece.end)


def _show_value(raw: bytes | None, vr: str, character_set: bytes) -> str | None:
    """Decode a value for people; None if there is none."""
    if raw is None:
        return None
    if vr and vr.encode() not in SPACE_PADDED_VRS and vr != "UI":
        return f"{len(raw)} bytes ({vr})"
    return decode_text(raw, character_set, is_name=vr == "PN").strip(" \0")
