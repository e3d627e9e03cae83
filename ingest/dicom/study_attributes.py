"""Searchable attributes of study and series: their tags, their decoded values, and names as search keys.

Patients are searched for by people, so a name becomes a key without case and accents. A name has up to three
component groups (PS3.5 6.2, VR PN): alphabetic, ideographic and phonetic. Each group is a separate key.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from ingest.dicom.text import SPECIFIC_CHARACTER_SET, decode_text

IndexLevel = Literal["none", "identifiers", "full"]

VALUE_MAX: Final = 128
"""Characters of a value that are kept. Values of these VRs have 64 characters at most, in each name group.

PostgreSQL cannot index 2,704 bytes or more, and no instance may fail because of its attributes.
"""

NAME_GROUPS: Final = 3
CACHED: Final = 1024
"""Numbers of series whose decoded attributes are kept: the next instance of the series has the same ones."""

_PATIENT_NAME: Final = 0x0010_0010
_TAGS: Final = {
    "study_date": 0x0008_0020,
    "study_time": 0x0008_0030,
    "accession_number": 0x0008_0050,
    "modality": 0x0008_0060,
    "institution_name": 0x0008_0080,
    "station_name": 0x0008_1010,
    "study_description": 0x0008_1030,
    "series_description": 0x0008_103E,
    "patient_name": _PATIENT_NAME,
    "patient_id": 0x0010_0020,
    "issuer_of_patient_id": 0x0010_0021,
    "body_part": 0x0018_0015,
    "series_number": 0x0020_0011,
}
# Letters that Unicode does not decompose into a base letter and an accent.
_BASE_LETTERS: Final = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "æ": "ae", "œ": "oe", "þ": "th", "ı": "i", "ħ": "h"}
)
_ACCENTS: Final = re.compile("[\u0300-\u036f]")


class NameKeys(NamedTuple):
    """Search keys of the component groups of a person name; a group without text is empty."""

    alphabetic: str = ""
    ideographic: str = ""
    phonetic: str = ""


NO_NAME: Final = NameKeys()


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyAttributes:
    """Attributes of one instance that describe its study and its series. A missing text is empty.

    Attributes:
        level: What was read; with "identifiers" the patient's name was not.
        study_date: Eight digits, or empty.
        name_keys: `patient_name` for searching.
    """

    level: IndexLevel
    patient_id: str = ""
    issuer_of_patient_id: str = ""
    patient_name: str = ""
    name_keys: NameKeys = NO_NAME
    accession_number: str = ""
    study_date: str = ""
    study_time: str = ""
    study_description: str = ""
    institution_name: str = ""
    modality: str = ""
    series_number: int | None = None
    series_description: str = ""
    station_name: str = ""
    body_part: str = ""


class StudyAttributeReader:
    """Decodes the attributes of instance headers, and remembers those of the latest series.

    Attributes:
        level: `[ledger] index`.
        tags: Tags that the header of an instance must be read with, as optional ones.
    """

    def __init__(self, level: IndexLevel) -> None:
        self.level = level
        self._tags = {name: tag for name, tag in _TAGS.items() if level == "full" or name != "patient_name"}
        self.tags = frozenset({SPECIFIC_CHARACTER_SET, *self._tags.values()} if level != "none" else ())
        self._known: dict[tuple[bytes | None, ...], StudyAttributes] = {}

    def read_attributes(self, values: Mapping[int, bytes]) -> StudyAttributes | None:
        """Decode raw values by tag; None with `index = "none"`. Values that are no text become empty."""
        if self.level == "none":
            return None
        raw = tuple(map(values.get, _READ_TAGS))
        known = self._known.get(raw)
        if known is None:
            if len(self._known) >= CACHED:
                self._known.clear()
            known = self._known[raw] = self._decode(values)
        return known

    def _decode(self, values: Mapping[int, bytes]) -> StudyAttributes:
        character_set = values.get(SPECIFIC_CHARACTER_SET, b"")
        texts = {}
        for name, tag in self._tags.items():
            is_name = tag == _PATIENT_NAME
            text = decode_text(values.get(tag, b""), character_set, is_name=is_name)
            most = NAME_GROUPS * VALUE_MAX if is_name else VALUE_MAX
            texts[name] = _CLEANERS.get(name, _clean_text)(text)[:most]
        number = texts.pop("series_number")
        name = texts.get("patient_name", "")
        return StudyAttributes(
            level=self.level,
            series_number=int(number) if number else None,
            name_keys=make_name_keys(name),
            **texts,
        )


_READ_TAGS: Final = (SPECIFIC_CHARACTER_SET, *_TAGS.values())


def make_name_keys(name: str) -> NameKeys:
    """Make the search keys of a person name."""
    groups = [normalize_name(group)[:VALUE_MAX] for group in name.split("=")[:NAME_GROUPS]]
    return NameKeys(*groups)


def normalize_name(text: str) -> str:
    """Write one component group of a name without case, accents, wide letters and superfluous spaces.

    A comma separates components like "^", as people write names. Wildcards stay.
    """
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    plain = unicodedata.normalize("NFC", _ACCENTS.sub("", decomposed)).translate(_BASE_LETTERS)
    components = (" ".join(component.split()) for component in plain.replace(",", "^").split("^"))
    return "^".join(components).rstrip("^")


def _clean_text(text: str) -> str:
    """Remove padding and control characters, which could control a terminal."""
    printable = text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)
    return printable.strip()


def _clean_date(text: str) -> str:
    # PS3.5 6.2, VR DA: YYYYMMDD; ACR-NEMA wrote YYYY.MM.DD.
    digits = text.strip(" \0").replace(".", "").replace("-", "")
    return digits if len(digits) == 8 and digits.isascii() and digits.isdigit() else ""


def _clean_time(text: str) -> str:
    digits = text.strip(" \0").replace(":", "")
    return digits if re.fullmatch(r"\d{2,6}(\.\d{1,6})?", digits, re.ASCII) else ""


def _clean_number(text: str) -> str:
    # PS3.5 6.2, VR IS: a number of 32 bits in 12 characters at most.
    digits = text.strip(" \0")
    is_number = re.fullmatch(r"[+-]?\d{1,11}", digits, re.ASCII) and abs(int(digits)) < 1 << 31
    return digits if is_number else ""


_CLEANERS: Final[Mapping[str, Callable[[str], str]]] = {
    "study_date": _clean_date,
    "study_time": _clean_time,
    "series_number": _clean_number,
}
