"""TLS connections of both roles: handshake, records and closing. Each connection owns an `SSL` of OpenSSL.

A listener serves many connections in one thread. Its `BufferedConnection` has no socket: ciphertext passes
through buffers. A memory BIO for each connection would copy all data once more and never shrink. All
connections therefore share one BIO, which reads from the window received last and appends to the bytes to
send.

A sender waits on one socket. In a `SocketConnection`, OpenSSL reads and writes that socket itself.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.errno cimport EBADF, errno
from libc.stdint cimport uint8_t
from libc.string cimport memcpy

from ingest.ext.openssl cimport (
    ASN1_OCTET_STRING,
    ASN1_OCTET_STRING_free,
    ASN1_STRING_get0_data,
    ASN1_STRING_length,
    BIO,
    BIO_clear_flags,
    BIO_CTRL_DUP,
    BIO_CTRL_FLUSH,
    BIO_FLAGS_READ,
    BIO_FLAGS_SHOULD_RETRY,
    BIO_meth_new,
    BIO_meth_set_ctrl,
    BIO_meth_set_read,
    BIO_meth_set_write,
    BIO_METHOD,
    BIO_new,
    BIO_set_flags,
    BIO_set_init,
    BIO_TYPE_SOURCE_SINK,
    BIO_up_ref,
    ERR_clear_error,
    SSL_CIPHER,
    SSL_CIPHER_get_name,
    SSL_do_handshake,
    SSL_ERROR_WANT_READ,
    SSL_ERROR_ZERO_RETURN,
    SSL_free,
    SSL_get0_param,
    SSL_get0_peer_certificate,
    SSL_get0_verified_chain,
    SSL_get_current_cipher,
    SSL_get_error,
    SSL_get_version,
    SSL_is_init_finished,
    SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER,
    SSL_MODE_AUTO_RETRY,
    SSL_new,
    SSL_pending,
    SSL_read,
    SSL_set0_rbio,
    SSL_set0_wbio,
    SSL_set_accept_state,
    SSL_set_connect_state,
    SSL_set_fd,
    SSL_set_mode,
    SSL_set_tlsext_host_name,
    SSL_shutdown,
    SSL_write,
    X509,
    X509Stack,
    X509_VERIFY_PARAM_set1_host,
    X509_VERIFY_PARAM_set1_ip,
    a2i_IPADDRESS,
    sk_X509_num,
    sk_X509_value,
)
from ingest.ext.sinks cimport ByteBuffer, forget_buffer, append_bytes, buffer_to_bytes, release_buffer
from ingest.ext.tls_context cimport Context
from ingest.ext.tls_errors cimport make_connection_error, make_library_error, pop_reason, with_reason
from ingest.ext.tls_verification cimport certificate_der, refused_certificate

import os
import ssl as standard

from ingest.ext.tls_errors import NoCertificateError

__all__ = ["RECORD_BYTES", "BufferedConnection", "Connection", "SocketConnection"]

RECORD_BYTES = 16384                    # plaintext of the largest record (RFC 8446 5.1)

cdef size_t CALL_MAX = 1 << 30          # OpenSSL takes lengths as int

# Input and output of the shared BIO. They are set for one call of OpenSSL. That call holds the GIL, which
# keeps other threads away.
cdef const uint8_t *source = NULL
cdef size_t source_left = 0
cdef ByteBuffer *target = NULL


cdef int read_source(BIO *self, char *room, int size) noexcept:
    global source, source_left
    cdef size_t length = min(<size_t> size, source_left)
    BIO_clear_flags(self, BIO_FLAGS_READ | BIO_FLAGS_SHOULD_RETRY)
    if length == 0:
        BIO_set_flags(self, BIO_FLAGS_READ | BIO_FLAGS_SHOULD_RETRY)
        return -1
    memcpy(room, source, length)
    source += length
    source_left -= length
    return <int> length


cdef int write_target(BIO *self, const char *data, int length) noexcept:
    if target == NULL:
        return -1
    try:
        append_bytes(target, <const uint8_t *> data, <size_t> length)
    except MemoryError:
        return -1
    return length


cdef long control(BIO *self, int command, long number, void *pointer) noexcept:
    return 1 if command == BIO_CTRL_FLUSH or command == BIO_CTRL_DUP else 0


cdef BIO *make_window_bio() except NULL:
    cdef BIO_METHOD *method = BIO_meth_new(BIO_TYPE_SOURCE_SINK | 0x7F, b"window")
    cdef BIO *bio
    if method == NULL:
        raise MemoryError
    BIO_meth_set_read(method, read_source)
    BIO_meth_set_write(method, write_target)
    BIO_meth_set_ctrl(method, control)
    bio = BIO_new(method)
    if bio == NULL:
        raise MemoryError
    BIO_set_init(bio, 1)
    return bio


cdef BIO *window_bio = make_window_bio()    # reads `source`, writes `target`


cdef class Connection:
    """One side of a TLS connection.

    Attributes:
        context: Settings of the connection.
        established: Whether the handshake is complete. The peer has then presented the certificate that the
            context requires.
    """

    def __cinit__(self, Context context not None, *arguments, **options):
        ERR_clear_error()
        self.context = context
        self.ssl = SSL_new(context.context)
        if self.ssl == NULL:
            raise make_library_error()
        SSL_set_mode(self.ssl, SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_AUTO_RETRY)
        if context.is_server:
            SSL_set_accept_state(self.ssl)
        else:
            SSL_set_connect_state(self.ssl)

    def __dealloc__(self):
        SSL_free(self.ssl)

    def peer_certificate(self):
        """Return the peer's certificate (DER), or None if it sent none or the handshake is incomplete.

        The certificate is verified if the context verifies peers.
        """
        cdef X509 *certificate = SSL_get0_peer_certificate(self.ssl)
        if certificate == NULL or not SSL_is_init_finished(self.ssl):
            return None
        return certificate_der(certificate)

    def verified_chain(self):
        """Return the peer's verified chain (DER), from its own certificate to the trust anchor.

        The list is empty if the peer sent no certificate or the context does not verify peers.
        """
        cdef X509Stack *chain = SSL_get0_verified_chain(self.ssl)
        cdef int at
        if not self.context.verifies_peers:
            return []
        found = [certificate_der(sk_X509_value(chain, at)) for at in range(sk_X509_num(chain))]
        # A peer whose own certificate is trusted may send more certificates. OpenSSL leaves them in the chain
        # behind that certificate, although they may be untrusted.
        return found if len(found) < 2 or found[len(found) - 1] in self.context.authorities else found[:1]

    def refused_certificate(self):
        """Return the refused certificate of the peer (DER), or None if no certificate was refused."""
        return refused_certificate(self.ssl)

    def version(self):
        """Return OpenSSL's name of the negotiated version ("TLSv1.3"), or "" during the handshake."""
        return (<bytes> SSL_get_version(self.ssl)).decode() if SSL_is_init_finished(self.ssl) else ""

    cdef int set_server_name(self, str server_name) except -1:
        """Send the server name in the handshake, and check the certificate for it if the context says so.

        Raises:
            ValueError: The name is missing or cannot be a server name.
            ssl.SSLError: OpenSSL does not accept the name.
        """
        cdef bytes name
        cdef ASN1_OCTET_STRING *address
        cdef int taken = 1
        if server_name is None:
            if self.context.check_host_name:
                raise ValueError("check_host_name needs a server name")
            return 0
        if not server_name or server_name.startswith("."):
            raise ValueError("a server name cannot be empty or begin with a dot")
        name = server_name.encode("idna")
        if b"\0" in name:
            raise ValueError("a server name cannot contain a null character")
        self.server_name = server_name
        address = a2i_IPADDRESS(name)
        ERR_clear_error()               # a2i_IPADDRESS leaves an error if the name is no address
        try:
            # RFC 6066 3: the server_name extension does not carry addresses.
            if address == NULL:
                taken = SSL_set_tlsext_host_name(self.ssl, name)
            if taken == 1 and self.context.check_host_name:
                param = SSL_get0_param(self.ssl)
                if address == NULL:
                    taken = X509_VERIFY_PARAM_set1_host(param, name, <size_t> len(name))
                else:
                    taken = X509_VERIFY_PARAM_set1_ip(
                        param, ASN1_STRING_get0_data(address), <size_t> ASN1_STRING_length(address)
                    )
        finally:
            ASN1_OCTET_STRING_free(address)
        if taken != 1:
            raise make_library_error()
        return 0

    cdef int require_peer_certificate(self) except -1:
        """Refuse a peer that has not presented the required certificate.

        OpenSSL's own verification is not enough. With a cipher suite without authentication (aNULL, plain
        PSK), a handshake completes although no certificate was sent and OpenSSL verified nothing.

        Raises:
            NoCertificateError: No certificate was verified.
        """
        cdef const SSL_CIPHER *suite
        if not self.context.requires_certificate:
            return 0
        if SSL_get0_peer_certificate(self.ssl) == NULL or sk_X509_num(SSL_get0_verified_chain(self.ssl)) < 1:
            suite = SSL_get_current_cipher(self.ssl)
            raise NoCertificateError((<bytes> SSL_CIPHER_get_name(suite)).decode() if suite != NULL else "?")
        return 0


