"""The one error that bytes from a peer can raise."""


# INVARIANT 5: bad bytes raise one error. Any other error that a peer can provoke is a defect of ours.
class PeerError(Exception):
    """Bytes from a peer break PS3.7, PS3.8 or PS3.5.

    Attributes:
        reason: The A-ABORT reason to answer with (PS3.8 Table 9-26): 0 not specified, 1 unrecognized PDU,
            2 unexpected PDU, 4 unrecognized PDU parameter, 5 unexpected PDU parameter, 6 invalid PDU
            parameter value.
    """

    NOT_SPECIFIED = 0
    UNRECOGNIZED_PDU = 1
    UNEXPECTED_PDU = 2
    UNRECOGNIZED_PARAMETER = 4
    UNEXPECTED_PARAMETER = 5
    INVALID_PARAMETER = 6

    def __init__(self, message: str, reason: int = NOT_SPECIFIED) -> None:
        super().__init__(message)
        self.reason = reason
