"""The state table against pynetdicom's, which other people wrote from the same PS3.8 Table 9-10."""

import re
from pathlib import Path

import pytest
from pynetdicom.fsm import ACTIONS, TRANSITION_TABLE

from ingest.dicom.state_table import (
    ARTIM_STATES,
    ENDED_STATES,
    PDU_EVENTS,
    SENDING_STATES,
    TABLE,
    Action,
    Event,
    Role,
    State,
    next_step,
    read_rows,
)

DOCS = Path(__file__).parents[3] / "docs"
ARROW = re.compile(r"^\s*(Sta\d+) --> (Sta\d+) : (Evt\d+) [^,\n]*, (A[AER]-\d+|DT-\d)$", re.MULTILINE)

FIRST_EVENT = {Role.REQUESTOR: "Evt1", Role.ACCEPTOR: "Evt5"}
STATES = {
    Role.REQUESTOR: {1, 4, 5, 6, 7, 8, 9, 11, 13},
    Role.ACCEPTOR: {1, 2, 3, 6, 7, 8, 10, 12, 13},
}


def next_states(role: Role) -> dict[str, str]:
    """The next state of each action; the standard leaves a choice for two of them."""
    chosen = {"AE-6": "Sta3", "AR-8": "Sta9" if role is Role.REQUESTOR else "Sta10"}
    return {name: following for name, (_, _, following) in ACTIONS.items()} | chosen


def reachable_cells(role: Role) -> dict[tuple[str, str], tuple[str, str]]:
    """The cells of pynetdicom's table that a role can reach when it leaves Sta1 by its own first event."""
    cells: dict[tuple[str, str], tuple[str, str]] = {}
    seen, pending = {"Sta1"}, ["Sta1"]
    while pending:
        state = pending.pop()
        for (event, of), action in TRANSITION_TABLE.items():
            if of == state and (state != "Sta1" or event == FIRST_EVENT[role]):
                following = next_states(role)[action]
                cells[state, event] = action, following
                if following not in seen:
                    seen.add(following)
                    pending.append(following)
    return cells


@pytest.mark.parametrize("role", Role)
def test_table_has_every_cell_that_a_role_can_reach(role: Role) -> None:
    cells = reachable_cells(role)
    assert {state for state, _ in cells} == {f"Sta{number}" for number in STATES[role]}
    for (state, event), expected in cells.items():
        action, following = next_step(State(state), Event(event), role)
        assert (action.value, following.value) == expected


def test_table_has_no_cell_that_neither_role_can_reach() -> None:
    ours = {(state.value, event.value) for state, event in TABLE}
    assert ours == reachable_cells(Role.REQUESTOR).keys() | reachable_cells(Role.ACCEPTOR).keys()
    assert ours == {(state, event) for event, state in TRANSITION_TABLE}


@pytest.mark.parametrize("role", Role)
def test_choices_of_the_standard_are_made_among_those_that_it_offers(role: Role) -> None:
    chosen = next_states(role)
    assert chosen["AE-6"] in ACTIONS["AE-6"][2]
    assert chosen["AR-8"] in ACTIONS["AR-8"][2]


def test_every_pdu_has_a_cell_in_every_state_with_an_open_connection() -> None:
    closed = {State.IDLE, State.AWAITING_TRANSPORT_CONNECTION}
    for state in set(State) - closed:
        for event in (*PDU_EVENTS.values(), Event.INVALID_PDU, Event.TRANSPORT_CLOSED):
            assert (state, event) in TABLE


def test_sets_of_states_are_those_of_the_table() -> None:
    assert {state for state, event in TABLE if event is Event.ARTIM_EXPIRED} == ARTIM_STATES
    assert {state for state, event in TABLE if event is Event.DATA_REQUEST} == SENDING_STATES
    assert {state for state, event in TABLE if event is Event.ABORT_REQUEST}.isdisjoint(ENDED_STATES)


def test_release_collision_ends_in_idle_on_both_sides() -> None:
    ours, theirs = State.ESTABLISHED, State.ESTABLISHED
    for event_of_requestor, event_of_acceptor in (
        (Event.RELEASE_REQUEST, Event.RELEASE_REQUEST),  # both ask at once
        (Event.RELEASE_RQ, Event.RELEASE_RQ),
        (Event.RELEASE_RESPONSE, None),  # PS3.8 9.2: the requestor answers first
        (None, Event.RELEASE_RP),
        (None, Event.RELEASE_RESPONSE),
        (Event.RELEASE_RP, Event.TRANSPORT_CLOSED),
    ):
        if event_of_requestor:
            ours = next_step(ours, event_of_requestor, Role.REQUESTOR)[1]
        if event_of_acceptor:
            theirs = next_step(theirs, event_of_acceptor, Role.ACCEPTOR)[1]
    assert (ours, theirs) == (State.IDLE, State.IDLE)


@pytest.mark.parametrize("role", Role)
def test_empty_cell_is_a_lookup_error_that_names_state_and_event(role: Role) -> None:
    with pytest.raises(LookupError, match=r"Evt9 \(DATA_REQUEST\).*Sta2 \(AWAITING_ASSOCIATE_RQ\)"):
        next_step(State.AWAITING_ASSOCIATE_RQ, Event.DATA_REQUEST, role)


def test_every_name_of_the_standard_is_there_and_every_action_has_a_task() -> None:
    assert {action.value for action in Action} == set(ACTIONS)
    assert all(len(action.task) > 5 and action.task.endswith(".") for action in Action)
    assert {event.value for event in Event} == {f"Evt{number}" for number in range(1, 20)}
    assert {state.value for state in State} == {f"Sta{number}" for number in range(1, 14)}


def test_second_row_for_a_cell_or_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="two rows"):
        read_rows((("Sta6", "Evt9 Evt10", "DT-1", "Sta6"), ("Sta6", "Evt10", "DT-2", "Sta6")))
    with pytest.raises(ValueError, match="Sta14"):
        read_rows((("Sta14", "Evt9", "DT-1", "Sta6"),))


def test_arrows_of_the_state_diagrams_in_the_docs_are_cells_of_the_table() -> None:
    diagrams = [
        block
        for page in DOCS.rglob("*.md")
        for block in re.findall(r"```mermaid\nstateDiagram-v2\n(.*?)```", page.read_text(), re.DOTALL)
        if "Sta6" in block
    ]
    drawn = set()
    for block in diagrams:
        arrows = ARROW.findall(block)
        assert len(arrows) == block.count("-->") - block.count("[*] -->"), "an arrow that cannot be checked"
        role = Role.ACCEPTOR if "Sta2" in block else Role.REQUESTOR
        for state, following, event, action in arrows:
            assert next_step(State(state), Event(event), role) == (
                next(each for each in Action if each.value == action),
                State(following),
            )
        drawn.add(role)
    assert drawn == set(Role)
