"""Sans-IO parser of the DICOM upper layer protocol (PS3.8 section 9.3), for acceptor and requestor alike.

Bytes are received straight into a window (`get_buffer`, `buffer_updated`) and leave it as events
(`next_event`). Fragments of a data set never become Python objects: C writes them from the window to the
sink's descriptor, all fragments of one window in one writev(2). What a window's end cuts apart is kept in the
parser's own memory, so that many parsers can share one window. A parser is used by one thread at a time.
"""

cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy, memset

from ingest.ext cimport events
from ingest.ext.octets cimport big_32
from ingest.ext.sinks cimport (
    ByteBuffer, Gather, Sink, SpillTarget, append_bytes, buffer_to_bytes, forget_buffer, release_buffer,
)

from ingest.ext.errors import PeerError
from ingest.ext.events import Command, ControlPDU, DataSet

__all__ = ["Command", "ControlPDU", "DataSet", "PDUParser"]

cdef size_t OWN_WINDOW = 131072

# PS3.8 Table 9-26: the reasons of a provider's A-ABORT, as in PeerError.
cdef int UNRECOGNIZED_PDU = 1
cdef int UNEXPECTED_PDU = 2
cdef int INVALID_PARAMETER = 6


# Hidden from the collector, which would clear `view` while `window` still is an export of it: CPython then
# crashes. Nothing that a parser holds leads back to it, so no cycle is missed.
@cython.final
@cython.no_gc
cdef class PDUParser:
    """Frames the seven PDU types of PS3.8 9.3 and the PDVs within P-DATA-TF.

    Args:
        buffer: The window to receive into, writable and contiguous; parsers that are drained before another
            one receives may share it. None: 128 KiB of its own.
        max_pdu_length: Longest P-DATA-TF accepted, in bytes after its 6-byte header (PS3.8 D.1); 0: any.
        max_control_length: Longest A-ASSOCIATE-RQ/AC accepted, in bytes after its header.
        max_command_bytes: Longest command set accepted.
        max_data_set_bytes: Longest data set that reaches a sink; longer ones are drained and marked.

    Raises:
        ValueError: A limit is negative, or the window is empty.
        BufferError: The window cannot be written to.
    """

    def __cinit__(
        self,
        buffer=None,
        *,
        long long max_pdu_length=131072,
        long long max_control_length=262144,
        long long max_command_bytes=65536,
        long long max_data_set_bytes=4294967296,
    ):
        self.sink = Sink.__new__(Sink)
        if max_pdu_length < 0 or max_control_length < 0 or max_command_bytes < 0 or max_data_set_bytes < 0:
            raise ValueError("limits of a PDUParser are not negative")
        self.max_pdu_length = max_pdu_length
        self.max_control_length = max_control_length
        self.max_command_bytes = max_command_bytes
        self.max_data_set_bytes = max_data_set_bytes
        self.view = memoryview(bytearray(OWN_WINDOW) if buffer is None else buffer).cast("B")
        PyObject_GetBuffer(self.view, &self.window, PyBUF_WRITABLE)
        self.window_held = True
        if self.window.len < 1:
            raise ValueError("the window of a PDUParser has room for at least one byte")

    def __dealloc__(self):
        if self.window_held:
            PyBuffer_Release(&self.window)
        release_buffer(&self.control)
        release_buffer(&self.command)

    def get_buffer(self, Py_ssize_t sizehint=-1):
        """The whole window as a memoryview; received bytes belong at its start. `sizehint` is not needed."""
        return self.view

    def buffer_updated(self, Py_ssize_t nbytes):
        """The first `nbytes` of the window are received; `next_event` must then be called until it returns
        None.

        Raises:
            ValueError: The window is shorter than `nbytes`.
            RuntimeError: The window before this one was not drained.
        """
        self.received(nbytes)

    cdef int received(self, Py_ssize_t nbytes) except -1:
        self.check_idle()
        if nbytes < 0 or nbytes > self.window.len:
            raise ValueError(f"{nbytes} bytes cannot have been received into a window of {self.window.len}")
        if self.failure is not None:
            return 0
        if self.position < self.end:
            raise RuntimeError("the window is not drained: call next_event until it returns None")
        self.position = 0
        self.end = <size_t> nbytes
        return 0

    def next_event(self):
        """The next event of the window: a ControlPDU, Command or DataSet; None when the window is used up.

        Raises:
            PeerError: The peer broke PS3.8; its `reason` is the one to abort with. Every later call raises it
                again.
        """
        return self.step()

    cdef object step(self):
        cdef Gather gather
        self.check_idle()
        if self.failure is not None:
            raise PeerError(self.failure, self.failure_reason)
        gather.count = 0
        gather.length = 0
        try:
            event = self.advance(&gather)
        except MemoryError:
            self.failure = "the parser ran out of memory"   # fragments may be lost: no event may follow
            raise
        self.sink.flush(&gather)
        return event

    def expect_data_set(self, int context_id, int fd=-1, bytes head=b"", long long memory_limit=0):
        """The command set just delivered announced a data set (CommandDataSetType is not 0101H): say where it
        goes.

        Args:
            context_id: Presentation context of the command set; the data set must come on the same.
            fd: Descriptor to write to, blocking; it stays the caller's, and must stay open until the DataSet
                event or `drop_sink`.
            head: Bytes to write to `fd` ahead of the first fragment (a Part 10 File Meta, say).
            memory_limit: Keep the data set in memory up to this many bytes. With neither this nor `fd`, it is
                dropped.

        Raises:
            ValueError: The context ID is even or out of range, or both sinks are asked for.
            RuntimeError: A command set or another data set is not finished.
        """
        self.expect(context_id, fd, head, memory_limit)

    cdef int expect(self, int context_id, int fd, bytes head, long long memory_limit) except -1:
        self.check_idle()
        if context_id < 1 or context_id > 255 or not context_id & 1:
            raise ValueError(f"{context_id} is no presentation context ID (odd, 1 to 255)")
        if memory_limit < 0 or (memory_limit > 0 and fd >= 0):
            raise ValueError("a data set goes to a descriptor or to memory of a positive limit, not to both")
        if self.data_set_context or self.command_context:
            raise RuntimeError("the message before this data set is not finished")
        self.data_set_context = context_id
        self.data_set_length = 0
        self.data_set_limit = self.max_data_set_bytes
        if memory_limit > 0:
            self.data_set_limit = min(self.data_set_limit, <uint64_t> memory_limit)
        self.too_large = False
        self.sink.open(fd, head, memory_limit > 0)
        return 0

    cdef int expect_small(self, int context_id, bytes head, size_t limit, SpillTarget overflow) except -1:
        """As `expect`, with a sink that turns to a descriptor once the data set and `head` exceed `limit`."""
        self.expect(context_id, -1, b"", 0)
        self.sink.open_small(head, limit, overflow)
        return 0

    def ignore_data(self):
        """From now on look at no P-DATA-TF: what has begun is dropped, what still comes is not even checked.

        For an association that is over, where PS3.8 Table 9-10 asks to ignore data (AA-6): its fragments
        follow what was not looked at, so that each would seem out of order.
        """
        self.check_idle()
        if self.ignoring:
            return
        self.ignoring = True
        if self.phase == IN_FRAGMENT:
            self.pdu_left += self.fragment_left
            self.fragment_left = 0
            self.phase = IN_IGNORED
        elif self.phase == IN_PDV_HEADER:
            self.pdu_left -= self.header_have
            self.header_have = 0
            self.phase = IN_IGNORED
        self.sink.discard()
        forget_buffer(&self.command)
        self.command_context = self.data_set_context = 0

    @property
    def in_message(self):
        """Whether what has come so far ends within a PDU or a message."""
        return self.within_message()

    cdef bint within_message(self) noexcept:
        return (
            self.phase != IN_PDU_HEADER or self.header_have or self.command_context or self.data_set_context
        )

    def drop_sink(self):
        """From now on drop what comes of the current data set; its descriptor may then be closed."""
        self.check_idle()
        self.sink.discard()

    @property
    def in_command(self):
        """Whether a fragment of a command set has come, and its last one has not."""
        return self.command_context != 0

    @property
    def in_data_set(self):
        """Whether a data set is expected and its last fragment has not come."""
        return self.data_set_context != 0

    cdef object advance(self, Gather *gather):
        while True:
            if self.phase == IN_FRAGMENT:
                if not self.take_fragment(gather):
                    return None
                event = self.close_fragment(gather)
                if event is not None:
                    return event
            elif self.phase == IN_PDV_HEADER:
                if self.pdu_left == 0:
                    self.phase = IN_PDU_HEADER
                    self.completed += 1
                    continue
                if self.pdu_left < HEADER_LENGTH:
                    self.fail("P-DATA-TF ends within a PDV item", INVALID_PARAMETER)
                if not self.fill_header():
                    return None
                self.open_pdv(gather)
            elif self.phase == IN_IGNORED:
                if not self.skip():
                    return None
            elif self.phase == IN_PDU_HEADER:
                if not self.fill_header():
                    # PS3.8 9.3.1, byte 1: PDU-type. Told by its first byte, for a peer that speaks something
                    # else may not send six.
                    if self.header_have and not ASSOCIATE_RQ <= self.header[0] <= ABORT:
                        self.fail(f"PDU type {self.header[0]:02X}H is unknown", UNRECOGNIZED_PDU)
                    return None
                self.open_pdu()
            else:
                if not self.take_control():
                    return None
                return self.close_control()

    cdef bint fill_header(self) noexcept:
        """Move bytes from the window to `header`; whether all six are there. Its reader resets the count."""
        cdef size_t length = min(HEADER_LENGTH - self.header_have, self.end - self.position)
        memcpy(&self.header[self.header_have], <uint8_t *> self.window.buf + self.position, length)
        self.position += length
        self.header_have += length
        return self.header_have == HEADER_LENGTH

    cdef int open_pdu(self) except -1:
        cdef int pdu_type = self.header[0]                      # PS3.8 9.3.1, byte 1: PDU-type
        cdef uint64_t length = big_32(&self.header[2])   # bytes 3-6: PDU-length; byte 2 is not tested
        self.header_have = 0
        self.pdu_left = length
        if pdu_type == P_DATA_TF and self.ignoring:
            self.phase = IN_IGNORED
            return 0
        if pdu_type == P_DATA_TF:
            if self.max_pdu_length and length > self.max_pdu_length:
                self.fail(f"P-DATA-TF of {length} bytes, limit {self.max_pdu_length}", INVALID_PARAMETER)
            if length == 0:
                # PS3.8 Table 9-22, bytes 7-: one or more PDV items
                self.fail("P-DATA-TF without a PDV item", INVALID_PARAMETER)
            self.phase = IN_PDV_HEADER
            return 0
        if pdu_type == ASSOCIATE_RQ or pdu_type == ASSOCIATE_AC:
            if length > self.max_control_length:
                self.fail(f"A-ASSOCIATE: {length} bytes, limit {self.max_control_length}", INVALID_PARAMETER)
        elif ASSOCIATE_RJ <= pdu_type <= ABORT:
            if length != 4:             # PS3.8 Tables 9-21, 9-24, 9-25, 9-26, bytes 3-6
                self.fail(f"PDU type {pdu_type:02X}H of {length} bytes instead of 4", INVALID_PARAMETER)
        else:
            self.fail(f"PDU type {pdu_type:02X}H is unknown", UNRECOGNIZED_PDU)
        forget_buffer(&self.control)
        append_bytes(&self.control, self.header, HEADER_LENGTH)
        self.phase = IN_CONTROL_BODY
        return 0

    cdef bint skip(self) noexcept:
        """Pass over what is left of a P-DATA-TF; whether that was all of it."""
        cdef size_t length = self.end - self.position
        if length > self.pdu_left:
            length = <size_t> self.pdu_left
        self.position += length
        self.pdu_left -= length
        if self.pdu_left:
            return False
        self.phase = IN_PDU_HEADER
        return True

    cdef bint take_control(self) except -1:
        cdef size_t length = self.end - self.position
        if length > self.pdu_left:
            length = <size_t> self.pdu_left
        append_bytes(&self.control, <uint8_t *> self.window.buf + self.position, length)
        self.position += length
        self.pdu_left -= length
        return self.pdu_left == 0

    cdef object close_control(self):
        cdef events.ControlPDU event = events.ControlPDU.__new__(events.ControlPDU)
        event.data = buffer_to_bytes(&self.control)
        event.pdu_type = self.control.data[0]
        self.completed += 1
        forget_buffer(&self.control)
        self.phase = IN_PDU_HEADER
        return event

    cdef int open_pdv(self, Gather *gather) except -1:
        # PS3.8 Table 9-23, bytes 1-4: item-length, which counts all that follows in the item
        cdef uint64_t length = big_32(self.header)
        cdef int context_id = self.header[4]                    # byte 5: presentation-context-ID
        cdef int control = self.header[5]               # PS3.8 E.2: message control header; bits 2-7 any
        self.header_have = 0
        if length < 2:
            self.fail(f"PDV item of {length} bytes has no message control header", INVALID_PARAMETER)
        if 4 + length > self.pdu_left:
            self.fail("PDV item is longer than its P-DATA-TF", INVALID_PARAMETER)
        if not context_id & 1:
            self.fail(f"presentation context ID {context_id} is even", INVALID_PARAMETER)
        self.pdu_left -= 4 + length
        self.fragment_left = length - 2
        self.fragment_is_command = control & 1          # PS3.8 E.2, bit 0: command (1) or data set (0)
        self.fragment_is_last = (control >> 1) & 1              # bit 1: last fragment
        if self.fragment_is_command:
            self.open_command_fragment(context_id, length - 2)
        else:
            self.open_data_fragment(gather, context_id, length - 2)
        self.phase = IN_FRAGMENT
        return 0

    cdef int open_command_fragment(self, int context_id, uint64_t length) except -1:
        if self.data_set_context:
            self.fail("PDV out of order: command fragment before the end of a data set", UNEXPECTED_PDU)
        if self.command_context and self.command_context != context_id:
            self.fail("PDV out of order: command set changes its presentation context", UNEXPECTED_PDU)
        if self.command.length + length > self.max_command_bytes:
            self.fail(f"command set is longer than {self.max_command_bytes} bytes", INVALID_PARAMETER)
        self.command_context = context_id
        return 0

    cdef int open_data_fragment(self, Gather *gather, int context_id, uint64_t length) except -1:
        if not self.data_set_context:
            self.fail("PDV out of order: data set that no command set announced", UNEXPECTED_PDU)
        if self.data_set_context != context_id:
            self.fail("PDV out of order: data set changes its presentation context", UNEXPECTED_PDU)
        self.data_set_length += length
        if self.data_set_length > self.data_set_limit and not self.too_large:
            self.too_large = True
            gather.count = 0                # they point at the head, which goes with the sink
            gather.length = 0
            self.sink.discard()
        return 0

    cdef bint take_fragment(self, Gather *gather) except -1:
        cdef const uint8_t *data = <const uint8_t *> self.window.buf + self.position
        cdef size_t length = self.end - self.position
        if length > self.fragment_left:
            length = <size_t> self.fragment_left
        if length:
            if self.fragment_is_command:
                append_bytes(&self.command, data, length)
            else:
                self.sink.add_fragment(gather, data, length)
            self.position += length
            self.fragment_left -= length
        return self.fragment_left == 0

    cdef object close_fragment(self, Gather *gather):
        cdef events.Command command
        cdef events.DataSet data_set
        self.phase = IN_PDV_HEADER
        if not self.fragment_is_last:
            return None
        if self.fragment_is_command:
            command = events.Command.__new__(events.Command)
            command.context_id = self.command_context
            command.data = buffer_to_bytes(&self.command)
            self.command_context = 0
            forget_buffer(&self.command)
            return command
        self.sink.add_head(gather)               # a data set of no bytes at all still gets its head
        self.sink.flush(gather)
        data_set = events.DataSet.__new__(events.DataSet)
        data_set.context_id = self.data_set_context
        data_set.length = self.data_set_length
        data_set.too_large = self.too_large
        data_set.write_errno = self.sink.write_errno
        if self.sink.overflow is not None:
            self.sink.overflow.small = self.sink.memory     # what it had was moved to a file before
            memset(&self.sink.memory, 0, sizeof(ByteBuffer))
        elif self.sink.in_memory:
            data_set.data = buffer_to_bytes(&self.sink.memory)
        self.sink.discard()
        self.data_set_context = 0
        return data_set

    cdef int check_idle(self) except -1:
        # C reads the window without the GIL; a second thread would change it under the write.
        if self.sink.writing:
            raise RuntimeError("another thread is using this PDUParser")
        return 0

    cdef int fail(self, str message, int reason) except -1:
        """Raise, now and ever after; nothing of the peer's is kept."""
        self.failure = message
        self.failure_reason = reason
        self.position = self.end = 0
        self.sink.discard()
        forget_buffer(&self.control)
        forget_buffer(&self.command)
        raise PeerError(message, reason)
