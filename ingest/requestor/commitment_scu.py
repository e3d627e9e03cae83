"""Requests for storage commitment: N-ACTION over an association that we request (PS3.4 J.3.2)."""

from ingest.dicom import dimse
from ingest.dicom.commitment import CommitmentRequest, encode_request
from ingest.dicom.responses import Response
from ingest.requestor.commitment_association import CommitmentAssociation

_REQUEST_COMMITMENT = 1  # PS3.4 J.3.2.1.1: Action Type ID


class CommitmentSCU(CommitmentAssociation):
    """An association that sends one request. Open it with `PROPOSALS`."""

    def ask(self, request: CommitmentRequest) -> Response:
        """Send a request, and return the response with any status. The report comes later, to a listener.

        Raises:
            AssociationError: The association ended.
            LookupError: The remote accepted no context for storage commitment.
        """
        context_id, syntax = self.find_context()
        data_set = encode_request(request, syntax)
        return self.send_message(context_id, dimse.N_ACTION_RQ, _REQUEST_COMMITMENT, data_set)
