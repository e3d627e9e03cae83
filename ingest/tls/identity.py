"""Who a certificate says its holder is, and whether that is whom a configuration names."""

import hashlib
import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from ext.errors import PeerError

UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` says of certificates and keys that it cannot read, or only in part."""

_FINGERPRINT = re.compile(
    r"(?:sha-?256(?: fingerprint)?[:=])?((?:[0-9a-f]{2}:?){31}[0-9a-f]{2})", re.IGNORECASE
)
_ATTRIBUTE = re.compile(r'(?:\\.|"[^"]*"|[^,\\"])+')
"""One `name = value` of a subject; commas that are escaped or quoted belong to the value."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What an X.509 certificate tells about its holder.

    Attributes:
        fingerprint: SHA-256 of the DER certificate, 64 lower-case hexadecimal digits.
        subject: Distinguished name as RFC 4514 writes it, most specific first (`CN=ct1,O=Hospital,C=BE`).
        issuer: The same of who signed it.
        names: Subject alternative names, each with its kind: `DNS:`, `IP:`, `URI:`, `email:`.
        not_after: The end of its validity, in UTC.
    """

    fingerprint: str
    subject: str
    issuer: str
    names: tuple[str, ...]
    not_after: datetime

    @property
    def lines(self) -> tuple[str, ...]:
        """Fingerprint, subject and alternative names: what is kept of it with what its holder sent."""
        return (self.fingerprint, self.subject, *self.names)


def identity_of(der: bytes) -> Identity:
    """Read a certificate as it came over the wire (`SSLObject.getpeercert(True)`).

    Raises:
        PeerError: It cannot be read. Rare, as OpenSSL has parsed it too, but OpenSSL is less strict.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        return Identity(
            fingerprint=hashlib.sha256(der).hexdigest(),
            subject=certificate.subject.rfc4514_string(),
            issuer=certificate.issuer.rfc4514_string(),
            names=tuple(_alternative_names(certificate)),
            not_after=certificate.not_valid_after_utc,
        )
    except UNREADABLE as error:
        raise PeerError(f"the certificate cannot be read: {error}") from None


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


def matches(identity: Identity, pattern: str) -> bool:
    """Whether `pattern` names exactly this certificate or its holder.

    Args:
        identity: Of a certificate that was verified.
        pattern: A SHA-256 fingerprint (with or without colons), the whole subject (as RFC 4514 or OpenSSL
            print it), or a subject alternative name (`ct1.example.org` or `DNS:ct1.example.org`). There are
            no wildcards: a binding that lets in more than one holder is none. "" matches nobody.
    """
    wanted = pattern.strip()
    fingerprint = _FINGERPRINT.fullmatch(wanted)
    if fingerprint:
        return fingerprint[1].replace(":", "").lower() == identity.fingerprint
    if any(_is_name(wanted, name) for name in identity.names):
        return True
    return "=" in wanted and _is_subject(wanted, identity.subject)


def issued_by(identity: Identity, name: str) -> bool:
    """Whether a certificate names exactly this issuer, written as a subject is in `matches`."""
    return _is_subject(name.strip(), identity.issuer)


def _is_name(wanted: str, name: str) -> bool:
    kind, _, value = name.partition(":")
    prefix, separator, rest = wanted.partition(":")
    if separator and prefix.lower() == kind.lower():
        wanted = rest
    elif (kind == "IP") != _is_address(wanted):
        return False  # an address written as a DNS name is no address
    if kind == "IP":
        return _is_address(wanted) and ipaddress.ip_address(wanted) == ipaddress.ip_address(value)
    if kind == "DNS":
        return wanted.rstrip(".").lower() == value.rstrip(".").lower()
    return bool(wanted) and wanted == value


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_subject(wanted: str, subject: str) -> bool:
    """Compare attribute by attribute: OpenSSL prints a name from its other end, with spaces or slashes."""
    if wanted == subject:
        return True
    try:
        own = x509.Name.from_rfc4514_string(subject).rdns
    except ValueError:
        return False  # of a kind that RFC 4514 cannot write and read again: bind it by fingerprint
    for text in (wanted, _as_rfc4514(wanted)):
        try:
            other = x509.Name.from_rfc4514_string(text).rdns
        except ValueError:
            continue
        if own in (other, other[::-1]):
            return True
    return False


def _as_rfc4514(text: str) -> str:
    """`/C=BE/CN=x` and `C = BE, O = "A, B"` as RFC 4514 writes them, in the order in which they stand."""
    if text.startswith("/"):
        return text[1:].replace(",", "\\,").replace("/", ",")
    return ",".join(_attribute(part) for part in _ATTRIBUTE.findall(text))


def _attribute(text: str) -> str:
    name, _, value = (part.strip() for part in text.partition("="))
    if len(value) > 1 and value[0] == value[-1] == '"':
        value = re.sub(r'([,+"\\<>;])', r"\\\1", value[1:-1])
    return f"{name}={value}"
