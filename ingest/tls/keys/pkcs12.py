"""Parse PKCS#12 (RFC 7292): the pair, its chain, and further private keys.

`cryptography` returns one private key and does not report whether there are more. Java and OpenSSL put each
key into a separate bag. The key is encrypted, and its alias is unencrypted beside it (RFC 7292 4.2). This
module finds those bags. It cannot find a key in a section that is encrypted as a whole.
"""

import base64
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import Encoding, pkcs12

from ingest.errors import ConfigError
from ingest.tls.identity import UNREADABLE
from ingest.tls.keys.container import KeyContainer, encode_key_unencrypted, order_chain
from ingest.tls.keys.files import read_store_password

_DATA: Final = bytes.fromhex("2a864886f70d010701")
"""1.2.840.113549.1.7.1 (RFC 2315 8): unencrypted content."""
_KEY_BAGS: Final = {bytes.fromhex(f"2a864886f70d010c0a01{kind}") for kind in ("01", "02")}
"""1.2.840.113549.1.12.10.1 (RFC 7292 4.2.1, 4.2.2): keyBag and pkcs8ShroudedKeyBag."""
_FRIENDLY_NAME: Final = bytes.fromhex("2a864886f70d010914")
"""1.2.840.113549.1.9.20 (RFC 2985 5.5.1)."""


@dataclass(frozen=True, slots=True)
class _KeyBag:
    alias: str
    key: bytes


def parse_pkcs12(path: Path, content: bytes, password_file: Path | None) -> KeyContainer:
    """Parse a PKCS#12 file. Arguments and errors are those of `formats.read_container`."""
    passwords = [read_store_password(password_file)] if password_file else []
    for password in (*passwords, None):  # The password may belong to another file of the section.
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Some programs write BER instead of DER.
                found = pkcs12.load_pkcs12(content, password)
        except ValueError:
            continue
        except UNREADABLE as error:
            raise ConfigError([f"{path}: its PKCS#12 cannot be read ({error}); export it again"]) from None
        try:
            return _build_container(found, _find_key_bags(content), password)
        except UNREADABLE as error:
            raise ConfigError([f"{path}: a part of it cannot be read ({error}); export it again"]) from None
    if password_file is None:
        cause = "is PKCS#12 with a password, or damaged"
        raise ConfigError([f"{path}: {cause}; name the file with its password in password_file"])
    cause = f"its PKCS#12 cannot be opened with the password in {password_file}"
    raise ConfigError([f"{path}: {cause}; correct the password, or export it again"])


def explain_several_keys(path: Path, held: KeyContainer) -> str:
    """Return cause and remedy for a key store with several keys, where one is needed."""
    aliases = ", ".join(held.key_aliases)
    command = f"keytool -importkeystore -srckeystore {path} -srcalias ALIAS -destkeystore NEW.p12"
    return (
        f"{path}: holds {len(held.keys)} private keys (aliases {aliases}); export the one that is meant "
        f"(`{command} -deststoretype PKCS12`)"
    )


def _build_container(
    found: pkcs12.PKCS12KeyAndCertificates, bags: list[_KeyBag], password: bytes | None
) -> KeyContainer:
    everything = [*([found.cert] if found.cert else []), *found.additional_certs]
    names = {each.certificate: (each.friendly_name or b"").decode("utf-8", "replace") for each in everything}
    ordered = list(names)
    if found.key is not None:
        own = found.key.public_key()
        first = next((each for each in ordered if each.public_key() == own), None)
        issued = order_chain(first, ordered) if first else []
        ordered = [*issued, *(each for each in ordered if each not in issued)]
    keys = tuple(encode_key_unencrypted(key) for key in (found.key,) if key is not None)
    if len(bags) > 1:
        keys = tuple(_decrypt_key_bag(bag.key, password) for bag in bags)
    return KeyContainer(
        "PKCS#12",
        certificates=tuple(each.public_bytes(Encoding.PEM).decode("ascii") for each in ordered),
        keys=keys,
        certificate_aliases=tuple(names[each] for each in ordered),
        key_aliases=tuple(bag.alias for bag in bags) if len(bags) == len(keys) else ("",) * len(keys),
        was_encrypted=password is not None,
    )


def _decrypt_key_bag(key: bytes, password: bytes | None) -> bytes:
    """Decrypt a key with the password of the store. If that fails, return the key still encrypted."""
    for each in (password, b"", None):
        try:
            return encode_key_unencrypted(serialization.load_der_private_key(key, each))
        except UNREADABLE:
            continue
    label = b"ENCRYPTED PRIVATE KEY-----\n"
    return b"-----BEGIN " + label + base64.encodebytes(key) + b"-----END " + label


def _find_key_bags(content: bytes) -> list[_KeyBag]:
    """Find each private key and its alias. Return nothing if the file is not DER."""
    try:
        ((_, pfx),) = parse_der_elements(content)
        _version, (_, safes), *_mac = parse_der_elements(pfx)
        return [
            _KeyBag(_read_alias(attributes), value)
            for _, safe in _read_content_info(safes)
            for _, bag in _read_content_info(safe)
            for (_, kind), (_, value), *attributes in [parse_der_elements(bag)]
            if kind in _KEY_BAGS
        ]
    except (ValueError, IndexError):
        return []


def _read_content_info(info: bytes) -> list[tuple[int, bytes]]:
    """Return the elements of the SEQUENCE in a ContentInfo (RFC 2315 7), or nothing if it is encrypted."""
    (_, kind), (_, explicit) = parse_der_elements(info)
    if kind != _DATA:
        return []
    ((_, octets),) = parse_der_elements(explicit)
    ((_, sequence),) = parse_der_elements(octets)
    return parse_der_elements(sequence)


def _read_alias(attributes: list[tuple[int, bytes]]) -> str:
    for _, attribute in parse_der_elements(attributes[0][1]) if attributes else ():
        (_, kind), (_, values) = parse_der_elements(attribute)
        if kind == _FRIENDLY_NAME:
            ((_, name),) = parse_der_elements(values)
            text = name.decode("utf-16-be", "replace")
            return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)
    return ""


def parse_der_elements(der: bytes) -> list[tuple[int, bytes]]:
    """Split DER into elements; return tag and content of each (X.690 8.1).

    Raises:
        ValueError, IndexError: An element is truncated or has an indefinite length.
    """
    return list(_iterate_der_elements(der))


def _iterate_der_elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    start = 0
    while start < len(der):
        tag, length, head = der[start], der[start + 1], start + 2
        if length == 0x80:
            raise ValueError("indefinite length")
        if length & 0x80:
            head += length & 0x7F
            length = int.from_bytes(der[start + 2 : head], "big")
        start = head + length
        if start > len(der):
            raise ValueError("truncated element")
        yield tag, der[head:start]
