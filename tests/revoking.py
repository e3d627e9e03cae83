"""Certificate revocation lists for tests."""

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from ingest.tls import pki
from ingest.tls.issue import PrivateKey


def revocation_list(
    authority: pki.Pair,
    *revoked: x509.Certificate,
    next_update: datetime | None = None,
    key: PrivateKey | None = None,
) -> x509.CertificateRevocationList:
    """A list of `authority`, good for a week where nothing else is said, signed with its key or another."""
    now = datetime.now(UTC)
    end = next_update or now + timedelta(days=7)
    last = min(now, end) - timedelta(days=1)
    builder = x509.CertificateRevocationListBuilder(authority.certificate.subject, last, end)
    for certificate in revoked:
        entry = x509.RevokedCertificateBuilder(certificate.serial_number, last)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(key or authority.private_key, hashes.SHA256())
