"""Reports of storage commitment: N-EVENT-REPORT over an association that we request (PS3.4 J.3.3)."""

from collections.abc import Sequence
from typing import Final

from ingest.dicom import dimse
from ingest.dicom.commitment import ReferenceOutcome, encode_report, event_type_of
from ingest.dicom.pdus import RoleSelection
from ingest.dicom.responses import Response
from ingest.dicom.uids import STORAGE_COMMITMENT
from ingest.requestor.commitment_association import CommitmentAssociation

ROLES: Final = (RoleSelection(STORAGE_COMMITMENT, scu=False, scp=True),)
"""PS3.4 J.3.3.2: over a new association, its requestor reports as the SCP of the class."""


class CommitmentSCP(CommitmentAssociation):
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
        context_id, syntax = self.find_context()
        data_set = encode_report(transaction_uid, outcomes, syntax)
        return self.send_message(context_id, dimse.N_EVENT_REPORT_RQ, event_type_of(outcomes), data_set)
