"""Commands that compare the ledger with the store, and make the rows that are missing."""

import importlib
from pathlib import Path
from typing import Final

import click

from ingest.cli._base import Commands, config_option, load_config

REBUILD: Final = "ingest.workers.ledger_rebuild"
"""Named and not imported: what workers do is theirs."""


@click.group(cls=Commands)
def ledger() -> None:
    """Compare ledger and store.

    Also makes the rows that are missing.
    """


@ledger.command()
@config_option
@click.option("--store", "reads", is_flag=True, help="Also read every file, and compare its UIDs.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def verify(path: Path, *, reads: bool, as_json: bool) -> None:
    """Compare rows and files.

    Says which rows have no file, which files have no row, and what differs in size. Nothing is changed. Exits
    with 1 where something differs.
    """
    code = importlib.import_module(REBUILD).verify_ledger(load_config(path), reads=reads, as_json=as_json)
    click.get_current_context().exit(code)


@ledger.command()
@config_option
@click.option("--no-deliveries", is_flag=True, help="Make rows only, whatever the routes say.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def rebuild(path: Path, *, no_deliveries: bool, as_json: bool) -> None:
    """Make rows that are missing.

    From the files of store and quarantine: for a ledger that was lost, or of which an older backup was
    restored. What the routes say is delivered, so a destination may get again what it had. Rows that are
    there stay as they are. Interrupted, the same command again does what is left. A node may run meanwhile.
    Exits with 1 where a file was left out.
    """
    code = importlib.import_module(REBUILD).rebuild_ledger(
        load_config(path), makes_deliveries=not no_deliveries, as_json=as_json
    )
    click.get_current_context().exit(code)
