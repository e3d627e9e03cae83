"""The header scanner on data sets made by hand: every structure of PS3.5 section 7, whole, cut and broken."""

import contextlib
import random
import zlib
from dataclasses import dataclass

import pytest

from ingest.ext.errors import PeerError
from ingest.ext.header import scan

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
BIG = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
JPEG = "1.2.840.10008.1.2.4.50"

SOP_CLASS, SOP_INSTANCE, STUDY, SERIES = 0x00080016, 0x00080018, 0x0020000D, 0x0020000E
TAGS = (SOP_CLASS, SOP_INSTANCE, STUDY, SERIES)
SHORT = (
    "AE", "AS", "AT", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO", "LT", "PN", "SH", "SL", "SS", "ST",
    "TM", "UI", "UL", "US",
)  # fmt: skip
LONG = ("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV", "ZZ")
UNDEFINED = 0xFFFFFFFF


@dataclass(frozen=True)
class Writer:
    """Writes elements as one transfer syntax wants them."""

    syntax: str

    @property
    def order(self) -> str:
        return "big" if self.syntax == BIG else "little"

    def tag(self, tag: int) -> bytes:
        return (tag >> 16).to_bytes(2, self.order) + (tag & 0xFFFF).to_bytes(2, self.order)

    def element(self, tag: int, vr: str, value: bytes, length: int | None = None) -> bytes:
        length = len(value) if length is None else length
        if self.syntax == IMPLICIT:
            return self.tag(tag) + length.to_bytes(4, self.order) + value
        if vr in LONG:
            return self.tag(tag) + vr.encode() + b"\x00\x00" + length.to_bytes(4, self.order) + value
        return self.tag(tag) + vr.encode() + length.to_bytes(2, self.order) + value

    def item(self, value: bytes, *, undefined: bool = False) -> bytes:
        if undefined:
            return self.tag(0xFFFEE000) + b"\xff" * 4 + value + self.tag(0xFFFEE00D) + bytes(4)
        return self.tag(0xFFFEE000) + len(value).to_bytes(4, self.order) + value

    def sequence(self, tag: int, *items: bytes, vr: str = "SQ") -> bytes:
        return self.element(tag, vr, b"".join(items), UNDEFINED) + self.tag(0xFFFEE0DD) + bytes(4)


FOUND = {SOP_CLASS: b"1.2\x00", SOP_INSTANCE: b"1.3.4\x00", STUDY: b"1.5\x00", SERIES: b""}


def beyond(w: Writer) -> bytes:
    return w.element(0x00280010, "US", b"\x00\x01")


def data_set(w: Writer, between: bytes = b"") -> bytes:
    """The four attributes with `between` in their middle, and an attribute beyond them."""
    return (
        w.element(SOP_CLASS, "UI", b"1.2\x00") + w.element(SOP_INSTANCE, "UI", b"1.3.4\x00")
        + between
        + w.element(STUDY, "UI", b"1.5\x00") + w.element(SERIES, "UI", b"") + beyond(w)
    )  # fmt: skip


