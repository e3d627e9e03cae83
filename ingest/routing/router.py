"""Which destinations an instance goes to (`[[routes]]`): decisions over values, without I/O."""

import re
import struct
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final

from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import dictionary_VR, tag_for_keyword

from ingest.dicom.uids import EXPLICIT_BIG_ENDIAN, names_of

if TYPE_CHECKING:
    # The configuration imports this module, to check conditions.
    from ingest.config.model import Route

SPECIFIC_CHARACTER_SET: Final = 0x0008_0005

SHORT_NAMES: Final = {
    "modality": 0x0008_0060,
    "station": 0x0008_1010,
    "institution": 0x0008_0080,
    "body_part": 0x0018_0015,
}

_TAG: Final = re.compile(r"[0-9A-Fa-f]{4},[0-9A-Fa-f]{4}")
# PS3.5 Table 6.2-1: binary numbers, text of one value, text in the Specific Character Set.
_BINARY: Final = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d", "UV": "Q", "SV": "q"}
_SINGLE: Final = frozenset({"LT", "ST", "UT", "UR"})
_CHARACTERS: Final = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
_DELIMITERS: Final = set(b"\r\n\t\f\\")
"""After these a value is in its first character set again (PS3.5 6.1.2.5.3)."""
_NO_VALUE: Final = frozenset({"SQ", "OB", "OD", "OF", "OL", "OV", "OW", "UN", "OB or OW", "AT"})


class ConditionError(ValueError):
    """A condition that cannot be understood; the message is the cause, `remedy` what to do."""

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(cause)
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Glob:
    """Some value is like the pattern: `*`, `?`, `[…]`; capitals count."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Range:
    """Some value is a number within both bounds, which belong to it."""

    least: float
    most: float


@dataclass(frozen=True, slots=True)
class AnyOf:
    """One of these holds."""

    tests: "tuple[Test, ...]"


@dataclass(frozen=True, slots=True)
class Not:
    """It does not hold; so it is where there is no value at all."""

    test: "Test"


Test = Glob | Range | AnyOf | Not


@dataclass(frozen=True, slots=True)
class Condition:
    """One entry of `when`.

    Attributes:
        key: As the configuration names it.
        tag: The attribute that it looks at; None for one of `REQUEST_KEYS`.
        test: What must hold of its values.
    """

    key: str
    tag: int | None
    test: Test


@dataclass(frozen=True, slots=True)
class Subject:
    """What is known of an instance.

    Attributes:
        attributes: Values of top-level attributes as they are in the data set, by tag.
        receiver: The URI at which it was received, `dicom-tls://10.0.0.5:2762`; empty where nobody knows.
        certificate: SHA-256 fingerprint, subject and alternative names of its sender's; empty without one.
        source: Presentation address of its sender, `dicom-tls://10.0.0.7:4711`; empty where nobody knows.
    """

    calling_ae: str
    called_ae: str
    sop_class_uid: str
    transfer_syntax_uid: str
    attributes: Mapping[int, bytes] = field(default_factory=dict)
    receiver: str = ""
    certificate: tuple[str, ...] = ()
    source: str = ""

    def values(self, condition: Condition) -> tuple[str, ...]:
        """What the condition looks at, without padding; empty where it is not there."""
        of_request = _OF_REQUEST.get(condition.key)
        if of_request is not None:
            return of_request(self)
        raw = self.attributes.get(condition.tag or 0, b"")
        return _decoded(raw, _vr(condition.tag or 0), self.transfer_syntax_uid, self.attributes)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one route said of an instance.

    Attributes:
        route: Its name.
        took: Whether it took it.
        seen: Of each condition that was looked at: it, the values seen, and whether it held.
    """

    route: str
    took: bool
    seen: tuple[tuple[Condition, tuple[str, ...], bool], ...]


