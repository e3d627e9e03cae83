"""The state machine of the DICOM Upper Layer, for both roles: PS3.8 section 9.2 with Table 9-10.

Theory of operation
===================

Both sides of an association run this machine, one for each transport connection. A machine is in one of 13
*states* (`State`, Sta1 to Sta13). Four kinds of *events* (`Event`, Evt1 to Evt19) move it:

- the local user asks for something: to associate, to accept, to send, to release or to abort;
- a PDU arrives, or bytes arrive that are no valid PDU (Evt19);
- the transport connection opens or closes;
- the ARTIM timer expires. ARTIM is the only timer of PS3.8 (section 9.1.5). It bounds the wait for an
  A-ASSOCIATE-RQ and the wait for the peer to close the connection.

For each pair of state and event, the table names one *action* (`Action`, AE-1 to AA-8) and the next state.

An acceptor starts in Sta1 and waits in Sta2 for the A-ASSOCIATE-RQ. In Sta3 it decides. After an
A-ASSOCIATE-AC the association is established (Sta6). After an A-ASSOCIATE-RJ the acceptor waits in Sta13
until the peer has closed the connection. A requestor goes from Sta1 over Sta4 (connection being opened) and
Sta5 (A-ASSOCIATE-RQ sent) to Sta6. In Sta6 both sides exchange messages. The side that asks for the release
waits in Sta7 for the A-RELEASE-RP, and the other side prepares the answer in Sta8. If both sides ask at once,
the release collides: the requestor goes over Sta9 and Sta11, the acceptor over Sta10 and Sta12. Only here the
next state depends on the role, so `next_step` takes a `Role`.

The state after an A-ABORT or A-RELEASE-RP of ours is Sta13, where every PDU is ignored. Therefore a machine
in Sta13 has no more answers to send, and only ARTIM keeps the connection open.

How a driver uses the table
===========================

The table does no I/O. `ingest.acceptor.association` and `ingest.requestor.association` drive it:

1. Turn the occurrence into an event. `PDU_EVENTS` maps the type of a PDU to its event. A `PeerError` of the
   parser or of a decoder is `Event.INVALID_PDU`.
2. Call `next_step(state, event, role)` and keep the state that it returns.
3. Run the handler of the returned action. A driver has one function for each action that its role can meet,
   in one dictionary; `Action.task` describes the work of that function. An action without a handler needs no
   work.
4. A handler may raise the next event itself. For example, AE-6 decides about the A-ASSOCIATE-RQ and raises
   Evt7 or Evt8, and the handler of AR-2 raises Evt14 when the last response is sent.

Store the next state before the handler runs. Otherwise an event that the handler raises meets the old state.

`next_step` raises `LookupError` for a cell that the standard leaves empty. Each PDU has a cell in each state
with an open connection, so an empty cell is a defect of ours and never a fault of the peer.

A requestor that sends a long data set reads between its PDUs. It passes each received PDU to the table as in
step 1, even before its own message is complete. An A-ABORT (AA-3) or an A-RELEASE-RQ (AR-2) therefore takes
effect at once. A blocking requestor runs the handler of AE-1 (connect, TLS handshake) to its end and
then raises Evt2, or Evt17 when the connection failed.
"""

from enum import Enum
from typing import Final


class Role(Enum):
    """The side of an association (PS3.8 section 3.3)."""

    REQUESTOR = "requestor"
    ACCEPTOR = "acceptor"


class State(Enum):
    """States of PS3.8 Tables 9-1 to 9-5."""

    IDLE = "Sta1"
    AWAITING_ASSOCIATE_RQ = "Sta2"  # the transport connection is open
    AWAITING_LOCAL_ASSOCIATE_RESPONSE = "Sta3"
    AWAITING_TRANSPORT_CONNECTION = "Sta4"
    AWAITING_ASSOCIATE_AC_OR_RJ = "Sta5"
    ESTABLISHED = "Sta6"  # ready for data transfer
    AWAITING_RELEASE_RP = "Sta7"
    AWAITING_LOCAL_RELEASE_RESPONSE = "Sta8"
    COLLISION_REQUESTOR_AWAITING_LOCAL_RELEASE_RESPONSE = "Sta9"
    COLLISION_ACCEPTOR_AWAITING_RELEASE_RP = "Sta10"
    COLLISION_REQUESTOR_AWAITING_RELEASE_RP = "Sta11"
    COLLISION_ACCEPTOR_AWAITING_LOCAL_RELEASE_RESPONSE = "Sta12"
    AWAITING_TRANSPORT_CLOSE = "Sta13"  # the association has ended


