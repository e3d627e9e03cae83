"""Groups of destinations: the members to wake."""

from collections.abc import Collection, Mapping

from ingest.ledger import Circuit, CircuitState
from ingest.ledger.group_choice import GroupPolicy, GroupTerms


def find_next_members(
    terms: GroupTerms, circuits: Mapping[str, Circuit], closed: Collection[str]
) -> list[str]:
    """Return the members that a new delivery of a group may go to.

    With fail-over only the first one gets new studies. The others may still have studies in progress, for
    which they are woken more seldom.
    """
    # INVARIANT 10: decisions are pure
    if terms.name in circuits and circuits[terms.name].is_paused:
        return []
    available = [
        name
        for name in terms.members
        if name not in closed
        and (
            name not in circuits
            or (circuits[name].state is CircuitState.CLOSED and not circuits[name].is_paused)
        )
    ]
    return available[:1] if terms.policy is GroupPolicy.FAIL_OVER else available
