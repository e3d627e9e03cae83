"""Routing: decide which destinations an instance goes to (`[[routes]]`), from values only, without I/O."""

import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from ingest.config.hours import format_hours, join_hours
from ingest.config.model import SENDER, Route
from ingest.config.route_conditions import Condition, matches_test, parse_condition, vr_of
from ingest.dicom.file_header import InstanceHeader
from ingest.dicom.text import SPECIFIC_CHARACTER_SET, decode_text
from ingest.dicom.uids import EXPLICIT_BIG_ENDIAN, names_of

# PS3.5 Table 6.2-1: binary numbers, text of a single value, text in the Specific Character Set.
_BINARY: Final = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d", "UV": "Q", "SV": "q"}
_SINGLE_VALUE: Final = frozenset({"LT", "ST", "UT", "UR"})
_LEVELS: Final = ("series", "study")  # the longer wait comes last
_CHARACTER_TEXT: Final = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})


class ConditionResult(NamedTuple):
    """One evaluated condition of a route, the values found, and whether the condition holds."""

    condition: Condition
    values: tuple[str, ...]
    holds: bool


@dataclass(frozen=True, slots=True)
class RouteResult:
    """Result of one route for an instance.

    Attributes:
        route: Name of the route.
        is_match: Whether all its conditions hold.
        conditions: The evaluated conditions. Evaluation ends at the first one that does not hold.
    """

    route: str
    is_match: bool
    conditions: tuple[ConditionResult, ...]


@dataclass(frozen=True, slots=True)
class RoutingDecision:
    """The destinations of an instance, and how they were found.

    Attributes:
        destinations: Names without duplicates, in the order of the configuration file.
        routed: Value for the ledger: the names of the matching routes, or a remark that none matched.
        results: One for each route that was evaluated.
        return_allowed: Destinations that receive the instance even if it came from them (`return = true`).
        held: Destinations whose deliveries a person releases (`hold = true`).
        priorities: Priorities of the routes that name a destination, by destination. Without one, that of the
            C-STORE request counts.
        awaited: "series" or "study", by destination: deliveries wait until that is complete.
        stable_seconds: The longest time of the matching routes that wait, by "series" or "study". A level
            without one has that of the node.
        hours: Hours of deliveries, by destination (`ingest.config.hours`), without those that have any time.
        exclusions: One remark for each group of destinations that was excluded.
    """

    destinations: tuple[str, ...]
    routed: str
    results: tuple[RouteResult, ...]
    return_allowed: frozenset[str] = frozenset()
    exclusions: tuple[str, ...] = ()
    held: frozenset[str] = frozenset()
    priorities: Mapping[str, frozenset[str]] = field(default_factory=dict)
    awaited: Mapping[str, str] = field(default_factory=dict)
    stable_seconds: Mapping[str, int] = field(default_factory=dict)
    hours: Mapping[str, str] = field(default_factory=dict)

    def exclude(self, names: Collection[str], remark: str) -> "RoutingDecision":
        """Return a copy without these destinations. The remark explains why, and is added to `routed`."""
        return replace(
            self,
            destinations=tuple(name for name in self.destinations if name not in names),
            held=self.held.difference(names),
            routed=f"{self.routed}; {remark}",
            exclusions=(*self.exclusions, remark),
        )


class Router:
    """The routes of one configuration with their conditions parsed.

    Attributes:
        tags: Attributes that the conditions test, and that must be read from the data set.
    """

    def __init__(self, routes: Sequence[Route]) -> None:
        """Parse the conditions.

        Raises:
            ConditionError: A condition is not valid. Instances must not be routed by half of the conditions.
        """
        self._routes = tuple(
            (
                route.name or f"routes[{number}]",
                route,
                tuple(parse_condition(key, value) for key, value in route.when.items()),
            )
            for number, route in enumerate(routes)
        )
        tested = {condition.tag for _, _, conditions in self._routes for condition in conditions}
        tags = {tag for tag in tested if tag is not None}
        if any(vr_of(tag) in _CHARACTER_TEXT for tag in tags):
            tags.add(SPECIFIC_CHARACTER_SET)
        self.tags: tuple[int, ...] = tuple(sorted(tags))

    def _describe(self, matching: Sequence[str], *, is_forwarded: bool, is_unknown: bool) -> str:
        """Return the names of the matching routes, with a remark."""
        if not matching:
            return "no route took it" if self._routes else ""
        names = ", ".join(matching)
        if is_unknown:
            return f"{names}; no [[peers]] entry names a destination for its sender"
        return names if is_forwarded else f"{names}: forwarded nowhere on purpose"

    def _find_sender(self, instance: InstanceHeader) -> str:  # noqa: ARG002 - for `NodeRouter`
        """Return the destination that stands for the sender; empty without one."""
        return ""

    def route_instance(self, instance: InstanceHeader) -> RoutingDecision:
        """Decide the destinations of an instance. Default routes count only if no other route matches."""
        # INVARIANT 10: decisions are pure
        destinations: dict[str, None] = {}
        return_allowed: set[str] = set()
        matching: list[str] = []
        matching_routes: list[tuple[Route, Sequence[str]]] = []
        results: list[RouteResult] = []
        is_unknown = False
        for is_default in (False, True):
            if is_default and matching:
                break
            for name, route, conditions in self._routes:
                if route.default is not is_default:
                    continue
                result = _evaluate_route(name, conditions, instance)
                results.append(result)
                if result.is_match:
                    matching.append(name)
                    sender = self._find_sender(instance) if SENDER in route.to else ""
                    names = _name_sender(route.to, sender)
                    destinations.update(dict.fromkeys(names))
                    return_allowed.update(names if route.sends_back else filter(None, (sender,)))
                    is_unknown |= SENDER in route.to and not sender
                    matching_routes.append((route, names))
                    if route.stop:
                        break
        is_forwarded = bool(destinations)
        return RoutingDecision(
            tuple(destinations),
            self._describe(matching, is_forwarded=is_forwarded, is_unknown=is_unknown),
            tuple(results),
            frozenset(return_allowed),
            # One route that holds is enough: what was sent cannot be taken back.
            held=frozenset(to for route, names in matching_routes if route.hold for to in names),
            priorities=_collect_priorities(matching_routes),
            awaited=_find_awaited(matching_routes),
            stable_seconds=_find_stable_seconds(matching_routes),
            hours=_collect_hours(matching_routes),
        )