@dataclass(frozen=True, slots=True)
class Routing:
    """What becomes of an instance.

    Attributes:
        destinations: Names, each once, in the order of the file.
        routed: For the ledger: the names of the routes that took it, or that none did.
        verdicts: Of every route that was asked.
        returning: Those of the destinations that get it even if it came from them (`return = true`).
        kept_back: Why routes' destinations do not get it, a remark each.
    """

    destinations: tuple[str, ...]
    routed: str
    verdicts: tuple[Verdict, ...]
    returning: frozenset[str] = frozenset()
    kept_back: tuple[str, ...] = ()

    def without(self, names: Collection[str], remark: str) -> "Routing":
        """The same without some destinations, and a remark why; it becomes a part of `routed`."""
        return replace(
            self,
            destinations=tuple(name for name in self.destinations if name not in names),
            routed=f"{self.routed}; {remark}",
            kept_back=(*self.kept_back, remark),
        )


class Router:
    """The routes of one configuration, read once.

    Attributes:
        tags: The attributes that the routes look at; empty where they look at none.
    """

    def __init__(self, routes: Sequence["Route"]) -> None:
        """Read them.

        Raises:
            ConditionError: A condition is not understood; what is not understood must not be forwarded.
        """
        self._routes = tuple(
            (_name(number, route), route, tuple(parse(key, value) for key, value in route.when.items()))
            for number, route in enumerate(routes)
        )
        asked = {condition.tag for _, _, conditions in self._routes for condition in conditions}
        tags = {tag for tag in asked if tag is not None}
        if any(_vr(tag) in _CHARACTERS for tag in tags):
            tags.add(SPECIFIC_CHARACTER_SET)
        self.tags: tuple[int, ...] = tuple(sorted(tags))

    def decide(self, subject: Subject) -> Routing:
        """Where an instance goes, and why."""
        to: dict[str, None] = {}
        returning: set[str] = set()
        took: list[str] = []
        verdicts: list[Verdict] = []
        for default in (False, True):
            if default and took:
                break
            for name, route, conditions in self._routes:
                if route.default is not default:
                    continue
                verdict = Verdict(name, *_ask(conditions, subject))
                verdicts.append(verdict)
                if verdict.took:
                    took.append(name)
                    to.update(dict.fromkeys(route.to))
                    returning.update(route.to if route.sends_back else ())
                    if route.stop:
                        break
        said = ", ".join(took)
        if not took:
            said = "no route took it" if self._routes else ""
        elif not to:
            said = f"{said}: forwarded nowhere on purpose"
        return Routing(tuple(to), said, tuple(verdicts), frozenset(returning))


_OF_REQUEST: Final[dict[str, Callable[[Subject], tuple[str, ...]]]] = {
    "calling_ae": lambda subject: _present(subject.calling_ae),
    "called_ae": lambda subject: _present(subject.called_ae),
    "certificate": lambda subject: subject.certificate,
    "listener": lambda subject: _of_address(subject.receiver),
    "sop_class": lambda subject: names_of(subject.sop_class_uid),
    "transfer_syntax": lambda subject: names_of(subject.transfer_syntax_uid),
}
"""What is known without a look into the data set."""

REQUEST_KEYS: Final = tuple(_OF_REQUEST)


def parse(key: str, value: Any) -> Condition:
    """Read one entry of `when`.

    Raises:
        ConditionError: The key is not known, or the value is none that it can have.
    """
    tag = None if key in REQUEST_KEYS else _tag(key)
    return Condition(key, tag, _test(value))


def holds(test: Test, values: Sequence[str]) -> bool:
    """Whether a test holds of an attribute's values."""
    match test:
        case Glob(pattern):
            return any(fnmatchcase(value, pattern) for value in values)
        case Range(least, most):
            return any(least <= number <= most for number in _numbers(values))
        case AnyOf(tests):
            return any(holds(one, values) for one in tests)
        case Not(inner):
            return not holds(inner, values)


def _ask(
    conditions: Sequence[Condition], subject: Subject
) -> tuple[bool, tuple[tuple[Condition, tuple[str, ...], bool], ...]]:
    seen = []
    for condition in conditions:
        values = subject.values(condition)
        held = holds(condition.test, values)
        seen.append((condition, values, held))
        if not held:
            return False, tuple(seen)
    return True, tuple(seen)


def _name(number: int, route: "Route") -> str:
    return route.name or f"routes[{number}]"


