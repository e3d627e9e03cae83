"""Commands that list studies and instances."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ingest.cli import _options as options
from ingest.cli._base import config_option, load_config
from ingest.cli._tables import ListLayout, format_local_time, print_list

if TYPE_CHECKING:
    from ingest.ledger.instance_lists import FoundInstance
    from ingest.ledger.study_lists import FoundStudy


@click.command()
@config_option
@options.study_filter_options
@options.study_option
@options.calling_option
@options.destination_option
@options.any_state_option
@options.since_option
@options.until_option
@click.option("--stable/--unstable", default=None, help="Only stable studies, or only unstable ones.")
@options.limit_option
@options.list_format_options
def studies(path: Path, stable: bool | None, limit: int, list_format: str | None, **which: Any) -> None:
    """List studies, the one with the newest instance first.

    \b
    ingest studies -c ingest.toml --since 1d --unstable
    ingest studies -c ingest.toml --accession 'A2026*' --date 2026-01-01..2026-01-31 --modality CT

    Each option selects studies with such an instance; the numbers are those of the whole study. The index has
    what [ledger] index allows, of patient and study the values of the newest instance. A study is stable
    after [node] stable_seconds without a new instance.
    """
    from ingest.operations.instances import list_studies

    found = list_studies(load_config(path), options.make_instance_filter(which), limit, stable=stable)
    print_list(
        found, list_format, make_study_layout(), more="--limit, or --until" if len(found) == limit else ""
    )


@click.command()
@config_option
@options.instance_filter_options
@options.destination_option
@options.any_state_option
@options.limit_option
@options.before_option
@options.list_format_options
def instances(path: Path, limit: int, before: int | None, list_format: str | None, **which: Any) -> None:
    """List instances, the newest first.

    \b
    ingest instances -c ingest.toml --study 1.2.840.1
    ingest instances -c ingest.toml --since 2h --json
    """
    from ingest.operations.instances import list_instances

    found = list_instances(load_config(path), options.make_instance_filter(which), limit, before)
    more = f"--before {found[-1].instance.id}, or --limit" if len(found) == limit else ""
    print_list(found, list_format, make_instance_layout(), more=more)


def make_instance_layout() -> "ListLayout[FoundInstance]":
    """Return the layouts of `ingest instances`."""
    from rich.filesize import decimal

    from ingest.operations.instances import INSTANCE_FIELDS, instance_to_json

    def to_cells(one: "FoundInstance") -> tuple[str, ...]:
        return (
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

    return ListLayout(
        fields=INSTANCE_FIELDS,
        to_record=instance_to_json,
        columns=(
            *("id", "state", "SOP instance", "study", "size", "received", "from", "routed", "deliveries"),
            "note",
        ),
        to_cells=to_cells,
    )


def make_study_layout() -> "ListLayout[FoundStudy]":
    """Return the layouts of `ingest studies`."""
    from rich.filesize import decimal

    from ingest.operations.instances import STUDY_FIELDS, study_to_json

    def to_cells(one: "FoundStudy") -> tuple[str, ...]:
        return (
            one.study_uid or "(none)",
            one.patient_id,
            one.patient_name,
            one.accession_number,
            one.study_date,
            ", ".join(one.modalities),
            one.study_description,
            str(one.instances),
            _format_other_states(one),
            decimal(one.size),
            format_local_time(one.first_at),
            format_local_time(one.last_at),
            "yes" if one.stable else "no",
            _format_state_counts(one.deliveries),
        )

    return ListLayout(
        fields=STUDY_FIELDS,
        to_record=study_to_json,
        columns=(
            *("study", "patient ID", "patient", "accession", "date", "modality", "description"),
            *("stored", "others", "size", "first received", "last received", "stable"),
            "deliveries",
        ),
        to_cells=to_cells,
    )


def _format_other_states(study: "FoundStudy") -> str:
    """Write the numbers of copies and of instances that are not stored."""
    from ingest.ledger import InstanceState

    others = {state: count for state, count in study.states.items() if state is not InstanceState.STORED}
    copies = f"copies {study.copies}" if study.copies else ""
    return ", ".join(filter(None, (copies, _format_state_counts(others))))


def _format_state_counts(counts: Mapping[Any, int]) -> str:
    return ", ".join(f"{state.value} {count}" for state, count in sorted(counts.items()))
