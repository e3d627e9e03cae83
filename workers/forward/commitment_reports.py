"""Reports of storage commitment to the destinations of their requestors, from the ledger.

A report is at least once: a worker that dies after sending it leaves the report due. A requestor knows a
report by its Transaction UID.
"""

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
from ingest.workers.forward.drain import ForwardResources
from ingest.workers.forward.retry_policy import RetryPolicy, backoff_ms

LEASE_MS: Final = 300_000
"""Longer than connecting, sending a report and waiting for its response."""

log = structlog.get_logger()


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
            give_up_ms: Age of a request at which its report is given up.
        """
        self._resources = resources
        self._destination = destination
        self._remote = remote
        self._give_up_ms = give_up_ms
        self._policy = RetryPolicy.from_destination(destination)

    def send_due_reports(self) -> None:
        """Send reports until none is due, one fails, or the worker has to stop.

        Raises:
            LedgerError: The ledger is away. Leases end by themselves.
        """
        ledger = self._resources.ledger
        name = self._destination.name
        while not self._resources.is_stopping():
            if ledger.circuits.read_circuit(name).is_left_alone(ledger.unix_ms()):
                return
            report = ledger.commitments.lease_report(name, ledger.unix_ms(), LEASE_MS)
            if report is None or not self._send(ledger, report):
                return

    def _send(self, ledger: Ledger, report: Commitment) -> bool:
        fault = self._try_to_send(ledger, report)
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
        log.warning(
            "commitment_not_reported",
            destination=self._destination.name,
            transaction=report.transaction_uid,
            attempt=report.attempts,
            error=fault,
        )
        return False

    def _try_to_send(self, ledger: Ledger, report: Commitment) -> str:
        """Send a report over a new association. Returns why it was not taken; empty if it was."""
        # PS3.4 J.3.3: the report comes from the AE that was asked.
        remote = replace(self._remote, calling_ae=report.called_ae or self._remote.calling_ae)
        outcomes = ledger.commitments.read_outcomes(report.id)
        timeouts = Timeouts(self._destination.connect_seconds, self._destination.response_seconds)

        def check_stop() -> None:
            if self._resources.is_stopping():
                raise StoppedError

        try:
            with CommitmentSCP.open(
                remote, PROPOSALS, timeouts=timeouts, roles=ROLES, on_tick=check_stop
            ) as association:
                response = association.send_report(report.transaction_uid, outcomes)
        except (AssociationError, LookupError) as error:
            return str(error)
        except StoppedError:
            return "the worker was asked to stop"
        if response.category is Category.FAILURE:
            return f"the remote answered {response.status:04X}H"
        return ""
