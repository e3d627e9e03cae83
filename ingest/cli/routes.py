"""`ingest routes test`: evaluate the routes for files."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ingest.cli import _options as options
from ingest.cli._base import FAILED, CommandGroup, config_option, exit_with, load_config

if TYPE_CHECKING:
    from ingest.operations.routes import DestinationChanges, RouteExplanation
    from ingest.routing.router import RoutingDecision


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
    from them. For a destination that changes attributes it prints the values before (-) and after (+), for
    one with `transcode` the transfer syntaxes that it is offered. The first one that it accepts is used.
    Nothing is stored or sent. Exits with 1 if a file cannot be read.
    """
    from ingest.operations.routes import explain_routes

    explained = explain_routes(load_config(path), files, calling, called, source)
    _print_explanations(explained, as_json=as_json)
    exit_with(FAILED if any(each.routing is None for each in explained) else 0)


def _print_explanations(explained: "list[RouteExplanation]", *, as_json: bool) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    if as_json:
        console.print_json(json.dumps([each.to_json() for each in explained]))
        return
    for each in explained:
        console.print("\n".join(_format_lines(each)))


def _format_lines(explanation: "RouteExplanation") -> Iterator[str]:
    from rich.markup import escape

    path, routing = escape(str(explanation.path)), explanation.routing
    if routing is None:
        yield f"[red]{path}[/red]: {escape(explanation.error)}"
        return
    to = ", ".join(routing.destinations) or "nowhere"
    yield f"[bold]{path}[/bold] → {escape(to)}"
    for result in routing.results:
        yield f"  {'[green]took[/green]  ' if result.is_match else 'passed'} {escape(result.route)}"
        for condition, values, holds in result.conditions:
            found = ", ".join(values) or "nothing"
            yield f"         {escape(condition.key)}: {escape(found)} {'holds' if holds else 'does not hold'}"
    for group in explanation.groups:
        yield f"  {escape(group.group)}: {escape(group.text)}"
    yield from _format_terms(routing)
    yield from (f"  {escape(name)}: only in the hours {escape(each)}" for name, each in routing.hours.items())
    if routing.held:
        yield f"  [yellow]held for {escape(', '.join(sorted(routing.held)))}[/yellow]: a person releases it"
    for remark in routing.exclusions:
        yield f"  [yellow]{escape(remark)}[/yellow]: it came from there; return = true in the route sends it"
    yield from _format_sent(explanation)


def _format_sent(explanation: "RouteExplanation") -> Iterator[str]:
    """Write what destinations get that is not as it is stored."""
    from rich.markup import escape

    for offer in explanation.offers:
        yield f"  offered to {escape(offer.destination)}: {', or '.join(offer.transfer_syntaxes)}"
    for change in explanation.changes:
        yield from _format_changes(change)


def _format_terms(routing: "RoutingDecision") -> Iterator[str]:
    """Write how the deliveries begin that do not begin as plain ones."""
    from rich.markup import escape

    from ingest.dicom.priority import MEDIUM, decide_priority

    for name in routing.destinations:
        if name in routing.priorities:
            priority = decide_priority(routing.priorities[name], MEDIUM).word
            yield f"  {escape(name)}: {priority}, whatever its sender asked for"
        if name in routing.awaited and name not in routing.held:
            yield f"  {escape(name)}: waits until its {routing.awaited[name]} is complete"


def _format_changes(changed: "DestinationChanges") -> Iterator[str]:
    """Write the changes for one destination as a diff."""
    from rich.markup import escape

    name = escape(changed.destination)
    if changed.error:
        yield f"  [red]not sent to {name}[/red]: {escape(changed.error)}"
        return
    yield f"  changed for {name}:" if changed.changes else f"  sent to {name} without a change"
    for change in changed.changes:
        if change.before is not None:
            yield f"[red]       - {change.attribute}: {escape(change.before)}[/red]"
        if change.after is not None:
            yield f"[green]       + {change.attribute}: {escape(change.after)}[/green]"
