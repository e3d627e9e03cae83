from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ingest.ext.sinks cimport Gather, ByteBuffer, SpillTarget, Sink

cdef enum:
    HEADER_LENGTH = 6       # bytes of a PDU header (PS3.8 9.3.1), and of a PDV header (Table 9-23, bytes 1-6)

# PS3.8 9.3.2 to 9.3.8, byte 1 of each PDU.
cdef enum PDUType:
    ASSOCIATE_RQ = 0x01
    ASSOCIATE_AC = 0x02
    ASSOCIATE_RJ = 0x03
    P_DATA_TF = 0x04
    RELEASE_RQ = 0x05
    RELEASE_RP = 0x06
    ABORT = 0x07

# The part of the stream that the next byte of the window belongs to.
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

    # The window: the receiver writes it, the parser reads it from `position` to `end`.
    cdef object view
    cdef Py_buffer window
    cdef bint has_window_export
    cdef size_t position
    cdef size_t end

    # The position in the stream.
    cdef Phase phase
    cdef uint8_t header[HEADER_LENGTH]
    cdef size_t header_length
    cdef uint64_t completed_pdus             # number of PDUs read completely
    cdef uint64_t pdu_bytes_left              # bytes of this PDU that no PDV or buffer has claimed yet
    cdef uint64_t fragment_bytes_left
    cdef bint fragment_is_command
    cdef bint fragment_is_last
    cdef ByteBuffer control                   # the current control PDU, header included
    cdef ByteBuffer command
    cdef int command_context            # 0: no command set has begun

    cdef bint is_ignoring_data                  # P-DATA-TF is skipped without checks

    # The current data set and its sink.
    cdef int data_set_context           # 0: no data set is expected
    cdef uint64_t data_set_length
    cdef uint64_t data_set_limit
    cdef bint too_large
    cdef Sink sink

    # Set once, by the first error.
    cdef str failure
    cdef int abort_reason

    cdef int start_window(self, Py_ssize_t nbytes) except -1
    cdef object parse_next_event(self)
    cdef int start_data_set(self, int context_id, int fd, bytes head, long long memory_limit) except -1
    cdef int start_small_data_set(
        self, int context_id, bytes head, size_t limit, SpillTarget overflow
    ) except -1
    cdef bint is_within_message(self) noexcept
    cdef bint skip_ignored_bytes(self) noexcept
    cdef object parse_window(self, Gather *gather)
    cdef bint fill_header(self) noexcept
    cdef int open_pdu(self) except -1
    cdef bint append_control_bytes(self) except -1
    cdef object finish_control_pdu(self)
    cdef int open_pdv(self, Gather *gather) except -1
    cdef int open_command_fragment(self, int context_id, uint64_t length) except -1
    cdef int open_data_fragment(self, Gather *gather, int context_id, uint64_t length) except -1
    cdef bint consume_fragment_bytes(self, Gather *gather) except -1
    cdef object finish_fragment(self, Gather *gather)
    cdef int check_not_writing(self) except -1
    cdef int fail(self, str message, int reason) except -1
