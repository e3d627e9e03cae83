"""The SCU of Verification and Storage (PS3.4 A and B): send instances over an association.

A data set goes from its file to the remote through the one buffer of the encoder. It is not transcoded, and
memory does not grow with it. A data set of odd length is padded on its way (`ingest.dicom.padding`). A data
set that is changed for a destination comes as parts (`ingest.outgoing.data_set`).
"""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from ingest.dicom import dimse, padding, uids
from ingest.dicom.priority import MEDIUM
from ingest.dicom.responses import Response, SentRequest
from ingest.errors import AssociationError, Cause, PeerError, StoreAwayError, StoreError
from ingest.ext.encode import DataSetEncoder, encode_p_data
from ingest.outgoing.data_set import FileParts, FileRange, OutgoingDataSet
from ingest.requestor.association import CONTEXTS_MAX, Context, RequestorAssociation, Timeouts
from ingest.requestor.fragments import PDV_OVERHEAD, PartFragments
from ingest.requestor.transport import Remote

__all__ = [
    "Context",
    "Remote",
    "Response",
    "StoreSCU",
    "Timeouts",
    "make_proposals",
    "make_read_error",
    "plan_associations",
]

SEND_BUFFER_BYTES: Final = 1 << 17
KERNEL_BUFFERS_BYTES: Final = 1 << 24
"""More than the kernels of both sides buffer together (tcp_wmem and tcp_rmem: 4 and 6 MiB by default)."""

JOINED_BYTES_MAX: Final = 1 << 14
"""A data set up to this size shares one write, and mostly one TLS record, with its command set."""

