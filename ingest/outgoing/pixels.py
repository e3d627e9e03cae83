"""Pixel data on their way out: which frames a data set has, and where they are.

A frame is found without decoding anything: by its length in native pixel data, by an offset table or the
number of fragments in encapsulated ones (PS3.5 A.4).
"""

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ingest.codecs.frame import FrameLayout
from ingest.dicom import uids
from ingest.dicom.padding import ITEM, SEQUENCE_END, UNDEFINED_LENGTH
from ingest.dicom.transcoding import NATIVE
from ingest.errors import PeerError, RewriteError
from ingest.outgoing.elements import Element, ElementReader, Encoding
from ingest.outgoing.reencoding import Source, swap_words

PIXEL_DATA: Final = 0x7FE0_0010
EXTENDED_OFFSET_TABLE: Final = 0x7FE0_0001
EXTENDED_OFFSET_TABLE_LENGTHS: Final = 0x7FE0_0002
PHOTOMETRIC_INTERPRETATION: Final = 0x0028_0004
PLANAR_CONFIGURATION: Final = 0x0028_0006
_FLOAT_PIXEL_DATA: Final = frozenset({0x7FE0_0008, 0x7FE0_0009})

_NUMBERS: Final = {
    "samples": 0x0028_0002,
    "rows": 0x0028_0010,
    "columns": 0x0028_0011,
    "bits_allocated": 0x0028_0100,
    "bits_stored": 0x0028_0101,
    "high_bit": 0x0028_0102,
    "sign": 0x0028_0103,
}
_NUMBER_OF_FRAMES: Final = 0x0028_0008

FRAMES_MAX: Final = 1 << 20
FRAME_BYTES_MAX: Final = 1 << 29

_MONOCHROME: Final = frozenset({"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"})
_COLOR: Final = frozenset({"RGB", "YBR_FULL", "YBR_RCT"})


@dataclass(frozen=True, slots=True)
class Pixels:
    """The pixel data of a data set.

    Attributes:
        element: Pixel Data (7FE0,0010).
        frames: Number of frames.
    """

    layout: FrameLayout
    frames: int
    element: Element


def read_pixels(source: Source, elements: Sequence[Element], syntax: str) -> Pixels:
    """Read what a data set says about its pixel data.

    Raises:
        RewriteError: It has none, or such that are not transcoded.
        OSError: The file cannot be read.
    """
    by_tag: dict[int, Element] = {}
    for each in elements:
        by_tag.setdefault(each.tag, each)
    if not _FLOAT_PIXEL_DATA.isdisjoint(by_tag):
        raise RewriteError("float pixel data are not compressed")
    if PIXEL_DATA not in by_tag:
        raise RewriteError("it has no pixel data to compress")
    order = Encoding.of_syntax(syntax).order

    def read(tag: int) -> bytes:
        element = by_tag.get(tag)
        return b"" if element is None else source.read(element.value_at, min(element.length, 64))

    numbers = {
        name: int.from_bytes(read(tag)[:2], "big" if order == ">" else "little")
        for name, tag in _NUMBERS.items()
    }
    count = read(_NUMBER_OF_FRAMES).strip(b"\0 ") or b"1"
    layout = FrameLayout(
        numbers["rows"],
        numbers["columns"],
        numbers["samples"],
        numbers["bits_allocated"],
        numbers["bits_stored"],
        numbers["sign"] == 1,
        read(PHOTOMETRIC_INTERPRETATION).strip(b"\0 ").decode("ascii", "replace"),
        int.from_bytes(read(PLANAR_CONFIGURATION)[:2], "big" if order == ">" else "little") == 1,
    )
    frames = int(count) if count.isdigit() else 0
    reason = find_hindrance(layout, numbers["high_bit"], frames)
    if reason:
        raise RewriteError(reason)
    pixels = Pixels(layout, frames, by_tag[PIXEL_DATA])
    if pixels.element.is_undefined == (syntax in NATIVE):
        raise RewriteError("its pixel data are not encoded as its transfer syntax says")
    if syntax in NATIVE and not 0 <= pixels.element.length - frames * layout.size_bytes <= 1:
        said = f"{frames * layout.size_bytes}"
        raise RewriteError(
            f"its pixel data have {pixels.element.length} bytes, and its attributes say {said}"
        )
    return pixels


