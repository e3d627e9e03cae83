"""Who is at the other end of a connection whose handshake is complete: proved, or not.

`ssl.CERT_REQUIRED` alone does not prove it. A cipher suite without authentication (aNULL, plain PSK) lets a
handshake complete in which no certificate was sent, and OpenSSL had nothing to verify. Both sides therefore
look here after each handshake, before anything else is said.
"""

import _ssl
import ssl
from typing import Final
from weakref import WeakKeyDictionary

NO_CERTIFICATE: Final = "PEER_DID_NOT_RETURN_A_CERTIFICATE"
"""OpenSSL's name for it, where OpenSSL itself notices."""

Connection = ssl.SSLObject | ssl.SSLSocket

_trusted: Final[WeakKeyDictionary[ssl.SSLContext, frozenset[bytes]]] = WeakKeyDictionary()
"""By context, the certificates in `trusted` that may issue others, DER."""


class NoCertificateError(ssl.SSLError):
    """The handshake is complete, and the peer has not shown the certificate that is required."""

    def __init__(self, suite: str) -> None:
        super().__init__(1, f"[SSL: {NO_CERTIFICATE}] with the suite {suite}")
        self.reason = NO_CERTIFICATE


def require_proof(connection: Connection) -> None:
    """Look whether the peer has proved who it is, as far as the context asks for it.

    Raises:
        NoCertificateError: A certificate is required, and none was verified.
    """
    if connection.context.verify_mode != ssl.CERT_REQUIRED:
        return
    if connection.getpeercert(binary_form=True) is None or not _chain(connection):
        raise NoCertificateError((connection.cipher() or ("?",))[0])


def verified_chain(connection: Connection) -> list[bytes]:
    """The verified chain of the peer, DER: its certificate, its issuer and so on to the one in `trusted`.

    Empty where there is no certificate, or none was to be verified.
    """
    if connection.context.verify_mode == ssl.CERT_NONE:
        return []
    chain = _chain(connection)
    # Who is trusted itself may send more than that, which OpenSSL lets stand after it, trusted or not.
    return chain if len(chain) < 2 or chain[-1] in _authorities(connection.context) else chain[:1]


def _chain(connection: Connection) -> list[bytes]:
    if hasattr(connection, "get_verified_chain"):  # Python 3.13
        chain: list[bytes] = connection.get_verified_chain()
        return chain
    found = connection._sslobj.get_verified_chain()  # type: ignore[union-attr]
    return [each.public_bytes(_ssl.ENCODING_DER) for each in found or ()]


def _authorities(context: ssl.SSLContext) -> frozenset[bytes]:
    """Asked for once a context: what it trusts is loaded before its first handshake."""
    if context not in _trusted:
        _trusted[context] = frozenset(context.get_ca_certs(binary_form=True))
    return _trusted[context]
