"""The upper layer of the sender: PS3.8 as the requestor of an association, over a transport with deadlines.

`ingest.dicom.state_table` names the states and actions; this module does what the actions ask.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn, Self

from ingest.dicom import wire
from ingest.dicom.responses import Operation, Operations, Response
from ingest.dicom.state_table import PDU_EVENTS, Action, Event, Role, State, next_step
from ingest.errors import AssociationError, Cause, PeerError
from ingest.ext.pdu import Command, ControlPDU, DataSet, PDUParser
from ingest.network.resolver import ignore_tick
from ingest.requestor import failures
from ingest.requestor.transport import Remote, Transport

CONTEXTS_MAX: Final = 128
"""PS3.8 Table 9-13: presentation context IDs are the odd numbers from 1 to 255."""
RECEIVE_BUFFER: Final = 1 << 15
ABORT_SECONDS: Final = 1.0
RELEASE_SECONDS: Final = 5.0
EARLY_ANSWER_STALL_SECONDS: Final = 5.0
"""How long a remote that has answered already may leave the rest of the data set unread."""

Context = tuple[str, str]
"""SOP class UID and transfer syntax UID."""

_TLS_ALERT: Final = 0x15  # RFC 8446 5.1, ContentType; no PDU type of PS3.8 has this value
_P_DATA: Final = 0x04  # PS3.8 9.3.1: PDU-type
_USER, _PROVIDER = 0, 2  # PS3.8 Table 9-26, byte 9: source of an A-ABORT


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Deadlines in seconds.

    Attributes:
        connect: TCP connection and TLS handshake together.
        response: Each answer (A-ASSOCIATE-AC, C-STORE-RSP), and how long a remote may take no data.
    """

    connect: float = 10.0
    response: float = 60.0


