"""The SCP of one association: C-STORE and messages of storage commitment into the spool, C-ECHO.

`ingest.ext.cstore_service` serves nearly all C-STOREs completely in C: sound request, sound data set,
durable, response 0000H. It leaves all other cases to this module, which knows all of PS3.7 9.1.1 and PS3.4
B.2. There is no network I/O here: events of the parser come in, and responses go out through the
association.

Requests for storage commitment (N-ACTION, PS3.4 J) and reports of it (N-EVENT-REPORT) are received like an
instance. Their data set becomes a spool entry whose File Meta names the SOP class of storage commitment, and
is durable before the response. The persist worker writes it to the ledger.

INVARIANT 1: durable before Success
    Only two functions send a response 0000H, and both run when the commit of the entry has ended:
    `CStoreOperations.finish_operation` in `ext/cstore_service.pyx`, and `StoreSCP._answer_committed`
    below. A commit syncs the file, renames it and syncs its folder (`Committer.commit_files` in
    `ext/group_commit.pyx`).

INVARIANT 6: a full disk is a DICOM status
    A full or failing disk is answered with A700H (out of resources), and the association lives. There are
    five ways to that answer, and all of them are in this module:

    - before the data set: the listener takes nothing more (`_check_request`), for example below
      `min_free_bytes`;
    - before the data set: the spool cannot open a file (`_begin_store`);
    - during the data set: a write failed. The sink counts the error, and drains the rest (`_check_data_set`);
    - after the data set: its header cannot be read back (`_check_data_set`);
    - at the commit: fsync or rename failed (`handle_failed_commit` and `_answer_committed`).
"""

import os
import time
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import structlog

from ingest.acceptor.header_check import SUCCESS, StoreResult, check_commitment_header, check_header
from ingest.acceptor.scoreboard import BYTES, FAILED, INSTANCES, Scoreboard
from ingest.dicom import dimse
from ingest.dicom.commitment import REPORT_MARK, REQUEST_MAX_BYTES
from ingest.dicom.dimse import EchoRequest, NServiceRequest, OtherRequest, Status, StoreRequest
from ingest.dicom.negotiate import AcceptedContext
from ingest.dicom.part10 import FileMeta, encode_file_meta, split_file_meta
from ingest.dicom.priority import HIGH, LOW, MEDIUM, admit_requested
from ingest.dicom.uids import STORAGE_COMMITMENT, VERIFICATION, is_valid_uid
from ingest.ext.channel import Channel
from ingest.ext.cstore_codec import StoreContext
from ingest.ext.cstore_service import CStoreOperation, CStoreOperations, CStoreService
from ingest.ext.errors import PeerError
from ingest.ext.group_commit import Entry
from ingest.ext.pdu import DataSet, PDUParser
from ingest.metrics import families
from ingest.metrics.board import current_board
from ingest.metrics.families import OTHER
from ingest.queue.publisher import Publisher
from ingest.spool.reference import Location
from ingest.spool.spool import Spool

