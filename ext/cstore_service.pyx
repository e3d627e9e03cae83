"""C-STORE as it mostly goes: a sound request, a data set that is what it says, durable, answered with 0000H.

Everything else (an odd request, a full disk, a data set of another instance, a deflated one) is left to
Python, which knows the whole of PS3.7 9.1.1 and PS3.4 B.2; the two agree on what is sound, and only that is
done here.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.stdint cimport uint8_t, uint16_t
from libc.string cimport memset

from ingest.ext cimport header
from ingest.ext.cstore_codec cimport RESPONSE_MAX, Request, StoreContext, read_request, write_response
from ingest.ext.channel cimport PAUSED, Channel, Taker
from ingest.ext.group_commit cimport Committer, Entry
from ingest.ext.events cimport Command, DataSet
from ingest.ext.pdu cimport PDUParser

__all__ = ["Intake", "Operation", "StoreCycle"]

cdef Py_ssize_t PROMISED_MAX = 100000       # beyond, with Redis away for long, the sweep finds the rest


@cython.final
cdef class Operation(Entry):
    """One C-STORE under way, and the entry of its data set."""

    @property
    def message_id(self):
        return self._message_id

    @property
    def context_id(self):
        return self.context.context_id

    @property
    def sop_class_uid(self):
        return self.context.sop_class.decode()

    @property
    def sop_instance_uid(self):
        return self.uid.decode()

    cdef int descriptor(self) noexcept:
        cdef int error = self.cycle.intake.committer.open(self)
        return -error if error else self.job.fd

    cdef int finished(self, int error) except -1:
        if self.done is not None:
            return Entry.finished(self, error)
        return self.cycle.settle(self, error)


@cython.final
cdef class Intake:
    """What all associations of a listener share.

    Args:
        committer: Makes entries durable.
        slot: Name of the slot that they lie in.
        counters: This listener's words of the scoreboard.
        instances: Index of the word that counts instances answered with Success.
        volume: Of the one that counts their bytes.
        durable: As the committer's.
        small: Bytes of the largest Part 10 file that goes into a segment; 0: none does.

    Attributes:
        promised: Where the entries lie that were answered and are not handed off yet.
        sleeper: Called, once, at the next promise; None: nobody waits for one.
        full: Set to take nothing more here.
    """

    def __cinit__(
        self, Committer committer not None, str slot not None, counters not None, int instances, int volume,
        *, bint durable, size_t small=0
    ):
        self.small = small if committer is not None and committer.segments is not None else 0
        self.segments = f"{slot}/segments/".encode()
        self.committer = committer
        self.ready = f"{slot}/ready/".encode()
        self.counters = counters
        if not 0 <= instances < self.counters.shape[0] or not 0 <= volume < self.counters.shape[0]:
            raise ValueError("the counters have no such word")
        self.instances, self.volume = instances, volume
        self.durable = durable
        self.promised = []
        self.speaking = []

    def add_promised(self, where not None):
        """Where an entry lies that Python has answered: a file; or a segment, offset and length."""
        self.promise(where)

    cdef int promise(self, object where) except -1:
        if len(self.promised) < PROMISED_MAX:
            self.promised.append(where)
        if self.sleeper is not None:
            sleeper, self.sleeper = self.sleeper, None
            sleeper()
        return 0

    def take_promised(self):
        """What was promised since the last call, as a Reference's `where`."""
        promised, self.promised = self.promised, []
        return promised

    def collect(self):
        """Answer what has become durable, all of an association in one piece; see `Committer.collect`."""
        cdef StoreCycle cycle
        raised = self.committer.collect()
        speaking, self.speaking = self.speaking, []
        for cycle in speaking:
            cycle.speaks = False
            try:
                cycle.channel.out()
            except Exception as error:
                raised.append(error)
            if cycle.channel.notices:
                cycle.owner.noticed()
        return raised


