"""The choice of a group's member: a table, and properties of every choice."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.ledger import Circuit, CircuitState
from ingest.ledger.circuits import combine_circuits
from ingest.ledger.group_choice import (
    GroupPolicy,
    GroupTerms,
    StudyChoice,
    choose_member,
    needs_history,
    order_members,
    plan_turns,
)
from tests.support.properties import examples

FAIL_OVER, ROUND_ROBIN, STICKY = GroupPolicy
NAMES = ("a", "b", "c")


def terms(policy: GroupPolicy, *, moves: bool = False, weights: dict[str, int] | None = None) -> GroupTerms:
    return GroupTerms("group", NAMES, policy, weights or {}, moves_begun=moves)


@pytest.mark.parametrize(
    ("policy", "moves", "available", "before", "is_begun", "turn", "expected"),
    [
        # A new study goes to the first member that is available.
        (FAIL_OVER, False, "abc", "", False, 0, "a"),
        (FAIL_OVER, False, "bc", "", False, 0, "b"),
        (FAIL_OVER, False, "", "", False, 0, "a"),
        # Nothing of it was sent yet, so it follows the members that come and go.
        (FAIL_OVER, False, "bc", "a", False, 0, "b"),
        (FAIL_OVER, False, "abc", "b", False, 0, "a"),
        (FAIL_OVER, False, "", "b", False, 0, "b"),
        # A study in progress stays, waits or moves.
        (FAIL_OVER, False, "abc", "b", True, 0, "b"),
        (FAIL_OVER, True, "abc", "b", True, 0, "b"),
        (FAIL_OVER, False, "bc", "a", True, 0, "a"),
        (FAIL_OVER, True, "bc", "a", True, 0, "b"),
        (FAIL_OVER, True, "", "a", True, 0, "a"),
        # A member that left the group keeps nothing.
        (FAIL_OVER, False, "abc", "old", True, 0, "a"),
        (ROUND_ROBIN, False, "abc", "", False, 0, "a"),
        (ROUND_ROBIN, False, "abc", "", False, 4, "b"),
        (ROUND_ROBIN, False, "ac", "", False, 4, "c"),
        (ROUND_ROBIN, False, "abc", "c", False, 0, "c"),
        (ROUND_ROBIN, False, "ab", "c", False, 1, "b"),
        (ROUND_ROBIN, False, "ab", "c", True, 1, "c"),
        (ROUND_ROBIN, True, "ab", "c", True, 1, "b"),
    ],
)
def test_member_of_a_study(
    policy: GroupPolicy, moves: bool, available: str, before: str, is_begun: bool, turn: int, expected: str
) -> None:
    found = choose_member(
        terms(policy, moves=moves), frozenset(available), StudyChoice(before, is_begun), "1.2.3", turn
    )
    assert found == expected


def test_turns_follow_the_weights_and_are_spread() -> None:
    assert plan_turns(terms(ROUND_ROBIN)) == NAMES
    assert plan_turns(terms(ROUND_ROBIN, weights={"a": 3})) == ("a", "a", "b", "c", "a")


def test_sticky_choice_follows_the_weights_and_moves_only_what_a_lost_member_had() -> None:
    group = terms(STICKY, weights={"a": 2})
    keys = [f"1.2.{number}" for number in range(2000)]
    chosen = {key: choose_member(group, frozenset(NAMES), StudyChoice(), key, 0) for key in keys}
    counts = Counter(chosen.values())
    assert 900 < counts["a"] < 1100
    assert min(counts["b"], counts["c"]) > 400
    without_b = {key: choose_member(group, frozenset("ac"), StudyChoice(), key, 0) for key in keys}
    assert all(without_b[key] == member for key, member in chosen.items() if member != "b")


GROUPS = st.builds(
    lambda policy, moves, weights: terms(policy, moves=moves, weights=weights),
    st.sampled_from(GroupPolicy),
    st.booleans(),
    st.dictionaries(st.sampled_from(NAMES), st.integers(1, 9)),
)


@given(
    GROUPS,
    st.frozensets(st.sampled_from(NAMES)),
    st.sampled_from(["", *NAMES, "old"]),
    st.booleans(),
    st.text(),
    st.integers(0, 50),
)
@examples(500)
def test_every_choice_is_a_member_stays_where_a_study_began_and_is_stable(
    group: GroupTerms, available: frozenset[str], before: str, is_begun: bool, key: str, turn: int
) -> None:
    history = StudyChoice(before, is_begun)
    chosen = choose_member(group, available, history, key, turn)
    assert chosen in NAMES
    if before in NAMES and is_begun and (before in available or not group.moves_begun):
        assert chosen == before
    elif available:
        assert chosen in available
    # The same question has the same answer, and an answer that is kept is the next answer too.
    assert chosen == choose_member(group, available, history, key, turn)
    assert chosen == choose_member(
        group, available, StudyChoice(chosen, chosen == before and is_begun), key, turn
    )
    assert set(order_members(group, key, turn)) == set(NAMES)
    # What a member has of a study is looked up only where it matters.
    if not needs_history(group, available, before):
        assert chosen == choose_member(group, available, StudyChoice(before, not is_begun), key, turn)


def test_circuit_of_a_group_is_open_while_no_member_can_be_sent_to() -> None:
    closed = Circuit(destination="a")
    opened = Circuit(
        destination="b",
        state=CircuitState.OPEN,
        opened_at=50,
        probe_at=90,
        last_error="away",
        last_error_at=60,
    )
    paused = Circuit(destination="c", paused_at=70, paused_by="jane")
    assert combine_circuits("g", NAMES, {"b": opened, "c": paused}) is None
    assert combine_circuits("g", NAMES, {"a": closed, "b": opened, "c": paused}) is None
    both = combine_circuits("g", ("b", "c"), {"b": opened, "c": paused})
    assert both is not None
    assert (both.state, both.opened_at, both.probe_at, both.last_error) == (CircuitState.OPEN, 70, 90, "away")
    assert not both.is_paused
    own = Circuit(destination="g", paused_at=1, paused_by="joe")
    assert combine_circuits("g", NAMES, {"g": own}) == own
