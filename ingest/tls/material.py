"""Gives OpenSSL the key material that a `[tls.NAME]` names.

Each file is read once and goes to OpenSSL through memory: Python's `ssl` takes a pair from files
only, so it is given ones that are on no disk. A key that was in PKCS#12 lies nowhere in the clear.
"""

import contextlib
import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ingest.config.model import TLS
from ingest.errors import ConfigError
from ingest.tls import forms
from ingest.tls.forms import Held, read_password


def load_pair(context: ssl.SSLContext, tls: TLS) -> None:
    """Our own certificate with its chain and its private key, where the section names them.

    Raises:
        ConfigError: They cannot be used; the message names file and remedy, and nothing that is in it.
    """
    found = read_pair(tls)
    if found is None:
        return
    pair, certificate, key = found

    def password() -> bytes:
        # Without it OpenSSL would ask on the terminal.
        if tls.password_file is None:
            raise ConfigError([f"{key}: is encrypted; name the file with its password in password_file"])
        return read_password(tls.password_file)

    with in_memory("".join(pair.certificates).encode()) as chain, in_memory(pair.keys[0]) as private:
        try:
            context.load_cert_chain(chain, private, password)
        except ssl.SSLError as error:
            fault = _diagnose(pair, certificate, key, tls.password_file, error)
            raise ConfigError([fault]) from None


def load_trusted(context: ssl.SSLContext, tls: TLS) -> None:
    """Trust every certificate in the files and folders that the section names.

    Raises:
        ConfigError: A file cannot be used; the message names it and the remedy.
    """
    for path in tls.trusted:
        for file, found in forms.certificates(path, tls.password_file):
            try:
                context.load_verify_locations(cadata="".join(found))
            except ssl.SSLError as error:
                cause = f"a certificate in it cannot be read ({error.reason or error})"
                raise ConfigError([f"{file}: {cause}; export it again as PEM"]) from None


def read_pair(tls: TLS) -> tuple[Held, Path, Path] | None:
    """Own chain and key of a section, and the files that they are from; None where it names none.

    Raises:
        ConfigError: A file cannot be read, or lacks what is looked for.
    """
    if tls.pkcs12 is not None:
        return read_store(tls.pkcs12, tls.password_file), tls.pkcs12, tls.pkcs12
    if tls.certificate is not None:
        key = tls.private_key or tls.certificate
        return read_files(tls.certificate, key), tls.certificate, key
    return None


def read_store(path: Path, password_file: Path | None) -> Held:
    """Own chain and key in PKCS#12, without what else it holds: peers get our certificate and its issuers.

    Raises:
        ConfigError: It cannot be opened, or has no key.
    """
    held = forms.read(path, password_file)
    if held.form == "JKS":
        raise ConfigError([f"{path}: {held.lacks('private key')}"])
    if held.form != "PKCS#12":
        cause = f"is not PKCS#12 but {held.form}" if held.form else "is not PKCS#12"
        raise ConfigError([f"{path}: {cause}; PEM and DER have their own place, certificate and private_key"])
    if not held.keys:
        cause = "holds certificates but no private key: it is a trust store"
        raise ConfigError([f"{path}: {cause}; name the key store here, and this one where peers are trusted"])
    if not held.certificates:
        raise ConfigError([f"{path}: holds no certificate for its key; export it with its chain"])
    from cryptography import x509  # noqa: PLC0415 - it has read the PKCS#12

    first, *others = (x509.load_pem_x509_certificate(text.encode()) for text in held.certificates)
    return Held(held.form, held.certificates[: len(forms.chain(first, others))], held.keys)


def read_files(certificate: Path, key: Path) -> Held:
    """Own chain and key in PEM or DER; the key as it stands, maybe encrypted.

    Raises:
        ConfigError: A file cannot be read, or lacks what is looked for.
    """
    first, second = _no_pkcs12(certificate), _no_pkcs12(key)
    if not first.certificates:
        raise ConfigError([f"{certificate}: {first.lacks('certificate')}"])
    if not second.keys:
        raise ConfigError([f"{key}: {second.lacks('private key')}"])
    return Held(first.form, first.certificates, second.keys)


@contextlib.contextmanager
def in_memory(content: bytes) -> Iterator[str]:
    """The path of a file that is in memory only, for who takes nothing but paths; gone at the end."""
    descriptor = os.memfd_create("pem", os.MFD_CLOEXEC)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        yield f"/proc/self/fd/{descriptor}"


def _no_pkcs12(path: Path) -> Held:
    if forms.begins_as_pkcs12(path):
        raise ConfigError([f"{path}: is PKCS#12; name it in pkcs12, without certificate and private_key"])
    return forms.read(path)


def _diagnose(
    pair: Held, certificate: Path, key: Path, password_file: Path | None, error: ssl.SSLError
) -> str:
    """What is wrong with a pair that OpenSSL refused; its own words do not say which file it means."""
    # Imported here, because only a pair that does not fit needs them.
    from cryptography import x509  # noqa: PLC0415 - see above

    from ingest.tls.identity import UNREADABLE  # noqa: PLC0415 - see above

    try:
        chain = [x509.load_pem_x509_certificate(text.encode()) for text in pair.certificates]
    except UNREADABLE:
        return f"{certificate}: a certificate in it cannot be read; export it again as PEM"
    try:
        own = private_key(pair.keys[0], password_file).public_key()
    except UNREADABLE:
        if forms.is_encrypted(pair.keys[0]):
            return f"{key}: cannot be decrypted with the password in {password_file}; correct the password"
        return f"{key}: its private key cannot be read; export it again as PEM"
    if chain[0].public_key() != own:
        if any(each.public_key() == own for each in chain[1:]):
            return f"{certificate}: does not begin with the certificate of {key}; put it before its issuers"
        return (
            f"{certificate}: does not belong to the private key {key}; name the two that were made together"
        )
    remedy = "make a pair with at least RSA 2048 or EC P-256"
    return f"{certificate}: OpenSSL refuses it ({error.reason or error}); {remedy}"


def private_key(pem: bytes, password_file: Path | None) -> Any:
    """A key in PEM, decrypted with the password in a file where it needs one.

    Raises:
        ValueError: It cannot be read, or the password is wrong.
        UnsupportedAlgorithm: It is of a kind that `cryptography` does not know.
        TypeError: It needs one, and there is none.
        ConfigError: The password file cannot be used.
    """
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415 - as above

    password = read_password(password_file) if password_file and forms.is_encrypted(pem) else None
    return load_pem_private_key(pem, password)
