from libc.stdint cimport uint8_t, uint16_t

cdef enum:
    RESPONSE_MAX = 256      # bytes of a C-STORE-RSP with its headers; more than two UIDs and the numbers take

cdef struct Request:
    int seen
    uint16_t message_id
    uint16_t priority
    const uint8_t *sop_class
    size_t sop_class_length
    const uint8_t *sop_instance
    size_t sop_instance_length

cdef bint read_request(const uint8_t *at, size_t left, Request *request) noexcept
cdef size_t write_response(uint8_t *at, StoreContext context, uint16_t message_id, bytes uid) noexcept


cdef class StoreContext:
    cdef readonly int context_id
    cdef bytes sop_class            # without padding
    cdef int coding                 # of its data sets, as ext.header says; -1: deflated
    cdef bytes lead                 # the three constant parts of a File Meta
    cdef bytes before
    cdef bytes after
    cdef bytes after_high           # the same for Priority HIGH and LOW
    cdef bytes after_low

    cdef bint accepts_request(self, const Request *request) noexcept
    cdef bytes file_meta(self, bytes uid, uint16_t priority)
