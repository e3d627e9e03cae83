"""Loading of the keys and certificates of a `[tls.NAME]` section into OpenSSL.

Each file is read once and passed to OpenSSL in memory. A key from PKCS#12 is never written to disk in the
clear.
"""

import base64
import contextlib
import os
import re
import ssl
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final

from ingest.config.model import TLS
from ingest.errors import ConfigError
from ingest.ext.tls_context import Context
from ingest.tls.keys import formats
from ingest.tls.keys.container import KeyContainer, encode_key_unencrypted, is_encrypted, order_chain
from ingest.tls.keys.files import read_password

_OLD_CIPHERS: Final = {
    "DES": rb"DEK-Info: DES-CBC,|\x2a\x86\x48\x86\xf7\x0d\x01\x05[\x01\x03\x0a]|\x2b\x0e\x03\x02\x07",
    "RC2": rb"DEK-Info: RC2-|\x2a\x86\x48\x86\xf7\x0d"
    rb"(?:\x01\x05[\x04\x06\x0b]|\x01\x0c\x01[\x05\x06]|\x03\x02)",
    "RC4": rb"\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x01[\x01\x02]",
}
"""Byte patterns of keys with an old encryption. A pattern is a line (RFC 1421 4.6.1.3), or an object
identifier of PBES1 (RFC 8018 A.3), of a scheme of PBES2 (B.2) or of PKCS#12 (RFC 7292 C)."""
_AGAIN: Final = (
    "encrypt it again with AES (`openssl pkey -provider legacy -provider default -aes256 -in OLD -out NEW`)"
)
_REMEDIES: Final = {
    "KEY_TOO_SMALL": "make a pair with at least RSA 2048 or EC P-256",
    "MD_TOO_WEAK": "have it signed with SHA-256 or better",
}
"""Remedy by the suffix of OpenSSL's reason (sslerr.h)."""


def load_pair(context: Context, tls: TLS) -> None:
    """Load our certificate, its chain and its private key, if the section names them.

    Raises:
        ConfigError: They cannot be used. The message names file and remedy, but no content of the file.
    """
    found = read_pair(tls)
    if found is None:
        return
    pair, certificate, key = found

    def password() -> bytes:
        if tls.password_file is None:
            raise ConfigError([f"{key}: is encrypted; name the file with its password in password_file"])
        return read_password(tls.password_file)

    with contextlib.suppress(ssl.SSLError):
        context.load_pair("".join(pair.certificates).encode(), pair.keys[0], password)
        _require_strong_digests(context, pair, certificate)
        return
    # OpenSSL reads fewer old ciphers and variants of PEM than `cryptography`, and its error names no file.
    pair = _reencode_pair(pair, certificate, key, tls.password_file)
    try:
        context.load_pair("".join(pair.certificates).encode(), pair.keys[0])
    except ssl.SSLError as error:
        raise ConfigError([_explain_refusal(certificate, error)]) from None
    _require_strong_digests(context, pair, certificate)


def _require_strong_digests(context: Context, pair: KeyContainer, certificate: Path) -> None:
    """Refuse a chain that is signed with MD5 or SHA-1, which peers at this security level refuse.

    OpenSSL 3.0 does so itself when it loads the chain. OpenSSL 3.5 loads it, and each handshake fails.

    Raises:
        ConfigError: A certificate that is not self-signed has such a signature.
    """
    from cryptography import x509  # noqa: PLC0415 - as below

    from ingest.tls.identity import UNREADABLE  # noqa: PLC0415 - as below

    if context.security_level < 1:
        return
    with contextlib.suppress(*UNREADABLE):
        for found in map(x509.load_pem_x509_certificate, map(str.encode, pair.certificates)):
            digest = found.signature_hash_algorithm
            if digest is not None and digest.name in {"md5", "sha1"} and found.issuer != found.subject:
                cause = f"OpenSSL refuses it (CA_MD_TOO_WEAK: {digest.name})"
                raise ConfigError([f"{certificate}: {cause}; {_REMEDIES['MD_TOO_WEAK']}"])


def load_trusted(context: Context, tls: TLS, without: Collection[str] = ()) -> None:
    """Trust all certificates in the files and folders of the section, except those in `without` (PEM).

    Raises:
        ConfigError: A file cannot be used. The message names the file and the remedy.
    """
    for path in tls.trusted:
        for file, found in formats.iterate_certificates(path, tls.password_file):
            taken = "".join(each for each in found if each not in without)
            try:
                if taken:
                    context.trust(taken.encode())
            except ssl.SSLError as error:
                cause = f"a certificate in it cannot be read ({error.reason or error})"
                raise ConfigError([f"{file}: {cause}; export it again as PEM"]) from None


