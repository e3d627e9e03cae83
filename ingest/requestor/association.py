"""The requestor of an association: PS3.8 over a blocking transport on which every wait has a deadline.

`ingest.dicom.state_table` decides which action follows from an event. `_HANDLERS` at the end of this module
maps each action to the method that does the work.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from ingest.dicom import wire
from ingest.dicom.responses import OutstandingRequests, Response, SentRequest
from ingest.dicom.state_table import PDU_EVENTS, Action, Event, Role, State, next_step
from ingest.errors import AssociationError, Cause, PeerError
from ingest.ext.pdu import Command, ControlPDU, DataSet, PDUParser
from ingest.network.resolver import ignore_tick
from ingest.requestor import failures
from ingest.requestor.transport import Remote, Transport

CONTEXTS_MAX: Final = 128
"""PS3.8 Table 9-13: presentation context IDs are the odd numbers from 1 to 255."""
RECEIVE_BUFFER_BYTES: Final = 1 << 15
ABORT_SECONDS: Final = 1.0
RELEASE_SECONDS: Final = 5.0
EARLY_RESPONSE_STALL_SECONDS: Final = 5.0
"""Time in which a remote that has already responded must take more of the data set."""

Context = tuple[str, str]
"""SOP class UID and transfer syntax UID."""

_PDU = ControlPDU | Command | DataSet
_TLS_ALERT: Final = 0x15  # RFC 8446 5.1, ContentType. No PDU type of PS3.8 has this value.
_P_DATA: Final = 0x04  # PS3.8 9.3.1: PDU-type
_USER, _PROVIDER = 0, 2  # PS3.8 Table 9-26, byte 9: source of an A-ABORT


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Deadlines of an association.

    Attributes:
        connect_seconds: For the TCP connection and the TLS handshake together.
        response_seconds: For each response (A-ASSOCIATE-AC, C-STORE-RSP), and until a remote takes data.
    """

    connect_seconds: float = 10.0
    response_seconds: float = 60.0


