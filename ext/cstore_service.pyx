"""The fast path of the C-STORE SCP: valid requests whose data set matches and becomes durable.

All other cases go to Python (`ingest.acceptor.store_scp`): an unusual request, a full disk, a data set of
another instance, a deflated data set. The Python side implements all of PS3.7 9.1.1 and PS3.4 B.2. Both sides
give the same answers to the requests that this module accepts; a parametrised test compares them.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint64_t
from libc.string cimport memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from ingest.ext cimport header
from ingest.ext.cstore_codec cimport RESPONSE_MAX, Request, StoreContext, read_request, write_response
from ingest.ext.channel cimport PAUSED, Channel, FastPath
from ingest.ext.group_commit cimport Committer, Entry
from ingest.ext.events cimport Command, DataSet
from ingest.ext.pdu cimport PDUParser
from ingest.ext.shared_counters cimport HISTOGRAM_SIZE, add_to_word, observe_duration

__all__ = ["CStoreService", "CStoreOperation", "CStoreOperations"]

cdef Py_ssize_t UNPUBLISHED_MAX = 100000       # beyond this number, the sweep publishes the rest later


cdef int64_t read_clock_ns() noexcept nogil:
    """Read the monotonic clock. Linux answers this without a system call."""
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t> now.tv_sec * 1000000000 + now.tv_nsec


@cython.final
cdef class CStoreOperation(Entry):
    """One C-STORE operation and the spool entry of its data set."""

    @property
    def message_id(self):
        return self._message_id

    @property
    def context_id(self):
        return self.context.context_id

    @property
    def priority(self):
        """Priority (0000,0700) of the request."""
        return self._priority

    @property
    def began_ns(self):
        """Monotonic time of the request; once its data set is complete, the time of that."""
        return self.began

    @property
    def sop_class_uid(self):
        return self.context.sop_class.decode()

    @property
    def sop_instance_uid(self):
        return self.uid.decode()

    cdef int descriptor(self) noexcept:
        cdef int error = self.operations.service.committer.open(self)
        return -error if error else self.job.fd

    cdef int finished(self, int error) except -1:
        if self.done is not None:
            return Entry.finished(self, error)
        return self.operations.finish_operation(self, error)


@cython.final
cdef class CStoreService:
    """The part of the C-STORE service that all associations of a listener share.

    Args:
        committer: Makes spool entries durable.
        slot: Name of the spool slot of the entries.
        counters: The scoreboard words of this listener.
        instances: Index of the word that counts instances answered with Success.
        volume: Index of the word that counts their bytes.
        make_location: Makes a spool location of a path, an offset and a length. This module knows no spool.
        durable: Whether the committer waits for stable storage.
        small: Size of the largest Part 10 file that goes into a segment, in bytes. 0: use no segments.
        metrics: Words of the metrics board. None: measure nothing.
        receive_times: First word of the histogram of receive times on `metrics`.
        commit_times: First word of the histogram of commit times.

    Attributes:
        unpublished: Spool locations of entries that were answered and are not published yet.
        on_unpublished: Called once at the next committed entry. None: no call.
        full: Set to refuse requests here, so that Python answers them.
    """

    def __cinit__(
        self, Committer committer not None, str slot not None, counters not None, int instances, int volume,
        *, make_location not None, bint durable, size_t small=0, metrics=None, size_t receive_times=0,
        size_t commit_times=0
    ):
        self.small = small if committer is not None and committer.segments is not None else 0
        self.segments = f"{slot}/segments/".encode()
        self.committer = committer
        self.ready = f"{slot}/ready/".encode()
        self.counters = counters
        if not 0 <= instances < self.counters.shape[0] or not 0 <= volume < self.counters.shape[0]:
            raise ValueError("the counters have no such word")
        if metrics is not None:
            self.metrics = metrics
            self.measured = &self.metrics[0]
            if max(receive_times, commit_times) + HISTOGRAM_SIZE > <size_t> self.metrics.shape[0]:
                raise ValueError("the metrics have no such word")
        self.receive_times, self.commit_times = receive_times, commit_times
        self.instances, self.volume = instances, volume
        self.make_location = make_location
        self.durable = durable
        self.unpublished = []
        self.responding = []

    def add_unpublished(self, location not None):
        """Add the location of an entry that Python has answered."""
        self.note_unpublished(location)

    cdef int note_unpublished(self, object location) except -1:
        if len(self.unpublished) < UNPUBLISHED_MAX:
            self.unpublished.append(location)
        if self.on_unpublished is not None:
            on_unpublished, self.on_unpublished = self.on_unpublished, None
            on_unpublished()
        return 0

    def take_unpublished(self):
        """Return the spool locations of entries that were committed since the last call."""
        unpublished, self.unpublished = self.unpublished, []
        return unpublished

    def collect(self):
        """Send the responses of entries that became durable, those of one association together.

        Returns:
            Exceptions that callbacks raised; see `Committer.collect`.
        """
        cdef CStoreOperations operations
        raised = self.committer.collect()
        responding, self.responding = self.responding, []
        for operations in responding:
            operations.is_responding = False
            # An exception must not reach the loop: the responses of the other associations would stay unsent.
            try:
                operations.channel.send_queued()
                # An association that has ended has no owner, and nobody to notify.
                if operations.channel.notices and operations.owner is not None:
                    operations.owner.handle_notices()
            except Exception as error:
                raised.append(error)
        return raised


@cython.final
cdef class CStoreOperations(FastPath):
    """The C-STORE operations of one association.

    Args:
        service: The part that is shared by all associations.
        channel: Connection that responses go to.
        parser: Parser that data sets come from.
        owner: The Python side. Its methods are `handle_failed_commit(operation, errno)` for entries that did
            not become durable, `handle_operation_end()` and `handle_notices()`.
        contexts: Presentation contexts that accept C-STORE.
        limit: Number of outstanding operations at which reading pauses.
        calling_instances: Word of the metrics board for instances of this calling AE title.
        calling_bytes: Word for their bytes.

    Attributes:
        receiving: Requests are accepted in the present state.
        answering: Responses may be sent in the present state.
        watched: `handle_operation_end` is to be called.
        stored: Instances that this object answered with Success.
    """

    def __cinit__(
        self, CStoreService service not None, Channel channel not None, PDUParser parser not None, owner,
        contexts, size_t limit, size_t calling_instances=0, size_t calling_bytes=0
    ):
        cdef StoreContext context
        if service.measured != NULL and (
            max(calling_instances, calling_bytes) >= <size_t> service.metrics.shape[0]
        ):
            raise ValueError("the metrics have no such word")
        self.calling_instances, self.calling_bytes = calling_instances, calling_bytes
        self.service, self.channel, self.parser, self.owner = service, channel, parser, owner
        self.contexts = [None] * 128
        for context in contexts:
            self.contexts[context.context_id >> 1] = context
        self.limit = limit
        parser.sink.early = service.durable

    def __dealloc__(self):
        PyMem_Free(self.ids)

    # --- outstanding operations

    @property
    def outstanding(self):
        """Number of operations that wait for their response."""
        return self.count

    def is_outstanding(self, uint16_t message_id):
        """Tell whether an operation waits for its response."""
        return self.find_outstanding(message_id) >= 0

    def add(self, uint16_t message_id):
        """Add an outstanding operation. Reading may pause."""
        self.add_outstanding_id(message_id)

    def remove(self, uint16_t message_id):
        """Remove an operation that was answered, or never will be."""
        self.remove_outstanding_id(message_id)

    cdef Py_ssize_t find_outstanding(self, uint16_t message_id) noexcept:
        cdef size_t at
        for at in range(self.count):
            if self.ids[at] == message_id:
                return <Py_ssize_t> at
        return -1

    cdef int add_outstanding_id(self, uint16_t message_id) except -1:
        cdef void *grown
        if self.count == self.capacity:
            grown = PyMem_Realloc(self.ids, (2 * self.capacity + 8) * sizeof(uint16_t))
            if grown == NULL:
                raise MemoryError
            self.ids = <uint16_t *> grown
            self.capacity = 2 * self.capacity + 8
        self.ids[self.count] = message_id
        self.count += 1
        if self.count >= self.limit:
            self.channel.notices |= PAUSED
        return 0

    cdef int remove_outstanding_id(self, uint16_t message_id) except -1:
        cdef Py_ssize_t at = self.find_outstanding(message_id)
        if at >= 0:
            self.count -= 1
            self.ids[at] = self.ids[self.count]
        if self.count < self.limit and self.channel.notices & PAUSED:
            self.channel.notices &= ~PAUSED
            self.owner.handle_notices()
        if self.watched:
            self.owner.handle_operation_end()
        if self.ended and self.count == 0:
            self.owner = None
        return 0

    # --- the channel's events

    cdef bint handle_event(self, object event) except -1:
        if type(event) is Command:
            return self.receiving and self.begin((<Command> event).context_id, (<Command> event).data)
        if type(event) is DataSet and self.current is not None:
            return self.end_data_set(event)
        return False

    cdef int process_window(self) except -1:
        if self.current is not None and not self.current.is_checked:
            self.check_first_piece()
        return 0

    def end(self):
        """End the association: accept no request and send no response.

        Entries that are being committed finish, and the owner is called for failures. The reference to the
        owner is dropped after the last one. Otherwise owner, operations and the TLS connection would form a
        cycle, and would live until the garbage collector runs.
        """
        self.receiving = self.answering = self.watched = False
        self.ended = True
        if self.count == 0:
            self.owner = None

    def hand_over(self):
        """Return the operation whose data set is being received, and forget it. None if there is none."""
        cdef CStoreOperation operation = self.current
        self.current = None
        if operation is not None and operation.small.length:
            operation.write_out(self.service.committer)      # a failure shows when the caller reads the file
        return operation

    cdef bint begin(self, int context_id, bytes command) except -1:
        cdef Request request
        cdef StoreContext context = self.contexts[context_id >> 1]
        cdef CStoreOperation operation
        memset(&request, 0, sizeof(request))
        if context is None or self.service.full or not read_request(
            <const uint8_t *> PyBytes_AS_STRING(command), <size_t> PyBytes_GET_SIZE(command), &request
        ):
            return False
        if not context.accepts_request(&request) or self.find_outstanding(request.message_id) >= 0:
            return False
        operation = CStoreOperation.__new__(CStoreOperation)
        operation.operations = self
        operation.context = context
        operation._message_id = request.message_id
        operation._priority = request.priority
        operation.began = read_clock_ns()
        operation.uid = request.sop_instance[:request.sop_instance_length]
        head = context.file_meta(operation.uid, request.priority)
        if self.service.small == 0 and self.service.committer.open(operation):
            return False
        self.current = operation            # on any later failure the association removes the file
        self.add_outstanding_id(request.message_id)
        if operation.job.fd >= 0:
            self.parser.start_data_set(context_id, operation.job.fd, head, 0)
        else:
            self.parser.start_small_data_set(context_id, head, self.service.small, operation)
        return True

    cdef int check_first_piece(self) except -1:
        """Compare the UIDs in the first piece of the data set with the command, while the window lasts."""
        cdef CStoreOperation operation = self.current
        if self.parser.sink.first != NULL:
            operation.is_checked = True
            if operation.context.coding >= 0:
                operation.is_sound = header.has_sop_uids(
                    operation.context.coding, self.parser.sink.first, self.parser.sink.first_length,
                    operation.context.sop_class, operation.uid,
                )
            self.parser.sink.first = NULL
        return 0

    cdef bint end_data_set(self, object event) except -1:
        cdef DataSet data_set = event
        cdef CStoreOperation operation = self.current
        if not operation.is_checked:
            self.check_first_piece()
        if not operation.is_sound or data_set.too_large or data_set.write_errno:
            return False
        self.current = None
        operation.size = data_set.length
        self.observe_time(operation, self.service.receive_times)
        self.service.committer.submit(operation)
        return True

    cdef void observe_time(self, CStoreOperation operation, size_t times) noexcept:
        """Count the time since the last step of an operation, and begin the next step."""
        cdef int64_t now
        if self.service.measured != NULL:
            now = read_clock_ns()
            observe_duration(&self.service.measured[times], <uint64_t> (now - operation.began), 1)
            operation.began = now

    # --- the end of an operation

    cdef int finish_operation(self, CStoreOperation operation, int error) except -1:
        # INVARIANT 1: durable before Success. `Committer.collect` calls this when the commit of the operation
        # has ended (`Committer.commit_files`). No other line of this module writes a response.
        cdef CStoreService service = self.service
        cdef uint8_t response[RESPONSE_MAX]
        cdef size_t length
        if error:
            self.owner.handle_failed_commit(operation, error)
            return 0
        service.counters[service.instances] += 1
        service.counters[service.volume] += operation.size
        if service.measured != NULL:
            self.observe_time(operation, service.commit_times)
            add_to_word(&service.measured[self.calling_instances], 1)
            add_to_word(&service.measured[self.calling_bytes], operation.size)
        self.stored += 1
        try:
            if self.answering:
                length = write_response(response, operation.context, operation._message_id, operation.uid)
                self.channel.queue_output(response, length)
                if service.durable and not self.is_responding:
                    service.responding.append(self)
                    self.is_responding = True
            if operation.small.length:
                path = (service.segments + <bytes> operation.job.piece.segment).decode("ascii")
                location = service.make_location(path, operation.job.piece.offset, operation.small.length)
            else:
                path = (service.ready + <bytes> operation.job.ready).decode("ascii")
                location = service.make_location(path, 0, 0)
            service.note_unpublished(location)
        finally:
            # If memory runs out for the response or the reference, the operation ends here. The entry is
            # durable, and the sweep publishes it.
            self.remove_outstanding_id(operation._message_id)
        return 0
