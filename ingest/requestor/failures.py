"""What a remote meant, in words for a person: A-ASSOCIATE-RJ, A-ABORT, TLS alerts, errors of sockets."""

import ssl
from collections.abc import Mapping
from typing import Final

from ingest.dicom import wire
from ingest.errors import AssociationError, Cause, PeerError
from ingest.tls.peer_identity import NO_CERTIFICATE
from ingest.tls.rejection import REMEDIES

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
_REJECTIONS: Final = {3: Cause.CALLING, 7: Cause.CALLED}
"""PS3.8 Table 9-21: reasons of the service-user."""
_NOT_TLS: Final = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"}
"""OpenSSL's reasons in a handshake when what came is no TLS record.

After the handshake they mean a damaged record: OpenSSL 3.2 and later end with RECORD_LAYER_FAILURE for each.
"""


def rejected(remote: str, data: bytes) -> AssociationError:
    """The error that an A-ASSOCIATE-RJ (PS3.8 9.3.4) means."""
    try:
        rejection = wire.decode_associate_rj(data)
    except PeerError as error:
        return AssociationError(f"{remote} rejected the association, unreadably: {error}")
    # PS3.8 Table 9-21, source 3: congestion and a local limit pass, whatever the remote calls them.
    permanent = rejection.permanent and rejection.source != PRESENTATION
    cause = Cause.FULL if rejection.source == PRESENTATION else _REJECTIONS.get(rejection.reason)
    return AssociationError(f"{remote} {rejection}", permanent=permanent, cause=cause)


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


def failed(error: Exception, *, shaking: bool = False, offered: Mapping[str, str] | None = None) -> str:
    """What a socket or TLS error means for a person.

    Args:
        error: What was raised.
        shaking: Whether the TLS handshake runs.
        offered: The certificate that was refused, as `refused_certificate` tells it.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        remedy = f"; {REMEDIES[error.verify_code]}" if error.verify_code in REMEDIES else ""
        said = f"(verify code {error.verify_code}: {error.verify_message})"
        which = "".join(
            f", {name} {offered[key]}"
            for name, key in (("subject", "subject"), ("SHA-256", "fingerprint"))
            if offered and key in offered
        )
        return f"its certificate is not accepted {said}{which}{remedy}"
    if isinstance(error, ssl.SSLError):
        return _tls_failed(error, shaking=shaking)
    said = str(getattr(error, "strerror", None) or error)
    return f"{said} in the TLS handshake; is its port a plain one?" if shaking else said


_VERIFY: Final = {
    9: Cause.EXPIRED,
    10: Cause.EXPIRED,
    23: Cause.REVOKED,
    62: Cause.NAME,
    64: Cause.NAME,
}
"""OpenSSL's verify codes (x509_vfy.h): not yet valid, expired, revoked, host name or address mismatch."""

_ALERTS: Final = {
    "UNKNOWN_CA": Cause.OURS_UNTRUSTED,
    "CERTIFICATE_EXPIRED": Cause.OURS_EXPIRED,
    "CERTIFICATE_REQUIRED": Cause.OURS_MISSING,
    "PROTOCOL_VERSION": Cause.VERSION,
    "INSUFFICIENT_SECURITY": Cause.CIPHER,
    "HANDSHAKE_FAILURE": Cause.CIPHER,
}
"""RFC 8446 6.2, as OpenSSL names them; before TLS 1.3 a missing certificate is a handshake failure, too."""


def cause_of(error: Exception, *, shaking: bool, anonymous: bool) -> Cause | None:
    """What a socket or TLS error says about the cause.

    Args:
        error: What was raised.
        shaking: Whether the TLS handshake runs.
        anonymous: Whether we have no certificate to show.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return _VERIFY.get(error.verify_code, Cause.UNTRUSTED)
    if isinstance(error, ssl.SSLError):
        return _tls_cause(str(error.reason or ""), shaking=shaking, anonymous=anonymous)
    if shaking:
        return Cause.NOT_TLS
    if isinstance(error, ConnectionRefusedError):
        return Cause.REFUSED
    return Cause.CLOSED if isinstance(error, ConnectionError) else Cause.UNREACHABLE


def _tls_cause(reason: str, *, shaking: bool, anonymous: bool) -> Cause | None:
    if reason == NO_CERTIFICATE:
        return Cause.NO_CERTIFICATE
    if "_ALERT_" in reason:
        alert = reason.partition("_ALERT_")[2]
        cause = _ALERTS.get(alert, Cause.OURS_REFUSED if "CERTIFICATE" in alert else None)
        return Cause.OURS_MISSING if anonymous and cause is Cause.CIPHER else cause
    if (reason in _NOT_TLS and shaking) or "EOF" in reason or not reason:
        return Cause.NOT_TLS
    return Cause.VERSION if "PROTOCOL" in reason or "VERSION" in reason else None


def _tls_failed(error: ssl.SSLError, *, shaking: bool) -> str:
    reason = str(error.reason or error.strerror or error)
    if "_ALERT_" in reason:
        # OpenSSL's names for what came: TLSV1_ALERT_UNKNOWN_CA, TLSV13_ALERT_CERTIFICATE_REQUIRED…
        alert = reason.partition("_ALERT_")[2].replace("_", " ").lower()
        return f"it refused us with the TLS alert {alert!r}; does it trust our certificate?"
    if reason == NO_CERTIFICATE:
        return f"it has shown no certificate, which is required ({error.strerror})"
    if reason in _NOT_TLS and shaking:
        return "it does not speak TLS on this port; is it plain DICOM?"
    if isinstance(error, ssl.SSLEOFError) or "EOF" in reason:
        return "it closed the connection in the TLS handshake; is its port a plain one?"
    return f"TLS failed: {reason.replace('_', ' ').lower()}"