def betweens(w: Writer) -> dict[str, bytes]:
    """What a scanner has to step over."""
    name = w.element(0x00100010, "PN", b"A^B ")
    plain = w.item(name)
    open_item = w.item(name, undefined=True)
    implicit = Writer(IMPLICIT)
    return {
        "nothing": b"",
        "every short VR": b"".join(w.element(0x00090000 + i, vr, bytes(i)) for i, vr in enumerate(SHORT)),
        "every long VR, and one of the future": b"".join(
            w.element(0x00090000 + i, vr, bytes(i * 7)) for i, vr in enumerate(LONG)
        ),
        "a value of 70,000 bytes": w.element(0x00091010, "OB", bytes(70_000)),
        "a sequence of defined length": w.element(0x00081140, "SQ", plain + open_item),
        "an empty sequence": w.element(0x00081140, "SQ", b"") + w.sequence(0x00081141),
        "a sequence of undefined length": w.sequence(0x00081140, plain, open_item, plain),
        "sequences in each other": w.sequence(
            0x00081140,
            w.item(w.sequence(0x00081199, open_item, plain) + name, undefined=True),
            w.item(w.element(0x00081199, "SQ", plain)),
            w.item(b"", undefined=True),
        ),
        "the attributes asked for, within a sequence": w.sequence(
            0x00081140, w.item(w.element(SOP_INSTANCE, "UI", b"9.9.9\x00"), undefined=True)
        ),
        "a private sequence as UN, whose content is implicit": w.sequence(
            0x00091010,
            implicit.item(
                implicit.element(0x00100010, "PN", b"A^B ")
                + implicit.sequence(0x00081199, implicit.item(b"", undefined=True)),
                undefined=True,
            )
            if w.order == "little"
            else b"",
            vr="UN",
        )
        if w.order == "little"
        else b"",
        "encapsulated fragments": w.sequence(
            0x00091010, w.item(b""), w.item(bytes(999)), w.item(b"ab"), vr="OB"
        ),
        "group 0002, and groups that decrease": w.element(0x00020010, "UI", b"1.2\x00")
        + w.element(0x00180010, "LO", b"ab")
        + w.element(0x00080060, "CS", b"CT"),
        "a stray delimiter": w.tag(0xFFFEE0DD) + bytes(4) + w.tag(0xFFFEE00D) + bytes(4),
        "the same attribute again, with the same value": w.element(SOP_CLASS, "UI", b"1.2\x00"),
    }


CASES = [(syntax, name) for syntax in (IMPLICIT, EXPLICIT, BIG) for name in betweens(Writer(syntax))]


@pytest.mark.parametrize(("syntax", "name"), CASES)
def test_attributes_are_found_around(syntax: str, name: str) -> None:
    w = Writer(syntax)
    data = data_set(w, betweens(w)[name])
    for view in (data, bytearray(data), memoryview(data)):
        assert scan(view, syntax, TAGS, False) == FOUND


@pytest.mark.parametrize(("syntax", "name"), CASES)
def test_every_cut_asks_for_more_or_gives_the_same(syntax: str, name: str) -> None:
    w = Writer(syntax)
    data = data_set(w, betweens(w)[name])
    enough = len(data_set(w, betweens(w)[name])) - len(beyond(w))
    cuts = range(len(data)) if len(data) < 3000 else sorted(random.Random(1).sample(range(len(data)), 500))
    for cut in cuts:
        got = scan(data[:cut], syntax, TAGS, False)
        assert got == (FOUND if cut >= enough else None)


@pytest.mark.parametrize(("syntax", "name"), CASES)
def test_every_cut_at_the_end_gives_a_part_or_one_error(syntax: str, name: str) -> None:
    w = Writer(syntax)
    data = data_set(w, betweens(w)[name])
    for cut in range(min(len(data), 3000)):
        try:
            got = scan(data[:cut], syntax, TAGS, True)
        except PeerError:
            got = scan(data[:cut], syntax, TAGS, False)
            assert got is None  # cut within one asked for; anything else would be an error here too
        else:
            assert got is not None
            assert got.items() <= FOUND.items()


