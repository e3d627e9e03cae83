"""The acceptor's table against pynetdicom's, which other people wrote from the same PS3.8 Table 9-10."""

import pytest
from pynetdicom.fsm import ACTIONS, TRANSITION_TABLE

from ingest.dicom import acceptor
from ingest.dicom.states import Action, Event, State, table

# What a row of the standard leaves open, and which of the two an acceptor takes.
NEXT_OF = {name: following for name, (_, _, following) in ACTIONS.items()} | {"AE-6": "Sta3", "AR-8": "Sta10"}


def reachable(first_event: str, next_of: dict[str, str]) -> dict[tuple[str, str], tuple[str, str]]:
    """The cells of pynetdicom's table that can be reached when Sta1 is left by `first_event` alone."""
    cells: dict[tuple[str, str], tuple[str, str]] = {}
    seen, todo = {"Sta1"}, ["Sta1"]
    while todo:
        here = todo.pop()
        for (event, state), action in TRANSITION_TABLE.items():
            if state == here and (state != "Sta1" or event == first_event):
                cells[state, event] = action, next_of[action]
                if next_of[action] not in seen:
                    seen.add(next_of[action])
                    todo.append(next_of[action])
    return cells


def plain(cells: dict[tuple[State, Event], tuple[Action, State]]) -> dict[tuple[str, str], tuple[str, str]]:
    return {(s.value, e.value): (a.value, following.value) for (s, e), (a, following) in cells.items()}


def test_acceptor_has_every_row_that_it_can_reach_and_no_other() -> None:
    assert plain(acceptor.TABLE) == reachable("Evt5", NEXT_OF)
    assert len(acceptor.TABLE) == 88


def test_acceptor_never_is_in_a_requestors_state() -> None:
    states = {state.value for state, _ in acceptor.TABLE}
    assert states == {"Sta1", "Sta2", "Sta3", "Sta6", "Sta7", "Sta8", "Sta10", "Sta12", "Sta13"}


def test_choices_that_the_standard_leaves_are_among_those_that_it_gives() -> None:
    assert NEXT_OF["AE-6"] in ACTIONS["AE-6"][2]
    assert NEXT_OF["AR-8"] in ACTIONS["AR-8"][2]


def test_every_row_can_be_taken_as_a_step() -> None:
    for (state, event), cell in acceptor.TABLE.items():
        assert acceptor.next_step(state, event) == cell


def test_a_cell_that_the_standard_leaves_empty_is_a_lookup_error_that_names_it() -> None:
    with pytest.raises(LookupError, match=r"Evt9 \(DATA_REQUEST\).*Sta2 \(AWAITING_ASSOCIATE_RQ\)"):
        acceptor.next_step(State.AWAITING_ASSOCIATE_RQ, Event.DATA_REQUEST)


def test_every_action_says_what_it_asks_for() -> None:
    assert {action.value for action in Action} == set(ACTIONS)
    assert all(len(action.asks) > 5 and action.asks.endswith(".") for action in Action)
    assert {event.value for event in Event} == {f"Evt{number}" for number in range(1, 20)}
    assert {state.value for state in State} == {f"Sta{number}" for number in range(1, 14)}


def test_a_row_that_comes_twice_or_has_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        table((("Sta6", "Evt9 Evt10", "DT-1", "Sta6"), ("Sta6", "Evt10", "DT-2", "Sta6")))
    with pytest.raises(ValueError, match="Sta14"):
        table((("Sta14", "Evt9", "DT-1", "Sta6"),))
