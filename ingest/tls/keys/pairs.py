"""Key pairs in files: create, write and read them, and add certificates to bundles."""

import os
import ssl
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from ingest.errors import IngestError, PeerError
from ingest.tls.identity import UNREADABLE, CertificateIdentity, read_identity
from ingest.tls.keys import formats
from ingest.tls.keys.container import is_encrypted
from ingest.tls.keys.files import (
    path_with_ending,
    read_password,
    read_regular_file,
    refuse_existing,
    write_file,
)
from ingest.tls.keys.issuance import (
    DEFAULT_DAYS,
    KEY_TYPES,
    KeyType,
    Pair,
    PrivateKey,
    build_request,
    encode_key,
    generate_key,
    issue_authority,
    issue_self_signed,
    issue_signed,
)
from ingest.tls.keys.loading import opened

__all__ = [
    "DEFAULT_DAYS",
    "KEY_TYPES",
    "CreatedPair",
    "KeyType",
    "Pair",
    "add_all_to_bundle",
    "add_to_bundle",
    "create_pair",
    "create_request",
    "issue_authority",
    "issue_self_signed",
    "issue_signed",
    "pair_paths",
    "read_certificates",
    "read_identities",
    "read_pair",
    "write_pair",
    "write_pair_files",
]


def pair_paths(prefix: Path) -> tuple[Path, Path]:
    """Return `PREFIX.crt` and `PREFIX.key`.

    Raises:
        IngestError: The prefix names a folder instead of a file.
    """
    return path_with_ending(prefix, "crt"), path_with_ending(prefix, "key")


def write_pair(
    pair: Pair, prefix: Path, *, password: bytes | None = None, force: bool = False
) -> tuple[Path, Path]:
    """Write PREFIX.crt and PREFIX.key. The key has mode 0600 from its first byte on.

    Returns:
        The paths of certificate and key.

    Raises:
        IngestError: A file exists and `force` is not set, or the folder cannot be written.
    """
    return write_pair_files(prefix, pair.certificate_pem, pair.encode_key(password), force=force)


def write_pair_files(prefix: Path, certificates: bytes, key: bytes, *, force: bool) -> tuple[Path, Path]:
    """Write a pair that is PEM already; see `write_pair`."""
    paths = pair_paths(prefix)
    refuse_existing(*paths, force=force, remedy="choose another prefix")
    # Write the key last, so that a key never lies there without its certificate.
    write_file(paths[0], certificates, 0o644, force=force)
    write_file(paths[1], key, 0o600, force=force)
    return paths


def read_pair(prefix: Path, password_file: Path | None = None) -> Pair:
    """Read the files of `write_pair`.

    Raises:
        IngestError: A file is missing or holds something else, or the password is wrong or missing.
    """
    certificate, key = pair_paths(prefix)
    try:
        loaded = opened(read_regular_file(key), key, password_file)
        if not isinstance(loaded, PrivateKey):
            raise IngestError(f"{key}: is not an RSA, EC or Ed25519 key; make another")
        return Pair(x509.load_pem_x509_certificate(read_regular_file(certificate)), loaded)
    except OSError as error:
        raise IngestError(f"{error.filename}: {error.strerror}; correct the prefix") from None
    except UNREADABLE:
        raise IngestError(f"{certificate}: is not a PEM certificate; correct the prefix") from None


def add_to_bundle(certificate: x509.Certificate, bundle: Path) -> None:
    """Add a certificate to a PEM bundle if it is not there yet. Create the bundle if it is missing.

    Raises:
        IngestError: The bundle cannot be read or written.
    """
    add_all_to_bundle([certificate], bundle)


def add_all_to_bundle(certificates: Iterable[x509.Certificate], bundle: Path) -> list[x509.Certificate]:
    """Add certificates to a PEM bundle atomically, and return those that were not there yet.

    Raises:
        IngestError: The bundle cannot be read or written.
    """
    bundle = Path(os.path.realpath(bundle))  # Follows links. Unlike Path.resolve it never raises.
    try:
        known = read_regular_file(bundle) if bundle.exists() else b""
        mode = stat.S_IMODE(bundle.stat().st_mode) if known else 0o644
    except OSError as error:
        raise IngestError(f"{bundle}: {error.strerror}; name a file that can be written") from None
    there = _read_bundle(bundle) if known.strip() else []
    added = [each for each in dict.fromkeys(certificates) if each not in there]
    if added:
        gap = b"" if not known or known.endswith(b"\n") else b"\n"
        write_file(bundle, known + gap + b"".join(map(_encode_with_comment, added)), mode, force=True)
    return added


def _read_bundle(bundle: Path) -> list[x509.Certificate]:
    held = formats.read_container(bundle)
    if held.key_format not in ("PEM", "") or not held.certificates:
        cause = f"is {held.key_format}" if held.key_format not in ("PEM", "") else "holds no certificates"
        remedy = "name a new file for the bundle, and this one among those to add"
        raise IngestError(f"{bundle}: {cause}, and is not a bundle of PEM certificates; {remedy}")
    try:
        return [x509.load_pem_x509_certificate(text.encode()) for text in held.certificates]
    except UNREADABLE:
        raise IngestError(f"{bundle}: a certificate in it cannot be read; name another file") from None


def read_certificates(paths: Iterable[Path], password_file: Path | None = None) -> list[x509.Certificate]:
    """Read the certificates in files of any format and in folders, each certificate once.

    Raises:
        IngestError: A file cannot be read, or holds no certificate.
    """
    found: dict[x509.Certificate, None] = {}
    for path in paths:
        for file, texts in formats.iterate_certificates(path, password_file):
            try:
                found |= dict.fromkeys(x509.load_pem_x509_certificate(text.encode()) for text in texts)
            except UNREADABLE as error:
                raise IngestError(f"{file}: {error}; export the certificate again") from None
    return list(found)


