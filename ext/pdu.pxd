from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ingest.ext.sinks cimport Gather, ByteBuffer, SpillTarget, Sink

cdef enum:
    HEADER_LENGTH = 6       # of a PDU (PS3.8 9.3.1), and also of a PDV item up to its fragment (Table 9-23)

# PS3.8 9.3.2 to 9.3.8, byte 1 of each PDU.
cdef enum PDUType:
    ASSOCIATE_RQ = 0x01
    ASSOCIATE_AC = 0x02
    ASSOCIATE_RJ = 0x03
    P_DATA_TF = 0x04
    RELEASE_RQ = 0x05
    RELEASE_RP = 0x06
    ABORT = 0x07

# What the next byte of the window belongs to.
cdef enum Phase:
    IN_PDU_HEADER
    IN_CONTROL_BODY
    IN_PDV_HEADER
    IN_FRAGMENT
    IN_IGNORED


cdef class PDUParser:
    # Limits, fixed at construction.
    cdef uint64_t max_pdu_length        # 0: unlimited
    cdef uint64_t max_control_length
    cdef uint64_t max_command_bytes
    cdef uint64_t max_data_set_bytes

    # The window: lent to whoever receives, read by us up to `end`.
    cdef object view
    cdef Py_buffer window
    cdef bint window_held
    cdef size_t position
    cdef size_t end

    # Where we are in the stream.
    cdef Phase phase
    cdef uint8_t header[HEADER_LENGTH]
    cdef size_t header_have
    cdef uint64_t completed             # PDUs that ended
    cdef uint64_t pdu_left              # bytes of the current PDU not yet opened as a PDV or kept
    cdef uint64_t fragment_left
    cdef bint fragment_is_command
    cdef bint fragment_is_last
    cdef ByteBuffer control                   # a control PDU with its header
    cdef ByteBuffer command
    cdef int command_context            # 0: no command set is under way

    cdef bint ignoring                  # P-DATA-TF is not looked at any more

    # The data set under way and its sink.
    cdef int data_set_context           # 0: none is expected
    cdef uint64_t data_set_length
    cdef uint64_t data_set_limit
    cdef bint too_large
    cdef Sink sink

    # Set once, by the first error.
    cdef str failure
    cdef int failure_reason

    cdef int received(self, Py_ssize_t nbytes) except -1
    cdef object step(self)
    cdef int expect(self, int context_id, int fd, bytes head, long long memory_limit) except -1
    cdef int expect_small(self, int context_id, bytes head, size_t limit, SpillTarget overflow) except -1
    cdef bint within_message(self) noexcept
    cdef bint skip(self) noexcept
    cdef object advance(self, Gather *gather)
    cdef bint fill_header(self) noexcept
    cdef int open_pdu(self) except -1
    cdef bint take_control(self) except -1
    cdef object close_control(self)
    cdef int open_pdv(self, Gather *gather) except -1
    cdef int open_command_fragment(self, int context_id, uint64_t length) except -1
    cdef int open_data_fragment(self, Gather *gather, int context_id, uint64_t length) except -1
    cdef bint take_fragment(self, Gather *gather) except -1
    cdef object close_fragment(self, Gather *gather)
    cdef int check_idle(self) except -1
    cdef int fail(self, str message, int reason) except -1
