"""The vocabulary of the Upper Layer state machine: states, events and actions of PS3.8 9.2.

The values are the standard's own names (Sta1, Evt5, AE-6). What moves from where to where is not here but
in the two tables, `ingest.dicom.acceptor.TABLE` and `ingest.dicom.requestor.TABLE`.
"""

from enum import Enum


class State(Enum):
    """PS3.8 Tables 9-1 to 9-5."""

    IDLE = "Sta1"
    AWAITING_ASSOCIATE_RQ = "Sta2"  # transport connection open
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
    AWAITING_TRANSPORT_CLOSE = "Sta13"  # the association is no more


class Event(Enum):
    """PS3.8 Table 9-10, first column."""

    ASSOCIATE_REQUEST = "Evt1"  # A-ASSOCIATE request (local user)
    TRANSPORT_CONFIRMED = "Evt2"  # our connect() and the TLS handshake are done
    ASSOCIATE_AC = "Evt3"  # PDU received
    ASSOCIATE_RJ = "Evt4"  # PDU received
    TRANSPORT_INDICATION = "Evt5"  # a peer's connection, its TLS handshake done
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
    INVALID_PDU = "Evt19"  # unrecognized or invalid: a PeerError was raised


class Action(Enum):
    """PS3.8 Tables 9-6 to 9-9.

    Attributes:
        asks: What the driver has to do before it takes the next state. ARTIM is the one timer of PS3.8 9.1.5.
    """

    AE_1 = "AE-1", "Open the transport connection (TCP, then TLS)."
    AE_2 = "AE-2", "Send A-ASSOCIATE-RQ."
    AE_3 = "AE-3", "Tell the user: associated. Take the accepted contexts from the A-ASSOCIATE-AC."
    AE_4 = "AE-4", "Tell the user: rejected. Close the transport connection."
    AE_5 = "AE-5", "Start ARTIM; read."
    AE_6 = "AE-6", "Stop ARTIM. Admit and negotiate, which gives Evt7 or Evt8 at once."
    AE_7 = "AE-7", "Send A-ASSOCIATE-AC."
    AE_8 = "AE-8", "Send A-ASSOCIATE-RJ; start ARTIM."
    DT_1 = "DT-1", "Send P-DATA-TF."
    DT_2 = "DT-2", "Hand the PDVs to the service."
    AR_1 = "AR-1", "Send A-RELEASE-RQ."
    AR_2 = "AR-2", "Tell the user: release asked. When its last response is out it gives Evt14."
    AR_3 = "AR-3", "Tell the user: released. Close the transport connection."
    AR_4 = "AR-4", "Send A-RELEASE-RP; start ARTIM."
    AR_5 = "AR-5", "Stop ARTIM."
    AR_6 = "AR-6", "Hand the PDVs to the service, although a release was asked by us."
    AR_7 = "AR-7", "Send P-DATA-TF, although a release was asked by the peer."
    AR_8 = "AR-8", "Tell the user: release asked while ours is on its way (collision)."
    AR_9 = "AR-9", "Send A-RELEASE-RP."
    AR_10 = "AR-10", "Tell the user: the peer answered our release; give Evt14 for its own."
    AA_1 = (
        "AA-1",
        "Send A-ABORT (source 0, service-user; on Evt19 source 2 and the reason of the PeerError, which says "
        "more to the peer than Table 9-9 asks for). Start or restart ARTIM.",
    )
    AA_2 = "AA-2", "Stop ARTIM. Close the transport connection."
    AA_3 = "AA-3", "Tell the user: aborted by the peer. Close the transport connection."
    AA_4 = "AA-4", "Tell the user: the connection is lost."
    AA_5 = "AA-5", "Stop ARTIM."
    AA_6 = "AA-6", "Ignore the PDU."
    AA_7 = "AA-7", "Send A-ABORT (source 2, service-provider, reason 2 or that of the PeerError)."
    AA_8 = (
        "AA-8",
        "Send A-ABORT (source 2, service-provider; reason 2 unexpected PDU, or that of the PeerError). "
        "Tell the user: aborted by us. Start ARTIM.",
    )

    asks: str

    def __new__(cls, name: str, asks: str) -> "Action":
        """A member whose value is the standard's name."""
        member = object.__new__(cls)
        member._value_ = name
        member.asks = asks
        return member


_ACTIONS = {action.value: action for action in Action}

Table = dict[tuple[State, Event], tuple[Action, State]]
Row = tuple[str, str, str, str]


def table(rows: tuple[Row, ...]) -> Table:
    """The transition table of rows (state, events in one string, action, next state) in the standard's names.

    Raises:
        ValueError: A name is not one of PS3.8, or a state and event come twice.
    """
    cells: Table = {}
    for state, events, action, following in rows:
        for event in events.split():
            cell = (State(state), Event(event))
            if cell in cells:
                raise ValueError(f"{state} and {event} come twice")
            cells[cell] = (_ACTIONS[action], State(following))
    return cells
