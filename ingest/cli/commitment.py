"""Commands about storage commitment."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ingest.cli import _options as options
from ingest.cli._base import CommandGroup, config_option, load_config
from ingest.cli._tables import ListLayout, format_local_time, print_list

if TYPE_CHECKING:
    from ingest.ledger.commitment_requests import SentCommitment
    from ingest.ledger.commitments import Commitment


@click.group(cls=CommandGroup)
def commitment() -> None:
    """List requests for storage commitment."""


@commitment.command("list")
@config_option
@click.option("--state", type=click.Choice(options.COMMITMENT_STATES), help="Only requests in this state.")
@options.limit_option
@options.list_format_options
def list_(path: Path, state: str | None, limit: int, list_format: str | None) -> None:
    """List the requests of callers, the newest first.

    \b
    ingest commitment list -c ingest.toml
    ingest commitment list -c ingest.toml --state due
    """
    from ingest.operations.commitment import list_commitments

    print_list(list_commitments(load_config(path), limit, state), list_format, make_commitment_layout())


@commitment.command()
@config_option
@options.limit_option
@options.list_format_options
def sent(path: Path, limit: int, list_format: str | None) -> None:
    """List the requests of this node to its destinations, the newest first.

    \b
    ingest commitment sent -c ingest.toml
    """
    from ingest.operations.commitment import list_sent_commitments

    print_list(list_sent_commitments(load_config(path), limit), list_format, make_sent_layout())


def make_sent_layout() -> "ListLayout[SentCommitment]":
    """Return the layout of `ingest commitment sent`."""
    from ingest.operations.commitment import SENT_FIELDS, sent_commitment_to_json

    return ListLayout(
        fields=SENT_FIELDS,
        to_record=sent_commitment_to_json,
        columns=("destination", "state", "instances", "failed", "asked", "error", "transaction"),
        to_cells=lambda one: (
            one.destination,
            one.state.value,
            str(one.instances),
            str(one.failures),
            format_local_time(one.asked_at),
            one.last_error,
            one.transaction_uid,
        ),
    )


def make_commitment_layout() -> "ListLayout[Commitment]":
    """Return the layout of `ingest commitment list`."""
    from ingest.operations.commitment import COMMITMENT_FIELDS, commitment_to_json

    return ListLayout(
        fields=COMMITMENT_FIELDS,
        to_record=commitment_to_json,
        columns=("caller", "state", "instances", "failed", "requested", "report to", "error", "transaction"),
        to_cells=lambda one: (
            one.calling_ae,
            one.state.value,
            str(one.references),
            str(one.failures),
            format_local_time(one.requested_at),
            one.destination,
            one.last_error,
            one.transaction_uid,
        ),
    )
