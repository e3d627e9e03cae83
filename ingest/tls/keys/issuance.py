"""Issue certificates in memory: self-signed, or signed by a small certificate authority of the site."""

import contextlib
import ipaddress
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, get_args

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ingest.errors import IngestError

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
KeyType = Literal["rsa2048", "rsa3072", "rsa4096", "ec", "ec-p384", "ed25519"]
KEY_TYPES: tuple[KeyType, ...] = get_args(KeyType)
DEFAULT_DAYS = 825
AUTHORITY_DAYS = 3650

_BOTH_ROLES = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
"""One certificate serves a node in both roles: TLS server as SCP and TLS client as SCU."""

_CLOCK_SKEW = timedelta(hours=1)
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*")


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and the private key that belongs to it."""

    certificate: x509.Certificate
    private_key: PrivateKey

    @property
    def certificate_pem(self) -> bytes:
        """The certificate as PEM, without its issuers."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def encode_key(self, password: bytes | None = None) -> bytes:
        """Encode the key as PKCS#8 PEM, encrypted if there is a password."""
        return encode_key(self.private_key, password)


def encode_key(key: PrivateKey, password: bytes | None) -> bytes:
    """Encode a key as PKCS#8 PEM, encrypted if there is a password."""
    encryption: serialization.KeySerializationEncryption = (
        serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    )
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def issue_self_signed(
    name: str,
    *,
    names: Iterable[str] = (),
    days: float = DEFAULT_DAYS,
    key_type: KeyType = "rsa2048",
    start: datetime | None = None,
) -> Pair:
    """Issue a self-signed pair. Peers trust it by adding its certificate to their bundle.

    The certificate is not an authority (basicConstraints CA:FALSE), so its holder cannot issue further
    certificates that those peers would accept. It has no key usage: older OpenSSL treats a certificate
    whose key usage lacks keyCertSign as not self-signed, and then looks for its issuer.

    Args:
        name: Common name.
        names: Subject alternative names: host names or addresses. `name` is added if it is one.
        days: Validity from now on, or from `start`.
        key_type: RSA with a number of bits, EC on P-256 or P-384, or Ed25519 (RFC 8410).
        start: Begin of validity. The default is an hour ago, for peers whose clock is slow.
    """
    key = generate_key(key_type)
    builder = _start_certificate(name, key, days, start).issuer_name(_build_subject(name))
    for extension, critical in _leaf_extensions(name, names):
        builder = builder.add_extension(extension, critical)
    return Pair(_sign(builder, key), key)


def issue_authority(name: str, *, days: float = AUTHORITY_DAYS, key_type: KeyType = "rsa3072") -> Pair:
    """Issue a root certificate that signs the pairs of one site, so that peers trust a single certificate."""
    key = generate_key(key_type)
    builder = _start_certificate(name, key, days, None).issuer_name(_build_subject(name))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_build_key_usage(key, certificates=True), critical=True)
    return Pair(_sign(builder, key), key)


def issue_signed(
    name: str,
    issuer: Pair,
    *,
    names: Iterable[str] = (),
    days: float = DEFAULT_DAYS,
    key_type: KeyType = "rsa2048",
    start: datetime | None = None,
) -> Pair:
    """Issue a pair that is signed by `issuer`. It ends no later than its issuer.

    The other arguments are those of `issue_self_signed`.

    Raises:
        IngestError: The issuer is not an authority.
    """
    if not _is_authority(issuer.certificate):
        subject = issuer.certificate.subject.rfc4514_string()
        raise IngestError(f"{subject} is not a certificate authority; name one (`ingest certs new --ca`)")
    key = generate_key(key_type)
    builder = _start_certificate(name, key, days, start, issuer.certificate.not_valid_after_utc)
    builder = builder.issuer_name(issuer.certificate.subject)
    for extension, critical in (
        *_leaf_extensions(name, names),
        (_build_key_usage(key, certificates=False), True),
    ):
        builder = builder.add_extension(extension, critical)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.private_key.public_key()), critical=False
    )
    return Pair(_sign(builder, issuer.private_key), key)


def build_request(name: str, key: PrivateKey, *, names: Iterable[str] = ()) -> x509.CertificateSigningRequest:
    """Build a certificate signing request (RFC 2986). Arguments are those of `issue_self_signed`."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(_build_subject(name))
    for extension, critical in (
        *_leaf_extensions(name, names),
        (_build_key_usage(key, certificates=False), True),
    ):
        builder = builder.add_extension(extension, critical)
    return builder.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())


def generate_key(key_type: KeyType) -> PrivateKey:
    """Generate a private key from the random numbers of the operating system."""
    if key_type == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    if key_type.startswith("ec"):
        return ec.generate_private_key(ec.SECP384R1() if key_type == "ec-p384" else ec.SECP256R1())
    return rsa.generate_private_key(public_exponent=65537, key_size=int(key_type.removeprefix("rsa")))


def _sign(builder: x509.CertificateBuilder, key: PrivateKey) -> x509.Certificate:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return builder.sign(key, None)  # Ed25519 contains its hash.
    return builder.sign(key, hashes.SHA256())


def _build_subject(name: str) -> x509.Name:
    try:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    except ValueError:
        raise IngestError(f"{name!r} cannot be a common name; write 1 to 64 characters") from None


def _start_certificate(
    name: str, key: PrivateKey, days: float, start: datetime | None, latest: datetime | None = None
) -> x509.CertificateBuilder:
    begin = start or datetime.now(UTC) - _CLOCK_SKEW
    end = (start or datetime.now(UTC)) + timedelta(days=days)
    end = min(end, latest) if latest else end
    return (
        x509.CertificateBuilder()
        .subject_name(_build_subject(name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _leaf_extensions(name: str, names: Iterable[str]) -> Iterator[tuple[x509.ExtensionType, bool]]:
    """Yield the extensions of a certificate that is not an authority, and whether each is critical."""
    yield x509.BasicConstraints(ca=False, path_length=None), True
    yield _BOTH_ROLES, False
    alternatives = dict.fromkeys((*_own_names(name), *map(parse_general_name, names)))
    if alternatives:
        yield x509.SubjectAlternativeName(alternatives), False


def _own_names(name: str) -> list[x509.GeneralName]:
    loopback = ("127.0.0.1", "::1") if name == "localhost" else ()
    try:
        return [parse_general_name(text) for text in (name, *loopback)]
    except IngestError:
        return []  # A common name such as "CT scanner 1" is not a host name.


def parse_general_name(text: str) -> x509.GeneralName:
    """Parse a host name or an address, with or without the prefix `DNS:` or `IP:`.

    Raises:
        IngestError: The text is neither.
    """
    bare = text.partition(":")[2] if text.upper().startswith(("DNS:", "IP:")) else text
    try:
        return x509.IPAddress(ipaddress.ip_address(bare))
    except ValueError:
        if not _HOST_NAME.fullmatch(bare.removeprefix("*.")):
            raise IngestError(f"{text!r} is neither a host name nor an address; correct it") from None
        return x509.DNSName(bare)


def _build_key_usage(key: PrivateKey, *, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=not certificates and isinstance(key, rsa.RSAPrivateKey),  # RFC 8813 3, RFC 8410 5
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certificates,
        crl_sign=certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _is_authority(certificate: x509.Certificate) -> bool:
    with contextlib.suppress(x509.ExtensionNotFound):
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    return False
