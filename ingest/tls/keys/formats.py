"""Key formats: read files of keys and certificates as PEM, DER, PKCS#7 or PKCS#12.

PEM certificates are passed on as text without being parsed. OpenSSL uses them later, and OpenSSL accepts some
certificates that `cryptography` rejects. Only the other formats are parsed with `cryptography`.
"""

import base64
import os
import re
import ssl
import warnings
from collections.abc import Iterator
from pathlib import Path

from ingest.errors import ConfigError
from ingest.tls.keys.container import KeyContainer, encode_key_unencrypted, order_chain
from ingest.tls.keys.files import list_folder
from ingest.tls.keys.files import read_regular_file as read_file

_CERTIFICATE = re.compile(
    rb"-----BEGIN ((?:X509 |TRUSTED )?CERTIFICATE)-----([A-Za-z0-9+/=\s]+?)-----END \1-----"
)
_KEY = re.compile(rb"-----BEGIN ((?:[A-Z0-9]+ )?PRIVATE KEY)-----.+?-----END \1-----", re.DOTALL)
_PKCS7 = re.compile(rb"-----BEGIN (PKCS7|PKCS #7 SIGNED DATA|CMS)-----([A-Za-z0-9+/=\s]+?)-----END \1-----")
_SEQUENCE = b"\x30"
"""The first byte of DER, PKCS#7 and PKCS#12."""
_SIGNED_DATA = bytes.fromhex("06092a864886f70d010702")
"""RFC 2315 9: the first element of a PKCS#7 file with certificates."""
_PFX_VERSION = b"\x02\x01\x03"
"""RFC 7292 4: PKCS#12 begins with INTEGER 3. A PKCS#8 key has 0 or 1 there, a certificate a SEQUENCE."""
_JAVA_KEYSTORES = (b"\xfe\xed\xfe\xed", b"\xce\xce\xce\xce")


def read_container(path: Path, password_file: Path | None = None) -> KeyContainer:
    """Read all keys and certificates of a file.

    Args:
        path: A file of any format.
        password_file: File whose first line opens a PKCS#12 file.

    Raises:
        ConfigError: The file cannot be read, or its PKCS#12 cannot be opened. The message names the file and
            the remedy.
    """
    try:
        content = read_file(path)
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}; name a file that this user may read"]) from None
    if content.startswith(_JAVA_KEYSTORES):
        return KeyContainer("JKS")
    if _first_element_is(content, _PFX_VERSION):
        # Most files are PEM and need no parser for PKCS#12.
        from ingest.tls.keys import pkcs12  # noqa: PLC0415 - see above

        return pkcs12.parse_pkcs12(path, content, password_file)
    if _first_element_is(content, _SIGNED_DATA):
        return _parse_pkcs7(path, content)
    if content.startswith(_SEQUENCE):
        return _parse_der(content)
    certificates = tuple(_normalize_pem(path, *found.groups()) for found in _CERTIFICATE.finditer(content))
    keys = tuple(found.group() + b"\n" for found in _KEY.finditer(content))
    if not certificates and not keys and (found := _PKCS7.search(content)):
        return _parse_pkcs7(path, found[2], pem=True)
    return KeyContainer("PEM" if certificates or keys else "", certificates, keys)


