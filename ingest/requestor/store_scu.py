"""The sender: SCU of Verification and Storage (PS3.4 A and B), synchronous, no wait without a deadline.

A data set goes from its file to the remote through the encoder's one buffer, as it is: no transcoding, and no
memory that grows with it. One of odd length is padded on its way (`ingest.dicom.padding`).
"""

import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from ingest.dicom import dimse, padding, uids
from ingest.dicom.responses import Operation, Response
from ingest.errors import AssociationError, PeerError, StoreAwayError, StoreError
from ingest.ext.encode import DataSetEncoder, encode_p_data
from ingest.requestor.association import CONTEXTS_MAX, Context, Timeouts, UpperLayer
from ingest.requestor.transport import Remote

__all__ = ["Association", "Context", "Remote", "Response", "Timeouts", "plan", "proposals"]

_HEADERS: Final = struct.Struct(">BxLLBB")
_PDV_OVERHEAD: Final = 6  # PS3.8 Table 9-23: item-length, presentation-context-ID, message control header

SEND_BUFFER: Final = 1 << 17
BUFFERS_BYTES: Final = 1 << 24
"""More than the kernels of both sides hold between them (tcp_wmem and tcp_rmem: 4 and 6 MiB by default)."""

JOINED_MAX: Final = 1 << 14
"""A data set up to so many bytes shares a write, and mostly a TLS record, with its command set."""


def plan(contexts: Iterable[Context]) -> list[tuple[Context, ...]]:
    """What to offer, for what is to be sent: each context once, in order, at most 128 to an association."""
    unique = list(dict.fromkeys(contexts))
    return [tuple(unique[at : at + CONTEXTS_MAX]) for at in range(0, len(unique), CONTEXTS_MAX)]


def proposals(contexts: Iterable[Context]) -> list[tuple[str, tuple[str, ...]]]:
    """Contexts in the shape that `Association.open` takes."""
    return [(sop_class, (transfer_syntax,)) for sop_class, transfer_syntax in contexts]


