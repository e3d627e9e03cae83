"""Reports of storage commitment to the destinations of their requestors, from the ledger.

A report is at least once: a worker that dies after sending it leaves the report due. A requestor knows a
report by its Transaction UID.

Scanners are switched off at night, and hundreds of reports may then be due to one of them. If its destination
cannot be reached for one report, all of them wait for the pause of that one. Otherwise each would keep a
worker until its deadline for connecting, and deliveries to other destinations would wait for the worker.
"""

import time
from dataclasses import replace
from typing import Final

import structlog

from ingest.config.model import Destination
from ingest.dicom.statuses import Category
from ingest.errors import AssociationError, StoppedError
from ingest.ledger import Ledger
from ingest.ledger.commitments import Commitment, CommitmentState
from ingest.requestor.association import Timeouts
from ingest.requestor.commitment_association import PROPOSALS
from ingest.requestor.commitment_scp import ROLES, CommitmentSCP
from ingest.requestor.transport import Remote
from ingest.workers.forward.drain import SLICE_SECONDS, ForwardResources
from ingest.workers.forward.retry_policy import RetryPolicy, backoff_ms

LEASE_MS: Final = 300_000
"""Longer than connecting, sending a report and waiting for its response."""

log = structlog.get_logger()


class _UnreachableError(Exception):
    """No association was established."""


class CommitmentReporter:
    """Sends the due reports of one destination."""

    def __init__(
        self, resources: ForwardResources, destination: Destination, remote: Remote, give_up_ms: int
    ) -> None:
        """Prepare without any I/O.

        Args:
            resources: Resources of the worker.
            destination: Configuration of the destination.
            remote: Acceptor of the association.
            give_up_ms: How long a report is tried.
        """
        self._resources = resources
        self._destination = destination
        self._remote = remote
        # A report may be due only when its instances were waited for as long.
        self._give_up_ms = 2 * give_up_ms
        self._policy = RetryPolicy.from_destination(destination)

    def send_due_reports(self) -> None:
        """Send reports until none is due, one fails, or the worker is needed elsewhere.

        Raises:
            LedgerError: The ledger is away. Leases end by themselves.
        """
        ledger = self._resources.ledger
        name = self._destination.name
        ends_at = time.monotonic() + SLICE_SECONDS
        while not self._resources.is_stopping() and time.monotonic() < ends_at:
            if ledger.circuits.read_circuit(name).is_left_alone(ledger.unix_ms()):
                return
            report = ledger.commitments.lease_report(name, ledger.unix_ms(), LEASE_MS)
            if report is None or not self._send(ledger, report):
                return

    def _send(self, ledger: Ledger, report: Commitment) -> bool:
        is_reached = True
        try:
            fault = self._try_to_send(ledger, report)
        except StoppedError:
            ledger.commitments.record_report(
                report.id, CommitmentState.DUE, "", ledger.unix_ms(), ledger.unix_ms()
            )
            return False
        except _UnreachableError as error:
            fault, is_reached = str(error), False
        now = ledger.unix_ms()
        if not fault:
            ledger.commitments.record_report(report.id, CommitmentState.REPORTED, "", 0, now)
            log.info(
                "commitment_reported",
                destination=self._destination.name,
                transaction=report.transaction_uid,
            )
            return True
        state, next_at = (
            CommitmentState.DUE,
            now + backoff_ms(report.attempts, self._policy, self._resources.rng),
        )
        if now - report.requested_at >= self._give_up_ms:
            state, next_at = CommitmentState.FAILED, 0
        ledger.commitments.record_report(report.id, state, fault, next_at, now)
        if not is_reached:
            pause_ms = backoff_ms(report.attempts, self._policy, self._resources.rng)
            ledger.commitments.postpone_reports(self._destination.name, now + pause_ms, now)
        log.warning(
            "commitment_not_reported",
            destination=self._destination.name,
            transaction=report.transaction_uid,
            attempt=report.attempts,
            error=fault,
        )
        return False

    def _try_to_send(self, ledger: Ledger, report: Commitment) -> str:
        """Send a report over a new association. Returns why it was not taken; empty if it was.

        Raises:
            _UnreachableError: No association was established.
            StoppedError: The worker was asked to stop.
        """
        # PS3.4 J.3.3: the report comes from the AE that was asked.
        remote = replace(self._remote, calling_ae=report.called_ae or self._remote.calling_ae)
        outcomes = ledger.commitments.read_outcomes(report.id)
        timeouts = Timeouts(self._destination.connect_seconds, self._destination.response_seconds)

        def check_stop() -> None:
            if self._resources.is_stopping():
                raise StoppedError

        try:
            opened = CommitmentSCP.open(remote, PROPOSALS, timeouts=timeouts, roles=ROLES, on_tick=check_stop)
        except AssociationError as error:
            raise _UnreachableError(str(error)) from error
        try:
            with opened as association:
                response = association.send_report(report.transaction_uid, outcomes)
        except (AssociationError, LookupError) as error:
            return str(error)
        if response.category is Category.FAILURE:
            return f"the remote answered {response.status:04X}H"
        return ""
