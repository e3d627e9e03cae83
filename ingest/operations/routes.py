"""Explain which routes match files. Nothing is stored or sent."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ingest.config.model import Config, Group
from ingest.dicom.file_header import InstanceHeader, read_instance_header
from ingest.dicom.part10 import is_part10
from ingest.dicom.priority import MEDIUM, decide_priority
from ingest.dicom.transcoding import name_syntax
from ingest.errors import PeerError, RewriteError
from ingest.ledger.group_choice import make_group_terms, order_members
from ingest.outgoing.coercion import Coercion, ShownChange
from ingest.outgoing.plan import OutgoingPlan, StoredDataSet
from ingest.outgoing.plans import build_plans
from ingest.routing.node_router import NodeRouter
from ingest.routing.router import Router, RoutingDecision


@dataclass(frozen=True, slots=True)
class DestinationChanges:
    """What changes in a data set on its way to a destination; an error if it cannot be changed."""

    destination: str
    changes: tuple[ShownChange, ...] = ()
    error: str = ""

    def to_json(self) -> dict[str, object]:
        """Return the changes for JSON."""
        changes = [
            {"attribute": change.attribute, "before": change.before, "after": change.after}
            for change in self.changes
        ]
        return {"destination": self.destination, "changes": changes, "error": self.error}


@dataclass(frozen=True, slots=True)
class OfferedSyntaxes:
    """Keywords of the transfer syntaxes that a destination is offered for a file, the best first."""

    destination: str
    transfer_syntaxes: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Return the offer for JSON."""
        return {"destination": self.destination, "transfer_syntaxes": list(self.transfer_syntaxes)}


@dataclass(frozen=True, slots=True)
class ExplainedGroup:
    """A group that an instance goes to.

    Attributes:
        members: Its members. With fail-over, and with sticky by study, the first one that is available gets
            the study.
    """

    group: str
    policy: str
    members: tuple[str, ...]

    @property
    def text(self) -> str:
        """How the group chooses, for people."""
        names = ", ".join(self.members)
        return {
            "fail-over": f"the first of {names} that is available",
            "round-robin": f"each study to one of {names}, in turn",
        }.get(self.policy, f"always the same of {names}, while it is available")

    def to_json(self) -> dict[str, object]:
        """Return the group for JSON."""
        return {"group": self.group, "policy": self.policy, "members": list(self.members)}


