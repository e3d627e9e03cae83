"""PKCS#12 (RFC 7292) as it is read: the pair, its chain, and whether there are further keys.

`cryptography` gives one private key and does not say that there are more. They can be seen all the same: Java
and OpenSSL put each in a bag of its own, the key encrypted, its alias beside it in the clear (RFC 7292 4.2).
A key in a part that is encrypted as a whole is not seen.
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
from ingest.tls.keys.container import Held, plain, with_issuers
from ingest.tls.keys.files import read_store_password

_DATA: Final = bytes.fromhex("2a864886f70d010701")
"""1.2.840.113549.1.7.1 (RFC 2315 8): content in the clear."""
_KEY_BAGS: Final = {bytes.fromhex(f"2a864886f70d010c0a01{kind}") for kind in ("01", "02")}
"""1.2.840.113549.1.12.10.1 (RFC 7292 4.2.1, 4.2.2): keyBag and pkcs8ShroudedKeyBag."""
_FRIENDLY_NAME: Final = bytes.fromhex("2a864886f70d010914")
"""1.2.840.113549.1.9.20 (RFC 2985 5.5.1)."""


@dataclass(frozen=True, slots=True)
class _Bag:
    alias: str
    key: bytes


def read(path: Path, content: bytes, password_file: Path | None) -> Held:
    """All that it holds; arguments and faults as for `forms.read`."""
    passwords = [read_store_password(password_file)] if password_file else []
    for password in (*passwords, None):  # the password may be for another file of the same section
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that it is BER, as some programs write it
                found = pkcs12.load_pkcs12(content, password)
        except ValueError:
            continue
        except UNREADABLE as error:
            raise ConfigError([f"{path}: its PKCS#12 cannot be read ({error}); export it again"]) from None
        try:
            return _held(found, _bags(content), password)
        except UNREADABLE as error:
            raise ConfigError([f"{path}: a part of it cannot be read ({error}); export it again"]) from None
    if password_file is None:
        cause = "is PKCS#12 with a password, or damaged"
        raise ConfigError([f"{path}: {cause}; name the file with its password in password_file"])
    cause = f"its PKCS#12 cannot be opened with the password in {password_file}"
    raise ConfigError([f"{path}: {cause}; correct the password, or export it again"])


def several_keys(path: Path, held: Held) -> str:
    """The fault of a store that should have one key."""
    aliases = ", ".join(held.aliases)
    command = f"keytool -importkeystore -srckeystore {path} -srcalias ALIAS -destkeystore NEW.p12"
    return (
        f"{path}: holds {len(held.keys)} private keys (aliases {aliases}); export the one that is meant "
        f"(`{command} -deststoretype PKCS12`)"
    )


def _held(found: pkcs12.PKCS12KeyAndCertificates, bags: list[_Bag], password: bytes | None) -> Held:
    everything = [*([found.cert] if found.cert else []), *found.additional_certs]
    names = {each.certificate: (each.friendly_name or b"").decode("utf-8", "replace") for each in everything}
    ordered = list(names)
    if found.key is not None:
        own = found.key.public_key()
        first = next((each for each in ordered if each.public_key() == own), None)
        issued = with_issuers(first, ordered) if first else []
        ordered = [*issued, *(each for each in ordered if each not in issued)]
    keys = tuple(plain(key) for key in (found.key,) if key is not None)
    if len(bags) > 1:
        keys = tuple(_opened(bag.key, password) for bag in bags)
    return Held(
        "PKCS#12",
        certificates=tuple(each.public_bytes(Encoding.PEM).decode("ascii") for each in ordered),
        keys=keys,
        names=tuple(names[each] for each in ordered),
        aliases=tuple(bag.alias for bag in bags) if len(bags) == len(keys) else ("",) * len(keys),
        locked=password is not None,
    )


def _opened(key: bytes, password: bytes | None) -> bytes:
    """A key as PEM; as it stands, where the password of the store is not its own."""
    for each in (password, b"", None):
        try:
            return plain(serialization.load_der_private_key(key, each))
        except UNREADABLE:
            continue
    label = b"ENCRYPTED PRIVATE KEY-----\n"
    return b"-----BEGIN " + label + base64.encodebytes(key) + b"-----END " + label


def _bags(content: bytes) -> list[_Bag]:
    """Each private key with its alias; none where it is not DER."""
    try:
        ((_, pfx),) = elements(content)
        _version, (_, safes), *_mac = elements(pfx)
        return [
            _Bag(_alias(attributes), value)
            for _, safe in _sequence_in(safes)
            for _, bag in _sequence_in(safe)
            for (_, kind), (_, value), *attributes in [elements(bag)]
            if kind in _KEY_BAGS
        ]
    except (ValueError, IndexError):
        return []


def _sequence_in(info: bytes) -> list[tuple[int, bytes]]:
    """The elements of the SEQUENCE that a ContentInfo holds (RFC 2315 7); none of what is encrypted."""
    (_, kind), (_, explicit) = elements(info)
    if kind != _DATA:
        return []
    ((_, octets),) = elements(explicit)
    ((_, sequence),) = elements(octets)
    return elements(sequence)


def _alias(attributes: list[tuple[int, bytes]]) -> str:
    for _, attribute in elements(attributes[0][1]) if attributes else ():
        (_, kind), (_, values) = elements(attribute)
        if kind == _FRIENDLY_NAME:
            ((_, name),) = elements(values)
            text = name.decode("utf-16-be", "replace")
            return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)
    return ""


def elements(der: bytes) -> list[tuple[int, bytes]]:
    """Tag and content of each (X.690 8.1).

    Raises:
        ValueError, IndexError: They are not all there, or one is of indefinite length.
    """
    return list(_each_element(der))


def _each_element(der: bytes) -> Iterator[tuple[int, bytes]]:
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
            raise ValueError("cut")
        yield tag, der[head:start]
