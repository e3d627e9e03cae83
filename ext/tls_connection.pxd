from libc.stdint cimport uint8_t

from ingest.ext.openssl cimport SSL
from ingest.ext.sinks cimport ByteBuffer
from ingest.ext.tls_context cimport Context

cdef enum:
    CLOSED = -1             # returned by `decrypt` after the peer's close_notify


cdef class Connection:
    cdef SSL *ssl
    cdef readonly Context context
    cdef readonly bint established      # the handshake is complete, with any required certificate
    cdef str server_name

    cdef int set_server_name(self, str server_name) except -1
    cdef int require_peer_certificate(self) except -1


cdef class BufferedConnection(Connection):
    cdef ByteBuffer incoming              # received ciphertext that is not processed yet
    cdef size_t incoming_at         # bytes of `incoming` that are processed
    cdef size_t undecrypted         # bytes of ciphertext that the last `decrypt` did not use
    cdef ByteBuffer outgoing        # records to send, if the caller passes no buffer
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
