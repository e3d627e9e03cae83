"""Commands that list studies and instances."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ingest.cli import _options as options
from ingest.cli._base import config_option, load_config
from ingest.cli._tables import format_local_time, print_json_lines, print_line, print_table

if TYPE_CHECKING:
    from ingest.ledger.index import FoundInstance, FoundStudy


@click.command()
@config_option
@options.study_option
@options.calling_option
@options.since_option
@options.until_option
@click.option("--stable/--unstable", default=None, help="Only stable studies, or only unstable ones.")
@options.limit_option
@options.json_lines_option
def studies(path: Path, stable: bool | None, limit: int, as_json: bool, **which: Any) -> None:
    """List studies, the one with the newest instance first.

    \b
    ingest studies -c ingest.toml --since 1d --unstable

    --calling, --since and --until select studies with such an instance; the numbers are those of the whole
    study. A study is stable after [node] stable_seconds without a new instance.
    """
    from ingest.operations.instances import list_studies, study_to_json

    found = list_studies(load_config(path), options.make_instance_filter(which), limit, stable=stable)
    if as_json:
        print_json_lines(map(study_to_json, found))
        return
    _print_studies(found)
    if len(found) == limit:
        print_line("more: --limit, or --until")


@click.command()
@config_option
@options.study_option
@options.series_option
@options.sop_option
@click.option(
    "--state",
    "states",
    type=click.Choice(options.INSTANCE_STATES),
    multiple=True,
    help="State; repeatable.",
)
@options.calling_option
@options.since_option
@options.until_option
@options.limit_option
@options.before_option
@options.json_lines_option
def instances(path: Path, limit: int, before: int | None, as_json: bool, **which: Any) -> None:
    """List instances, the newest first.

    \b
    ingest instances -c ingest.toml --study 1.2.840.1
    ingest instances -c ingest.toml --since 2h --json
    """
    from ingest.operations.instances import instance_to_json, list_instances

    found = list_instances(load_config(path), options.make_instance_filter(which), limit, before)
    if as_json:
        print_json_lines(map(instance_to_json, found))
        return
    _print_instances(found)
    if len(found) == limit:
        print_line(f"more: --before {found[-1].instance.id}, or --limit")


def _print_instances(found: "Sequence[FoundInstance]") -> None:
    from rich.filesize import decimal

    columns = (
        *("id", "state", "SOP instance", "study", "size", "received", "from", "routed", "deliveries"),
        "note",
    )
    rows = [
        (
            str(one.instance.id),
            one.instance.state.value,
            one.instance.sop_instance_uid,
            one.instance.study_uid,
            decimal(one.instance.size),
            format_local_time(one.instance.received_at),
            one.instance.calling_ae,
            one.instance.routed,
            ", ".join(f"{name} {state.value}" for name, state in one.deliveries.items()),
            one.instance.note,
        )
        for one in found
    ]
    print_table(columns, rows)


def _print_studies(found: "Sequence[FoundStudy]") -> None:
    from rich.filesize import decimal

    columns = ("study", "stored", "others", "size", "first received", "last received", "stable", "deliveries")
    rows = [
        (
            one.study_uid or "(none)",
            str(one.instances),
            _format_other_states(one),
            decimal(one.size),
            format_local_time(one.first_at),
            format_local_time(one.last_at),
            "yes" if one.stable else "no",
            _format_state_counts(one.deliveries),
        )
        for one in found
    ]
    print_table(columns, rows)


def _format_other_states(study: "FoundStudy") -> str:
    """Write the numbers of copies and of instances that are not stored."""
    from ingest.ledger import InstanceState

    others = {state: count for state, count in study.states.items() if state is not InstanceState.STORED}
    copies = f"copies {study.copies}" if study.copies else ""
    return ", ".join(filter(None, (copies, _format_state_counts(others))))


def _format_state_counts(counts: Mapping[Any, int]) -> str:
    return ", ".join(f"{state.value} {count}" for state, count in sorted(counts.items()))