def read_pair(tls: TLS) -> tuple[KeyContainer, Path, Path] | None:
    """Read our chain and key, and return them with their files. Return None if the section names none.

    Raises:
        ConfigError: A file cannot be read, or lacks the certificate or the key.
    """
    if tls.pkcs12 is not None:
        return read_store(tls.pkcs12, tls.password_file), tls.pkcs12, tls.pkcs12
    if tls.certificate is not None:
        key = tls.private_key or tls.certificate
        return read_files(tls.certificate, key, tls.password_file), tls.certificate, key
    return None


def read_plain_pair(tls: TLS) -> bytes | None:
    """Read our chain and key as PEM with the key decrypted; None if the section names none.

    The result must stay in memory.

    Raises:
        ConfigError: They cannot be read, or do not belong together.
    """
    found = read_pair(tls)
    if found is None:
        return None
    pair, certificate, key = found
    pair = _reencode_pair(pair, certificate, key, tls.password_file)
    return b"".join([*map(str.encode, pair.certificates), pair.keys[0]])


def read_store(path: Path, password_file: Path | None) -> KeyContainer:
    """Read our key and chain from PKCS#12, without other certificates, which peers must not get.

    Raises:
        ConfigError: The file cannot be opened, does not contain exactly one key, or lacks its certificate.
    """
    held = formats.read_container(path, password_file)
    if held.key_format == "JKS":
        raise ConfigError([f"{path}: {held.explain_missing('private key')}"])
    if held.key_format != "PKCS#12":
        cause = f"is not PKCS#12 but {held.key_format}" if held.key_format else "is not PKCS#12"
        raise ConfigError([f"{path}: {cause}; PEM and DER have their own place, certificate and private_key"])
    if not held.keys:
        cause = "holds certificates but no private key: it is a trust store"
        raise ConfigError([f"{path}: {cause}; name the key store here, and this one where peers are trusted"])
    if not held.certificates:
        raise ConfigError([f"{path}: holds no certificate for its key; export it with its chain"])
    from cryptography import x509  # noqa: PLC0415 - it has read the PKCS#12

    from ingest.tls.keys import pkcs12  # noqa: PLC0415 - as above

    if len(held.keys) > 1:
        raise ConfigError([pkcs12.explain_several_keys(path, held)])
    first, *others = (x509.load_pem_x509_certificate(text.encode()) for text in held.certificates)
    return KeyContainer(held.key_format, held.certificates[: len(order_chain(first, others))], held.keys)


def read_files(certificate: Path, key: Path, password_file: Path | None = None) -> KeyContainer:
    """Read our chain and key from PEM or DER. The key may stay encrypted.

    Args:
        certificate: File with the chain, which may also be PKCS#7.
        key: File with the key. If it contains several, the key of the certificate is used.
        password_file: File whose first line is the password, needed to choose among several keys.

    Raises:
        ConfigError: A file cannot be read, or lacks the certificate or the key.
    """
    first, second = _read_except_pkcs12(certificate), _read_except_pkcs12(key)
    if not first.certificates:
        raise ConfigError([f"{certificate}: {first.explain_missing('certificate')}"])
    if not second.keys:
        raise ConfigError([f"{key}: {second.explain_missing('private key')}"])
    found = KeyContainer(first.key_format, first.certificates, second.keys)
    return (
        _choose_pair(found, password_file) if first.key_format == "PKCS#7" or len(second.keys) > 1 else found
    )


@contextlib.contextmanager
def in_memory(content: bytes) -> Iterator[str]:
    """Yield the path of a file in memory, for libraries that accept only paths."""
    descriptor = os.memfd_create("pem", os.MFD_CLOEXEC)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        yield f"/proc/self/fd/{descriptor}"


def _read_except_pkcs12(path: Path) -> KeyContainer:
    if formats.is_pkcs12_file(path):
        raise ConfigError([f"{path}: is PKCS#12; name it in pkcs12, without certificate and private_key"])
    return formats.read_container(path)


