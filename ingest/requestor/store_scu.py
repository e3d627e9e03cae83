"""The SCU of Verification and Storage (PS3.4 A and B): send instances over an association.

A data set goes from its file to the remote through the one buffer of the encoder. It is not transcoded, and
memory does not grow with it. A data set of odd length is padded on its way (`ingest.dicom.padding`).
"""

import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from ingest.dicom import dimse, padding, uids
from ingest.dicom.responses import Response, SentRequest
from ingest.errors import AssociationError, Cause, PeerError, StoreAwayError, StoreError
from ingest.ext.encode import DataSetEncoder, encode_p_data
from ingest.requestor.association import CONTEXTS_MAX, Context, RequestorAssociation, Timeouts
from ingest.requestor.transport import Remote

__all__ = ["Context", "Remote", "Response", "StoreSCU", "Timeouts", "make_proposals", "plan_associations"]

# PS3.8 Table 9-22: PDU-type, reserved, PDU-length. Table 9-23: item-length, presentation-context-ID.
# PS3.8 E.2: message control header.
_P_DATA_HEADER: Final = struct.Struct(">BxLLBB")
_PDV_OVERHEAD: Final = 6  # PS3.8 Table 9-23: item-length, presentation-context-ID, message control header
_LAST_FRAGMENT: Final = 2  # PS3.8 E.2: bit 1 of the message control header

SEND_BUFFER_BYTES: Final = 1 << 17
KERNEL_BUFFERS_BYTES: Final = 1 << 24
"""More than the kernels of both sides buffer together (tcp_wmem and tcp_rmem: 4 and 6 MiB by default)."""

JOINED_BYTES_MAX: Final = 1 << 14
"""A data set up to this size shares one write, and mostly one TLS record, with its command set."""


def plan_associations(contexts: Iterable[Context]) -> list[tuple[Context, ...]]:
    """Distribute contexts over associations: each context once, in order, at most 128 to an association."""
    unique = list(dict.fromkeys(contexts))
    return [tuple(unique[at : at + CONTEXTS_MAX]) for at in range(0, len(unique), CONTEXTS_MAX)]


def make_proposals(contexts: Iterable[Context]) -> list[tuple[str, tuple[str, ...]]]:
    """Convert contexts to the proposals of `StoreSCU.open`."""
    return [(sop_class, (transfer_syntax,)) for sop_class, transfer_syntax in contexts]


