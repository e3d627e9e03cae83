"""Storage commitment: judge the instances of waiting requests from the rows of the ledger.

`judge_reference` decides from values only. An instance that is still on its way is waited for, and not
reported as missing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog

from ingest.config.model import Config
from ingest.dicom.commitment import FailureReason, SOPReference
from ingest.ledger import SCHEMA_VERSION, DeliveryState, InstanceState, Ledger
from ingest.ledger.commitments import COMMITTED, Commitment, CommitmentState, Evidence

REQUESTS_AT_ONCE: Final = 16
PAUSE_MIN_MS: Final = 1_000
PAUSE_MAX_MS: Final = 60_000
"""Bounds of the pause between two judgements of a request."""

KEEP_MS: Final = 30 * 24 * 3_600_000
"""How long requests that have ended can be listed."""

CLEAN_UP_MS: Final = 3_600_000

_REMOVED: Final = frozenset({InstanceState.REMOVING.value, InstanceState.REMOVED.value})
_KEPT: Final = frozenset({InstanceState.STORED.value, InstanceState.VARIANT.value})
_LOST: Final = frozenset({DeliveryState.DEAD.value, DeliveryState.DROPPED.value})

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class CommitmentPolicy:
    """The meaning of "committed".

    Attributes:
        means: `committed` of each route that says more than "stored", by the name of the route.
        wait_ms: How long an instance that is not in the ledger is waited for.
        give_up_ms: How long deliveries are waited for. Then a report is tried as long.
        groups: Names of the groups of each destination that is a member of any.
    """

    means: Mapping[str, str]
    wait_ms: int
    give_up_ms: int
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def from_config(cls, config: Config) -> "CommitmentPolicy":
        """Read `[commitment]` and the routes."""
        return cls(
            {
                route.name or f"routes[{number}]": route.committed
                for number, route in enumerate(config.routes)
                if route.committed != "stored"
            },
            round(config.commitment.wait_seconds * 1000),
            round(config.commitment.give_up_hours * 3_600_000),
            {each.name: config.list_groups_of(each.name) for each in config.destinations},
        )


def judge_reference(
    reference: SOPReference, evidence: Sequence[Evidence], policy: CommitmentPolicy, age_ms: int
) -> int | None:
    """Decide whether a referenced instance is committed (PS3.4 J.3.2.1.2).

    Args:
        reference: What the requestor names.
        evidence: What the ledger has under that SOP Instance UID.
        policy: What "committed" means.
        age_ms: Time since the request.

    Returns:
        `COMMITTED`, a Failure Reason, or None to wait.
    """
    kept = [found for found in evidence if found.state in _KEPT]
    # An object in quarantine is not the one that is kept, and the requestor may mean it.
    is_doubtful = any(found.is_set_aside for found in evidence)
    if not kept and not is_doubtful and any(_is_kept_elsewhere(one, reference, policy) for one in evidence):
        return COMMITTED
    if not kept or is_doubtful:
        if age_ms < policy.wait_ms:
            return None
        is_quarantined = any(found.state == InstanceState.QUARANTINED.value for found in evidence)
        return FailureReason.PROCESSING_FAILURE if is_quarantined else FailureReason.NO_SUCH_INSTANCE
    matching = [found for found in kept if found.sop_class_uid == reference.sop_class_uid]
    if not matching:
        return FailureReason.CLASS_INSTANCE_CONFLICT
    return _combine([_judge_object(found, policy, age_ms) for found in matching])


def _is_kept_elsewhere(found: Evidence, reference: SOPReference, policy: CommitmentPolicy) -> bool:
    """Return whether retention removed an object that other nodes hold, as each of its routes demands."""
    routes = _list_routes(found)
    return (
        found.state in _REMOVED
        and found.sop_class_uid == reference.sop_class_uid
        and all(name in policy.means for name in routes)
        and bool(found.deliveries)
        and _judge_object(found, policy, 0) == COMMITTED
    )


def _list_routes(found: Evidence) -> list[str]:
    return found.routed.partition(";")[0].split(", ")


def _judge_object(found: Evidence, policy: CommitmentPolicy, age_ms: int) -> int | None:
    routes = _list_routes(found)
    meanings = {policy.means[name] for name in routes if name in policy.means}
    states: list[str | None] = []
    relayed: set[str] = set()
    for meaning in meanings:
        kind, _, name = meaning.partition(":")
        states += [_find_state(found, policy, name)] if name else list(found.deliveries.values())
        relayed |= {name} if kind == "committed" else set()
    if any(state in _LOST for state in states):
        return FailureReason.PROCESSING_FAILURE
    if all(state == DeliveryState.DELIVERED.value for state in states) and relayed <= found.committed:
        return COMMITTED
    return FailureReason.PROCESSING_FAILURE if age_ms >= policy.give_up_ms else None


def _find_state(found: Evidence, policy: CommitmentPolicy, name: str) -> str | None:
    """Return the state of the delivery to a destination, a group or a member; None without a delivery.

    What another member of a group has is lost for this one.
    """
    state = found.deliveries.get(name) or found.members.get(name)
    ends = {found.deliveries.get(group) for group in policy.groups.get(name, ())}
    is_elsewhere = state is None and DeliveryState.DELIVERED.value in ends
    return DeliveryState.DROPPED.value if is_elsewhere else state


def _combine(results: Sequence[int | None]) -> int | None:
    """Several objects of one UID are committed if all are; a failure counts before a wait."""
    failures = [result for result in results if result]
    if failures:
        return failures[0]
    return None if None in results else COMMITTED


class CommitmentJudge:
    """The task of the monitor: judges requests whose time has come."""

    def __init__(self, config: Config, ledger: Ledger) -> None:
        self._policy = CommitmentPolicy.from_config(config)
        self._destinations = {destination.name for destination in config.destinations}
        self._ledger = ledger
        self._clean_up_at = 0
        self._is_migrated = False

    def run(self) -> None:
        """Judge due requests, and remove requests that ended long ago.

        Raises:
            LedgerError: The ledger is away.
        """
        if not self._is_migrated:
            # At the first start another process may still create the tables.
            if self._ledger.read_schema_version() != SCHEMA_VERSION:
                return
            self._is_migrated = True
        now = self._ledger.unix_ms()
        for request in self._ledger.commitments.find_judgeable(now, REQUESTS_AT_ONCE):
            self._judge_request(request, now)
        if now >= self._clean_up_at:
            self._ledger.commitments.remove_ended(now - KEEP_MS)
            self._ledger.commitment_requests.remove_ended(now - KEEP_MS)
            self._clean_up_at = now + CLEAN_UP_MS

    def _judge_request(self, request: Commitment, now: int) -> None:
        age_ms = now - request.requested_at
        found = self._ledger.commitments.read_evidence(request.id)
        judged = {at: judge_reference(ref, known, self._policy, age_ms) for at, ref, known in found}
        outcomes = {at: int(result) for at, result in judged.items() if result is not None}
        state, next_at = CommitmentState.DUE, now
        if len(outcomes) < len(found):
            state = CommitmentState.WAITING
            next_at = now + min(max(age_ms // 8, PAUSE_MIN_MS), PAUSE_MAX_MS)
        elif request.destination not in self._destinations:
            state = CommitmentState.FAILED
            log.warning(
                "commitment_unreportable",
                calling_ae=request.calling_ae,
                transaction=request.transaction_uid,
                remedy="name a destination in its [[peers]] entry",
            )
        self._ledger.commitments.record_judgement(request.id, outcomes, state, next_at, now)
