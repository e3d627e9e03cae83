"""Requests for storage commitment, received and sent, for lists of the command line and the API."""

import contextlib
from typing import Any, Final

from ingest.config.model import Config
from ingest.ledger import Ledger
from ingest.ledger.commitment_requests import SentCommitment
from ingest.ledger.commitments import Commitment, CommitmentState
from ingest.operations.times import format_iso_time

COMMITMENT_FIELDS: Final = (
    *("transaction_uid", "calling_ae", "called_ae", "destination", "state", "references", "failures"),
    *("attempts", "error", "requested_at", "next_at", "updated_at"),
)
"""Fields of the list in JSON and CSV; docs/reference/lists.md describes them."""


def list_commitments(config: Config, limit: int = 100, state: str | None = None) -> list[Commitment]:
    """Return requests for storage commitment, the newest first.

    Args:
        config: The configuration.
        limit: Maximum number of requests.
        state: Only requests in this state; None for all.

    Raises:
        LedgerError: The ledger is unavailable.
    """
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        ledger.require_schema()
        return ledger.commitments.list_requests(limit, CommitmentState(state) if state else None)


SENT_FIELDS: Final = (
    *("transaction_uid", "destination", "state", "instances", "failures", "error"),
    *("asked_at", "updated_at"),
)
"""Fields of the list of requests to destinations."""


def list_sent_commitments(config: Config, limit: int = 100) -> list[SentCommitment]:
    """Return the requests of this node to its destinations, the newest first.

    Raises:
        LedgerError: The ledger is unavailable.
    """
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        ledger.require_schema()
        return ledger.commitment_requests.list_requests(limit)


def sent_commitment_to_json(one: SentCommitment) -> dict[str, Any]:
    """Return a request to a destination as values for JSON."""
    return {
        "transaction_uid": one.transaction_uid,
        "destination": one.destination,
        "state": one.state.value,
        "instances": one.instances,
        "failures": one.failures,
        "error": one.last_error,
        "asked_at": format_iso_time(one.asked_at),
        "updated_at": format_iso_time(one.updated_at),
    }


def commitment_to_json(one: Commitment) -> dict[str, Any]:
    """Return a request as values for JSON."""
    is_open = one.state in {CommitmentState.WAITING, CommitmentState.DUE}
    return {
        "transaction_uid": one.transaction_uid,
        "calling_ae": one.calling_ae,
        "called_ae": one.called_ae,
        "destination": one.destination,
        "state": one.state.value,
        "references": one.references,
        "failures": one.failures,
        "attempts": one.attempts,
        "error": one.last_error,
        "requested_at": format_iso_time(one.requested_at),
        "next_at": format_iso_time(one.next_at) if is_open else None,
        "updated_at": format_iso_time(one.updated_at),
    }