@dataclass(frozen=True, slots=True)
class RouteExplanation:
    """The routing of one file; None with an error if the file cannot be read.

    Attributes:
        changes: One for each of its destinations that changes it, and for such members of its groups.
        offers: One for each of its destinations that may get it in another transfer syntax.
        groups: The groups among its destinations.
    """

    path: Path
    routing: RoutingDecision | None = None
    error: str = ""
    changes: tuple[DestinationChanges, ...] = ()
    offers: tuple[OfferedSyntaxes, ...] = ()
    groups: tuple[ExplainedGroup, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Return the explanation for JSON."""
        routing = self.routing
        if routing is None:
            return {"file": str(self.path), "error": self.error}
        return {
            "file": str(self.path),
            "destinations": list(routing.destinations),
            "routed": routing.routed,
            "kept_back": list(routing.exclusions),
            "changes": [each.to_json() for each in self.changes],
            "offers": [each.to_json() for each in self.offers],
            "groups": [each.to_json() for each in self.groups],
            "held_for": sorted(routing.held),
            "awaits": {
                name: routing.awaited[name] for name in routing.destinations if name in routing.awaited
            },
            "hours": dict(routing.hours),
            "priorities": {
                name: decide_priority(words, MEDIUM).word for name, words in routing.priorities.items()
            },
            "routes": [
                {
                    "route": result.route,
                    "took": result.is_match,
                    "conditions": [
                        {"key": condition.key, "values": list(values), "held": holds}
                        for condition, values, holds in result.conditions
                    ],
                }
                for result in routing.results
            ],
        }


def explain_routes(
    config: Config,
    paths: Sequence[Path],
    calling_ae: str | None = None,
    called_ae: str | None = None,
    source: str | None = None,
    *,
    is_whole: bool = True,
) -> list[RouteExplanation]:
    """Explain the routing of files, and of all Part 10 files in folders.

    Args:
        config: The configuration with the routes.
        paths: Files and folders.
        calling_ae: Calling AE title to assume; None takes that of the File Meta Information.
        called_ae: Called AE title to assume; None takes that of the File Meta Information.
        source: Address of the sender to assume; None takes that of the File Meta Information.
        is_whole: Whether the files are complete. Otherwise their first parts are explained.

    Raises:
        ConfigError: The map of a destination cannot be used.
    """
    router = NodeRouter(config)
    plans = build_plans(config)
    assumed = {
        "calling_ae": calling_ae,
        "called_ae": called_ae,
        "source": None if source is None else f"dicom://[{source}]:0",
    }
    changes = {name: value for name, value in assumed.items() if value is not None}
    groups = {group.name: group for group in config.groups}
    return [
        _explain_file(router, plans, groups, path, changes, is_whole=is_whole) for path in _find_files(paths)
    ]


def _find_files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(found for found in path.rglob("*") if is_part10(found))
        else:
            yield path


def _explain_file(
    router: Router,
    plans: Mapping[str, OutgoingPlan],
    groups: Mapping[str, Group],
    path: Path,
    changes: Mapping[str, Any],
    *,
    is_whole: bool,
) -> RouteExplanation:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        return RouteExplanation(path, error=f"cannot be opened: {error.strerror}")
    try:
        header = replace(read_instance_header(fd, os.fstat(fd).st_size, router.tags), **changes)
        decision = router.route_instance(header)
        named = [groups[name] for name in decision.destinations if name in groups]
        reached = dict.fromkeys(
            member
            for name in decision.destinations
            for member in (groups[name].members if name in groups else (name,))
        )
        planned = [(name, plans[name]) for name in reached if name in plans]
        shown = [_show_changes(name, plan, fd, header, is_whole=is_whole) for name, plan in planned]
    except PeerError as error:
        return RouteExplanation(path, error=str(error))
    except OSError as error:
        return RouteExplanation(path, error=f"cannot be read: {error.strerror}")
    finally:
        os.close(fd)
    offers = [
        OfferedSyntaxes(name, tuple(map(name_syntax, plan.list_offers(header.transfer_syntax_uid))))
        for name, plan in planned
        if plan.transcoding is not None
    ]
    changed = tuple(each for each in shown if each is not None)
    return RouteExplanation(
        path,
        decision,
        changes=changed,
        offers=tuple(offers),
        groups=tuple(_explain_group(group, header.study_uid) for group in named),
    )


def _explain_group(group: Group, study_uid: str) -> ExplainedGroup:
    # The ledger knows whose turn it is, and the patient of a study.
    is_known = group.policy == "fail-over" or (group.policy == "sticky" and group.sticky_by == "study")
    members = order_members(make_group_terms(group), study_uid, 0) if is_known else group.members
    return ExplainedGroup(group.name, group.policy, tuple(members))


def _show_changes(
    name: str, plan: OutgoingPlan, fd: int, header: InstanceHeader, *, is_whole: bool
) -> DestinationChanges | None:
    """Return the changes of attributes for a destination; None if it asks for none."""
    coercions = [each for each in plan.rewrites if isinstance(each, Coercion)]
    if not coercions:
        return None
    offset = header.data_set_offset
    stored = StoredDataSet(
        fd,
        offset,
        header.size - offset,
        header.sop_class_uid,
        header.sop_instance_uid,
        header.transfer_syntax_uid,
        0,
    )
    try:
        shown = coercions[0].show_changes(stored.as_outgoing(), is_whole=is_whole)
        return DestinationChanges(name, tuple(shown))
    except RewriteError as error:
        return DestinationChanges(name, error=str(error))