def find_hindrance(layout: FrameLayout, high_bit: int, frames: int) -> str:
    """Return why pixel data of these attributes are not transcoded; an empty text if they are."""
    # INVARIANT 10: decisions are pure
    allocated, stored = layout.bits_allocated, layout.bits_stored
    if not 0 < frames <= FRAMES_MAX:
        return f"Number of Frames is not between 1 and {FRAMES_MAX}"
    if allocated not in {8, 16}:
        return f"pixels with Bits Allocated {allocated} are not transcoded"
    if not 0 < stored <= allocated or high_bit != stored - 1:
        return f"pixels with Bits Stored {stored} and High Bit {high_bit} are not transcoded"
    kinds = {1: _MONOCHROME, 3: _COLOR}.get(layout.samples, frozenset())
    if layout.photometric not in kinds:
        kind = layout.photometric or "no Photometric Interpretation"
        return f"pixels of {layout.samples} samples and {kind} are not transcoded"
    if not 0 < layout.size_bytes <= FRAME_BYTES_MAX:
        return f"a frame of {layout.size_bytes} bytes is not transcoded"
    return ""


def read_frames(
    source: Source, pixels: Pixels, syntax: str, elements: Sequence[Element], on_tick: Callable[[], None]
) -> Iterator[bytes]:
    """Return an iteration of the frames. Native ones are in little endian.

    Raises:
        PeerError, RewriteError: The frames cannot be found. The iteration raises OSError only.
        OSError: The file cannot be read.
    """
    if syntax in NATIVE:
        return _read_native(source, pixels, syntax)
    spans = index_frames(source, pixels, {each.tag: each for each in elements}, on_tick)
    return (b"".join(source.read(begin, end - begin) for begin, end in frame) for frame in spans)


def _read_native(source: Source, pixels: Pixels, syntax: str) -> Iterator[bytes]:
    size, at = pixels.layout.size_bytes, pixels.element.value_at
    is_swapped = syntax == uids.EXPLICIT_BIG_ENDIAN and pixels.element.vr == b"OW"
    for number in range(pixels.frames):
        begin = number * size
        if not is_swapped:
            yield source.read(at + begin, size)
            continue
        # A frame of an odd number of bytes begins or ends within a word.
        first, end = begin & ~1, (begin + size + 1) & ~1
        words = swap_words(source.read(at + first, end - first), 2)
        yield words[begin - first :][:size]


def index_frames(
    source: Source, pixels: Pixels, by_tag: Mapping[int, Element], on_tick: Callable[[], None]
) -> Iterator[list[tuple[int, int]]]:
    """Return an iteration of the frames of an encapsulated value: the positions of their fragments.

    Raises:
        PeerError, RewriteError: The frames cannot be found.
        OSError: The file cannot be read.
    """
    begins, ends, table = _list_fragments(source, pixels.element, on_tick)
    if not begins:
        raise RewriteError("its pixel data have no fragment")
    extended = by_tag.get(EXTENDED_OFFSET_TABLE)
    if extended is not None and extended.length == 8 * pixels.frames:
        table = array("Q", source.read(extended.value_at, extended.length))
    if pixels.frames == 1:
        firsts = [0]
    elif len(begins) == pixels.frames:
        firsts = list(range(pixels.frames))
    elif len(table) == pixels.frames:
        # Offsets count from the item of the first fragment, whose value is 8 bytes behind.
        starts = [begins[0] + offset for offset in table]
        firsts = [bisect_left(begins, start) for start in starts]
        is_sound = firsts[0] == 0 and all(
            first < len(begins) and begins[first] == start
            for first, start in zip(firsts, starts, strict=True)
        )
        if not is_sound or sorted(set(firsts)) != firsts:
            raise RewriteError("its offset table does not name its fragments")
    else:
        raise RewriteError(f"its {len(begins)} fragments cannot be told apart as {pixels.frames} frames")
    lasts = [*firsts[1:], len(begins)]
    return (
        [(begins[index], ends[index]) for index in range(first, last)]
        for first, last in zip(firsts, lasts, strict=True)
    )


def _list_fragments(
    source: Source, element: Element, on_tick: Callable[[], None]
) -> tuple["array[int]", "array[int]", "array[int]"]:
    """Return where the values of the fragments begin and end, and the Basic Offset Table."""
    reader = ElementReader(source.read, source.length, Encoding("<", False), on_tick)
    begins, ends, table = array("Q"), array("Q"), array("Q")
    at, is_first = element.value_at, True
    while at < element.end:
        tag, length = reader.read_item(at, False)
        at += 8
        if tag == SEQUENCE_END:
            break
        if tag != ITEM or length == UNDEFINED_LENGTH or at + length > element.end:
            raise PeerError("an encapsulated value has something other than fragments")
        if is_first:
            is_first = False
            if length % 4 == 0 and length <= 4 * FRAMES_MAX:
                table = array("Q", array("I", source.read(at, length)))
        elif len(begins) >= FRAMES_MAX:
            raise RewriteError(f"it has more than {FRAMES_MAX} fragments")
        else:
            begins.append(at)
            ends.append(at + length)
        at += length
    return begins, ends, table
