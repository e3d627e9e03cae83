"""Context: TLS settings that all connections of a listener or a destination share.

They are versions, cipher suites, our certificate and the trust anchors. A context is set up once, and
connections only read it. The constructor makes the settings that hold for all roles. Session tickets, session
cache, renegotiation, compression and key log are off, and no method can enable them.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t
from libc.string cimport memcpy

from ingest.ext.openssl cimport (
    BIO,
    ERR_LIB_PEM,
    EVP_PKEY,
    OPENSSL_VERSION,
    PEM_R_NO_START_LINE,
    SSL_CIPHER,
    SSL_MODE_RELEASE_BUFFERS,
    SSL_OP_ALL,
    SSL_OP_CIPHER_SERVER_PREFERENCE,
    SSL_OP_DONT_INSERT_EMPTY_FRAGMENTS,
    SSL_OP_NO_COMPRESSION,
    SSL_OP_NO_RENEGOTIATION,
    SSL_OP_NO_SSLv3,
    SSL_OP_NO_TICKET,
    SSL_SESS_CACHE_OFF,
    SSL_VERIFY_FAIL_IF_NO_PEER_CERT,
    SSL_VERIFY_PEER,
    X509,
    X509_CRL,
    X509_STORE,
    BIO_free,
    BIO_new_mem_buf,
    ERR_clear_error,
    ERR_GET_LIB,
    ERR_GET_REASON,
    ERR_peek_last_error,
    EVP_PKEY_free,
    OBJ_nid2ln,
    OpenSSL_version,
    PEM_read_bio_PrivateKey,
    PEM_read_bio_X509,
    PEM_read_bio_X509_AUX,
    SSL_CIPHER_get_auth_nid,
    SSL_CIPHER_get_kx_nid,
    SSL_CIPHER_get_name,
    SSL_CIPHER_get_version,
    SSL_CIPHER_is_aead,
    SSL_CTX_add0_chain_cert,
    SSL_CTX_check_private_key,
    SSL_CTX_clear_chain_certs,
    SSL_CTX_free,
    SSL_CTX_get0_param,
    SSL_CTX_get_cert_store,
    SSL_CTX_get_ciphers,
    SSL_CTX_get_security_level,
    SSL_CTX_get_verify_callback,
    SSL_CTX_new,
    SSL_CTX_set1_groups_list,
    SSL_CTX_set1_sigalgs_list,
    SSL_CTX_set_cipher_list,
    SSL_CTX_set_ciphersuites,
    SSL_CTX_set_dh_auto,
    SSL_CTX_set_max_proto_version,
    SSL_CTX_set_min_proto_version,
    SSL_CTX_set_mode,
    SSL_CTX_set_num_tickets,
    SSL_CTX_set_options,
    SSL_CTX_set_security_level,
    SSL_CTX_set_session_cache_mode,
    SSL_CTX_set_session_id_context,
    SSL_CTX_set_verify,
    SSL_CTX_use_certificate,
    SSL_CTX_use_PrivateKey,
    SSLCipherStack,
    TLS_client_method,
    TLS_server_method,
    X509_check_ca,
    X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS,
    X509_CRL_free,
    X509_free,
    X509_STORE_add_cert,
    X509_STORE_add_crl,
    X509_V_FLAG_CRL_CHECK,
    X509_V_FLAG_CRL_CHECK_ALL,
    X509_V_FLAG_PARTIAL_CHAIN,
    X509_V_FLAG_TRUSTED_FIRST,
    X509_V_FLAG_X509_STRICT,
    X509_VERIFY_PARAM_clear_flags,
    X509_VERIFY_PARAM_set_flags,
    X509_VERIFY_PARAM_set_hostflags,
    d2i_X509_CRL,
    sk_SSL_CIPHER_num,
    sk_SSL_CIPHER_value,
)
from ingest.ext.tls_errors cimport make_library_error
from ingest.ext.tls_verification cimport certificate_der, forgive_crls, verify_and_keep_refused

from collections import namedtuple

__all__ = ["NEWEST", "TLS_1_0", "TLS_1_1", "TLS_1_2", "TLS_1_3", "CipherSuite", "Context", "openssl_version"]

# RFC 8446 4.2.1: protocol version numbers.
TLS_1_0, TLS_1_1, TLS_1_2, TLS_1_3 = 0x0301, 0x0302, 0x0303, 0x0304
NEWEST = 0                              # as a maximum: the newest version of OpenSSL

cdef int SECURITY_LEVEL = 2             # OpenSSL refuses RSA and DH below 2048 bits, and SHA-1

CipherSuite = namedtuple("CipherSuite", "name protocol key_exchange authentication is_aead")


def openssl_version():
    """Return the version text of the linked OpenSSL library."""
    return (<bytes> OpenSSL_version(OPENSSL_VERSION)).decode()


cdef int pass_password(char *room, int size, int writing, void *pointer) noexcept:
    """Pass the password of a key to OpenSSL (callback of PEM_read_bio_PrivateKey).

    `pointer` is a list of two items: the function that returns the password, and the exception that the
    function raised. Without a callback, OpenSSL would ask for the password on the terminal.
    """
    cdef bytes password
    source = <list> pointer
    if source[0] is None:
        return -1
    try:
        password = source[0]()
        if PyBytes_GET_SIZE(password) > size:
            raise ValueError(f"a password cannot be longer than {size} bytes")
    except BaseException as error:
        source[1] = error
        return -1
    memcpy(room, PyBytes_AS_STRING(password), <size_t> PyBytes_GET_SIZE(password))
    return <int> PyBytes_GET_SIZE(password)


cdef bytes encode_c_string(str text):
    """Encode text for OpenSSL, which reads it up to a null character.

    Raises:
        ValueError: The text contains a null character.
    """
    cdef bytes encoded = text.encode()
    if b"\0" in encoded:
        raise ValueError("embedded null character")
    return encoded


cdef bint is_end_of_pem() noexcept:
    """Whether the last error only means that no further PEM block follows."""
    cdef unsigned long error = ERR_peek_last_error()
    return ERR_GET_LIB(error) == ERR_LIB_PEM and ERR_GET_REASON(error) == PEM_R_NO_START_LINE


cdef BIO *open_memory_bio(bytes content) except NULL:
    cdef BIO *bio = BIO_new_mem_buf(PyBytes_AS_STRING(content), <int> PyBytes_GET_SIZE(content))
    if bio == NULL:
        raise MemoryError
    return bio


@cython.final
cdef class Context:
    """The TLS settings of one role. A new context has no certificate and trust anchor, and verifies no peer.

    Errors of OpenSSL are raised as `ssl.SSLError`. Its `reason` is OpenSSL's name of the cause.

    Args:
        is_server: Whether the connections accept handshakes. Otherwise they begin handshakes.

    Attributes:
        requires_certificate: Whether the peer must present a certificate.
        verifies_peers: Whether a certificate that the peer presents is verified.
        check_host_name: Whether a server's certificate must contain the name that the client requested.
    """

    def __cinit__(self, *, bint is_server):
        self.is_server = is_server
        self.authorities = set()
        ERR_clear_error()
        self.context = SSL_CTX_new(TLS_server_method() if is_server else TLS_client_method())
        if self.context == NULL:
            raise make_library_error()
        # RFC 9325: no compression (3.3), no session tickets (3.4), no renegotiation (3.5).
        SSL_CTX_set_options(
            self.context,
            (SSL_OP_ALL & ~SSL_OP_DONT_INSERT_EMPTY_FRAGMENTS)
            | SSL_OP_NO_SSLv3
            | SSL_OP_NO_COMPRESSION
            | SSL_OP_NO_TICKET
            | SSL_OP_NO_RENEGOTIATION
            | SSL_OP_CIPHER_SERVER_PREFERENCE
        )
        # Distributions build OpenSSL with different default levels. A cipher list can still set another level
        # ("@SECLEVEL=0").
        SSL_CTX_set_security_level(self.context, SECURITY_LEVEL)
        # OpenSSL does not verify the peer of a resumed session again. A certificate that was revoked in the
        # meantime would be accepted. TLS 1.2 can resume by session ID, which needs the cache. TLS 1.3 resumes
        # by tickets only.
        SSL_CTX_set_session_cache_mode(self.context, SSL_SESS_CACHE_OFF)
        SSL_CTX_set_num_tickets(self.context, 0)
        SSL_CTX_set_session_id_context(self.context, <const uint8_t *> b"ingest", 6)
        # An idle connection frees its record buffers, which saves about 34 KiB.
        SSL_CTX_set_mode(self.context, SSL_MODE_RELEASE_BUFFERS)
        # A trust anchor need not be self-signed: a site may trust a modality's own certificate from another
        # authority, as with DCMTK and Orthanc. Certificates made by modalities lack extensions that RFC 5280
        # requires. The strict checks therefore stay off, even if OpenSSL changes its default.
        param = SSL_CTX_get0_param(self.context)
        X509_VERIFY_PARAM_set_flags(param, X509_V_FLAG_PARTIAL_CHAIN | X509_V_FLAG_TRUSTED_FIRST)
        X509_VERIFY_PARAM_clear_flags(param, X509_V_FLAG_X509_STRICT)
        X509_VERIFY_PARAM_set_hostflags(param, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS)
        verify_and_keep_refused(self.context)

    def __dealloc__(self):
        SSL_CTX_free(self.context)

    # --- negotiation

    def set_versions(self, int minimum, int maximum=0):
        """Set the oldest and the newest protocol version."""
        SSL_CTX_set_min_proto_version(self.context, minimum)
        SSL_CTX_set_max_proto_version(self.context, maximum)

    def set_ciphers(self, str ciphers not None):
        """Set the cipher suites up to TLS 1.2, as an OpenSSL cipher list.

        Raises:
            ssl.SSLError: OpenSSL finds no cipher in the list.
            ValueError: The list contains a null character.
        """
        cdef bytes listed = encode_c_string(ciphers)
        ERR_clear_error()
        if SSL_CTX_set_cipher_list(self.context, listed) != 1:
            raise make_library_error()

    def restrict(self, str suites not None, str groups not None, str signatures not None):
        """Set the TLS 1.3 suites, groups and signature algorithms, as OpenSSL lists.

        OpenSSL chooses the length of DHE parameters by the certificate and the security level.

        Raises:
            ValueError: OpenSSL does not support one of the names.
        """
        cdef bytes suite_list = encode_c_string(suites), group_list = encode_c_string(groups)
        cdef bytes names = encode_c_string(signatures)
        if (
            SSL_CTX_set_ciphersuites(self.context, suite_list) != 1
            or SSL_CTX_set1_groups_list(self.context, group_list) != 1
            or SSL_CTX_set1_sigalgs_list(self.context, names) != 1
            or SSL_CTX_set_dh_auto(self.context, 1) != 1
        ):
            ERR_clear_error()
            raise ValueError(f"OpenSSL does not support one of {suites}, {groups}, {signatures}")

    def list_ciphers(self):
        """Return the cipher suites of all versions, in order of preference."""
        cdef SSLCipherStack *suites = SSL_CTX_get_ciphers(self.context)
        cdef const SSL_CIPHER *suite
        cdef int at
        found = []
        for at in range(sk_SSL_CIPHER_num(suites)):
            suite = sk_SSL_CIPHER_value(suites, at)
            found.append(
                CipherSuite(
                    (<bytes> SSL_CIPHER_get_name(suite)).decode(),
                    (<bytes> SSL_CIPHER_get_version(suite)).decode(),
                    (<bytes> OBJ_nid2ln(SSL_CIPHER_get_kx_nid(suite))).decode(),
                    (<bytes> OBJ_nid2ln(SSL_CIPHER_get_auth_nid(suite))).decode(),
                    bool(SSL_CIPHER_is_aead(suite)),
                )
            )
        return found

    @property
    def security_level(self):
        """OpenSSL's security level. Level 2 requires RSA and DH of 2048 bits or more, level 0 permits all."""
        return SSL_CTX_get_security_level(self.context)

    # --- our own certificate

    def load_pair(self, bytes chain not None, bytes key not None, password=None):
        """Load our certificate with its chain, and its private key, both PEM.

        Args:
            chain: The certificate, followed by the certificates of its issuers.
            key: The private key, which may be encrypted.
            password: Function that returns the password of an encrypted key. Its exceptions are passed on.

        Raises:
            ssl.SSLError: OpenSSL cannot read or refuses one of them, or key and certificate do not match.
        """
        ERR_clear_error()
        self.read_chain(chain)
        self.read_key(key, password)
        if SSL_CTX_check_private_key(self.context) != 1:
            raise make_library_error()

    cdef int read_chain(self, bytes chain) except -1:
        cdef BIO *bio = open_memory_bio(chain)
        cdef X509 *certificate
        cdef int used
        no_password = [None, None]
        try:
            certificate = PEM_read_bio_X509_AUX(bio, NULL, pass_password, <void *> no_password)
            if certificate == NULL:
                raise make_library_error()
            used = SSL_CTX_use_certificate(self.context, certificate)
            X509_free(certificate)      # the context has its own reference
            if used != 1:
                raise make_library_error()
            SSL_CTX_clear_chain_certs(self.context)
            while True:
                certificate = PEM_read_bio_X509(bio, NULL, pass_password, <void *> no_password)
                if certificate == NULL:
                    break
                if SSL_CTX_add0_chain_cert(self.context, certificate) != 1:
                    X509_free(certificate)
                    raise make_library_error()
            if not is_end_of_pem():
                raise make_library_error()
            ERR_clear_error()
        finally:
            BIO_free(bio)
        return 0

    cdef int read_key(self, bytes key, password) except -1:
        cdef BIO *bio = open_memory_bio(key)
        cdef EVP_PKEY *private
        cdef int used
        source = [password, None]
        try:
            private = PEM_read_bio_PrivateKey(bio, NULL, pass_password, <void *> source)
            if source[1] is not None:
                EVP_PKEY_free(private)
                ERR_clear_error()
                raise source[1]
            if private == NULL:
                raise make_library_error()
            used = SSL_CTX_use_PrivateKey(self.context, private)
            EVP_PKEY_free(private)      # the context has its own reference
            if used != 1:
                raise make_library_error()
        finally:
            BIO_free(bio)
        return 0

    # --- peers

    def trust(self, bytes certificates not None):
        """Trust every certificate in a PEM text.

        Raises:
            ssl.SSLError: The text has no certificate, or OpenSSL cannot read one.
        """
        cdef X509_STORE *store = SSL_CTX_get_cert_store(self.context)
        cdef BIO *bio = open_memory_bio(certificates)
        cdef X509 *certificate
        cdef int added
        cdef int count = 0
        no_password = [None, None]
        ERR_clear_error()
        try:
            while True:
                certificate = PEM_read_bio_X509(bio, NULL, pass_password, <void *> no_password)
                if certificate == NULL:
                    break
                count += 1
                added = X509_STORE_add_cert(store, certificate)
                if added == 1 and X509_check_ca(certificate) != 0:
                    self.authorities.add(certificate_der(certificate))
                X509_free(certificate)  # the store has its own reference
                if added != 1:
                    raise make_library_error()
            if count == 0 or not is_end_of_pem():
                raise make_library_error()
            ERR_clear_error()
        finally:
            BIO_free(bio)

    def verify_peers(self, *, bint required):
        """Verify the certificates of peers. With `required`, refuse peers that present none."""
        cdef int mode = SSL_VERIFY_PEER | (SSL_VERIFY_FAIL_IF_NO_PEER_CERT if required else 0)
        SSL_CTX_set_verify(self.context, mode, SSL_CTX_get_verify_callback(self.context))
        self.verifies_peers, self.requires_certificate = True, required

    def check_revocation(self, crls, *, bint allow_missing, bint allow_expired):
        """Refuse peers if a revocation list (CRL) names a certificate of their chain.

        Args:
            crls: The CRLs, DER.
            allow_missing: Accept a certificate whose issuer has no CRL.
            allow_expired: Accept a certificate if the CRL of its issuer is past its nextUpdate.

        Raises:
            ssl.SSLError: OpenSSL cannot read a CRL.
        """
        cdef X509_STORE *store = SSL_CTX_get_cert_store(self.context)
        cdef X509_CRL *crl
        cdef const uint8_t *start
        cdef bytes der
        cdef int added
        ERR_clear_error()
        for der in crls:
            start = <const uint8_t *> PyBytes_AS_STRING(der)
            crl = d2i_X509_CRL(NULL, &start, PyBytes_GET_SIZE(der))
            added = X509_STORE_add_crl(store, crl) if crl != NULL else 0
            X509_CRL_free(crl)          # the store has its own reference
            if added != 1:
                raise make_library_error()
        X509_VERIFY_PARAM_set_flags(
            SSL_CTX_get0_param(self.context), X509_V_FLAG_CRL_CHECK | X509_V_FLAG_CRL_CHECK_ALL
        )
        forgive_crls(self.context, allow_missing, allow_expired)
