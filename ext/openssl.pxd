"""The part of OpenSSL's API (3.0 and later) that the extensions use. The library is linked at build time.

Python's `ssl` may be linked with another copy of OpenSSL. That is sound as long as no object of one is given
to the other, and none is: contexts and connections are made, used and freed in
`ingest.ext.tls_context` and `ingest.ext.tls_connection`.
"""

from libc.stdint cimport uint8_t, uint64_t

cdef extern from *:
    """
    #include <openssl/opensslv.h>
    #if OPENSSL_VERSION_NUMBER < 0x30000000L
    #error "OpenSSL 3.0 or newer is needed"
    #endif
    """

cdef extern from "openssl/err.h" nogil:
    enum:
        ERR_LIB_PEM
        ERR_LIB_SSL
    void ERR_clear_error()
    unsigned long ERR_get_error()
    unsigned long ERR_peek_error()
    unsigned long ERR_peek_last_error()
    const char *ERR_reason_error_string(unsigned long)
    const char *ERR_lib_error_string(unsigned long)
    int ERR_GET_LIB(unsigned long)
    int ERR_GET_REASON(unsigned long)

cdef extern from "openssl/bio.h":
    ctypedef struct BIO:
        pass

# These callbacks use Python. A call of OpenSSL that may call them is made with the GIL held.
ctypedef int (*BIORead)(BIO *, char *, int) noexcept
ctypedef int (*BIOWrite)(BIO *, const char *, int) noexcept
ctypedef long (*BIOControl)(BIO *, int, long, void *) noexcept
ctypedef int (*PasswordCallback)(char *, int, int, void *) noexcept

cdef extern from "openssl/bio.h" nogil:
    ctypedef struct BIO_METHOD:
        pass
    enum:
        BIO_FLAGS_READ
        BIO_FLAGS_SHOULD_RETRY
        BIO_CTRL_FLUSH
        BIO_CTRL_DUP
        BIO_TYPE_SOURCE_SINK
    BIO_METHOD *BIO_meth_new(int, const char *)
    int BIO_meth_set_read(BIO_METHOD *, BIORead)
    int BIO_meth_set_write(BIO_METHOD *, BIOWrite)
    int BIO_meth_set_ctrl(BIO_METHOD *, BIOControl)
    BIO *BIO_new(const BIO_METHOD *)
    BIO *BIO_new_mem_buf(const void *, int)
    int BIO_up_ref(BIO *)
    int BIO_free(BIO *)
    void BIO_set_init(BIO *, int)
    void BIO_set_flags(BIO *, int)
    void BIO_clear_flags(BIO *, int)

cdef extern from "openssl/evp.h" nogil:
    ctypedef struct EVP_PKEY:
        pass
    void EVP_PKEY_free(EVP_PKEY *)

cdef extern from "openssl/objects.h" nogil:
    const char *OBJ_nid2ln(int)

cdef extern from "openssl/asn1.h" nogil:
    ctypedef struct ASN1_OCTET_STRING:
        pass
    void ASN1_OCTET_STRING_free(ASN1_OCTET_STRING *)
    const unsigned char *ASN1_STRING_get0_data(const ASN1_OCTET_STRING *)
    int ASN1_STRING_length(const ASN1_OCTET_STRING *)

cdef extern from "openssl/x509.h" nogil:
    ctypedef struct X509:
        pass
    ctypedef struct X509_CRL:
        pass
    ctypedef struct X509_NAME:
        pass
    ctypedef struct X509_REVOKED:
        pass
    ctypedef struct X509Stack "STACK_OF(X509)":
        pass
    ctypedef struct X509CRLStack "STACK_OF(X509_CRL)":
        pass
    void X509_free(X509 *)
    int X509_up_ref(X509 *)
    int i2d_X509(X509 *, uint8_t **)
    X509_NAME *X509_get_issuer_name(const X509 *)
    X509_CRL *d2i_X509_CRL(X509_CRL **, const uint8_t **, long)
    void X509_CRL_free(X509_CRL *)
    int X509_CRL_get0_by_cert(X509_CRL *, X509_REVOKED **, X509 *)
    int sk_X509_num(const X509Stack *)
    X509 *sk_X509_value(const X509Stack *, int)
    int sk_X509_CRL_num(const X509CRLStack *)
    X509_CRL *sk_X509_CRL_value(const X509CRLStack *, int)
    void sk_X509_CRL_pop_free(X509CRLStack *, void (*)(X509_CRL *))

cdef extern from "openssl/x509v3.h" nogil:
    enum: X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS
    int X509_check_ca(X509 *)
    ASN1_OCTET_STRING *a2i_IPADDRESS(const char *)

