"""Deflated data sets (PS3.5 A.5), inflated and deflated in pieces. Memory does not grow with them."""

import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from ingest.errors import PeerError
from ingest.outgoing.data_set import FileParts

INFLATED_BYTES_MAX: Final = 1 << 34
"""Limit against a small stream that inflates to more than any image has."""

_PIECE_BYTES: Final = 1 << 16
_RAW_STREAM: Final = -15  # PS3.5 A.5: RFC 1951, without a header


class InflatedData:
    """An inflated data set that is read as a file. Reading backwards inflates it from its beginning.

    Attributes:
        length: Length of the inflated data set in bytes.
    """

    def __init__(self, deflated: FileParts, on_tick: Callable[[], None]) -> None:
        """Inflate the data set once, to measure it.

        Raises:
            PeerError: It cannot be inflated, or is too large.
            OSError: The file cannot be read.
        """
        self._deflated = deflated
        self._on_tick = on_tick
        self.length = 0
        self._window, self._window_at = b"", 0
        for piece in self._inflate():
            self.length += len(piece)
            if self.length > INFLATED_BYTES_MAX:
                raise PeerError(f"it inflates to more than {INFLATED_BYTES_MAX} bytes")
        self._restart()

    def read(self, at: int, count: int) -> bytes:
        """Read `count` bytes, or fewer at the end."""
        return b"".join(self.cut(at, at + count))

    def cut(self, begin: int, end: int) -> Iterator[bytes]:
        """Yield the bytes from position `begin` to `end`, in pieces of at most 64 KiB."""
        end = min(end, self.length)
        if begin < self._window_at:
            self._restart()
        while begin < end:
            while self._window_at + len(self._window) <= begin:
                self._window_at += len(self._window)
                self._window = next(self._pieces, b"")
                if not self._window:
                    raise OSError("the file has changed while it was sent")
            skipped = begin - self._window_at
            piece = self._window[skipped : skipped + end - begin]
            begin += len(piece)
            yield piece

    def _restart(self) -> None:
        self._pieces = self._inflate()
        self._window, self._window_at = b"", 0

    def _inflate(self) -> Iterator[bytes]:
        inflater = zlib.decompressobj(_RAW_STREAM)
        at = 0
        while not inflater.eof:
            piece = inflater.unconsumed_tail
            if not piece:
                piece = self._deflated.read(at, _PIECE_BYTES)
                at += len(piece)
            try:
                inflated = inflater.decompress(piece, _PIECE_BYTES)
            except zlib.error as error:
                raise PeerError("it cannot be inflated") from error
            self._on_tick()
            if inflated:
                yield inflated
            elif not piece and not inflater.eof:
                raise PeerError("its deflate stream is cut short")


def deflate(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield a deflate stream of pieces."""
    deflater = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, _RAW_STREAM)
    for piece in pieces:
        if deflated := deflater.compress(piece):
            yield deflated
    yield deflater.flush()