class StoreSCU(RequestorAssociation):
    """An association that sends C-STORE and C-ECHO requests."""

    _encoder: DataSetEncoder | None = None
    _message_id = 0

    def send_instance(
        self,
        source: int | Path,
        offset: int,
        length: int | None,
        *,
        sop_class: str,
        sop_instance: str,
        transfer_syntax: str,
    ) -> int:
        """Send a C-STORE request with its data set (PS3.7 9.1.1), without waiting for the response.

        Args:
            source: Path of the file, or a descriptor that stays the caller's.
            offset: Position of the data set in the file, in bytes.
            length: Length of the data set in bytes; None means up to the end of the file.
            sop_class: SOP class UID of the instance.
            sop_instance: SOP instance UID of the instance.
            transfer_syntax: Transfer syntax UID of the data set.

        Returns:
            The message ID. `receive_response` returns it with the response.

        Raises:
            AssociationError: The association ended. The results of operations without response are unknown.
            StoreError: The file is damaged, or its data set has odd length and cannot be padded. The
                association is aborted if a part of the data set was sent already.
            StoreAwayError: The file could not be read now. The file itself may be sound.
            LookupError: The remote accepted no context for the instance. See `accepted_context_id`.
            ValueError: As many operations as the remote takes await a response: call `receive_response`.
        """
        context_id = self.accepted_context_id(sop_class, transfer_syntax)
        if context_id is None:
            raise LookupError(f"{self.remote} accepted no context for {sop_class} in {transfer_syntax}")
        message_id = self._next_message_id()
        operation = SentRequest(message_id, context_id, dimse.C_STORE_RQ, sop_class, sop_instance)
        command = dimse.encode_store_request(message_id, sop_class, sop_instance)
        try:
            fd = source if isinstance(source, int) else os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise StoreError(f"{sop_instance}: its file cannot be opened: {error}") from error
        try:
            length = max(0, os.fstat(fd).st_size - offset) if length is None else length
            encoder = self._encoder_for_peer()
            self._transport.limit_unsent_bytes(is_limited=length <= KERNEL_BUFFERS_BYTES)
            if padding.has_odd_value(length, transfer_syntax):
                fragments = self._padded_fragments(
                    context_id, fd, offset, length, transfer_syntax, sop_instance
                )
            else:
                # A file may hold a deflate stream of odd length, but a fragment may not (PS3.5 A.5,
                # PS3.8 E.1). The encoder pads it with one zero byte.
                encoder.start(context_id, fd, offset, length, transfer_syntax in uids.DEFLATED)
                fragments = _encoded_fragments(encoder, sop_instance)
            # Read the first fragment before the command set is sent. A missing or short file then raises
            # before the first byte of the request, and the association stays usable.
            first = next(fragments)
            head = encode_p_data(context_id, command, self.peer_max_pdu_length)
            if len(first) <= JOINED_BYTES_MAX:
                self.send_request(operation, head + first, fragments)
            else:
                self.send_request(operation, head, _chain_fragments(first, fragments))
        finally:
            if fd is not source:
                os.close(fd)
        return message_id

    def store_instance(
        self,
        source: int | Path,
        offset: int,
        length: int | None,
        *,
        sop_class: str,
        sop_instance: str,
        transfer_syntax: str,
    ) -> Response:
        """Send an instance while no other operation is open, and return the response with any status."""
        self.send_instance(
            source,
            offset,
            length,
            sop_class=sop_class,
            sop_instance=sop_instance,
            transfer_syntax=transfer_syntax,
        )
        return self.receive_response()[1]

    def send_echo(self) -> Response:
        """Send a C-ECHO request (PS3.7 9.1.5) while no other operation is open, and return the response.

        Raises:
            AssociationError: The association ended.
            LookupError: The remote accepted no context for Verification.
        """
        context_id = self.accepted_context_id(uids.VERIFICATION, uids.IMPLICIT_LITTLE_ENDIAN)
        if context_id is None:
            raise LookupError(f"{self.remote} accepted no context for Verification")
        message_id = self._next_message_id()
        operation = SentRequest(message_id, context_id, dimse.C_ECHO_RQ, uids.VERIFICATION)
        command = dimse.encode_echo_request(message_id)
        self.send_request(operation, encode_p_data(context_id, command, self.peer_max_pdu_length), iter(()))
        return self.receive_response()[1]

    def _padded_fragments(  # noqa: PLR0917 - the arguments of `send_instance`
        self, context_id: int, fd: int, offset: int, length: int, transfer_syntax: str, sop_instance: str
    ) -> Iterator[memoryview]:
        """Yield the PDUs of a data set, with odd values padded. The first PDU raises all errors."""

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
            padded_length = padding.edited_length(length, edits)
            if padded_length & 1:
                raise PeerError("no value in it is odd")
            pieces = padding.apply_edits(read, length, edits)
            yield from _frame_fragments(context_id, pieces, padded_length, self._fragment_bytes())
        except PeerError as error:
            said = f"{sop_instance}: its data set has an odd length, and cannot be padded: {error}"
            raise StoreError(said) from error
        except OSError as error:
            raise _make_read_error(sop_instance, error) from error

    def _fragment_bytes(self) -> int:
        """Return the length of a fragment (PS3.8 D.1, E.1): as long as the remote takes, and even."""
        limit = (self.peer_max_pdu_length or SEND_BUFFER_BYTES) - _PDV_OVERHEAD
        return max(1, min(limit, SEND_BUFFER_BYTES - _P_DATA_HEADER.size) & ~1)

    def _encoder_for_peer(self) -> DataSetEncoder:
        if self._encoder is None:
            # INVARIANT 4: one buffer of fixed size serves all data sets
            try:
                self._encoder = DataSetEncoder(self.peer_max_pdu_length, SEND_BUFFER_BYTES)
            except ValueError as error:
                self.abort()
                raise AssociationError(f"{self.remote}: {error}", cause=Cause.PROTOCOL_ERROR) from error
        return self._encoder

    def _next_message_id(self) -> int:
        # PS3.7 E.1: Message ID is a US. 0 is left out, because some remotes take it for a missing value.
        self._message_id = self._message_id % 0xFFFF + 1
        return self._message_id


def _encoded_fragments(encoder: DataSetEncoder, sop_instance: str) -> Iterator[memoryview]:
    try:
        while fragments := encoder.fill():
            yield fragments
    except OSError as error:
        raise _make_read_error(sop_instance, error) from error


def _make_read_error(sop_instance: str, error: OSError) -> StoreError:
    # An error number means a failing disk or mount. Without a number the file itself is too short.
    kind = StoreError if error.errno is None else StoreAwayError
    return kind(f"{sop_instance}: its file cannot be read: {error}")


def _frame_fragments(
    context_id: int, pieces: Iterator[bytes], left: int, fragment_bytes: int
) -> Iterator[memoryview]:
    """Yield P-DATA-TF PDUs of one PDV each (PS3.8 9.3.5), from `left` bytes in pieces of any length."""
    waiting = bytearray()
    for piece in pieces:
        waiting += piece
        begin = 0
        while (length := min(left, fragment_bytes)) and len(waiting) - begin >= length:
            left -= length
            control = 0 if left else _LAST_FRAGMENT
            head = _P_DATA_HEADER.pack(4, length + _PDV_OVERHEAD, length + 2, context_id, control)
            yield memoryview(head + waiting[begin : begin + length])
            begin += length
        del waiting[:begin]


def _chain_fragments(first: memoryview, rest: Iterator[memoryview]) -> Iterator[memoryview]:
    yield first
    yield from rest
