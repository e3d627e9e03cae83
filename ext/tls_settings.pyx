"""What OpenSSL can be told of a TLS context, but Python's `ssl` has no word for.

Suites of TLS 1.3, groups, signature algorithms, Diffie-Hellman parameters, no session cache, and what
becomes of a peer of whose issuer there is no certificate revocation list. As in `ingest.ext.tls`, it is done
with the very OpenSSL that `ssl` is linked with, found at run time; where that is not possible, `available`
says so and nothing is changed.
"""

from posix.dlfcn cimport RTLD_LAZY, dlopen, dlsym

from ingest.ext.tls cimport inside

import ssl as standard

__all__ = ["available", "forget_sessions", "forgive_crls", "restrict"]

cdef extern from "dlfcn.h" nogil:
    int RTLD_NOLOAD

# From OpenSSL's ssl.h and x509_vfy.h; part of its stable ABI since 1.1.
cdef enum:
    SSL_SESS_CACHE_OFF = 0
    SSL_CTRL_SET_SESS_CACHE_MODE = 44
    SSL_CTRL_SET_GROUPS_LIST = 92
    SSL_CTRL_SET_SIGALGS_LIST = 98
    SSL_CTRL_SET_DH_AUTO = 118
    X509_V_OK = 0
    X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT = 2
    X509_V_ERR_UNABLE_TO_GET_CRL = 3
    X509_V_ERR_UNABLE_TO_DECRYPT_CRL_SIGNATURE = 4
    X509_V_ERR_CRL_SIGNATURE_FAILURE = 8
    X509_V_ERR_CRL_NOT_YET_VALID = 11
    X509_V_ERR_CRL_HAS_EXPIRED = 12
    X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN = 19
    X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY = 20
    X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE = 21
    X509_V_ERR_CERT_REVOKED = 23
    X509_V_ERR_UNABLE_TO_GET_CRL_ISSUER = 33
    X509_V_ERR_KEYUSAGE_NO_CRL_SIGN = 35
    X509_V_ERR_UNHANDLED_CRITICAL_CRL_EXTENSION = 36
    X509_V_ERR_DIFFERENT_CRL_SCOPE = 44

ctypedef int (*VerifyCallback)(int, void *) noexcept nogil
ctypedef void (*Release)(void *) noexcept nogil

cdef struct Library:
    void *(*SSL_get_SSL_CTX)(const void *) noexcept
    long (*SSL_CTX_ctrl)(void *, int, long, void *) noexcept
    int (*SSL_CTX_set_ciphersuites)(void *, const char *) noexcept
    int (*SSL_CTX_get_verify_mode)(const void *) noexcept
    void (*SSL_CTX_set_verify)(void *, int, VerifyCallback) noexcept
    int (*X509_STORE_CTX_get_error)(const void *) noexcept nogil
    void (*X509_STORE_CTX_set_error)(void *, int) noexcept nogil
    int (*X509_STORE_CTX_get_error_depth)(const void *) noexcept nogil
    void *(*X509_STORE_CTX_get0_chain)(const void *) noexcept nogil
    int (*X509_STORE_CTX_get_num_untrusted)(const void *) noexcept nogil
    void *(*X509_STORE_CTX_get1_crls)(const void *, const void *) noexcept nogil
    const void *(*X509_get_issuer_name)(const void *) noexcept nogil
    int (*X509_CRL_get0_by_cert)(void *, void **, void *) noexcept nogil
    Release X509_CRL_free
    int (*OPENSSL_sk_num)(const void *) noexcept nogil
    void *(*OPENSSL_sk_value)(const void *, int) noexcept nogil
    void (*OPENSSL_sk_pop_free)(void *, Release) noexcept nogil
    void (*ERR_clear_error)() noexcept

cdef Library openssl