@pytest.mark.parametrize("name", betweens(Writer(EXPLICIT)))
def test_deflated_data_set_is_found_and_cut_alike(name: str) -> None:
    w = Writer(EXPLICIT)
    deflater = zlib.compressobj(wbits=-15)
    data = deflater.compress(data_set(w, betweens(w)[name])) + deflater.flush()
    assert scan(data + b"\x00", DEFLATED, TAGS, False) == FOUND
    assert scan(data, DEFLATED, TAGS, True) == FOUND
    seen = [scan(data[:cut], DEFLATED, TAGS, False) for cut in range(len(data))]
    assert all(got in (None, FOUND) for got in seen)
    assert [got is None for got in seen] == sorted((got is None for got in seen), reverse=True)
    with pytest.raises(PeerError, match="cut"):
        scan(data[: len(data) // 3], DEFLATED, TAGS, True)


def test_attribute_asked_for_last_ends_the_scan_with_its_value() -> None:
    data = Writer(EXPLICIT).element(SERIES, "UI", b"1.2\x00")
    assert scan(data, EXPLICIT, TAGS, False) == {SERIES: b"1.2\x00"}
    assert scan(data[:-1], EXPLICIT, TAGS, False) is None


def test_absent_attributes_are_left_out_once_a_later_one_is_seen() -> None:
    w = Writer(EXPLICIT)
    data = w.element(SOP_INSTANCE, "UI", b"1\x00") + w.element(0x00280010, "US", b"\x00\x01")
    assert scan(data, EXPLICIT, TAGS, False) == {SOP_INSTANCE: b"1\x00"}
    assert scan(data[: len(data) - 6], EXPLICIT, TAGS, False) == {SOP_INSTANCE: b"1\x00"}
    assert scan(data[: len(data) - 7], EXPLICIT, TAGS, False) is None


def test_unknown_and_private_transfer_syntaxes_are_explicit_little_endian() -> None:
    data = data_set(Writer(EXPLICIT))
    for syntax in (JPEG, "1.3.46.670589.33.1.4.1", "1.2.840.10008.1.2.8.1", "", "?"):
        assert scan(data, syntax, TAGS, False) == FOUND


def test_implicit_items_within_an_explicit_sequence_are_stepped_over() -> None:
    """Some writers do that, and widespread readers take it."""
    inner = Writer(IMPLICIT)
    content = inner.element(0x00100010, "PN", b"A^B ") + inner.sequence(
        0x00081199, inner.item(b"", undefined=True)
    )
    sequence = Writer(EXPLICIT).sequence(0x00081140, inner.item(content, undefined=True))
    assert scan(data_set(Writer(EXPLICIT), sequence), EXPLICIT, TAGS, False) == FOUND


def nested(w: Writer, depth: int) -> bytes:
    content = b""
    for _ in range(depth):
        content = w.sequence(0x00081140, w.item(content, undefined=True))
    return content


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG])
def test_depth_is_bounded(syntax: str) -> None:
    w = Writer(syntax)
    assert scan(data_set(w, nested(w, 64)), syntax, TAGS, False) == FOUND
    with pytest.raises(PeerError, match="nests"):
        scan(data_set(w, nested(w, 65)), syntax, TAGS, False)
    opening = w.element(0x00081140, "SQ", b"", UNDEFINED) + w.tag(0xFFFEE000) + b"\xff" * 4
    with pytest.raises(PeerError, match="nests"):
        scan(opening * 100_000, syntax, TAGS, False)


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG])
def test_broken_structure_is_one_error(syntax: str) -> None:
    w = Writer(syntax)
    start = w.element(0x00081140, "SQ", b"", UNDEFINED)
    broken = {
        "element instead of an item": start + w.element(0x00100010, "PN", b"A^B "),
        "item end without an item": start + w.tag(0xFFFEE00D) + bytes(4),
        "item within an item": start + w.tag(0xFFFEE000) + b"\xff" * 4 + w.item(b""),
        "sequence end within an item": start + w.tag(0xFFFEE000) + b"\xff" * 4 + w.tag(0xFFFEE0DD) + bytes(4),
        "item of undefined length at the top": w.tag(0xFFFEE000) + b"\xff" * 4,
        "asked for, of undefined length": w.element(SOP_CLASS, "UN", b"", UNDEFINED),
        "twice, and different": w.element(SOP_CLASS, "UI", b"1.2\x00")
        + w.element(SOP_CLASS, "UI", b"1.3\x00"),
    }
    for name, data in broken.items():
        for at_end in (False, True):
            with pytest.raises(PeerError) as error:
                scan(data, syntax, TAGS, at_end)
            assert error.value.reason == PeerError.INVALID_PARAMETER, name