class Event(Enum):
    """Events of PS3.8 Table 9-10, first column."""

    ASSOCIATE_REQUEST = "Evt1"  # A-ASSOCIATE request primitive
    TRANSPORT_CONFIRMED = "Evt2"  # our connect() succeeded, with its TLS handshake
    ASSOCIATE_AC = "Evt3"  # PDU received
    ASSOCIATE_RJ = "Evt4"  # PDU received
    TRANSPORT_INDICATION = "Evt5"  # a peer connected, and its TLS handshake is complete
    ASSOCIATE_RQ = "Evt6"  # PDU received
    ASSOCIATE_ACCEPT = "Evt7"  # A-ASSOCIATE response primitive (accept)
    ASSOCIATE_REJECT = "Evt8"  # A-ASSOCIATE response primitive (reject)
    DATA_REQUEST = "Evt9"  # P-DATA request primitive
    DATA_TF = "Evt10"  # PDU received
    RELEASE_REQUEST = "Evt11"  # A-RELEASE request primitive
    RELEASE_RQ = "Evt12"  # PDU received
    RELEASE_RP = "Evt13"  # PDU received
    RELEASE_RESPONSE = "Evt14"  # A-RELEASE response primitive
    ABORT_REQUEST = "Evt15"  # A-ABORT request primitive
    ABORT = "Evt16"  # PDU received
    TRANSPORT_CLOSED = "Evt17"
    ARTIM_EXPIRED = "Evt18"
    INVALID_PDU = "Evt19"  # unrecognized or invalid PDU: a PeerError was raised


class Action(Enum):
    """Actions of PS3.8 Tables 9-6 to 9-9.

    Attributes:
        task: The work of the driver when the table returns this action.
    """

    AE_1 = "AE-1", "Open the transport connection: TCP, then TLS."
    AE_2 = "AE-2", "Send A-ASSOCIATE-RQ."
    AE_3 = "AE-3", "Confirm the association. Read the accepted contexts from the A-ASSOCIATE-AC."
    AE_4 = "AE-4", "Report the rejection. Close the transport connection."
    AE_5 = "AE-5", "Start ARTIM. Read from the connection."
    AE_6 = "AE-6", "Stop ARTIM. Decide about the A-ASSOCIATE-RQ, and raise Evt7 or Evt8."
    AE_7 = "AE-7", "Send A-ASSOCIATE-AC."
    AE_8 = "AE-8", "Send A-ASSOCIATE-RJ. Start ARTIM."
    DT_1 = "DT-1", "Send P-DATA-TF."
    DT_2 = "DT-2", "Pass the PDVs to the service."
    AR_1 = "AR-1", "Send A-RELEASE-RQ."
    AR_2 = "AR-2", "Notify the service of the release request. Raise Evt14 after its last response."
    AR_3 = "AR-3", "Confirm the release. Close the transport connection."
    AR_4 = "AR-4", "Send A-RELEASE-RP. Start ARTIM."
    AR_5 = "AR-5", "Stop ARTIM."
    AR_6 = "AR-6", "Pass the PDVs to the service, although our A-RELEASE-RQ is on its way."
    AR_7 = "AR-7", "Send P-DATA-TF, although the peer asked for the release."
    AR_8 = "AR-8", "Notify the service of a release collision: both sides asked for the release."
    AR_9 = "AR-9", "Send A-RELEASE-RP."
    AR_10 = "AR-10", "Confirm our release. Raise Evt14 for the release that the peer asked for."
    AA_1 = (
        "AA-1",
        # For Evt19 our drivers depart from Table 9-9: source 2 and a reason help to find the fault.
        "Send A-ABORT with source 0 (service-user), or for Evt19 with source 2 and the reason of the "
        "PeerError. Start or restart ARTIM.",
    )
    AA_2 = "AA-2", "Stop ARTIM. Close the transport connection."
    AA_3 = "AA-3", "Report the abort by the peer. Close the transport connection."
    AA_4 = "AA-4", "Report that the transport connection is lost."
    AA_5 = "AA-5", "Stop ARTIM."
    AA_6 = "AA-6", "Ignore the PDU."
    AA_7 = "AA-7", "Send A-ABORT with source 2 (service-provider) and the reason of the PeerError or 2."
    AA_8 = (
        "AA-8",
        "Send A-ABORT with source 2 (service-provider) and the reason of the PeerError or 2 (unexpected "
        "PDU). Report our abort. Start ARTIM.",
    )

    task: str

    def __new__(cls, name: str, task: str) -> "Action":
        """Make a member whose value is the standard's name."""
        member = object.__new__(cls)
        member._value_ = name
        member.task = task
        return member


