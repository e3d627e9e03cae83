"""Sans-IO parser of the DICOM upper layer protocol (PS3.8 section 9.3), for acceptor and requestor.

The caller receives bytes into the window (`get_buffer`, `buffer_updated`) and reads events from the parser
(`next_event`). Fragments of a data set never become Python objects. C writes them from the window to the
sink's descriptor, all fragments of one window with one writev(2). If a header, a control PDU or a
command set spans two windows, the parser keeps the first part in its own memory. Many parsers can therefore
share one window. Only one thread at a time may use a parser.
"""

cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy, memset

from ingest.ext cimport events
from ingest.ext.byte_order cimport big_32
from ingest.ext.sinks cimport (
    ByteBuffer, Gather, Sink, SpillTarget, append_bytes, buffer_to_bytes, forget_buffer, release_buffer,
)

from ingest.ext.errors import PeerError
from ingest.ext.events import Command, ControlPDU, DataSet

__all__ = ["Command", "ControlPDU", "DataSet", "PDUParser"]

cdef size_t OWN_WINDOW = 131072

# PS3.8 Table 9-26, byte 10: reasons of an A-ABORT from the service provider, as in PeerError.
cdef int UNRECOGNIZED_PDU = 1
cdef int UNEXPECTED_PDU = 2
cdef int INVALID_PARAMETER = 6