def _choose_pair(held: KeyContainer, password_file: Path | None) -> KeyContainer:
    """Choose the key of the certificate, and from PKCS#7, which may contain several chains, its chain.

    Return the container unchanged if no key matches. `_reencode_pair` then raises ConfigError.
    """
    from cryptography import x509  # noqa: PLC0415 - needed only if there are several

    from ingest.tls.identity import UNREADABLE  # noqa: PLC0415 - as above

    for key in held.keys:
        with contextlib.suppress(*UNREADABLE):
            own = private_key(key, password_file).public_key()
            found = [x509.load_pem_x509_certificate(text.encode()) for text in held.certificates]
            candidates = found if held.key_format == "PKCS#7" else found[:1]
            first = next((each for each in candidates if each.public_key() == own), None)
            if first is not None:
                order = order_chain(first, found) if held.key_format == "PKCS#7" else found
                return KeyContainer(
                    held.key_format, tuple(held.certificates[found.index(each)] for each in order), (key,)
                )
    return held


def _reencode_pair(
    pair: KeyContainer, certificate: Path, key: Path, password_file: Path | None
) -> KeyContainer:
    """Encode a pair that OpenSSL refused in the form that OpenSSL reads.

    Raises:
        ConfigError: A part cannot be read here either, or key and certificate do not match.
    """
    # Imported here, because only such a pair needs them.
    from cryptography import x509  # noqa: PLC0415 - see above
    from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415 - see above

    from ingest.tls.identity import UNREADABLE  # noqa: PLC0415 - see above

    try:
        chain = [x509.load_pem_x509_certificate(text.encode()) for text in pair.certificates]
    except UNREADABLE:
        cause = "a certificate in it cannot be read"
        raise ConfigError([f"{certificate}: {cause}; export it again as PEM"]) from None
    private = opened(pair.keys[0], key, password_file)
    own = private.public_key()
    if chain[0].public_key() == own:
        texts = tuple(each.public_bytes(Encoding.PEM).decode("ascii") for each in chain)
        return KeyContainer(pair.key_format, texts, (encode_key_unencrypted(private),))
    if any(each.public_key() == own for each in chain[1:]):
        cause = f"does not begin with the certificate of {key}; put it before its issuers"
    else:
        cause = f"does not belong to the private key {key}; name the two that were made together"
    raise ConfigError([f"{certificate}: {cause}"])


def _explain_refusal(certificate: Path, error: ssl.SSLError) -> str:
    reason = error.reason or str(error).partition(" (")[0]
    remedies = (remedy for end, remedy in _REMEDIES.items() if reason.endswith(end))
    remedy = next(remedies, "make another pair, of RSA 2048, EC P-256 or Ed25519")
    return f"{certificate}: OpenSSL refuses it ({reason}); {remedy}"


def opened(pem: bytes, path: Path, password_file: Path | None) -> Any:
    """Read a private key as `private_key` does, and explain errors.

    Raises:
        ConfigError: The key cannot be read. The message names `path` and the remedy.
    """
    from ingest.tls.identity import UNREADABLE  # noqa: PLC0415 - as above

    try:
        return private_key(pem, password_file)
    except UNREADABLE as error:
        if not is_encrypted(pem):
            raise ConfigError([f"{path}: its private key cannot be read; export it again as PEM"]) from None
        if password_file is None:
            raise ConfigError([f"{path}: is encrypted; name the file with its password"]) from None
        if "unknown" in str(error).lower() and (cipher := _old_cipher(pem)):
            cause = f"is encrypted with {cipher}, which OpenSSL 3 does not open; {_AGAIN}"
        else:
            cause = f"cannot be decrypted with the password in {password_file}; correct the password"
            # OpenSSL and `cryptography` both read AES and triple DES, but differ in rarer ciphers.
            cause += f", or {_AGAIN}" if "unknown" in str(error).lower() else ""
        raise ConfigError([f"{path}: {cause}"]) from None


def _old_cipher(pem: bytes) -> str:
    """Return the cipher of an encrypted key if it is one that OpenSSL 3 no longer supports, otherwise ""."""
    text = b"".join(pem.split(b"-----")[2].split())
    with contextlib.suppress(ValueError):
        pem += base64.b64decode(text[:200])[:150]
    return next((name for name, pattern in _OLD_CIPHERS.items() if re.search(pattern, pem)), "")


def private_key(pem: bytes, password_file: Path | None) -> Any:
    """Read a key in PEM, and decrypt it with the password in the file if it is encrypted.

    Raises:
        ValueError: It cannot be read, or the password is wrong.
        UnsupportedAlgorithm: It is of a kind that `cryptography` does not know.
        TypeError: It needs one, and there is none.
        ConfigError: The password file cannot be used.
    """
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415 - as above

    password = read_password(password_file) if password_file and is_encrypted(pem) else None
    return load_pem_private_key(pem, password)
