"""Failures of sending an event, explained for people."""

import socket
import ssl

from ingest.errors import IngestError, ResolverAwayError, SendingError


def explain_failure(error: Exception, server: str, tls_section: str) -> SendingError:
    """Return what an exception of a library means, with the remedy.

    Args:
        error: The exception.
        server: Host and port of the server.
        tls_section: NAME of the `[tls.NAME]` that verifies it.
    """
    cause, remedy = f"{server}: {error or type(error).__name__}", "read the log of the server"
    match error:
        case SendingError():
            return error
        case IngestError():
            cause, remedy = str(error), "`ingest check` shows faults of the configuration"
        case ssl.SSLCertVerificationError():
            cause, remedy = _explain_certificate(error, server, tls_section)
        case ssl.SSLError():
            cause = f"no TLS with {server}: {error.reason or error}"
            remedy = "see whether it speaks TLS 1.2 or newer on this port, and wants a certificate of ours"
        case ResolverAwayError() | socket.gaierror():
            cause = f"{server} has no address: {error}"
            remedy = "correct the name, or see why the name servers of this machine do not answer"
        case TimeoutError():
            cause = f"{server} did not answer in time"
            remedy = "see whether the server works, or raise timeout_seconds"
        case ConnectionRefusedError():
            cause, remedy = f"nobody listens at {server}", "start the server, or correct host and port"
    return SendingError(cause, remedy)


def _explain_certificate(
    error: ssl.SSLCertVerificationError, server: str, tls_section: str
) -> tuple[str, str]:
    cause = f"the certificate of {server} is not trusted: {error.verify_message}"
    remedies = {
        3: f"add a CRL of its issuer to [tls.{tls_section}] crl",  # X509_V_ERR_UNABLE_TO_GET_CRL
        10: "have the certificate of the server replaced, or correct this machine's clock",  # …_HAS_EXPIRED
        12: f"renew [tls.{tls_section}] crl",  # X509_V_ERR_CRL_HAS_EXPIRED
        62: "use a name that its certificate has",  # X509_V_ERR_HOSTNAME_MISMATCH
        64: "use an address that its certificate has",  # X509_V_ERR_IP_ADDRESS_MISMATCH
    }
    return cause, remedies.get(error.verify_code, f"add its authority to [tls.{tls_section}] trusted")
