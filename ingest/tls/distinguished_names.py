"""Distinguished names in text, however they are written: RFC 4514, or one of the ways of OpenSSL.

Our own reader: that of `cryptography` knows few attributes by name, no quotes, no spaces and no slashes.
"""

import re
from functools import lru_cache
from typing import Final

Name = tuple[frozenset[tuple[str, str | bytes]], ...]
"""Its RDNs, each a set of (OID, value); a value of no string type is bytes."""

_TYPES: Final = {
    "C": "2.5.4.6",
    "ST": "2.5.4.8",
    "S": "2.5.4.8",
    "L": "2.5.4.7",
    "O": "2.5.4.10",
    "OU": "2.5.4.11",
    "CN": "2.5.4.3",
    "DC": "0.9.2342.19200300.100.1.25",
    "UID": "0.9.2342.19200300.100.1.1",
    "EMAILADDRESS": "1.2.840.113549.1.9.1",
    "E": "1.2.840.113549.1.9.1",
    "UNSTRUCTUREDNAME": "1.2.840.113549.1.9.2",
    "SERIALNUMBER": "2.5.4.5",
    "SN": "2.5.4.4",
    "SURNAME": "2.5.4.4",
    "GN": "2.5.4.42",
    "GIVENNAME": "2.5.4.42",
    "INITIALS": "2.5.4.43",
    "GENERATIONQUALIFIER": "2.5.4.44",
    "PSEUDONYM": "2.5.4.65",
    "TITLE": "2.5.4.12",
    "NAME": "2.5.4.41",
    "DESCRIPTION": "2.5.4.13",
    "DNQUALIFIER": "2.5.4.46",
    "X500UNIQUEIDENTIFIER": "2.5.4.45",
    "STREET": "2.5.4.9",
    "POSTALCODE": "2.5.4.17",
    "BUSINESSCATEGORY": "2.5.4.15",
    "ORGANIZATIONIDENTIFIER": "2.5.4.97",
}
"""Attribute types as RFC 4514, OpenSSL and others write them, in capitals: they do not count (RFC 4514 3)."""

_TYPE = rf"(?:{'|'.join(_TYPES)}|\d+(?:\.\d+)+)"
_ATTRIBUTE = re.compile(
    rf' *({_TYPE}) *= *(?:"((?:[^"\\]|\\.)*)" *|((?:[^,;+"\\]|\\.)*))([,;+]|\Z)', re.IGNORECASE | re.DOTALL
)
"""One attribute and what follows it. A quoted value is RFC 1779's, and OpenSSL's by default."""
_CHARACTER = re.compile(r"\\([0-9A-Fa-f]{2})|\\(.)|(.)", re.DOTALL)
"""RFC 4514 2.4: two digits are a byte of UTF-8."""
_HEX = re.compile(r"#((?:[0-9A-Fa-f]{2})+) *")
_ONLY_TYPE = re.compile(_TYPE, re.IGNORECASE)
_SLASH = re.compile(rf"(?<!\\)/(?={_TYPE}=)", re.IGNORECASE)
_PLUS = re.compile(rf"(?<!\\)\+(?={_TYPE}=)", re.IGNORECASE)
_COMMA = re.compile(rf", (?={_TYPE}=)", re.IGNORECASE)
_SPACED_PLUS = re.compile(rf" \+ (?={_TYPE}=)", re.IGNORECASE)
"""What separates in the default output of OpenSSL 3.2 and later, which escapes and quotes nothing."""
_ESCAPE = re.compile(rb"\\(?:x([0-9A-F]{2})|([/+]))")
"""Between slashes OpenSSL escapes what is not ASCII, and newer releases what separates; never a backslash."""


def same(written: str, subject: str) -> bool:
    """Whether a name that somebody wrote is a subject.

    Args:
        written: In any form, with its RDNs from either end, as OpenSSL prints them from the other one.
        subject: As `cryptography` writes it (RFC 4514).
    """
    own = _read(subject)
    return bool(own) and any(own in (other, other[::-1]) for other in readings(written))


@lru_cache(maxsize=1024)
def readings(text: str) -> tuple[Name, ...]:
    """What names a text can mean, none where it is no name; blanks at its ends may belong to a value."""
    if not text.strip().startswith("/"):
        found = [_read(text)]
        # Quotes and escapes mean what RFC 4514 says, wherever they can be read so.
        if found == [None] or not any(character in text for character in '"\\'):
            found.append(_unquoted(text))
        return tuple(name for name in found if name)
    between = (_between_slashes(each) for each in (text, text.strip()))
    return tuple(name for name in between if name)


@lru_cache(maxsize=1024)
def _read(text: str) -> Name | None:
    """`CN=x+UID=u,C=BE`, `C = BE, O = "A, B"`; None where it is no name."""
    rdns: list[set[tuple[str, str | bytes]]] = [set()]
    position, separator = 0, ","
    while separator:
        found = _ATTRIBUTE.match(text, position)
        if found is None:
            return None
        value = _value(found[3]) if found[2] is None else _unescaped(found[2])
        if value is None:
            return None
        rdns[-1].add((_oid(found[1]), value))
        position, separator = found.end(), found[4]
        if separator in {",", ";"}:
            rdns.append(set())
    return tuple(map(frozenset, rdns))


def _value(text: str) -> str | bytes | None:
    found = _HEX.fullmatch(text)
    return bytes.fromhex(found[1]) if found else _unescaped(text, trim=True)


def _unescaped(text: str, *, trim: bool = False) -> str | None:
    """Without its escapes, and with `trim` without blanks at the end but escaped ones; None: not UTF-8."""
    found, end = bytearray(), 0
    for digits, special, plain in _CHARACTER.findall(text):
        found += bytes.fromhex(digits) if digits else (special or plain).encode("utf-8", "surrogatepass")
        if not trim or plain != " ":
            end = len(found)
    return _decoded(bytes(found[:end]))


def _unquoted(text: str) -> Name | None:
    """Read `C=BE, CN=x + UID=u`: text after a comma that is no attribute belongs to the value before it."""
    rdns = [[attribute.partition("=") for attribute in _SPACED_PLUS.split(rdn)] for rdn in _COMMA.split(text)]
    if not all(equals and _ONLY_TYPE.fullmatch(kind) for rdn in rdns for kind, equals, _ in rdn):
        return None
    found = []
    for rdn in rdns:
        attributes = set()
        for kind, _, written in rdn:
            # Of all escapes it has those of control characters and of the backslash itself.
            value = _unescaped(written)
            if value is None:
                return None
            attributes.add((_oid(kind), value))
        found.append(frozenset(attributes))
    return tuple(found)


def _between_slashes(text: str) -> Name | None:
    """`/C=BE/CN=x+UID=u`: what follows a slash and is no attribute belongs to the value before it."""
    before, *rdns = _SLASH.split(text)
    if before or not rdns:
        return None
    found = []
    for rdn in rdns:
        attributes = set()
        for attribute in _PLUS.split(rdn):
            kind, _, written = attribute.partition("=")
            value = _decoded(_ESCAPE.sub(_byte, _encoded(written)))
            if value is None:
                return None
            attributes.add((_oid(kind), value))
        found.append(frozenset(attributes))
    return tuple(found)


def _oid(kind: str) -> str:
    return _TYPES.get(kind.upper(), kind)


def _byte(found: re.Match[bytes]) -> bytes:
    return found[2] or bytes.fromhex(found[1].decode())


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _decoded(value: bytes) -> str | None:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None