cdef bint load() except -1:
    """Fill `openssl`; the loader finds in a library also what that is linked with."""
    cdef bytes path
    cdef void *library
    cdef void **place = <void **> &openssl
    try:
        import _ssl
        path = _ssl.__file__.encode()
    except (ImportError, AttributeError):
        return False
    library = dlopen(path, RTLD_LAZY | RTLD_NOLOAD)
    if library == NULL:
        return False
    for name in (
        b"SSL_get_SSL_CTX", b"SSL_CTX_ctrl", b"SSL_CTX_set_ciphersuites", b"SSL_CTX_get_verify_mode",
        b"SSL_CTX_set_verify", b"X509_STORE_CTX_get_error", b"X509_STORE_CTX_set_error",
        b"X509_STORE_CTX_get_error_depth", b"X509_STORE_CTX_get0_chain", b"X509_STORE_CTX_get_num_untrusted",
        b"X509_STORE_CTX_get1_crls", b"X509_get_issuer_name", b"X509_CRL_get0_by_cert", b"X509_CRL_free",
        b"OPENSSL_sk_num", b"OPENSSL_sk_value", b"OPENSSL_sk_pop_free", b"ERR_clear_error",
    ):                                  # in the order of Library
        place[0] = dlsym(library, name)
        if place[0] == NULL:
            return False
        place += 1
    return True


cdef bint loaded = load()


cdef void *context_of(object context) except? NULL:
    """The SSL_CTX within an `ssl.SSLContext`; NULL where it cannot be told.

    It is asked of a connection that is made for it and never used: `inside` compares its pointers first.
    """
    cdef void *ssl
    if not loaded:
        return NULL
    serving = context.protocol == standard.PROTOCOL_TLS_SERVER
    name = None if serving else "localhost"
    probe = context.wrap_bio(standard.MemoryBIO(), standard.MemoryBIO(), serving, name)
    ssl = inside(probe)
    return openssl.SSL_get_SSL_CTX(ssl) if ssl != NULL else NULL


def available(context):
    """Whether `restrict` and `forgive_crls` can change this `ssl.SSLContext`."""
    return context_of(context) != NULL


def restrict(context, suites, groups, signatures):
    """Set what may be negotiated: suites of TLS 1.3, groups and signature algorithms, as OpenSSL lists them.

    Diffie-Hellman parameters, for suites with DHE, are as long as certificate and security level ask for.

    Returns:
        Whether that was possible.

    Raises:
        ValueError: OpenSSL does not know a name.
    """
    cdef bytes suites_list = suites.encode(), groups_list = groups.encode(), names = signatures.encode()
    cdef void *found = context_of(context)
    if found == NULL:
        return False
    if (
        openssl.SSL_CTX_set_ciphersuites(found, suites_list) != 1
        or openssl.SSL_CTX_ctrl(found, SSL_CTRL_SET_GROUPS_LIST, 0, <char *> groups_list) != 1
        or openssl.SSL_CTX_ctrl(found, SSL_CTRL_SET_SIGALGS_LIST, 0, <char *> names) != 1
        or openssl.SSL_CTX_ctrl(found, SSL_CTRL_SET_DH_AUTO, 1, NULL) != 1
    ):
        openssl.ERR_clear_error()
        raise ValueError(f"OpenSSL does not know all of {suites}, {groups}, {signatures}")
    return True


def forget_sessions(context):
    """Keep no session: one of TLS 1.2 could be resumed by its ID, and its certificate not be verified again.

    Returns:
        Whether that was possible.
    """
    cdef void *found = context_of(context)
    if found == NULL:
        return False
    openssl.SSL_CTX_ctrl(found, SSL_CTRL_SET_SESS_CACHE_MODE, SSL_SESS_CACHE_OFF, NULL)
    return True


cdef inline bint of_anchor(void *verification) noexcept nogil:
    """Whether the certificate in question is the first of its chain that we trust, or stands behind it.

    Behind a peer's own certificate that is trusted itself OpenSSL leaves what the peer has sent along.
    """
    cdef int depth = openssl.X509_STORE_CTX_get_error_depth(verification)
    return depth >= openssl.X509_STORE_CTX_get_num_untrusted(verification)


