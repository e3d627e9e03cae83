"""Records of a TLS connection whose handshake `ssl` has done, without a Python call for each of them.

Contexts, verification and handshake stay with the `ssl` module. What follows is done with the very OpenSSL
that `ssl` is linked with, found at run time, on the SSL that its object holds. Where that is not possible
(another Python than CPython, an OpenSSL hidden inside the interpreter) `records` says so, and callers go on
with `ssl` alone.

Instead of a memory BIO for each connection, which would copy everything once more and keep its largest size,
all connections share two BIOs: one reads from the window that was received last, one appends to the bytes to
be sent.
"""

cimport cython
from libc.stdint cimport uint8_t
from libc.string cimport memcpy
from posix.dlfcn cimport RTLD_LAZY, dlopen, dlsym

from ingest.ext.sinks cimport Kept, keep

import ssl as standard

__all__ = ["available"]

cdef extern from "dlfcn.h" nogil:
    int RTLD_NOLOAD

# From OpenSSL's ssl.h and bio.h; part of its stable ABI since 1.1.
cdef enum:
    SSL_ERROR_WANT_READ = 2
    SSL_ERROR_ZERO_RETURN = 6
    BIO_FLAGS_READ = 0x01
    BIO_FLAGS_SHOULD_RETRY = 0x08
    BIO_CTRL_FLUSH = 11
    BIO_CTRL_DUP = 12
    BIO_TYPE_SOURCE_SINK = 0x0400

ctypedef int (*ReadBIO)(void *, char *, int) noexcept
ctypedef int (*WriteBIO)(void *, const char *, int) noexcept
ctypedef long (*ControlBIO)(void *, int, long, void *) noexcept

cdef struct Library:
    int (*SSL_read)(void *, void *, int) noexcept
    int (*SSL_write)(void *, const void *, int) noexcept
    int (*SSL_pending)(const void *) noexcept
    int (*SSL_shutdown)(void *) noexcept
    int (*SSL_get_error)(const void *, int) noexcept
    void *(*SSL_get_SSL_CTX)(const void *) noexcept
    void (*SSL_set0_rbio)(void *, void *) noexcept
    void (*SSL_set0_wbio)(void *, void *) noexcept
    void *(*BIO_meth_new)(int, const char *) noexcept
    int (*BIO_meth_set_read)(void *, ReadBIO) noexcept
    int (*BIO_meth_set_write)(void *, WriteBIO) noexcept
    int (*BIO_meth_set_ctrl)(void *, ControlBIO) noexcept
    void *(*BIO_new)(const void *) noexcept
    int (*BIO_up_ref)(void *) noexcept
    void (*BIO_set_init)(void *, int) noexcept
    void (*BIO_set_flags)(void *, int) noexcept
    void (*BIO_clear_flags)(void *, int) noexcept
    void (*ERR_clear_error)() noexcept
    unsigned long (*ERR_get_error)() noexcept
    const char *(*ERR_reason_error_string)(unsigned long) noexcept

# The head of CPython's objects behind `ssl.SSLObject._sslobj` and `ssl.SSLContext`; see `inside`.
cdef struct ContextObject:
    Py_ssize_t references
    void *kind
    void *context

cdef struct ConnectionObject:
    Py_ssize_t references
    void *kind
    void *socket
    void *ssl
    void *context

cdef size_t READ_MAX = 1 << 30

cdef Library openssl
cdef void *bio = NULL                   # reads `source`, writes `target`
cdef const uint8_t *source = NULL
cdef size_t source_left = 0
cdef Kept *target = NULL


cdef int read_source(void *self, char *room, int size) noexcept:
    global source, source_left
    cdef size_t length = min(<size_t> size, source_left)
    openssl.BIO_clear_flags(self, BIO_FLAGS_READ | BIO_FLAGS_SHOULD_RETRY)
    if length == 0:
        openssl.BIO_set_flags(self, BIO_FLAGS_READ | BIO_FLAGS_SHOULD_RETRY)
        return -1
    memcpy(room, source, length)
    source += length
    source_left -= length
    return <int> length


cdef int write_target(void *self, const char *data, int length) noexcept:
    if target == NULL:
        return -1
    try:
        keep(target, <const uint8_t *> data, <size_t> length)
    except MemoryError:
        return -1
    return length


cdef long control(void *self, int command, long number, void *pointer) noexcept:
    return 1 if command == BIO_CTRL_FLUSH or command == BIO_CTRL_DUP else 0


cdef int resolve(void *library) except -1:
    """Fill `openssl`; the loader finds in a library also what that is linked with."""
    cdef void **place = <void **> &openssl
    for name in (
        b"SSL_read", b"SSL_write", b"SSL_pending", b"SSL_shutdown", b"SSL_get_error", b"SSL_get_SSL_CTX",
        b"SSL_set0_rbio", b"SSL_set0_wbio", b"BIO_meth_new", b"BIO_meth_set_read", b"BIO_meth_set_write",
        b"BIO_meth_set_ctrl", b"BIO_new", b"BIO_up_ref", b"BIO_set_init", b"BIO_set_flags",
        b"BIO_clear_flags", b"ERR_clear_error", b"ERR_get_error", b"ERR_reason_error_string",
    ):                                  # in the order of Library
        place[0] = dlsym(library, name)
        if place[0] == NULL:
            return 0
        place += 1
    return 1


