"""What is said about a certificate that was refused: whose it is, and what can be done about it."""

import hashlib
from typing import Final

from ingest.errors import PeerError
from ingest.ext.tls_connection import Connection
from ingest.tls import revocation
from ingest.tls.identity import read_identity

SUBJECT_CHARACTERS: Final = 256
"""What is kept of a subject: nobody has vouched for it, and its holder chose its length."""

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
"""By OpenSSL's verify code (x509_vfy.h): what to do about a peer that was refused."""


def refused_certificate(connection: Connection) -> dict[str, str]:
    """Subject and SHA-256 fingerprint of what the peer offered; empty where nothing was refused.

    Nothing in it is verified, and control characters of the subject become "?".
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
