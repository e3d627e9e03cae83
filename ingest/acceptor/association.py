"""The acceptor's side of one association: the driver of `ingest.dicom.state_table`.

`Association` knows PDUs and the state machine. Sockets and TLS belong to its connection, and the decision
about an A-ASSOCIATE-RQ to the listener. `_HANDLERS` at the end has one method for each action of the table.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import structlog

from ingest.acceptor.refusals import NO_CONTEXT_ACCEPTED, refuse_association
from ingest.acceptor.scoreboard import ASSOCIATIONS, REFUSED
from ingest.acceptor.store_scp import FullReason, StoreSCP
from ingest.dicom import wire
from ingest.dicom.negotiate import Accepted, Rejected
from ingest.dicom.part10 import FileMeta
from ingest.dicom.pdus import AssociateRequest
from ingest.dicom.state_table import (
    ARTIM_STATES,
    ENDED_STATES,
    PDU_EVENTS,
    SENDING_STATES,
    Action,
    Event,
    Role,
    State,
    next_step,
)
from ingest.ext.channel import Channel
from ingest.ext.encode import encode_p_data
from ingest.ext.errors import PeerError
from ingest.ext.pdu import Command, ControlPDU, DataSet, PDUParser
from ingest.metrics import families
from ingest.metrics.board import current_board
from ingest.metrics.families import REJECTIONS

if TYPE_CHECKING:
    from ingest.acceptor.connection import Connection
    from ingest.acceptor.listener import Listener

SLACK_OPERATIONS: Final = 8
"""Requests beyond the negotiated window after which reading stops. Some peers send ahead without asking."""

RESPONSE_BYTES: Final = 256
"""A peer with a smaller maximum PDU length gets each response in several PDUs. Only this module does that."""

DATA_IGNORED_STATES: Final = (State.AWAITING_RELEASE_RP, State.AWAITING_TRANSPORT_CLOSE)
"""States in which a P-DATA-TF has no effect here.

