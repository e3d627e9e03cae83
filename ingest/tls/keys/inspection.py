"""Inspection of key files for `ingest certs inspect`: their content, and which parts belong together."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from ingest.errors import IngestError, PeerError
from ingest.tls.identity import UNREADABLE, read_identity
from ingest.tls.keys import formats
from ingest.tls.keys.container import is_encrypted
from ingest.tls.keys.loading import opened

_EXTENDED: Final = {
    ExtendedKeyUsageOID.SERVER_AUTH: "serverAuth",
    ExtendedKeyUsageOID.CLIENT_AUTH: "clientAuth",
    ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE: "anyExtendedKeyUsage",
}
_BASIC: Final = {
    "digital_signature": "digitalSignature",
    "content_commitment": "nonRepudiation",
    "key_encipherment": "keyEncipherment",
    "data_encipherment": "dataEncipherment",
    "key_agreement": "keyAgreement",
    "key_cert_sign": "keyCertSign",
    "crl_sign": "cRLSign",
}
"""RFC 5280 4.2.1.3."""


@dataclass(frozen=True, slots=True)
class InspectedCertificate:
    """One certificate. `public` is its public key, used to match private keys; it is not printed."""

    subject: str
    issuer: str
    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    days_left: float
    sha256: str
    key: str
    authority: bool
    self_signed: bool
    usages: tuple[str, ...]
    alias: str
    public: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class InspectedKey:
    """One private key. `type` is "" if the key is encrypted and no password was given."""

    type: str
    encrypted: bool
    alias: str
    public: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class FileInspection:
    """The content of one file, or the `fault`: why it cannot be read, with the remedy."""

    file: Path
    form: str = ""
    certificates: tuple[InspectedCertificate, ...] = ()
    keys: tuple[InspectedKey, ...] = ()
    fault: str = ""


def inspect_files(paths: Sequence[Path], password_file: Path | None, now: datetime) -> list[FileInspection]:
    """Inspect files, and in folders every file that holds a key or a certificate.

    Args:
        paths: Files of any format, or folders.
        password_file: File whose first line opens PKCS#12 and encrypted keys.
        now: Start of the count of remaining days.
    """
    found = []
    for path in paths:
        try:
            files = formats.list_files(path)
        except IngestError as error:
            found.append(FileInspection(path, fault=str(error)))
            continue
        told = [each for file in files if (each := _inspect_file(file, password_file, now))]
        fault = (
            f"{path}: holds no certificate and no key, neither PEM nor DER nor PKCS#12; name a file that does"
        )
        found += told or [FileInspection(path, fault=fault)]
    return found


def match_keys(
    found: Sequence[FileInspection],
) -> Iterator[tuple[FileInspection, InspectedKey, InspectedCertificate | None]]:
    """Yield each private key with its certificate from any of the files, or None if there is none."""
    everything = [each for contents in found for each in contents.certificates]
    for contents in found:
        for key in contents.keys:
            if everything and key.public is not None:
                own = (each for each in everything if each.public == key.public)
                yield contents, key, next(own, None)


def to_json_data(found: Sequence[FileInspection]) -> list[dict[str, Any]]:
    """Convert inspections to JSON values, with times in ISO 8601."""
    belongs = {id(key): own for _, key, own in match_keys(found)}
    told = []
    for contents in found:
        data = asdict(contents)
        data["file"] = str(contents.file)
        for each in data["certificates"]:
            del each["public"]
            each |= {name: each[name].isoformat() for name in ("not_before", "not_after")}
        for key, each in zip(contents.keys, data["keys"], strict=True):
            del each["public"]
            own = belongs.get(id(key))
            each["certificate"] = own.sha256 if own else None
        told.append(data)
    return told


def _inspect_file(file: Path, password_file: Path | None, now: datetime) -> FileInspection | None:
    """Inspect one file. Return None if it holds neither keys nor certificates."""
    try:
        held = formats.read_container(file, password_file)
        if not held.key_format:
            return None
        if held.key_format == "JKS":
            return FileInspection(
                file, held.key_format, fault=f"{file}: {held.explain_missing('certificate or key')}"
            )
        names = held.certificate_aliases or ("",) * len(held.certificates)
        aliases = held.key_aliases or ("",) * len(held.keys)
        return FileInspection(
            file,
            held.key_format,
            tuple(
                _inspect_certificate(text, name, now)
                for text, name in zip(held.certificates, names, strict=True)
            ),
            tuple(
                _inspect_key(file, pem, password_file, held.was_encrypted, alias)
                for pem, alias in zip(held.keys, aliases, strict=True)
            ),
        )
    except (PeerError, *UNREADABLE) as error:
        return FileInspection(file, fault=f"{file}: {error}; export the certificate again")
    except IngestError as error:
        return FileInspection(file, fault=str(error))


def _inspect_certificate(text: str, alias: str, now: datetime) -> InspectedCertificate:
    found = x509.load_pem_x509_certificate(text.encode())
    identity = read_identity(found.public_bytes(serialization.Encoding.DER))
    public = found.public_key()
    return InspectedCertificate(
        subject=identity.subject,
        issuer=identity.issuer,
        names=identity.names,
        not_before=found.not_valid_before_utc,
        not_after=identity.not_after,
        days_left=round((identity.not_after - now) / timedelta(days=1), 1),
        sha256=identity.fingerprint,
        key=_describe_key_type(public),
        authority=_is_authority(found),
        self_signed=found.subject == found.issuer,
        usages=tuple(_list_usages(found)),
        alias=alias,
        public=_encode_public_key(public),
    )


def _inspect_key(
    file: Path, pem: bytes, password_file: Path | None, locked: bool, alias: str
) -> InspectedKey:
    encrypted = is_encrypted(pem)
    if encrypted and password_file is None:
        return InspectedKey("", encrypted=True, alias=alias, public=None)
    public = opened(pem, file, password_file).public_key()
    return InspectedKey(_describe_key_type(public), encrypted or locked, alias, _encode_public_key(public))


def _describe_key_type(public: Any) -> str:
    """Return kind and size of a key: "RSA 2048", "EC secp256r1", "Ed25519"."""
    if isinstance(public, rsa.RSAPublicKey | dsa.DSAPublicKey):
        return f"{'RSA' if isinstance(public, rsa.RSAPublicKey) else 'DSA'} {public.key_size}"
    if isinstance(public, ec.EllipticCurvePublicKey):
        return f"EC {public.curve.name}"
    return type(public).__name__.removesuffix("PublicKey")


def _encode_public_key(public: Any) -> bytes:
    encoded: bytes = public.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded


def _is_authority(certificate: x509.Certificate) -> bool:
    """Tell whether basicConstraints has CA:TRUE (RFC 5280 4.2.1.9)."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _list_usages(certificate: x509.Certificate) -> Iterator[str]:
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
        yield from (name for attribute, name in _BASIC.items() if getattr(usage, attribute))
    except x509.ExtensionNotFound:
        pass
    try:
        extended = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        yield from (_EXTENDED.get(oid, oid.dotted_string) for oid in extended)
    except x509.ExtensionNotFound:
        pass


