"""Rules of `[[routes]]`."""

from collections import Counter
from collections.abc import Iterator, Set
from typing import Final

from ingest.clock import unix_ms
from ingest.config.faults import Fault
from ingest.config.hours import Hours, find_longest_closure_ms, have_common_time, load_zone, parse_hours
from ingest.config.model import SENDER, Config, Destination, Route
from ingest.config.route_conditions import parse_condition
from ingest.errors import ConditionError

_ALWAYS: Final = "00:00-24:00"
MAX_ATTRIBUTES: Final = 56
"""The header scanner reads 80 tags at a time: also the UIDs and the attributes of the study index."""


def check_routes(config: Config, destinations: Set[str]) -> Iterator[Fault]:
    """Yield every fault of the routes.

    Args:
        config: A configuration whose types are valid.
        destinations: The names that the file gives to destinations and groups.
    """
    names: dict[str, int] = {}
    tags: set[int | None] = set()
    last_reached: int | None = None
    committing = {each.name for each in config.destinations if each.commitment}
    committing |= {each.name for each in config.groups if committing.issuperset(each.members)}
    members = {each.name: each.members for each in config.groups}
    for index, route in enumerate(config.routes):
        key = f"routes[{index}]"
        for name, value in route.when.items():
            try:
                tags.add(parse_condition(name, value).tag)
            except ConditionError as error:
                yield Fault(f"{key}.when.{name}", str(error), error.remedy)
        yield from _check_destinations(f"{key}.to", route.to, destinations)
        if SENDER in route.to and not any(peer.destination for peer in config.peers):
            cause = f"no [[peers]] entry has a destination that {SENDER} could mean"
            yield Fault(
                f"{key}.to[{route.to.index(SENDER)}]", cause, "add destination to entries of [[peers]]"
            )
        yield from _check_hours(key, route.hours, route.time_zone)
        yield from _check_common_time(key, route, config)
        if route.hold and not route.to:
            cause = "there is nothing to hold: it names no destination"
            yield Fault(f"{key}.hold", cause, "name destinations in `to`, or remove it")
        yield from _check_completion(key, route)
        reached = {*route.to, *(member for name in route.to for member in members.get(name, ()))}
        yield from _check_commitment(key, route, reached, committing)
        if route.name and route.name in names:
            cause = f'"{route.name}" is the name of routes[{names[route.name]}] too'
            yield Fault(f"{key}.name", cause, "give each route its own name")
        names.setdefault(route.name, index)
        if last_reached is not None and not route.default:
            cause = f"no instance reaches it: routes[{last_reached}] takes every instance and stops"
            yield Fault(key, cause, "put it before that route, or remove it")
        if route.stop and not route.when and not route.default and last_reached is None:
            last_reached = index
    if len(tags) > MAX_ATTRIBUTES:
        cause = f"their conditions read {len(tags)} different attributes"
        yield Fault("routes", cause, f"write conditions on {MAX_ATTRIBUTES} at most")


def _check_completion(key: str, route: Route) -> Iterator[Fault]:
    if route.on != "instance" and not route.to:
        yield Fault(f"{key}.on", "nothing waits: it names no destination", "name destinations in `to`")
    if route.stable_seconds and route.on == "instance":
        cause = "the route does not wait for a series or study"
        yield Fault(f"{key}.stable_seconds", cause, 'set on = "study" or "series", or remove it')


def _check_commitment(key: str, route: Route, reached: Set[str], committing: Set[str]) -> Iterator[Fault]:
    kind, _, awaited = route.committed.partition(":")
    if awaited and awaited not in reached:
        cause = f'the route does not send to "{awaited}"'
        remedy = f"name a destination or group of {key}.to, or a member of such a group"
        yield Fault(f"{key}.committed", cause, remedy)
    elif kind == "committed" and awaited not in committing:
        cause = f'"{awaited}" is not asked to commit'
        remedy = "set commitment = true in its [[destinations]]; of a group, in those of all members"
        yield Fault(f"{key}.committed", cause, remedy)


def _check_hours(key: str, hours: str, time_zone: str) -> Iterator[Fault]:
    """Yield the faults of `hours` and `time_zone` of a section."""
    if time_zone:
        try:
            load_zone(time_zone)
        except ValueError as error:
            remedy = "write a name such as Europe/Vienna; the names are those of the package tzdata"
            yield Fault(f"{key}.time_zone", str(error), remedy)
            return
    if hours:
        try:
            parse_hours(hours, time_zone)
        except ValueError as error:
            remedy = 'write windows such as "22:00-06:00" or "mon-fri 22:00-06:00, sat-sun 00:00-24:00"'
            yield Fault(f"{key}.hours", str(error), remedy)


def check_destination_hours(key: str, destination: Destination) -> Iterator[Fault]:
    """Yield the faults of the hours of a destination, and of its bandwidth by hours."""
    faults = list(_check_hours(key, destination.hours, destination.time_zone))
    yield from faults
    if destination.hours and not faults:
        hours = parse_hours(destination.hours, destination.time_zone)
        yield from _check_closure(f"{key}.hours", hours, destination)
    for number, each in enumerate(destination.bandwidth_by_hours if not faults else ()):
        yield from _check_hours(f"{key}.bandwidth_by_hours[{number}]", each.hours, destination.time_zone)


def _check_closure(key: str, hours: Hours, destination: Destination) -> Iterator[Fault]:
    """Yield a fault if deliveries may reach the age at which they are given up before their hours begin."""
    closed_hours = find_longest_closure_ms(hours, unix_ms()) / 3_600_000
    if closed_hours >= destination.give_up_hours:
        cause = (
            f'leave out {closed_hours:g} hours at a time, and "{destination.name}" gives deliveries up after '
            f"{destination.give_up_hours:g}"
        )
        yield Fault(key, cause, "make give_up_hours of the destination longer")


def _check_common_time(key: str, route: Route, config: Config) -> Iterator[Fault]:
    """Yield a fault for hours of a route in which a destination is never sent to."""
    names = set(route.to)
    names |= {name for group in config.groups if group.name in names for name in group.members}
    if SENDER in names:
        names |= {peer.destination for peer in config.peers}
    for destination in config.destinations:
        if not route.hours or destination.name not in names:
            continue
        try:
            own = parse_hours(route.hours, route.time_zone)
            theirs = parse_hours(destination.hours or _ALWAYS, destination.time_zone)
        except ValueError:
            continue  # a fault of its own
        yield from _check_closure(f"{key}.hours", own, destination)
        if not have_common_time(own, theirs, unix_ms()):
            cause = f'"{destination.name}" is never sent to in these hours: its own are {destination.hours}'
            yield Fault(f"{key}.hours", cause, "give both a common time")


def _check_destinations(key: str, to: tuple[str, ...], known: Set[str]) -> Iterator[Fault]:
    for name, count in Counter(to).items():
        if name not in known and name != SENDER:
            all_known = ", ".join(sorted(known))
            remedy = f"write one of {all_known}" if known else "add a [[destinations]] of that name"
            yield Fault(f"{key}[{to.index(name)}]", f'there is no destination or group "{name}"', remedy)
        elif count > 1:
            yield Fault(key, f'names "{name}" {count} times', "name it once")