def _encode_with_comment(certificate: x509.Certificate) -> bytes:
    subject = certificate.subject.rfc4514_string().encode("ascii", "backslashreplace")
    # A subject may contain line breaks, which would end the comment.
    return b"# " + b" ".join(subject.split()) + b"\n" + certificate.public_bytes(serialization.Encoding.PEM)


def read_identities(path: Path, password_file: Path | None = None) -> tuple[CertificateIdentity, ...]:
    """Read the identity of every certificate in a file of any format, or in the files of a folder.

    Raises:
        IngestError: A file cannot be read, or holds no certificate.
    """
    found = [text for _, texts in formats.iterate_certificates(path, password_file) for text in texts]
    try:
        return tuple(read_identity(ssl.PEM_cert_to_DER_cert(text)) for text in found)
    except (PeerError, ValueError) as error:
        raise IngestError(f"{path}: {error}; export the certificate again") from None


@dataclass(frozen=True, slots=True)
class CreatedPair:
    """The result of `create_pair`.

    Attributes:
        files: The written files, in the order of writing.
        anchor: The certificate that peers must trust: the pair's own, or its authority's.
    """

    files: tuple[Path, ...]
    anchor: x509.Certificate


def create_pair(
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
) -> CreatedPair:
    """Create a pair and write it: `ingest certs new`.

    Args:
        prefix: Prefix of the files to write.
        name: Common name.
        san: Subject alternative names. `name` is added if it is a host name.
        days: Validity in days.
        key_type: Kind of key.
        ca: Prefix of the authority that signs. It is created if neither of its files exists.
        ca_password_file: File whose first line opens the authority's key, or encrypts a new one.
        password_file: File whose first line encrypts the key.
        force: Replace the pair, but never the authority.

    Raises:
        IngestError: A file exists or cannot be written, or a name is invalid.
    """
    # Find every fault before the first file is written.
    refuse_existing(*pair_paths(prefix), force=force, remedy="choose another prefix")
    password = read_password(password_file) if password_file else None
    names = tuple(san)
    if ca is None:
        pair = issue_self_signed(name, names=names, days=days, key_type=key_type)
        return CreatedPair(write_pair(pair, prefix, password=password, force=force), pair.certificate)
    if _real_paths(prefix) & _real_paths(ca):
        raise IngestError(f"{prefix}: is the authority itself; choose another prefix for the pair")
    new = not any(map(os.path.exists, pair_paths(ca)))
    issuer = issue_authority(f"{ca.name} authority") if new else _read_authority(ca, ca_password_file)
    pair = issue_signed(name, issuer, names=names, days=days, key_type=key_type)
    written: tuple[Path, ...] = ()
    if new:
        secret = read_password(ca_password_file) if ca_password_file else None
        written = write_pair(issuer, ca, password=secret)
    return CreatedPair(
        (*written, *write_pair(pair, prefix, password=password, force=force)), issuer.certificate
    )


def create_request(
    prefix: Path,
    name: str,
    *,
    san: Iterable[str] = (),
    key_type: KeyType = "rsa2048",
    key: Path | None = None,
    password_file: Path | None = None,
    force: bool = False,
) -> tuple[Path, ...]:
    """Write PREFIX.csr for the certificate authority of another organization: `ingest certs csr`.

    Args:
        prefix: Prefix of the files to write.
        name: Common name.
        san: Subject alternative names. `name` is added if it is a host name.
        key_type: Kind of a new key.
        key: An existing key. The default is PREFIX.key, which is created if missing and never replaced.
        password_file: File whose first line opens the key, or encrypts a new one.
        force: Replace PREFIX.csr.

    Returns:
        The written files.

    Raises:
        IngestError: A file exists or cannot be written, the key cannot be used, or a name is invalid.
    """
    out, own = path_with_ending(prefix, "csr"), path_with_ending(prefix, "key")
    refuse_existing(out, force=force, remedy="choose another prefix")
    password = read_password(password_file) if password_file else None
    new = key is None and not os.path.exists(own)
    private = generate_key(key_type) if new else _read_key(key or own, password_file)
    content = build_request(name, private, names=san).public_bytes(serialization.Encoding.PEM)
    if new:
        write_file(own, encode_key(private, password), 0o600, force=False)
    write_file(out, content, 0o644, force=force)
    return (own, out) if new else (out,)


def _real_paths(prefix: Path) -> set[str]:
    return {os.path.realpath(path) for path in pair_paths(prefix)}


def _read_authority(ca: Path, password_file: Path | None) -> Pair:
    pair, (_, key) = read_pair(ca, password_file), pair_paths(ca)
    if password_file is not None and not is_encrypted(read_regular_file(key)):
        cause = f"{key}: is not encrypted; leave its password file out"
        raise IngestError(f"{cause}, or encrypt it (`openssl pkey -aes256 -in {key} -out NEW`)")
    return pair


def _read_key(path: Path, password_file: Path | None) -> PrivateKey:
    held = formats.read_container(path)
    if len(held.keys) != 1:
        cause = f"holds {len(held.keys)} private keys" if held.keys else "holds no private key in PEM or DER"
        raise IngestError(f"{path}: {cause}; name a file with exactly one")
    key = opened(held.keys[0], path, password_file)
    if not isinstance(key, PrivateKey):
        raise IngestError(f"{path}: is not an RSA, EC or Ed25519 key; make another")
    return key
