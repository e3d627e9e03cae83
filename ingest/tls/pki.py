"""Key pairs in files: makes, writes, reads, trusts and inspects them."""

import os
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from ingest.errors import IngestError, PeerError
from ingest.tls import forms
from ingest.tls.forms import read_password
from ingest.tls.identity import Identity, identity_of
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
    "read_pair",
    "self_signed",
    "signed",
    "trust",
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
    certificate, key = files_of(prefix)
    for path in (certificate, key):
        if path.exists() and not force:
            raise IngestError(f"{path} exists; choose another prefix, or --force to replace it")
    try:
        prefix.parent.mkdir(parents=True, exist_ok=True)
        # The key last: where it is, its certificate is too.
        _write(certificate, pair.certificate_pem, 0o644, force=force)
        _write(key, pair.key_pem(password), 0o600, force=force)
    except OSError as error:
        raise IngestError(f"{error.filename}: {error.strerror}; name a place that can be written") from None
    return certificate, key


def _write(path: Path, data: bytes, mode: int, *, force: bool) -> None:
    """Create with these permissions; to replace, create beside it and rename: nobody reads half a file."""
    target = path.with_name(f".{path.name}.{os.getpid()}.new") if force else path
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)  # whatever the umask
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    if force:
        target.replace(path)


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
    """Append a certificate to a PEM bundle, unless it is there; the bundle is made where there is none.

    Raises:
        IngestError: The bundle cannot be read or written.
    """
    try:
        known = bundle.read_bytes() if bundle.exists() else b""
        if certificate in (x509.load_pem_x509_certificates(known) if known.strip() else ()):
            return
        bundle.parent.mkdir(parents=True, exist_ok=True)
        gap = b"" if not known or known.endswith(b"\n") else b"\n"
        comment = f"# {certificate.subject.rfc4514_string()}\n".encode("ascii", "backslashreplace")
        with bundle.open("ab") as file:
            file.write(gap + comment + certificate.public_bytes(serialization.Encoding.PEM))
    except OSError as error:
        raise IngestError(f"{bundle}: {error.strerror}; name a file that can be written") from None
    except ValueError:
        raise IngestError(f"{bundle}: is not a bundle of PEM certificates; name another file") from None


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
