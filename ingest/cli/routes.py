"""`ingest routes test`: evaluate the routes for files."""

import importlib
from pathlib import Path
from typing import Final

import click

from ingest.cli import _options as options
from ingest.cli._base import CommandGroup, config_option, exit_with, load_config

ROUTE_TEST: Final = "ingest.workers.route_test"
"""Named as text: the command line does not import workers."""


@click.group(cls=CommandGroup)
def routes() -> None:
    """Test routes."""


@routes.command()
@config_option
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--calling", metavar="AE", help="Assume this AE title of the sender.")
@click.option("--called", metavar="AE", help="Assume this called AE title.")
@click.option("--source", metavar="ADDRESS", help="Assume this IP address of the sender.")
@options.json_option
def test(
    *,
    path: Path,
    files: tuple[Path, ...],
    calling: str | None,
    called: str | None,
    source: str | None,
    as_json: bool,
) -> None:
    """Show which routes take FILES and folders, and why.

    \b
    ingest routes test -c ingest.toml image.dcm --calling CT1

    Prints the values that the conditions compare, and destinations that are left out because the file came
    from them. Nothing is stored or sent. Exits with 1 if a file cannot be read.
    """
    route_test = importlib.import_module(ROUTE_TEST)
    explained = route_test.explain_routes(load_config(path), files, calling, called, source)
    exit_with(route_test.print_explanations(explained, as_json=as_json))
