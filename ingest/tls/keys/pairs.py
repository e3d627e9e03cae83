"""Key pairs in files: makes, writes, reads, trusts and inspects them."""

import os
import ssl
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from ingest.errors import IngestError, PeerError
from ingest.tls.identity import UNREADABLE, Identity, identity_of
from ingest.tls.keys import formats
from ingest.tls.keys.container import is_encrypted
from ingest.tls.keys.files import beside, read, read_password, refuse_existing, write_file
from ingest.tls.keys.issuance import (
    DEFAULT_DAYS,
    KEY_TYPES,
    KeyType,
    Pair,
    PrivateKey,
    authority,
    key_pem,
    new_key,
    request,
    self_signed,
    signed,
)
from ingest.tls.keys.loading import opened

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
    "make_request",
    "read_all",
    "read_pair",
    "self_signed",
    "signed",
    "trust",
    "trust_all",
    "write_both",
    "write_pair",
]


def files_of(prefix: Path) -> tuple[Path, Path]:
    """`PREFIX.crt` and `PREFIX.key`.

    Raises:
        IngestError: The prefix is no name.
    """
    return beside(prefix, "crt"), beside(prefix, "key")


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


def read_pair(prefix: Path, password_file: Path | None = None) -> Pair:
    """Read back what `write_pair` wrote.

    Raises:
        IngestError: A file is missing or holds something else, or the password is wrong or missing.
    """
    certificate, key = files_of(prefix)
    try:
        loaded = opened(read(key), key, password_file)
        if not isinstance(loaded, PrivateKey):
            raise IngestError(f"{key}: is no RSA, EC or Ed25519 key; make another")
        return Pair(x509.load_pem_x509_certificate(read(certificate)), loaded)
    except OSError as error:
        raise IngestError(f"{error.filename}: {error.strerror}; correct the prefix") from None
    except UNREADABLE:
        raise IngestError(f"{certificate}: is no certificate in PEM; correct the prefix") from None


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
    bundle = Path(os.path.realpath(bundle))  # the file behind a link; unlike Path.resolve, it never raises
    try:
        known = read(bundle) if bundle.exists() else b""
        mode = stat.S_IMODE(bundle.stat().st_mode) if known else 0o644
    except OSError as error:
        raise IngestError(f"{bundle}: {error.strerror}; name a file that can be written") from None
    there = _bundled(bundle) if known.strip() else []
    added = [each for each in dict.fromkeys(certificates) if each not in there]
    if added:
        gap = b"" if not known or known.endswith(b"\n") else b"\n"
        write_file(bundle, known + gap + b"".join(map(_commented, added)), mode, force=True)
    return added


def _bundled(bundle: Path) -> list[x509.Certificate]:
    held = formats.read(bundle)
    if held.form not in ("PEM", "") or not held.certificates:
        cause = f"is {held.form}" if held.form not in ("PEM", "") else "holds no certificates"
        remedy = "name a new file for the bundle, and this one among those to add"
        raise IngestError(f"{bundle}: {cause}, and is not a bundle of PEM certificates; {remedy}")
    try:
        return [x509.load_pem_x509_certificate(text.encode()) for text in held.certificates]
    except UNREADABLE:
        raise IngestError(f"{bundle}: a certificate in it cannot be read; name another file") from None


