"""Turn a routing decision into the terms of new deliveries."""

from collections.abc import Mapping

from ingest.ledger import DeliveryState, DeliveryTerms
from ingest.routing.router import RoutingDecision


def make_terms(routing: RoutingDecision) -> Mapping[str, DeliveryTerms]:
    """Return the terms of the deliveries that do not begin as plain ones, by destination."""
    return {
        name: DeliveryTerms(state=DeliveryState.HELD) for name in routing.destinations if name in routing.held
    }
