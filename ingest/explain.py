"""What a remote meant, in words for a person: A-ASSOCIATE-RJ, A-ABORT, TLS alerts, errors of sockets."""

import ssl
from typing import Final

from ingest.dicom import wire
from ingest.errors import AssociationError, PeerError

_ABORT_REASONS: Final = {
    0: "reason not specified",
    1: "unrecognized PDU",
    2: "unexpected PDU",
    4: "unrecognized PDU parameter",
    5: "unexpected PDU parameter",
    6: "invalid PDU parameter value",
}
"""PS3.8 Table 9-26, byte 10."""
PRESENTATION: Final = 3
"""PS3.8 Table 9-21: the source of a rejection is the service-provider, presentation related."""
_NOT_TLS: Final = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"}
"""OpenSSL's reasons when what came is no TLS record."""


def rejected(remote: str, data: bytes) -> AssociationError:
    """The error that an A-ASSOCIATE-RJ (PS3.8 9.3.4) means."""
    try:
        rejection = wire.decode_associate_rj(data)
    except PeerError as error:
        return AssociationError(f"{remote} rejected the association, unreadably: {error}")
    # PS3.8 Table 9-21, source 3: congestion and a local limit pass, whatever the remote calls them.
    permanent = rejection.permanent and rejection.source != PRESENTATION
    return AssociationError(f"{remote} {rejection}", permanent=permanent)


def aborted(remote: str, data: bytes) -> AssociationError:
    """The error that an A-ABORT (PS3.8 9.3.8) means."""
    try:
        abort = wire.decode_abort(data)
    except PeerError as error:
        return AssociationError(f"{remote} aborted the association, unreadably: {error}")
    # PS3.8 Table 9-26, byte 9: 0 is the service-user, who gives no reason.
    if abort.source == 0:
        return AssociationError(f"{remote} aborted the association")
    reason = _ABORT_REASONS.get(abort.reason, f"reason {abort.reason}")
    return AssociationError(f"{remote} aborted the association: {reason}")


def failed(error: Exception, *, shaking: bool = False) -> str:
    """What a socket or TLS error means for a person; `shaking` while the TLS handshake runs."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted (verify code {error.verify_code}: {error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return _tls_failed(error)
    said = str(getattr(error, "strerror", None) or error)
    return f"{said} in the TLS handshake; is its port a plain one?" if shaking else said


def _tls_failed(error: ssl.SSLError) -> str:
    reason = str(error.reason or error.strerror or error)
    if "_ALERT_" in reason:
        # OpenSSL's names for what came: TLSV1_ALERT_UNKNOWN_CA, TLSV13_ALERT_CERTIFICATE_REQUIRED…
        alert = reason.partition("_ALERT_")[2].replace("_", " ").lower()
        return f"it refused us with the TLS alert {alert!r}; does it trust our certificate?"
    if reason in _NOT_TLS:
        return "it does not speak TLS on this port; is it plain DICOM?"
    if isinstance(error, ssl.SSLEOFError) or "EOF" in reason:
        return "it closed the connection in the TLS handshake; is its port a plain one?"
    return f"TLS failed: {reason.replace('_', ' ').lower()}"
