"""The identity in a certificate, and whether it matches a binding in the configuration."""

import contextlib
import hashlib
import ipaddress
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from ingest.ext.errors import PeerError
from ingest.tls import distinguished_names

UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""Errors that `cryptography` raises for certificates and keys that it cannot read or only partly reads."""

_FINGERPRINT = re.compile(
    r"(?:sha-?256(?: fingerprint)?[:=])?((?:[0-9a-f]{2}:?){31}[0-9a-f]{2})", re.IGNORECASE
)
_HEX = re.compile(
    r"(?:(?:sha|md)-?\d+(?: fingerprint)?[:=])?(?:[0-9a-f]{32,}|(?:[0-9a-f]{2}[: ]){7,}[0-9a-f]{2})",
    re.IGNORECASE,
)
"""Text that was meant as a fingerprint of any kind."""
_KINDS = {"dns": "DNS", "ip": "IP", "ip address": "IP", "uri": "URI", "email": "email"}
"""Prefixes of alternative names, in lower case."""


@dataclass(frozen=True, slots=True)
class TrustAnchor:
    """The trust anchor: the certificate in `trusted` at the end of a verified chain.

    Attributes:
        fingerprint: SHA-256 of the DER certificate, 64 lower-case hexadecimal digits.
        subject: Distinguished name in the notation of RFC 4514.
        is_authority: The certificate has basicConstraints CA:TRUE and keyUsage keyCertSign. OpenSSL only
            requires the first, which every certificate from `openssl req -x509` has.
    """

    fingerprint: str
    subject: str
    is_authority: bool


@dataclass(frozen=True, slots=True)
class CertificateIdentity:
    """The holder of an X.509 certificate, as the certificate states it.

    Attributes:
        fingerprint: SHA-256 of the DER certificate, 64 lower-case hexadecimal digits.
        subject: Distinguished name in the notation of RFC 4514, most specific RDN first
            (`CN=ct1,O=Hospital,C=BE`).
        issuer: Distinguished name of the issuer.
        names: Subject alternative names, each with its kind: `DNS:`, `IP:`, `URI:`, `email:`.
        not_after: End of validity, in UTC.
        trust_anchor: End of the verified chain, possibly the certificate itself. None if no chain was
            verified.
        intermediates: Fingerprints of the certificates between this one and the trust anchor.
        not_before: Begin of validity, in UTC; None if it is not known.
    """

    fingerprint: str
    subject: str
    issuer: str
    names: tuple[str, ...]
    not_after: datetime
    trust_anchor: TrustAnchor | None = None
    intermediates: tuple[str, ...] = ()
    not_before: datetime | None = None

    @property
    def has_trusted_names(self) -> bool:
        """The names were confirmed: the certificate is trusted itself, or an authority issued it.

        A peer whose own certificate is trusted could otherwise issue a certificate with any name.
        """
        anchor = self.trust_anchor
        return anchor is not None and (anchor.is_authority or anchor.fingerprint == self.fingerprint)

    @property
    def identifying_lines(self) -> tuple[str, ...]:
        """Fingerprint, subject and alternative names, to be stored with the instances of the holder."""
        return (self.fingerprint, self.subject, *self.names)


def read_identity(der: bytes, chain: Sequence[bytes] = ()) -> CertificateIdentity:
    """Read the identity in a certificate from a handshake.

    Args:
        der: The certificate.
        chain: Its verified chain, from the certificate itself to the trust anchor.

    Raises:
        PeerError: `cryptography` cannot parse the certificate. This is rare, because OpenSSL has parsed it
            before, but OpenSSL is less strict.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        return CertificateIdentity(
            fingerprint=hashlib.sha256(der).hexdigest(),
            subject=certificate.subject.rfc4514_string(),
            issuer=certificate.issuer.rfc4514_string(),
            names=tuple(_alternative_names(certificate)),
            not_after=certificate.not_valid_after_utc,
            trust_anchor=read_trust_anchor(chain[-1]) if chain else None,
            intermediates=tuple(hashlib.sha256(each).hexdigest() for each in chain[1:-1]),
            not_before=certificate.not_valid_before_utc,
        )
    except UNREADABLE as error:
        raise PeerError(f"the certificate cannot be read: {error}") from None


@lru_cache(maxsize=256)
def read_trust_anchor(der: bytes) -> TrustAnchor:
    """Read a certificate in `trusted`. A certificate that is only partly readable counts as no authority."""
    subject, authority = "", False
    with contextlib.suppress(*UNREADABLE, x509.ExtensionNotFound):
        certificate = x509.load_der_x509_certificate(der)
        subject = certificate.subject.rfc4514_string()
        extensions = certificate.extensions
        authority = (
            extensions.get_extension_for_class(x509.BasicConstraints).value.ca
            and extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
        )
    return TrustAnchor(hashlib.sha256(der).hexdigest(), subject, authority)


def _alternative_names(certificate: x509.Certificate) -> Iterator[str]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return
    for name in extension.value:
        match name:
            case x509.DNSName():
                yield f"DNS:{name.value}"
            case x509.IPAddress():
                yield f"IP:{name.value}"
            case x509.UniformResourceIdentifier():
                yield f"URI:{name.value}"
            case x509.RFC822Name():
                yield f"email:{name.value}"


