"""Key pairs in files: makes, writes, reads, trusts and inspects them."""

import os
import secrets
import ssl
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from ingest.errors import IngestError, PeerError
from ingest.tls import forms
from ingest.tls.forms import read_password
from ingest.tls.identity import UNREADABLE, Identity, identity_of
from ingest.tls.issue import (
    DEFAULT_DAYS,
    KEY_TYPES,
    KeyType,
    Pair,
    PrivateKey,
    authority,
    general_name,
    self_signed,
    signed,
)

__all__ = [
    "DEFAULT_DAYS",
    "KEY_TYPES",
    "KeyType",
    "Made",
    "Pair",
    "authority",
    "files_of",
    "inspect",
    "make",
    "read_all",
    "read_pair",
    "refuse_existing",
    "self_signed",
    "signed",
    "trust",
    "trust_all",
    "write_both",
    "write_file",
    "write_pair",
]


def files_of(prefix: Path) -> tuple[Path, Path]:
    """`PREFIX.crt` and `PREFIX.key`."""
    return prefix.with_name(f"{prefix.name}.crt"), prefix.with_name(f"{prefix.name}.key")


def write_pair(
    pair: Pair, prefix: Path, *, password: bytes | None = None, force: bool = False
) -> tuple[Path, Path]:
    """Write PREFIX.crt and PREFIX.key; the key can be read by its owner only, from its first byte on.

    Returns:
        The paths of certificate and key.

    Raises:
        IngestError: One of them exists and `force` is not set, or the folder cannot be written.
    """
    return write_both(prefix, pair.certificate_pem, pair.key_pem(password), force=force)


def write_both(prefix: Path, certificates: bytes, key: bytes, *, force: bool) -> tuple[Path, Path]:
    """As `write_pair`, of what is PEM already."""
    paths = files_of(prefix)
    refuse_existing(*paths, force=force, remedy="choose another prefix")
    # The key last: where it is, its certificate is too.
    write_file(paths[0], certificates, 0o644, force=force)
    write_file(paths[1], key, 0o600, force=force)
    return paths


def refuse_existing(*paths: Path, force: bool, remedy: str) -> None:
    """Before anything is written.

    Raises:
        IngestError: One of them exists and `force` is not set.
    """
    for path in paths:
        if path.exists() and not force:
            raise IngestError(f"{path} exists; {remedy}, or --force to replace it")