cdef inline bint no_usable_list(int error) noexcept nogil:
    return (
        error == X509_V_ERR_UNABLE_TO_GET_CRL
        or error == X509_V_ERR_UNABLE_TO_DECRYPT_CRL_SIGNATURE
        or error == X509_V_ERR_CRL_SIGNATURE_FAILURE
        or error == X509_V_ERR_CRL_NOT_YET_VALID
        or error == X509_V_ERR_CRL_HAS_EXPIRED
        or error == X509_V_ERR_UNABLE_TO_GET_CRL_ISSUER
        or error == X509_V_ERR_KEYUSAGE_NO_CRL_SIGN
        or error == X509_V_ERR_UNHANDLED_CRITICAL_CRL_EXTENSION
        or error == X509_V_ERR_DIFFERENT_CRL_SCOPE
    )


cdef inline bint nobody_vouches(int error) noexcept nogil:
    return (
        error == X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT
        or error == X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN
        or error == X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY
        or error == X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE
    )


cdef bint named(void *verification) noexcept nogil:
    """Whether a list names a certificate of the chain, whoever signed it: no ground to let anybody in."""
    cdef void *chain = openssl.X509_STORE_CTX_get0_chain(verification)
    cdef void *certificate
    cdef void *lists
    cdef void *entry
    cdef bint found = False
    cdef int i, j
    for i in range(openssl.OPENSSL_sk_num(chain)):
        certificate = openssl.OPENSSL_sk_value(chain, i)
        lists = openssl.X509_STORE_CTX_get1_crls(verification, openssl.X509_get_issuer_name(certificate))
        for j in range(openssl.OPENSSL_sk_num(lists)):
            if openssl.X509_CRL_get0_by_cert(openssl.OPENSSL_sk_value(lists, j), &entry, certificate) == 1:
                found = True
        openssl.OPENSSL_sk_pop_free(lists, openssl.X509_CRL_free)
        if found:
            return True
    return False


cdef inline int judge(int good, void *verification, bint missing, bint expired) noexcept nogil:
    cdef int error
    if good:
        return good
    error = openssl.X509_STORE_CTX_get_error(verification)
    if error == X509_V_ERR_UNABLE_TO_GET_CRL:
        good = missing
    elif error == X509_V_ERR_CRL_HAS_EXPIRED:
        good = expired
    if not good and no_usable_list(error):
        good = of_anchor(verification)
    if good:
        openssl.X509_STORE_CTX_set_error(verification, X509_V_OK)
    elif nobody_vouches(error) and named(verification):
        # It was left out of what is trusted because of that list; it is refused whatever is said.
        openssl.X509_STORE_CTX_set_error(verification, X509_V_ERR_CERT_REVOKED)
    return good


cdef int forgive_none(int good, void *verification) noexcept nogil:
    return judge(good, verification, False, False)


cdef int forgive_missing(int good, void *verification) noexcept nogil:
    return judge(good, verification, True, False)


cdef int forgive_expired(int good, void *verification) noexcept nogil:
    return judge(good, verification, False, True)


cdef int forgive_both(int good, void *verification) noexcept nogil:
    return judge(good, verification, True, True)


def forgive_crls(context, missing, expired):
    """Let in, where revocation is checked, peers of whose issuer there is no CRL, or only an old one.

    Old is one past its nextUpdate. A revoked peer is refused all the same. The certificate that we trust
    itself never needs a CRL (RFC 5280 6.1: an anchor is no part of the path), nor one that can be used. Who
    is refused since nobody vouches for a certificate that a list names is told that it is revoked.

    Returns:
        Whether that was possible.
    """
    cdef void *found = context_of(context)
    cdef VerifyCallback callback
    if found == NULL:
        return False
    if missing:
        callback = forgive_both if expired else forgive_missing
    else:
        callback = forgive_expired if expired else forgive_none
    openssl.SSL_CTX_set_verify(found, openssl.SSL_CTX_get_verify_mode(found), callback)
    return True
