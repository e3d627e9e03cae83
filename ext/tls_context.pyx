"""What the TLS connections of one role share: versions, suites, our certificate, whom we trust.

A context is made once, set up, and then only read: by every connection of its listener or its destination.
The settings that all roles have in common are those of the constructor, and there is no way to undo them: no
session tickets, no session cache, no renegotiation, no compression, no key log.
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
from ingest.ext.tls_errors cimport library_error
from ingest.ext.tls_verification cimport certificate_der, forgive_crls, verify_and_keep_refused

from collections import namedtuple

__all__ = ["NEWEST", "TLS_1_0", "TLS_1_1", "TLS_1_2", "TLS_1_3", "CipherSuite", "Context", "openssl_version"]

# RFC 8446 4.2.1: the numbers of the versions on the wire.
TLS_1_0, TLS_1_1, TLS_1_2, TLS_1_3 = 0x0301, 0x0302, 0x0303, 0x0304
NEWEST = 0                              # as a maximum: the newest that OpenSSL has

cdef int SECURITY_LEVEL = 2             # OpenSSL refuses RSA and DH below 2048 bits, and SHA-1

CipherSuite = namedtuple("CipherSuite", "name protocol key_exchange authentication is_aead")


def openssl_version():
    """Return the version of the library that is linked, as it calls itself."""
    return (<bytes> OpenSSL_version(OPENSSL_VERSION)).decode()


cdef int give_password(char *room, int size, int writing, void *pointer) noexcept:
    """Give OpenSSL the password of a key (a callback of PEM_read_bio_PrivateKey).

    `pointer` is a list of two: the function that knows the password, and the place for its exception.
    Without a callback OpenSSL would ask on the terminal.
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


cdef bytes c_string(str text):
    """Encode what OpenSSL reads up to a null character.

    Raises:
        ValueError: There is one in it.
    """
    cdef bytes encoded = text.encode()
    if b"\0" in encoded:
        raise ValueError("embedded null character")
    return encoded


cdef bint is_end_of_pem() noexcept:
    """Whether the last error only says that no further block follows."""
    cdef unsigned long error = ERR_peek_last_error()
    return ERR_GET_LIB(error) == ERR_LIB_PEM and ERR_GET_REASON(error) == PEM_R_NO_START_LINE


cdef BIO *memory_bio(bytes content) except NULL:
    cdef BIO *bio = BIO_new_mem_buf(PyBytes_AS_STRING(content), <int> PyBytes_GET_SIZE(content))
    if bio == NULL:
        raise MemoryError
    return bio


