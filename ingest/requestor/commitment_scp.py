"""Reports of storage commitment: N-EVENT-REPORT over an association that we request (PS3.4 J.3.3)."""

import os
from collections.abc import Sequence
from typing import Final

from ingest.dicom import dimse
from ingest.dicom.commitment import ReferenceOutcome, encode_report, event_type_of
from ingest.dicom.pdus import RoleSelection
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
ROLES: Final = (RoleSelection(STORAGE_COMMITMENT, scu=False, scp=True),)
"""PS3.4 J.3.3.2: who reports over a new association is its requestor, and the SCP of the class."""

_MESSAGE_ID: Final = 1
_END: Final = b""


class CommitmentSCP(RequestorAssociation):
    """An association that sends one report. Open it with `PROPOSALS` and `ROLES`."""

    def send_report(self, transaction_uid: str, outcomes: Sequence[ReferenceOutcome]) -> Response:
        """Send a report, and return the response with any status.

        Args:
            transaction_uid: (0008,1195) of the request.
            outcomes: What was decided of each instance.

        Raises:
            AssociationError: The association ended.
            LookupError: The remote accepted no context for storage commitment.
        """
        for syntax in PROPOSALS[0][1]:
            context_id = self.accepted_context_id(STORAGE_COMMITMENT, syntax)
            if context_id is not None:
                break
        else:
            raise LookupError(f"{self.remote} accepted no context for storage commitment")
        operation = SentRequest(
            _MESSAGE_ID,
            context_id,
            dimse.N_EVENT_REPORT_RQ,
            STORAGE_COMMITMENT,
            STORAGE_COMMITMENT_INSTANCE,
        )
        command = dimse.encode_event_report_request(
            _MESSAGE_ID, STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE, event_type_of(outcomes)
        )
        data_set = encode_report(transaction_uid, outcomes, syntax)
        with os.fdopen(os.memfd_create("report"), "w+b", buffering=0) as file:
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
