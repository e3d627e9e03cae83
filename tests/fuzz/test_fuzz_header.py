"""Any bytes give attributes, a wish for more, or one PeerError; more bytes never change what was found."""

import zlib

from hypothesis import given
from hypothesis import strategies as st

from ingest.ext.errors import PeerError
from ingest.ext.header import scan
from tests.fuzz import guard
from tests.support.properties import examples

EXAMPLES = examples(100)

IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
TAGS = (0x00080016, 0x00080018, 0x00080060, 0x0020000D, 0x0020000E)

syntaxes = st.sampled_from([IMPLICIT, EXPLICIT, BIG])
numbers = st.sampled_from([*TAGS, 0x00080005, 0x00081140, 0x00091010, 0x00100010, 0x00280010, 0x00020010])
marks = st.sampled_from([0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD])
vrs = st.sampled_from([b"UI", b"CS", b"SQ", b"UN", b"OB", b"ZZ", b"??", b"\x00\x00"])
values = st.binary(max_size=20)


def element(syntax: str, tag: int, vr: bytes, value: bytes, length: int | None) -> bytes:
    order = "big" if syntax == BIG else "little"
    size = (len(value) if length is None else length).to_bytes(4, order)
    start = (tag >> 16).to_bytes(2, order) + (tag & 0xFFFF).to_bytes(2, order)
    if syntax == IMPLICIT or tag >> 16 == 0xFFFE:
        return start + size + value
    if vr in (b"UI", b"CS"):
        return start + vr + (size[2:] if syntax == BIG else size[:2]) + value
    return start + vr + b"\x00\x00" + size + value


lengths = st.sampled_from([None] * 6 + [0, 1, 5, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFE, 0x7FFFFFFF])


@st.composite
def data_sets(draw: st.DrawFn) -> tuple[str, bytes]:
    """Elements, items and delimiters, mostly well-formed each and in any order."""
    syntax = draw(syntaxes)
    parts = draw(st.lists(st.tuples(numbers | marks, vrs, values, lengths), max_size=12))
    return syntax, b"".join(element(syntax, *part) for part in parts)


def outcome(data: bytes, syntax: str, at_end: bool) -> dict[int, bytes] | str | None:
    try:
        return scan(guard.guarded(data), syntax, TAGS, at_end)
    except PeerError as error:
        return str(error)


def check(data: bytes, syntax: str, cut: int) -> None:
    part, whole = outcome(data[:cut], syntax, False), outcome(data, syntax, False)
    if part is not None:
        assert part == whole
    assert outcome(data, syntax, True) is not None
    if isinstance(whole, dict):
        assert outcome(data, syntax, True) == whole


@EXAMPLES
@given(syntaxes, st.binary(max_size=300), st.integers(0, 300))
def test_any_bytes_are_attributes_a_wish_or_one_error(syntax: str, data: bytes, cut: int) -> None:
    check(data, syntax, cut)


@EXAMPLES
@given(data_sets(), st.integers(0, 500))
def test_any_structure_is_attributes_a_wish_or_one_error(case: tuple[str, bytes], cut: int) -> None:
    check(case[1], case[0], cut)


@EXAMPLES
@given(data_sets(), st.integers(0, 500), st.integers(0, 500), st.integers(0, 255), st.booleans())
def test_any_deflated_bytes_are_attributes_a_wish_or_one_error(
    case: tuple[str, bytes], cut: int, place: int, byte: int, broken: bool
) -> None:
    deflater = zlib.compressobj(wbits=-15)
    data = bytearray(deflater.compress(case[1]) + deflater.flush())
    if broken:
        data[place % len(data)] = byte
    outcome(bytes(data[:cut]), DEFLATED, False)
    assert outcome(bytes(data), DEFLATED, True) is not None
    if not broken:
        check(bytes(data), DEFLATED, cut)