_STATUS_CLASSES: Final = {
    0x01: "invalid_request",
    0x02: "invalid_request",
    0xA7: "out_of_resources",
    0xA9: "mismatch",
}
"""Class of a failure by the first two digits of its status. All of Cxxx are one class."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class FullReason:
    """Why the listener takes nothing more now.

    Attributes:
        summary: The full resource, in words that a peer may read: the Error Comment of a response.
        detail: The figures, for the log; may be empty.
    """

    summary: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.summary}: {self.detail}" if self.detail else self.summary


@dataclass(frozen=True, slots=True)
class ListenerServices:
    """Objects that one listener process shares with all its associations.

    Attributes:
        spool: Spool slot that instances are received into.
        cstore_service: Group commit of the entries.
        publisher: Publisher of the committed references.
        board: Scoreboard of all listeners.
        row: Row of this listener.
        keeps_refused: Whether refused data sets are kept for the quarantine.
        instance_limit: Key that bounds a data set, and its value in bytes.
        header_max_bytes: Bytes of a data set to read before the response.
    """

    spool: Spool
    cstore_service: CStoreService
    publisher: Publisher
    board: Scoreboard
    row: int
    keeps_refused: bool
    instance_limit: tuple[str, int]
    header_max_bytes: int


class StoreSCPOwner(Protocol):
    """The association, as its SCP sees it. Tests have another one, without a network."""

    def respond(self, context_id: int, command: bytes) -> None:
        """Send a response; without effect after the end of the association."""

    def handle_operation_end(self) -> None:
        """Note that one operation fewer is outstanding; called while `StoreSCP.operations.watched` is set."""

    def handle_notices(self) -> None:
        """Act on the notices of the channel."""

    def find_full_reason(self) -> FullReason | None:
        """Return why nothing more is taken now."""


@dataclass(slots=True)
class _Message:
    """A request that is not answered yet, maybe with the spool entry of its data set.

    Attributes:
        result: The response, as far as it is decided.
        entry: Spool entry of the data set; None if the data set is only drained.
        data_set_offset: Position of the data set in the entry, after the File Meta Information.
        began_ns: Monotonic time of the request; once its data set is complete, the time of that.
    """

    request: StoreRequest | NServiceRequest | OtherRequest | EchoRequest
    context_id: int
    transfer_syntax: str
    result: StoreResult
    entry: Entry | None = None
    data_set_offset: int = 0
    began_ns: int = field(default_factory=time.monotonic_ns)


class StoreSCP:
    """The DIMSE side of one association."""

    __slots__ = (
        "_allows_priority",
        "_calling_label",
        "_contexts",
        "_current",
        "_file_meta",
        "_owner",
        "_parser",
        "_services",
        "operations",
    )

    def __init__(  # noqa: PLR0917 - one caller
        self,
        owner: StoreSCPOwner,
        channel: Channel,
        parser: PDUParser,
        services: ListenerServices,
        file_meta: FileMeta,
        contexts: dict[int, AcceptedContext],
        limit: int,
        *,
        calling_label: str = OTHER,
        allows_priority: bool = False,
    ) -> None:
        """Serve an association that was accepted.

        Args:
            owner: The association.
            channel: Connection that responses go to.
            parser: Parser that data sets come from.
            services: Objects that the listener shares with all associations.
            file_meta: File Meta Information with AE titles, addresses and caller certificate, without UIDs.
            contexts: Accepted presentation contexts by ID.
            limit: Outstanding operations at which reading stops.
            calling_label: Calling AE title for the metrics.
            allows_priority: Whether Priority HIGH counts.
        """
        self._allows_priority = allows_priority
        self._calling_label = calling_label
        self._owner = owner
        self._parser = parser
        self._services = services
        self._file_meta = file_meta
        self._contexts = contexts
        self._current: _Message | None = None
        storable = [
            StoreContext(
                context_id,
                context.abstract_syntax,
                context.transfer_syntax,
                *split_file_meta(self._make_file_meta(context.abstract_syntax, "", context.transfer_syntax)),
                *(
                    split_file_meta(
                        self._make_file_meta(context.abstract_syntax, "", context.transfer_syntax, priority)
                    )[2]
                    for priority in (HIGH, LOW)
                ),
            )
            for context_id, context in contexts.items()
            if context.abstract_syntax not in {VERIFICATION, STORAGE_COMMITMENT}
            and is_valid_uid(context.abstract_syntax)
        ]
        self.operations = CStoreOperations(
            services.cstore_service,
            channel,
            parser,
            self,
            storable,
            limit,
            current_board().find_word(families.INSTANCES, calling_label),
            current_board().find_word(families.RECEIVED_BYTES, calling_label),
        )

    @property
    def outstanding(self) -> int:
        """Number of operations without a response."""
        return self.operations.outstanding

    @property
    def stored(self) -> int:
        """Number of instances answered with Success."""
        return self.operations.stored

    # --- events of the parser

    def handle_command(self, context_id: int, data: bytes) -> None:
        """Begin the operation that a complete command set asks for.

        Raises:
            PeerError: The command set is invalid, or its presentation context was not accepted.
        """
        context = self._contexts.get(context_id)
        if context is None:
            raise PeerError(
                f"presentation context {context_id} was not accepted", PeerError.INVALID_PARAMETER
            )
        request = dimse.decode_request(data)
        if isinstance(request, NServiceRequest) and context.abstract_syntax != STORAGE_COMMITMENT:
            request = request.as_other
        if isinstance(request, OtherRequest) and not request.wants_response:
            return  # C-CANCEL-RQ: no operation here takes long enough to be cancelled
        if isinstance(request, StoreRequest):
            self._begin_entry(request, context_id, context, self._check_store(request, context))
            return
        if isinstance(request, NServiceRequest) and request.has_data_set:
            self._begin_entry(request, context_id, context, self._check_commitment(request, context))
            return
        self.operations.add(request.message_id)
        message = _Message(request, context_id, context.transfer_syntax, SUCCESS)
        if isinstance(request, NServiceRequest):
            message.result = self._check_commitment(request, context)
        if request.has_data_set:
            self._current = message
            self._parser.expect_data_set(context_id)
        else:
            self._answer(message)

    def _begin_entry(
        self,
        request: StoreRequest | NServiceRequest,
        context_id: int,
        context: AcceptedContext,
        result: StoreResult,
    ) -> None:
        """Expect the data set of a request: into a new spool entry if the request is sound."""
        message = _Message(request, context_id, context.transfer_syntax, result)
        self.operations.add(request.message_id)
        self._current = message
        if result.status:
            self._parser.expect_data_set(context_id)  # without an entry: drain it
            return
        priority = request.priority if isinstance(request, StoreRequest) else MEDIUM
        is_report = isinstance(request, NServiceRequest) and request.is_event_report
        head = encode_file_meta(
            self._make_file_meta(
                request.sop_class_uid,
                REPORT_MARK if is_report else request.sop_instance_uid,
                context.transfer_syntax,
                priority,
            )
        )
        try:
            message.entry = self._services.spool.begin()
        except OSError as error:  # INVARIANT 6: a full disk is a DICOM status
            message.result = self._report_failing_disk(error.strerror or str(error))
            self._parser.expect_data_set(context_id)
            return
        message.data_set_offset = len(head)
        self._parser.expect_data_set(context_id, message.entry.fd, head)

    def handle_data_set(self, event: DataSet) -> None:
        """Check and commit the data set whose last fragment has arrived.

        Raises:
            PeerError: No message waits for a data set.
        """
        message, self._current = self._current, None
        operation = self.operations.hand_over()
        if operation is not None:
            message = self._take_over(operation)
        if message is None:
            raise PeerError("a data set without a command", PeerError.UNEXPECTED_PDU)
        if message.entry is None:
            self._answer(message)
            return
        _observe_time(message, families.RECEIVE_SECONDS)
        message.result = self._check_data_set(message, message.entry, event)
        status = message.result.status
        is_partial = event.too_large or status == Status.OUT_OF_RESOURCES
        is_instance = isinstance(message.request, StoreRequest)
        if is_partial or (status and (not is_instance or not self._services.keeps_refused)):
            self._services.spool.discard(message.entry)
            self._answer(message)
            return
        size = event.length
        self._services.spool.commit(
            message.entry, lambda where, error: self._answer_committed(message, size, where, error), status
        )

    def end(self) -> None:
        """Drop the data set that is being received. Entries that are being committed stay."""
        message, self._current = self._current, None
        operation = self.operations.hand_over()
        if operation is not None:
            self.operations.remove(operation.message_id)
        elif message is not None:
            self.operations.remove(message.request.message_id)
        self.operations.end()
        entry = operation or (message.entry if message is not None else None)
        if entry is not None:
            self._parser.drop_sink()
            self._services.spool.discard(entry)

    # --- checks

    def _check_store(self, request: StoreRequest, context: AcceptedContext) -> StoreResult:
        """Decide before the first byte of the data set whether to keep it."""
        return self._check_request(request, dimse.find_store_fault(request, context.abstract_syntax))

    def _check_commitment(self, request: NServiceRequest, context: AcceptedContext) -> StoreResult:
        """Decide likewise about a message of storage commitment."""
        result = self._check_request(request, dimse.find_commitment_fault(request, context.abstract_syntax))
        if result.status == Status.OUT_OF_RESOURCES:  # PS3.7 10.1 has another code for it
            return replace(result, status=Status.RESOURCE_LIMITATION)
        return result

    def _check_request(
        self, request: StoreRequest | NServiceRequest, fault: tuple[Status, str] | None
    ) -> StoreResult:
        if self.operations.is_outstanding(request.message_id):
            return StoreResult(Status.DUPLICATE_INVOCATION, f"message {request.message_id} is outstanding")
        if fault is not None:
            return StoreResult(*fault)
        full = self._owner.find_full_reason()
        if full is not None:  # INVARIANT 6: a full disk is a DICOM status
            return StoreResult(Status.OUT_OF_RESOURCES, full.summary)
        return SUCCESS

    def _check_data_set(self, message: _Message, entry: Entry, event: DataSet) -> StoreResult:
        request = message.request
        if isinstance(request, NServiceRequest):
            return self._check_commitment_data_set(message, entry, event)
        if event.too_large:
            return self._refuse_too_large(event.length)
        if event.errno:  # INVARIANT 6: a full disk is a DICOM status
            return self._report_failing_disk(f"errno {event.errno}")
        if not isinstance(request, StoreRequest):  # pragma: no cover - only C-STORE has an entry
            return message.result
        try:
            return check_header(
                entry.fd,
                message.data_set_offset,
                event.length,
                transfer_syntax=message.transfer_syntax,
                sop_class=request.sop_class_uid,
                sop_instance=request.sop_instance_uid,
                header_max_bytes=self._services.header_max_bytes,
            )
        except OSError as error:  # INVARIANT 6: a full disk is a DICOM status
            return self._report_failing_disk(error.strerror or str(error))

    def _check_commitment_data_set(self, message: _Message, entry: Entry, event: DataSet) -> StoreResult:
        if event.too_large or event.length > REQUEST_MAX_BYTES:
            return StoreResult(
                Status.RESOURCE_LIMITATION,
                f"{event.length} bytes, {REQUEST_MAX_BYTES} is the limit",
                "send several requests",
            )
        try:
            if event.errno:  # INVARIANT 6: a full disk is a DICOM status
                raise OSError(event.errno, os.strerror(event.errno))
            return check_commitment_header(
                entry.fd, message.data_set_offset, event.length, message.transfer_syntax
            )
        except OSError as error:
            result = self._report_failing_disk(error.strerror or str(error))
            return replace(result, status=Status.RESOURCE_LIMITATION)

    def _refuse_too_large(self, size_bytes: int) -> StoreResult:
        """Refuse for good. After A700H a sender would try the same instance again for ever."""
        key, limit = self._services.instance_limit
        comment = f"{size_bytes} bytes, {key.rpartition(' ')[2]} is {limit}"
        return StoreResult(Status.CANNOT_UNDERSTAND, comment, f"raise {key}")

    def _report_failing_disk(self, cause: str) -> StoreResult:
        """Log a failure of the spool's disk, and return A700H."""
        log.error(
            "spool_write_failed",
            error=cause,
            remedy="free space on, or replace, the disk of [receive] spool_dir",
        )
        return StoreResult(Status.OUT_OF_RESOURCES, "the disk is full or failing")

    # --- responses

    def _answer_committed(
        self, message: _Message, size_bytes: int, where: str, error: OSError | None
    ) -> None:
        """Answer when the commit of an entry has ended.

        INVARIANT 1: durable before Success. `Spool.commit` calls this after fsync, rename and fsync of the
        folder, or with the error of one of them.
        """
        services = self._services
        if error is not None:  # INVARIANT 6: a full disk is a DICOM status
            message.result = self._report_failing_disk(error.strerror or str(error))
            if isinstance(message.request, NServiceRequest):
                message.result = replace(message.result, status=Status.RESOURCE_LIMITATION)
        elif isinstance(message.request, NServiceRequest):
            pass  # no instance: nothing to count
        elif not message.result.status:
            services.board.add(services.row, INSTANCES)
            services.board.add(services.row, BYTES, size_bytes)
            _observe_time(message, families.COMMIT_SECONDS)
            current_board().add(families.INSTANCES, self._calling_label)
            current_board().add(families.RECEIVED_BYTES, self._calling_label, value=size_bytes)
            self.operations.stored += 1
        self._answer(message)
        if error is None:
            services.cstore_service.add_unpublished(Location(where))

    def _answer(self, message: _Message) -> None:
        request, result = message.request, message.result
        if isinstance(request, NServiceRequest):
            self._answer_commitment(request, message.context_id, result)
            return
        if result.status:
            self._services.board.add(self._services.row, FAILED)
            current_board().add(families.INSTANCES_REFUSED, _classify_status(result.status))
            log.warning(
                "instance_refused",
                status=f"{result.status:04X}",
                reason=result.comment,
                calling_ae=self._file_meta.calling_ae,
                sop_instance=getattr(request, "sop_instance_uid", ""),
                **({"remedy": result.remedy} if result.remedy else {}),
            )
        if isinstance(request, StoreRequest):
            response = dimse.encode_store_response(request, result.status, result.comment)
        elif isinstance(request, EchoRequest):
            response = dimse.encode_echo_response(request)
        else:
            response = dimse.encode_unsupported_response(request)
        self._owner.respond(message.context_id, response)
        self.operations.remove(request.message_id)

    def _answer_commitment(self, request: NServiceRequest, context_id: int, result: StoreResult) -> None:
        calling_ae = self._file_meta.calling_ae
        if result.status:
            log.warning(
                "commitment_message_refused",
                calling_ae=calling_ae,
                status=f"{result.status:04X}",
                reason=result.comment,
                **({"remedy": result.remedy} if result.remedy else {}),
            )
        else:
            event = "commitment_answered" if request.is_event_report else "commitment_requested"
            log.info(event, calling_ae=calling_ae)
        response = dimse.encode_n_service_response(request, result.status, result.comment)
        self._owner.respond(context_id, response)
        self.operations.remove(request.message_id)

    # --- called by the CStoreOperations

    def handle_failed_commit(self, operation: CStoreOperation, error: int) -> None:
        """Answer an operation of the fast path whose commit failed with the errno `error`."""
        message = self._take_over(operation)
        message.result = self._report_failing_disk(os.strerror(error))  # INVARIANT 6
        self._answer(message)

    def handle_operation_end(self) -> None:
        """Tell the association that one operation fewer is outstanding."""
        self._owner.handle_operation_end()

    def handle_notices(self) -> None:
        """Tell the association that the channel has notices."""
        self._owner.handle_notices()

    def _take_over(self, operation: CStoreOperation) -> _Message:
        """Continue an operation that the fast path (`CStoreOperations`) began."""
        context = self._contexts[operation.context_id]
        head = encode_file_meta(
            self._make_file_meta(
                context.abstract_syntax,
                operation.sop_instance_uid,
                context.transfer_syntax,
                operation.priority,
            )
        )
        request = StoreRequest(
            operation.message_id, operation.sop_class_uid, operation.sop_instance_uid, operation.priority
        )
        return _Message(
            request,
            operation.context_id,
            context.transfer_syntax,
            SUCCESS,
            operation,
            len(head),
            operation.began_ns,
        )

    def _make_file_meta(
        self, sop_class: str, sop_instance: str, transfer_syntax: str, priority: int = MEDIUM
    ) -> FileMeta:
        return replace(
            self._file_meta,
            sop_class_uid=sop_class,
            sop_instance_uid=sop_instance,
            transfer_syntax_uid=transfer_syntax,
            priority=admit_requested(priority, allows_high=self._allows_priority),
        )


def _observe_time(message: _Message, family: families.Family) -> None:
    """Record the duration of the step that ends now, and start the clock of the next step."""
    now = time.monotonic_ns()
    current_board().observe(family, (now - message.began_ns) / 1e9)
    message.began_ns = now


def _classify_status(status: int) -> str:
    """Return the class of a failure, as a value of `families.STATUS_CLASS`."""
    if status >> 12 == 0xC:  # PS3.4 Table B.2-1: Cxxx
        return "cannot_understand"
    return _STATUS_CLASSES.get(status >> 8, OTHER)
