"""Failures of an association: A-ASSOCIATE-RJ, A-ABORT, TLS alert or socket error, as `AssociationError`.

Each failure has a `Cause`, which code decides on, and a text, which only people read.
"""

import ssl
from collections.abc import Mapping
from typing import Final

from ingest.dicom import wire
from ingest.errors import AssociationError, Cause, PeerError
from ingest.ext.tls_errors import NO_CERTIFICATE
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
"""PS3.8 Table 9-21: source of a rejection by the service-provider (presentation related function)."""

_USER_REJECTIONS: Final = {3: Cause.CALLING, 7: Cause.CALLED}
"""PS3.8 Table 9-21: reasons of a rejection by the service-user."""

_NOT_TLS_REASONS: Final = frozenset(
    {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"}
)
"""OpenSSL's reasons in a handshake if the received bytes are no TLS record.

After the handshake they mean a damaged record. OpenSSL 3.2 and later report RECORD_LAYER_FAILURE for each.
"""

_VERIFY_CAUSES: Final = {
    9: Cause.EXPIRED,
    10: Cause.EXPIRED,
    23: Cause.REVOKED,
    62: Cause.NAME,
    64: Cause.NAME,
}
"""OpenSSL's verify codes (x509_vfy.h): not yet valid, expired, revoked, host name or address mismatch."""

_ALERT_CAUSES: Final = {
    "UNKNOWN_CA": Cause.OURS_UNTRUSTED,
    "CERTIFICATE_EXPIRED": Cause.OURS_EXPIRED,
    "CERTIFICATE_REQUIRED": Cause.OURS_MISSING,
    "PROTOCOL_VERSION": Cause.VERSION,
    "INSUFFICIENT_SECURITY": Cause.CIPHER,
    "HANDSHAKE_FAILURE": Cause.CIPHER,
}
"""Alerts of RFC 8446 6.2 by OpenSSL's names. HANDSHAKE_FAILURE may be a missing certificate in TLS 1.2."""


def make_rejection_error(remote: str, data: bytes) -> AssociationError:
    """Convert an A-ASSOCIATE-RJ (PS3.8 9.3.4) to an error."""
    try:
        rejection = wire.decode_associate_rj(data)
    except PeerError as error:
        said = f"{remote} rejected the association, unreadably: {error}"
        return AssociationError(said, cause=Cause.REJECTED)
    # PS3.8 Table 9-21, source 3: congestion and a local limit pass, even if the remote calls them permanent.
    is_permanent = rejection.permanent and rejection.source != PRESENTATION
    cause = _USER_REJECTIONS.get(rejection.reason, Cause.REJECTED)
    if rejection.source == PRESENTATION:
        cause = Cause.FULL
    return AssociationError(f"{remote} {rejection}", permanent=is_permanent, cause=cause)


def make_abort_error(remote: str, data: bytes) -> AssociationError:
    """Convert an A-ABORT (PS3.8 9.3.8) to an error."""
    try:
        abort = wire.decode_abort(data)
    except PeerError as error:
        said = f"{remote} aborted the association, unreadably: {error}"
        return AssociationError(said, cause=Cause.ABORTED)
    said = f"{remote} aborted the association"
    # PS3.8 Table 9-26, byte 9: source 0 is the service-user, which gives no reason.
    if abort.source != 0:
        said += f": {_ABORT_REASONS.get(abort.reason, f'reason {abort.reason}')}"
    return AssociationError(said, cause=Cause.ABORTED)


def describe_error(
    error: Exception, *, in_handshake: bool = False, refused: Mapping[str, str] | None = None
) -> str:
    """Describe a socket or TLS error to a person.

    Args:
        error: The exception.
        in_handshake: Whether it was raised during the TLS handshake.
        refused: The refused certificate, from `ingest.tls.rejection.refused_certificate`.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        remedy = f"; {REMEDIES[error.verify_code]}" if error.verify_code in REMEDIES else ""
        said = f"(verify code {error.verify_code}: {error.verify_message})"
        which = "".join(
            f", {name} {refused[key]}"
            for name, key in (("subject", "subject"), ("SHA-256", "fingerprint"))
            if refused and key in refused
        )
        return f"its certificate is not accepted {said}{which}{remedy}"
    if isinstance(error, ssl.SSLError):
        return _describe_tls_error(error, in_handshake=in_handshake)
    said = str(getattr(error, "strerror", None) or error)
    return f"{said} in the TLS handshake; is its port a plain one?" if in_handshake else said


def find_cause(error: Exception, *, in_handshake: bool, is_anonymous: bool) -> Cause | None:
    """Find the cause of a socket or TLS error; None if the error does not show it.

    Args:
        error: The exception.
        in_handshake: Whether it was raised during the TLS handshake.
        is_anonymous: Whether we have no client certificate.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return _VERIFY_CAUSES.get(error.verify_code, Cause.UNTRUSTED)
    if isinstance(error, ssl.SSLError):
        return _find_tls_cause(str(error.reason or ""), in_handshake=in_handshake, is_anonymous=is_anonymous)
    if in_handshake:
        return Cause.NOT_TLS
    if isinstance(error, ConnectionRefusedError):
        return Cause.REFUSED
    return Cause.CLOSED if isinstance(error, ConnectionError) else Cause.UNREACHABLE


def _find_tls_cause(reason: str, *, in_handshake: bool, is_anonymous: bool) -> Cause | None:
    # OpenSSL gives the reason of an error as text only. `ssl` adds no code for the alert that was received.
    if reason == NO_CERTIFICATE:
        return Cause.NO_CERTIFICATE
    if "_ALERT_" in reason:
        alert = reason.partition("_ALERT_")[2]
        cause = _ALERT_CAUSES.get(alert, Cause.OURS_REFUSED if "CERTIFICATE" in alert else None)
        return Cause.OURS_MISSING if is_anonymous and cause is Cause.CIPHER else cause
    if (reason in _NOT_TLS_REASONS and in_handshake) or "EOF" in reason or not reason:
        return Cause.NOT_TLS
    return Cause.VERSION if "PROTOCOL" in reason or "VERSION" in reason else None


def _describe_tls_error(error: ssl.SSLError, *, in_handshake: bool) -> str:
    reason = str(error.reason or error.strerror or error)
    if "_ALERT_" in reason:
        # OpenSSL's names of received alerts: TLSV1_ALERT_UNKNOWN_CA, TLSV13_ALERT_CERTIFICATE_REQUIRED…
        alert = reason.partition("_ALERT_")[2].replace("_", " ").lower()
        return f"it refused us with the TLS alert {alert!r}; does it trust our certificate?"
    if reason == NO_CERTIFICATE:
        return f"it has shown no certificate, which is required ({error.strerror})"
    if reason in _NOT_TLS_REASONS and in_handshake:
        return "it does not speak TLS on this port; is it plain DICOM?"
    if isinstance(error, ssl.SSLEOFError) or "EOF" in reason:
        return "it closed the connection in the TLS handshake; is its port a plain one?"
    return f"TLS failed: {reason.replace('_', ' ').lower()}"