class RequestorAssociation:
    """One association, seen by its requestor. Leaving a `with` block releases it; an exception aborts it.

    Attributes:
        remote: The acceptor.
        proposed: The proposed contexts, whether the remote accepted them or not.
        peer_max_pdu_length: Longest PDU that the remote takes, in bytes (PS3.8 D.1); 0 means no limit.
        window: Number of operations that may await a response at a time (PS3.7 D.3.3.3); 1 unless negotiated.
    """

    def __init__(self, remote: Remote, timeouts: Timeouts, max_pdu_length: int) -> None:
        """Prepare an association in Sta1. Callers use `open`."""
        self.remote = remote
        self.proposed: frozenset[Context] = frozenset()
        self.peer_max_pdu_length = 0
        self.window = 1
        self._timeouts = timeouts
        self._max_pdu_length = max_pdu_length
        self._state = State.IDLE
        self._transport: Transport
        self._parser = PDUParser(bytearray(RECEIVE_BUFFER_BYTES), max_pdu_length=max_pdu_length)
        self._offered: dict[int, Context] = {}
        self._async_operations = 0
        self._roles: tuple[wire.RoleSelection, ...] = ()
        self._context_ids: dict[Context, int] = {}
        self._operations = OutstandingRequests()
        self._failure: AssociationError | None = None
        self._owes_release_response = False

    @classmethod
    def open(
        cls,
        remote: Remote,
        proposals: Sequence[tuple[str, Sequence[str]]],
        *,
        timeouts: Timeouts = Timeouts(),
        max_pdu_length: int = 131072,
        async_operations: int = 0,
        bytes_per_second: float = 0.0,
        on_tick: Callable[[], None] = ignore_tick,
        roles: Sequence[wire.RoleSelection] = (),
    ) -> Self:
        """Connect, do the TLS handshake and negotiate an association.

        Args:
            remote: The acceptor.
            proposals: SOP class UIDs, each with its transfer syntaxes. Each pair becomes one presentation
                context, because a file is sent in the transfer syntax that it has. At most 128 pairs.
            timeouts: Deadlines.
            max_pdu_length: Longest PDU that we take, in bytes.
            async_operations: Proposed asynchronous operations window (PS3.7 D.3.3.3). 0 proposes none,
                because some remotes drop the connection when they see the item.
            bytes_per_second: Limit of the sending rate; 0 means no limit.
            on_tick: Called at least twice a second during each wait and each send. An exception aborts.
            roles: Proposed roles (PS3.7 D.3.3.4). Without one for a SOP class we are its SCU.

        Raises:
            AssociationError: No association was established. It is permanent after such an A-ASSOCIATE-RJ.
            ValueError: There are no contexts, or too many.
        """
        contexts = [(sop_class, syntax) for sop_class, syntaxes in proposals for syntax in syntaxes]
        if not 0 < len(contexts) <= CONTEXTS_MAX:
            raise ValueError(f"{len(contexts)} presentation contexts; an association has 1 to {CONTEXTS_MAX}")
        self = cls(remote, timeouts, max_pdu_length)
        self._offered = {2 * index + 1: context for index, context in enumerate(contexts)}
        self._async_operations = async_operations
        self._roles = tuple(roles)
        self._dispatch(Event.ASSOCIATE_REQUEST, on_tick)
        self._transport.bytes_per_second = bytes_per_second
        with _AbortOnError(self):
            self._dispatch(Event.TRANSPORT_CONFIRMED)
            self._process_pdu(self._receive_pdu(time.monotonic() + timeouts.response_seconds))
        return self

    def limit_rate(self, bytes_per_second: float) -> None:
        """Change the limit of the sending rate; 0 means no limit."""
        self._transport.bytes_per_second = bytes_per_second

    @property
    def is_established(self) -> bool:
        """Whether the association can carry another operation (Sta6)."""
        return self._state is State.ESTABLISHED

    def peer_certificate(self) -> bytes | None:
        """Return the certificate of the remote, DER; None without TLS."""
        return self._transport.peer_certificate()

    def check_established(self) -> bool:
        """Process the PDUs of a pause, and return whether the association is still established.

        A remote may have released, aborted or closed meanwhile.
        """
        with contextlib.suppress(AssociationError), _AbortOnError(self):
            self._process_received()
            while self.is_established and self._transport.is_readable():
                self._receive_while_sending()
        return self.is_established

    def accepted_context_id(self, sop_class: str, transfer_syntax: str) -> int | None:
        """Return the ID of the accepted presentation context; None if the remote did not accept it."""
        return self._context_ids.get((sop_class, transfer_syntax))

    def send_request(self, operation: SentRequest, head: bytes, rest: Iterator[memoryview]) -> None:
        """Send a request. Responses that arrive meanwhile are checked and kept for `receive_response`.

        A remote may respond or abort before it has the whole data set. This is noticed between PDUs, and
        while the remote takes no data.

        Args:
            operation: The requested operation.
            head: Whole P-DATA-TF PDUs.
            rest: More whole PDUs. Each is sent before the next is requested from the iterator.

        Raises:
            AssociationError: The association ended, and no response is left to be received. An exception of
                `rest` is passed on after an abort.
            ValueError: As many operations as the remote takes await a response: call `receive_response`.
        """
        if not self.is_established:
            raise self._ended_error()
        if self._operations.count >= self.window:
            raise ValueError(f"{self.remote} takes {self.window} operations at a time")
        self._transport.stall_seconds = self._timeouts.response_seconds
        with _AbortOnError(self):
            if self._transport.is_readable():
                self._receive_while_sending()  # A response that came before this request answers another one.
            try:
                self._dispatch(Event.DATA_REQUEST, (operation, head, rest))
            except AssociationError as error:
                # If the remote responded before it went away, the response is the result.
                if not self._operations.answers:
                    raise
                self._failure = error
                self.abort()

    def receive_response(self) -> tuple[int, Response]:
        """Wait for the next response, and return its message ID and the response.

        Raises:
            AssociationError: The association ended, no response came in time, or a response answers no
                request. The result of all operations without a response is unknown.
        """
        answers = self._operations.answers
        if not answers and not self.is_established:
            raise self._ended_error()
        if not answers:
            with _AbortOnError(self):
                extension = self._timeouts.response_seconds
                # INVARIANT 7: a response is awaited until this deadline, unless sent data still moves
                deadline = time.monotonic() + extension
                while not answers:
                    self._process_pdu(self._receive_pdu(deadline, extension))
                # PDUs that came with the response may prove that the remote breaks the protocol.
                self._process_rest_after_response()
        return answers.popleft()

    def release(self) -> None:
        """Release the association (PS3.8 7.2), and close the connection even if that fails."""
        if not self.is_established:
            self.abort()
            return
        with contextlib.suppress(AssociationError), _AbortOnError(self):
            self._dispatch(Event.RELEASE_REQUEST)
            deadline = time.monotonic() + RELEASE_SECONDS
            while self._state is not State.IDLE:
                self._process_pdu(self._receive_pdu(deadline))
        self._transport.close()

    def abort(self) -> None:
        """Abort the association as service-user (PS3.8 9.3.8), if it has not ended yet."""
        if self._state is State.AWAITING_TRANSPORT_CLOSE:
            self._close_transport()
        elif self._state is not State.IDLE:
            self._dispatch(Event.ABORT_REQUEST)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.release()
        else:
            self.abort()

    # --- state machine

    def _dispatch(self, event: Event, subject: Any = None) -> None:
        """Take the next state of the table for `event`, and run the handler of the action.

        The state changes before the handler runs, because a handler may dispatch the next event.
        """
        action, self._state = next_step(self._state, event, Role.REQUESTOR)
        handler = _HANDLERS.get(action)
        if handler is not None:
            handler(self, subject)

    def _open_transport(self, on_tick: Callable[[], None]) -> None:  # AE-1
        try:
            self._transport = Transport.connect(self.remote, self._timeouts.connect_seconds, on_tick)
        except BaseException:
            self._state = State.IDLE  # Evt17 without a transport that AA-4 could close.
            raise

    def _send_associate_request(self, _subject: object) -> None:  # AE-2
        request = wire.AssociateRequest(
            called_ae=self.remote.called_ae,
            calling_ae=self.remote.calling_ae,
            contexts=tuple(
                wire.ProposedContext(context_id, sop_class, (syntax,))
                for context_id, (sop_class, syntax) in self._offered.items()
            ),
            max_pdu_length=self._max_pdu_length,
            async_operations=(self._async_operations, 1) if self._async_operations else None,
            roles=self._roles,
        )
        self._send_pdus(wire.encode_associate_rq(request))

    def _confirm_association(self, pdu: ControlPDU) -> None:  # AE-3
        try:
            accept = wire.decode_associate_ac(pdu.data)
        except PeerError as error:
            self._dispatch(Event.INVALID_PDU, error)
            return
        self._transport.failure_hint = ""
        self.peer_max_pdu_length = accept.max_pdu_length
        if self._async_operations and accept.async_operations:
            # PS3.7 Table D.3-8: 0 means unlimited.
            granted = accept.async_operations[0] or self._async_operations
            self.window = min(granted, self._async_operations)
        self.proposed = frozenset(self._offered.values())
        for result in accept.contexts:
            context = self._offered.get(result.context_id)
            # PS3.8 Table 9-18: 0 is acceptance. A transfer syntax that we did not propose is of no use.
            if context and result.result == 0 and result.transfer_syntax == context[1]:
                self._context_ids[context] = result.context_id

    def _report_rejection(self, pdu: ControlPDU) -> None:  # AE-4
        self._transport.close()
        raise failures.make_rejection_error(str(self.remote), pdu.data or b"")

    def _send_message(self, message: tuple[SentRequest, bytes, Iterator[memoryview]]) -> None:  # DT-1
        operation, head, rest = message
        self._operations.begin_request(operation)
        self._send_pdus(head)
        for fragments in rest:
            if self._transport.is_readable():
                self._receive_while_sending()
            self._send_pdus(fragments)
        try:
            self._operations.end_request(answer_has_begun=self._parser.in_command)
        except PeerError as error:
            self._dispatch(Event.INVALID_PDU, error)

    def _process_response(self, pdu: _PDU) -> None:  # DT-2
        try:
            if not isinstance(pdu, Command):
                raise PeerError("a data set that nobody asked for", PeerError.UNEXPECTED_PDU)
            self._operations.record_response(pdu, self._transport.has_unacknowledged_bytes)
        except PeerError as error:
            self._dispatch(Event.INVALID_PDU, error)

    def _send_release_request(self, _subject: object) -> None:  # AR-1
        self._send_pdus(wire.RELEASE_RQ)

    def _accept_release(self, _pdu: ControlPDU) -> None:  # AR-2, AR-8
        if not self._transport.is_mid_send:
            self._dispatch(Event.RELEASE_RESPONSE)
            return
        # An A-RELEASE-RP would stand in the midst of our own PDU. `_send_pdus` answers when that PDU is sent,
        # and the remote has little time to take its rest.
        self._owes_release_response = True
        self._limit_stall()

    def _send_release_response(self, _subject: object) -> None:  # AR-4
        self._send_pdus(wire.RELEASE_RP)
        self._close_transport()
        raise AssociationError(f"{self.remote} released the association", cause=Cause.RELEASED)

    def _send_collision_response(self, _subject: object) -> None:  # AR-9
        self._send_pdus(wire.RELEASE_RP)

    def _abort_as_user(self, _subject: object) -> None:  # AA-1
        self._send_abort(_USER, 0)

    def _report_abort(self, pdu: ControlPDU) -> None:  # AA-3
        self._transport.close()
        raise failures.make_abort_error(str(self.remote), pdu.data or b"")

    def _abort_as_provider(self, subject: _PDU | PeerError) -> None:  # AA-7, AA-8
        if isinstance(subject, PeerError):
            error = subject
        else:
            error = PeerError(
                f"a PDU of type {_pdu_type(subject):02X}H out of order", PeerError.UNEXPECTED_PDU
            )
        # Responses of a remote that breaks the protocol confirm nothing, unless they were already collected.
        self._operations.answers.clear()
        self._send_abort(_PROVIDER, error.reason)
        said = f"{self.remote} broke the protocol and was aborted: {error}"
        raise AssociationError(said, cause=Cause.PROTOCOL_ERROR) from error

    def _close_transport(self, _subject: object = None) -> None:  # AA-4, AR-3
        """Close the connection at once. PS3.8 waits in Sta13 for the acceptor, but we need not."""
        self._transport.close()
        if self._state is State.AWAITING_TRANSPORT_CLOSE:
            self._dispatch(Event.TRANSPORT_CLOSED)

    def _send_abort(self, source: int, reason: int) -> None:
        """Send an A-ABORT, unless a PDU of ours is incomplete, and close the connection."""
        transport = self._transport
        try:
            if not transport.is_mid_send:
                transport.prepare_last_send(ABORT_SECONDS)
                with contextlib.suppress(AssociationError):
                    transport.send(wire.encode_abort(source, reason), ignore_tick)
        finally:
            self._close_transport()

    # --- PDUs

    def _send_pdus(self, data: bytes | memoryview) -> None:
        self._transport.send(data, self._receive_while_sending)
        if self._owes_release_response:
            self._owes_release_response = False
            self._dispatch(Event.RELEASE_RESPONSE)

    def _receive_while_sending(self) -> None:
        """Process PDUs that arrive before our request is sent: an A-ABORT, or an early response."""
        self._process_received()
        count = self._transport.receive_available(self._parser.get_buffer())
        if count is None:
            return
        self._feed_parser(count)
        self._process_received()
        if self._operations.is_answered_early:
            self._limit_stall()

    def _limit_stall(self) -> None:
        self._transport.stall_seconds = min(EARLY_RESPONSE_STALL_SECONDS, self._timeouts.response_seconds)

    def _process_received(self) -> None:
        """Process buffered PDUs. One read may have received more than the response that it waited for."""
        while (pdu := self._parse_pdu()) is not None:
            self._process_pdu(pdu)

    def _process_rest_after_response(self) -> None:
        """Process buffered PDUs behind a response, which stays valid if the remote then ends the association.

        A protocol error takes back all responses that were not collected (`_abort_as_provider`).
        """
        try:
            self._process_received()
        except AssociationError as error:
            if not self._operations.answers:
                raise
            self._failure = error

    def _process_pdu(self, pdu: _PDU) -> None:
        self._dispatch(PDU_EVENTS[_pdu_type(pdu)], pdu)

    def _receive_pdu(self, deadline: float, extension_seconds: float = 0.0) -> _PDU:
        if (pdu := self._parse_pdu()) is not None:
            return pdu
        while True:
            buffer = self._parser.get_buffer()
            self._feed_parser(self._transport.receive_into(buffer, deadline, extension_seconds))
            if (pdu := self._parse_pdu()) is not None:
                return pdu
            self._transport.send_tcp_acknowledgement()

    def _feed_parser(self, count: int) -> None:
        if count == 0:
            said = f"{self.remote} closed the connection{self._transport.failure_hint}"
            self._lose_connection(AssociationError(said, cause=Cause.CLOSED))
        is_first = self._state is State.AWAITING_ASSOCIATE_AC_OR_RJ
        if is_first and self.remote.tls is None and self._parser.get_buffer()[0] == _TLS_ALERT:
            # An A-ABORT would mean nothing to a peer that expects TLS.
            said = f"{self.remote} speaks TLS on this port, and we do not"
            self._lose_connection(AssociationError(said, cause=Cause.TLS_WANTED))
        self._parser.buffer_updated(count)

    def _lose_connection(self, error: AssociationError) -> None:
        if self._state is not State.IDLE:
            self._dispatch(Event.TRANSPORT_CLOSED)
        self._transport.close()
        raise error

    def _parse_pdu(self) -> _PDU | None:
        # INVARIANT 5: bytes of the remote raise PeerError only, and end in an A-ABORT
        try:
            return self._parser.next_event()
        except PeerError as error:
            self._dispatch(Event.INVALID_PDU, error)  # AA-7 or AA-8, whose handler raises
            raise self._ended_error() from error

    def _ended_error(self) -> AssociationError:
        return self._failure or AssociationError(f"{self.remote}: the association has ended")


