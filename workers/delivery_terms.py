"""Turn a routing decision into the terms of new deliveries."""

from collections.abc import Mapping

from ingest.dicom.priority import MEDIUM, decide_priority
from ingest.ledger import PLAIN_TERMS, DeliveryState, DeliveryTerms
from ingest.routing.router import RoutingDecision


def make_terms(routing: RoutingDecision, requested: int) -> Mapping[str, DeliveryTerms]:
    """Return the terms of the deliveries that do not begin as plain ones, by destination.

    Args:
        routing: The decision.
        requested: Priority of the C-STORE request.
    """
    if not routing.held and not routing.priorities and requested == MEDIUM:
        return {}
    terms = {
        name: DeliveryTerms(
            state=DeliveryState.HELD if name in routing.held else DeliveryState.WAITING,
            priority=decide_priority(routing.priorities.get(name, ()), requested),
        )
        for name in routing.destinations
    }
    return {name: each for name, each in terms.items() if each != PLAIN_TERMS}
