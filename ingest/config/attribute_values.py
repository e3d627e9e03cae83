"""Attributes that `[[destinations]] set`, `remove` and `map` name, and the values that they may get.

`parse_attribute` decides which attributes may be changed. The message of an error never has a value, because
a map may hold names of patients.
"""

import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache, partial
from typing import Any, Final

from ingest.errors import ConditionError

# PS3.5 Table 6.2-1: the longest value in characters, for text in the Specific Character Set.
_TEXT: Final = {"LO": 64, "PN": 64, "SH": 16, "ST": 1024, "LT": 10240, "UC": 1 << 16, "UT": 1 << 16}
_NAME_GROUPS: Final = 3
SINGLE_VALUE: Final = frozenset({"ST", "LT", "UT", "UR"})
"""PS3.5 6.2: text of these VRs is one value, and may contain a backslash."""

BINARY: Final = {"US": "H", "SS": "h", "UL": "L", "SL": "l", "UV": "Q", "SV": "q", "FL": "f", "FD": "d"}
"""PS3.5 Table 6.2-1: the VRs of binary numbers, with the format of `struct`."""

_TAG: Final = re.compile(r"[0-9A-Fa-f]{4},[0-9A-Fa-f]{4}")
_PIXEL_GROUP: Final = 0x0028
# PS3.3 C.7.6, C.11: attributes of group 0028 that describe neither the encoding of pixels nor their size.
_FREE_PIXEL_ATTRIBUTES: Final = frozenset(
    {0x0028_0300, 0x0028_0301, 0x0028_0302, 0x0028_1050, 0x0028_1051, 0x0028_1055, 0x0028_1056}
)
_CHARACTER_SET: Final = 0x0008_0005


@dataclass(frozen=True, slots=True)
class NewValue:
    """A value for an attribute.

    Attributes:
        tag: The attribute.
        vr: Its VR.
        text: The values, with a backslash between them; empty for an attribute without a value.
    """

    tag: int
    vr: str
    text: str


def _matches(pattern: str, text: str) -> bool:
    return re.fullmatch(pattern, text, re.ASCII) is not None


def _is_date(text: str) -> bool:
    try:
        return _matches(r"\d{8}", text) and date(int(text[:4]), int(text[4:6]), int(text[6:])).year > 0
    except ValueError:
        return False


# PS3.5 Table 6.2-1: what a single value of a VR looks like, for people and as a test.
_FORMS: Final[dict[str, tuple[str, Callable[[str], bool]]]] = {
    "AE": ("1 to 16 characters of ASCII", partial(_matches, r"[ -\[\]-~]{0,16}")),
    "AS": ("an age such as 045Y", partial(_matches, r"\d{3}[DWMY]")),
    "CS": ("up to 16 of A-Z, 0-9, space and _", partial(_matches, r"[A-Z0-9_ ]{0,16}")),
    "DA": ("a date such as 20260131", _is_date),
    "DS": (
        "a number of up to 16 characters",
        lambda text: len(text) <= 16 and _matches(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text),
    ),
    "DT": (
        "a date and time such as 20260131120000+0100",
        partial(_matches, r"\d{4}(\d\d){0,5}(\.\d{1,6})?([+-]\d{4})?"),
    ),
    "IS": (
        "a whole number of 32 bits",
        lambda text: _matches(r"[+-]?\d{1,11}", text) and -(1 << 31) <= int(text) < 1 << 31,
    ),
    "TM": (
        "a time such as 120000",
        partial(_matches, r"([01]\d|2[0-3])([0-5]\d([0-5]\d|60)?)?((?<=\d{6})\.\d{1,6})?"),
    ),
    "UR": ("a URI without spaces before it", partial(_matches, r"[!-~][ -~]{0,1023}")),
}


@lru_cache(maxsize=1024)
def parse_attribute(name: str) -> tuple[int, str]:
    """Return tag and VR of an attribute that may be changed: a keyword of PS3.6, or a tag "0010,0020".

    Raises:
        ConditionError: The attribute is not known, or must not be changed.
    """
    from ingest.dicom import registry  # noqa: PLC0415 - slow to import, and most nodes change nothing

    tag = int(name.replace(",", ""), 16) if _TAG.fullmatch(name) else registry.find_tag(name)
    if tag is None:
        remedy = 'write a keyword of PS3.6 such as PatientID, or a tag such as "0010,0020"'
        raise ConditionError(f'"{name}" is no attribute', remedy)
    vr = registry.find_vr(tag) or "UN"
    if cause := _find_refusal(tag, vr):
        raise ConditionError(f'"{name}" {cause}', "remove it from here")
    return tag, vr


