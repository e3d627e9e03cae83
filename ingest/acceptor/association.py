"""The acceptor's side of one association: the driver of `ingest.dicom.state_table`.

`Association` knows PDUs and the state machine. Sockets and TLS belong to its connection.
"""

from collections.abc import Callable
from typing import Any, Final, Protocol

import structlog

from ingest.acceptor.scoreboard import ASSOCIATIONS, REFUSED
from ingest.acceptor.store_scp import Caller, Services, StoreSCP
from ingest.dicom import wire
from ingest.dicom.negotiate import Accepted, Rejected
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
from ingest.tls.identity import CertificateIdentity

SLACK_OPERATIONS: Final = 8
"""Requests beyond the negotiated window that are read before reading stops; some peers pipeline unasked."""

RESPONSE_BYTES: Final = 256
"""A peer that takes no P-DATA-TF of so many bytes gets its responses in several, from here."""

DATA_IGNORED_STATES: Final = (State.AWAITING_RELEASE_RP, State.AWAITING_TRANSPORT_CLOSE)
"""States in which a P-DATA-TF has no effect here.

In Sta13 the standard ignores it (AA-6). In Sta7 it crossed our A-RELEASE-RQ and cannot be answered any
more (AR-6). The parser then skips such PDUs unread. Otherwise fragments without a message would count as an
invalid PDU (Evt19), and the answer would be an A-ABORT."""

log = structlog.get_logger()


class Link(Protocol):
    """The connection, as seen from its association."""

    address: str
    uri: str
    receiver: str
    identity: CertificateIdentity | None
    tls_version: str

    def send(self, data: bytes) -> None:
        """Write, as one TLS record where it fits in one."""

    def close(self) -> None:
        """Close after what was written."""

    def cut(self) -> None:
        """Close at once."""

    def noticed(self) -> None:
        """Act upon what the channel has noticed."""

    def time(self) -> float:
        """The event loop's clock, seconds."""


class Decider(Protocol):
    """The listener, as seen from its associations."""

    services: Services

    def decide(self, request: AssociateRequest, link: "Link") -> Accepted | Rejected:
        """Admit and negotiate; an association that is accepted counts from here on."""

    def associated(self, link: "Link") -> None:
        """An association was accepted on this connection."""

    def dissociated(self, link: "Link") -> None:
        """The association of this connection is over, though its transport connection may not be."""

    def peer_failed(self, address: str) -> None:
        """A peer of this address came without an association of it."""

    def why_full(self) -> str:
        """Why nothing more is taken now, or an empty string."""