def write_file(path: Path, content: bytes, mode: int, *, force: bool) -> None:
    """Make a file with these permissions from its first byte on, whole or not at all, with its folder.

    Raises:
        IngestError: It exists and `force` is not set, or the folder cannot be written.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(descriptor, mode)  # whatever the umask
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            if force:
                beside.replace(path)
            else:
                path.hardlink_to(beside)  # unlike a rename, it never replaces
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise IngestError(f"{path}: {error.strerror}; name a place that can be written") from None


def read_pair(prefix: Path) -> Pair:
    """Read back what `write_pair` wrote without a password.

    Raises:
        IngestError: A file is missing or holds something else.
    """
    certificate, key = files_of(prefix)
    try:
        loaded = serialization.load_pem_private_key(key.read_bytes(), password=None)
        if not isinstance(loaded, PrivateKey):
            raise IngestError(f"{key}: is no RSA, EC or Ed25519 key; make another")
        return Pair(x509.load_pem_x509_certificate(certificate.read_bytes()), loaded)
    except OSError as error:
        raise IngestError(f"{error.filename}: {error.strerror}; correct the prefix") from None
    except (ValueError, TypeError) as error:
        raise IngestError(f"{prefix}: is not a pair in PEM without a password ({error})") from None


def trust(certificate: x509.Certificate, bundle: Path) -> None:
    """Add a certificate to a PEM bundle, unless it is there; the bundle is made where there is none.

    Raises:
        IngestError: The bundle cannot be read or written.
    """
    trust_all([certificate], bundle)


def trust_all(certificates: Iterable[x509.Certificate], bundle: Path) -> list[x509.Certificate]:
    """As `trust`; those that were not there. Who reads the bundle meanwhile sees the old one or the new one.

    Raises:
        IngestError: The bundle cannot be read or written.
    """
    bundle = bundle.resolve()
    try:
        known = bundle.read_bytes() if bundle.exists() else b""
        mode = stat.S_IMODE(bundle.stat().st_mode) if known else 0o644
        there = x509.load_pem_x509_certificates(known) if known.strip() else []
    except OSError as error:
        raise IngestError(f"{bundle}: {error.strerror}; name a file that can be written") from None
    except UNREADABLE:
        raise IngestError(f"{bundle}: is not a bundle of PEM certificates; name another file") from None
    added = [each for each in dict.fromkeys(certificates) if each not in there]
    if added:
        gap = b"" if not known or known.endswith(b"\n") else b"\n"
        write_file(bundle, known + gap + b"".join(map(_commented, added)), mode, force=True)
    return added


def read_all(paths: Iterable[Path], password_file: Path | None = None) -> list[x509.Certificate]:
    """The certificates in files of any form and in folders, each once.

    Raises:
        IngestError: A file cannot be read, or holds none.
    """
    found: dict[x509.Certificate, None] = {}
    for path in paths:
        for file, texts in forms.certificates(path, password_file):
            try:
                found |= dict.fromkeys(x509.load_pem_x509_certificate(text.encode()) for text in texts)
            except UNREADABLE as error:
                raise IngestError(f"{file}: {error}; export the certificate again") from None
    return list(found)


def _commented(certificate: x509.Certificate) -> bytes:
    subject = certificate.subject.rfc4514_string().encode("ascii", "backslashreplace")
    # A subject may hold whatever its maker liked, also the end of a line.
    return b"# " + b" ".join(subject.split()) + b"\n" + certificate.public_bytes(serialization.Encoding.PEM)


def inspect(path: Path, password_file: Path | None = None) -> tuple[Identity, ...]:
    """Every certificate in a file of any form, or in the files of a folder, in their order.

    Raises:
        IngestError: It cannot be read or holds none.
    """
    found = [text for _, texts in forms.certificates(path, password_file) for text in texts]
    try:
        return tuple(identity_of(ssl.PEM_cert_to_DER_cert(text)) for text in found)
    except (PeerError, ValueError) as error:
        raise IngestError(f"{path}: {error}; export the certificate again") from None


@dataclass(frozen=True, slots=True)
class Made:
    """What `make` wrote.

    Attributes:
        files: Every file, in the order of writing.
        anchor: The certificate that peers must trust: the pair's own, or its authority's.
    """

    files: tuple[Path, ...]
    anchor: x509.Certificate


def make(
    prefix: Path,
    name: str,
    *,
    san: Iterable[str] = (),
    days: int = DEFAULT_DAYS,
    key_type: KeyType = "rsa2048",
    ca: Path | None = None,
    password_file: Path | None = None,
    force: bool = False,
) -> Made:
    """Make a pair and write it: `ingest certs new`.

    Args:
        prefix: Of the files to write.
        name: Common name.
        san: Alternative names; by default `name`.
        days: Validity.
        key_type: Kind of key.
        ca: Prefix of the authority that signs; it is made where neither of its files is there.
        password_file: Its first line encrypts the key.
        force: Replace the pair (never the authority).

    Raises:
        IngestError: A file is there or cannot be written, or a name is none.
    """
    password = read_password(password_file) if password_file else None
    names = tuple(san)
    for text in names:
        general_name(text)  # before anything is written
    written: tuple[Path, ...] = ()
    if ca is None:
        pair = self_signed(name, names=names, days=days, key_type=key_type)
        anchor = pair.certificate
    else:
        if not any(path.exists() for path in files_of(ca)):
            written = write_pair(authority(f"{ca.name} authority"), ca)
        issuer = read_pair(ca)
        pair = signed(name, issuer, names=names, days=days, key_type=key_type)
        anchor = issuer.certificate
    return Made((*written, *write_pair(pair, prefix, password=password, force=force)), anchor)
