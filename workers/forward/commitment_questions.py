"""Requests for storage commitment to destinations, for instances that were delivered to them."""

from typing import Final

import structlog

from ingest.config.model import Destination
from ingest.dicom.commitment import CommitmentRequest
from ingest.dicom.statuses import Category
from ingest.dicom.uids import make_uid
from ingest.errors import AssociationError, StoppedError
from ingest.requestor.association import Timeouts
from ingest.requestor.commitment_association import PROPOSALS
from ingest.requestor.commitment_scu import CommitmentSCU
from ingest.requestor.transport import Remote
from ingest.workers.forward.drain import ForwardResources

INSTANCES_MAX: Final = 1000
"""Instances in one request."""

REFUSED_SECONDS: Final = 60.0
"""Pause after a request that the destination did not take."""

log = structlog.get_logger()


class CommitmentAsker:
    """Asks one destination to commit to instances that were delivered to it."""

    def __init__(self, resources: ForwardResources, destination: Destination, remote: Remote) -> None:
        """Prepare without any I/O.

        Args:
            resources: Resources of the worker.
            destination: Configuration of the destination.
            remote: Acceptor of the association.
        """
        self._resources = resources
        self._destination = destination
        self._remote = remote

    def ask_for_delivered(self) -> None:
        """Send requests until nothing is left to ask, one fails, or the worker has to stop.

        Raises:
            LedgerError: The ledger is away. Instances of an open request are asked for again after its time.
        """
        ledger, name = self._resources.ledger, self._destination.name
        groups = [terms.name for terms in self._resources.groups.get(name, ())]
        while not self._resources.is_stopping():
            now = ledger.unix_ms()
            if ledger.circuits.read_circuit(name).is_left_alone(now):
                return
            deadline = now + round(self._destination.commitment_seconds * 1000)
            begun = ledger.commitment_requests.begin_request(
                name, make_uid(), INSTANCES_MAX, deadline, now, groups
            )
            if begun is None:
                return
            number, request = begun
            fault = self._try_to_ask(request)
            if fault:
                now = ledger.unix_ms()
                next_at = now + round(REFUSED_SECONDS * 1000)
                ledger.commitment_requests.record_refusal(name, number, fault, next_at, now, groups)
                log.warning("commitment_not_asked", destination=name, error=fault)
                return
            log.info("commitment_asked", destination=name, instances=len(request.references))

    def _try_to_ask(self, request: CommitmentRequest) -> str:
        """Send a request over a new association. Returns why it was not taken; empty if it was."""

        def check_stop() -> None:
            if self._resources.is_stopping():
                raise StoppedError

        timeouts = Timeouts(self._destination.connect_seconds, self._destination.response_seconds)
        try:
            with CommitmentSCU.open(
                self._remote, PROPOSALS, timeouts=timeouts, on_tick=check_stop
            ) as association:
                response = association.ask(request)
        except (AssociationError, LookupError) as error:
            return str(error)
        except StoppedError:
            return "the worker was asked to stop"
        if response.category is Category.FAILURE:
            return f"the remote answered {response.status:04X}H"
        return ""