PDU_EVENTS: Final = {
    0x01: Event.ASSOCIATE_RQ,
    0x02: Event.ASSOCIATE_AC,
    0x03: Event.ASSOCIATE_RJ,
    0x04: Event.DATA_TF,
    0x05: Event.RELEASE_RQ,
    0x06: Event.RELEASE_RP,
    0x07: Event.ABORT,
}
"""Event of each PDU type (PS3.8 section 9.3.1, byte 1). The parser refuses every other type."""

ENDED_STATES: Final = frozenset({State.IDLE, State.AWAITING_TRANSPORT_CLOSE})
"""States without an association: before it begins and after it has ended."""

ARTIM_STATES: Final = frozenset({State.AWAITING_ASSOCIATE_RQ, State.AWAITING_TRANSPORT_CLOSE})
"""States in which Table 9-10 has a cell for the expiry of ARTIM (Evt18)."""

SENDING_STATES: Final = frozenset({State.ESTABLISHED, State.AWAITING_LOCAL_RELEASE_RESPONSE})
"""States in which Table 9-10 has a cell for a P-DATA request (Evt9)."""

Row = tuple[str, str, str, str]
Table = dict[tuple[State, Event], tuple[Action, State]]

COLLISION_STATES: Final = {
    Role.REQUESTOR: State.COLLISION_REQUESTOR_AWAITING_LOCAL_RELEASE_RESPONSE,
    Role.ACCEPTOR: State.COLLISION_ACCEPTOR_AWAITING_RELEASE_RP,
}
"""Next state of AR-8, the only action whose next state depends on the role."""

