"""The choice of a group's member for a study. Without I/O.

A group takes each study to one of its members. Its policy orders the members for a study, and the first one
that is available gets it. A member is available unless its circuit is open, a person has paused it, or its
hours are over.

A choice holds until it has to change. Once a member has something of a study, the rest follows there. If that
member is not available, `study_in_progress` decides: the rest waits for it, or moves to another member.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import StrEnum

from ingest.config.model import Group


class GroupPolicy(StrEnum):
    """How a group orders its members for a study."""

    FAIL_OVER = "fail-over"
    """As the configuration names them."""
    ROUND_ROBIN = "round-robin"
    """In turn, each as often as its weight says."""
    STICKY = "sticky"
    """By a digest of study or patient, so that the same one comes to the same member again."""


@dataclass(frozen=True, slots=True)
class GroupTerms:
    """A group.

    Attributes:
        members: Names of its destinations, in the order of the configuration.
        weights: By member; 1 for a member that is missing.
        is_by_patient: Whether STICKY takes the patient of a study, if the ledger knows it.
        moves_begun: Whether the rest of a study moves when its member is not available any more.
        closed: Members whose hours are over.
    """

    name: str
    members: tuple[str, ...]
    policy: GroupPolicy = GroupPolicy.FAIL_OVER
    weights: Mapping[str, int] = field(default_factory=dict)
    is_by_patient: bool = False
    moves_begun: bool = False
    closed: Set[str] = frozenset()


@dataclass(frozen=True, slots=True)
class StudyChoice:
    """What was chosen for a study.

    Attributes:
        member: The member; empty if none was chosen yet.
        is_begun: Whether that member has something of the study, or is being sent it.
    """

    member: str = ""
    is_begun: bool = False


def make_group_terms(group: Group) -> GroupTerms:
    """Read the terms of a group from its configuration."""
    return GroupTerms(
        group.name,
        group.members,
        GroupPolicy(group.policy),
        dict(group.weights),
        is_by_patient=group.sticky_by == "patient",
        moves_begun=group.study_in_progress == "move",
    )


def choose_member(terms: GroupTerms, available: Set[str], before: StudyChoice, key: str, turn: int) -> str:
    """Return the member that gets a study, or the rest of it.

    Args:
        terms: The group.
        available: Members that can be sent to.
        before: What was chosen before.
        key: Study or patient, for STICKY.
        turn: Number of studies that the group has chosen a member for, for ROUND_ROBIN.
    """
    # INVARIANT 10: decisions are pure
    is_member = before.member in terms.members
    if is_member and before.is_begun and (before.member in available or not terms.moves_begun):
        return before.member
    # A turn is taken once. Where nobody is available, a change would be of no use.
    keeps = before.member in available if terms.policy is GroupPolicy.ROUND_ROBIN else False
    if is_member and (keeps or not available):
        return before.member
    ordered = order_members(terms, key, turn)
    return next((member for member in ordered if member in available), ordered[0])


def needs_history(terms: GroupTerms, available: Set[str], member: str) -> bool:
    """Return whether the choice depends on what a member that was chosen before has of the study.

    Most choices do not, and what a member has costs a query.
    """
    if member not in terms.members or not available:
        return False
    if member not in available:
        return True
    first = next((each for each in terms.members if each in available), "")
    return {
        GroupPolicy.FAIL_OVER: member != first,
        GroupPolicy.ROUND_ROBIN: False,
        GroupPolicy.STICKY: True,
    }[terms.policy]


def order_members(terms: GroupTerms, key: str, turn: int) -> Sequence[str]:
    """Return all members of a group, the first choice first."""
    if terms.policy is GroupPolicy.ROUND_ROBIN:
        schedule = plan_turns(terms)
        at = turn % len(schedule)
        return tuple(dict.fromkeys(schedule[at:] + schedule[:at]))
    if terms.policy is GroupPolicy.STICKY:
        return sorted(terms.members, key=lambda member: (-_score(terms, member, key), member))
    return terms.members


def plan_turns(terms: GroupTerms) -> tuple[str, ...]:
    """Return the members in turn, each as often as its weight says, and as far apart as possible."""
    places = [
        ((number + 0.5) / weight, order, member)
        for order, member in enumerate(terms.members)
        for weight in (terms.weights.get(member, 1),)
        for number in range(weight)
    ]
    return tuple(member for _, _, member in sorted(places))


def _score(terms: GroupTerms, member: str, key: str) -> float:
    """Return the score of a member for a key, by weighted rendezvous hashing.

    If a member comes or goes, only the keys that it has or gets change their member.
    """
    digest = hashlib.sha256(f"{member}\0{key}".encode("utf-8", "surrogatepass")).digest()
    uniform = (int.from_bytes(digest[:7], "big") + 0.5) / 2**56
    return -terms.weights.get(member, 1) / math.log(uniform)