cdef extern from "openssl/x509_vfy.h" nogil:
    ctypedef struct X509_STORE:
        pass
    ctypedef struct X509_STORE_CTX:
        pass
    ctypedef struct X509_VERIFY_PARAM:
        pass
    enum:
        X509_V_OK
        X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT
        X509_V_ERR_UNABLE_TO_GET_CRL
        X509_V_ERR_UNABLE_TO_DECRYPT_CRL_SIGNATURE
        X509_V_ERR_CRL_SIGNATURE_FAILURE
        X509_V_ERR_CRL_NOT_YET_VALID
        X509_V_ERR_CRL_HAS_EXPIRED
        X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN
        X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY
        X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE
        X509_V_ERR_CERT_REVOKED
        X509_V_ERR_UNABLE_TO_GET_CRL_ISSUER
        X509_V_ERR_KEYUSAGE_NO_CRL_SIGN
        X509_V_ERR_UNHANDLED_CRITICAL_CRL_EXTENSION
        X509_V_ERR_DIFFERENT_CRL_SCOPE
        X509_V_ERR_HOSTNAME_MISMATCH
        X509_V_ERR_IP_ADDRESS_MISMATCH
        X509_V_FLAG_CRL_CHECK
        X509_V_FLAG_CRL_CHECK_ALL
        X509_V_FLAG_PARTIAL_CHAIN
        X509_V_FLAG_TRUSTED_FIRST
        X509_V_FLAG_X509_STRICT
    int X509_STORE_add_cert(X509_STORE *, X509 *)
    int X509_STORE_add_crl(X509_STORE *, X509_CRL *)
    int X509_VERIFY_PARAM_set_flags(X509_VERIFY_PARAM *, unsigned long)
    int X509_VERIFY_PARAM_clear_flags(X509_VERIFY_PARAM *, unsigned long)
    void X509_VERIFY_PARAM_set_hostflags(X509_VERIFY_PARAM *, unsigned int)
    int X509_VERIFY_PARAM_set1_host(X509_VERIFY_PARAM *, const char *, size_t)
    int X509_VERIFY_PARAM_set1_ip(X509_VERIFY_PARAM *, const unsigned char *, size_t)
    const char *X509_verify_cert_error_string(long)
    int X509_verify_cert(X509_STORE_CTX *)
    X509 *X509_STORE_CTX_get0_cert(const X509_STORE_CTX *)
    X509Stack *X509_STORE_CTX_get0_chain(const X509_STORE_CTX *)
    X509CRLStack *X509_STORE_CTX_get1_crls(const X509_STORE_CTX *, const X509_NAME *)
    void *X509_STORE_CTX_get_ex_data(const X509_STORE_CTX *, int)
    int X509_STORE_CTX_get_error(const X509_STORE_CTX *)
    int X509_STORE_CTX_get_error_depth(const X509_STORE_CTX *)
    int X509_STORE_CTX_get_num_untrusted(const X509_STORE_CTX *)
    void X509_STORE_CTX_set_error(X509_STORE_CTX *, int)

cdef extern from "openssl/pem.h" nogil:
    enum: PEM_R_NO_START_LINE
    X509 *PEM_read_bio_X509(BIO *, X509 **, PasswordCallback, void *)
    X509 *PEM_read_bio_X509_AUX(BIO *, X509 **, PasswordCallback, void *)
    EVP_PKEY *PEM_read_bio_PrivateKey(BIO *, EVP_PKEY **, PasswordCallback, void *)

cdef extern from "openssl/crypto.h" nogil:
    ctypedef struct CRYPTO_EX_DATA:
        pass
    const char *OpenSSL_version(int)
    enum: OPENSSL_VERSION

ctypedef int (*VerifyCallback)(int, X509_STORE_CTX *) noexcept nogil
ctypedef int (*VerifyCertificates)(X509_STORE_CTX *, void *) noexcept nogil
ctypedef void (*FreeExData)(void *, void *, CRYPTO_EX_DATA *, int, long, void *) noexcept nogil

