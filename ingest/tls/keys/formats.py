"""What a file of keys and certificates holds, in whatever form a site has it: PEM, DER, PKCS#7 or PKCS#12.

Certificates are passed on as PEM text, unread: OpenSSL, which is to use them, takes some that `cryptography`
does not. That is asked only about what is not PEM.
"""

import base64
import os
import re
import ssl
import warnings
from collections.abc import Iterator
from pathlib import Path

from ingest.errors import ConfigError
from ingest.tls.keys.container import Held, plain, with_issuers
from ingest.tls.keys.files import listing
from ingest.tls.keys.files import read as read_file

_CERTIFICATE = re.compile(
    rb"-----BEGIN ((?:X509 |TRUSTED )?CERTIFICATE)-----([A-Za-z0-9+/=\s]+?)-----END \1-----"
)
_KEY = re.compile(rb"-----BEGIN ((?:[A-Z0-9]+ )?PRIVATE KEY)-----.+?-----END \1-----", re.DOTALL)
_PKCS7 = re.compile(rb"-----BEGIN (PKCS7|PKCS #7 SIGNED DATA|CMS)-----([A-Za-z0-9+/=\s]+?)-----END \1-----")
_SEQUENCE = b"\x30"
"""What all DER, PKCS#7 and PKCS#12 begins with."""
_SIGNED_DATA = bytes.fromhex("06092a864886f70d010702")
"""RFC 2315 9: the first element of PKCS#7 with certificates."""
_PFX_VERSION = b"\x02\x01\x03"
"""RFC 7292 4: the first element of PKCS#12, INTEGER 3; a PKCS#8 key has 0 or 1, a certificate a SEQUENCE."""
_JAVA_KEYSTORES = (b"\xfe\xed\xfe\xed", b"\xce\xce\xce\xce")


def read(path: Path, password_file: Path | None = None) -> Held:
    """All that a file holds.

    Args:
        path: In any form.
        password_file: Its first line opens PKCS#12.

    Raises:
        ConfigError: It cannot be read, or its PKCS#12 not be opened; the message names it and the remedy.
    """
    try:
        content = read_file(path)
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}; name a file that this user may read"]) from None
    if content.startswith(_JAVA_KEYSTORES):
        return Held("JKS")
    if _begins(content, _PFX_VERSION):
        # Imported here, because only what is not PEM needs it.
        from ingest.tls.keys import pkcs12  # noqa: PLC0415 - see above

        return pkcs12.read(path, content, password_file)
    if _begins(content, _SIGNED_DATA):
        return _of_pkcs7(path, content)
    if content.startswith(_SEQUENCE):
        return _of_der(content)
    certificates = tuple(_as_pem(path, *found.groups()) for found in _CERTIFICATE.finditer(content))
    keys = tuple(found.group() + b"\n" for found in _KEY.finditer(content))
    if not certificates and not keys and (found := _PKCS7.search(content)):
        return _of_pkcs7(path, found[2], pem=True)
    return Held("PEM" if certificates or keys else "", certificates, keys)


def certificates(path: Path, password_file: Path | None = None) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Each file with certificates at `path`, whatever its name, and these in PEM; all forms as in `read`.

    What stands around them is left out. PKCS#12 that lies in a folder is passed over: it is somebody's key
    store, or has a password of its own; name it, and it is read.

    Raises:
        ConfigError: A file or folder cannot be read, or there is no certificate.
    """
    if not os.path.isdir(path):
        held = read(path, password_file)
        if not held.certificates:
            raise ConfigError([f"{path}: {held.lacks('certificate')}"])
        yield path, held.certificates
        return
    found = False
    for file in files(path):
        if begins_as_pkcs12(file):
            continue
        held = read(file)
        if held.certificates:
            found = True
            yield file, held.certificates
    if not found:
        raise ConfigError([f"{path}: holds no file with a certificate, PEM or DER; put one there"])


def files(path: Path) -> list[Path]:
    """The file itself, or every file of a folder.

    Raises:
        ConfigError: The folder cannot be read; the message names it.
    """
    if not os.path.isdir(path):  # unlike Path.is_dir, it never raises: who reads it will say why
        return [path]
    try:
        return listing(path)
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}; let this user read the folder"]) from None


def _as_pem(path: Path, label: bytes, text: bytes) -> str:
    """As OpenSSL takes it from memory, however its lines were broken.

    Of its TRUSTED CERTIFICATE what stands before its own notes.
    """
    try:
        der = base64.b64decode(b"".join(text.split()), validate=True)
        if label == b"TRUSTED CERTIFICATE":
            head = _header(der)
            der = der[: head + int.from_bytes(der[2:head], "big")]
    except (ValueError, IndexError):
        raise ConfigError([f"{path}: a certificate in it cannot be read; export it again as PEM"]) from None
    return ssl.DER_cert_to_PEM_cert(der)


def _header(der: bytes) -> int:
    """Bytes of tag and length of an element (X.690 8.1.3); 2 also where the length is indefinite."""
    return 2 + (der[1] & 0x7F if der[1] & 0x80 else 0)


def _begins(content: bytes, element: bytes) -> bool:
    """Whether this is the first element of it."""
    if len(content) < 16 or not content.startswith(_SEQUENCE):
        return False
    return content[_header(content) :].startswith(element)


def begins_as_pkcs12(path: Path) -> bool:
    """Whether a file is PKCS#12; false where it cannot be read, which who reads it will say."""
    try:
        return _begins(read_file(path, 16), _PFX_VERSION)
    except OSError:
        return False


def _of_der(content: bytes) -> Held:
    from cryptography import x509  # noqa: PLC0415 - as above
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 - as above
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - as above

    try:
        x509.load_der_x509_certificate(content)
        return Held("DER", certificates=(ssl.DER_cert_to_PEM_cert(content),))
    except (ValueError, x509.InvalidVersion):
        pass
    try:
        key = serialization.load_der_private_key(content, None)
    except TypeError:  # needs a password: RFC 5958 3, EncryptedPrivateKeyInfo
        text = base64.encodebytes(content)
        label = b"ENCRYPTED PRIVATE KEY-----\n"
        return Held("DER", keys=(b"-----BEGIN " + label + text + b"-----END " + label,))
    except (ValueError, UnsupportedAlgorithm):
        return Held("")
    return Held("DER", keys=(plain(key),))


def _of_pkcs7(path: Path, content: bytes, *, pem: bool = False) -> Held:
    from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415 - as above
    from cryptography.hazmat.primitives.serialization.pkcs7 import (  # noqa: PLC0415 - as above
        load_der_pkcs7_certificates,
    )

    from ingest.tls.identity import UNREADABLE  # noqa: PLC0415 - as above

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a set is not in the order of DER, as OpenSSL writes it
            found = load_der_pkcs7_certificates(base64.b64decode(content) if pem else content)
        issuers = [each.issuer for each in found if each.issuer != each.subject]
        first = next((each for each in found if each.subject not in issuers), found[0])
        ordered = dict.fromkeys((*with_issuers(first, found), *found))
        texts = tuple(each.public_bytes(Encoding.PEM).decode("ascii") for each in ordered)
    except (IndexError, *UNREADABLE):
        remedy = (
            "take its certificates out (`openssl pkcs7 -print_certs -in OLD -out NEW`, -inform DER if it is)"
        )
        raise ConfigError([f"{path}: its PKCS#7 cannot be read; {remedy}"]) from None
    return Held("PKCS#7", texts)
