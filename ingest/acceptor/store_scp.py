"""The C-STORE and C-ECHO SCP of an association; every other request gets a refusal.

The fast path in `ingest.ext.cstore_service` serves sound C-STORE requests, which are nearly all of them. This
module serves the odd ones, and checks each of them in full. It does no network I/O: events of the parser come
in, and responses leave through the owner.
"""

import os
from dataclasses import dataclass
from typing import Protocol

import structlog

from ingest.acceptor import header_check
from ingest.acceptor.header_check import Verdict
from ingest.acceptor.scoreboard import BYTES, FAILED, INSTANCES, Scoreboard
from ingest.dicom import dimse
from ingest.dicom.dimse import EchoRequest, OtherRequest, Status, StoreRequest
from ingest.dicom.negotiate import AcceptedContext
from ingest.dicom.part10 import FileMeta, encode_file_meta, file_meta_parts
from ingest.dicom.uids import VERIFICATION, is_valid_uid
from ingest.ext.channel import Channel
from ingest.ext.cstore_codec import StoreContext
from ingest.ext.cstore_service import Intake, Operation, StoreCycle
from ingest.ext.errors import PeerError
from ingest.ext.group_commit import Entry
from ingest.ext.pdu import DataSet, PDUParser
from ingest.queue.publisher import Publisher
from ingest.spool.spool import Spool

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends, as the File Meta of what it sends says.

    Attributes:
        calling_ae: Its AE title.
        called_ae: The AE title it asked for.
        address: Its address as a URI, "dicom-tls://192.0.2.1:50000".
        receiver: Ours, likewise.
        certificate: Who its certificate says it is, as `ingest.dicom.part10.FileMeta` has it.
    """

    calling_ae: str
    called_ae: str
    address: str
    receiver: str
    certificate: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Services:
    """What the listener process gives to every association.

    Attributes:
        spool: Where instances are received to.
        intake: What makes them durable.
        handoff: What tells the queue of them.
        board: The counters of all listeners.
        row: Ours of them.
        quarantine: Whether a copy of what is refused is kept.
        instance_limit: The key that bounds a data set, and its bytes.
        header_max_bytes: Of a data set, read before the answer.
    """

    spool: Spool
    intake: Intake
    handoff: Publisher
    board: Scoreboard
    row: int
    quarantine: bool
    instance_limit: tuple[str, int]
    header_max_bytes: int


class Owner(Protocol):
    """The connection, as seen from here."""

    def respond(self, context_id: int, command: bytes) -> None:
        """Send a response; without effect once the association has ended."""

    def operation_done(self) -> None:
        """One operation fewer is outstanding; called while `StoreSCP.cycle.watched`."""

    def noticed(self) -> None:
        """The channel has notices to act upon, or one fewer."""

    def why_full(self) -> str:
        """Why nothing more is taken now, or an empty string; what is full, before a colon."""


@dataclass(slots=True)
class _Receiving:
    """A message whose data set is on its way."""

    request: StoreRequest | OtherRequest | EchoRequest
    context_id: int
    transfer_syntax: str
    verdict: Verdict
    entry: Entry | None = None
    offset: int = 0


class StoreSCP:
    """The DIMSE side of one association."""

    __slots__ = (
        "_caller",
        "_contexts",
        "_current",
        "_owner",
        "_parser",
        "_services",
        "cycle",
    )

    def __init__(  # noqa: PLR0917 - one caller
        self,
        owner: Owner,
        channel: Channel,
        parser: PDUParser,
        services: Services,
        caller: Caller,
        contexts: dict[int, AcceptedContext],
        limit: int,
    ) -> None:
        self._owner = owner
        self._parser = parser
        self._services = services
        self._caller = caller
        self._contexts = contexts
        self._current: _Receiving | None = None
        storable = [
            StoreContext(
                context_id,
                context.abstract_syntax,
                context.transfer_syntax,
                *file_meta_parts(self._file_meta(context.abstract_syntax, "", context.transfer_syntax)),
            )
            for context_id, context in contexts.items()
            if context.abstract_syntax != VERIFICATION and is_valid_uid(context.abstract_syntax)
        ]
        self.cycle = StoreCycle(services.intake, channel, parser, self, storable, limit)

    @property
    def outstanding(self) -> int:
        """How many operations wait for their response."""
        return self.cycle.outstanding

    @property
    def stored(self) -> int:
        """Instances answered with Success."""
        return self.cycle.stored

    def command(self, context_id: int, data: bytes) -> None:
        """A complete command set has arrived.

        Raises:
            PeerError: It cannot be read, or its presentation context was not accepted.
        """
        context = self._contexts.get(context_id)
        if context is None:
            raise PeerError(
                f"presentation context {context_id} was not accepted", PeerError.INVALID_PARAMETER
            )
        request = dimse.decode_request(data)
        if isinstance(request, OtherRequest) and not request.wants_response:
            return  # C-CANCEL-RQ: nothing here takes long enough to be cancelled
        if isinstance(request, StoreRequest):
            self._store(request, context_id, context)
            return
        self.cycle.add(request.message_id)
        receiving = _Receiving(request, context_id, context.transfer_syntax, header_check.SOUND)
        if request.has_data_set:
            self._current = receiving
            self._parser.expect_data_set(context_id)
        else:
            self._answer(receiving)

    def data_set(self, event: DataSet) -> None:
        """The last fragment of a data set has arrived.

        Raises:
            PeerError: No message waits for one.
        """
        receiving, self._current = self._current, None
        operation = self.cycle.hand_over()
        if operation is not None:
            receiving = self._taken_over(operation)
        if receiving is None:
            raise PeerError("a data set without a command", PeerError.UNEXPECTED_PDU)
        if receiving.entry is None:
            self._answer(receiving)
            return
        verdict = self._examine(receiving, receiving.entry, event)
        size = event.length
        partial = event.too_large or verdict.status == Status.OUT_OF_RESOURCES
        if partial or (verdict.status and not self._services.quarantine):
            self._services.spool.discard(receiving.entry)
            receiving.verdict = verdict
            self._answer(receiving)
            return
        receiving.verdict = verdict
        self._services.spool.commit(
            receiving.entry,
            lambda where, error: self._committed(receiving, size, where, error),
            verdict.status,
        )

    def end(self) -> None:
        """The association has ended: what is half there goes; what is being committed stays."""
        receiving, self._current = self._current, None
        operation = self.cycle.hand_over()
        if operation is not None:
            self.cycle.remove(operation.message_id)
        elif receiving is not None:
            self.cycle.remove(receiving.request.message_id)
        self.cycle.end()
        entry = operation or (receiving.entry if receiving is not None else None)
        if entry is not None:
            self._parser.drop_sink()
            self._services.spool.discard(entry)

    # --- what the cycle leaves to us

    def settled(self, operation: Operation, error: int) -> None:
        """An instance could not be made durable."""
        receiving = self._taken_over(operation)
        receiving.verdict = self._failing_disk(os.strerror(error))
        self._answer(receiving)

    def operation_done(self) -> None:
        """One operation fewer is outstanding."""
        self._owner.operation_done()

    def noticed(self) -> None:
        """The channel has notices to act upon, or one fewer."""
        self._owner.noticed()

    def _taken_over(self, operation: Operation) -> "_Receiving":
        context = self._contexts[operation.context_id]
        head = encode_file_meta(
            self._file_meta(context.abstract_syntax, operation.sop_instance_uid, context.transfer_syntax)
        )
        request = StoreRequest(operation.message_id, operation.sop_class_uid, operation.sop_instance_uid)
        return _Receiving(
            request, operation.context_id, context.transfer_syntax, header_check.SOUND, operation, len(head)
        )

    def _file_meta(self, sop_class: str, sop_instance: str, transfer_syntax: str) -> FileMeta:
        caller = self._caller
        return FileMeta(
            sop_class,
            sop_instance,
            transfer_syntax,
            caller.calling_ae,
            caller.called_ae,
            caller.address,
            caller.receiver,
            caller.certificate,
        )

    def _store(self, request: StoreRequest, context_id: int, context: AcceptedContext) -> None:
        receiving = _Receiving(request, context_id, context.transfer_syntax, self._admit(request, context))
        self.cycle.add(request.message_id)
        self._current = receiving
        if receiving.verdict.status:
            self._parser.expect_data_set(context_id)
            return
        head = encode_file_meta(
            self._file_meta(request.sop_class_uid, request.sop_instance_uid, context.transfer_syntax)
        )
        try:
            receiving.entry = self._services.spool.begin()
        except OSError as error:
            receiving.verdict = self._failing_disk(error.strerror or str(error))
            self._parser.expect_data_set(context_id)
            return
        receiving.offset = len(head)
        self._parser.expect_data_set(context_id, receiving.entry.fd, head)

    def _admit(self, request: StoreRequest, context: AcceptedContext) -> Verdict:
        """Whether the data set shall be kept at all, decided before its first byte."""
        if self.cycle.is_outstanding(request.message_id):
            return Verdict(Status.DUPLICATE_INVOCATION, f"message {request.message_id} is outstanding")
        fault = dimse.store_fault(request, context.abstract_syntax)
        if fault is not None:
            return Verdict(*fault)
        full = self._owner.why_full()
        if full:
            return Verdict(Status.OUT_OF_RESOURCES, full.partition(":")[0])
        return header_check.SOUND

    def _examine(self, receiving: _Receiving, entry: Entry, event: DataSet) -> Verdict:
        if event.too_large:
            return self._too_large(event.length)
        if event.errno:
            return self._failing_disk(f"errno {event.errno}")
        request = receiving.request
        if not isinstance(request, StoreRequest):  # pragma: no cover - only C-STORE has an entry
            return receiving.verdict
        try:
            return header_check.check(
                entry.fd,
                receiving.offset,
                event.length,
                transfer_syntax=receiving.transfer_syntax,
                sop_class=request.sop_class_uid,
                sop_instance=request.sop_instance_uid,
                header_max_bytes=self._services.header_max_bytes,
            )
        except OSError as error:
            return self._failing_disk(error.strerror or str(error))

    def _too_large(self, size_bytes: int) -> Verdict:
        """Not A700H, out of resources: a sender would try for ever what will never be taken."""
        key, limit = self._services.instance_limit
        comment = f"{size_bytes} bytes, {key.rpartition(' ')[2]} is {limit}"
        return Verdict(Status.CANNOT_UNDERSTAND, comment, f"raise {key}")

    def _failing_disk(self, why: str) -> Verdict:
        log.error(
            "spool_write_failed",
            error=why,
            remedy="free space on, or replace, the disk of [receive] spool_dir",
        )
        return Verdict(Status.OUT_OF_RESOURCES, "the disk is full or failing")

    def _committed(self, receiving: _Receiving, size: int, where: str, error: OSError | None) -> None:
        services = self._services
        if error is not None:
            receiving.verdict = self._failing_disk(error.strerror or str(error))
        elif not receiving.verdict.status:
            services.board.add(services.row, INSTANCES)
            services.board.add(services.row, BYTES, size)
            self.cycle.stored += 1
        self._answer(receiving)
        if error is None:
            services.intake.add_promised(where)

    def _answer(self, receiving: _Receiving) -> None:
        request, verdict = receiving.request, receiving.verdict
        if verdict.status:
            self._services.board.add(self._services.row, FAILED)
            log.warning(
                "instance_refused",
                status=f"{verdict.status:04X}",
                reason=verdict.comment,
                calling_ae=self._caller.calling_ae,
                sop_instance=getattr(request, "sop_instance_uid", ""),
                **({"remedy": verdict.remedy} if verdict.remedy else {}),
            )
        if isinstance(request, StoreRequest):
            response = dimse.store_response(request, verdict.status, verdict.comment)
        elif isinstance(request, EchoRequest):
            response = dimse.echo_response(request)
        else:
            response = dimse.unsupported_response(request)
        self._owner.respond(receiving.context_id, response)
        self.cycle.remove(request.message_id)
