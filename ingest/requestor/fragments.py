"""P-DATA-TF PDUs from the parts of a data set (PS3.8 9.3.5): one PDV each, of even length (E.1)."""

import struct
from collections.abc import Iterable, Iterator
from typing import Final

from ingest.errors import StoreError
from ingest.ext.encode import DataSetEncoder
from ingest.outgoing.data_set import FileRange, Part, read_range

PDV_OVERHEAD: Final = 6
"""PS3.8 Table 9-23: item-length, presentation-context-ID, message control header."""
READ_BYTES_MAX: Final = 1 << 14
"""Longest range that is read into memory, to share a fragment with the parts around it."""

# PS3.8 Table 9-22: PDU-type, reserved, PDU-length. Table 9-23: item-length, presentation-context-ID.
# PS3.8 E.2: message control header.
_HEADERS: Final = struct.Struct(">BxLLBB")
_P_DATA: Final = 4
_LAST_FRAGMENT: Final = 2  # PS3.8 E.2: bit 1 of the message control header


class PartFragments:
    """Encodes parts as PDUs. The encoder copies long ranges; all other bytes pass through `_waiting`.

    Only the end of the parts shows which fragment is the last one. A fragment therefore waits until another
    byte follows it. A range waits as a pair of numbers, and costs no memory.
    """

    def __init__(
        self, encoder: DataSetEncoder, context_id: int, fd: int, fragment_bytes: int, *, pads: bool
    ) -> None:
        """Prepare without reading anything.

        Args:
            encoder: Encoder of the association.
            context_id: Presentation context ID.
            fd: File of the ranges.
            fragment_bytes: Length of a fragment, even unless it is 1.
            pads: Whether a byte 00H follows an odd data set (PS3.5 A.5).
        """
        self._encoder = encoder
        self._context_id = context_id
        self._fd = fd
        self._fragment_bytes = fragment_bytes
        self._pads = pads
        self._waiting = b""
        self._range: FileRange | None = None

    def encode(self, parts: Iterable[Part]) -> Iterator[memoryview]:
        """Yield the PDUs. A view is valid until the next one.

        Raises:
            OSError: The file cannot be read. Without an error number, it ends too early.
            StoreError: The data set has an odd length, and is not to be padded.
        """
        for part in parts:
            if isinstance(part, bytes) or part.length <= READ_BYTES_MAX:
                data = part if isinstance(part, bytes) else self._read(part)
                if data:
                    yield from self._end_range()
                    yield from self._add_bytes(data)
            else:
                yield from self._end_range()
                yield from self._begin_range(part)
        yield from self._finish()

    def _read(self, part: FileRange) -> bytes:
        return read_range(self._fd, part.offset, part.length)

    def _add_bytes(self, data: bytes) -> Iterator[memoryview]:
        """Yield all fragments but the last one of the bytes that wait, with these bytes behind them."""
        view = memoryview(data)
        begin = self._fragment_bytes - len(self._waiting)
        if len(view) <= begin:
            self._waiting += data
            return
        yield self._encode(self._waiting, view[:begin])
        while len(view) - begin > self._fragment_bytes:
            yield self._encode(view[begin : begin + self._fragment_bytes])
            begin += self._fragment_bytes
        self._waiting = bytes(view[begin:])

    def _begin_range(self, part: FileRange) -> Iterator[memoryview]:
        """Send the bytes that wait, made even by the first byte of a range, and let its rest wait."""
        borrowed = len(self._waiting) & 1
        if borrowed:
            yield from self._add_bytes(read_range(self._fd, part.offset, 1))
        if self._waiting:
            yield self._encode(self._waiting)
            self._waiting = b""
        self._range = FileRange(part.offset + borrowed, part.length - borrowed)

    def _end_range(self) -> Iterator[memoryview]:
        """Send the range that waits, since other bytes follow it. An odd last byte waits for those."""
        part, self._range = self._range, None
        if part is None:
            return
        even = part.length & ~1
        self._encoder.start(self._context_id, self._fd, part.offset, even, is_last=False)
        yield from iter(self._encoder.fill, b"")
        if even < part.length:
            self._waiting = read_range(self._fd, part.offset + even, 1)

    def _finish(self) -> Iterator[memoryview]:
        length = len(self._waiting) if self._range is None else self._range.length
        if length & 1 and not self._pads:
            raise StoreError("the changed data set has an odd length")
        if self._range is not None:
            part = self._range
            self._encoder.start(self._context_id, self._fd, part.offset, part.length, self._pads)
            yield from iter(self._encoder.fill, b"")
            return
        padding = b"\0" * (length & 1)
        if padding and length == self._fragment_bytes:  # fragments of one byte
            yield self._encode(self._waiting)
            self._waiting = b""
        yield self._encode(self._waiting, padding, control=_LAST_FRAGMENT)

    def _encode(self, *pieces: bytes | memoryview, control: int = 0) -> memoryview:
        length = sum(map(len, pieces))
        head = _HEADERS.pack(_P_DATA, length + PDV_OVERHEAD, length + 2, self._context_id, control)
        return memoryview(b"".join((head, *pieces)))
