from ingest.ext.openssl cimport SSL


cdef tuple take_reason()
cdef object with_reason(object kind, int code, str name, str text)
cdef object library_error()
cdef object connection_error(SSL *ssl, int result, int number, str server_name)
