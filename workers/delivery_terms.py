"""Turn a routing decision into the terms of new deliveries, and of the completion of their study."""

from collections.abc import Mapping
from dataclasses import dataclass

from ingest.config.model import Config
from ingest.dicom.file_header import InstanceHeader
from ingest.dicom.priority import MEDIUM, decide_priority
from ingest.ledger import PLAIN_TERMS, CompletionTerms, DeliveryState, DeliveryTerms
from ingest.routing.router import RoutingDecision


@dataclass(frozen=True, slots=True)
class CompletionPolicy:
    """What of the configuration decides when studies and series are complete.

    Attributes:
        default_ms: `[node] stable_seconds`, in milliseconds.
        judges_series: Whether a route waits for series.
    """

    default_ms: int
    judges_series: bool

    @classmethod
    def from_config(cls, config: Config) -> "CompletionPolicy | None":
        """Return the policy of a configuration; None if completion is not judged."""
        if not config.judges_completion:
            return None
        return cls(config.node.stable_seconds * 1000, config.judges_series)


def make_terms(routing: RoutingDecision, header: InstanceHeader) -> Mapping[str, DeliveryTerms]:
    """Return the terms of the deliveries that do not begin as plain ones, by destination."""
    is_plain = not (routing.held or routing.priorities or routing.awaited or routing.hours)
    if is_plain and header.priority == MEDIUM:
        return {}
    terms = {name: _make_delivery_terms(name, routing, header) for name in routing.destinations}
    return {name: each for name, each in terms.items() if each != PLAIN_TERMS}


def _make_delivery_terms(name: str, routing: RoutingDecision, header: InstanceHeader) -> DeliveryTerms:
    awaits = routing.awaited.get(name, "")
    # An instance without the UID belongs to nothing that could be complete. It goes at once.
    if not header.study_uid or (awaits == "series" and not header.series_uid):
        awaits = ""
    state = DeliveryState.AWAITING if awaits else DeliveryState.WAITING
    if name in routing.held:
        # A person decides. The release does not wait for anything else.
        state, awaits = DeliveryState.HELD, ""
    priority = decide_priority(routing.priorities.get(name, ()), header.priority)
    hours = routing.hours.get(name, "")
    return DeliveryTerms(state=state, priority=priority, awaits=awaits, hours=hours)


def make_completion_terms(
    policy: CompletionPolicy | None, routing: RoutingDecision, header: InstanceHeader
) -> CompletionTerms | None:
    """Return when the study of an instance is complete; None if that is not judged."""
    if policy is None:
        return None
    return CompletionTerms(
        association=header.association,
        default_ms=policy.default_ms,
        study_ms=routing.stable_seconds.get("study", 0) * 1000,
        series_ms=routing.stable_seconds.get("series", 0) * 1000 if policy.judges_series else None,
    )