@cython.final
cdef class Context:
    """The settings of one role. A new one has no certificate, trusts nobody and verifies no peer.

    Errors of OpenSSL are `ssl.SSLError`, with its name for the cause in `reason`.

    Args:
        is_server: Whether its connections accept handshakes, or begin them.

    Attributes:
        requires_certificate: Whether the peer has to show a certificate that is verified.
        verifies_peers: Whether a certificate that the peer shows is verified.
        check_host_name: Whether a server's certificate must have the name that the client asked for.
    """

    def __cinit__(self, *, bint is_server):
        self.is_server = is_server
        self.authorities = set()
        ERR_clear_error()
        self.context = SSL_CTX_new(TLS_server_method() if is_server else TLS_client_method())
        if self.context == NULL:
            raise library_error()
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
        # Distributions differ in what they build in. A cipher list can set another level ("@SECLEVEL=0").
        SSL_CTX_set_security_level(self.context, SECURITY_LEVEL)
        # A resumed session is not verified again: a certificate revoked since would be let in. TLS 1.2
        # could resume by the session's ID, which needs the cache. TLS 1.3 resumes by tickets alone.
        SSL_CTX_set_session_cache_mode(self.context, SSL_SESS_CACHE_OFF)
        SSL_CTX_set_num_tickets(self.context, 0)
        SSL_CTX_set_session_id_context(self.context, <const uint8_t *> b"ingest", 6)
        # An idle connection gives its record buffers back, which saves about 34 KiB.
        SSL_CTX_set_mode(self.context, SSL_MODE_RELEASE_BUFFERS)
        # Trusting a certificate that is not self-signed (a modality's own, from another authority) must work,
        # as it does in DCMTK and Orthanc. What modalities make lacks extensions that RFC 5280 asks for, so
        # the strict checks stay off whatever the default becomes.
        param = SSL_CTX_get0_param(self.context)
        X509_VERIFY_PARAM_set_flags(param, X509_V_FLAG_PARTIAL_CHAIN | X509_V_FLAG_TRUSTED_FIRST)
        X509_VERIFY_PARAM_clear_flags(param, X509_V_FLAG_X509_STRICT)
        X509_VERIFY_PARAM_set_hostflags(param, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS)
        verify_and_keep_refused(self.context)

    def __dealloc__(self):
        SSL_CTX_free(self.context)

    # --- what may be negotiated

    def set_versions(self, int minimum, int maximum=0):
        """Set the oldest and the newest version, of TLS_1_0 and so on."""
        SSL_CTX_set_min_proto_version(self.context, minimum)
        SSL_CTX_set_max_proto_version(self.context, maximum)

    def set_ciphers(self, str ciphers not None):
        """Set the suites up to TLS 1.2, as an OpenSSL cipher list.

        Raises:
            ssl.SSLError: OpenSSL finds no cipher in it.
            ValueError: It holds a null character.
        """
        cdef bytes listed = c_string(ciphers)
        ERR_clear_error()
        if SSL_CTX_set_cipher_list(self.context, listed) != 1:
            raise library_error()

    def restrict(self, str suites not None, str groups not None, str signatures not None):
        """Set the TLS 1.3 suites, groups and signature algorithms, as OpenSSL lists them.

        Diffie-Hellman parameters, for suites with DHE, are as long as certificate and security level ask for.

        Raises:
            ValueError: OpenSSL does not know a name.
        """
        cdef bytes suite_list = c_string(suites), group_list = c_string(groups), names = c_string(signatures)
        if (
            SSL_CTX_set_ciphersuites(self.context, suite_list) != 1
            or SSL_CTX_set1_groups_list(self.context, group_list) != 1
            or SSL_CTX_set1_sigalgs_list(self.context, names) != 1
            or SSL_CTX_set_dh_auto(self.context, 1) != 1
        ):
            ERR_clear_error()
            raise ValueError(f"OpenSSL does not know all of {suites}, {groups}, {signatures}")

    def list_ciphers(self):
        """Return the suites that are set, of all versions, the most wanted first."""
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
        """OpenSSL's security level: at 2 RSA and DH have 2048 bits or more, at 0 anything goes."""
        return SSL_CTX_get_security_level(self.context)

    # --- our own certificate

    def load_pair(self, bytes chain not None, bytes key not None, password=None):
        """Load our certificate with its chain, and its private key, both PEM.

        Args:
            chain: The certificate, then those of its issuers.
            key: May be encrypted.
            password: Called for the password of an encrypted key; its exceptions are passed on.

        Raises:
            ssl.SSLError: OpenSSL cannot read them or refuses them, or they do not belong together.
        """
        ERR_clear_error()
        self.read_chain(chain)
        self.read_key(key, password)
        if SSL_CTX_check_private_key(self.context) != 1:
            raise library_error()

    cdef int read_chain(self, bytes chain) except -1:
        cdef BIO *bio = memory_bio(chain)
        cdef X509 *certificate
        cdef int used
        nobody = [None, None]
        try:
            certificate = PEM_read_bio_X509_AUX(bio, NULL, give_password, <void *> nobody)
            if certificate == NULL:
                raise library_error()
            used = SSL_CTX_use_certificate(self.context, certificate)
            X509_free(certificate)      # the context has its own reference
            if used != 1:
                raise library_error()
            SSL_CTX_clear_chain_certs(self.context)
            while True:
                certificate = PEM_read_bio_X509(bio, NULL, give_password, <void *> nobody)
                if certificate == NULL:
                    break
                if SSL_CTX_add0_chain_cert(self.context, certificate) != 1:
                    X509_free(certificate)
                    raise library_error()
            if not is_end_of_pem():
                raise library_error()
            ERR_clear_error()
        finally:
            BIO_free(bio)
        return 0

    cdef int read_key(self, bytes key, password) except -1:
        cdef BIO *bio = memory_bio(key)
        cdef EVP_PKEY *private
        cdef int used
        source = [password, None]
        try:
            private = PEM_read_bio_PrivateKey(bio, NULL, give_password, <void *> source)
            if source[1] is not None:
                EVP_PKEY_free(private)
                ERR_clear_error()
                raise source[1]
            if private == NULL:
                raise library_error()
            used = SSL_CTX_use_PrivateKey(self.context, private)
            EVP_PKEY_free(private)      # the context has its own reference
            if used != 1:
                raise library_error()
        finally:
            BIO_free(bio)
        return 0

    # --- peers

    def trust(self, bytes certificates not None):
        """Trust every certificate in a PEM text.

        Raises:
            ssl.SSLError: There is none, or OpenSSL cannot read one.
        """
        cdef X509_STORE *store = SSL_CTX_get_cert_store(self.context)
        cdef BIO *bio = memory_bio(certificates)
        cdef X509 *certificate
        cdef int added
        cdef int count = 0
        nobody = [None, None]
        ERR_clear_error()
        try:
            while True:
                certificate = PEM_read_bio_X509(bio, NULL, give_password, <void *> nobody)
                if certificate == NULL:
                    break
                count += 1
                added = X509_STORE_add_cert(store, certificate)
                if added == 1 and X509_check_ca(certificate) != 0:
                    self.authorities.add(certificate_der(certificate))
                X509_free(certificate)  # the store has its own reference
                if added != 1:
                    raise library_error()
            if count == 0 or not is_end_of_pem():
                raise library_error()
            ERR_clear_error()
        finally:
            BIO_free(bio)

    def verify_peers(self, *, bint required):
        """Verify a certificate that a peer shows; `required` refuses those who show none."""
        cdef int mode = SSL_VERIFY_PEER | (SSL_VERIFY_FAIL_IF_NO_PEER_CERT if required else 0)
        SSL_CTX_set_verify(self.context, mode, SSL_CTX_get_verify_callback(self.context))
        self.verifies_peers, self.requires_certificate = True, required

    def check_revocation(self, crls, *, bint allow_missing, bint allow_expired):
        """Refuse peers that a revocation list (CRL) names; the whole chain is checked.

        Args:
            crls: The lists, DER.
            allow_missing: Accept a peer of whose issuer there is no list.
            allow_expired: Accept a peer of whose issuer there is only a list past its nextUpdate.

        Raises:
            ssl.SSLError: OpenSSL cannot read a list.
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
                raise library_error()
        X509_VERIFY_PARAM_set_flags(
            SSL_CTX_get0_param(self.context), X509_V_FLAG_CRL_CHECK | X509_V_FLAG_CRL_CHECK_ALL
        )
        forgive_crls(self.context, allow_missing, allow_expired)
