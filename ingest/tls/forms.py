"""What a file of keys and certificates holds, in whatever form a site has it: PEM, DER or PKCS#12 (RFC 7292).

Certificates are passed on as PEM text, unread: OpenSSL, which is to use them, takes some that `cryptography`
does not. That is asked only about what is not PEM.
"""

import base64
import re
import ssl
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ingest.errors import ConfigError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
    from cryptography.hazmat.primitives.serialization.pkcs12 import PKCS12KeyAndCertificates

PASSWORD_MAX: Final = 1024
"""Bytes; Python's limit for the password of a key."""

_CERTIFICATE = re.compile(
    rb"-----BEGIN ((?:X509 |TRUSTED )?CERTIFICATE)-----([A-Za-z0-9+/=\s]+?)-----END \1-----"
)
_KEY = re.compile(rb"-----BEGIN ((?:[A-Z0-9]+ )?PRIVATE KEY)-----.+?-----END \1-----", re.DOTALL)
_SEQUENCE = b"\x30"
"""What all DER and PKCS#12 begins with."""
_PFX_VERSION = b"\x02\x01\x03"
"""RFC 7292 4: the first element of PKCS#12, INTEGER 3; a PKCS#8 key has 0 or 1, a certificate a SEQUENCE."""
_JAVA_KEYSTORES = (b"\xfe\xed\xfe\xed", b"\xce\xce\xce\xce")


@dataclass(frozen=True, slots=True)
class Held:
    """What one file holds.

    Attributes:
        form: "PEM", "DER", "PKCS#12"; "JKS" is Java's old form, which is not read; "" is none of them.
        certificates: As PEM text. Of PKCS#12: the key's own first, its issuers next, then the others.
        keys: Private keys as PEM; those of PEM and DER are as they stand, maybe encrypted.
        names: Of PKCS#12: the alias of each certificate, or "".
        locked: Of PKCS#12: whether a password opened it.
    """

    form: str
    certificates: tuple[str, ...] = ()
    keys: tuple[bytes, ...] = ()
    names: tuple[str, ...] = ()
    locked: bool = False

    def lacks(self, what: str) -> str:
        """Cause and remedy for who looked for a `what` here in vain."""
        if self.form == "JKS":
            return (
                "is a Java key store of the old form; convert it "
                "(`keytool -importkeystore -srckeystore OLD -destkeystore NEW.p12 -deststoretype PKCS12`)"
            )
        if self.certificates and not self.keys:
            return f"holds certificates but no {what}; name the file that does"
        if self.keys and not self.certificates:
            return f"holds a private key but no {what}; name the file that does"
        return f"holds no {what}, neither PEM nor DER; name the file that does"


def is_encrypted(key: bytes) -> bool:
    """Whether a key in PEM needs a password: PKCS#8 (RFC 7468 11) or traditional (RFC 1421 4.6.1.1)."""
    return b"ENCRYPTED" in key


def read(path: Path, password_file: Path | None = None) -> Held:
    """All that a file holds.

    Args:
        path: In any form.
        password_file: Its first line opens PKCS#12.

    Raises:
        ConfigError: It cannot be read, or its PKCS#12 not be opened; the message names it and the remedy.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}; name a file that this user may read"]) from None
    if content.startswith(_JAVA_KEYSTORES):
        return Held("JKS")
    if _is_pkcs12(content):
        return _read_pkcs12(path, content, password_file)
    if content.startswith(_SEQUENCE):
        return _of_der(content)
    certificates = tuple(_as_pem(path, *found.groups()) for found in _CERTIFICATE.finditer(content))
    keys = tuple(found.group() + b"\n" for found in _KEY.finditer(content))
    return Held("PEM" if certificates or keys else "", certificates, keys)


def certificates(path: Path, password_file: Path | None = None) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Each file with certificates at `path`, whatever its name, and these in PEM; all forms as in `read`.

    What stands around them is left out. PKCS#12 that lies in a folder is passed over: it is somebody's key
    store, or has a password of its own; name it, and it is read.

    Raises:
        ConfigError: A file or folder cannot be read, or there is no certificate.
    """
    if not path.is_dir():
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
    try:
        return sorted(entry for entry in path.iterdir() if entry.is_file()) if path.is_dir() else [path]
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}; let this user read the folder"]) from None


