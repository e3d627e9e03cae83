from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef enum:
    HEADERS_LENGTH = 12     # PDU header (PS3.8 Table 9-22, bytes 1-6) and PDV header (Table 9-23, bytes 1-6)
    PDV_OVERHEAD = 6        # the part of these headers that the PDU-length of a P-DATA-TF counts
    PARTS_MAX = 256         # parts of one preadv; 4 KiB of stack

cdef void write_headers(uint8_t *at, int context_id, uint64_t length, bint command, bint last) noexcept nogil
cdef uint64_t compute_fragment_limit(long long max_pdu_length) except 0


cdef class DataSetEncoder:
    cdef object view                # memoryview of the buffer; each `fill` returns a slice of it
    cdef uint8_t *buffer
    cdef uint64_t capacity
    cdef uint64_t fragment          # bytes of the data set in each P-DATA-TF except the last one
    cdef int context_id
    cdef int fd
    cdef int64_t offset             # file offset of the next byte to read
    cdef uint64_t left              # bytes of the data set that are not read yet
    cdef uint64_t padding           # padding bytes after the data set, 0 or 1
    cdef bint is_last               # whether the data set ends with these bytes
    cdef bint is_last_sent

    cdef int read_between_headers(self, uint64_t length) noexcept nogil