def _tag(key: str) -> int:
    if key in SHORT_NAMES:
        return SHORT_NAMES[key]
    tag = int(key.replace(",", ""), 16) if _TAG.fullmatch(key) else tag_for_keyword(key)
    if tag is None:
        raise ConditionError(
            f'"{key}" is not known',
            f"write one of {', '.join((*REQUEST_KEYS, *SHORT_NAMES))}, a keyword of PS3.6 such as "
            'PatientSex, or a tag such as "0008,0060"',
        )
    if tag < 0x0008_0000:
        raise ConditionError(f'"{key}" is not in the data set', "name an attribute of group 0008 or later")
    if _vr(tag) in _NO_VALUE:
        raise ConditionError(
            f'"{key}" has no value to compare (VR {_vr(tag)})', "name an attribute of text or numbers"
        )
    return tag


def _test(value: Any) -> Test:
    if isinstance(value, str):
        return Glob(value)
    if isinstance(value, list) and value:
        return AnyOf(tuple(_test(one) for one in value))
    if isinstance(value, dict) and set(value) == {"not"}:
        return Not(_test(value["not"]))
    if isinstance(value, dict) and value and set(value) <= {"min", "max"}:
        return _range(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Range(value, value)
    raise ConditionError(
        f"{value!r} is no condition",
        'write "PATTERN", a list of such, { not = … }, a number, or { min = 1, max = 5 }',
    )


def _range(value: Mapping[str, Any]) -> Range:
    bounds = [value.get("min", float("-inf")), value.get("max", float("inf"))]
    if any(not isinstance(bound, int | float) or isinstance(bound, bool) for bound in bounds):
        raise ConditionError("min and max are not both numbers", "write digits, without quotes")
    if not bounds[0] <= bounds[1]:
        raise ConditionError(f"no number is from {bounds[0]} to {bounds[1]}", "exchange min and max")
    return Range(*bounds)


def _vr(tag: int) -> str:
    try:
        return dictionary_VR(tag)
    except KeyError:
        return "LO"  # a private attribute is taken for text


def _present(text: str) -> tuple[str, ...]:
    return (text.strip(" \0"),) if text.strip(" \0") else ()


def _of_address(uri: str) -> tuple[str, ...]:
    """A URI, its address with the port, and the port alone: a pattern may be like any of them."""
    address = uri.rpartition("/")[2]
    return (uri, address, address.rpartition(":")[2]) if uri else ()


def _decoded(
    raw: bytes, vr: str, transfer_syntax_uid: str, attributes: Mapping[int, bytes]
) -> tuple[str, ...]:
    kind = vr.partition(" or ")[0]
    if kind in _BINARY:
        order = ">" if transfer_syntax_uid == EXPLICIT_BIG_ENDIAN else "<"
        size = struct.calcsize(_BINARY[kind])
        whole = raw[: len(raw) // size * size]
        return tuple(f"{number:.15g}" for (number,) in struct.iter_unpack(order + _BINARY[kind], whole))
    if kind in _CHARACTERS:
        text = _text(raw, attributes.get(SPECIFIC_CHARACTER_SET, b""))
    else:
        text = raw.decode("ascii", "replace")
    parts = [text] if kind in _SINGLE else text.split("\\")
    return tuple(part.strip(" \0") for part in parts if part.strip(" \0"))


def _text(raw: bytes, character_set: bytes) -> str:
    """Text in its Specific Character Set (PS3.5 6.1); one that is not known is read as far as it is ASCII."""
    if raw.isascii() and b"\x1b" not in raw:
        return raw.decode("ascii")
    names = [name.strip(" \0") for name in character_set.decode("ascii", "replace").split("\\")]
    with warnings.catch_warnings():
        # pydicom warns of each text that it cannot read, with the text.
        warnings.simplefilter("ignore")
        try:
            return decode_bytes(raw, convert_encodings(names), _DELIMITERS)
        except (LookupError, UnicodeError, ValueError):
            return raw.decode("ascii", "replace")


def _numbers(values: Sequence[str]) -> Iterator[float]:
    for value in values:
        try:
            yield float(value)
        except ValueError:
            continue
