"""Requests for storage commitment that come through the spool: from the data set to rows of the ledger."""

import os

import structlog

from ingest.clock import unix_ms
from ingest.dicom.admission import find_destination
from ingest.dicom.commitment import CommitmentRequest, parse_request
from ingest.dicom.uids import STORAGE_COMMITMENT
from ingest.errors import PeerError
from ingest.ledger.commitments import NewCommitment
from ingest.workers.persist.context import PersistContext
from ingest.workers.persist.spool_entry import SpoolEntry

log = structlog.get_logger()


def is_commitment_request(entry: SpoolEntry) -> bool:
    """Return whether a spool entry holds a request, and no instance. A listener stores none of that class."""
    return entry.header.sop_class_uid == STORAGE_COMMITMENT and not entry.header.conflict


def record_commitment_request(context: PersistContext, entry: SpoolEntry) -> None:
    """Record a request in the ledger; one that cannot be read as failed, so that a person sees it.

    Raises:
        OSError: The spool cannot be read.
        StoppedError: The worker was asked to stop while the ledger was away.
    """
    header, config = entry.header, context.config
    request, fault = CommitmentRequest("", ()), ""
    try:
        length = header.size - header.data_set_offset
        data = os.pread(entry.source.fd, length, header.data_set_offset)
        request = parse_request(data, header.transfer_syntax_uid)
    except PeerError as error:
        fault = str(error)
        log.warning("commitment_request_unusable", calling_ae=header.calling_ae, reason=fault)
    destination = find_destination(
        header.calling_ae, config.peers, ignore_case=config.receive.ignore_ae_title_case
    )
    new = NewCommitment(
        request, header.calling_ae, header.called_ae, destination, entry.spool_ref, fault=fault
    )
    is_new = context.ask_ledger(context.ledger.commitments.record_request, new, unix_ms())
    if is_new and not fault:
        log.info(
            "commitment_recorded",
            calling_ae=header.calling_ae,
            transaction=request.transaction_uid,
            references=len(request.references),
        )