@cython.final
cdef class BufferedConnection(Connection):
    """A connection without a socket. Only one thread at a time may use these connections.

    Args:
        context: Settings of the connection.
        server_name: Server name that a client requests.
    """

    def __cinit__(self, Context context not None, str server_name=None):
        BIO_up_ref(window_bio)
        SSL_set0_rbio(self.ssl, window_bio)
        BIO_up_ref(window_bio)
        SSL_set0_wbio(self.ssl, window_bio)
        self.set_server_name(server_name)

    def __dealloc__(self):
        release_buffer(&self.incoming)
        release_buffer(&self.outgoing)

    @property
    def is_ending(self):
        """Whether reading has ended. `read_into` reports how, after all plaintext was read."""
        return self.end_code != 0

    def feed(self, ciphertext):
        """Keep received ciphertext for the next `shake_hands` or `read_into`."""
        cdef Py_buffer view
        PyObject_GetBuffer(ciphertext, &view, PyBUF_SIMPLE)
        try:
            append_bytes(&self.incoming, <const uint8_t *> view.buf, <size_t> view.len)
        finally:
            PyBuffer_Release(&view)

    def shake_hands(self):
        """Continue the handshake with the received bytes. Return whether it is complete.

        Raises:
            ssl.SSLError: The handshake failed. `output` then returns the alert for the peer (RFC 8446 6.2).
            NoCertificateError: The handshake is complete, but the required certificate is missing.
        """
        global source, source_left, target
        cdef size_t length = self.incoming.length - self.incoming_at
        cdef int result
        source, source_left, target = self.incoming.data + self.incoming_at, length, &self.outgoing
        ERR_clear_error()
        result = SSL_do_handshake(self.ssl)
        target = NULL
        self.forget_incoming(length - source_left)
        if result != 1:
            if SSL_get_error(self.ssl, result) == SSL_ERROR_WANT_READ:
                return False
            raise make_connection_error(self.ssl, result, 0, self.server_name)
        self.require_peer_certificate()
        self.established = True
        return True

    def read_into(self, window not None):
        """Decrypt the available records into `window`.

        Returns:
            Number of bytes written to the front of `window`. 0 means that more ciphertext is needed, -1 that
            the peer has sent close_notify.

        Raises:
            ssl.SSLError: The peer violated TLS.
        """
        cdef size_t length = self.incoming.length - self.incoming_at
        cdef Py_ssize_t count
        cdef Py_buffer view
        PyObject_GetBuffer(window, &view, PyBUF_WRITABLE)
        try:
            count = self.decrypt(
                self.incoming.data + self.incoming_at, length, <uint8_t *> view.buf, <size_t> view.len,
                &self.outgoing,
            )
        finally:
            PyBuffer_Release(&view)
            self.forget_incoming(length - self.undecrypted)
        return count

    def write(self, bytes plaintext not None):
        """Encrypt plaintext, as one record if it fits. `output` returns the records."""
        self.encrypt(
            <const uint8_t *> PyBytes_AS_STRING(plaintext), <size_t> PyBytes_GET_SIZE(plaintext),
            &self.outgoing,
        )

    def close_notify(self):
        """Write the close_notify alert (RFC 8446 6.1), without waiting for that of the peer."""
        self.notify_close(&self.outgoing)

    def output(self):
        """Return the bytes to send, and forget them."""
        cdef bytes records = buffer_to_bytes(&self.outgoing)
        forget_buffer(&self.outgoing)
        return records

    cdef Py_ssize_t decrypt(
        self, const uint8_t *ciphertext, size_t length, uint8_t *room, size_t size, ByteBuffer *outgoing
    ) except -2:
        """Decrypt received bytes into `room`.

        If `room` is two records larger than `length`, all bytes are decrypted. Otherwise `undecrypted` is the
        number of bytes at the end that the caller must pass again.

        Returns:
            Number of bytes written to `room`, or CLOSED after the peer's close_notify.
        """
        global source, source_left, target
        cdef size_t filled = 0
        cdef int count = 1
        self.undecrypted = length
        if not self.end_code:
            source, source_left, target = ciphertext, length, outgoing
            ERR_clear_error()
            while filled < size:
                count = SSL_read(self.ssl, room + filled, <int> min(size - filled, CALL_MAX))
                if count <= 0:
                    break
                filled += <size_t> count
                if source_left == 0 and SSL_pending(self.ssl) == 0:
                    break               # another call would only report SSL_ERROR_WANT_READ
            self.undecrypted, target = source_left, NULL
            self.end_code = SSL_get_error(self.ssl, count) if count <= 0 else 0
            if self.end_code == SSL_ERROR_WANT_READ:
                self.end_code = 0
            elif self.end_code and self.end_code != SSL_ERROR_ZERO_RETURN:
                self.end_reason, self.end_text = pop_reason()
        if filled or not self.end_code:
            return <Py_ssize_t> filled      # return plaintext first; the next call reports the end
        if self.end_code == SSL_ERROR_ZERO_RETURN:
            return CLOSED
        # A new exception each time: a stored one would keep alive the frames that it passed through.
        raise with_reason(standard.SSLError, self.end_code, self.end_reason, self.end_text)

    cdef int encrypt(self, const uint8_t *plaintext, size_t length, ByteBuffer *outgoing) except -1:
        """Encrypt plaintext, as one record if it fits, and append the records to `outgoing`."""
        global target
        cdef int result
        target = outgoing
        ERR_clear_error()
        result = SSL_write(self.ssl, plaintext, <int> length)
        target = NULL
        if result != <int> length:
            raise make_connection_error(self.ssl, result, 0, self.server_name)
        return 0

    cdef int notify_close(self, ByteBuffer *outgoing) except -1:
        """Append the close_notify alert (RFC 8446 6.1) to `outgoing`."""
        global target
        target = outgoing
        ERR_clear_error()
        SSL_shutdown(self.ssl)          # ignore the result: the connection ends anyway
        ERR_clear_error()
        target = NULL
        return 0

    cdef int forget_incoming(self, size_t count) noexcept:
        """Mark the first `count` unprocessed bytes of `incoming` as processed."""
        self.incoming_at += count
        if self.incoming_at == self.incoming.length:
            forget_buffer(&self.incoming)
            self.incoming_at = 0
        return 0