def iterate_certificates(
    path: Path, password_file: Path | None = None
) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Yield each file with certificates at `path`, and its certificates as PEM.

    The path may be a file or a folder, and file names do not matter. PKCS#12 files in a folder are skipped:
    such a file is usually a key store, possibly with its own password. A PKCS#12 file that is named
    itself is read.

    Raises:
        ConfigError: A file or folder cannot be read, or it holds no certificate.
    """
    if not os.path.isdir(path):
        held = read_container(path, password_file)
        if not held.certificates:
            raise ConfigError([f"{path}: {held.explain_missing('certificate')}"])
        yield path, held.certificates
        return
    found = False
    for file in list_files(path):
        if is_pkcs12_file(file):
            continue
        held = read_container(file)
        if held.certificates:
            found = True
            yield file, held.certificates
    if not found:
        raise ConfigError([f"{path}: holds no file with a certificate, PEM or DER; put one there"])


def list_files(path: Path) -> list[Path]:
    """Return the file itself, or every file of a folder.

    Raises:
        ConfigError: The folder cannot be read. The message names it.
    """
    if not os.path.isdir(path):  # Unlike Path.is_dir it never raises. Reading the file reports the error.
        return [path]
    try:
        return list_folder(path)
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}; let this user read the folder"]) from None


def _normalize_pem(path: Path, label: bytes, text: bytes) -> str:
    """Encode a PEM certificate with regular line lengths, because OpenSSL requires them in memory.

    OpenSSL's TRUSTED CERTIFICATE appends trust settings to the certificate. They are removed.
    """
    try:
        der = base64.b64decode(b"".join(text.split()), validate=True)
        if label == b"TRUSTED CERTIFICATE":
            head = _header_length(der)
            der = der[: head + int.from_bytes(der[2:head], "big")]
    except (ValueError, IndexError):
        raise ConfigError([f"{path}: a certificate in it cannot be read; export it again as PEM"]) from None
    return ssl.DER_cert_to_PEM_cert(der)


def _header_length(der: bytes) -> int:
    """Return the bytes that tag and length take (X.690 8.1.3), and 2 if the length is indefinite."""
    return 2 + (der[1] & 0x7F if der[1] & 0x80 else 0)


def _first_element_is(content: bytes, element: bytes) -> bool:
    """Tell whether `element` is the first element inside the outer SEQUENCE."""
    if len(content) < 16 or not content.startswith(_SEQUENCE):
        return False
    return content[_header_length(content) :].startswith(element)


def is_pkcs12_file(path: Path) -> bool:
    """Tell whether a file is PKCS#12. Return False if it cannot be read: a later read reports the error."""
    try:
        return _first_element_is(read_file(path, 16), _PFX_VERSION)
    except OSError:
        return False


def _parse_der(content: bytes) -> KeyContainer:
    from cryptography import x509  # noqa: PLC0415 - as above
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 - as above
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - as above

    try:
        x509.load_der_x509_certificate(content)
        return KeyContainer("DER", certificates=(ssl.DER_cert_to_PEM_cert(content),))
    except (ValueError, x509.InvalidVersion):
        pass
    try:
        key = serialization.load_der_private_key(content, None)
    except TypeError:  # needs a password: RFC 5958 3, EncryptedPrivateKeyInfo
        text = base64.encodebytes(content)
        label = b"ENCRYPTED PRIVATE KEY-----\n"
        return KeyContainer("DER", keys=(b"-----BEGIN " + label + text + b"-----END " + label,))
    except (ValueError, UnsupportedAlgorithm):
        return KeyContainer("")
    return KeyContainer("DER", keys=(encode_key_unencrypted(key),))


def _parse_pkcs7(path: Path, content: bytes, *, pem: bool = False) -> KeyContainer:
    from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415 - as above
    from cryptography.hazmat.primitives.serialization.pkcs7 import (  # noqa: PLC0415 - as above
        load_der_pkcs7_certificates,
    )

    from ingest.tls.identity import UNREADABLE  # noqa: PLC0415 - as above

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # OpenSSL writes sets that are not in DER order.
            found = load_der_pkcs7_certificates(base64.b64decode(content) if pem else content)
        issuers = [each.issuer for each in found if each.issuer != each.subject]
        first = next((each for each in found if each.subject not in issuers), found[0])
        ordered = dict.fromkeys((*order_chain(first, found), *found))
        texts = tuple(each.public_bytes(Encoding.PEM).decode("ascii") for each in ordered)
    except (IndexError, *UNREADABLE):
        remedy = (
            "take its certificates out (`openssl pkcs7 -print_certs -in OLD -out NEW`, -inform DER if it is)"
        )
        raise ConfigError([f"{path}: its PKCS#7 cannot be read; {remedy}"]) from None
    return KeyContainer("PKCS#7", texts)
