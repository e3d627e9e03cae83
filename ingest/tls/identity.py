"""Who a certificate says its holder is, and whether that is whom a configuration names."""

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
"""What `cryptography` says of certificates and keys that it cannot read, or only in part."""

_FINGERPRINT = re.compile(
    r"(?:sha-?256(?: fingerprint)?[:=])?((?:[0-9a-f]{2}:?){31}[0-9a-f]{2})", re.IGNORECASE
)
_HEX = re.compile(
    r"(?:(?:sha|md)-?\d+(?: fingerprint)?[:=])?(?:[0-9a-f]{32,}|(?:[0-9a-f]{2}[: ]){7,}[0-9a-f]{2})",
    re.IGNORECASE,
)
"""What is meant as a fingerprint, of whatever kind."""
_KINDS = {"dns": "DNS", "ip": "IP", "ip address": "IP", "uri": "URI", "email": "email"}
"""Prefixes of alternative names, in small letters."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """The certificate in `trusted` that ends a verified chain: who vouches for what the others say.

    Attributes:
        fingerprint: As of an `Identity`.
        subject: Likewise.
        authority: Whether it says that it is there to issue others: basicConstraints CA:TRUE and keyUsage
            keyCertSign. Whatever `openssl req -x509` makes says the first, which is enough for OpenSSL.
    """

    fingerprint: str
    subject: str
    authority: bool


@dataclass(frozen=True, slots=True)
class Identity:
    """What an X.509 certificate tells about its holder.

    Attributes:
        fingerprint: SHA-256 of the DER certificate, 64 lower-case hexadecimal digits.
        subject: Distinguished name as RFC 4514 writes it, most specific first (`CN=ct1,O=Hospital,C=BE`).
        issuer: The same of who signed it.
        names: Subject alternative names, each with its kind: `DNS:`, `IP:`, `URI:`, `email:`.
        not_after: The end of its validity, in UTC.
        anchor: Who vouches for it, maybe itself; None where no chain was verified.
        between: Fingerprints of the certificates between the two.
    """

    fingerprint: str
    subject: str
    issuer: str
    names: tuple[str, ...]
    not_after: datetime
    anchor: Anchor | None = None
    between: tuple[str, ...] = ()

    @property
    def vouched(self) -> bool:
        """Whether its names are more than its holder's word: it is trusted itself, or by an authority.

        Whose own certificate is trusted could else issue one with anybody's names.
        """
        anchor = self.anchor
        return anchor is not None and (anchor.authority or anchor.fingerprint == self.fingerprint)

    @property
    def lines(self) -> tuple[str, ...]:
        """Fingerprint, subject and alternative names: what is kept of it with what its holder sent."""
        return (self.fingerprint, self.subject, *self.names)


def identity_of(der: bytes, chain: Sequence[bytes] = ()) -> Identity:
    """Read a certificate as it came over the wire (`SSLObject.getpeercert(True)`).

    Args:
        der: It.
        chain: Its verified chain, from itself to the certificate in `trusted` (`Pump.peer_chain`).

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
            anchor=anchor_of(chain[-1]) if chain else None,
            between=tuple(hashlib.sha256(each).hexdigest() for each in chain[1:-1]),
        )
    except UNREADABLE as error:
        raise PeerError(f"the certificate cannot be read: {error}") from None


@lru_cache(maxsize=256)
def anchor_of(der: bytes) -> Anchor:
    """Read a certificate of `trusted`; one of which too little can be read vouches for no name."""
    subject, authority = "", False
    with contextlib.suppress(*UNREADABLE, x509.ExtensionNotFound):
        certificate = x509.load_der_x509_certificate(der)
        subject = certificate.subject.rfc4514_string()
        extensions = certificate.extensions
        authority = (
            extensions.get_extension_for_class(x509.BasicConstraints).value.ca
            and extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
        )
    return Anchor(hashlib.sha256(der).hexdigest(), subject, authority)


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
    """Whether `pattern` names exactly this certificate or its holder; who vouches for its names is not asked.

    Args:
        identity: Of a certificate that was verified.
        pattern: A SHA-256 fingerprint (with or without colons), the whole subject (as RFC 4514 or OpenSSL
            print it), or a subject alternative name (`ct1.example.org` or `DNS:ct1.example.org`). There are
            no wildcards: a binding that lets in more than one holder is none. "" matches nobody.
    """
    kind, value = _meant(pattern)
    if kind == "SHA-256":
        return value == identity.fingerprint
    if kind == "subject":
        return distinguished_names.same(pattern, identity.subject)
    return any(_is_name(kind, value, name) for name in identity.names)


