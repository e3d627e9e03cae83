"""Commands that compare the ledger with store and quarantine, and that create missing rows."""

import contextlib
import importlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click

from ingest.cli import _options as options
from ingest.cli._base import CommandGroup, config_option, exit_with, load_config
from ingest.cli._tables import print_line
from ingest.cli._user import load_config_as_owner

REBUILD: Final = "ingest.workers.ledger_rebuild"
REINDEX: Final = "ingest.workers.study_reindex"
"""Named as text: the command line does not import workers."""

_DIFFERENCES: Final = {
    "without_row": "files without a row; `ingest ledger rebuild` creates the rows",
    "without_file": "rows without a file; restore the file, or have the instance sent again",
    "of_other_size": "files with another size than in their row",
    "other_objects": "files with another object than in their row",
    "unreadable": "unreadable files",
}


@click.group(cls=CommandGroup)
def ledger() -> None:
    """Compare the ledger with the store, rebuild or reindex it."""


@ledger.command()
@config_option
@click.option("--store", "reads", is_flag=True, help="Also read every file, and compare its UIDs.")
@options.json_option
def verify(path: Path, *, reads: bool, as_json: bool) -> None:
    """Compare the rows of the ledger with the files of the store.

    \b
    ingest ledger verify -c ingest.toml --store

    Prints rows without a file, files without a row, and files with another size than in their row. Nothing is
    changed. Exits with 1 if something differs.
    """
    with _show_progress() as report_progress:
        result = importlib.import_module(REBUILD).verify_ledger(
            load_config(path), reads=reads, report_progress=report_progress
        )
    if as_json:
        print_line(json.dumps(result.to_json()))
    else:
        for line in _format_differences(result):
            print_line(line)
    exit_with(int(result.differs))


@ledger.command()
@config_option
@click.option("--no-deliveries", is_flag=True, help="Create rows only, whatever the routes say.")
@options.json_option
def rebuild(path: Path, *, no_deliveries: bool, as_json: bool) -> None:
    """Create missing rows from the files of store and quarantine.

    \b
    ingest ledger rebuild -c ingest.toml --no-deliveries

    For a ledger that was lost or restored from an older backup. Routes are evaluated, so a destination may
    get an instance again. Existing rows stay as they are, and a node may run meanwhile. If the command is
    interrupted, run it again: it finishes the rest. Exits with 1 if a file was left out.
    """
    with _show_progress() as report_progress:
        result = importlib.import_module(REBUILD).rebuild_ledger(
            load_config_as_owner(path), makes_deliveries=not no_deliveries, report_progress=report_progress
        )
    if as_json:
        print_line(json.dumps(result.to_json()))
    else:
        for line in _format_rebuild(result):
            print_line(line)
    exit_with(int(result.left_out))


@ledger.command()
@config_option
@options.json_option
def reindex(path: Path, *, as_json: bool) -> None:
    """Read studies again whose attributes the index does not have.

    \b
    ingest ledger reindex -c ingest.toml

    These are the studies of an older ledger, and all studies after a change of [ledger] index. Persist
    workers read them too, slowly, while no instance arrives. A node may run meanwhile. If the command is
    interrupted, run it again: it finishes the rest. Exits with 1 if anything is left or unreadable.
    """
    with _show_progress() as report_progress:
        result = importlib.import_module(REINDEX).reindex_studies(load_config_as_owner(path), report_progress)
    if as_json:
        print_line(json.dumps(asdict(result)))
    else:
        print_line(f"{result.studies - result.left} of {result.studies} studies are indexed")
        if result.unreadable:
            remedy = "`ingest ledger verify --store` lists them"
            print_line(f"{result.unreadable} files were gone or could not be read; {remedy}")
        if result.left:
            print_line(f"{result.left} studies are left: another process reads them; run the command again")
    exit_with(int(bool(result.left or result.unreadable)))


@contextlib.contextmanager
def _show_progress() -> Iterator[Callable[[str], None]]:
    """Show progress on standard error, while the context lasts."""
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status("searching") as progress:
        yield lambda text: progress.update(escape(text))


def _format_differences(result: Any) -> Iterator[str]:
    if result.doubt:
        yield result.doubt
    yield f"{result.files} files, {result.rows} rows with a file"
    for kind, text in _DIFFERENCES.items():
        if result.counts[kind]:
            yield f"{result.counts[kind]} {text}"
            yield from (f"  {name}" for name in result.examples[kind])


def _format_rebuild(result: Any) -> Iterator[str]:
    yield f"{result.files} files: {result.known} had a row, {result.new} have one now"
    yield f"{result.deliveries} deliveries were created, as the routes say"
    if result.young:
        yield (
            f"{result.young} files are new, and a worker may be about to record them: run the command again"
        )
    if result.contested:
        yield (
            f"{result.contested} files were left out: another file of their UID has a row, or they are being "
            "removed"
        )
    if result.unreadable:
        yield f"{result.unreadable} files were left out: they cannot be read"
    yield from (f"  {one}" for one in result.examples)
