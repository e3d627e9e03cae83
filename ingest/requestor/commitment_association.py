"""The association of one message of storage commitment: a request or a report, with its data set."""

import os
from typing import Final

from ingest.dicom.dimse import encode_n_service_request
from ingest.dicom.responses import Response, SentRequest
from ingest.dicom.uids import (
    EXPLICIT_LITTLE_ENDIAN,
    IMPLICIT_LITTLE_ENDIAN,
    STORAGE_COMMITMENT,
    STORAGE_COMMITMENT_INSTANCE,
)
from ingest.errors import AssociationError, Cause
from ingest.ext.encode import DataSetEncoder, encode_p_data
from ingest.requestor.association import RequestorAssociation

PROPOSALS: Final = ((STORAGE_COMMITMENT, (EXPLICIT_LITTLE_ENDIAN, IMPLICIT_LITTLE_ENDIAN)),)
MESSAGE_ID: Final = 1
_END: Final = b""


class CommitmentAssociation(RequestorAssociation):
    """An association that sends one message of storage commitment."""

    def find_context(self) -> tuple[int, str]:
        """Return the ID and the transfer syntax of the presentation context for storage commitment.

        Raises:
            LookupError: The remote accepted none.
        """
        for syntax in PROPOSALS[0][1]:
            context_id = self.accepted_context_id(STORAGE_COMMITMENT, syntax)
            if context_id is not None:
                return context_id, syntax
        raise LookupError(f"{self.remote} accepted no context for storage commitment")

    def send_message(self, context_id: int, command_field: int, type_id: int, data_set: bytes) -> Response:
        """Send a message, and return the response with any status.

        Args:
            context_id: Presentation context ID.
            command_field: N_ACTION_RQ or N_EVENT_REPORT_RQ.
            type_id: Action Type ID or Event Type ID.
            data_set: The encoded data set.

        Raises:
            AssociationError: The association ended.
        """
        command = encode_n_service_request(
            command_field, MESSAGE_ID, STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE, type_id
        )
        operation = SentRequest(
            MESSAGE_ID, context_id, command_field, STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE
        )
        with os.fdopen(os.memfd_create("commitment"), "w+b", buffering=0) as file:
            file.write(data_set)
            try:
                encoder = DataSetEncoder(self.peer_max_pdu_length)
            except ValueError as error:
                self.abort()
                raise AssociationError(f"{self.remote}: {error}", cause=Cause.PROTOCOL_ERROR) from error
            encoder.start(context_id, file.fileno(), 0, len(data_set))
            head = encode_p_data(context_id, command, self.peer_max_pdu_length)
            self.send_request(operation, head, iter(encoder.fill, _END))
        return self.receive_response()[1]
