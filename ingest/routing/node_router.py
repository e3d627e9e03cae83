"""The router of a node. An instance is not sent back to the peer that sent it, unless a route allows that."""

from collections.abc import Callable, Collection
from typing import Final

import structlog

from ingest.config.model import Config, Destination
from ingest.dicom.admission import find_destination
from ingest.dicom.file_header import InstanceHeader
from ingest.network.resolver import RESOLVER
from ingest.routing.origin import is_certified_as, is_sent_from, is_title_of
from ingest.routing.router import Router, RoutingDecision

RESOLVE_SECONDS: Final = 1.0
"""Deadline for the addresses of a host. Without an answer the instance is sent."""

EXCLUSION_REMARK: Final = "not sent back to"

log = structlog.get_logger()


class NodeRouter(Router):
    """A router that also compares the destinations of an instance with its sender.

    The addresses of a host are resolved only if the calling AE title is that of the destination.
    """

    def __init__(
        self,
        config: Config,
        resolve: Callable[[Destination], Collection[str]] | None = None,
        *,
        logs: bool = False,
    ) -> None:
        """Read routes and destinations.

        Args:
            config: Configuration with the routes.
            resolve: Returns the addresses of a destination, instead of the resolver of this process.
            logs: Whether to log each pair of sender and excluded destination, once.

        Raises:
            ConditionError: A condition is not valid.
        """
        super().__init__(config.routes)
        self._destinations = {destination.name: destination for destination in config.destinations}
        self._members = {group.name: group.members for group in config.groups}
        self._own_titles = {config.node.ae_title, *config.receive.other_ae_titles}
        self._peers = config.peers
        self._ignores_case = config.receive.ignore_ae_title_case
        self._resolve = resolve or _resolve_host
        self._logged: set[tuple[str, str]] | None = set() if logs else None

    def route_instance(self, instance: InstanceHeader) -> RoutingDecision:
        """Decide the destinations of an instance. Waits for a name server at most `RESOLVE_SECONDS`."""
        decision = super().route_instance(instance)
        origins = [
            name
            for name in decision.destinations
            if name not in decision.return_allowed and self._is_origin(name, instance)
        ]
        for name in origins:
            self._log_exclusion(instance, name)
        return decision.exclude(origins, f"{EXCLUSION_REMARK} {', '.join(origins)}") if origins else decision

    def _find_sender(self, instance: InstanceHeader) -> str:
        return find_destination(instance.calling_ae, self._peers, ignore_case=self._ignores_case)

    def _is_origin(self, name: str, instance: InstanceHeader) -> bool:
        """Return whether this destination sent the instance; of a group, whether a member did.

        A group wants each instance at one of its members, and that member has it.
        """
        if name in self._members:
            return any(self._is_origin(member, instance) for member in self._members[name])
        destination = self._destinations.get(name)
        if destination is None:
            return False
        own_titles = {*self._own_titles, destination.calling_ae_title}
        if not is_title_of(instance.calling_ae, destination.ae_title, own_titles):
            return False
        return is_certified_as(instance.certificate, destination.host) or is_sent_from(
            instance.source, self._resolve(destination)
        )

    def _log_exclusion(self, instance: InstanceHeader, name: str) -> None:
        if self._logged is not None and (instance.calling_ae, name) not in self._logged:
            self._logged.add((instance.calling_ae, name))
            remedy = "return = true in the route sends it; see docs/explanation/loops.md"
            log.info("not_sent_back", destination=name, calling_ae=instance.calling_ae, remedy=remedy)


def _resolve_host(destination: Destination) -> list[str]:
    try:
        found = RESOLVER.resolve(destination.host, destination.port, RESOLVE_SECONDS)
    except OSError:
        return []
    return [str(address[0]) for *_, address in found]
