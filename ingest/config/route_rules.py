"""What is wrong with `[[routes]]`."""

from collections import Counter
from collections.abc import Iterator, Set
from typing import Final

from ingest.config.faults import Fault
from ingest.config.model import Config
from ingest.config.route_conditions import parse_condition
from ingest.errors import ConditionError

ATTRIBUTES_MAX: Final = 56
"""The header scanner takes 64 tags at a time, with the UIDs that are always asked for."""


def faults(config: Config, destinations: Set[str]) -> Iterator[Fault]:
    """Every fault of the routes.

    Args:
        config: Whose types are sound.
        destinations: The names that the file gives to destinations.
    """
    names: dict[str, int] = {}
    tags: set[int | None] = set()
    ended: int | None = None
    for index, route in enumerate(config.routes):
        key = f"routes[{index}]"
        for name, value in route.when.items():
            try:
                tags.add(parse_condition(name, value).tag)
            except ConditionError as error:
                yield Fault(f"{key}.when.{name}", str(error), error.remedy)
        yield from _destinations(f"{key}.to", route.to, destinations)
        if route.name and route.name in names:
            cause = f'"{route.name}" is the name of routes[{names[route.name]}] too'
            yield Fault(f"{key}.name", cause, "give each route its own name")
        names.setdefault(route.name, index)
        if ended is not None and not route.default:
            cause = f"nothing comes so far: routes[{ended}] takes everything and stops"
            yield Fault(key, cause, "put it before that route, or remove it")
        if route.stop and not route.when and not route.default and ended is None:
            ended = index
    if len(tags) > ATTRIBUTES_MAX:
        cause = f"they look at {len(tags)} different attributes"
        yield Fault("routes", cause, f"write conditions on {ATTRIBUTES_MAX} at most")


def _destinations(key: str, to: tuple[str, ...], known: Set[str]) -> Iterator[Fault]:
    for name, count in Counter(to).items():
        if name not in known:
            all_known = ", ".join(sorted(known))
            remedy = f"write one of {all_known}" if known else "add a [[destinations]] of that name"
            yield Fault(f"{key}[{to.index(name)}]", f'there is no destination "{name}"', remedy)
        elif count > 1:
            yield Fault(key, f'names "{name}" {count} times', "name it once")
