"""Report of a failed handshake: its cause, and of a refused certificate subject, fingerprint and remedy."""

import hashlib
import ssl
from typing import Final

from ingest.errors import PeerError
from ingest.ext.tls_connection import Connection
from ingest.tls import revocation
from ingest.tls.identity import read_identity

SUBJECT_CHARACTERS: Final = 256
"""Limit of a reported subject. The subject is not verified, and the peer chose its length."""

_UNKNOWN: Final = "add the certificate of its authority to trusted if it is yours"
REMEDIES: Final = revocation.REMEDIES | {
    9: "correct the clock of this machine or of the peer, or have its certificate replaced",
    10: "have its certificate replaced, or correct the clock",
    18: "if the fingerprint is that of one of your peers, add it to trusted (`ingest certs trust`)",
    19: _UNKNOWN,
    20: f"{_UNKNOWN}, or have the peer send the certificates between",
    21: f"{_UNKNOWN}, or have the peer send the certificates between",
    23: "have its certificate replaced: its authority has revoked it",
    26: "have its certificate issued for both roles (extended key usage clientAuth and serverAuth)",
}
"""Remedy for a refused peer, by OpenSSL's verify code (x509_vfy.h)."""

_VERIFY_CAUSES: Final = dict.fromkeys(revocation.REMEDIES, "crl") | {
    2: "unknown_ca",
    9: "not_yet_valid",
    10: "expired",
    18: "unknown_ca",
    19: "unknown_ca",
    20: "unknown_ca",
    21: "unknown_ca",
    23: "revoked",
}
_REASON_CAUSES: Final = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "no_certificate",
    "NO_SHARED_CIPHER": "cipher",
    "NO_SHARED_SIGNATURE_ALGORITHMS": "cipher",
    "NO_SUITABLE_SIGNATURE_ALGORITHM": "cipher",
    "NO_SUITABLE_KEY_SHARE": "cipher",
    "UNSUPPORTED_PROTOCOL": "version",
    "VERSION_TOO_LOW": "version",
    "HTTP_REQUEST": "not_tls",
    "HTTPS_PROXY_REQUEST": "not_tls",
    "WRONG_VERSION_NUMBER": "not_tls",
}


def classify_failure(error: ssl.SSLError) -> str:
    """Return the cause of a failed connection, as a value of `ingest.metrics.families.TLS_CAUSE`."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _VERIFY_CAUSES.get(error.verify_code, "certificate")
    if isinstance(error, ssl.SSLEOFError):
        return "closed"
    reason = error.reason or ""
    return _REASON_CAUSES.get(reason, "alert" if "_ALERT_" in reason else "other")


def refused_certificate(connection: Connection) -> dict[str, str]:
    """Return subject and SHA-256 fingerprint of the refused certificate, or {} if none was refused.

    They are not verified. Control characters of the subject are replaced by "?".
    """
    der = connection.refused_certificate()
    if der is None:
        return {}
    found = {"fingerprint": hashlib.sha256(der).hexdigest()}
    try:
        subject = read_identity(der).subject[:SUBJECT_CHARACTERS]
    except PeerError:
        return found
    return {"subject": "".join(each if each.isprintable() else "?" for each in subject)} | found
