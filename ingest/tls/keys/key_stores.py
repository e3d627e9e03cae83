"""PKCS#12 (RFC 7292) from PEM and back: key stores, and trust stores as Java reads them.

What is written is encrypted with AES-256 (PBES2), which Java 8u301, 11.0.12 and newer read.
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
from ingest.tls.keys.issuance import key_pem
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
    """A certificate with its chain and its private key, as PKCS#12 that its owner only can read.

    Args:
        out: To write.
        certificate: Of any form but PKCS#12, with its issuers.
        key: Its private key; None where `certificate` holds it too.
        password_file: Its first line opens the store.
        key_password_file: Its first line opens the key.
        alias: By which Java knows the entry; by default the common name.
        force: Replace `out`.

    Raises:
        IngestError: They do not belong together, one cannot be read, or `out` exists.
    """
    refuse_existing(out, force=force, remedy="choose another file")
    key_path = key or certificate
    pair = read_files(certificate, key_path, key_password_file)
    private = opened(pair.keys[0], key_path, key_password_file)
    first, *issuers = (_read(text, certificate) for text in pair.certificates)
    if first.public_key() != private.public_key():
        raise IngestError(f"{certificate}: does not belong to the private key {key_path}; name its own")
    content = pkcs12.serialize_key_and_certificates(
        (alias or _common_name(first)).encode(), private, first, issuers, _encryption(password_file)
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
    """Certificates alone, no private key, each marked as trusted for Java (2.16.840.1.113894.746875.1.1).

    Java shows each as a `trustedCertEntry`; without the mark it would see an empty store.

    Returns:
        The aliases of the entries: common names in lower case, numbered where one is there twice.

    Raises:
        IngestError: A file cannot be read or holds none, or `out` exists.
    """
    refuse_existing(out, force=force, remedy="choose another file")
    entries: dict[str, pkcs12.PKCS12Certificate] = {}
    for certificate in pairs.read_all(paths, source_password_file):
        base = alias = _common_name(certificate)
        number = 1
        while alias in entries:
            number += 1
            alias = f"{base}-{number}"
        entries[alias] = pkcs12.PKCS12Certificate(certificate, alias.encode())
    content = pkcs12.serialize_java_truststore(list(entries.values()), _encryption(password_file))
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
    """PREFIX.crt, with its chain, and PREFIX.key from a key store.

    Args:
        store: PKCS#12.
        prefix: Of the files to write.
        password_file: Its first line opens the store.
        key_password_file: Its first line encrypts the key (PKCS#8).
        force: Replace what is there.

    Raises:
        IngestError: The store cannot be opened or has no key, or a file exists.
    """
    pair = read_store(store, password_file)
    key = pair.keys[0]
    if key_password_file is not None:
        key = key_pem(opened(key, store, None), read_password(key_password_file))
    return pairs.write_both(prefix, "".join(pair.certificates).encode(), key, force=force)


def _read(text: str, path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(text.encode())
    except UNREADABLE as error:
        raise IngestError(f"{path}: {error}; export the certificate again") from None


def _encryption(password_file: Path) -> serialization.KeySerializationEncryption:
    return BestAvailableEncryption(read_store_password(password_file))


def _common_name(certificate: x509.Certificate) -> str:
    """In lower case, since Java takes aliases that differ in capitals for one."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value).lower() if names else "certificate"