class Association(UpperLayer):
    """An association that stores and verifies; opened by `open`."""

    _encoder: DataSetEncoder | None = None
    _message_id = 0

    def submit(
        self,
        source: int | Path,
        offset: int,
        length: int | None,
        *,
        sop_class: str,
        sop_instance: str,
        transfer_syntax: str,
    ) -> int:
        """Send one C-STORE request and its data set (PS3.7 9.1.1), without waiting for the answer.

        Args:
            source: The file, as a path or as a descriptor that stays the caller's.
            offset: Where in it the data set begins, in bytes.
            length: Bytes of the data set; None up to the end of the file.
            sop_class: Its SOP class UID.
            sop_instance: Its SOP instance UID.
            transfer_syntax: The UID of the transfer syntax that it has.

        Returns:
            The message ID, as `collect` gives it with the answer.

        Raises:
            AssociationError: The association ended; nothing is known about what has no answer yet.
            StoreError: The file could not be read, or its data set is odd and cannot be padded.
                StoreAwayError where that says nothing of the file. Where it happened half-way, the
                association was aborted.
            LookupError: The remote accepted no such context; ask `accepted` first.
            ValueError: As many operations as the remote takes are without an answer: `collect` first.
        """
        context_id = self.accepted(sop_class, transfer_syntax)
        if context_id is None:
            raise LookupError(f"{self.remote} accepted no context for {sop_class} in {transfer_syntax}")
        message_id = self._next_message_id()
        operation = Operation(message_id, context_id, dimse.C_STORE_RQ, sop_class, sop_instance)
        command = dimse.store_request(message_id, sop_class, sop_instance)
        try:
            fd = source if isinstance(source, int) else os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise StoreError(f"{sop_instance}: its file cannot be opened: {error}") from error
        try:
            length = max(0, os.fstat(fd).st_size - offset) if length is None else length
            encoder = self._encoder_for_peer()
            self._transport.run_ahead(far=length > BUFFERS_BYTES)
            if padding.is_odd(length, transfer_syntax):
                fragments = self._padded(context_id, fd, offset, length, transfer_syntax, sop_instance)
            else:
                # A deflate stream may be odd in a file, but no fragment may be (PS3.5 A.5, PS3.8 E.1).
                encoder.start(context_id, fd, offset, length, transfer_syntax in uids.DEFLATED)
                fragments = _fragments(encoder, sop_instance)
            # A missing or short file says so before the first byte went out, which keeps the association.
            first = next(fragments)
            head = encode_p_data(context_id, command, self.peer_max_pdu_length)
            if len(first) <= JOINED_MAX:
                self.send(operation, head + first, fragments)
            else:
                self.send(operation, head, _chain(first, fragments))
        finally:
            if fd is not source:
                os.close(fd)
        return message_id

    def collect(self) -> tuple[int, Response]:
        """Wait for the next answer to an operation of ours; its message ID and what it says.

        Raises:
            AssociationError: The association ended, or the remote answered what nobody asked. Nothing is
                known about operations without an answer.
        """
        return self.receive()

    def store(
        self,
        source: int | Path,
        offset: int,
        length: int | None,
        *,
        sop_class: str,
        sop_instance: str,
        transfer_syntax: str,
    ) -> Response:
        """`submit` while nothing else is on its way, and wait for the answer, whatever its status."""
        self.submit(
            source,
            offset,
            length,
            sop_class=sop_class,
            sop_instance=sop_instance,
            transfer_syntax=transfer_syntax,
        )
        return self.collect()[1]

    def echo(self) -> Response:
        """C-ECHO (PS3.7 9.1.5), while nothing else is on its way.

        Raises:
            AssociationError: The association ended.
            LookupError: The remote accepted no context for Verification.
        """
        context_id = self.accepted(uids.VERIFICATION, uids.IMPLICIT_LITTLE_ENDIAN)
        if context_id is None:
            raise LookupError(f"{self.remote} accepted no context for Verification")
        message_id = self._next_message_id()
        operation = Operation(message_id, context_id, dimse.C_ECHO_RQ, uids.VERIFICATION)
        command = dimse.echo_request(message_id)
        self.send(operation, encode_p_data(context_id, command, self.peer_max_pdu_length), iter(()))
        return self.collect()[1]

    def _padded(  # noqa: PLR0917 - what `submit` has
        self, context_id: int, fd: int, offset: int, length: int, transfer_syntax: str, sop_instance: str
    ) -> Iterator[memoryview]:
        """The PDUs of a data set with odd values, each padded; what is wrong is raised with the first."""

        def read(at: int, count: int) -> bytes:
            count = min(count, length - at)
            found = os.pread(fd, count, offset + at)
            while len(found) < count:
                part = os.pread(fd, count - len(found), offset + at + len(found))
                if not part:
                    raise OSError("the file ends before its data set")
                found += part
            return found

        try:
            edits = padding.find_edits(read, length, transfer_syntax, self._transport.tick)
            left = padding.changed_length(length, edits)
            if left & 1:
                raise PeerError("no value in it is odd")
            yield from _framed(
                context_id, padding.changed(read, length, edits), left, self._fragment_length()
            )
        except PeerError as error:
            said = f"{sop_instance}: its data set has an odd length, and cannot be padded: {error}"
            raise StoreError(said) from error
        except OSError as error:
            raise _unreadable(sop_instance, error) from error

    def _fragment_length(self) -> int:
        """Bytes of one fragment (PS3.8 D.1 and E.1): as many as the remote takes, and an even number."""
        limit = (self.peer_max_pdu_length or SEND_BUFFER) - _PDV_OVERHEAD
        return max(1, min(limit, SEND_BUFFER - _HEADERS.size) & ~1)

    def _encoder_for_peer(self) -> DataSetEncoder:
        if self._encoder is None:
            try:
                self._encoder = DataSetEncoder(self.peer_max_pdu_length, SEND_BUFFER)
            except ValueError as error:
                self.abort()
                raise AssociationError(f"{self.remote}: {error}") from error
        return self._encoder

    def _next_message_id(self) -> int:
        # PS3.7 E.1: Message ID is a US; 0 is left out, since some remotes take it for "none".
        self._message_id = self._message_id % 0xFFFF + 1
        return self._message_id


def _fragments(encoder: DataSetEncoder, sop_instance: str) -> Iterator[memoryview]:
    try:
        while fragments := encoder.fill():
            yield fragments
    except OSError as error:
        raise _unreadable(sop_instance, error) from error


def _unreadable(sop_instance: str, error: OSError) -> StoreError:
    # With a number it is the system's: a disk, a mount. Without one the file itself is too short.
    kind = StoreError if error.errno is None else StoreAwayError
    return kind(f"{sop_instance}: its file cannot be read: {error}")


def _framed(
    context_id: int, pieces: Iterator[bytes], left: int, fragment_length: int
) -> Iterator[memoryview]:
    """P-DATA-TF PDUs of one PDV each (PS3.8 9.3.5), out of `left` bytes in pieces of any length."""
    waiting = bytearray()
    for piece in pieces:
        waiting += piece
        begin = 0
        while (length := min(left, fragment_length)) and len(waiting) - begin >= length:
            left -= length
            # PS3.8 Table 9-22 and 9-23, E.2: bit 1 of the message control header marks the last fragment.
            head = _HEADERS.pack(4, length + _PDV_OVERHEAD, length + 2, context_id, 0 if left else 2)
            yield memoryview(head + waiting[begin : begin + length])
            begin += length
        del waiting[:begin]


def _chain(first: memoryview, rest: Iterator[memoryview]) -> Iterator[memoryview]:
    yield first
    yield from rest
