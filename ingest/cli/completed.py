"""`ingest completed`: list the studies and series that were received completely."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ingest.cli import _options as options
from ingest.cli._base import config_option, load_config
from ingest.cli._tables import ListLayout, format_local_time, print_list

if TYPE_CHECKING:
    from ingest.ledger.receptions import CompletionEvent


@click.command()
@config_option
@options.study_option
@options.limit_option
@options.before_option
@options.list_format_options
def completed(
    path: Path, study_uid: str | None, limit: int, before: int | None, list_format: str | None
) -> None:
    """List the completions of studies and series, the newest first.

    \b
    ingest completed -c ingest.toml
    ingest completed -c ingest.toml --study 1.2.840.1 --json

    A study is complete when nothing of it came for a while. An instance that comes afterwards reopens it:
    that is an event too, and the next completion has the next generation. Completion is judged if a route
    has on = "series" or "study", or with [node] record_completions.
    """
    from ingest.operations.completions import list_completions

    found = list_completions(load_config(path), limit, study_uid, before)
    more = f"--before {found[-1].id}, or --limit" if len(found) == limit else ""
    print_list(found, list_format, make_completion_layout(), more=more)


def make_completion_layout() -> "ListLayout[CompletionEvent]":
    """Return the layout of `ingest completed`."""
    from ingest.operations.completions import COMPLETION_FIELDS, completion_to_json

    return ListLayout(
        fields=COMPLETION_FIELDS,
        to_record=completion_to_json,
        columns=("id", "event", "at", "generation", "instances", "last stored", "study", "series"),
        to_cells=lambda one: (
            str(one.id),
            one.event,
            format_local_time(one.at),
            str(one.generation),
            str(one.instances),
            format_local_time(one.last_at),
            one.study_uid,
            one.series_uid,
        ),
    )