def matches_identity(identity: CertificateIdentity, pattern: str) -> bool:
    """Return whether `pattern` names this certificate or its holder. The issuer is not considered.

    Args:
        identity: Identity from a verified certificate.
        pattern: A SHA-256 fingerprint (with or without colons), the whole subject (as RFC 4514 or OpenSSL
            print it), or a subject alternative name (`ct1.example.org` or `DNS:ct1.example.org`). There are
            no wildcards, because a binding must admit exactly one holder. "" matches nothing.
    """
    kind, value = _classify_pattern(pattern)
    if kind == "SHA-256":
        return value == identity.fingerprint
    if kind == "subject":
        return distinguished_names.is_same_name(pattern, identity.subject)
    return any(_is_same_alternative_name(kind, value, name) for name in identity.names)


def is_issued_by(identity: CertificateIdentity, issuer: str) -> bool:
    """Tell whether a certificate comes from this issuer.

    Args:
        identity: Identity from a verified certificate.
        issuer: The whole subject of the trust anchor, or the SHA-256 fingerprint of the trust anchor or of an
            intermediate. Subjects of intermediates do not count, because their issuers choose them freely.
    """
    if identity.trust_anchor is None:
        return False
    kind, value = _classify_pattern(issuer)
    if kind == "SHA-256":
        return value in {identity.trust_anchor.fingerprint, *identity.intermediates}
    return kind == "subject" and distinguished_names.is_same_name(issuer, identity.trust_anchor.subject)


def find_binding_fault(
    identity: CertificateIdentity | None, certificate: str, issuer: str, whose: str
) -> str | None:
    """Return why a certificate does not satisfy the binding of a peer or destination, or None if it does.

    Args:
        identity: Identity from the verified certificate. None if the peer presented no certificate.
        certificate: A pattern of `matches_identity`. "" accepts any certificate.
        issuer: A pattern of `is_issued_by`. "" accepts any issuer.
        whose: Name of the peer or destination, for the message.
    """
    binding = " of ".join(repr(part) for part in (certificate, issuer) if part)
    if not binding:
        return None
    if identity is None:
        return f"{whose} is bound to the certificate {binding}, but none was presented"
    anchor = identity.trust_anchor
    # The issuer field of the certificate proves nothing. Name the trust anchor instead.
    who = f"certificate {identity.subject!r} of {anchor.subject if anchor else 'nobody'!r}"
    bound = not certificate or matches_identity(identity, certificate)
    if not bound or (issuer and not is_issued_by(identity, issuer)):
        return f"{who} is not bound to {whose}, which is bound to {binding}"
    if certificate and not (issuer or is_fingerprint(certificate) or identity.has_trusted_names):
        return (
            f"{who} has the name that {whose} is bound to, {binding}, but the trusted one that issued it "
            "is not marked as an authority (CA:TRUE, keyCertSign); if it is yours, name it in `issuer`, "
            "or bind by fingerprint"
        )
    return None


def is_fingerprint(pattern: str) -> bool:
    """Tell whether a pattern of `matches_identity` or `is_issued_by` is a fingerprint."""
    return _classify_pattern(pattern)[0] == "SHA-256"


def explain_unmatchable(pattern: str, *, issuer: bool = False) -> str:
    """Return why no certificate can ever match a pattern, or "" if one can.

    Args:
        pattern: A pattern of `matches_identity`, or with `issuer` one of `is_issued_by`.
        issuer: The pattern names an issuer.
    """
    kind, value = _classify_pattern(pattern)
    plain = kind == "DNS" and value == pattern.strip()
    if plain and _HEX.fullmatch(value):
        return "is no SHA-256 fingerprint, which has 64 hexadecimal digits, in pairs with colons or without"
    if kind == "subject" and not distinguished_names.parse_readings(pattern):
        return "is no subject that can be read"
    if issuer and kind not in {"SHA-256", "subject"}:
        return "is neither a whole subject nor a fingerprint"
    if kind == "IP" and not _is_address(value):
        return "is no address"
    if plain and not re.fullmatch(r"[\w*.-]+", value, re.ASCII):
        return "is no fingerprint, no subject that can be read, and no alternative name"
    return ""


@lru_cache(maxsize=1024)
def _classify_pattern(pattern: str) -> tuple[str, str]:
    """Return the kind of a pattern and its value. Each pattern has exactly one kind.

    Otherwise a holder who may choose a name of one kind could pass for a holder with a name of another kind.
    """
    wanted = pattern.strip()
    fingerprint = _FINGERPRINT.fullmatch(wanted)
    if fingerprint:
        return "SHA-256", fingerprint[1].replace(":", "").lower()
    prefix, separator, rest = wanted.partition(":")
    if separator and prefix.lower() in _KINDS:
        return _KINDS[prefix.lower()], rest
    if distinguished_names.parse_readings(pattern) or (wanted.startswith("/") and "=" in wanted):
        return "subject", wanted
    if _is_address(wanted):
        return "IP", wanted
    if "://" in wanted or wanted.lower().startswith("urn:"):
        return "URI", wanted
    return ("email" if "@" in wanted else "DNS"), wanted


def _is_same_alternative_name(wanted_kind: str, wanted: str, name: str) -> bool:
    kind, _, value = name.partition(":")
    if kind != wanted_kind:
        return False
    if kind == "IP":
        # The name may also be a network: name constraints use networks, and so do some odd certificates.
        both = _is_address(wanted) and _is_address(value)
        return both and ipaddress.ip_address(wanted) == ipaddress.ip_address(value)
    if kind == "DNS":
        wanted, value = wanted.rstrip(".").lower(), value.rstrip(".").lower()
    return bool(wanted) and wanted == value


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