def format_lines(found: Sequence[FileInspection]) -> Iterator[str]:
    """Format inspections as lines of text."""
    belongs = {id(key): own for _, key, own in match_keys(found)}
    for contents in found:
        if contents.fault:
            continue
        yield f"{contents.file}: {contents.form}"
        for each in contents.certificates:
            yield from _format_certificate(each)
        for key in contents.keys:
            kind = f"{key.alias}, " if key.alias else ""
            kind += f"{key.type}, " if key.type else ""
            state = "encrypted" if key.encrypted else "not encrypted"
            own = belongs.get(id(key))
            yield f"  private key      {kind}{state}" + (f", belongs to {own.subject}" if own else "")


def _format_certificate(each: InspectedCertificate) -> Iterator[str]:
    form = "%Y-%m-%d %H:%M"
    left = (
        f"{each.days_left:.0f} days left" if each.days_left > 0 else f"ended {-each.days_left:.0f} days ago"
    )
    told = {
        "certificate": each.subject or "(no subject)",
        "alias": each.alias,
        "issuer": "itself" if each.self_signed else each.issuer,
        "names": ", ".join(each.names),
        "valid": f"{each.not_before.astimezone(UTC):{form}} to {each.not_after:{form}} UTC, {left}",
        "SHA-256": each.sha256,
        "key": each.key,
        "usages": ", ".join((*each.usages, *(["authority"] if each.authority else []))) or "any",
    }
    for index, (name, value) in enumerate(told.items()):
        if value:
            yield f"{'    ' if index else '  '}{name:<{15 if index else 17}}{value}"
