"""Odd values are padded, and each number around them stays right; the second opinion is an encoder."""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.dicom import padding
from ingest.dicom.padding import Edit, find_edits, has_odd_value
from ingest.errors import PeerError
from tests.support.properties import examples

IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
JPEG, DEFLATED = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.1.99"
LONG = {b"OB", b"OW", b"SQ", b"UN", b"UT", b"OV"}
UNDEFINED = 0xFFFFFFFF
# Tags whose VR PS3.6 knows, in order of their numbers.
TAGS = [
    (0x00080016, b"UI"),
    (0x00080060, b"CS"),
    (0x00100010, b"PN"),
    (0x00104000, b"LT"),
    (0x00110010, b"UN"),
]
SEQUENCE = 0x00081140


def apply_edits(read: padding.Read, length: int, edits: Sequence[Edit]) -> Iterator[bytes]:
    at = 0
    for edit in (*edits, Edit(length, 0, b"")):
        while at < edit.at:
            yield (piece := read(at, min(1 << 16, edit.at - at)))
            at += len(piece)
        yield edit.bytes
        at += edit.removed


@dataclass
class Value:
    """A data element; of a sequence `items` holds the elements of each item."""

    tag: int
    vr: bytes
    data: bytes = b""
    items: "list[list[Value]] | None" = None
    defined: bool = True


@dataclass
class Coding:
    """How to encode: in which syntax, with group lengths or not, and padded or as the sender did."""

    syntax: str
    padded: bool
    group_lengths: bool = False
    order: str = field(init=False)

    def __post_init__(self) -> None:
        self.order = ">" if self.syntax == BIG else "<"

    def elements(self, values: Sequence[Value]) -> bytes:
        out = b""
        groups = dict.fromkeys(value.tag >> 16 for value in values)
        for group in groups:
            body = b"".join(self.element(value) for value in values if value.tag >> 16 == group)
            if self.group_lengths:
                out += self.head(group << 16, b"UL", 4) + struct.pack(self.order + "L", len(body))
            out += body
        return out

    def head(self, tag: int, vr: bytes, length: int) -> bytes:
        head = struct.pack(self.order + "HH", tag >> 16, tag & 0xFFFF)
        if self.syntax == IMPLICIT or tag >> 16 == 0xFFFE:
            return head + struct.pack(self.order + "L", length)
        if vr in LONG:
            return head + vr + b"\0\0" + struct.pack(self.order + "L", length)
        return head + vr + struct.pack(self.order + "H", length)

    def element(self, value: Value) -> bytes:
        if value.items is None:
            data = self.pad(value.data, b"\0" if value.vr in {b"UI", b"UN", b"OB"} else b" ")
            return self.head(value.tag, value.vr, len(data)) + data
        items = b"".join(self.item(item, value.defined) for item in value.items)
        if value.defined:
            return self.head(value.tag, b"SQ", len(items)) + items
        return self.head(value.tag, b"SQ", UNDEFINED) + items + self.head(0xFFFEE0DD, b"", 0)

    def item(self, values: Sequence[Value], defined: bool) -> bytes:
        body = self.elements(values)
        if defined:
            return self.head(0xFFFEE000, b"", len(body)) + body
        return self.head(0xFFFEE000, b"", UNDEFINED) + body + self.head(0xFFFEE00D, b"", 0)

    def pad(self, data: bytes, padding: bytes) -> bytes:
        return data + padding if self.padded and len(data) % 2 else data


def mended(data: bytes, syntax: str) -> bytes:
    def read(at: int, count: int) -> bytes:
        return data[at : at + count]

    edits = find_edits(read, len(data), syntax)
    return b"".join(apply_edits(read, len(data), edits))


def leaves() -> st.SearchStrategy[list[Value]]:
    one = st.tuples(st.sampled_from(TAGS), st.binary(min_size=0, max_size=5))
    return st.lists(one, max_size=4, unique_by=lambda pair: pair[0][0]).map(
        lambda found: [Value(tag, vr, b"x" * len(data)) for (tag, vr), data in sorted(found)]
    )


def with_sequence(inner: st.SearchStrategy[list[Value]]) -> st.SearchStrategy[list[Value]]:
    sequence = st.builds(
        lambda items, defined: Value(SEQUENCE, b"SQ", items=items, defined=defined),
        st.lists(inner, max_size=3),
        st.booleans(),
    )
    return st.tuples(leaves(), sequence).map(lambda pair: sorted([*pair[0], pair[1]], key=lambda v: v.tag))


DATA_SETS = st.recursive(leaves(), with_sequence, max_leaves=12)


@examples(100)
@given(DATA_SETS, st.sampled_from([IMPLICIT, EXPLICIT, BIG]), st.booleans())
def test_every_odd_value_is_padded_and_every_length_around_it_is_right(
    values: list[Value], syntax: str, group_lengths: bool
) -> None:
    data = Coding(syntax, False, group_lengths).elements(values)
    assert mended(data, syntax) == Coding(syntax, True, group_lengths).elements(values)


