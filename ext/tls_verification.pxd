from ingest.ext.openssl cimport SSL, SSL_CTX, X509


cdef int verify_and_keep_refused(SSL_CTX *context) except -1
cdef int forgive_crls(SSL_CTX *context, bint missing, bint expired) except -1
cdef bytes refused_certificate(SSL *ssl)
cdef bytes certificate_der(X509 *certificate)
