"""Commands about what leaves the store."""

import importlib
from pathlib import Path
from typing import Final

import click

from ingest.cli._base import config_option, load_config

RETENTION: Final = "ingest.workers.retention.command"
"""Named and not imported: what workers do is theirs."""


@click.command()
@config_option
@click.option("--dry-run", is_flag=True, help="Change nothing; say what would go, and why.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option(
    "--accept-clock", is_flag=True, help="The clock of this machine is right, though it jumped ahead."
)
def retention(path: Path, dry_run: bool, as_json: bool, accept_clock: bool) -> None:
    """Remove from the store what [retention] says, once.

    A running node does so by itself. Exits with 1 when another process is removing, or when the clock of this
    machine has jumped ahead.
    """
    run = importlib.import_module(RETENTION).run_retention
    code = run(load_config(path), dry_run=dry_run, as_json=as_json, accept_clock=accept_clock)
    click.get_current_context().exit(code)
