"""C-STORE as it mostly goes: a sound request, a data set that is what it says, durable, answered with 0000H.

Everything else (an odd request, a full disk, a data set of another instance, a deflated one) is left to
Python, which knows the whole of PS3.7 9.1.1 and PS3.4 B.2; the two agree on what is sound, and only that is
done here.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp, memcpy, memset

from ext cimport header
from ext.channel cimport PAUSED, Channel, Taker
from ext.commit cimport Committer, Entry
from ext.events cimport Command, DataSet
from ext.pdu cimport PDUParser

__all__ = ["Intake", "Operation", "StoreContext", "StoreCycle"]

cdef enum:
    UID_MAX = 64                # PS3.5 9.1
    C_STORE_RQ = 0x0001         # PS3.7 E.1
    NO_DATA_SET = 0x0101        # (0000,0800), PS3.7 9.3
    RESPONSE_MAX = 256          # of a C-STORE-RSP with its headers; more than two UIDs and the numbers take

cdef Py_ssize_t PROMISED_MAX = 100000       # beyond, with Redis away for long, the sweep finds the rest

# Which elements of PS3.7 Table 9.3-1 a command set has had.
cdef enum Seen:
    SOP_CLASS = 1
    FIELD = 2
    MESSAGE_ID = 4
    DATA_SET_TYPE = 8
    SOP_INSTANCE = 16
    PRIORITY = 32
    GROUP_LENGTH = 64
    NEEDED = SOP_CLASS | FIELD | MESSAGE_ID | DATA_SET_TYPE | SOP_INSTANCE

cdef struct Request:
    int seen
    uint16_t message_id
    const uint8_t *sop_class
    size_t sop_class_length
    const uint8_t *sop_instance
    size_t sop_instance_length


cdef inline uint32_t number_16(const uint8_t *data) noexcept:
    return data[0] | (<uint32_t> data[1] << 8)


cdef inline uint32_t number_32(const uint8_t *data) noexcept:
    return number_16(data) | (number_16(data + 2) << 16)


cdef inline uint8_t *put_16(uint8_t *at, uint32_t value) noexcept:
    at[0] = <uint8_t> value
    at[1] = <uint8_t> (value >> 8)
    return at + 2


cdef inline uint8_t *put_32(uint8_t *at, uint32_t value) noexcept:
    return put_16(put_16(at, value), value >> 16)


cdef inline uint8_t *put_big_32(uint8_t *at, uint32_t value) noexcept:
    at[0] = <uint8_t> (value >> 24)
    at[1] = <uint8_t> (value >> 16)
    at[2] = <uint8_t> (value >> 8)
    at[3] = <uint8_t> value
    return at + 4


cdef inline uint8_t *put_bytes(uint8_t *at, const void *data, size_t length) noexcept:
    memcpy(at, data, length)
    return at + length


cdef uint8_t *put_uid(uint8_t *at, bytes uid) noexcept:
    """The value of a UI, padded to even length (PS3.5 9.1)."""
    cdef size_t length = <size_t> PyBytes_GET_SIZE(uid)
    at = put_bytes(at, PyBytes_AS_STRING(uid), length)
    if length & 1:
        at[0] = 0
        at += 1
    return at


cdef uint8_t *put_element(uint8_t *at, uint32_t element, uint32_t length) noexcept:
    """The header of a command element (PS3.7 6.3.1)."""
    return put_32(put_16(put_16(at, 0), element), length)


cdef size_t unpadded(const uint8_t *uid, size_t length) noexcept:
    while length > 0 and (uid[length - 1] == 0x00 or uid[length - 1] == 0x20):
        length -= 1
    return length


cdef bint is_uid(const uint8_t *text, size_t length) noexcept:
    """As `ingest.dicom.uids.is_valid_uid`: 1 to 64 characters, digits in components between single dots."""
    cdef size_t at
    cdef bint in_component = False
    if length == 0 or length > UID_MAX:
        return False
    for at in range(length):
        if c"0" <= text[at] <= c"9":
            in_component = True
        elif text[at] == c"." and in_component:
            in_component = False
        else:
            return False
    return in_component


cdef bint read_request(const uint8_t *at, size_t left, Request *request) noexcept:
    """Whether this is a C-STORE-RQ with just the elements that nearly all have (PS3.7 Table 9.3-1)."""
    cdef uint32_t element, length
    cdef int kind
    while left >= 8:
        if at[0] != 0 or at[1] != 0:                    # PS3.7 6.3.1, bytes 1-2: group
            return False
        element = number_16(at + 2)
        length = number_32(at + 4)
        at += 8
        left -= 8
        if length > left:
            return False
        if element == 0x0000:
            kind = GROUP_LENGTH if length == 4 else 0
        elif element == 0x0002:
            kind = SOP_CLASS
            request.sop_class = at
            request.sop_class_length = unpadded(at, length)
        elif element == 0x0100:
            kind = FIELD if length == 2 and number_16(at) == C_STORE_RQ else 0
        elif element == 0x0110:
            kind = MESSAGE_ID if length == 2 else 0
            if kind:
                request.message_id = <uint16_t> number_16(at)
        elif element == 0x0700:
            kind = PRIORITY if length == 2 else 0
        elif element == 0x0800:
            kind = DATA_SET_TYPE if length == 2 and number_16(at) != NO_DATA_SET else 0
        elif element == 0x1000:
            kind = SOP_INSTANCE
            request.sop_instance = at
            request.sop_instance_length = unpadded(at, length)
        else:
            return False
        if not kind or request.seen & kind:
            return False
        request.seen |= kind
        at += length
        left -= length
    return left == 0 and request.seen & NEEDED == NEEDED


@cython.final
cdef class StoreContext:
    """A presentation context on which instances may be stored.

    Args:
        context_id: Presentation context ID, odd, 1 to 255.
        sop_class_uid: Its abstract syntax.
        transfer_syntax_uid: What was negotiated.
        lead: A file's bytes up to the value of (0002,0000).
        before: Of group 0002, what comes before (0002,0003).
        after: What comes after it.
    """

    def __cinit__(
        self, int context_id, str sop_class_uid not None, str transfer_syntax_uid not None,
        bytes lead not None, bytes before not None, bytes after not None
    ):
        if context_id < 1 or context_id > 255 or not context_id & 1:
            raise ValueError(f"{context_id} is no presentation context ID (odd, 1 to 255)")
        self.context_id = context_id
        self.sop_class = sop_class_uid.encode("ascii")
        if PyBytes_GET_SIZE(self.sop_class) > UID_MAX:
            raise ValueError("a SOP class UID has at most 64 characters")
        self.coding = header.coding_of(transfer_syntax_uid)
        self.lead, self.before, self.after = lead, before, after


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

    def add_promised(self, str where not None):
        """An entry that Python has answered."""
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
        if (
            request.sop_class_length != <size_t> PyBytes_GET_SIZE(context.sop_class)
            or memcmp(request.sop_class, PyBytes_AS_STRING(context.sop_class), request.sop_class_length)
            or not is_uid(request.sop_instance, request.sop_instance_length)
            or self.place(request.message_id) >= 0
        ):
            return False
        operation = Operation.__new__(Operation)
        operation.cycle = self
        if self.intake.small == 0 and self.intake.committer.open(operation):
            return False
        operation.context = context
        operation._message_id = request.message_id
        operation.uid = request.sop_instance[:request.sop_instance_length]
        head = self.file_meta(context, operation.uid)
        if operation.job.fd >= 0:
            self.parser.expect(context_id, operation.job.fd, head, 0)
        else:
            self.parser.expect_small(context_id, head, self.intake.small, operation)
        self.current = operation
        self.enter(request.message_id)
        return True

    cdef bytes file_meta(self, StoreContext context, bytes uid):
        """What `ingest.dicom.part10.encode_file_meta` makes (PS3.10 7.1)."""
        cdef size_t value = <size_t> (PyBytes_GET_SIZE(uid) + 1) & ~<size_t> 1
        cdef size_t before = <size_t> PyBytes_GET_SIZE(context.before)
        cdef size_t after = <size_t> PyBytes_GET_SIZE(context.after)
        cdef size_t lead = <size_t> PyBytes_GET_SIZE(context.lead)
        cdef size_t group = before + 8 + value + after
        cdef bytes made = PyBytes_FromStringAndSize(NULL, <Py_ssize_t> (lead + 4 + group))
        cdef uint8_t *at = <uint8_t *> PyBytes_AS_STRING(made)
        at = put_bytes(at, PyBytes_AS_STRING(context.lead), lead)
        at = put_32(at, <uint32_t> group)
        at = put_bytes(at, PyBytes_AS_STRING(context.before), before)
        at = put_bytes(at, b"\x02\x00\x03\x00UI", 6)
        at = put_16(at, <uint32_t> value)
        at = put_uid(at, uid)
        put_bytes(at, PyBytes_AS_STRING(context.after), after)
        return made

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
        cdef Intake intake = self.intake
        if error:
            self.owner.settled(operation, error)
            return 0
        intake.counters[intake.instances] += 1
        intake.counters[intake.volume] += operation.size
        self.stored += 1
        if self.answering:
            self.respond(operation)
            if intake.durable and not self.speaks:
                self.speaks = True
                intake.speaking.append(self)
        if operation.small.length:
            where = (intake.segments + <bytes> operation.job.piece.segment).decode("ascii")
            intake.promise((where, operation.job.piece.offset, operation.small.length))
        else:
            intake.promise((intake.ready + <bytes> operation.job.ready).decode("ascii"))
        self.leave(operation._message_id)
        return 0

    cdef int respond(self, Operation operation) except -1:
        """C-STORE-RSP with Success (PS3.7 Table 9.3-2), one P-DATA-TF."""
        cdef uint8_t response[RESPONSE_MAX]
        cdef bytes sop_class = operation.context.sop_class
        cdef uint32_t class_length = <uint32_t> (PyBytes_GET_SIZE(sop_class) + 1) & ~<uint32_t> 1
        cdef uint32_t uid_length = <uint32_t> (PyBytes_GET_SIZE(operation.uid) + 1) & ~<uint32_t> 1
        cdef uint32_t group = 8 + class_length + 4 * 10 + 8 + uid_length
        cdef uint32_t command = 12 + group
        cdef uint8_t *at = response
        at = put_big_32(put_16(at, 0x0004), command + 6)        # PS3.8 Table 9-22, bytes 1-6
        at = put_big_32(at, command + 2)                        # Table 9-23, bytes 1-4: item-length
        at[0] = <uint8_t> operation.context.context_id
        at[1] = 0x03                                            # PS3.8 E.2: a command, its last fragment
        at = put_32(put_element(at + 2, 0x0000, 4), group)
        at = put_uid(put_element(at, 0x0002, class_length), sop_class)
        at = put_16(put_element(at, 0x0100, 2), 0x8001)         # C-STORE-RSP
        at = put_16(put_element(at, 0x0120, 2), operation._message_id)
        at = put_16(put_element(at, 0x0800, 2), NO_DATA_SET)
        at = put_16(put_element(at, 0x0900, 2), 0x0000)         # Success
        at = put_uid(put_element(at, 0x1000, uid_length), operation.uid)
        return self.channel.say(response, <size_t> (at - response))