def issued_by(identity: Identity, issuer: str) -> bool:
    """Whether a certificate comes from this issuer.

    Args:
        identity: Of a certificate that was verified.
        issuer: The whole subject of the certificate in `trusted` that vouches for it: names of those between
            may be chosen by whoever issued them. Or the SHA-256 fingerprint of any of them.
    """
    if identity.anchor is None:
        return False
    kind, value = _meant(issuer)
    if kind == "SHA-256":
        return value in {identity.anchor.fingerprint, *identity.between}
    return kind == "subject" and distinguished_names.same(issuer, identity.anchor.subject)


def binding_fault(identity: Identity | None, certificate: str, issuer: str, whose: str) -> str | None:
    """Why a certificate is not the one that a peer or destination is bound to; None where it is.

    Args:
        identity: Of the certificate that was verified; None where none was shown.
        certificate: A pattern of `matches`; "" is any.
        issuer: A pattern of `issued_by`; "" is any.
        whose: Who is bound, for the message.
    """
    binding = " of ".join(repr(part) for part in (certificate, issuer) if part)
    if not binding:
        return None
    if identity is None:
        return f"{whose} is bound to the certificate {binding}, but none was presented"
    anchor = identity.anchor
    # Not the issuer that it names itself: whoever issued it could choose any.
    who = f"certificate {identity.subject!r} of {anchor.subject if anchor else 'nobody'!r}"
    bound = not certificate or matches(identity, certificate)
    if not bound or (issuer and not issued_by(identity, issuer)):
        return f"{who} is not bound to {whose}, which is bound to {binding}"
    if certificate and not (issuer or is_fingerprint(certificate) or identity.vouched):
        return (
            f"{who} has the name that {whose} is bound to, {binding}, but the trusted one that issued it "
            "is not marked as an authority (CA:TRUE, keyCertSign); if it is yours, name it in `issuer`, "
            "or bind by fingerprint"
        )
    return None


def is_fingerprint(pattern: str) -> bool:
    """Whether a pattern of `matches` or `issued_by` is the fingerprint of one certificate."""
    return _meant(pattern)[0] == "SHA-256"


def mistake(pattern: str, *, issuer: bool = False) -> str:
    """Why no certificate can ever match a pattern (of `issued_by`, with `issuer`); "" if one can."""
    kind, value = _meant(pattern)
    plain = kind == "DNS" and value == pattern.strip()
    if plain and _HEX.fullmatch(value):
        return "is no SHA-256 fingerprint, which has 64 hexadecimal digits, in pairs with colons or without"
    if kind == "subject" and not distinguished_names.readings(pattern):
        return "is no subject that can be read"
    if issuer and kind not in {"SHA-256", "subject"}:
        return "is neither a whole subject nor a fingerprint"
    if kind == "IP" and not _is_address(value):
        return "is no address"
    if plain and not re.fullmatch(r"[\w*.-]+", value, re.ASCII):
        return "is no fingerprint, no subject that can be read, and no alternative name"
    return ""


@lru_cache(maxsize=1024)
def _meant(pattern: str) -> tuple[str, str]:
    """What a pattern is compared with, and with what value: it must mean one kind only.

    Whoever may choose a name of one kind could else choose one that reads as somebody's name of another.
    """
    wanted = pattern.strip()
    fingerprint = _FINGERPRINT.fullmatch(wanted)
    if fingerprint:
        return "SHA-256", fingerprint[1].replace(":", "").lower()
    prefix, separator, rest = wanted.partition(":")
    if separator and prefix.lower() in _KINDS:
        return _KINDS[prefix.lower()], rest
    if distinguished_names.readings(pattern) or (wanted.startswith("/") and "=" in wanted):
        return "subject", wanted
    if _is_address(wanted):
        return "IP", wanted
    if "://" in wanted or wanted.lower().startswith("urn:"):
        return "URI", wanted
    return ("email" if "@" in wanted else "DNS"), wanted


def _is_name(wanted_kind: str, wanted: str, name: str) -> bool:
    kind, _, value = name.partition(":")
    if kind != wanted_kind:
        return False
    if kind == "IP":
        # In certificates that constrain names, and in odd ones, it may also be a network.
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
