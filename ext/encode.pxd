from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef enum:
    HEADERS_LENGTH = 12     # PDU header (PS3.8 Table 9-22, 1-6), PDV item to its fragment (Table 9-23, 1-6)
    PDV_OVERHEAD = 6        # the part of them that a P-DATA-TF's PDU-length counts
    PARTS_MAX = 256         # parts of one preadv; 4 KiB of stack

cdef void write_headers(uint8_t *at, int context_id, uint64_t length, bint command, bint last) noexcept nogil
cdef uint64_t fragment_limit(long long max_pdu_length) except 0


cdef class DataSetEncoder:
    cdef object view                # of the buffer; each `fill` lends a slice of it
    cdef uint8_t *buffer
    cdef uint64_t capacity
    cdef uint64_t fragment          # bytes of the data set in every P-DATA-TF but the last
    cdef int context_id
    cdef int fd
    cdef int64_t offset             # of the next byte to read
    cdef uint64_t left
    cdef uint64_t padding           # bytes to follow them, 0 or 1
    cdef bint last_sent

    cdef int read_around(self, uint64_t length) noexcept nogil
