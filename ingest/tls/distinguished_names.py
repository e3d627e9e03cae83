"""Parse distinguished names in the notation of RFC 4514 and in those of OpenSSL.

The parser of `cryptography` knows few attribute names and accepts no quotes, no spaces and no slashes. People
copy subjects from many programs, so this module has its own parser.
"""

import re
from functools import lru_cache
from typing import Final

Name = tuple[frozenset[tuple[str, str | bytes]], ...]
"""The RDNs of a name, each a set of (OID, value). A value that is not a string type is bytes."""

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
"""Attribute types of RFC 4514, OpenSSL and others, in upper case: case does not matter (RFC 4514 3)."""

_TYPE = rf"(?:{'|'.join(_TYPES)}|\d+(?:\.\d+)+)"
_ATTRIBUTE = re.compile(
    rf' *({_TYPE}) *= *(?:"((?:[^"\\]|\\.)*)" *|((?:[^,;+"\\]|\\.)*))([,;+]|\Z)', re.IGNORECASE | re.DOTALL
)
"""One attribute and its separator. RFC 1779, and OpenSSL by default, quote values."""
_CHARACTER = re.compile(r"\\([0-9A-Fa-f]{2})|\\(.)|(.)", re.DOTALL)
"""RFC 4514 2.4: two hexadecimal digits stand for one byte of UTF-8."""
_HEX = re.compile(r"#((?:[0-9A-Fa-f]{2})+) *")
_ONLY_TYPE = re.compile(_TYPE, re.IGNORECASE)
_SLASH = re.compile(rf"(?<!\\)/(?={_TYPE}=)", re.IGNORECASE)
_PLUS = re.compile(rf"(?<!\\)\+(?={_TYPE}=)", re.IGNORECASE)
_COMMA = re.compile(rf", (?={_TYPE}=)", re.IGNORECASE)
_SPACED_PLUS = re.compile(rf" \+ (?={_TYPE}=)", re.IGNORECASE)
"""Separators in the default output of OpenSSL 3.2 and later, which neither escapes nor quotes them."""
_ESCAPE = re.compile(rb"\\(?:x([0-9A-F]{2})|([/+]))")
"""In the slash notation OpenSSL escapes non-ASCII bytes. Newer releases also escape separators. No release
escapes a backslash."""


def is_same_name(written: str, subject: str) -> bool:
    """Tell whether a written name is equal to a subject.

    Args:
        written: A name in any notation. Its RDNs may be in either order, because OpenSSL prints them in
            reverse.
        subject: The subject as `cryptography` writes it (RFC 4514).
    """
    own = _parse_rfc4514(subject)
    return bool(own) and any(own in (other, other[::-1]) for other in parse_readings(written))


@lru_cache(maxsize=1024)
def parse_readings(text: str) -> tuple[Name, ...]:
    """Return every name that a text can mean, or none. Blanks at its ends may belong to a value."""
    if not text.strip().startswith("/"):
        found = [_parse_rfc4514(text)]
        # Quotes and escapes have the meaning of RFC 4514 whenever the text is valid RFC 4514.
        if found == [None] or not any(character in text for character in '"\\'):
            found.append(_parse_openssl_default(text))
        return tuple(name for name in found if name)
    between = (_parse_slash_separated(each) for each in (text, text.strip()))
    return tuple(name for name in between if name)


@lru_cache(maxsize=1024)
def _parse_rfc4514(text: str) -> Name | None:
    """Parse `CN=x+UID=u,C=BE` or `C = BE, O = "A, B"`. Return None if the text is not a name."""
    rdns: list[set[tuple[str, str | bytes]]] = [set()]
    position, separator = 0, ","
    while separator:
        found = _ATTRIBUTE.match(text, position)
        if found is None:
            return None
        value = _parse_value(found[3]) if found[2] is None else _unescape(found[2])
        if value is None:
            return None
        rdns[-1].add((_find_oid(found[1]), value))
        position, separator = found.end(), found[4]
        if separator in {",", ";"}:
            rdns.append(set())
    return tuple(map(frozenset, rdns))


def _parse_value(text: str) -> str | bytes | None:
    found = _HEX.fullmatch(text)
    return bytes.fromhex(found[1]) if found else _unescape(text, trim=True)


def _unescape(text: str, *, trim: bool = False) -> str | None:
    """Remove escapes, and with `trim` also unescaped blanks at the end. Return None if it is not UTF-8."""
    found, end = bytearray(), 0
    for digits, special, plain in _CHARACTER.findall(text):
        found += bytes.fromhex(digits) if digits else (special or plain).encode("utf-8", "surrogatepass")
        if not trim or plain != " ":
            end = len(found)
    return _decode_utf8(bytes(found[:end]))


def _parse_openssl_default(text: str) -> Name | None:
    """Parse `C=BE, CN=x + UID=u`. Text after a comma that is not an attribute belongs to the value before."""
    rdns = [[attribute.partition("=") for attribute in _SPACED_PLUS.split(rdn)] for rdn in _COMMA.split(text)]
    if not all(equals and _ONLY_TYPE.fullmatch(kind) for rdn in rdns for kind, equals, _ in rdn):
        return None
    found = []
    for rdn in rdns:
        attributes = set()
        for kind, _, written in rdn:
            # OpenSSL escapes only control characters and the backslash itself.
            value = _unescape(written)
            if value is None:
                return None
            attributes.add((_find_oid(kind), value))
        found.append(frozenset(attributes))
    return tuple(found)


def _parse_slash_separated(text: str) -> Name | None:
    """Parse `/C=BE/CN=x+UID=u`. Text after a slash that is not an attribute belongs to the value before."""
    before, *rdns = _SLASH.split(text)
    if before or not rdns:
        return None
    found = []
    for rdn in rdns:
        attributes = set()
        for attribute in _PLUS.split(rdn):
            kind, _, written = attribute.partition("=")
            value = _decode_utf8(_ESCAPE.sub(_decode_escape, _encode_utf8(written)))
            if value is None:
                return None
            attributes.add((_find_oid(kind), value))
        found.append(frozenset(attributes))
    return tuple(found)


def _find_oid(kind: str) -> str:
    return _TYPES.get(kind.upper(), kind)


def _decode_escape(found: re.Match[bytes]) -> bytes:
    return found[2] or bytes.fromhex(found[1].decode())


def _encode_utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _decode_utf8(value: bytes) -> str | None:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None
