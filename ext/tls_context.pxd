from ingest.ext.openssl cimport SSL_CTX


cdef class Context:
    cdef SSL_CTX *context
    cdef readonly bint is_server
    cdef readonly bint requires_certificate     # the peer must present a certificate
    cdef readonly bint verifies_peers           # a certificate of the peer is verified
    cdef public bint check_host_name            # of a client: check the certificate for the server name
    cdef set authorities                        # trusted certificates that may issue others, DER

    cdef int read_chain(self, bytes chain) except -1
    cdef int read_key(self, bytes key, password) except -1