In Sta13 the standard ignores it (AA-6). In Sta7 it crossed our A-RELEASE-RQ and cannot be answered any
more (AR-6). The parser then skips such PDUs unread. Otherwise fragments without a message would count as an
invalid PDU (Evt19), and the answer would be an A-ABORT."""

# PS3.8 Table 9-26, byte 9: source of an A-ABORT
SERVICE_USER, SERVICE_PROVIDER = 0, 2

log = structlog.get_logger()


class Association:
    """State, SCP and ARTIM timer of one association.

    Attributes:
        state: State of PS3.8 9.2.
        artim_started_at: Start of the ARTIM timer; None while it is stopped.
        calling_ae: Calling AE title; empty until the A-ASSOCIATE-RQ.
    """

    def __init__(
        self, connection: "Connection", listener: "Listener", parser: PDUParser, channel: Channel
    ) -> None:
        """Prepare. `begin` starts the state machine."""
        self._connection = connection
        self._listener = listener
        self._parser = parser
        self._channel = channel
        self._scp: StoreSCP | None = None
        self._peer_max_pdu_length = 0
        self._is_fast = False
        self._is_release_pending = False
        self._is_counted = False
        self.state = State.IDLE
        self.artim_started_at: float | None = None
        self.calling_ae = ""

    @property
    def owes_response(self) -> bool:
        """Whether an operation waits for our response, and not for data of the peer."""
        return self._scp is not None and bool(self._scp.outstanding) and not self._parser.in_data_set

    # --- called by the connection

    def begin(self) -> None:
        """Start the state machine: the connection is open, and its TLS handshake is complete."""
        self._step(Event.TRANSPORT_INDICATION)

    def handle_event(self, event: ControlPDU | Command | DataSet) -> None:
        """Take an event of the parser.

        Raises:
            PeerError: The peer broke the protocol. Pass the error to `handle_invalid_pdu`.
        """
        if isinstance(event, ControlPDU):
            self._step(PDU_EVENTS[event.pdu_type], event)
        else:
            self._step(Event.DATA_TF, event)

    def handle_invalid_pdu(self, error: PeerError) -> None:
        """Abort with the reason of the error, because the peer broke the protocol."""
        self._step(Event.INVALID_PDU, error)

    def handle_artim_expiry(self) -> None:
        """End the association: the peer did not associate, close or answer our A-RELEASE-RQ in time."""
        if self.state in ARTIM_STATES:
            self._step(Event.ARTIM_EXPIRED)
        else:
            self.abort()

    def release(self) -> None:
        """End an idle association by A-RELEASE-RQ, or by A-ABORT if an operation is unfinished."""
        is_unfinished = self._scp is None or self._scp.outstanding or self._parser.in_message
        if self.state is State.ESTABLISHED and not is_unfinished:
            self._step(Event.RELEASE_REQUEST)
        else:
            self.abort()

    def abort(self) -> None:
        """End the association by A-ABORT."""
        if self.state is State.IDLE:
            self._connection.close_now()
        elif self.state is not State.AWAITING_TRANSPORT_CLOSE:
            self._step(Event.ABORT_REQUEST)

    def handle_transport_closed(self) -> None:
        """End the association, because its connection is closed."""
        if self.state is not State.IDLE:
            self._step(Event.TRANSPORT_CLOSED)
        self._end_scp()
        self._scp = None

    # --- state machine

    def _step(self, event: Event, subject: object = None) -> None:
        """Take the next state, and run the handler of the action."""
        try:
            action, following = next_step(self.state, event, Role.ACCEPTOR)
        except LookupError:
            log.warning(
                "event_out_of_place",
                fsm_event=event.value,
                state=self.state.value,
                address=self._connection.address,
            )
            self._connection.close_now()
            return
        handler = _HANDLERS.get(action)
        self.state = following
        if following in DATA_IGNORED_STATES:
            self._end_scp()
            self._parser.ignore_data()
        if self._scp is not None:
            self._update_fast_path(self._scp)
        if following in ENDED_STATES and self._is_counted:
            self._is_counted = False
            self._listener.end_association(self._connection)
        if handler is not None:
            handler(self, subject)

    def _update_fast_path(self, scp: StoreSCP) -> None:
        """Let the fast path serve messages without the table: requests in Sta6, responses also in Sta8."""
        scp.operations.receiving = self.state is State.ESTABLISHED and self._is_fast
        scp.operations.answering = self.state in SENDING_STATES

    def _start_artim(self, _subject: object = None) -> None:
        self.artim_started_at = self._connection.now()

    def _decide(self, pdu: ControlPDU) -> None:  # AE-6
        self.artim_started_at = None
        try:
            request = wire.decode_associate_rq(pdu.data)
        except PeerError:
            # The PDU has the right type, but invalid content. That is Evt19 in Sta2, as if the PDU had
            # never been recognized (PS3.8 9.3.1).
            self.state = State.AWAITING_ASSOCIATE_RQ
            raise
        self.calling_ae = request.calling_ae
        answer = self._listener.decide_association(request, self._connection)
        if isinstance(answer, Rejected):
            self._step(Event.ASSOCIATE_REJECT, answer)
        else:
            self._step(Event.ASSOCIATE_ACCEPT, (request, answer))

    def _accept(self, subject: tuple[AssociateRequest, Accepted]) -> None:  # AE-7
        request, answer = subject
        connection, services = self._connection, self._listener.services
        identity = connection.identity
        file_meta = FileMeta(
            sop_class_uid="",
            sop_instance_uid="",
            transfer_syntax_uid="",
            calling_ae=request.calling_ae,
            called_ae=request.called_ae,
            source_address=connection.uri,
            receiving_address=connection.receiver,
            certificate=identity.identifying_lines if identity else (),
            association=self._listener.find_association_id(connection),
        )
        limit = answer.operations + SLACK_OPERATIONS
        calling = self._listener.find_calling_label(request.calling_ae)
        self._scp = StoreSCP(
            self,
            self._channel,
            self._parser,
            services,
            file_meta,
            answer.contexts,
            limit,
            calling_label=calling,
            allows_priority=answer.allows_priority,
        )
        self._channel.taker = self._scp.operations
        self._peer_max_pdu_length = answer.peer_max_pdu_length
        self._is_fast = not 0 < answer.peer_max_pdu_length < RESPONSE_BYTES
        self._is_counted = True
        self._update_fast_path(self._scp)
        self._listener.begin_association(connection)
        services.board.add(services.row, ASSOCIATIONS)
        current_board().add(families.ASSOCIATIONS, calling)
        self._listener.count_caller(connection, request.calling_ae)
        if not answer.contexts:
            refusal = refuse_association(NO_CONTEXT_ACCEPTED)
            self._listener.count_refused_caller(connection, refusal, calling_ae=request.calling_ae)
        connection.send(wire.encode_associate_ac(answer.pdu))
        log.info(
            "association_accepted",
            address=connection.address,
            calling_ae=request.calling_ae,
            called_ae=request.called_ae,
            contexts=len(answer.contexts),
            tls=connection.tls_version,
            subject=identity.subject if identity else "",
        )

    def _reject(self, answer: Rejected) -> None:  # AE-8
        current_board().add(REJECTIONS, answer.cause)
        self._listener.count_refused_caller(
            self._connection, refuse_association(answer.cause), calling_ae=self.calling_ae
        )
        board, row = self._listener.services.board, self._listener.services.row
        board.add(row, REFUSED)
        # A peer that tries again and again must not fill the log.
        write = log.warning if answer.count == 1 else log.debug
        write(
            "association_rejected",
            address=self._connection.address,
            calling_ae=self.calling_ae,
            subject=self._connection.identity.subject if self._connection.identity else "",
            reason=answer.reason,
        )
        self._connection.send(wire.encode_associate_rj(answer.pdu))
        self._start_artim()

    def _send_data(self, data: bytes) -> None:  # DT-1, AR-7
        self._connection.send(data)

    def _pass_data(self, event: Command | DataSet) -> None:  # DT-2
        scp = self._scp
        if scp is None:  # pragma: no cover - the table allows data only in Sta6
            return
        if isinstance(event, Command):
            scp.handle_command(event.context_id, event.data)
        else:
            scp.handle_data_set(event)

    def _request_release(self, _subject: object) -> None:  # AR-1
        self._connection.send(wire.RELEASE_RQ)
        self._start_artim()  # PS3.8 asks for no timer here; INVARIANT 7: every wait has a deadline

    def _prepare_release(self, _subject: object) -> None:  # AR-2
        self._is_release_pending = True
        if self._scp is not None:
            self._scp.operations.watched = True
        self._release_after_last_response()

    def _release_after_last_response(self) -> None:
        if self._is_release_pending and self._scp is not None and not self._scp.outstanding:
            self._is_release_pending = False
            self._step(Event.RELEASE_RESPONSE)

    def _confirm_release(self, _subject: object) -> None:  # AR-3
        log.info(
            "association_released_as_asked", address=self._connection.address, calling_ae=self.calling_ae
        )
        self.artim_started_at = None
        self._connection.close()

    def _answer_release(self, _subject: object) -> None:  # AR-4
        log.info(
            "association_released",
            address=self._connection.address,
            calling_ae=self.calling_ae,
            stored=self._scp.stored if self._scp else 0,
        )
        self._connection.send(wire.RELEASE_RP)
        self._start_artim()

    def _answer_collision(self, _subject: object) -> None:  # AR-10
        self._step(Event.RELEASE_RESPONSE)

    def _abort_as_user(self, subject: object) -> None:  # AA-1
        self._end_scp()
        if self._scp is None:
            self._listener.record_failure(self._connection)
        if isinstance(subject, PeerError):
            # Table 9-9 asks for source 0. Source 2 with a reason helps to find the fault.
            self._connection.send(wire.encode_abort(SERVICE_PROVIDER, subject.reason))
        else:
            self._connection.send(wire.encode_abort(SERVICE_USER, 0))
        self._start_artim()

    def _abort_as_provider(self, subject: object) -> None:  # AA-7, AA-8
        self._end_scp()
        reason = subject.reason if isinstance(subject, PeerError) else PeerError.UNEXPECTED_PDU
        self._connection.send(wire.encode_abort(SERVICE_PROVIDER, reason))
        if self.artim_started_at is None:
            self._start_artim()

    def _close_after_abort(self, _subject: object) -> None:  # AA-2
        self.artim_started_at = None
        self._end_scp()
        self._connection.close_now()

    def _report_abort(self, _subject: object) -> None:  # AA-3
        log.info("association_aborted_by_peer", address=self._connection.address, calling_ae=self.calling_ae)
        self._end_scp()
        self._connection.close()

    def _report_loss(self, _subject: object) -> None:  # AA-4
        log.info("association_lost", address=self._connection.address, calling_ae=self.calling_ae)

    def _end_scp(self) -> None:
        # Entries that are still being committed must not answer the release of an ended association.
        self._is_release_pending = False
        if self._scp is not None:
            self._scp.end()

    # --- called by the SCP

    def respond(self, context_id: int, command: bytes) -> None:
        """Send a response in one write, and so in one TLS record.

        With two writes the second would wait for the peer's delayed ACK of the first.
        """
        if self.state in SENDING_STATES:
            self._step(Event.DATA_REQUEST, encode_p_data(context_id, command, self._peer_max_pdu_length))

    def handle_operation_end(self) -> None:
        """Answer a release that waited for the last response."""
        self._release_after_last_response()

    def handle_notices(self) -> None:
        """Act on the notices of the channel."""
        self._connection.handle_notices()

    def find_full_reason(self) -> FullReason | None:
        """Return why the listener takes nothing more now."""
        return self._listener.full_reason


_HANDLERS: Final[dict[Action, Callable[[Association, Any], None]]] = {
    Action.AE_5: Association._start_artim,
    Action.AE_6: Association._decide,
    Action.AE_7: Association._accept,
    Action.AE_8: Association._reject,
    Action.DT_1: Association._send_data,
    Action.DT_2: Association._pass_data,
    Action.AR_1: Association._request_release,
    Action.AR_2: Association._prepare_release,
    Action.AR_3: Association._confirm_release,
    Action.AR_4: Association._answer_release,
    Action.AR_7: Association._send_data,
    Action.AR_10: Association._answer_collision,
    Action.AA_1: Association._abort_as_user,
    Action.AA_2: Association._close_after_abort,
    Action.AA_3: Association._report_abort,
    Action.AA_4: Association._report_loss,
    Action.AA_7: Association._abort_as_provider,
    Action.AA_8: Association._abort_as_provider,
}