# The garbage collector does not track this class (no_gc). Otherwise it could clear `view` while `window`
# still exports its memory, and CPython would crash. No field refers back to the parser, so no reference cycle
# goes uncollected.
@cython.final
@cython.no_gc
cdef class PDUParser:
    """Splits a byte stream into the seven PDU types of PS3.8 9.3, and P-DATA-TF into its PDVs.

    Args:
        buffer: The window, writable and contiguous. Parsers may share a window if each one is drained before
            the next one receives. None: the parser allocates 128 KiB.
        max_pdu_length: Longest P-DATA-TF accepted, in bytes after its 6-byte header (PS3.8 D.1). 0: no limit.
        max_control_length: Longest A-ASSOCIATE-RQ/AC accepted, in bytes after its header.
        max_command_bytes: Longest command set accepted.
        max_data_set_bytes: Longest data set written to a sink. A longer one is skipped and marked too large.

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
            raise ValueError("limits of a PDUParser are not negative: use 0 or more")
        self.max_pdu_length = max_pdu_length
        self.max_control_length = max_control_length
        self.max_command_bytes = max_command_bytes
        self.max_data_set_bytes = max_data_set_bytes
        self.view = memoryview(bytearray(OWN_WINDOW) if buffer is None else buffer).cast("B")
        PyObject_GetBuffer(self.view, &self.window, PyBUF_WRITABLE)
        self.has_window_export = True
        if self.window.len < 1:
            raise ValueError("the window of a PDUParser must have at least one byte")

    def __dealloc__(self):
        if self.has_window_export:
            PyBuffer_Release(&self.window)
        release_buffer(&self.control)
        release_buffer(&self.command)

    def get_buffer(self, Py_ssize_t sizehint=-1):
        """Return the whole window as a memoryview. Received bytes belong at its start.

        `sizehint` is ignored. asyncio.BufferedProtocol passes it.
        """
        return self.view

    def buffer_updated(self, Py_ssize_t nbytes):
        """Announce that the first `nbytes` of the window are received.

        Afterwards call `next_event` until it returns None.

        Raises:
            ValueError: The window is shorter than `nbytes`.
            RuntimeError: The previous window is not drained.
        """
        self.start_window(nbytes)

    cdef int start_window(self, Py_ssize_t nbytes) except -1:
        self.check_not_writing()
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
        """Return the next event (ControlPDU, Command or DataSet), or None if the window is drained.

        Raises:
            PeerError: The peer violated PS3.8. Abort with its `reason`. Every later call raises it again.
        """
        return self.parse_next_event()

    cdef object parse_next_event(self):
        cdef Gather gather
        self.check_not_writing()
        if self.failure is not None:
            raise PeerError(self.failure, self.abort_reason)
        gather.count = 0
        gather.length = 0
        try:
            event = self.parse_window(&gather)
        except MemoryError:
            # Fragments may be lost. A later event could announce an incomplete data set, so none follows.
            self.failure = "the parser ran out of memory"
            raise
        self.sink.flush(&gather)
        return event

    def expect_data_set(self, int context_id, int fd=-1, bytes head=b"", long long memory_limit=0):
        """Choose the sink of the data set that the last command set announced.

        A command set announces a data set if its CommandDataSetType is not 0101H (PS3.7 Table E.1-1).

        Args:
            context_id: Presentation context of the command set. The data set must use the same one.
            fd: Blocking descriptor to write to. The caller owns it and keeps it open until the DataSet event
                or `drop_sink`.
            head: Bytes to write to `fd` before the first fragment, for example a Part 10 File Meta.
            memory_limit: Keep the data set in memory up to this many bytes. Without this and `fd`, the data
                set is dropped.

        Raises:
            ValueError: The context ID is even or out of range, or both sinks are requested.
            RuntimeError: A command set or another data set is not finished.
        """
        self.start_data_set(context_id, fd, head, memory_limit)

    cdef int start_data_set(self, int context_id, int fd, bytes head, long long memory_limit) except -1:
        self.check_not_writing()
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

    cdef int start_small_data_set(
        self, int context_id, bytes head, size_t limit, SpillTarget overflow
    ) except -1:
        """Do as `start_data_set`, with a sink in memory.

        The sink moves to the spill target's descriptor if `head` and data set together exceed `limit` bytes.
        """
        self.start_data_set(context_id, -1, b"", 0)
        self.sink.open_small(head, limit, overflow)
        return 0

    def ignore_data(self):
        """Skip all further P-DATA-TF without checks, and drop a message that has begun.

        For an association that is over: PS3.8 Table 9-10 requires to ignore P-DATA-TF there (AA-6). Checks
        would be wrong, because the parser has skipped earlier fragments and each next one would seem out of
        order.
        """
        self.check_not_writing()
        if self.is_ignoring_data:
            return
        self.is_ignoring_data = True
        if self.phase == IN_FRAGMENT:
            self.pdu_bytes_left += self.fragment_bytes_left
            self.fragment_bytes_left = 0
            self.phase = IN_IGNORED
        elif self.phase == IN_PDV_HEADER:
            self.pdu_bytes_left -= self.header_length
            self.header_length = 0
            self.phase = IN_IGNORED
        self.sink.discard()
        forget_buffer(&self.command)
        self.command_context = self.data_set_context = 0

    @property
    def in_message(self):
        """Whether the received bytes end within a PDU or a message."""
        return self.is_within_message()

    cdef bint is_within_message(self) noexcept:
        return (
            self.phase != IN_PDU_HEADER or self.header_length or self.command_context or self.data_set_context
        )

    def drop_sink(self):
        """Drop the rest of the current data set. The caller may then close its descriptor."""
        self.check_not_writing()
        self.sink.discard()

    @property
    def in_command(self):
        """Whether a command set has begun and its last fragment has not arrived."""
        return self.command_context != 0

    @property
    def in_data_set(self):
        """Whether a data set is expected and its last fragment has not arrived."""
        return self.data_set_context != 0

    cdef object parse_window(self, Gather *gather):
        """Parse the window up to the next event. Return None when the window is drained.

        `phase` names the structure that the next byte belongs to. P-DATA-TF goes from IN_PDU_HEADER to
        IN_PDV_HEADER, and then alternates between IN_PDV_HEADER and IN_FRAGMENT until its PDU-length is used
        up.
        """
        while True:
            if self.phase == IN_FRAGMENT:
                if not self.consume_fragment_bytes(gather):
                    return None
                event = self.finish_fragment(gather)
                if event is not None:
                    return event
            elif self.phase == IN_PDV_HEADER:
                if self.pdu_bytes_left == 0:
                    self.phase = IN_PDU_HEADER
                    self.completed_pdus += 1
                    continue
                if self.pdu_bytes_left < HEADER_LENGTH:
                    self.fail("P-DATA-TF ends within a PDV item", INVALID_PARAMETER)
                if not self.fill_header():
                    return None
                self.open_pdv(gather)
            elif self.phase == IN_IGNORED:
                if not self.skip_ignored_bytes():
                    return None
            elif self.phase == IN_PDU_HEADER:
                if not self.fill_header():
                    # PS3.8 9.3.1, byte 1: PDU-type. Check it as soon as one byte is there: a peer that speaks
                    # another protocol may never send six bytes.
                    if self.header_length and not ASSOCIATE_RQ <= self.header[0] <= ABORT:
                        self.fail(f"PDU type {self.header[0]:02X}H is unknown", UNRECOGNIZED_PDU)
                    return None
                self.open_pdu()
            else:
                if not self.append_control_bytes():
                    return None
                return self.finish_control_pdu()

    cdef bint fill_header(self) noexcept:
        """Move bytes from the window to `header`, and return whether all six are there.

        The code that reads the header resets `header_length`.
        """
        cdef size_t length = min(HEADER_LENGTH - self.header_length, self.end - self.position)
        memcpy(&self.header[self.header_length], <uint8_t *> self.window.buf + self.position, length)
        self.position += length
        self.header_length += length
        return self.header_length == HEADER_LENGTH

    cdef int open_pdu(self) except -1:
        cdef int pdu_type = self.header[0]                      # PS3.8 9.3.1, byte 1: PDU-type
        # Bytes 3-6: PDU-length. Byte 2 is reserved and not tested, as PS3.8 9.3.1 requires.
        cdef uint64_t length = big_32(&self.header[2])
        self.header_length = 0
        self.pdu_bytes_left = length
        if pdu_type == P_DATA_TF and self.is_ignoring_data:
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

    cdef bint skip_ignored_bytes(self) noexcept:
        """Skip the rest of a P-DATA-TF. Return whether its end is reached."""
        cdef size_t length = self.end - self.position
        if length > self.pdu_bytes_left:
            length = <size_t> self.pdu_bytes_left
        self.position += length
        self.pdu_bytes_left -= length
        if self.pdu_bytes_left:
            return False
        self.phase = IN_PDU_HEADER
        return True

    cdef bint append_control_bytes(self) except -1:
        cdef size_t length = self.end - self.position
        if length > self.pdu_bytes_left:
            length = <size_t> self.pdu_bytes_left
        append_bytes(&self.control, <uint8_t *> self.window.buf + self.position, length)
        self.position += length
        self.pdu_bytes_left -= length
        return self.pdu_bytes_left == 0

    cdef object finish_control_pdu(self):
        cdef events.ControlPDU event = events.ControlPDU.__new__(events.ControlPDU)
        event.data = buffer_to_bytes(&self.control)
        event.pdu_type = self.control.data[0]
        self.completed_pdus += 1
        forget_buffer(&self.control)
        self.phase = IN_PDU_HEADER
        return event

    cdef int open_pdv(self, Gather *gather) except -1:
        # PS3.8 Table 9-23, bytes 1-4: item-length, which counts all bytes after itself
        cdef uint64_t length = big_32(self.header)
        cdef int context_id = self.header[4]                    # byte 5: presentation-context-ID
        # Byte 6, PS3.8 E.2: message control header. Bits 2-7 are not tested.
        cdef int control = self.header[5]
        self.header_length = 0
        if length < 2:
            self.fail(f"PDV item of {length} bytes has no message control header", INVALID_PARAMETER)
        if 4 + length > self.pdu_bytes_left:
            self.fail("PDV item is longer than its P-DATA-TF", INVALID_PARAMETER)
        if not context_id & 1:
            self.fail(f"presentation context ID {context_id} is even", INVALID_PARAMETER)
        self.pdu_bytes_left -= 4 + length
        self.fragment_bytes_left = length - 2
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
            # Empty the batch before the sink drops the head, because a part of the batch may point at it.
            gather.count = 0
            gather.length = 0
            self.sink.discard()
        return 0

    cdef bint consume_fragment_bytes(self, Gather *gather) except -1:
        cdef const uint8_t *data = <const uint8_t *> self.window.buf + self.position
        cdef size_t length = self.end - self.position
        if length > self.fragment_bytes_left:
            length = <size_t> self.fragment_bytes_left
        if length:
            if self.fragment_is_command:
                append_bytes(&self.command, data, length)
            else:
                # INVARIANT 4: memory does not grow with the image. The fragment goes from the window to the
                # sink and is not copied here.
                self.sink.add_fragment(gather, data, length)
            self.position += length
            self.fragment_bytes_left -= length
        return self.fragment_bytes_left == 0

    cdef object finish_fragment(self, Gather *gather):
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
        self.sink.add_head(gather)               # an empty data set still gets its head
        self.sink.flush(gather)
        data_set = events.DataSet.__new__(events.DataSet)
        data_set.context_id = self.data_set_context
        data_set.length = self.data_set_length
        data_set.too_large = self.too_large
        data_set.write_errno = self.sink.write_errno
        if self.sink.overflow is not None:
            # Hand the buffer over instead of copying it. The spill target's own buffer is empty here, so
            # nothing leaks. The memset ends the sink's ownership; otherwise both would free the same memory.
            self.sink.overflow.small = self.sink.memory
            memset(&self.sink.memory, 0, sizeof(ByteBuffer))
        elif self.sink.in_memory:
            data_set.data = buffer_to_bytes(&self.sink.memory)
        self.sink.discard()
        self.data_set_context = 0
        return data_set

    cdef int check_not_writing(self) except -1:
        # C reads the window without the GIL. A second thread could change the bytes during the write.
        if self.sink.writing:
            raise RuntimeError("another thread is using this PDUParser")
        return 0

    cdef int fail(self, str message, int reason) except -1:
        """Raise PeerError now and at each later call. Drop all bytes that the peer has sent."""
        # INVARIANT 5: bad bytes raise one error.
        self.failure = message
        self.abort_reason = reason
        self.position = self.end = 0
        self.sink.discard()
        forget_buffer(&self.control)
        forget_buffer(&self.command)
        raise PeerError(message, reason)