def read_all(paths: Iterable[Path], password_file: Path | None = None) -> list[x509.Certificate]:
    """The certificates in files of any form and in folders, each once.

    Raises:
        IngestError: A file cannot be read, or holds none.
    """
    found: dict[x509.Certificate, None] = {}
    for path in paths:
        for file, texts in formats.certificates(path, password_file):
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
    found = [text for _, texts in formats.certificates(path, password_file) for text in texts]
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
    ca_password_file: Path | None = None,
    password_file: Path | None = None,
    force: bool = False,
) -> Made:
    """Make a pair and write it: `ingest certs new`.

    Args:
        prefix: Of the files to write.
        name: Common name.
        san: Alternative names, beside `name` if it is a host.
        days: Validity.
        key_type: Kind of key.
        ca: Prefix of the authority that signs; it is made where neither of its files is there.
        ca_password_file: Its first line opens the authority's key, or encrypts it when it is made.
        password_file: Its first line encrypts the key.
        force: Replace the pair (never the authority).

    Raises:
        IngestError: A file is there or cannot be written, or a name is none.
    """
    # All that can go wrong, before anything is written.
    refuse_existing(*files_of(prefix), force=force, remedy="choose another prefix")
    password = read_password(password_file) if password_file else None
    names = tuple(san)
    if ca is None:
        pair = self_signed(name, names=names, days=days, key_type=key_type)
        return Made(write_pair(pair, prefix, password=password, force=force), pair.certificate)
    if _places(prefix) & _places(ca):
        raise IngestError(f"{prefix}: is the authority itself; choose another prefix for the pair")
    new = not any(map(os.path.exists, files_of(ca)))
    issuer = authority(f"{ca.name} authority") if new else _read_authority(ca, ca_password_file)
    pair = signed(name, issuer, names=names, days=days, key_type=key_type)
    written: tuple[Path, ...] = ()
    if new:
        secret = read_password(ca_password_file) if ca_password_file else None
        written = write_pair(issuer, ca, password=secret)
    return Made((*written, *write_pair(pair, prefix, password=password, force=force)), issuer.certificate)


def make_request(
    prefix: Path,
    name: str,
    *,
    san: Iterable[str] = (),
    key_type: KeyType = "rsa2048",
    key: Path | None = None,
    password_file: Path | None = None,
    force: bool = False,
) -> tuple[Path, ...]:
    """Write PREFIX.csr, for an authority that somebody else has: `ingest certs csr`.

    Args:
        prefix: Of the files to write.
        name: As for `make`, like `san` and `key_type`.
        san: Alternative names.
        key_type: Kind of key, where it is made.
        key: An existing key; by default PREFIX.key, which is made where it is not there, and never replaced.
        password_file: Its first line opens the key, or encrypts it when it is made.
        force: Replace PREFIX.csr.

    Returns:
        The files that were written.

    Raises:
        IngestError: A file is there or cannot be written, the key cannot be used, or a name is none.
    """
    out, own = beside(prefix, "csr"), beside(prefix, "key")
    refuse_existing(out, force=force, remedy="choose another prefix")
    password = read_password(password_file) if password_file else None
    new = key is None and not os.path.exists(own)
    private = new_key(key_type) if new else _read_key(key or own, password_file)
    content = request(name, private, names=san).public_bytes(serialization.Encoding.PEM)
    if new:
        write_file(own, key_pem(private, password), 0o600, force=False)
    write_file(out, content, 0o644, force=force)
    return (own, out) if new else (out,)


def _places(prefix: Path) -> set[str]:
    return {os.path.realpath(path) for path in files_of(prefix)}


def _read_authority(ca: Path, password_file: Path | None) -> Pair:
    pair, (_, key) = read_pair(ca, password_file), files_of(ca)
    if password_file is not None and not is_encrypted(read(key)):
        cause = f"{key}: is not encrypted; leave its password file out"
        raise IngestError(f"{cause}, or encrypt it (`openssl pkey -aes256 -in {key} -out NEW`)")
    return pair


def _read_key(path: Path, password_file: Path | None) -> PrivateKey:
    held = formats.read(path)
    if len(held.keys) != 1:
        cause = f"holds {len(held.keys)} private keys" if held.keys else "holds no private key in PEM or DER"
        raise IngestError(f"{path}: {cause}; name a file with the one that is meant")
    key = opened(held.keys[0], path, password_file)
    if not isinstance(key, PrivateKey):
        raise IngestError(f"{path}: is no RSA, EC or Ed25519 key; make another")
    return key