_PDU_HEADERS_BYTES: Final = 12  # PS3.8 Tables 9-22 and 9-23: headers of a P-DATA-TF PDU and its PDV


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
        priority: int = MEDIUM,
    ) -> int:
        """Send a C-STORE request with its data set (PS3.7 9.1.1), without waiting for the response.

        Args:
            source: Path of the file, or a descriptor that stays the caller's.
            offset: Position of the data set in the file, in bytes.
            length: Length of the data set in bytes; None means up to the end of the file.
            sop_class: SOP class UID of the instance.
            sop_instance: SOP instance UID of the instance.
            transfer_syntax: Transfer syntax UID of the data set.
            priority: Priority (0000,0700) of the request.

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
        context_id = self._require_context_id(sop_class, transfer_syntax)
        try:
            fd = source if isinstance(source, int) else os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise StoreError(f"{sop_instance}: its file cannot be opened: {error}") from error
        try:
            length = max(0, os.fstat(fd).st_size - offset) if length is None else length
            if padding.has_odd_value(length, transfer_syntax):
                stored = FileParts(fd, [FileRange(offset, length)])
                parts = pad_odd_values(stored, transfer_syntax, sop_instance, self._transport.tick)
                padded = OutgoingDataSet(
                    sop_class, sop_instance, transfer_syntax, fd, parts.parts, parts.length
                )
                return self.send_data_set(padded, priority)
            # A file may hold a deflate stream of odd length, but a fragment may not (PS3.5 A.5, PS3.8 E.1).
            # The encoder pads it with one zero byte.
            encoder = self._encoder_for_peer()
            encoder.start(context_id, fd, offset, length, transfer_syntax in uids.DEFLATED)
            fragments = _encoded_fragments(encoder, sop_instance)
            return self._send_store_request(context_id, sop_class, sop_instance, priority, length, fragments)
        finally:
            if fd is not source:
                os.close(fd)

    def send_data_set(self, data_set: OutgoingDataSet, priority: int = MEDIUM) -> int:
        """Send a C-STORE request with a data set in parts, as `send_instance` does with one of a file.

        Returns:
            The message ID.

        Raises:
            StoreError: A part cannot be made or read, or the parts have an odd length. The association is
                aborted if a part of the data set was sent already.
            AssociationError, StoreAwayError, LookupError, ValueError: As `send_instance`.
        """
        context_id = self._require_context_id(data_set.sop_class_uid, data_set.transfer_syntax_uid)
        pads = data_set.transfer_syntax_uid in uids.DEFLATED
        made = PartFragments(
            self._encoder_for_peer(), context_id, data_set.fd, self._fragment_bytes(), pads=pads
        )
        return self._send_store_request(
            context_id,
            data_set.sop_class_uid,
            data_set.sop_instance_uid,
            priority,
            data_set.length,
            _name_errors(made.encode(data_set.parts), data_set.sop_instance_uid),
        )

    def _send_store_request(  # noqa: PLR0917 - one call for each kind of source
        self,
        context_id: int,
        sop_class: str,
        sop_instance: str,
        priority: int,
        length: int | None,
        fragments: Iterator[memoryview],
    ) -> int:
        """Send a C-STORE request and these PDUs of its data set. A length of None is not known."""
        message_id = self._next_message_id()
        operation = SentRequest(message_id, context_id, dimse.C_STORE_RQ, sop_class, sop_instance)
        command = dimse.encode_store_request(message_id, sop_class, sop_instance, priority=priority)
        self._transport.limit_unsent_bytes(is_limited=length is None or length <= KERNEL_BUFFERS_BYTES)
        # Read the first fragment before the command set is sent. A missing or short file then raises
        # before the first byte of the request, and the association stays usable.
        first = next(fragments)
        head = encode_p_data(context_id, command, self.peer_max_pdu_length)
        if len(first) <= JOINED_BYTES_MAX:
            self.send_request(operation, head + first, fragments)
        else:
            self.send_request(operation, head, _chain_fragments(first, fragments))
        return message_id

    def _require_context_id(self, sop_class: str, transfer_syntax: str) -> int:
        context_id = self.accepted_context_id(sop_class, transfer_syntax)
        if context_id is None:
            raise LookupError(f"{self.remote} accepted no context for {sop_class} in {transfer_syntax}")
        return context_id

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

    def _fragment_bytes(self) -> int:
        """Return the length of a fragment (PS3.8 D.1, E.1): as long as the remote takes, and even."""
        limit = (self.peer_max_pdu_length or SEND_BUFFER_BYTES) - PDV_OVERHEAD
        return max(1, min(limit, SEND_BUFFER_BYTES - _PDU_HEADERS_BYTES) & ~1)

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


def pad_odd_values(
    stored: FileParts, transfer_syntax: str, sop_instance: str, on_tick: Callable[[], None]
) -> FileParts:
    """Pad the odd values of a data set, not a deflated one.

    Raises:
        StoreError: The data set cannot be padded.
        StoreAwayError: The file could not be read now.
    """
    try:
        edits = padding.find_edits(stored.read, stored.length, transfer_syntax, on_tick)
        padded = FileParts(stored.fd, stored.edit(edits))
        if padded.length & 1:
            raise PeerError("no value in it is odd")
    except PeerError as error:
        said = f"{sop_instance}: its data set has an odd length, and cannot be padded: {error}"
        raise StoreError(said) from error
    except OSError as error:
        raise make_read_error(sop_instance, error) from error
    return padded


def _encoded_fragments(encoder: DataSetEncoder, sop_instance: str) -> Iterator[memoryview]:
    try:
        while fragments := encoder.fill():
            yield fragments
    except OSError as error:
        raise make_read_error(sop_instance, error) from error


def _name_errors(fragments: Iterator[memoryview], sop_instance: str) -> Iterator[memoryview]:
    """Pass PDUs on. Errors of the file get the name of the instance."""
    try:
        yield from fragments
    except PeerError as error:
        raise StoreError(f"{sop_instance}: its data set cannot be read: {error}") from error
    except OSError as error:
        raise make_read_error(sop_instance, error) from error


def make_read_error(sop_instance: str, error: OSError) -> StoreError:
    """Make the error for a stored file that cannot be read: StoreAwayError if another attempt may succeed."""
    # An error number means a failing disk or mount. Without a number the file itself is too short.
    kind = StoreError if error.errno is None else StoreAwayError
    return kind(f"{sop_instance}: its file cannot be read: {error}")


def _chain_fragments(first: memoryview, rest: Iterator[memoryview]) -> Iterator[memoryview]:
    yield first
    yield from rest
