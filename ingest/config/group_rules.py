"""Rules of `[[groups]]`."""

from collections import Counter
from collections.abc import Iterator, Set

from ingest.config.faults import Fault
from ingest.config.model import Config, Group


def check_groups(config: Config, destinations: Set[str]) -> Iterator[Fault]:
    """Yield every fault of the groups.

    Args:
        config: A configuration whose types are valid.
        destinations: The names that the file gives to destinations.
    """
    names = {group.name for group in config.groups}
    first: dict[str, int] = {}
    for index, group in enumerate(config.groups):
        key = f"groups[{index}]"
        if group.name in destinations:
            cause = f'"{group.name}" is the name of a destination too'
            yield Fault(f"{key}.name", cause, "give the group its own name; routes then name the group")
        if group.name in first:
            cause = f'"{group.name}" is the name of groups[{first[group.name]}] too'
            yield Fault(f"{key}.name", cause, "give each group its own name")
        first.setdefault(group.name, index)
        yield from _check_members(key, group, destinations, names)
        yield from _check_weights(key, group)
        if group.policy != "sticky" and group.sticky_by != "study":
            cause = f'has no effect with policy = "{group.policy}"'
            yield Fault(f"{key}.sticky_by", cause, 'remove it, or set policy = "sticky"')
        elif group.sticky_by == "patient" and config.ledger.index == "none":
            cause = 'is "patient", but with [ledger] index = "none" the ledger knows no patients'
            yield Fault(f"{key}.sticky_by", cause, 'set index = "identifiers", or sticky_by = "study"')


def _check_members(key: str, group: Group, destinations: Set[str], groups: Set[str]) -> Iterator[Fault]:
    if not group.members:
        yield Fault(f"{key}.members", "is empty", "name destinations")
    for name, count in Counter(group.members).items():
        here = f"{key}.members[{group.members.index(name)}]"
        if name in groups and name not in destinations:
            yield Fault(here, f'"{name}" is a group, and groups have no groups', "name its members instead")
        elif name not in destinations:
            all_known = ", ".join(sorted(destinations))
            remedy = f"write one of {all_known}" if all_known else "add a [[destinations]] of that name"
            yield Fault(here, f'there is no destination "{name}"', remedy)
        if count > 1:
            yield Fault(f"{key}.members", f'names "{name}" {count} times', "name it once")


def _check_weights(key: str, group: Group) -> Iterator[Fault]:
    for name in group.weights:
        if name not in group.members:
            yield Fault(f"{key}.weights.{name}", "is the weight of no member", f"name it in {key}.members")
    if group.weights and group.policy == "fail-over":
        cause = 'has no effect with policy = "fail-over", which takes the first member that is there'
        yield Fault(f"{key}.weights", cause, 'remove it, or set policy = "round-robin" or "sticky"')
