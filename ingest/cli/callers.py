"""Commands about callers: callers with their certificates, and refusals with their causes."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ingest.cli import _options as options
from ingest.cli._base import config_option, load_config
from ingest.cli._tables import (
    ListLayout,
    find_width,
    format_local_time,
    print_line,
    print_list,
    print_table,
    wrap_words,
)

if TYPE_CHECKING:
    from ingest.operations.callers import Caller, RefusalGroup


@click.command()
@config_option
@options.list_format_options
def callers(path: Path, list_format: str | None) -> None:
    """List who calls this node, the last caller first.

    \b
    ingest callers -c ingest.toml
    ingest callers -c ingest.toml --csv

    A row is an AE title from one address (IPv6: from one /64) with one certificate, or without any.
    """
    from ingest.operations.callers import list_callers

    print_list(list_callers(load_config(path)), list_format, make_caller_layout())


@click.command()
@config_option
@options.list_format_options
def refusals(path: Path, list_format: str | None) -> None:
    """List who was refused, by cause with its remedy.

    \b
    ingest refusals -c ingest.toml
    ingest refusals -c ingest.toml --json

    The causes with the last refusals come first. Counts of one cause and caller are added up.
    """
    from ingest.operations.callers import list_refusals

    found = list_refusals(load_config(path))
    if list_format is None:
        _print_refusals(found)
    else:
        print_list(found, list_format, make_refusal_layout())


def make_caller_layout() -> "ListLayout[Caller]":
    """Return the layout of `ingest callers`."""
    from ingest.operations.callers import CALLER_FIELDS

    return ListLayout(
        fields=CALLER_FIELDS,
        to_record=lambda caller: caller.to_json(),
        columns=("caller", "address", "certificate", "ends", "associations", "refusals", "last", "sha256"),
        to_cells=lambda caller: (
            caller.calling_ae,
            caller.network,
            caller.subject,
            format_local_time(caller.not_after_ms),
            str(caller.associations),
            str(caller.refusals),
            format_local_time(caller.last_ms),
            caller.fingerprint,
        ),
    )


def make_refusal_layout() -> "ListLayout[RefusalGroup]":
    """Return the layout of `ingest refusals`."""
    from ingest.operations.callers import REFUSAL_FIELDS

    return ListLayout(
        fields=REFUSAL_FIELDS,
        to_record=lambda group: group.to_json(),
        columns=("cause", "count", "last", "remedy", "callers"),
        to_cells=lambda group: (
            group.refusal.text,
            str(group.count),
            format_local_time(group.last_ms),
            group.refusal.remedy,
            ", ".join(filter(None, {each.calling_ae or each.network: None for each in group.callers})),
        ),
    )


def _print_refusals(found: "Sequence[RefusalGroup]") -> None:
    """Print each cause with its remedy, and below it a table of callers."""
    for number, group in enumerate(found):
        if number:
            print_line("")
        print_line(f"{group.refusal.text}: {group.count}")
        for line in wrap_words(f"remedy: {group.refusal.remedy}", find_width()):
            print_line(line)
        print_table(("address", "caller", "count", "last", "certificate", "sha256"), list(_list_rows(group)))


def _list_rows(group: "RefusalGroup") -> "Iterator[Sequence[str]]":
    for each in group.callers:
        yield (
            each.network or "(others)",
            each.calling_ae,
            str(each.count),
            format_local_time(each.last_ms),
            each.subject,
            each.fingerprint,
        )
