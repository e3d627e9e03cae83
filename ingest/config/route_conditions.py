"""Conditions of `[[routes]] when`: the values of a configuration, parsed once and then only evaluated.

A condition names something known about an instance, and a test of its values. Parsing needs the dictionary of
PS3.6, and evaluating a test needs nothing but values. `ingest.routing.router` supplies the values.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

from ingest.errors import ConditionError

REQUEST_KEYS: Final = ("calling_ae", "called_ae", "certificate", "listener", "sop_class", "transfer_syntax")
"""Keys whose values are known without reading the data set."""

SHORT_NAMES: Final = {
    "modality": 0x0008_0060,
    "station": 0x0008_1010,
    "institution": 0x0008_0080,
    "body_part": 0x0018_0015,
}
"""Keys that stand for an attribute of the data set."""
_SHORT_NAME_VRS: Final = {0x0008_0060: "CS", 0x0008_1010: "SH", 0x0008_0080: "LO", 0x0018_0015: "CS"}
"""PS3.6, for the attributes of `SHORT_NAMES`: a node whose routes use only these needs no dictionary."""

_TAG: Final = re.compile(r"[0-9A-Fa-f]{4},[0-9A-Fa-f]{4}")
_VRS_WITHOUT_TEXT: Final = frozenset({"SQ", "OB", "OD", "OF", "OL", "OV", "OW", "UN", "OB or OW", "AT"})


@dataclass(frozen=True, slots=True)
class Glob:
    """Holds if a value matches the pattern: `*`, `?`, `[…]`, case-sensitive."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Range:
    """Holds if a value is a number from `minimum` to `maximum`, both included."""

    minimum: float
    maximum: float


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Holds if one of the tests holds."""

    tests: "tuple[Test, ...]"


@dataclass(frozen=True, slots=True)
class Not:
    """Holds if the test does not hold, and therefore also if there is no value."""

    test: "Test"


Test = Glob | Range | AnyOf | Not


@dataclass(frozen=True, slots=True)
class Condition:
    """One entry of `when`.

    Attributes:
        key: Key in the configuration file.
        tag: Attribute whose values are tested; None for one of `REQUEST_KEYS`.
        test: Test of the values.
    """

    key: str
    tag: int | None
    test: Test


def parse_condition(key: str, value: Any) -> Condition:
    """Parse one entry of `when`.

    Raises:
        ConditionError: The key is unknown, or the value is not valid for a condition.
    """
    tag = None if key in REQUEST_KEYS else _parse_tag(key)
    return Condition(key, tag, _parse_test(value))


def matches_test(test: Test, values: Sequence[str]) -> bool:
    """Return whether a test holds for the values of an attribute."""
    match test:
        case Glob(pattern):
            return any(fnmatchcase(value, pattern) for value in values)
        case Range(minimum, maximum):
            return any(minimum <= number <= maximum for number in _numbers(values))
        case AnyOf(tests):
            return any(matches_test(one, values) for one in tests)
        case Not(inner):
            return not matches_test(inner, values)


def vr_of(tag: int) -> str:
    """Return the value representation of an attribute. A private attribute is read as text (LO)."""
    short_name_vr = _SHORT_NAME_VRS.get(tag)
    if short_name_vr is not None:
        return short_name_vr
    from ingest.dicom import registry  # noqa: PLC0415 - slow to import, and most nodes need no dictionary

    return registry.find_vr(tag) or "LO"


def _parse_tag(key: str) -> int:
    if key in SHORT_NAMES:
        return SHORT_NAMES[key]
    tag = int(key.replace(",", ""), 16) if _TAG.fullmatch(key) else _find_tag(key)
    if tag is None:
        raise ConditionError(
            f'"{key}" is not known',
            f"write one of {', '.join((*REQUEST_KEYS, *SHORT_NAMES))}, a keyword of PS3.6 such as "
            'PatientSex, or a tag such as "0008,0060"',
        )
    if tag < 0x0008_0000:
        raise ConditionError(f'"{key}" is not in the data set', "name an attribute of group 0008 or later")
    if vr_of(tag) in _VRS_WITHOUT_TEXT:
        raise ConditionError(
            f'"{key}" has no value to compare (VR {vr_of(tag)})', "name an attribute of text or numbers"
        )
    return tag


def _find_tag(keyword: str) -> int | None:
    from ingest.dicom import registry  # noqa: PLC0415 - as in `vr_of`

    return registry.find_tag(keyword)


def _parse_test(value: Any) -> Test:
    if isinstance(value, str):
        return Glob(value)
    if isinstance(value, list) and value:
        return AnyOf(tuple(_parse_test(one) for one in value))
    if isinstance(value, dict) and set(value) == {"not"}:
        return Not(_parse_test(value["not"]))
    if isinstance(value, dict) and value and set(value) <= {"min", "max"}:
        return _parse_range(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Range(value, value)
    raise ConditionError(
        f"{value!r} is no condition",
        'write "PATTERN", a list of such, { not = … }, a number, or { min = 1, max = 5 }',
    )


def _parse_range(value: Mapping[str, Any]) -> Range:
    bounds = [value.get("min", float("-inf")), value.get("max", float("inf"))]
    if any(not isinstance(bound, int | float) or isinstance(bound, bool) for bound in bounds):
        raise ConditionError("min and max are not both numbers", "write digits, without quotes")
    if not bounds[0] <= bounds[1]:
        raise ConditionError(f"no number is from {bounds[0]} to {bounds[1]}", "exchange min and max")
    return Range(*bounds)


def _numbers(values: Sequence[str]) -> Iterator[float]:
    for value in values:
        try:
            yield float(value)
        except ValueError:
            continue
