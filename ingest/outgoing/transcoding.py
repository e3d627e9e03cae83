"""Transcoding: encode the data set of an instance in a transfer syntax that its remote accepts.

It is the last change of a data set. A destination without transcoding costs nothing: its plan has none.

Frames of pixel data are transcoded one at a time while the data set is sent (`ingest.codecs`). The first one
is transcoded before anything is sent, so that a codec which refuses the data set costs no association.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from ingest.codecs.frame import FrameJob
from ingest.codecs.pool import CodecPool
from ingest.dicom import uids
from ingest.dicom.padding import ITEM, SEQUENCE_END
from ingest.dicom.transcoding import JPEG_2000, NATIVE, TranscodingRule, name_syntax
from ingest.errors import PeerError, RewriteError
from ingest.outgoing.data_set import FileParts, FileRange, OutgoingDataSet, Part, read_range
from ingest.outgoing.elements import Element, Encoding, list_elements
from ingest.outgoing.inflated import InflatedData, deflate
from ingest.outgoing.pixels import (
    EXTENDED_OFFSET_TABLE,
    EXTENDED_OFFSET_TABLE_LENGTHS,
    PHOTOMETRIC_INTERPRETATION,
    PIXEL_DATA,
    PLANAR_CONFIGURATION,
    Pixels,
    read_frames,
    read_pixels,
)
from ingest.outgoing.reencoding import Piece, Source, count_bytes, make_parts, reencode

_READ_BYTES = 1 << 16


class Transcoding:
    """The transcoding for one destination."""

    def __init__(self, rule: TranscodingRule, codecs: CodecPool) -> None:
        """Take the rule of the destination, and the codec processes of the worker."""
        self._rule = rule
        self._codecs = codecs

    def list_offers(self, stored: str) -> tuple[str, ...]:
        """List the transfer syntaxes to propose for instances stored in one, the best first."""
        return self._rule.list_offers(stored)

    def transcode(
        self, data_set: OutgoingDataSet, accepted: Sequence[str], on_tick: Callable[[], None]
    ) -> OutgoingDataSet:
        """Return the data set in the first accepted transfer syntax that it can be encoded in.

        The result depends on the arguments only, so that a retry sends the same bytes.

        Args:
            data_set: The data set so far.
            accepted: UIDs of transfer syntaxes that were offered and accepted, the best first.
            on_tick: To be called at least twice a second.

        Raises:
            RewriteError: It can be encoded in none of them.
            OSError: The file cannot be read, or no codec can be started.
        """
        if accepted[0] == data_set.transfer_syntax_uid:
            return data_set
        stored = FileParts(data_set.fd, data_set.parts)
        reasons: dict[str, None] = {}
        for syntax in accepted:
            if syntax == data_set.transfer_syntax_uid:
                # An iteration of parts was used up.
                is_whole = isinstance(data_set.parts, Sequence)
                return data_set if is_whole else replace(data_set, parts=stored.parts)
            try:
                made = _Reencoded(data_set, stored, syntax, on_tick)
                if data_set.transfer_syntax_uid in NATIVE and syntax in NATIVE:
                    return made.convert()
                return made.transcode_pixels(self._codecs)
            except (PeerError, RewriteError, ValueError) as error:
                reasons[str(error)] = None
        name, said = name_syntax(data_set.transfer_syntax_uid), "; ".join(reasons)
        raise RewriteError(
            f"the remote refuses {name}, and the data set cannot be transcoded: {said}; "
            "let the remote accept it"
        )

    def close(self) -> None:
        """End the codec processes."""
        self._codecs.close()


@dataclass(frozen=True, slots=True)
class _Edit:
    """An element of the top level that is replaced; without a new one it is left out."""

    element: Element
    new: bytes = b""


class _Reencoded:
    """One data set in another transfer syntax.

    It is read twice. The first pass finds what cannot be encoded, before anything is sent.
    """

    def __init__(
        self, data_set: OutgoingDataSet, stored: FileParts, syntax: str, on_tick: Callable[[], None]
    ) -> None:
        self._data_set = data_set
        self._stored_in = data_set.transfer_syntax_uid
        self._syntax = syntax
        self._on_tick = on_tick
        is_deflated = self._stored_in in uids.DEFLATED
        self._source: Source = InflatedData(stored, on_tick) if is_deflated else stored
        self._from, self._to = Encoding.of_syntax(self._stored_in), Encoding.of_syntax(syntax)

    def convert(self) -> OutgoingDataSet:
        """Encode a native data set in another native transfer syntax."""
        length = count_bytes(self._encode(0, self._source.length, ()))
        parts = make_parts(self._source, self._encode(0, self._source.length, ()))
        if self._syntax in uids.DEFLATED:
            return self._make(deflate(_read_parts(self._data_set.fd, parts)), None)
        return self._make(parts, length)

    def transcode_pixels(self, codecs: CodecPool) -> OutgoingDataSet:
        """Encode the pixel data with a codec, and the other elements as the transfer syntax wants them."""
        source = self._source
        elements = list_elements(source.read, source.length, self._stored_in, self._on_tick)
        pixels = read_pixels(source, elements, self._stored_in)
        edits = self._edit_elements(elements, pixels)
        at = pixels.element
        around = (0, at.begin, edits), (at.end, source.length, edits)
        rest = sum(count_bytes(self._encode(*each)) for each in around)
        head, tail = self._frame_pixels(pixels)
        job = FrameJob(pixels.layout, self._stored_in, self._syntax)
        frames = read_frames(source, pixels, self._stored_in, elements, self._on_tick)
        made = codecs.transcode(job, frames, self._on_tick)
        whole = chain([next(made)], made)
        body = whole if self._syntax in NATIVE else self._encapsulate(whole)
        before, after = (make_parts(source, self._encode(*each)) for each in around)
        length = None
        if self._syntax in NATIVE:
            length = rest + len(head) + pixels.frames * pixels.layout.size_bytes + len(tail)
        return self._make(chain(before, [head], body, [tail], after), length)

    def _make(self, parts: Iterable[Part], length: int | None) -> OutgoingDataSet:
        note = f"sent in {name_syntax(self._syntax)}"
        return replace(
            self._data_set,
            transfer_syntax_uid=self._syntax,
            parts=parts,
            length=length,
            note="; ".join(filter(None, (self._data_set.note, note))),
        )

    def _encode(self, begin: int, end: int, edits: Sequence[_Edit]) -> Iterator[Piece]:
        """Yield the pieces of the elements between two positions of the top level, with edits made."""
        for edit in edits:
            if not begin <= edit.element.begin < end:
                continue
            if edit.element.begin > begin:
                yield from self._reencode(begin, edit.element.begin)
            if edit.new:
                yield edit.new
            begin = edit.element.end
        if begin < end:
            yield from self._reencode(begin, end)

    def _reencode(self, begin: int, end: int) -> Iterator[Piece]:
        return reencode(self._source, self._from, self._to, self._on_tick, begin, end)

    def _edit_elements(self, elements: Sequence[Element], pixels: Pixels) -> list[_Edit]:
        """Return the edits of attributes that describe the pixel data, in order of position."""
        layout, edits = pixels.layout, []
        for element in elements:
            if element.tag in {EXTENDED_OFFSET_TABLE, EXTENDED_OFFSET_TABLE_LENGTHS}:
                edits.append(_Edit(element))
            elif element.tag == PLANAR_CONFIGURATION and layout.samples > 1:
                edits.append(_Edit(element, self._encode_element(element.tag, b"US", b"\0\0")))
            elif element.tag == PHOTOMETRIC_INTERPRETATION and layout.photometric in {"RGB", "YBR_RCT"}:
                # PS3.5 8.2.4: the reversible color transformation of JPEG 2000
                name = b"YBR_RCT " if self._syntax == JPEG_2000 else b"RGB "
                edits.append(_Edit(element, self._encode_element(element.tag, b"CS", name)))
        return sorted(edits, key=lambda edit: edit.element.begin)

    def _encode_element(self, tag: int, vr: bytes, value: bytes) -> bytes:
        value += b" " * (len(value) & 1)
        return self._to.encode_header(tag, vr, len(value)) + value

    def _frame_pixels(self, pixels: Pixels) -> tuple[bytes, bytes]:
        """Return what stands before and behind the frames."""
        to = self._to
        if self._syntax not in NATIVE:
            # PS3.5 A.4: an empty Basic Offset Table. Each frame is one fragment, and the offsets are not
            # known before the last frame is encoded.
            head = to.encode_undefined(PIXEL_DATA, b"OB") + to.encode_header(ITEM, b"", 0)
            return head, to.encode_header(SEQUENCE_END, b"", 0)
        size = pixels.frames * pixels.layout.size_bytes
        vr = b"OW" if pixels.layout.bits_allocated > 8 else b"OB"
        return to.encode_header(PIXEL_DATA, vr, size + (size & 1)), b"\0" * (size & 1)

    def _encapsulate(self, frames: Iterable[bytes]) -> Iterator[bytes]:
        """Yield each frame as a fragment (PS3.5 A.4)."""
        for frame in frames:
            length = len(frame)
            yield self._to.encode_header(ITEM, b"", length + (length & 1)) + frame + b"\0" * (length & 1)


def _read_parts(fd: int, parts: Iterable[Part]) -> Iterator[bytes]:
    """Yield the bytes of parts, in pieces."""
    for part in parts:
        if isinstance(part, FileRange):
            for at in range(0, part.length, _READ_BYTES):
                yield read_range(fd, part.offset + at, min(_READ_BYTES, part.length - at))
        else:
            yield part
