from libc.stdint cimport uint8_t

from ingest.ext.openssl cimport SSL
from ingest.ext.sinks cimport ByteBuffer
from ingest.ext.tls_context cimport Context

cdef enum:
    CLOSED = -1             # what `decrypt` returns after the peer's close_notify


cdef class Connection:
    cdef SSL *ssl
    cdef readonly Context context
    cdef readonly bint established      # the handshake is complete, and the peer has proved what it must
    cdef str server_name

    cdef int ask_for(self, str server_name) except -1
    cdef int require_proof(self) except -1


cdef class BufferedConnection(Connection):
    cdef ByteBuffer incoming              # ciphertext that came before the handshake was complete
    cdef size_t incoming_at         # how much of it was looked at
    cdef size_t undecrypted         # how much of its ciphertext the last `decrypt` did not look at
    cdef ByteBuffer outgoing        # records to be sent, if the caller has no buffer for them
    cdef int end_code               # 0, or the code of SSL_get_error that ended reading
    cdef str end_reason
    cdef str end_text

    cdef Py_ssize_t decrypt(
        self, const uint8_t *ciphertext, size_t length, uint8_t *room, size_t size, ByteBuffer *outgoing
    ) except -2
    cdef int encrypt(self, const uint8_t *plaintext, size_t length, ByteBuffer *outgoing) except -1
    cdef int notify_close(self, ByteBuffer *outgoing) except -1
    cdef int forget_incoming(self, size_t count) noexcept


cdef class SocketConnection(Connection):
    cdef int fd                     # the caller's; -1 once closed

    cdef int require_open(self) except -1