@cython.final
cdef class StoreCycle(Taker):
    """The operations of one association.

    Args:
        intake: What it shares with others.
        channel: Where responses go.
        parser: Where data sets come from.
        owner: Python's side: `settled(operation, errno)` for what failed to become durable,
            `operation_done()` and `noticed()`.
        contexts: Those that take C-STORE.
        limit: Operations outstanding at which reading stops.

    Attributes:
        receiving: Whether requests may come now.
        answering: Whether responses may be sent now.
        watched: Whether `operation_done` shall be called.
        stored: Instances answered with Success here.
    """

    def __cinit__(
        self, Intake intake not None, Channel channel not None, PDUParser parser not None, owner, contexts,
        size_t limit
    ):
        cdef StoreContext context
        self.intake, self.channel, self.parser, self.owner = intake, channel, parser, owner
        self.contexts = [None] * 128
        for context in contexts:
            self.contexts[context.context_id >> 1] = context
        self.limit = limit
        parser.sink.early = intake.durable

    def __dealloc__(self):
        PyMem_Free(self.ids)

    # --- outstanding operations

    @property
    def outstanding(self):
        """How many operations wait for their response."""
        return self.count

    def is_outstanding(self, uint16_t message_id):
        """Whether this one does."""
        return self.place(message_id) >= 0

    def add(self, uint16_t message_id):
        """One more; may pause the channel."""
        self.enter(message_id)

    def remove(self, uint16_t message_id):
        """It was answered, or never will be."""
        self.leave(message_id)

    cdef Py_ssize_t place(self, uint16_t message_id) noexcept:
        cdef size_t at
        for at in range(self.count):
            if self.ids[at] == message_id:
                return <Py_ssize_t> at
        return -1

    cdef int enter(self, uint16_t message_id) except -1:
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

    cdef int leave(self, uint16_t message_id) except -1:
        cdef Py_ssize_t at = self.place(message_id)
        if at >= 0:
            self.count -= 1
            self.ids[at] = self.ids[self.count]
        if self.count < self.limit and self.channel.notices & PAUSED:
            self.channel.notices &= ~PAUSED
            self.owner.noticed()
        if self.watched:
            self.owner.operation_done()
        if self.ended and self.count == 0:
            self.owner = None
        return 0

    # --- the channel's events

    cdef bint take(self, object event) except -1:
        if type(event) is Command:
            return self.receiving and self.begin((<Command> event).context_id, (<Command> event).data)
        if type(event) is DataSet and self.current is not None:
            return self.end_data_set(event)
        return False

    cdef int window_goes(self) except -1:
        if self.current is not None and not self.current.examined:
            self.examine()
        return 0

    def end(self):
        """The association is over: nothing is taken or answered any more.

        What is being committed has its end without it, and the owner hears of its failure; then it is let go,
        that owner and cycle do not keep each other, and the connection's TLS, until the collector comes.
        """
        self.receiving = self.answering = self.watched = False
        self.ended = True
        if self.count == 0:
            self.owner = None

    def hand_over(self):
        """The operation whose data set is under way, from now on the caller's; None if there is none here."""
        cdef Operation operation = self.current
        self.current = None
        if operation is not None and operation.small.length:
            operation.write_out(self.intake.committer)      # where that fails, so does who reads it
        return operation

    cdef bint begin(self, int context_id, bytes command) except -1:
        cdef Request request
        cdef StoreContext context = self.contexts[context_id >> 1]
        cdef Operation operation
        memset(&request, 0, sizeof(request))
        if context is None or self.intake.full or not read_request(
            <const uint8_t *> PyBytes_AS_STRING(command), <size_t> PyBytes_GET_SIZE(command), &request
        ):
            return False
        if not context.asks(&request) or self.place(request.message_id) >= 0:
            return False
        operation = Operation.__new__(Operation)
        operation.cycle = self
        operation.context = context
        operation._message_id = request.message_id
        operation.uid = request.sop_instance[:request.sop_instance_length]
        head = context.file_meta(operation.uid)
        if self.intake.small == 0 and self.intake.committer.open(operation):
            return False
        self.current = operation            # whatever fails from here on, its file goes with the association
        self.enter(request.message_id)
        if operation.job.fd >= 0:
            self.parser.expect(context_id, operation.job.fd, head, 0)
        else:
            self.parser.expect_small(context_id, head, self.intake.small, operation)
        return True

    cdef int examine(self) except -1:
        """Look for the UIDs in the data set's first piece, while that is in the window."""
        cdef Operation operation = self.current
        if self.parser.sink.first != NULL:
            operation.examined = True
            if operation.context.coding >= 0:
                operation.sound = header.names(
                    operation.context.coding, self.parser.sink.first, self.parser.sink.first_length,
                    operation.context.sop_class, operation.uid,
                )
            self.parser.sink.first = NULL
        return 0

    cdef bint end_data_set(self, object event) except -1:
        cdef DataSet data_set = event
        cdef Operation operation = self.current
        if not operation.examined:
            self.examine()
        if not operation.sound or data_set.too_large or data_set.write_errno:
            return False
        self.current = None
        operation.size = data_set.length
        self.intake.committer.submit(operation)
        return True

    # --- the end of an operation

    cdef int settle(self, Operation operation, int error) except -1:
        # INVARIANT 1: durable before Success. `Committer.collect` calls this when the commit of the operation
        # has ended (`Committer.commit_files`). No other line of this module writes a response.
        cdef Intake intake = self.intake
        cdef uint8_t response[RESPONSE_MAX]
        cdef size_t length
        if error:
            self.owner.settled(operation, error)
            return 0
        intake.counters[intake.instances] += 1
        intake.counters[intake.volume] += operation.size
        self.stored += 1
        try:
            if self.answering:
                length = write_response(response, operation.context, operation._message_id, operation.uid)
                self.channel.say(response, length)
                if intake.durable and not self.speaks:
                    intake.speaking.append(self)
                    self.speaks = True
            if operation.small.length:
                where = (intake.segments + <bytes> operation.job.piece.segment).decode("ascii")
                intake.promise((where, operation.job.piece.offset, operation.small.length))
            else:
                intake.promise((intake.ready + <bytes> operation.job.ready).decode("ascii"))
        finally:
            # Without memory for answer or promise the operation is over, and the sweep finds its data.
            self.leave(operation._message_id)
        return 0
