"""Conversion of OpenSSL errors to the exceptions that Python's `ssl` module defines.

Callers catch `ssl.SSLError` and its subclasses, which are also `OSError`. Only these exception classes of
`ssl` are used, not its contexts and connections.
"""

from ingest.ext.openssl cimport (
    SSL,
    SSL_ERROR_SSL,
    SSL_ERROR_SYSCALL,
    SSL_ERROR_WANT_READ,
    SSL_ERROR_WANT_WRITE,
    SSL_ERROR_ZERO_RETURN,
    SSL_R_CERTIFICATE_VERIFY_FAILED,
    SSL_R_UNEXPECTED_EOF_WHILE_READING,
    ERR_GET_LIB,
    ERR_GET_REASON,
    ERR_LIB_SSL,
    ERR_get_error,
    ERR_peek_error,
    ERR_peek_last_error,
    ERR_reason_error_string,
    SSL_get_error,
    SSL_get_verify_result,
    X509_V_ERR_HOSTNAME_MISMATCH,
    X509_V_ERR_IP_ADDRESS_MISMATCH,
    X509_verify_cert_error_string,
)

import os
import ssl as standard

__all__ = ["NO_CERTIFICATE", "NoCertificateError"]

NO_CERTIFICATE = "PEER_DID_NOT_RETURN_A_CERTIFICATE"    # OpenSSL's own name for this error

ENDED = "EOF occurred in violation of protocol"


class NoCertificateError(standard.SSLError):
    """The handshake is complete, but the peer has not presented the required certificate."""

    def __init__(self, suite):
        super().__init__(SSL_ERROR_SSL, f"[SSL: {NO_CERTIFICATE}] with the suite {suite}")
        self.reason, self.library = NO_CERTIFICATE, "SSL"


cdef tuple pop_reason():
    """Empty the error queue of this thread. Return the name and the text of the most specific error.

    The name is spelled as in the `ssl` module with OpenSSL 3.0. OpenSSL 3.2 and later add "record layer
    failure" after any error of a record, so the error before it is the specific one. They also name the
    alerts of SSL 3 "ssl/tls" alerts.
    """
    cdef const char *found
    cdef unsigned long error = ERR_get_error()
    name, text = "UNKNOWN", "unknown error"
    while error:                        # the oldest first
        found = ERR_reason_error_string(error)
        if found != NULL:
            reason = (<bytes> found).decode("utf-8", "replace")
            if reason != "record layer failure" or name == "UNKNOWN":
                name, text = reason.upper().replace(" ", "_"), reason
        error = ERR_get_error()
    return name.replace("SSL/TLS_ALERT", "SSLV3_ALERT"), text


cdef object with_reason(object kind, int code, str name, str text):
    """Make an exception whose `reason` is a name of OpenSSL."""
    error = kind(code, f"[SSL: {name}] {text}")
    error.reason, error.library = name, "SSL"
    return error


cdef object without_reason(object kind, int code, str text):
    """Make an exception for a condition that OpenSSL reports without an error."""
    error = kind(code, text)
    error.reason = error.library = None
    return error


cdef object make_library_error():
    """Make the exception of a failed call that belongs to no connection, such as reading a file."""
    name, text = pop_reason()
    return with_reason(standard.SSLError, SSL_ERROR_SSL, name, text)


cdef object make_verification_error(SSL *ssl, str server_name):
    cdef long code = SSL_get_verify_result(ssl)
    if code == X509_V_ERR_HOSTNAME_MISMATCH:
        message = f"Hostname mismatch, certificate is not valid for '{server_name}'."
    elif code == X509_V_ERR_IP_ADDRESS_MISMATCH:
        message = f"IP address mismatch, certificate is not valid for '{server_name}'."
    else:
        message = (<bytes> X509_verify_cert_error_string(code)).decode("utf-8", "replace")
    name, text = pop_reason()
    error = with_reason(standard.SSLCertVerificationError, SSL_ERROR_SSL, name, f"{text}: {message}")
    error.verify_code, error.verify_message = code, message
    return error


cdef object make_connection_error(SSL *ssl, int result, int number, str server_name):
    """Make the exception of a failed call on a connection.

    Args:
        ssl: The connection.
        result: Return value of the call.
        number: errno after the call.
        server_name: Server name that a client requested, for the message.
    """
    cdef int code = SSL_get_error(ssl, result)
    cdef unsigned long last = ERR_peek_last_error()
    if code == SSL_ERROR_WANT_READ:
        return without_reason(standard.SSLWantReadError, code, "The operation did not complete (read)")
    if code == SSL_ERROR_WANT_WRITE:
        return without_reason(standard.SSLWantWriteError, code, "The operation did not complete (write)")
    if code == SSL_ERROR_ZERO_RETURN:
        return without_reason(standard.SSLZeroReturnError, code, "TLS/SSL connection has been closed (EOF)")
    if code == SSL_ERROR_SYSCALL and ERR_peek_error() == 0:
        if result < 0 and number:
            return OSError(number, os.strerror(number))
        return without_reason(standard.SSLEOFError, standard.SSL_ERROR_EOF, ENDED)
    if ERR_GET_LIB(last) == ERR_LIB_SSL:
        if ERR_GET_REASON(last) == SSL_R_CERTIFICATE_VERIFY_FAILED:
            return make_verification_error(ssl, server_name)
        if ERR_GET_REASON(last) == SSL_R_UNEXPECTED_EOF_WHILE_READING:
            name, _ = pop_reason()
            return with_reason(standard.SSLEOFError, standard.SSL_ERROR_EOF, name, ENDED)
    name, text = pop_reason()
    return with_reason(standard.SSLError, code, name, text)