def test_implicit_data_set_in_an_explicit_transfer_syntax_is_refused() -> None:
    with pytest.raises(PeerError, match="no VR"):
        scan(data_set(Writer(IMPLICIT)), EXPLICIT, TAGS, False)


@pytest.mark.parametrize(
    ("said", "written"), [(IMPLICIT, EXPLICIT), (EXPLICIT, BIG), (BIG, EXPLICIT), (BIG, IMPLICIT)]
)
def test_data_set_of_another_transfer_syntax_gives_nothing_of_it(said: str, written: str) -> None:
    with contextlib.suppress(PeerError):
        assert not scan(data_set(Writer(written)), said, TAGS, True)


def test_value_asked_for_that_is_cut_is_an_error_at_the_end_and_a_skipped_one_is_not() -> None:
    w = Writer(EXPLICIT)
    found = w.element(SOP_CLASS, "UI", b"1.2\x00")
    with pytest.raises(PeerError, match=r"ends within \(0008,0018\)"):
        scan(found + w.element(SOP_INSTANCE, "UI", b"1.3.4\x00")[:-1], EXPLICIT, TAGS, True)
    assert scan(found + w.element(0x00080020, "DA", b"20240101")[:-1], EXPLICIT, TAGS, True) == {
        SOP_CLASS: b"1.2\x00"
    }
    assert scan(found + w.element(0x00080020, "OB", b"", UNDEFINED - 1), EXPLICIT, TAGS, False) is None


def deflate(data: bytes) -> bytes:
    deflater = zlib.compressobj(9, wbits=-15)
    return deflater.compress(data) + deflater.flush()


def test_deflated_bomb_is_refused_in_bounded_memory() -> None:
    deflater = zlib.compressobj(9, wbits=-15)
    w = Writer(EXPLICIT)
    pieces = [deflater.compress(w.element(0x00091010, "OB", b"", 0x7FFFFFFF))]
    pieces += [deflater.compress(bytes(1 << 20)) for _ in range(80)]
    with pytest.raises(PeerError, match="inflates to more"):
        scan(b"".join(pieces), DEFLATED, TAGS, False)
    huge = deflate(w.element(SOP_CLASS, "UT", bytes(3 << 20)))
    with pytest.raises(PeerError, match="inflates to more"):
        scan(huge, DEFLATED, TAGS, False)


def test_deflated_value_passed_over_may_be_larger_than_any_buffer() -> None:
    w = Writer(EXPLICIT)
    data = deflate(data_set(w, w.element(0x00091010, "OB", random.Random(4).randbytes(3 << 20))))
    assert scan(data, DEFLATED, TAGS, False) == FOUND
    assert scan(data[: len(data) // 2], DEFLATED, TAGS, False) is None


@pytest.mark.parametrize("data", [b"\xff\xff\xff", zlib.compress(b"a zlib header is not a raw stream" * 9)])
def test_what_does_not_inflate_is_one_error(data: bytes) -> None:
    with pytest.raises(PeerError):
        scan(data, DEFLATED, TAGS, True)


def test_nothing_asked_or_nothing_given() -> None:
    assert scan(b"", EXPLICIT, (), False) == {}
    for syntax in (IMPLICIT, EXPLICIT, BIG):
        assert scan(b"", syntax, TAGS, True) == {}
        assert scan(b"", syntax, TAGS, False) is None
    assert scan(b"", DEFLATED, TAGS, False) is None
    with pytest.raises(PeerError, match="cut"):
        scan(b"", DEFLATED, TAGS, True)


def test_tags_must_ascend_and_be_few() -> None:
    for tags in ((2, 1), (1, 1), range(81)):
        with pytest.raises(ValueError, match="ascending"):
            scan(b"", EXPLICIT, tags, True)
    with pytest.raises(OverflowError):
        scan(b"", EXPLICIT, (-1,), True)
    assert scan(b"", EXPLICIT, range(64), True) == {}
