"""The certificate that a peer offered and that was refused, which Python's `ssl` does not tell.

OpenSSL keeps a peer's certificate with the session only once it is verified, and `ssl` has nothing else to
ask. Here a context verifies exactly as it would, by X509_verify_cert, and what was refused is then kept with
the connection (SSL_set_ex_data) until that is freed. As in `ingest.ext.tls`, it is done with the very
OpenSSL that `ssl` is linked with; where that is not possible, `keep_refused` says so and nothing is changed.

The callback runs in the thread of the handshake, without the GIL, and touches that one connection only.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t
from posix.dlfcn cimport RTLD_LAZY, dlopen, dlsym

from ingest.ext.tls cimport inside
from ingest.ext.tls_settings cimport context_of

__all__ = ["keep_refused", "offered"]

cdef extern from "dlfcn.h" nogil:
    int RTLD_NOLOAD

cdef enum:
    CRYPTO_EX_INDEX_SSL = 0     # OpenSSL's crypto.h; part of its stable ABI since 1.1

ctypedef int (*Verify)(void *, void *) noexcept nogil
ctypedef void (*FreeData)(void *, void *, void *, int, long, void *) noexcept nogil

cdef struct Library:
    void (*SSL_CTX_set_cert_verify_callback)(void *, Verify, void *) noexcept
    int (*X509_verify_cert)(void *) noexcept nogil
    void *(*X509_STORE_CTX_get0_cert)(const void *) noexcept nogil
    void *(*X509_STORE_CTX_get_ex_data)(const void *, int) noexcept nogil
    int (*SSL_get_ex_data_X509_STORE_CTX_idx)() noexcept nogil
    int (*CRYPTO_get_ex_new_index)(int, long, void *, void *, void *, FreeData) noexcept
    int (*SSL_set_ex_data)(void *, int, void *) noexcept nogil
    void *(*SSL_get_ex_data)(const void *, int) noexcept nogil
    int (*X509_up_ref)(void *) noexcept nogil
    void (*X509_free)(void *) noexcept nogil
    int (*i2d_X509)(const void *, uint8_t **) noexcept nogil

cdef Library openssl
cdef int place = -1             # of our certificate among the data of a connection


cdef void forget(void *parent, void *kept, void *data, int index, long number, void *pointer) noexcept nogil:
    """With the connection, its refused certificate goes."""
    if kept != NULL:
        openssl.X509_free(kept)


cdef int verify(void *verification, void *pointer) noexcept nogil:
    """What OpenSSL does without a callback; a certificate that it refuses is kept."""
    cdef int good = openssl.X509_verify_cert(verification)
    cdef void *ssl
    cdef void *certificate
    cdef void *earlier
    if good > 0:
        return good
    ssl = openssl.X509_STORE_CTX_get_ex_data(verification, openssl.SSL_get_ex_data_X509_STORE_CTX_idx())
    certificate = openssl.X509_STORE_CTX_get0_cert(verification)
    if ssl != NULL and certificate != NULL:
        earlier = openssl.SSL_get_ex_data(ssl, place)
        if openssl.X509_up_ref(certificate) == 1:
            if openssl.SSL_set_ex_data(ssl, place, certificate) == 1:
                forget(NULL, earlier, NULL, 0, 0, NULL)
            else:
                openssl.X509_free(certificate)
    return good


cdef bint load() except -1:
    """Fill `openssl` and find a place for the certificate, once; whether both are there."""
    global place
    cdef bytes path
    cdef void *library
    cdef void **symbol = <void **> &openssl
    try:
        import _ssl
        path = _ssl.__file__.encode()
    except (ImportError, AttributeError):
        return False
    library = dlopen(path, RTLD_LAZY | RTLD_NOLOAD)
    if library == NULL:
        return False
    for name in (
        b"SSL_CTX_set_cert_verify_callback", b"X509_verify_cert", b"X509_STORE_CTX_get0_cert",
        b"X509_STORE_CTX_get_ex_data", b"SSL_get_ex_data_X509_STORE_CTX_idx", b"CRYPTO_get_ex_new_index",
        b"SSL_set_ex_data", b"SSL_get_ex_data", b"X509_up_ref", b"X509_free", b"i2d_X509",
    ):                                  # in the order of Library
        symbol[0] = dlsym(library, name)
        if symbol[0] == NULL:
            return False
        symbol += 1
    place = openssl.CRYPTO_get_ex_new_index(CRYPTO_EX_INDEX_SSL, 0, NULL, NULL, NULL, forget)
    return place >= 0


cdef bint loaded = load()


def keep_refused(context):
    """Have connections of an `ssl.SSLContext` keep a certificate that they refuse, for `offered`.

    Returns:
        Whether that was possible.
    """
    cdef void *found = context_of(context) if loaded else NULL
    if found == NULL:
        return False
    openssl.SSL_CTX_set_cert_verify_callback(found, verify, NULL)
    return True


def offered(connection):
    """The certificate that the peer of an `ssl.SSLObject` or `ssl.SSLSocket` offered and that was refused.

    Returns:
        DER; None where none was refused, or it cannot be told.
    """
    cdef void *ssl = inside(connection) if loaded else NULL
    cdef void *kept
    cdef bytes der
    cdef uint8_t *at
    cdef int length
    if ssl == NULL:
        return None
    kept = openssl.SSL_get_ex_data(ssl, place)
    length = openssl.i2d_X509(kept, NULL) if kept != NULL else 0
    if length <= 0:
        return None
    der = PyBytes_FromStringAndSize(NULL, length)
    at = <uint8_t *> <char *> der
    openssl.i2d_X509(kept, &at)         # moves `at` to the end
    return der
