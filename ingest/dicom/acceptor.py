"""The association acceptor's state table: the rows of PS3.8 Table 9-10 that follow from a peer's connection.

Two cells of the standard leave a choice. AE-6 goes to Sta3 always: what the standard lets the provider
refuse there (the protocol version) `ingest.dicom.negotiate` refuses in Sta3 with the same A-ASSOCIATE-RJ,
so the driver gives Evt8. AR-8 goes to Sta10, the acceptor's side of a release collision.
"""

from ingest.dicom.states import Action, Event, State, table

__all__ = ["TABLE", "Action", "Event", "State", "next_step"]

TABLE = table(
    (
        # state, events, action, next state
        # Sta1 IDLE
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
        # Sta10 COLLISION_ACCEPTOR_AWAITING_RELEASE_RP
        ("Sta10", "Evt3 Evt4 Evt6 Evt10 Evt12 Evt19", "AA-8", "Sta13"),
        ("Sta10", "Evt13", "AR-10", "Sta12"),
        ("Sta10", "Evt15", "AA-1", "Sta13"),
        ("Sta10", "Evt16", "AA-3", "Sta1"),
        ("Sta10", "Evt17", "AA-4", "Sta1"),
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
)


def next_step(state: State, event: Event) -> tuple[Action, State]:
    """What PS3.8 asks for when `event` happens in `state`, and the state that follows.

    Raises:
        LookupError: The standard has no such cell: a fault of ours, not of the peer. The driver aborts.
    """
    try:
        return TABLE[state, event]
    except KeyError:
        raise LookupError(
            f"{event.value} ({event.name}) cannot happen in {state.value} ({state.name})"
        ) from None