@cython.final
cdef class SocketConnection(Connection):
    """A connection over a non-blocking socket.

    A call that would block raises `ssl.SSLWantReadError` or `ssl.SSLWantWriteError`. Repeat the call when the
    socket is ready. Errors of the socket are `OSError`.

    Args:
        context: Settings of the connection.
        fd: Descriptor of the socket. The caller owns it.
        server_name: Server name that a client requests.
    """

    def __cinit__(self, Context context not None, int fd, str server_name=None):
        self.fd = fd
        if SSL_set_fd(self.ssl, fd) != 1:
            raise make_library_error()
        self.set_server_name(server_name)

    def shake_hands(self):
        """Continue the handshake, and return when it is complete.

        Raises:
            ssl.SSLError: The handshake failed, or would block.
            NoCertificateError: The handshake is complete, but the required certificate is missing.
        """
        cdef int result, number
        self.require_open()
        with nogil:
            ERR_clear_error()
            result = SSL_do_handshake(self.ssl)
            number = errno
        if result != 1:
            raise make_connection_error(self.ssl, result, number, self.server_name)
        self.require_peer_certificate()
        self.established = True

    def send(self, plaintext):
        """Encrypt and send all of `plaintext`. Return its length.

        After `ssl.SSLWantWriteError`, some records may be sent already. Pass the same bytes again.
        """
        cdef Py_buffer view
        cdef int result, number, length
        self.require_open()
        PyObject_GetBuffer(plaintext, &view, PyBUF_SIMPLE)
        try:
            length = <int> min(<size_t> view.len, CALL_MAX)
            with nogil:
                ERR_clear_error()
                result = SSL_write(self.ssl, view.buf, length)
                number = errno
        finally:
            PyBuffer_Release(&view)
        if result <= 0:
            raise make_connection_error(self.ssl, result, number, self.server_name)
        return result

    def receive_into(self, buffer):
        """Read plaintext into `buffer`. Return the number of bytes, or 0 after the peer's close_notify.

        Raises:
            ssl.SSLEOFError: The network connection ended without close_notify.
            ssl.SSLError: The peer violated TLS, or the call would block.
        """
        cdef Py_buffer view
        cdef int result, number, length
        self.require_open()
        PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
        try:
            length = <int> min(<size_t> view.len, CALL_MAX)
            with nogil:
                ERR_clear_error()
                result = SSL_read(self.ssl, view.buf, length)
                number = errno
        finally:
            PyBuffer_Release(&view)
        if result > 0:
            return result
        if SSL_get_error(self.ssl, result) == SSL_ERROR_ZERO_RETURN:
            return 0
        raise make_connection_error(self.ssl, result, number, self.server_name)

    def has_pending(self):
        """Whether OpenSSL has decrypted plaintext, which a poll of the socket does not show."""
        return self.fd >= 0 and SSL_pending(self.ssl) > 0

    def close(self):
        """Send close_notify if that does not block. The socket is not used any more afterwards.

        The second call of SSL_shutdown reads the peer's close_notify if it has arrived already. Closing a
        socket with unread bytes would reset the connection.
        """
        cdef int result
        if self.fd < 0:
            return
        self.fd = -1
        with nogil:
            ERR_clear_error()
            result = SSL_shutdown(self.ssl)
            if result == 0:
                SSL_shutdown(self.ssl)
            ERR_clear_error()

    cdef int require_open(self) except -1:
        if self.fd < 0:
            raise OSError(EBADF, os.strerror(EBADF))
        return 0
