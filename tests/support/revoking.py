"""Certificate revocation lists for tests."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.serialization import Encoding

from ingest.tls.keys import pairs
from ingest.tls.keys.issuance import PrivateKey

UMLAUT = "Universitaetsklinikum"
READABLE = bytes([0x0C, len(UMLAUT)]) + UMLAUT.encode()
"""As UTF8String."""


def revocation_list(
    authority: pairs.Pair,
    *revoked: x509.Certificate,
    next_update: datetime | None = None,
    key: PrivateKey | None = None,
    start: datetime | None = None,
    extensions: Iterable[x509.ExtensionType] = (),
) -> x509.CertificateRevocationList:
    """A list of `authority`, good for a week where nothing else is said, signed with its key or another.

    Its extensions are critical.
    """
    now = datetime.now(UTC)
    end = next_update or now + timedelta(days=7)
    last = start or min(now, end) - timedelta(days=1)
    builder = x509.CertificateRevocationListBuilder(authority.certificate.subject, last, end)
    for certificate in revoked:
        entry = x509.RevokedCertificateBuilder(certificate.serial_number, last)
        builder = builder.add_revoked_certificate(entry.build())
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(key or authority.private_key, hashes.SHA256())


def point(**parts: Any) -> x509.IssuingDistributionPoint:
    """What a list is about (RFC 5280 5.2.5)."""
    kinds = ("only_contains_user_certs", "only_contains_ca_certs", "only_contains_attribute_certs")
    flags = dict.fromkeys((*kinds, "indirect_crl"), False)
    given: dict[str, Any] = dict.fromkeys(("full_name", "relative_name", "only_some_reasons"))
    return x509.IssuingDistributionPoint(**{**given, **flags, **parts})


def unreadable(found: Any, key: Any) -> Any:
    """The same with an "ae" of its names as T61String in Latin-1, which OpenSSL reads and `cryptography` not.

    Args:
        found: Signed with RSA.
        key: Of its issuer.
    """
    listed = isinstance(found, x509.CertificateRevocationList)
    body = found.tbs_certlist_bytes if listed else found.tbs_certificate_bytes
    new = body.replace(READABLE, b"\x14" + READABLE[1:].replace(b"ae", b"\xe4s"))
    signature = key.sign(new, padding.PKCS1v15(), hashes.SHA256())
    der = found.public_bytes(Encoding.DER).replace(body, new).replace(found.signature, signature)
    return x509.load_der_x509_crl(der) if listed else x509.load_der_x509_certificate(der)


def under(pair: pairs.Pair, issuer: pairs.Pair) -> pairs.Pair:
    """An authority with the certificate that `issuer` would sign, which may have authorities below it."""
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(
        issuer_name=issuer.certificate.subject,
        subject_name=pair.certificate.subject,
        public_key=pair.certificate.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=now - timedelta(days=1),
        not_valid_after=now + timedelta(days=30),
    ).add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    own = x509.SubjectKeyIdentifier.from_public_key(pair.certificate.public_key())
    builder = builder.add_extension(own, critical=False)
    return pairs.Pair(builder.sign(issuer.private_key, hashes.SHA256()), pair.private_key)