class Association:
    """State, service and ARTIM timer of one association.

    Attributes:
        state: As PS3.8 9.2 names it.
        artim: When the ARTIM timer was started, or None while it is stopped.
        calling_ae: Empty until the A-ASSOCIATE-RQ.
    """

    def __init__(self, link: Link, server: Decider, parser: PDUParser, channel: Channel) -> None:
        self._link = link
        self._server = server
        self._parser = parser
        self._channel = channel
        self._scp: StoreSCP | None = None
        self._peer_max_pdu_length = 0
        self._fast = False
        self._release_asked = False
        self._counts = False  # as an association
        self.state = State.IDLE
        self.artim: float | None = None
        self.calling_ae = ""

    @property
    def busy(self) -> bool:
        """Whether an operation waits for our answer."""
        return self._scp is not None and bool(self._scp.outstanding) and not self._parser.in_data_set

    # --- what the link tells

    def begin(self) -> None:
        """The transport connection stands, with TLS where there is TLS."""
        self._step(Event.TRANSPORT_INDICATION)

    def received(self, event: ControlPDU | Command | DataSet) -> None:
        """The parser has given an event.

        Raises:
            PeerError: The peer broke the protocol; to be given to `broken`.
        """
        if isinstance(event, ControlPDU):
            self._step(PDU_EVENTS[event.pdu_type], event)
        else:
            self._step(Event.DATA_TF, event)

    def broken(self, error: PeerError) -> None:
        """The peer broke the protocol: A-ABORT with the error's reason."""
        self._step(Event.INVALID_PDU, error)

    def artim_expired(self) -> None:
        """The peer did in time neither associate nor close, nor answer our A-RELEASE-RQ."""
        if self.state in ARTIM_STATES:
            self._step(Event.ARTIM_EXPIRED)
        else:
            self.abort()

    def release(self) -> None:
        """End an association that lies idle: by A-RELEASE-RQ, or by A-ABORT where something is unfinished."""
        unfinished = self._scp is None or self._scp.outstanding or self._parser.in_message
        if self.state is State.ESTABLISHED and not unfinished:
            self._step(Event.RELEASE_REQUEST)
        else:
            self.abort()

    def abort(self) -> None:
        """End the association from our side (A-ABORT)."""
        if self.state is State.IDLE:
            self._link.cut()
        elif self.state is not State.AWAITING_TRANSPORT_CLOSE:
            self._step(Event.ABORT_REQUEST)

    def lost(self) -> None:
        """The transport connection is gone."""
        if self.state is not State.IDLE:
            self._step(Event.TRANSPORT_CLOSED)
        self._end_service()
        self._scp = None

    # --- state machine

    def _step(self, event: Event, subject: object = None) -> None:
        """One row of the table: do its action, take its next state."""
        try:
            action, following = next_step(self.state, event, Role.ACCEPTOR)
        except LookupError:
            log.warning(
                "event_out_of_place",
                fsm_event=event.value,
                state=self.state.value,
                address=self._link.address,
            )
            self._link.cut()
            return
        handler = _HANDLERS.get(action)
        self.state = following
        if following in DATA_IGNORED_STATES:
            self._end_service()
            self._parser.ignore_data()
        if self._scp is not None:
            self._tell_service(self._scp)
        if following in ENDED_STATES and self._counts:
            self._counts = False
            self._server.dissociated(self._link)
        if handler is not None:
            handler(self, subject)

    def _tell_service(self, scp: StoreSCP) -> None:
        """Which messages may pass without a look at the table: in Sta6 both, in Sta8 responses alone."""
        scp.cycle.receiving = self.state is State.ESTABLISHED and self._fast
        scp.cycle.answering = self.state in SENDING_STATES

    def _send(self, data: bytes) -> None:  # DT-1, AR-7
        self._link.send(data)

    def _start_artim(self, _subject: object = None) -> None:
        self.artim = self._link.time()

    def _associate(self, pdu: ControlPDU) -> None:  # AE-6
        self.artim = None
        try:
            request = wire.decode_associate_rq(pdu.data)
        except PeerError:
            # The PDU is one, its content is not: Evt19, as if it had never been recognized (PS3.8 9.3.1).
            self.state = State.AWAITING_ASSOCIATE_RQ
            raise
        self.calling_ae = request.calling_ae
        answer = self._server.decide(request, self._link)
        if isinstance(answer, Rejected):
            self._step(Event.ASSOCIATE_REJECT, answer)
        else:
            self._step(Event.ASSOCIATE_ACCEPT, (request, answer))

    def _accept(self, subject: tuple[AssociateRequest, Accepted]) -> None:  # AE-7
        request, answer = subject
        link = self._link
        certificate = link.identity.identifying_lines if link.identity else ()
        caller = Caller(request.calling_ae, request.called_ae, link.uri, link.receiver, certificate)
        limit = answer.operations + SLACK_OPERATIONS
        self._scp = StoreSCP(
            self, self._channel, self._parser, self._server.services, caller, answer.contexts, limit
        )
        self._channel.taker = self._scp.cycle
        self._peer_max_pdu_length = answer.peer_max_pdu_length
        self._fast = not 0 < answer.peer_max_pdu_length < RESPONSE_BYTES
        self._counts = True
        self._tell_service(self._scp)
        self._server.associated(link)
        self._server.services.board.add(self._server.services.row, ASSOCIATIONS)
        self._link.send(wire.encode_associate_ac(answer.pdu))
        log.info(
            "association_accepted",
            address=self._link.address,
            calling_ae=request.calling_ae,
            called_ae=request.called_ae,
            contexts=len(answer.contexts),
            tls=self._link.tls_version,
            subject=self._link.identity.subject if self._link.identity else "",
        )

    def _reject(self, answer: Rejected) -> None:  # AE-8
        board, row = self._server.services.board, self._server.services.row
        board.add(row, REFUSED)
        # A peer that tries all the time must not fill the log.
        say = log.warning if answer.count == 1 else log.debug
        say(
            "association_rejected",
            address=self._link.address,
            calling_ae=self.calling_ae,
            subject=self._link.identity.subject if self._link.identity else "",
            reason=answer.why,
        )
        self._link.send(wire.encode_associate_rj(answer.pdu))
        self._start_artim()

    def _data(self, event: Command | DataSet) -> None:  # DT-2
        scp = self._scp
        if scp is None:  # pragma: no cover - the table lets data in only when established
            return
        if isinstance(event, Command):
            scp.command(event.context_id, event.data)
        else:
            scp.data_set(event)

    def _released(self, _subject: object) -> None:  # AR-2
        self._release_asked = True
        if self._scp is not None:
            self._scp.cycle.watched = True
        self._finish_release()

    def _finish_release(self) -> None:
        if self._release_asked and self._scp is not None and not self._scp.outstanding:
            self._release_asked = False
            self._step(Event.RELEASE_RESPONSE)

    def _ask_release(self, _subject: object) -> None:  # AR-1
        self._link.send(wire.RELEASE_RQ)
        self._start_artim()  # not asked for by PS3.8, but every wait of ours has an end

    def _confirmed(self, _subject: object) -> None:  # AR-3
        log.info("association_released_as_asked", address=self._link.address, calling_ae=self.calling_ae)
        self.artim = None
        self._link.close()

    def _collided(self, _subject: object) -> None:  # AR-10
        self._step(Event.RELEASE_RESPONSE)

    def _answer_release(self, _subject: object) -> None:  # AR-4
        log.info(
            "association_released",
            address=self._link.address,
            calling_ae=self.calling_ae,
            stored=self._scp.stored if self._scp else 0,
        )
        self._link.send(wire.RELEASE_RP)
        self._start_artim()

    def _abort_as_user(self, subject: object) -> None:  # AA-1
        self._end_service()
        if self._scp is None:
            self._server.peer_failed(self._link.address)  # out of order before there was an association
        if isinstance(subject, PeerError):
            # More than Table 9-9 asks for: whoever looks for the fault learns what it was.
            self._link.send(wire.encode_abort(2, subject.reason))
        else:
            self._link.send(wire.encode_abort(0, 0))
        self._start_artim()

    def _abort_as_provider(self, subject: object) -> None:  # AA-7, AA-8
        self._end_service()
        reason = subject.reason if isinstance(subject, PeerError) else PeerError.UNEXPECTED_PDU
        self._link.send(wire.encode_abort(2, reason))
        if self.artim is None:
            self._start_artim()

    def _aborted(self, _subject: object) -> None:  # AA-3
        log.info("association_aborted_by_peer", address=self._link.address, calling_ae=self.calling_ae)
        self._end_service()
        self._link.close()

    def _lost(self, _subject: object) -> None:  # AA-4
        log.info("association_lost", address=self._link.address, calling_ae=self.calling_ae)

    def _stop_and_close(self, _subject: object) -> None:  # AA-2
        self.artim = None
        self._end_service()
        self._link.cut()

    def _end_service(self) -> None:
        self._release_asked = False  # what is still being committed must not answer it
        if self._scp is not None:
            self._scp.end()

    # --- what the service asks of us

    def respond(self, context_id: int, command: bytes) -> None:
        """Send a response as one write, and so as one TLS record: two would wait for each other's ACK."""
        if self.state in SENDING_STATES:
            self._step(Event.DATA_REQUEST, encode_p_data(context_id, command, self._peer_max_pdu_length))

    def operation_done(self) -> None:
        """Answer a release that waited for this."""
        self._finish_release()

    def noticed(self) -> None:
        """The channel has notices to act upon, or one fewer."""
        self._link.noticed()

    def why_full(self) -> str:
        """Why nothing more is taken now, or an empty string."""
        return self._server.why_full()


_HANDLERS: Final[dict[Action, Callable[[Association, Any], None]]] = {
    Action.AE_5: Association._start_artim,
    Action.AE_6: Association._associate,
    Action.AE_7: Association._accept,
    Action.AE_8: Association._reject,
    Action.DT_1: Association._send,
    Action.DT_2: Association._data,
    Action.AR_1: Association._ask_release,
    Action.AR_2: Association._released,
    Action.AR_3: Association._confirmed,
    Action.AR_4: Association._answer_release,
    Action.AR_7: Association._send,
    Action.AR_10: Association._collided,
    Action.AA_1: Association._abort_as_user,
    Action.AA_2: Association._stop_and_close,
    Action.AA_3: Association._aborted,
    Action.AA_4: Association._lost,
    Action.AA_7: Association._abort_as_provider,
    Action.AA_8: Association._abort_as_provider,
}
