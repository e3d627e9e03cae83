"""Key stores and trust stores: convert between PEM and PKCS#12 (RFC 7292), as Java reads it.

Stores are encrypted with AES-256 (PBES2). Java 8u301, 11.0.12 and newer can read them.
"""

from collections.abc import Iterable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, pkcs12
from cryptography.x509.oid import NameOID

from ingest.errors import IngestError
from ingest.tls.identity import UNREADABLE
from ingest.tls.keys import pairs
from ingest.tls.keys.files import read_password, read_store_password, refuse_existing, write_file
from ingest.tls.keys.issuance import encode_key
from ingest.tls.keys.loading import opened, read_files, read_store


def make_key_store(
    out: Path,
    certificate: Path,
    key: Path | None,
    *,
    password_file: Path,
    key_password_file: Path | None = None,
    alias: str = "",
    force: bool = False,
) -> None:
    """Write a certificate, its chain and its private key as PKCS#12 with mode 0600.

    Args:
        out: File to write.
        certificate: File of any format except PKCS#12, with the certificate and its issuers.
        key: File with the private key. None if `certificate` holds it too.
        password_file: File whose first line encrypts the store.
        key_password_file: File whose first line opens the key.
        alias: Name of the entry in Java. The default is the common name.
        force: Replace `out`.

    Raises:
        IngestError: Key and certificate do not match, a file cannot be read, or `out` exists.
    """
    refuse_existing(out, force=force, remedy="choose another file")
    key_path = key or certificate
    pair = read_files(certificate, key_path, key_password_file)
    private = opened(pair.keys[0], key_path, key_password_file)
    first, *issuers = (_load_certificate(text, certificate) for text in pair.certificates)
    if first.public_key() != private.public_key():
        raise IngestError(f"{certificate}: does not belong to the private key {key_path}; name its own")
    content = pkcs12.serialize_key_and_certificates(
        (alias or _common_name(first)).encode(), private, first, issuers, _read_encryption(password_file)
    )
    write_file(out, content, 0o600, force=force)


def make_trust_store(
    out: Path,
    paths: Iterable[Path],
    *,
    password_file: Path,
    source_password_file: Path | None = None,
    force: bool = False,
) -> list[str]:
    """Write a trust store: certificates without private keys.

    Each entry has Java's attribute for trusted certificates (2.16.840.1.113894.746875.1.1). Without the
    attribute Java sees an empty store.

    Returns:
        The aliases of the entries: common names in lower case, numbered if one occurs twice.

    Raises:
        IngestError: A file cannot be read or holds no certificate, or `out` exists.
    """
    refuse_existing(out, force=force, remedy="choose another file")
    entries: dict[str, pkcs12.PKCS12Certificate] = {}
    for certificate in pairs.read_certificates(paths, source_password_file):
        base = alias = _common_name(certificate)
        number = 1
        while alias in entries:
            number += 1
            alias = f"{base}-{number}"
        entries[alias] = pkcs12.PKCS12Certificate(certificate, alias.encode())
    content = pkcs12.serialize_java_truststore(list(entries.values()), _read_encryption(password_file))
    write_file(out, content, 0o644, force=force)
    return list(entries)


def split_key_store(
    store: Path,
    prefix: Path,
    *,
    password_file: Path | None,
    key_password_file: Path | None = None,
    force: bool = False,
) -> tuple[Path, Path]:
    """Write PREFIX.crt, with its chain, and PREFIX.key from a key store.

    Args:
        store: PKCS#12 file.
        prefix: Prefix of the files to write.
        password_file: File whose first line opens the store.
        key_password_file: File whose first line encrypts the key (PKCS#8).
        force: Replace existing files.

    Returns:
        The paths of certificate and key.

    Raises:
        IngestError: The store cannot be opened or has no key, or a file exists.
    """
    pair = read_store(store, password_file)
    key = pair.keys[0]
    if key_password_file is not None:
        key = encode_key(opened(key, store, None), read_password(key_password_file))
    return pairs.write_pair_files(prefix, "".join(pair.certificates).encode(), key, force=force)


def _load_certificate(text: str, path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(text.encode())
    except UNREADABLE as error:
        raise IngestError(f"{path}: {error}; export the certificate again") from None


def _read_encryption(password_file: Path) -> serialization.KeySerializationEncryption:
    return BestAvailableEncryption(read_store_password(password_file))


def _common_name(certificate: x509.Certificate) -> str:
    """Return the common name in lower case, because aliases in Java do not distinguish case."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value).lower() if names else "certificate"