cdef bint load() except -1:
    """Find OpenSSL and make the BIO, once; whether both are there."""
    global bio
    cdef bytes path
    cdef void *library
    cdef void *method
    try:
        import _ssl
        path = _ssl.__file__.encode()
    except (ImportError, AttributeError):
        return False
    library = dlopen(path, RTLD_LAZY | RTLD_NOLOAD)
    if library == NULL or not resolve(library):
        return False
    method = openssl.BIO_meth_new(BIO_TYPE_SOURCE_SINK | 0x7F, b"window")
    if method == NULL:
        return False
    openssl.BIO_meth_set_read(method, read_source)
    openssl.BIO_meth_set_write(method, write_target)
    openssl.BIO_meth_set_ctrl(method, control)
    bio = openssl.BIO_new(method)
    if bio == NULL:
        return False
    openssl.BIO_set_init(bio, 1)
    return True


cdef bint loaded = load()


cdef void *inside(object connection) except? NULL:
    """The SSL within an `ssl.SSLObject`; NULL where the objects of `ssl` are not laid out as expected.

    Before a pointer is used, two others beside it are compared with what Python says they are.
    """
    cdef ConnectionObject *outer
    cdef ContextObject *context
    cdef object kind, of
    own = getattr(connection, "_sslobj", None)
    if not loaded or type(own).__name__ != "_SSLSocket":
        return NULL
    if type(own).__basicsize__ < <Py_ssize_t> sizeof(ConnectionObject):
        return NULL
    kind, of = type(own), own.context
    outer = <ConnectionObject *> <void *> own
    if outer.kind != <void *> kind or outer.context != <void *> of or outer.ssl == NULL:
        return NULL
    context = <ContextObject *> outer.context
    if openssl.SSL_get_SSL_CTX(outer.ssl) != context.context:
        return NULL
    return outer.ssl


cpdef bint available(connection) except -1:
    """Whether `records` can take over this `ssl.SSLObject`."""
    return inside(connection) != NULL


cdef Records records(object connection, Kept *outgoing):
    """Take over an `ssl.SSLObject` whose handshake is complete; None where that is not possible.

    From now on nothing may be read, written or shut down through the object itself.
    """
    cdef void *found = inside(connection)
    cdef Records made
    if found == NULL:
        return None
    made = Records.__new__(Records)
    made.connection = connection
    made.ssl = found
    made.outgoing = outgoing
    openssl.BIO_up_ref(bio)
    openssl.SSL_set0_rbio(found, bio)
    openssl.BIO_up_ref(bio)
    openssl.SSL_set0_wbio(found, bio)
    return made


cdef str reason():
    """What OpenSSL says of its last error, in the spelling of the `ssl` module for OpenSSL 3.0.

    OpenSSL 3.2 and later end with "record layer failure" whatever was wrong with a record: the error before
    it is the telling one. They also call the alerts of SSL 3 those of "ssl/tls".
    """
    cdef const char *text
    cdef unsigned long error = openssl.ERR_get_error()
    found = "UNKNOWN"
    while error:                        # the oldest first; causes may come before the last one
        text = openssl.ERR_reason_error_string(error)
        name = (<bytes> text).decode().upper().replace(" ", "_") if text != NULL else "UNKNOWN"
        if name != "RECORD_LAYER_FAILURE" or found == "UNKNOWN":
            found = name
        error = openssl.ERR_get_error()
    return found.replace("SSL/TLS_ALERT", "SSLV3_ALERT")


cdef object failure(int code, str reason):
    error = standard.SSLError(code, f"[SSL: {reason}]")
    error.reason = reason
    return error


@cython.final
cdef class Records:
    """One side of one connection. All of them are used by one thread."""

    cdef Py_ssize_t read(
        self, const uint8_t *ciphertext, size_t length, uint8_t *room, size_t size
    ) except -2:
        """Decrypt what was received. `room` has place for `length` bytes and two records more, so that
        nothing is left over.

        Returns the bytes written to `room`, or CLOSED after the peer's close_notify.
        """
        global source, source_left, target
        cdef size_t filled = 0
        cdef int count
        if not self.ending:
            source, source_left, target = ciphertext, length, self.outgoing
            openssl.ERR_clear_error()
            while True:
                count = openssl.SSL_read(self.ssl, room + filled, <int> min(size - filled, READ_MAX))
                if count <= 0:
                    break
                filled += <size_t> count
                if source_left == 0 and openssl.SSL_pending(self.ssl) == 0:
                    break               # to hear that it wants more would cost a call
            target = NULL
            self.ending = openssl.SSL_get_error(self.ssl, count) if count <= 0 else 0
            if self.ending == SSL_ERROR_WANT_READ:
                self.ending = 0
            elif self.ending and self.ending != SSL_ERROR_ZERO_RETURN:
                self.reason = reason()
        if filled or not self.ending:
            return <Py_ssize_t> filled      # how it ended is for the next call, after what came before
        if self.ending == SSL_ERROR_ZERO_RETURN:
            return CLOSED
        raise failure(self.ending, self.reason)

    cdef int write(self, const uint8_t *plaintext, size_t length) except -1:
        """Encrypt; what fits in one record becomes one."""
        global target
        cdef int count
        target = self.outgoing
        openssl.ERR_clear_error()
        count = openssl.SSL_write(self.ssl, plaintext, <int> length)
        target = NULL
        if count != <int> length:
            raise failure(openssl.SSL_get_error(self.ssl, count), reason())
        return 0

    cdef int close_notify(self) except -1:
        """Say that nothing more is sent (RFC 8446 6.1)."""
        global target
        target = self.outgoing
        openssl.ERR_clear_error()
        openssl.SSL_shutdown(self.ssl)      # whatever it says: there is nobody to tell
        openssl.ERR_clear_error()
        target = NULL
        return 0