def read_password(path: Path) -> bytes:
    """The first line of a password file.

    Raises:
        ConfigError: It cannot be read, is empty, or is longer than a key's password may be.
    """
    try:
        password = path.read_bytes().partition(b"\n")[0].removesuffix(b"\r")
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}; let this user read the password file"]) from None
    if not 0 < len(password) <= PASSWORD_MAX:
        raise ConfigError(
            [f"{path}: holds no password of 1 to {PASSWORD_MAX} bytes; write it on the first line"]
        )
    return password


def chain(first: "x509.Certificate", others: Iterable["x509.Certificate"]) -> list["x509.Certificate"]:
    """A certificate, then its issuers among `others`, each before its own issuer (RFC 8446 4.4.2)."""
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - as below

    from ingest.tls.identity import UNREADABLE  # noqa: PLC0415 - as below

    found, left = [first], [each for each in others if each != first]
    while True:
        for each in left:
            try:
                found[-1].verify_directly_issued_by(each)
            except (InvalidSignature, *UNREADABLE):
                continue
            found.append(each)
            left.remove(each)
            break
        else:
            return found


def _as_pem(path: Path, label: bytes, text: bytes) -> str:
    """As OpenSSL takes it from memory; of its TRUSTED CERTIFICATE what stands before its own notes."""
    if label != b"TRUSTED CERTIFICATE":
        return f"-----BEGIN CERTIFICATE-----{text.decode('ascii')}-----END CERTIFICATE-----\n"
    try:
        both = base64.b64decode(text)
        head = _header(both)
        return ssl.DER_cert_to_PEM_cert(both[: head + int.from_bytes(both[2:head], "big")])
    except (ValueError, IndexError):
        raise ConfigError([f"{path}: a certificate in it cannot be read; export it again as PEM"]) from None


def _header(der: bytes) -> int:
    """Bytes of tag and length of an element (X.690 8.1.3); 2 also where the length is indefinite."""
    return 2 + (der[1] & 0x7F if der[1] & 0x80 else 0)


def _is_pkcs12(content: bytes) -> bool:
    if len(content) < 16 or not content.startswith(_SEQUENCE):
        return False
    return content[_header(content) :].startswith(_PFX_VERSION)


def begins_as_pkcs12(path: Path) -> bool:
    """Whether a file is PKCS#12; false where it cannot be read, which who reads it will say."""
    try:
        with path.open("rb") as file:
            return _is_pkcs12(file.read(16))
    except OSError:
        return False


def _of_der(content: bytes) -> Held:
    # Imported here, because only what is not PEM needs it.
    from cryptography import x509  # noqa: PLC0415 - see above
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 - see above
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - see above

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
    return Held("DER", keys=(_plain(key),))


def _plain(key: "PrivateKeyTypes") -> bytes:
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - as above

    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _read_pkcs12(path: Path, content: bytes, password_file: Path | None) -> Held:
    from cryptography.hazmat.primitives.serialization import pkcs12  # noqa: PLC0415 - as above

    from ingest.tls.identity import UNREADABLE  # noqa: PLC0415 - as above

    passwords = [read_password(password_file)] if password_file else []
    for password in (*passwords, None):  # the password may be for another file of the same section
        try:
            found = pkcs12.load_pkcs12(content, password)
        except ValueError:
            continue
        except UNREADABLE as error:
            raise ConfigError([f"{path}: its PKCS#12 cannot be read ({error}); export it again"]) from None
        try:
            return _of_pkcs12(found, password is not None)
        except UNREADABLE as error:
            raise ConfigError([f"{path}: a part of it cannot be read ({error}); export it again"]) from None
    if password_file is None:
        cause = "is PKCS#12 with a password, or damaged"
        raise ConfigError([f"{path}: {cause}; name the file with its password in password_file"])
    cause = f"its PKCS#12 cannot be opened with the password in {password_file}"
    raise ConfigError([f"{path}: {cause}; correct the password, or export it again"])


def _of_pkcs12(found: "PKCS12KeyAndCertificates", locked: bool) -> Held:
    from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415 - as above

    everything = [*([found.cert] if found.cert else []), *found.additional_certs]
    names = {each.certificate: (each.friendly_name or b"").decode("utf-8", "replace") for each in everything}
    ordered = list(names)
    if found.key is not None:
        own = found.key.public_key()
        first = next((each for each in ordered if each.public_key() == own), None)
        issued = chain(first, ordered) if first else []
        ordered = [*issued, *(each for each in ordered if each not in issued)]
    return Held(
        "PKCS#12",
        certificates=tuple(each.public_bytes(Encoding.PEM).decode("ascii") for each in ordered),
        keys=(_plain(found.key),) if found.key is not None else (),
        names=tuple(names[each] for each in ordered),
        locked=locked,
    )