class _AbortOnError:
    """Aborts an association if the `with` block raises. A class, because a generator costs twice as much."""

    __slots__ = ("_association",)

    def __init__(self, association: RequestorAssociation) -> None:
        self._association = association

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._association.abort()


def _pdu_type(pdu: _PDU) -> int:
    return pdu.pdu_type if isinstance(pdu, ControlPDU) else _P_DATA


_HANDLERS: Final[dict[Action, Callable[[Any, Any], None]]] = {
    Action.AE_1: RequestorAssociation._open_transport,
    Action.AE_2: RequestorAssociation._send_associate_request,
    Action.AE_3: RequestorAssociation._confirm_association,
    Action.AE_4: RequestorAssociation._report_rejection,
    Action.DT_1: RequestorAssociation._send_message,
    Action.DT_2: RequestorAssociation._process_response,
    Action.AR_1: RequestorAssociation._send_release_request,
    Action.AR_2: RequestorAssociation._accept_release,
    Action.AR_3: RequestorAssociation._close_transport,
    Action.AR_4: RequestorAssociation._send_release_response,
    Action.AR_8: RequestorAssociation._accept_release,
    Action.AR_9: RequestorAssociation._send_collision_response,
    Action.AA_1: RequestorAssociation._abort_as_user,
    Action.AA_3: RequestorAssociation._report_abort,
    Action.AA_4: RequestorAssociation._close_transport,
    Action.AA_7: RequestorAssociation._abort_as_provider,
    Action.AA_8: RequestorAssociation._abort_as_provider,
}
"""Methods of the actions. The actions that are missing here need no work of a blocking requestor:

- AR-5, AA-2: the connection is already closed, or the handler that is running closes it.
- AR-6: a response after our A-RELEASE-RQ confirms nothing, and is dropped.
- AA-6: PDUs in Sta13 are dropped, because the connection is closed at once.
- AR-7: no request is sent after the remote has asked for the release.
"""
