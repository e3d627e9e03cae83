"""`ingest retention`: one retention run, or its plan."""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ingest.cli import _options as options
from ingest.cli._base import config_option
from ingest.cli._tables import format_count, format_local_time, print_line, print_table
from ingest.cli._user import load_config_as_owner

if TYPE_CHECKING:
    from ingest.config.model import Config

RUNS: Final = "ingest.workers.retention.command"
"""Named as text: the command line does not import workers."""

MAX_STUDIES: Final = 50
"""Number of studies that the command prints."""


@click.command()
@config_option
@click.option("--dry-run", is_flag=True, help="Change nothing; print what would be removed, and why.")
@options.json_option
@click.option(
    "--accept-clock", is_flag=True, help="Accept the clock of this machine, although it jumped ahead."
)
def retention(path: Path, dry_run: bool, as_json: bool, accept_clock: bool) -> None:
    """Remove instances and rows as [retention] demands, once.

    \b
    ingest retention -c ingest.toml --dry-run

    A running node does this by itself. Exits with 1 if another process is removing, or if the clock of this
    machine has jumped ahead.
    """
    config, runs = load_config_as_owner(path), importlib.import_module(RUNS)
    if dry_run:
        plan = runs.plan_retention(config)
        if as_json:
            print_line(json.dumps(plan.to_json()))
        else:
            _print_plan(config, plan)
        return
    run = runs.run_retention(config, accept_clock=accept_clock)
    if as_json:
        print_line(json.dumps(run.to_json()))
    else:
        _print_run(run)


def _print_plan(config: "Config", plan: Any) -> None:
    from rich.filesize import decimal

    if not config.retention.needs_remover:
        print_line("[retention] is not set: nothing is ever removed")
        return
    for label, decisions in (
        ("would be removed", plan.removed),
        ("held back, because a destination does not have them yet", plan.held),
    ):
        if decisions:
            print_line(f"{label}: {_sum_up(decisions)}")
            _print_decisions(decisions)
            if len(decisions) > MAX_STUDIES:
                print_line(f"and {len(decisions) - MAX_STUDIES} more; --json lists all of them")
    left = plan.left_bytes
    print_line(f"{decimal(plan.kept_bytes)} in the store, {decimal(left)} would be left")
    if config.retention.refuses_when_full and left >= config.retention.max_bytes > 0:
        limit = decimal(config.retention.max_bytes)
        print_line(f"max_bytes, {limit}, removes nothing: the node refuses instances until there is space")


def _sum_up(decisions: Sequence[Any]) -> str:
    from rich.filesize import decimal

    return ", ".join(
        (
            format_count(len(decisions), "study", "studies"),
            format_count(sum(one.study.instances for one in decisions), "instance"),
            decimal(sum(one.study.size for one in decisions)),
        )
    )


def _print_decisions(decisions: Sequence[Any]) -> None:
    columns = ("study", "last instance", "instances", "owed", "bytes", "why")
    rows = [
        (
            one.study.study_uid or "(none)",
            format_local_time(one.study.newest_at),
            str(one.study.instances),
            str(one.study.owed),
            str(one.study.size),
            one.reason.value,
        )
        for one in decisions[:MAX_STUDIES]
    ]
    print_table(columns, rows)


def _print_run(run: Any) -> None:
    from rich.filesize import decimal

    report = run.report
    studies = format_count(report.studies, "study", "studies")
    instances = format_count(report.instances, "instance")
    print_line(f"removed {studies}, {instances}, {decimal(report.size)}; {decimal(run.kept_bytes)} left")
    if report.held:
        studies = format_count(report.held, "study", "studies")
        print_line(f"held back {studies}, {decimal(report.held_size)}: a destination does not have them yet")
    if report.forgotten:
        print_line(f"removed {format_count(report.forgotten, 'row')} of the ledger")
