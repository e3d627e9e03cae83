"""The requestor's table against pynetdicom's."""

import pytest
from pynetdicom.fsm import ACTIONS, TRANSITION_TABLE

from ingest.dicom import acceptor, requestor
from ingest.dicom.states import Event, State

NEXT_OF = {name: following for name, (_, _, following) in ACTIONS.items()} | {"AE-6": "Sta3", "AR-8": "Sta9"}


def test_requestor_has_every_row_that_it_can_reach_and_no_other() -> None:
    ours = {
        (e.value, s.value): (a.value, following.value) for (s, e), (a, following) in requestor.TABLE.items()
    }
    states = {state for _, state in ours}
    assert states == {"Sta1", "Sta4", "Sta5", "Sta6", "Sta7", "Sta8", "Sta9", "Sta11", "Sta13"}
    theirs = {
        cell: action
        for cell, action in TRANSITION_TABLE.items()
        if cell[1] in states and cell != ("Evt5", "Sta1")
    }
    assert ours == {cell: (action, NEXT_OF[action]) for cell, action in theirs.items()}


def test_every_state_can_be_reached_from_idle() -> None:
    reached = {State.IDLE}
    while more := {to for (state, _), (_, to) in requestor.TABLE.items() if state in reached} - reached:
        reached |= more
    assert reached == {state for state, _ in requestor.TABLE}


def test_release_collision_is_resolved_whoever_asked_first() -> None:
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
            ours = requestor.next_step(ours, event_of_requestor)[1]
        if event_of_acceptor:
            theirs = acceptor.next_step(theirs, event_of_acceptor)[1]
    assert (ours, theirs) == (State.IDLE, State.IDLE)


def test_a_cell_that_the_standard_leaves_empty_is_a_lookup_error() -> None:
    with pytest.raises(LookupError, match="Evt7"):
        requestor.next_step(State.ESTABLISHED, Event.ASSOCIATE_ACCEPT)