cdef extern from "openssl/ssl.h" nogil:
    ctypedef struct SSL:
        pass
    ctypedef struct SSL_CTX:
        pass
    ctypedef struct SSL_METHOD:
        pass
    ctypedef struct SSL_CIPHER:
        pass
    ctypedef struct SSLCipherStack "STACK_OF(SSL_CIPHER)":
        pass
    enum:
        SSL_ERROR_NONE
        SSL_ERROR_SSL
        SSL_ERROR_WANT_READ
        SSL_ERROR_WANT_WRITE
        SSL_ERROR_SYSCALL
        SSL_ERROR_ZERO_RETURN
        SSL_MODE_RELEASE_BUFFERS
        SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER
        SSL_MODE_AUTO_RETRY
        SSL_R_CERTIFICATE_VERIFY_FAILED
        SSL_R_UNEXPECTED_EOF_WHILE_READING
        SSL_SESS_CACHE_OFF
        SSL_VERIFY_NONE
        SSL_VERIFY_PEER
        SSL_VERIFY_FAIL_IF_NO_PEER_CERT
    uint64_t SSL_OP_ALL
    uint64_t SSL_OP_CIPHER_SERVER_PREFERENCE
    uint64_t SSL_OP_DONT_INSERT_EMPTY_FRAGMENTS
    uint64_t SSL_OP_NO_COMPRESSION
    uint64_t SSL_OP_NO_RENEGOTIATION
    uint64_t SSL_OP_NO_SSLv3
    uint64_t SSL_OP_NO_TICKET

    const SSL_METHOD *TLS_server_method()
    const SSL_METHOD *TLS_client_method()
    SSL_CTX *SSL_CTX_new(const SSL_METHOD *)
    void SSL_CTX_free(SSL_CTX *)
    uint64_t SSL_CTX_set_options(SSL_CTX *, uint64_t)
    long SSL_CTX_set_mode(SSL_CTX *, long)
    long SSL_CTX_set_session_cache_mode(SSL_CTX *, long)
    int SSL_CTX_set_num_tickets(SSL_CTX *, size_t)
    int SSL_CTX_set_session_id_context(SSL_CTX *, const uint8_t *, unsigned int)
    int SSL_CTX_set_min_proto_version(SSL_CTX *, int)
    int SSL_CTX_set_max_proto_version(SSL_CTX *, int)
    int SSL_CTX_get_security_level(const SSL_CTX *)
    void SSL_CTX_set_security_level(SSL_CTX *, int)
    int SSL_CTX_set_cipher_list(SSL_CTX *, const char *)
    int SSL_CTX_set_ciphersuites(SSL_CTX *, const char *)
    long SSL_CTX_set1_groups_list(SSL_CTX *, const char *)
    long SSL_CTX_set1_sigalgs_list(SSL_CTX *, const char *)
    long SSL_CTX_set_dh_auto(SSL_CTX *, long)
    SSLCipherStack *SSL_CTX_get_ciphers(const SSL_CTX *)
    X509_VERIFY_PARAM *SSL_CTX_get0_param(SSL_CTX *)
    X509_STORE *SSL_CTX_get_cert_store(const SSL_CTX *)
    void SSL_CTX_set_verify(SSL_CTX *, int, VerifyCallback)
    int SSL_CTX_get_verify_mode(const SSL_CTX *)
    VerifyCallback SSL_CTX_get_verify_callback(const SSL_CTX *)
    void SSL_CTX_set_cert_verify_callback(SSL_CTX *, VerifyCertificates, void *)
    int SSL_CTX_use_certificate(SSL_CTX *, X509 *)
    int SSL_CTX_use_PrivateKey(SSL_CTX *, EVP_PKEY *)
    int SSL_CTX_check_private_key(const SSL_CTX *)
    long SSL_CTX_clear_chain_certs(SSL_CTX *)
    long SSL_CTX_add0_chain_cert(SSL_CTX *, X509 *)
    int sk_SSL_CIPHER_num(const SSLCipherStack *)
    const SSL_CIPHER *sk_SSL_CIPHER_value(const SSLCipherStack *, int)
    const char *SSL_CIPHER_get_name(const SSL_CIPHER *)
    const char *SSL_CIPHER_get_version(const SSL_CIPHER *)
    int SSL_CIPHER_get_kx_nid(const SSL_CIPHER *)
    int SSL_CIPHER_get_auth_nid(const SSL_CIPHER *)
    int SSL_CIPHER_is_aead(const SSL_CIPHER *)

    SSL *SSL_new(SSL_CTX *)
    void SSL_free(SSL *)
    int SSL_set_fd(SSL *, int)
    void SSL_set0_rbio(SSL *, BIO *)
    void SSL_set0_wbio(SSL *, BIO *)
    long SSL_set_mode(SSL *, long)
    void SSL_set_accept_state(SSL *)
    void SSL_set_connect_state(SSL *)
    long SSL_set_tlsext_host_name(SSL *, const char *)
    X509_VERIFY_PARAM *SSL_get0_param(SSL *)
    int SSL_do_handshake(SSL *)
    int SSL_read(SSL *, void *, int)
    int SSL_write(SSL *, const void *, int)
    int SSL_pending(const SSL *)
    int SSL_shutdown(SSL *)
    int SSL_get_error(const SSL *, int)
    int SSL_get_verify_mode(const SSL *)
    long SSL_get_verify_result(const SSL *)
    X509 *SSL_get0_peer_certificate(const SSL *)
    X509Stack *SSL_get0_verified_chain(const SSL *)
    const SSL_CIPHER *SSL_get_current_cipher(const SSL *)
    const char *SSL_get_version(const SSL *)
    int SSL_is_init_finished(const SSL *)
    int SSL_get_ex_data_X509_STORE_CTX_idx()
    int SSL_get_ex_new_index(long, void *, void *, void *, FreeExData)
    int SSL_set_ex_data(SSL *, int, void *)
    void *SSL_get_ex_data(const SSL *, int)
