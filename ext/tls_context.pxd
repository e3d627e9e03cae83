from ingest.ext.openssl cimport SSL_CTX


cdef class Context:
    cdef SSL_CTX *context
    cdef readonly bint is_server
    cdef readonly bint requires_certificate     # the peer has to show one that is verified
    cdef readonly bint verifies_peers           # what the peer shows is verified
    cdef public bint check_host_name            # a client's: the certificate must have the server's name
    cdef set authorities                        # of the trusted certificates those that may issue others, DER

    cdef int read_chain(self, bytes chain) except -1
    cdef int read_key(self, bytes key, password) except -1
