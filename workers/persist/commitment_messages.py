"""Messages of storage commitment that come through the spool: from the data set to rows of the ledger."""

import os
import random
from collections.abc import Callable

import structlog

from ingest.clock import unix_ms
from ingest.config.model import Destination
from ingest.dicom.admission import find_destination
from ingest.dicom.commitment import REPORT_MARK, CommitmentRequest, parse_report, parse_request
from ingest.dicom.uids import STORAGE_COMMITMENT
from ingest.errors import PeerError
from ingest.ledger import DeliveryState
from ingest.ledger.commitment_requests import Uncommitted
from ingest.ledger.commitments import NewCommitment
from ingest.workers.forward.retry_policy import Retry, RetryPolicy, decide_uncommitted
from ingest.workers.persist.context import PersistContext
from ingest.workers.persist.spool_entry import SpoolEntry

log = structlog.get_logger()


def is_commitment_message(entry: SpoolEntry) -> bool:
    """Return whether a spool entry holds a message, and no instance. A listener stores none of that class."""
    return entry.header.sop_class_uid == STORAGE_COMMITMENT and not entry.header.conflict


def record_commitment_message(context: PersistContext, entry: SpoolEntry) -> None:
    """Record a request, or a report that answers a request of ours.

    Raises:
        OSError: The spool cannot be read.
        StoppedError: The worker was asked to stop while the ledger was away.
    """
    if entry.header.sop_instance_uid == REPORT_MARK:
        _record_report(context, entry)
    else:
        _record_request(context, entry)


def _record_request(context: PersistContext, entry: SpoolEntry) -> None:
    """Record a request in the ledger; one that cannot be read as failed, so that a person sees it."""
    header = entry.header
    request, fault = CommitmentRequest("", ()), ""
    try:
        request = parse_request(_read_data_set(entry), header.transfer_syntax_uid)
    except PeerError as error:
        fault = str(error)
        log.warning("commitment_request_unusable", calling_ae=header.calling_ae, reason=fault)
    destination = _find_destination(context, header.calling_ae)
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


def _record_report(context: PersistContext, entry: SpoolEntry) -> None:
    """Record what a destination says of a request of ours."""
    header = entry.header
    try:
        transaction, outcomes = parse_report(_read_data_set(entry), header.transfer_syntax_uid)
    except PeerError as error:
        log.warning("commitment_report_unusable", calling_ae=header.calling_ae, reason=str(error))
        return
    name = _find_destination(context, header.calling_ae)
    now = unix_ms()
    destination = next((each for each in context.config.destinations if each.name == name), None)
    is_ours = destination is not None and context.ask_ledger(
        context.ledger.commitment_requests.record_report,
        name,
        transaction,
        outcomes,
        _make_decision(destination, now),
        now,
        context.config.list_groups_of(name),
    )
    failures = sum(outcome.failure is not None for outcome in outcomes)
    if not is_ours:
        log.warning("commitment_report_unknown", calling_ae=header.calling_ae, transaction=transaction)
    elif failures:
        log.warning("not_committed", destination=name, transaction=transaction, instances=failures)
    else:
        log.info("committed", destination=name, transaction=transaction, instances=len(outcomes))


def _make_decision(destination: Destination, unix_ms: int) -> Callable[[int, int], Uncommitted]:
    policy = RetryPolicy.from_destination(destination)

    def decide(attempts: int, failure_reason: int) -> Uncommitted:
        decision = decide_uncommitted(failure_reason, attempts, policy, random.random)
        if isinstance(decision, Retry):
            return Uncommitted(DeliveryState.RETRY, unix_ms + decision.after_ms, decision.reason)
        return Uncommitted(DeliveryState.DEAD, 0, decision.reason)

    return decide


def _read_data_set(entry: SpoolEntry) -> bytes:
    header = entry.header
    return os.pread(entry.source.fd, header.size - header.data_set_offset, header.data_set_offset)


def _find_destination(context: PersistContext, calling_ae: str) -> str:
    config = context.config
    return find_destination(calling_ae, config.peers, ignore_case=config.receive.ignore_ae_title_case)
