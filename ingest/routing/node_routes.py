"""The routes of a node, which send nothing back to the peer that it came from unless a route says so."""

from collections.abc import Callable, Collection
from typing import Final

import structlog

from ingest.config.model import Config, Destination
from ingest.network.resolver import RESOLVER
from ingest.routing.origin import is_certified_as, is_sent_from, is_title_of
from ingest.routing.router import Router, Routing, Subject

RESOLVE_SECONDS: Final = 1.0
"""How long the addresses of a host are waited for; without them an instance is sent."""

REMARK: Final = "not sent back to"

log = structlog.get_logger()


class NodeRouter(Router):
    """`Router` with a look at where an instance came from.

    A host's addresses are only asked for where the calling AE title is that of the destination.
    """

    def __init__(
        self,
        config: Config,
        addresses: Callable[[Destination], Collection[str]] | None = None,
        *,
        logs: bool = False,
    ) -> None:
        """Read routes and destinations.

        Args:
            config: Whose routes.
            addresses: Used instead of the resolver.
            logs: Whether to log once for each peer that something is not sent back there.

        Raises:
            ConditionError: As `Router`.
        """
        super().__init__(config.routes)
        self._destinations = {destination.name: destination for destination in config.destinations}
        self._own_title = config.node.ae_title
        self._addresses = addresses or _addresses
        self._told: set[tuple[str, str]] | None = set() if logs else None

    def decide(self, subject: Subject) -> Routing:
        """See `Router.decide`; waits for a name server for a second at most."""
        routing = super().decide(subject)
        back = [
            name
            for name in routing.destinations
            if name not in routing.returning and self._came_from(subject, self._destinations.get(name))
        ]
        for name in back:
            self._tell(subject, name)
        return routing.without(back, f"{REMARK} {', '.join(back)}") if back else routing

    def _came_from(self, subject: Subject, destination: Destination | None) -> bool:
        if destination is None:
            return False
        own = {self._own_title, destination.calling_ae_title}
        if not is_title_of(subject.calling_ae, destination.ae_title, own):
            return False
        return is_certified_as(subject.certificate, destination.host) or is_sent_from(
            subject.source, self._addresses(destination)
        )

    def _tell(self, subject: Subject, name: str) -> None:
        if self._told is not None and (subject.calling_ae, name) not in self._told:
            self._told.add((subject.calling_ae, name))
            remedy = "return = true in the route sends it; see docs/explanation/loops.md"
            log.info("not_sent_back", destination=name, calling_ae=subject.calling_ae, remedy=remedy)


def _addresses(destination: Destination) -> list[str]:
    try:
        found = RESOLVER.resolve(destination.host, destination.port, RESOLVE_SECONDS)
    except OSError:
        return []
    return [str(address[0]) for *_, address in found]
