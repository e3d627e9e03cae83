from ingest.ext.openssl cimport SSL


cdef tuple pop_reason()
cdef object with_reason(object kind, int code, str name, str text)
cdef object make_library_error()
cdef object make_connection_error(SSL *ssl, int result, int number, str server_name)
