"""The registry of PS3.6 in pydicom, and the SOP classes of pynetdicom. Only their tables are used.

This module takes a quarter of a second and 20 MB to import. Therefore `ingest.dicom.uids` imports it only
for a question that needs the registry, and a command such as `ingest status` starts without it. Processes
that serve associations import it before they fork, so that all of them share its memory.
"""

import sys
from collections.abc import Iterable, Mapping
from typing import Final

if "numpy" not in sys.modules:
    # pydicom imports numpy where it is installed. Listeners must not be forked with its threads and memory.
    sys.modules["numpy"] = None  # type: ignore[assignment]
    try:
        from pydicom import charset, datadict
        from pydicom._dicom_dict import DicomDictionary
        from pydicom._uid_dict import UID_dictionary
        from pynetdicom import sop_class
    finally:
        del sys.modules["numpy"]
else:
    from pydicom import charset, datadict
    from pydicom._dicom_dict import DicomDictionary
    from pydicom._uid_dict import UID_dictionary
    from pynetdicom import sop_class

UIDS: Final[Mapping[str, tuple[str, str, str, str, str]]] = UID_dictionary
"""For each UID of PS3.6: name, kind, further information, whether it is retired, keyword."""

STORAGE_CLASSES: Final[tuple[str, ...]] = (
    *sop_class._STORAGE_CLASSES.values(),
    *sop_class._NON_PATIENT_OBJECT_CLASSES.values(),
)
"""Current SOP class UIDs of PS3.4 B.5 and GG.3."""

SERVICE_UIDS: Final[tuple[str, ...]] = tuple(
    uid
    for name, group in vars(sop_class).items()
    if name.endswith("_CLASSES") and isinstance(group, dict)
    for uid in group.values()
    if isinstance(uid, str)
)
"""SOP class UIDs of every service that pynetdicom knows."""


def list_vrs() -> dict[int, bytes]:
    """Return the VR of each attribute of PS3.6 by its tag; the first one if an attribute may have several."""
    return {tag: entry[0][:2].encode() for tag, entry in DicomDictionary.items()}


def find_vr(tag: int) -> str | None:
    """Return the VR of an attribute, or several ("US or SS"); None for a private or unknown attribute."""
    try:
        return str(datadict.dictionary_VR(tag))
    except KeyError:
        return None


def find_tag(keyword: str) -> int | None:
    """Return the tag of an attribute's keyword, or None if PS3.6 does not have it."""
    return datadict.tag_for_keyword(keyword)


def decode_text(raw: bytes, character_sets: Iterable[str], delimiters: set[int]) -> str:
    """Decode text in the given Specific Character Sets.

    Raises:
        LookupError: A character set is not known.
        ValueError: The bytes are not text of the character set.
    """
    return str(charset.decode_bytes(raw, charset.convert_encodings(list(character_sets)), delimiters))


def encode_text(text: str, character_sets: Iterable[str]) -> bytes:
    """Encode text without delimiters in the given Specific Character Sets.

    Raises:
        LookupError: A character set is not known.
        ValueError: The character sets lack a character.
    """
    encodings = charset.convert_encodings(list(character_sets))
    encoded = bytes(charset.encode_string(text, encodings))
    if encodings[0] == charset.default_encoding and not encoded.partition(b"\x1b")[0].isascii():
        # pydicom takes Latin-1 for the default repertoire, which has no character beyond ASCII (PS3.5
        # 6.1.2.2). Only the other character sets remain for this text.
        encoded = bytes(charset.encode_string(text, ["ascii", *encodings[1:]]))
    return encoded


def find_keyword(tag: int) -> str:
    """Return the keyword of an attribute; an empty text for a private or unknown one."""
    return str(datadict.keyword_for_tag(tag))


def has_many_values(tag: int) -> bool:
    """Return whether PS3.6 allows more than one value of an attribute."""
    try:
        return str(datadict.dictionary_VM(tag)) != "1"
    except KeyError:
        return True
