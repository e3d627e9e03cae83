"""Errors of OpenSSL as the exceptions that Python's `ssl` module defines.

Callers catch `ssl.SSLError` and its subclasses, which are also `OSError`. Only these classes of `ssl` are
used: contexts and connections of that module are not.
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

NO_CERTIFICATE = "PEER_DID_NOT_RETURN_A_CERTIFICATE"    # also OpenSSL's name, where OpenSSL itself notices

ENDED = "EOF occurred in violation of protocol"


class NoCertificateError(standard.SSLError):
    """The handshake is complete, and the peer has not shown the certificate that is required."""

    def __init__(self, suite):
        super().__init__(SSL_ERROR_SSL, f"[SSL: {NO_CERTIFICATE}] with the suite {suite}")
        self.reason, self.library = NO_CERTIFICATE, "SSL"


cdef tuple take_reason():
    """Empty the error queue of this thread; return the telling error's name and its text.

    The name is spelled as the `ssl` module spells it with OpenSSL 3.0. OpenSSL 3.2 and later end with "record
    layer failure" whatever was wrong with a record: the error before it is the telling one. They also call
    the alerts of SSL 3 those of "ssl/tls".
    """
    cdef const char *found
    cdef unsigned long error = ERR_get_error()
    name, text = "UNKNOWN", "unknown error"
    while error:                        # the oldest first
        found = ERR_reason_error_string(error)
        if found != NULL:
            said = (<bytes> found).decode("utf-8", "replace")
            if said != "record layer failure" or name == "UNKNOWN":
                name, text = said.upper().replace(" ", "_"), said
        error = ERR_get_error()
    return name.replace("SSL/TLS_ALERT", "SSLV3_ALERT"), text


cdef object with_reason(object kind, int code, str name, str text):
    """Make an exception whose `reason` is a name of OpenSSL."""
    error = kind(code, f"[SSL: {name}] {text}")
    error.reason, error.library = name, "SSL"
    return error


cdef object without_reason(object kind, int code, str text):
    """Make an exception for which OpenSSL has no error."""
    error = kind(code, text)
    error.reason = error.library = None
    return error


cdef object library_error():
    """Make the exception of a call that no connection belongs to, such as a file that cannot be read."""
    name, text = take_reason()
    return with_reason(standard.SSLError, SSL_ERROR_SSL, name, text)


cdef object unverified_error(SSL *ssl, str server_name):
    cdef long code = SSL_get_verify_result(ssl)
    if code == X509_V_ERR_HOSTNAME_MISMATCH:
        message = f"Hostname mismatch, certificate is not valid for '{server_name}'."
    elif code == X509_V_ERR_IP_ADDRESS_MISMATCH:
        message = f"IP address mismatch, certificate is not valid for '{server_name}'."
    else:
        message = (<bytes> X509_verify_cert_error_string(code)).decode("utf-8", "replace")
    name, text = take_reason()
    error = with_reason(standard.SSLCertVerificationError, SSL_ERROR_SSL, name, f"{text}: {message}")
    error.verify_code, error.verify_message = code, message
    return error


cdef object connection_error(SSL *ssl, int result, int number, str server_name):
    """Make the exception of a call on a connection that did not succeed.

    Args:
        ssl: The connection.
        result: What the call returned.
        number: errno as the call left it.
        server_name: The name that a client asked for; for the message.
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
            return unverified_error(ssl, server_name)
        if ERR_GET_REASON(last) == SSL_R_UNEXPECTED_EOF_WHILE_READING:
            name, _ = take_reason()
            return with_reason(standard.SSLEOFError, standard.SSL_ERROR_EOF, name, ENDED)
    name, text = take_reason()
    return with_reason(standard.SSLError, code, name, text)
