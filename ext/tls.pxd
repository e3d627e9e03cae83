from libc.stdint cimport uint8_t

from ingest.ext.sinks cimport Kept

cdef enum:
    CLOSED = -1             # what `read` says of the peer's close_notify


cdef class Records:
    cdef object connection          # the ssl.SSLObject; it owns `ssl`
    cdef void *ssl
    cdef Kept *outgoing             # records to be sent; the owner's
    cdef int ending                 # 0, or the code of SSL_get_error that ended reading
    cdef str reason

    cdef Py_ssize_t read(self, const uint8_t *ciphertext, size_t length, uint8_t *room, size_t size) except -2
    cdef int write(self, const uint8_t *plaintext, size_t length) except -1
    cdef int close_notify(self) except -1


cdef Records records(object connection, Kept *outgoing)
cdef void *inside(object connection) except? NULL
cpdef bint available(connection) except -1
