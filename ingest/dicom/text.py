"""Text in a Specific Character Set (PS3.5 6.1)."""

import re
import warnings
from typing import Final

SPECIFIC_CHARACTER_SET: Final = 0x0008_0005

_DELIMITERS: Final = set(b"\r\n\t\f\\")
"""PS3.5 6.1.2.5.3: after each of these bytes a value returns to its first character set."""
_NAME_DELIMITERS: Final = _DELIMITERS | set(b"^=")
"""The same for a person name (VR PN)."""


def decode_text(raw: bytes, character_set: bytes, *, is_name: bool = False) -> str:
    """Decode text. Bytes that are no text of their character set are decoded as ASCII with replacements.

    Args:
        raw: The value.
        character_set: Raw value of Specific Character Set (0008,0005).
        is_name: Whether the value is a person name.
    """
    if raw.isascii() and b"\x1b" not in raw:
        return raw.decode("ascii")
    from ingest.dicom import registry  # noqa: PLC0415 - slow to import, and most text is ASCII

    names = [name.strip(" \0") for name in character_set.decode("ascii", "replace").split("\\")]
    with warnings.catch_warnings():
        # INVARIANT 9: the warning of pydicom for undecodable text contains the text, which may be a name
        warnings.simplefilter("ignore")
        try:
            return registry.decode_text(raw, names, _NAME_DELIMITERS if is_name else _DELIMITERS)
        except (LookupError, UnicodeError, ValueError):
            return raw.decode("ascii", "replace")


def encode_text(text: str, character_set: bytes, *, is_name: bool = False) -> bytes | None:
    """Encode text in the Specific Character Set of a data set; None if that lacks a character.

    Args:
        text: The values, with a backslash between them.
        character_set: Raw value of Specific Character Set (0008,0005).
        is_name: Whether the text is a person name.
    """
    if text.isascii():
        return text.encode("ascii")
    from ingest.dicom import registry  # noqa: PLC0415 - as in `decode_text`

    names = [name.strip(" \0") for name in character_set.decode("ascii", "replace").split("\\")]
    delimiters = _NAME_DELIMITERS if is_name else _DELIMITERS
    encoded = b""
    with warnings.catch_warnings():
        # pydicom replaces a character that it cannot encode, with a warning that contains the text
        warnings.simplefilter("ignore")
        try:
            for piece in re.split(f"([{re.escape(bytes(delimiters).decode())}])", text):
                encoded += piece.encode() if piece.isascii() else registry.encode_text(piece, names)
        except (LookupError, UnicodeError, ValueError):
            return None
    return encoded if decode_text(encoded, character_set, is_name=is_name) == text else None