def _name_sender(to: Sequence[str], sender: str) -> tuple[str, ...]:
    """Replace `@sender` by a destination; without one, leave it out."""
    named = (sender if name == SENDER else name for name in to)
    return tuple(name for name in named if name)


def _find_awaited(routes: Sequence[tuple[Route, Sequence[str]]]) -> dict[str, str]:
    """Return "series" or "study" by destination. The longest wait counts: what was sent is not taken back."""
    return {to: level for level in _LEVELS for route, names in routes if route.on == level for to in names}


def _find_stable_seconds(routes: Sequence[tuple[Route, Sequence[str]]]) -> dict[str, int]:
    """Return the longest time of the routes that wait, by what they wait for."""
    times = {level: [route.stable_seconds for route, _ in routes if route.on == level] for level in _LEVELS}
    return {level: max(seconds) for level, seconds in times.items() if any(seconds)}


def _collect_priorities(taking: Sequence[tuple[Route, Sequence[str]]]) -> dict[str, frozenset[str]]:
    priorities: dict[str, frozenset[str]] = {}
    for route, names in taking:
        for to in names if route.priority else ():
            priorities[to] = priorities.get(to, frozenset()) | {route.priority}
    return priorities


def _collect_hours(taking: Sequence[tuple[Route, Sequence[str]]]) -> dict[str, str]:
    """Return the hours of each destination that only routes with hours name."""
    if not any(route.hours for route, _ in taking):
        return {}
    texts: dict[str, list[str]] = {}
    for route, names in taking:
        for to in names:
            texts.setdefault(to, []).append(format_hours(route.hours, route.time_zone) if route.hours else "")
    return {to: joined for to, each in texts.items() if (joined := join_hours(each))}


def _evaluate_route(name: str, conditions: Sequence[Condition], instance: InstanceHeader) -> RouteResult:
    results = []
    for condition in conditions:
        values = read_values(instance, condition)
        holds = matches_test(condition.test, values)
        results.append(ConditionResult(condition, values, holds))
        if not holds:
            return RouteResult(name, False, tuple(results))
    return RouteResult(name, True, tuple(results))


def read_values(instance: InstanceHeader, condition: Condition) -> tuple[str, ...]:
    """Return the values that a condition tests, without padding; empty if there is none."""
    if condition.tag is None:
        return _REQUEST_VALUES[condition.key](instance)
    raw = instance.attributes.get(condition.tag, b"")
    return _decode_values(raw, vr_of(condition.tag), instance.transfer_syntax_uid, instance.attributes)


def _strip_value(text: str) -> tuple[str, ...]:
    return (text.strip(" \0"),) if text.strip(" \0") else ()


def _address_spellings(uri: str) -> tuple[str, ...]:
    """Return the URI, its address with port, and the port alone. A pattern may match any of them."""
    address = uri.rpartition("/")[2]
    return (uri, address, address.rpartition(":")[2]) if uri else ()


_REQUEST_VALUES: Final[dict[str, Callable[[InstanceHeader], tuple[str, ...]]]] = {
    "calling_ae": lambda instance: _strip_value(instance.calling_ae),
    "called_ae": lambda instance: _strip_value(instance.called_ae),
    "certificate": lambda instance: instance.certificate,
    "listener": lambda instance: _address_spellings(instance.receiver),
    "sop_class": lambda instance: names_of(instance.sop_class_uid),
    "transfer_syntax": lambda instance: names_of(instance.transfer_syntax_uid),
}
"""Values of `route_conditions.REQUEST_KEYS`."""


def _decode_values(
    raw: bytes, vr: str, transfer_syntax_uid: str, attributes: Mapping[int, bytes]
) -> tuple[str, ...]:
    first_vr = vr.partition(" or ")[0]
    if first_vr in _BINARY:
        order = ">" if transfer_syntax_uid == EXPLICIT_BIG_ENDIAN else "<"
        size = struct.calcsize(_BINARY[first_vr])
        whole = raw[: len(raw) // size * size]
        numbers = struct.iter_unpack(order + _BINARY[first_vr], whole)
        return tuple(f"{number:.15g}" for (number,) in numbers)
    if first_vr in _CHARACTER_TEXT:
        text = decode_text(raw, attributes.get(SPECIFIC_CHARACTER_SET, b""), is_name=first_vr == "PN")
    else:
        text = raw.decode("ascii", "replace")
    values = [text] if first_vr in _SINGLE_VALUE else text.split("\\")
    return tuple(value.strip(" \0") for value in values if value.strip(" \0"))
