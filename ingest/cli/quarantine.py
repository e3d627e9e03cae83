"""Commands about the quarantine: list, compare, release, retry, drop."""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ingest.cli import _options as options
from ingest.cli._base import FAILED, CommandGroup, config_option, exit_with, load_config
from ingest.cli._tables import (
    ListLayout,
    format_count,
    format_local_time,
    print_line,
    print_list,
    print_note,
    print_table,
)
from ingest.cli._user import load_config_as_owner

if TYPE_CHECKING:
    from ingest.config.model import Config
    from ingest.ledger import Instance

COMMANDS: Final = "ingest.workers.quarantine.command"
"""Named as text: the command line does not import workers."""

_ids_argument = click.argument("ids", metavar="ID…", nargs=-1, required=True, type=click.IntRange(1))


@click.group(cls=CommandGroup)
def quarantine() -> None:
    """Decide about instances that conflict, failed or were refused."""


@quarantine.command("list")
@config_option
@options.instance_filter_options
@options.limit_option
@options.before_option
@options.list_format_options
def list_(path: Path, limit: int, before: int | None, list_format: str | None, **which: Any) -> None:
    """List the quarantine, the newest instance first.

    A conflict is a different object with the SOP Instance UID of a stored one. The sender of a refused
    instance got a failure status, and the quarantine has a copy.
    """
    from ingest.operations.instances import list_instances

    config = load_config(path)
    meant = options.make_instance_filter({**which, "states": ("quarantined",)})
    found = [one.instance for one in list_instances(config, meant, limit, before)]
    more = f"--before {found[-1].id}, or --limit" if len(found) == limit else ""
    print_list(found, list_format, make_quarantine_layout(config.quarantine_dir), more=more)


@quarantine.command()
@config_option
@click.argument("number", metavar="ID", type=click.IntRange(1))
@options.json_option
def compare(path: Path, number: int, as_json: bool) -> None:
    """Compare a quarantined instance with the stored one.

    \b
    ingest quarantine compare -c ingest.toml 17

    Attributes that differ are shown side by side, long values by size and digest. The output holds patient
    data.
    """
    from ingest.operations.comparison import compare_quarantined

    found = compare_quarantined(load_config(path), number)
    if as_json:
        print_line(json.dumps(found.to_json()))
        return
    print_line(f"{found.quarantined.id}: {found.kind}: {found.reason}")
    stored = f"stored: instance {found.stored.id}" if found.stored else "nothing is stored"
    print_line(f"SOP instance {found.quarantined.sop_instance_uid}; {stored}")
    if found.fault:
        print_line(f"not compared: {found.fault}")
    elif not found.differences:
        print_line("no attribute differs")
    else:
        rows = [
            (each.path, each.keyword, each.vr, _show_value(each.quarantined), _show_value(each.stored))
            for each in found.differences
        ]
        print_table(("tag", "attribute", "VR", "quarantined", "stored"), rows)
        if not found.is_complete:
            print_line(f"only the first {len(rows)} differences are shown")


def _show_value(value: str | None) -> str:
    return "(absent)" if value is None else value or "(empty)"


@quarantine.command()
@config_option
@_ids_argument
def release(path: Path, ids: tuple[int, ...]) -> None:
    """Store quarantined instances in place of the stored ones.

    \b
    ingest quarantine release -c ingest.toml 17

    The instance that is stored under the same SOP Instance UID goes into quarantine instead. The released one
    is routed and delivered like a new instance. Exits with 1 if an id is unknown or cannot be released.
    """
    _apply("release_instances", load_config_as_owner(path), ids)


@quarantine.command()
@config_option
@click.argument("ids", metavar="[ID…]", nargs=-1, type=click.IntRange(1))
@click.option("--all", "everything", is_flag=True, help="Every acknowledged instance in quarantine.")
def retry(path: Path, ids: tuple[int, ...], everything: bool) -> None:
    """Store acknowledged instances that could not be stored before.

    \b
    ingest quarantine retry -c ingest.toml --all

    First fix the cause. Each instance is then stored, routed and delivered like a new one. It never replaces
    another instance: `release` does. Exits with 1 if an id is unknown, was refused, or still cannot be
    stored.
    """
    if bool(ids) == everything:
        raise click.UsageError("say which: ID…, or --all")
    _apply("retry_instances", load_config_as_owner(path), ids)


@quarantine.command()
@config_option
@_ids_argument
@options.yes_option
def drop(path: Path, ids: tuple[int, ...], yes: bool) -> None:
    """Remove quarantined files for good.

    The rows stay in the ledger, as removed. Exits with 1 if an id is unknown or not in quarantine.
    """
    from ingest.operations.instances import count_quarantined

    config = load_config_as_owner(path)
    count = 0 if yes else count_quarantined(config, ids)
    if count:
        files = format_count(count, "quarantined file")
        click.confirm(f"Remove {files} for good?", abort=True)
    _apply("drop_instances", config, ids)


def _apply(function: str, config: "Config", ids: Sequence[int]) -> None:
    """Apply a decision, print each result as soon as it is known, and exit with 1 if one failed."""
    applied = getattr(importlib.import_module(COMMANDS), function)(config, ids, _print_result)
    if applied.queue_error:
        print_note(
            f"the queue is away ({applied.queue_error}); workers find them by themselves within seconds"
        )
    exit_with(FAILED if applied.failures else 0)


def _print_result(result: Any) -> None:
    to = ", ".join(result.destinations) or "no destination"
    match result.outcome:
        case "failed":
            print_note(result.error)
        case "removed":
            print_line(f"{result.id}: stored already; gone")
        case "dropped":
            print_line(f"{result.id}: dropped")
        case _:
            print_line(f"{result.id}: {result.outcome}; to {to}")


def make_quarantine_layout(folder: Path) -> "ListLayout[Instance]":
    """Return the layouts of `ingest quarantine list`; `folder` is that of the quarantine."""
    from rich.filesize import decimal

    from ingest.operations.instances import QUARANTINE_FIELDS, name_quarantine_kind, quarantined_to_json

    def to_cells(row: "Instance") -> tuple[str, ...]:
        return (
            str(row.id),
            name_quarantine_kind(row),
            str(row.times),
            row.sop_instance_uid,
            row.study_uid,
            row.note,
            decimal(row.size),
            format_local_time(row.received_at),
            row.store_key,
        )

    return ListLayout(
        fields=QUARANTINE_FIELDS,
        to_record=lambda row: quarantined_to_json(row, folder),
        columns=("id", "kind", "times", "SOP instance", "study", "reason", "size", "received", "file"),
        to_cells=to_cells,
    )