class UpperLayer:
    """One association as its requestor; a `with` block ends in a release, or after an exception in an abort.

    Attributes:
        remote: Whom it is with.
        proposed: The contexts that were offered, accepted or not.
        peer_max_pdu_length: The longest PDU that the remote takes, in bytes (PS3.8 D.1); 0 means any.
        window: How many operations may be without an answer at a time (PS3.7 D.3.3.3); 1 unless negotiated.
    """

    def __init__(self, remote: Remote, timeouts: Timeouts, max_pdu_length: int) -> None:
        """Prepare; `open` is what callers want."""
        self.remote = remote
        self.proposed: frozenset[Context] = frozenset()
        self.peer_max_pdu_length = 0
        self.window = 1
        self._timeouts = timeouts
        self._max_pdu_length = max_pdu_length
        self._state = State.IDLE
        self._transport: Transport
        self._parser = PDUParser(bytearray(RECEIVE_BUFFER), max_pdu_length=max_pdu_length)
        self._contexts: dict[Context, int] = {}
        self._operations = Operations()
        self._failure: AssociationError | None = None
        self._release_asked = False

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
    ) -> Self:
        """Connect, shake hands and associate.

        Args:
            remote: Whom to associate with.
            proposals: SOP class UIDs, each with its transfer syntaxes; each pair becomes one presentation
                context, so that a file goes in the transfer syntax that it has. At most 128 pairs.
            timeouts: Deadlines.
            max_pdu_length: The longest PDU that we take, in bytes.
            async_operations: What to ask for as asynchronous operations window (PS3.7 D.3.3.3); 0 does not
                ask, since some remotes drop the connection when asked.
            bytes_per_second: How fast to send at most; 0 is as fast as it goes.
            on_tick: Called at least twice a second while anything is waited for or sent; an exception aborts.

        Raises:
            AssociationError: It could not be made; permanent for an A-ASSOCIATE-RJ of that kind.
            ValueError: No contexts, or too many.
        """
        contexts = [(sop_class, syntax) for sop_class, syntaxes in proposals for syntax in syntaxes]
        if not 0 < len(contexts) <= CONTEXTS_MAX:
            raise ValueError(f"{len(contexts)} presentation contexts; an association has 1 to {CONTEXTS_MAX}")
        self = cls(remote, timeouts, max_pdu_length)
        self._step(Event.ASSOCIATE_REQUEST)
        self._transport = Transport.connect(remote, timeouts.connect, on_tick)
        self._transport.bytes_per_second = bytes_per_second
        with self._aborting():
            self._associate(contexts, async_operations)
        return self

    @property
    def alive(self) -> bool:
        """Whether it is established and can carry another operation."""
        return self._state is State.ESTABLISHED

    def peer_certificate(self) -> bytes | None:
        """What the remote has shown, DER; None without TLS."""
        return self._transport.peer_certificate()

    def check(self) -> bool:
        """Whether it is alive after a silence; takes in what came meanwhile: a release, an abort, the end."""
        with contextlib.suppress(AssociationError), self._aborting():
            self._take_in()
            while self.alive and self._transport.readable():
                self._listen()
        return self.alive

    @property
    def _ended(self) -> bool:
        return self._state is State.IDLE

    def accepted(self, sop_class: str, transfer_syntax: str) -> int | None:
        """The ID of the presentation context for instances of this kind; None where none was accepted."""
        return self._contexts.get((sop_class, transfer_syntax))

    def send(self, operation: Operation, head: bytes, rest: Iterator[memoryview]) -> None:
        """Send a request; what the remote answers meanwhile is checked, and kept for `receive`.

        A remote that answers or aborts before all is sent is noticed between PDUs and while it takes nothing.

        Args:
            operation: What is asked.
            head: Whole P-DATA-TF PDUs.
            rest: More of them, whole too; each is sent before the next is asked for.

        Raises:
            AssociationError: The association ended, and no answer is left to be received. Whatever `rest`
                raises passes, after an abort.
            ValueError: As many operations as the remote takes are without an answer: `receive` first.
        """
        if not self.alive:
            raise self._ended_error()
        if self._operations.count >= self.window:
            raise ValueError(f"{self.remote} takes {self.window} operations at a time")
        self._transport.stall_seconds = self._timeouts.response
        with self._aborting():
            if self._transport.readable():
                self._listen()  # what came before the request answers something else
            self._operations.begin(operation)
            self._step(Event.DATA_REQUEST)
            try:
                self._transmit(head)
                for fragments in rest:
                    if self._transport.readable():
                        self._listen()
                    self._transmit(fragments)
                self._sent()
            except AssociationError as error:
                # If it said what it thinks of an instance and went away only then, that is the answer.
                if not self._operations.answers:
                    raise
                self._failure = error
                self.abort()

    def receive(self) -> tuple[int, Response]:
        """Wait for the next answer; its message ID and what it says.

        Raises:
            AssociationError: The association ended, no answer came in time, or one that nobody asked for.
                Nothing is known about operations without an answer.
        """
        answers = self._operations.answers
        if not answers and not self.alive:
            raise self._ended_error()
        if not answers:
            with self._aborting():
                patience = self._timeouts.response
                deadline = time.monotonic() + patience
                while not answers:
                    self._take(self._next(deadline, patience))
                # What came with the answer is looked at before the answer counts.
                self._take_in_rest()
        return answers.popleft()

    def release(self) -> None:
        """End in order (PS3.8 7.2); whatever goes wrong with that, the connection is closed afterwards."""
        if self._state is not State.ESTABLISHED:
            self.abort()
            return
        with contextlib.suppress(AssociationError), self._aborting():
            self._step(Event.RELEASE_REQUEST)
            self._transmit(wire.RELEASE_RQ)
            deadline = time.monotonic() + RELEASE_SECONDS
            while not self._ended:
                self._take(self._next(deadline))
        self._transport.close()

    def abort(self) -> None:
        """End at once, with an A-ABORT (PS3.8 9.3.8, service-user) where somebody is there to hear it."""
        if self._state is not State.IDLE:
            self._end(Event.ABORT_REQUEST, _USER, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.release()
        else:
            self.abort()

    def _associate(self, contexts: Sequence[Context], async_operations: int) -> None:
        offered = {2 * index + 1: context for index, context in enumerate(contexts)}
        request = wire.AssociateRequest(
            called_ae=self.remote.called_ae,
            calling_ae=self.remote.calling_ae,
            contexts=tuple(
                wire.ProposedContext(number, sop, (syntax,)) for number, (sop, syntax) in offered.items()
            ),
            max_pdu_length=self._max_pdu_length,
            async_operations=(async_operations, 1) if async_operations else None,
        )
        self._step(Event.TRANSPORT_CONFIRMED)
        self._transmit(wire.encode_associate_rq(request))
        answer = self._next(time.monotonic() + self._timeouts.response)
        self._take(answer)
        try:
            accept = wire.decode_associate_ac(answer.data or b"")
        except PeerError as error:
            self._refuse(error)
        self._transport.hint = ""
        self.peer_max_pdu_length = accept.max_pdu_length
        if async_operations and accept.async_operations:
            # PS3.7 Table D.3-8: 0 is unlimited.
            self.window = min(accept.async_operations[0] or async_operations, async_operations)
        self.proposed = frozenset(contexts)
        for result in accept.contexts:
            context = offered.get(result.context_id)
            # PS3.8 Table 9-18: 0 is acceptance. Of a transfer syntax not offered it is worth nothing.
            if context and result.result == 0 and result.transfer_syntax == context[1]:
                self._contexts[context] = result.context_id

    def _listen(self) -> None:
        """Take in what the remote says while we still send: an A-ABORT, or an answer before its time."""
        self._take_in()
        count = self._transport.receive_now(self._parser.get_buffer())
        if count is None:
            return
        self._feed(count)
        self._take_in()
        if self._operations.is_answered_early:
            self._transport.stall_seconds = min(EARLY_ANSWER_STALL_SECONDS, self._timeouts.response)

    def _take_in(self) -> None:
        """Take what was received already: a read may have brought more than the answer it was for."""
        while (event := self._parse()) is not None:
            self._take(event)

    def _take_in_rest(self) -> None:
        """As `_take_in`, after an answer: that the remote ends the association then leaves the answer valid.

        A fault of the protocol does not: it takes back all answers that were not collected (`_refuse`).
        """
        try:
            self._take_in()
        except AssociationError as error:
            if not self._operations.answers:
                raise
            self._failure = error

    def _sent(self) -> None:
        try:
            self._operations.sent(answer_has_begun=self._parser.in_command)
        except PeerError as error:
            self._refuse(error)

    def _ended_error(self) -> AssociationError:
        return self._failure or AssociationError(f"{self.remote}: the association has ended")

    def _step(self, event: Event) -> Action:
        action, self._state = next_step(self._state, event, Role.REQUESTOR)
        return action

    def _take(self, event: ControlPDU | Command | DataSet) -> None:
        """Do what the table asks for one PDU of the remote."""
        kind = event.pdu_type if isinstance(event, ControlPDU) else _P_DATA
        action = self._step(PDU_EVENTS[kind])
        if action is Action.DT_2:
            self._answered(event)
            return
        if action is Action.AA_8:
            self._refuse(PeerError(f"a PDU of type {kind:02X}H out of order", PeerError.UNEXPECTED_PDU))
        if action is Action.AE_4:
            self._transport.close()
            raise failures.rejected(str(self.remote), event.data or b"")
        if action is Action.AA_3:
            self._transport.close()
            raise failures.aborted(str(self.remote), event.data or b"")
        if action in {Action.AR_2, Action.AR_8}:
            self._release_asked = True
            if self._transport.mid_send:
                # In the midst of a PDU nothing else can be said; the remote has little time to take the rest.
                self._transport.stall_seconds = min(EARLY_ANSWER_STALL_SECONDS, self._timeouts.response)
            else:
                self._answer_release()

    def _answer_release(self) -> None:
        self._release_asked = False
        # AR-4 answers and ends; AR-9 answers, and the answer to our own release is still to come.
        ended = self._step(Event.RELEASE_RESPONSE) is Action.AR_4
        self._transmit(wire.RELEASE_RP)
        if ended:
            self._end(None)
            raise AssociationError(f"{self.remote} released the association")

    def _answered(self, event: ControlPDU | Command | DataSet) -> None:
        try:
            if not isinstance(event, Command):
                raise PeerError("a data set that nobody asked for", PeerError.UNEXPECTED_PDU)
            self._operations.answer(event, self._transport.has_unread)
        except PeerError as error:
            self._refuse(error)

    def _transmit(self, data: bytes | memoryview) -> None:
        self._transport.send(data, self._listen)
        if self._release_asked:
            self._answer_release()

    def _next(self, deadline: float, patience: float = 0.0) -> ControlPDU | Command | DataSet:
        if (event := self._parse()) is not None:
            return event
        while True:
            self._feed(self._transport.receive_into(self._parser.get_buffer(), deadline, patience))
            if (event := self._parse()) is not None:
                return event
            self._transport.acknowledge()

    def _feed(self, count: int) -> None:
        plain, waiting = self.remote.tls is None, self._state is State.AWAITING_ASSOCIATE_AC_OR_RJ
        if count == 0:
            self._step(Event.TRANSPORT_CLOSED)
            self._transport.close()
            said = f"{self.remote} closed the connection{self._transport.hint}"
            raise AssociationError(said, cause=Cause.CLOSED)
        if plain and waiting and self._parser.get_buffer()[0] == _TLS_ALERT:
            self._end(None)
            said = f"{self.remote} speaks TLS on this port, and we do not"
            raise AssociationError(said, cause=Cause.TLS_WANTED)
        self._parser.buffer_updated(count)

    def _parse(self) -> ControlPDU | Command | DataSet | None:
        try:
            return self._parser.next_event()
        except PeerError as error:
            self._step(Event.INVALID_PDU)
            self._refuse(error)

    def _refuse(self, error: PeerError) -> NoReturn:
        """What PS3.8 AA-8 asks for: A-ABORT by the service-provider, with the reason.

        Answers of this remote that were not collected yet confirm nothing.
        """
        self._operations.answers.clear()
        self._end(None, _PROVIDER, error.reason)
        raise AssociationError(f"{self.remote} broke the protocol and was aborted: {error}") from error

    def _end(self, event: Event | None, source: int | None = None, reason: int = 0) -> None:
        """Close, after an A-ABORT of this source and reason where a whole PDU can still be said."""
        if event is not None:
            with contextlib.suppress(LookupError):
                self._step(event)
        self._state = State.IDLE
        transport = self._transport
        if source is not None and not transport.mid_send:
            transport.silence(ABORT_SECONDS)
            with contextlib.suppress(AssociationError):
                transport.send(wire.encode_abort(source, reason), ignore_tick)
        transport.close()

    @contextlib.contextmanager
    def _aborting(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.abort()
            raise
