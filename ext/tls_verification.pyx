"""Verification of a peer's certificate chain by OpenSSL, with two additions.

1. A refused certificate is kept with its connection. OpenSSL keeps only verified certificates in the session,
   but a log line must name the refused one.
2. The configuration can permit a missing or expired revocation list (CRL).

The callbacks run in the thread of the handshake, with or without the GIL. They access only the connection
that is being verified.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t

from ingest.ext.openssl cimport (
    CRYPTO_EX_DATA,
    SSL,
    SSL_CTX,
    X509,
    X509_REVOKED,
    X509_STORE_CTX,
    SSL_CTX_get_verify_mode,
    SSL_CTX_set_cert_verify_callback,
    SSL_CTX_set_verify,
    SSL_get_ex_data,
    SSL_get_ex_data_X509_STORE_CTX_idx,
    SSL_get_ex_new_index,
    SSL_set_ex_data,
    VerifyCallback,
    X509CRLStack,
    X509Stack,
    X509_CRL_free,
    X509_CRL_get0_by_cert,
    X509_free,
    X509_get_issuer_name,
    X509_STORE_CTX_get0_cert,
    X509_STORE_CTX_get0_chain,
    X509_STORE_CTX_get1_crls,
    X509_STORE_CTX_get_error,
    X509_STORE_CTX_get_error_depth,
    X509_STORE_CTX_get_ex_data,
    X509_STORE_CTX_get_num_untrusted,
    X509_STORE_CTX_set_error,
    X509_up_ref,
    X509_V_ERR_CERT_REVOKED,
    X509_V_ERR_CRL_HAS_EXPIRED,
    X509_V_ERR_CRL_NOT_YET_VALID,
    X509_V_ERR_CRL_SIGNATURE_FAILURE,
    X509_V_ERR_DIFFERENT_CRL_SCOPE,
    X509_V_ERR_KEYUSAGE_NO_CRL_SIGN,
    X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN,
    X509_V_ERR_UNABLE_TO_DECRYPT_CRL_SIGNATURE,
    X509_V_ERR_UNABLE_TO_GET_CRL,
    X509_V_ERR_UNABLE_TO_GET_CRL_ISSUER,
    X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT,
    X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY,
    X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE,
    X509_V_ERR_UNHANDLED_CRITICAL_CRL_EXTENSION,
    X509_V_OK,
    X509_verify_cert,
    i2d_X509,
    sk_X509_CRL_num,
    sk_X509_CRL_pop_free,
    sk_X509_CRL_value,
    sk_X509_num,
    sk_X509_value,
)

# --- the refused certificate

cdef int refused_index = -1     # index of the refused certificate in the ex_data of an SSL


cdef void free_refused(
    void *parent, void *kept, CRYPTO_EX_DATA *data, int index, long number, void *pointer
) noexcept nogil:
    """Free the refused certificate of a connection that is freed."""
    if kept != NULL:
        X509_free(<X509 *> kept)


cdef int verify_chain(X509_STORE_CTX *verification, void *pointer) noexcept nogil:
    """Verify the chain as OpenSSL does by default, and keep a refused certificate."""
    cdef int good = X509_verify_cert(verification)
    cdef SSL *ssl
    cdef X509 *certificate
    cdef void *earlier
    if good > 0:
        return good
    ssl = <SSL *> X509_STORE_CTX_get_ex_data(verification, SSL_get_ex_data_X509_STORE_CTX_idx())
    certificate = X509_STORE_CTX_get0_cert(verification)
    if ssl != NULL and certificate != NULL:
        earlier = SSL_get_ex_data(ssl, refused_index)
        if X509_up_ref(certificate) == 1:
            if SSL_set_ex_data(ssl, refused_index, certificate) == 1:
                free_refused(NULL, earlier, NULL, 0, 0, NULL)
            else:
                X509_free(certificate)
    return good


cdef int verify_and_keep_refused(SSL_CTX *context) except -1:
    """Make the connections of a context keep a refused certificate."""
    global refused_index
    if refused_index < 0:
        refused_index = SSL_get_ex_new_index(0, NULL, NULL, NULL, free_refused)
        if refused_index < 0:
            raise MemoryError
    SSL_CTX_set_cert_verify_callback(context, verify_chain, NULL)
    return 0


cdef bytes refused_certificate(SSL *ssl):
    """Return the refused certificate (DER), or None if no certificate was refused."""
    cdef X509 *kept = <X509 *> SSL_get_ex_data(ssl, refused_index) if refused_index >= 0 else NULL
    return certificate_der(kept) if kept != NULL else None


cdef bytes certificate_der(X509 *certificate):
    """Encode a certificate as DER. Return None if OpenSSL cannot."""
    cdef int length = i2d_X509(certificate, NULL)
    cdef bytes der
    cdef uint8_t *end
    if length <= 0:
        return None
    der = PyBytes_FromStringAndSize(NULL, length)
    end = <uint8_t *> <char *> der
    i2d_X509(certificate, &end)         # moves `end` behind the written bytes
    return der


# --- revocation lists

cdef inline bint is_anchor(X509_STORE_CTX *verification) noexcept nogil:
    """Whether the current certificate is the trust anchor of its chain, or stands behind it.

    If the peer's own certificate is trusted, OpenSSL leaves other certificates of the peer behind it.
    """
    cdef int depth = X509_STORE_CTX_get_error_depth(verification)
    return depth >= X509_STORE_CTX_get_num_untrusted(verification)


cdef inline bint lacks_usable_crl(int error) noexcept nogil:
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


cdef inline bint lacks_trusted_issuer(int error) noexcept nogil:
    return (
        error == X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT
        or error == X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN
        or error == X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY
        or error == X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE
    )


cdef bint is_listed_as_revoked(X509_STORE_CTX *verification) noexcept nogil:
    """Whether a CRL names a certificate of the chain.

    The signature of the CRL is not checked. That is safe, because the result only chooses the alert of a peer
    that is refused anyway.
    """
    cdef X509Stack *chain = X509_STORE_CTX_get0_chain(verification)
    cdef X509 *certificate
    cdef X509CRLStack *lists
    cdef X509_REVOKED *entry
    cdef bint found = False
    cdef int i, j
    for i in range(sk_X509_num(chain)):
        certificate = sk_X509_value(chain, i)
        lists = X509_STORE_CTX_get1_crls(verification, X509_get_issuer_name(certificate))
        for j in range(sk_X509_CRL_num(lists)):
            if X509_CRL_get0_by_cert(sk_X509_CRL_value(lists, j), &entry, certificate) == 1:
                found = True
        sk_X509_CRL_pop_free(lists, X509_CRL_free)
        if found:
            return True
    return False


cdef inline int decide(int good, X509_STORE_CTX *verification, bint missing, bint expired) noexcept nogil:
    cdef int error
    if good:
        return good
    error = X509_STORE_CTX_get_error(verification)
    if error == X509_V_ERR_UNABLE_TO_GET_CRL:
        good = missing
    elif error == X509_V_ERR_CRL_HAS_EXPIRED:
        good = expired
    if not good and lacks_usable_crl(error):
        good = is_anchor(verification)
    if good:
        X509_STORE_CTX_set_error(verification, X509_V_OK)
    elif lacks_trusted_issuer(error) and is_listed_as_revoked(verification):
        # If an untrusted certificate is also listed in a CRL, report CERTIFICATE_REVOKED instead of
        # UNKNOWN_CA, which gives the peer more detail. The certificate is refused in both cases.
        X509_STORE_CTX_set_error(verification, X509_V_ERR_CERT_REVOKED)
    return good


cdef int forgive_none(int good, X509_STORE_CTX *verification) noexcept nogil:
    return decide(good, verification, False, False)


cdef int forgive_missing(int good, X509_STORE_CTX *verification) noexcept nogil:
    return decide(good, verification, True, False)


cdef int forgive_expired(int good, X509_STORE_CTX *verification) noexcept nogil:
    return decide(good, verification, False, True)


cdef int forgive_both(int good, X509_STORE_CTX *verification) noexcept nogil:
    return decide(good, verification, True, True)


cdef int forgive_crls(SSL_CTX *context, bint missing, bint expired) except -1:
    """Accept peers whose issuer has no CRL (`missing`) or a CRL past its nextUpdate (`expired`).

    A revoked peer is always refused. A trust anchor needs no usable CRL (RFC 5280 6.1: the anchor is no part
    of the path). If an untrusted certificate is also listed in a CRL, it is refused as revoked instead of as
    unknown.
    """
    cdef VerifyCallback callback
    if missing:
        callback = forgive_both if expired else forgive_missing
    else:
        callback = forgive_expired if expired else forgive_none
    SSL_CTX_set_verify(context, SSL_CTX_get_verify_mode(context), callback)
    return 0