@examples(100)
@given(DATA_SETS, st.sampled_from([IMPLICIT, EXPLICIT, BIG]), st.randoms(use_true_random=False), st.data())
def test_damaged_data_set_raises_one_error_and_nothing_else(
    values: list[Value], syntax: str, random: object, data: st.DataObject
) -> None:
    whole = bytearray(Coding(syntax, False, True).elements(values))
    for _ in range(data.draw(st.integers(0, 4))):
        if whole:
            whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        mended(cut, syntax)
    except PeerError:
        return


def encapsulated(fragments: Sequence[bytes], *, basic: bool, extended: bool, padded: bool) -> bytes:
    """Pixel data of one fragment a frame, with tables of offsets that are right for what it is."""
    coding = Coding(JPEG, padded)
    offsets, body = [], b""
    for fragment in fragments:
        offsets.append(len(body))
        data = coding.pad(fragment, b"\0")
        body += coding.head(0xFFFEE000, b"", len(data)) + data
    table = struct.pack(f"<{len(offsets)}L", *offsets) if basic else b""
    out = coding.elements([Value(0x00080016, b"UI", b"1.2")])
    if extended:
        packed = struct.pack(f"<{len(offsets)}Q", *offsets)
        out += coding.head(0x7FE00001, b"OV", len(packed)) + packed
    out += coding.head(0x7FE00010, b"OB", UNDEFINED) + coding.head(0xFFFEE000, b"", len(table)) + table
    return out + body + coding.head(0xFFFEE0DD, b"", 0)


@examples(100)
@given(st.lists(st.integers(0, 7), max_size=40), st.booleans(), st.booleans())
def test_odd_fragments_are_padded_and_offset_tables_point_to_the_same_fragments(
    sizes: list[int], basic: bool, extended: bool
) -> None:
    fragments = [b"j" * size for size in sizes]
    data = encapsulated(fragments, basic=basic, extended=extended, padded=False)
    assert mended(data, JPEG) == encapsulated(fragments, basic=basic, extended=extended, padded=True)


def test_large_values_are_stepped_over() -> None:
    """Of 64 GiB that are not there only the headers are asked for."""
    size = (1 << 32) - 3
    head = Coding(EXPLICIT, False).head(0x7FE00010, b"OB", size)
    asked: list[int] = []

    def read(at: int, count: int) -> bytes:
        asked.append(count)
        return (head + bytes(count))[at : at + count] if at < len(head) else bytes(count)

    edits = find_edits(read, len(head) + size, EXPLICIT)
    grown = sum(len(edit.bytes) - edit.removed for edit in edits)
    assert (len(head) + size + grown) % 2 == 0
    assert len(asked) < 5


@pytest.mark.parametrize("nested", [False, True])
def test_sequence_in_a_private_value_is_told_from_bytes(nested: bool) -> None:
    """In Implicit VR nobody knows the VR of a private value; one of UN in Explicit VR is encoded likewise."""

    def body(*, padded: bool) -> bytes:
        inner = Coding(IMPLICIT, padded)
        return inner.item([Value(0x00100010, b"PN", b"A")], True) if nested else inner.pad(b"odd", b"\0")

    for syntax in (IMPLICIT, EXPLICIT):
        data, right = (
            Coding(syntax, padded).head(0x00110010, b"UN", len(body(padded=padded))) + body(padded=padded)
            for padded in (False, True)
        )
        assert mended(data, syntax) == right


def test_zeros_behind_the_last_element_are_left_out() -> None:
    data = Coding(EXPLICIT, True).elements([Value(0x00100010, b"PN", b"AB")])
    for count in (1, 3, 7):
        assert mended(data + bytes(count), EXPLICIT) == data


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (Coding(EXPLICIT, False).head(0x7FE00010, b"OB", 4) + b"odd", "ends beyond"),
        (Coding(EXPLICIT, True).elements([Value(0x00100010, b"PN", b"AB")]) + b"x", "no data element"),
        (struct.pack("<HH4s", 0x10, 0x10, b"\0\0\2\0") + b"abc", "no VR"),
        (Coding(EXPLICIT, False).head(0x00104000, b"LT", 65535) + bytes(65535), "no larger"),
        (
            Coding(EXPLICIT, False).head(SEQUENCE, b"SQ", 9) + b"\x10\0\x10\0\0\0\0\0x",
            "where an item has to be",
        ),
    ],
)
def test_what_cannot_be_told_is_said(data: bytes, said: str) -> None:
    with pytest.raises(PeerError, match=said):
        mended(data, EXPLICIT)


def test_deflated_data_set_is_padded_whole_and_an_even_one_is_left_alone() -> None:
    assert [has_odd_value(3, DEFLATED), has_odd_value(3, EXPLICIT), has_odd_value(4, EXPLICIT)] == [
        False,
        True,
        False,
    ]


def test_number_of_edits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(padding, "EDITS_MAX", 10)
    with pytest.raises(PeerError, match="more than 10 changes"):
        mended(encapsulated([b"odd"] * 11, basic=False, extended=False, padded=False), JPEG)
