"""The command that sends what is stored to a destination."""

# ruff: noqa: PLC0415 - as in ingest.cli: --help starts fast

from pathlib import Path
from typing import Any

import click

from ingest.cli._base import config_option, load_config
from ingest.cli.deliveries import dry_run_option
from ingest.cli.instances import which_option


@click.command()
@config_option
@click.option(
    "--to", "to", metavar="NAME", multiple=True, required=True, help="To this destination; repeatable."
)
@which_option
@click.option("--all", "everything", is_flag=True, help="Everything that is stored.")
@click.option("--again", is_flag=True, help="Also what was delivered there.")
@dry_run_option
@click.option("--json", "as_json", is_flag=True, help="One object a destination.")
def deliver(
    *,
    path: Path,
    to: tuple[str, ...],
    everything: bool,
    again: bool,
    dry_run: bool,
    as_json: bool,
    **which: Any,
) -> None:
    """Deliver what is stored, whenever it came.

    For images that came before their route did:

    ingest deliver -c ingest.toml --to pacs --all

    For a destination that has lost a study:

    ingest deliver -c ingest.toml --to pacs --study 1.2.3 --again

    Routes are not asked, and what is already to be delivered stays as it is. Dead deliveries are left to
    `ingest retry`. Interrupted, the same command again does what is left.
    """
    if not everything and all(value is None for value in which.values()):
        raise click.UsageError("say which: --study, --calling, --since, …, or --all")
    from ingest.cli._deliver import deliver as make
    from ingest.ledger.index import InstanceFilter

    code = make(load_config(path), to, InstanceFilter(**which), again=again, dry_run=dry_run, as_json=as_json)
    click.get_current_context().exit(code)