# AE-6 has a second next state in the standard: Sta13, for an A-ASSOCIATE-RJ by the service-provider. Our
# table always goes to Sta3. `ingest.dicom.negotiate` refuses a wrong protocol version there, with the same
# A-ASSOCIATE-RJ, and the driver raises Evt8.
#
# AR-8 is written with the acceptor's next state; `next_step` replaces it for a requestor.
ROWS: Final[tuple[Row, ...]] = (
    # state, events, action, next state
    # Sta1 IDLE
    ("Sta1", "Evt1", "AE-1", "Sta4"),
    ("Sta1", "Evt5", "AE-5", "Sta2"),
    # Sta2 AWAITING_ASSOCIATE_RQ
    ("Sta2", "Evt3 Evt4 Evt10 Evt12 Evt13 Evt19", "AA-1", "Sta13"),
    ("Sta2", "Evt6", "AE-6", "Sta3"),
    ("Sta2", "Evt16 Evt18", "AA-2", "Sta1"),
    ("Sta2", "Evt17", "AA-5", "Sta1"),
    # Sta3 AWAITING_LOCAL_ASSOCIATE_RESPONSE
    ("Sta3", "Evt3 Evt4 Evt6 Evt10 Evt12 Evt13 Evt19", "AA-8", "Sta13"),
    ("Sta3", "Evt7", "AE-7", "Sta6"),
    ("Sta3", "Evt8", "AE-8", "Sta13"),
    ("Sta3", "Evt15", "AA-1", "Sta13"),
    ("Sta3", "Evt16", "AA-3", "Sta1"),
    ("Sta3", "Evt17", "AA-4", "Sta1"),
    # Sta4 AWAITING_TRANSPORT_CONNECTION
    ("Sta4", "Evt2", "AE-2", "Sta5"),
    ("Sta4", "Evt15", "AA-2", "Sta1"),
    ("Sta4", "Evt17", "AA-4", "Sta1"),
    # Sta5 AWAITING_ASSOCIATE_AC_OR_RJ
    ("Sta5", "Evt3", "AE-3", "Sta6"),
    ("Sta5", "Evt4", "AE-4", "Sta1"),
    ("Sta5", "Evt6 Evt10 Evt12 Evt13 Evt19", "AA-8", "Sta13"),
    ("Sta5", "Evt15", "AA-1", "Sta13"),
    ("Sta5", "Evt16", "AA-3", "Sta1"),
    ("Sta5", "Evt17", "AA-4", "Sta1"),
    # Sta6 ESTABLISHED
    ("Sta6", "Evt3 Evt4 Evt6 Evt13 Evt19", "AA-8", "Sta13"),
    ("Sta6", "Evt9", "DT-1", "Sta6"),
    ("Sta6", "Evt10", "DT-2", "Sta6"),
    ("Sta6", "Evt11", "AR-1", "Sta7"),
    ("Sta6", "Evt12", "AR-2", "Sta8"),
    ("Sta6", "Evt15", "AA-1", "Sta13"),
    ("Sta6", "Evt16", "AA-3", "Sta1"),
    ("Sta6", "Evt17", "AA-4", "Sta1"),
    # Sta7 AWAITING_RELEASE_RP
    ("Sta7", "Evt3 Evt4 Evt6 Evt19", "AA-8", "Sta13"),
    ("Sta7", "Evt10", "AR-6", "Sta7"),
    ("Sta7", "Evt12", "AR-8", "Sta10"),
    ("Sta7", "Evt13", "AR-3", "Sta1"),
    ("Sta7", "Evt15", "AA-1", "Sta13"),
    ("Sta7", "Evt16", "AA-3", "Sta1"),
    ("Sta7", "Evt17", "AA-4", "Sta1"),
    # Sta8 AWAITING_LOCAL_RELEASE_RESPONSE
    ("Sta8", "Evt3 Evt4 Evt6 Evt10 Evt12 Evt13 Evt19", "AA-8", "Sta13"),
    ("Sta8", "Evt9", "AR-7", "Sta8"),
    ("Sta8", "Evt14", "AR-4", "Sta13"),
    ("Sta8", "Evt15", "AA-1", "Sta13"),
    ("Sta8", "Evt16", "AA-3", "Sta1"),
    ("Sta8", "Evt17", "AA-4", "Sta1"),
    # Sta9 COLLISION_REQUESTOR_AWAITING_LOCAL_RELEASE_RESPONSE
    ("Sta9", "Evt3 Evt4 Evt6 Evt10 Evt12 Evt13 Evt19", "AA-8", "Sta13"),
    ("Sta9", "Evt14", "AR-9", "Sta11"),
    ("Sta9", "Evt15", "AA-1", "Sta13"),
    ("Sta9", "Evt16", "AA-3", "Sta1"),
    ("Sta9", "Evt17", "AA-4", "Sta1"),
    # Sta10 COLLISION_ACCEPTOR_AWAITING_RELEASE_RP
    ("Sta10", "Evt3 Evt4 Evt6 Evt10 Evt12 Evt19", "AA-8", "Sta13"),
    ("Sta10", "Evt13", "AR-10", "Sta12"),
    ("Sta10", "Evt15", "AA-1", "Sta13"),
    ("Sta10", "Evt16", "AA-3", "Sta1"),
    ("Sta10", "Evt17", "AA-4", "Sta1"),
    # Sta11 COLLISION_REQUESTOR_AWAITING_RELEASE_RP
    ("Sta11", "Evt3 Evt4 Evt6 Evt10 Evt12 Evt19", "AA-8", "Sta13"),
    ("Sta11", "Evt13", "AR-3", "Sta1"),
    ("Sta11", "Evt15", "AA-1", "Sta13"),
    ("Sta11", "Evt16", "AA-3", "Sta1"),
    ("Sta11", "Evt17", "AA-4", "Sta1"),
    # Sta12 COLLISION_ACCEPTOR_AWAITING_LOCAL_RELEASE_RESPONSE
    ("Sta12", "Evt3 Evt4 Evt6 Evt10 Evt12 Evt13 Evt19", "AA-8", "Sta13"),
    ("Sta12", "Evt14", "AR-4", "Sta13"),
    ("Sta12", "Evt15", "AA-1", "Sta13"),
    ("Sta12", "Evt16", "AA-3", "Sta1"),
    ("Sta12", "Evt17", "AA-4", "Sta1"),
    # Sta13 AWAITING_TRANSPORT_CLOSE
    ("Sta13", "Evt3 Evt4 Evt10 Evt12 Evt13", "AA-6", "Sta13"),
    ("Sta13", "Evt6 Evt19", "AA-7", "Sta13"),
    ("Sta13", "Evt16 Evt18", "AA-2", "Sta1"),
    ("Sta13", "Evt17", "AR-5", "Sta1"),
)


def read_rows(rows: tuple[Row, ...]) -> Table:
    """Make a transition table from rows of state, events, action and next state in the standard's names.

    Raises:
        ValueError: A name is unknown to PS3.8, or two rows have the same state and event.
    """
    actions = {action.value: action for action in Action}
    cells: Table = {}
    for state, events, action, following in rows:
        for event in events.split():
            cell = (State(state), Event(event))
            if cell in cells:
                raise ValueError(f"two rows have {state} and {event}")
            cells[cell] = (actions[action], State(following))
    return cells


TABLE: Final = read_rows(ROWS)


def next_step(state: State, event: Event, role: Role) -> tuple[Action, State]:
    """Look up the action and the next state for `event` in `state`.

    Raises:
        LookupError: The standard has no such cell. This is a defect of ours, and the driver aborts.
    """
    try:
        action, following = TABLE[state, event]
    except KeyError:
        raise LookupError(
            f"{event.value} ({event.name}) cannot happen in {state.value} ({state.name})"
        ) from None
    if action is Action.AR_8:
        following = COLLISION_STATES[role]
    return action, following