def _find_refusal(tag: int, vr: str) -> str:
    """Return why an attribute must not be changed; an empty text if it may."""
    group, element = tag >> 16, tag & 0xFFFF
    is_pixel = group == 0x7FE0 or (group == _PIXEL_GROUP and tag not in _FREE_PIXEL_ATTRIBUTES)
    reasons = (
        (group < 0x0008 or group == 0xFFFE, "is not in the data set"),
        (element == 0, "is a group length, which the node removes where it is no longer right"),
        (tag == _CHARACTER_SET, "says how all text of the data set is encoded"),
        (is_pixel, "belongs to the pixel data or describes them"),
        (vr == "UI", "is a UID, to which other objects refer"),
        (
            group == 0x0400 and 0x0550 <= element <= 0x0565,
            "belongs to the Original Attributes Sequence, which the node writes",
        ),
        (group & 1 and element < 0x1000, "names the owner of private attributes"),
    )
    return next((reason for applies, reason in reasons if applies), "")


def parse_new_value(name: str, value: Any) -> NewValue:
    """Parse the value that an attribute gets: a text, a number, or a list of either.

    Raises:
        ConditionError: The attribute must not be set, or the value does not fit its VR.
    """
    tag, vr = parse_attribute(name)
    if tag >> 16 & 1 or (vr not in _TEXT and vr not in _FORMS and vr not in BINARY):
        kind = "is private" if tag >> 16 & 1 else f"has VR {vr}"
        raise ConditionError(f'"{name}" {kind}, and can only be removed', "write it into `remove`")
    listed = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(one, str | int | float) and not isinstance(one, bool) for one in listed):
        raise ConditionError(
            f'"{name}" gets no value of a kind that DICOM knows', 'write "TEXT", a number or a list'
        )
    text = "\\".join(one if isinstance(one, str) else f"{one:.15g}" for one in listed)
    _check_text(name, tag, vr, text)
    return NewValue(tag, vr, text)


def _check_text(name: str, tag: int, vr: str, text: str) -> None:
    from ingest.dicom import registry  # noqa: PLC0415 - as in `parse_attribute`

    values = [text] if vr in SINGLE_VALUE else text.split("\\")
    if len(values) > 1 and not registry.has_many_values(tag):
        raise ConditionError(f'"{name}" gets {len(values)} values and may have one', "write one value")
    for one in values if text else ():
        if form := _describe_misfit(vr, one):
            raise ConditionError(f'"{name}" gets a value that VR {vr} does not allow', f"write {form}")


def _describe_misfit(vr: str, value: str) -> str:
    """Return what a value of a VR has to be if this one is not; otherwise an empty text."""
    if vr in _TEXT:
        groups: Sequence[str] = value.split("=") if vr == "PN" else (value,)
        breaks = "\r\n\t\f" if vr in {"ST", "LT", "UT"} else ""
        if not all(char.isprintable() or char in breaks for char in value):
            return "text without control characters"
        if vr == "PN" and len(groups) > _NAME_GROUPS:
            return f"up to {_NAME_GROUPS} groups of components"
        return "" if all(len(group) <= _TEXT[vr] for group in groups) else f"up to {_TEXT[vr]} characters"
    if vr in BINARY:
        try:
            pack_numbers(vr, value, "<")
        except (ValueError, struct.error, OverflowError):
            return "a number" if vr in {"FL", "FD"} else "a whole number that fits"
        return ""
    form, is_valid = _FORMS[vr]
    return "" if is_valid(value) or not value else form


def pack_numbers(vr: str, text: str, order: str) -> bytes:
    """Encode numbers of a binary VR; `order` is "<" or ">".

    Raises:
        ValueError, struct.error, OverflowError: The text has no numbers of this VR.
    """
    numbers = [float(one) if vr in {"FL", "FD"} else int(one) for one in text.split("\\")] if text else []
    return struct.pack(f"{order}{len(numbers)}{BINARY[vr]}", *numbers)
