"""`ingest upgrade`: upgrade the ledger and the data folder, or say what an upgrade would do."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from ingest.cli import _options as options
from ingest.cli._base import CANNOT_BOOT, FAILED, config_option, exit_with
from ingest.cli._tables import print_line
from ingest.cli._user import load_config_as_owner

if TYPE_CHECKING:
    from ingest.operations.upgrade import PlannedStep, UpgradePlan

NEEDED: Final = 4
"""Exit code of `--check` if an upgrade is needed and can be done."""


@click.command()
@config_option
@click.option("--check", "only_checks", is_flag=True, help="Only print what would be done; a node may run.")
@click.option("--force", is_flag=True, help="Upgrade although other hosts used the ledger lately.")
@options.json_option
def upgrade(path: Path, *, only_checks: bool, force: bool, as_json: bool) -> None:
    """Upgrade the ledger and the data folder of a stopped node.

    \b
    ingest upgrade -c ingest.toml --check
    ingest upgrade -c ingest.toml

    `ingest serve` does the same at its start, while it receives. This command does it alone, so that you see
    how long it takes. Back up the ledger first: there is no way back without a backup. Root does it with the
    rights of the owner of the data folder.

    Exits with 0 after an upgrade, 1 if it cannot be done now, 3 if a newer program has used the ledger or the
    data folder. With --check: 0 if there is nothing to do, 4 if an upgrade is needed, 1 and 3 as above.
    """
    from ingest.operations.upgrade import UpgradeVerdict, plan_upgrade, upgrade_node

    config = load_config_as_owner(path)
    if only_checks:
        plan = plan_upgrade(config)
        _print_plan(plan, as_json=as_json)
        codes = {
            UpgradeVerdict.NOTHING: 0,
            UpgradeVerdict.NEW: 0,
            UpgradeVerdict.NEEDED: NEEDED,
            UpgradeVerdict.BLOCKED: FAILED,
            UpgradeVerdict.REFUSED: CANNOT_BOOT,
        }
        exit_with(codes[plan.verdict])
    report = (lambda _: None) if as_json else (lambda revision: print_line(f"  {revision} done"))
    plan = upgrade_node(config, is_forced=force, report_step=report)
    if as_json:
        print_line(json.dumps(plan.to_json()))
    else:
        print_line(f"the ledger {plan.ledger} has schema version {_name_needed(plan)}")


def _print_plan(plan: "UpgradePlan", *, as_json: bool) -> None:
    if as_json:
        print_line(json.dumps(plan.to_json()))
        return
    for line in _format_plan(plan):
        print_line(line)


def _format_plan(plan: "UpgradePlan") -> Iterator[str]:
    if plan.refusal:
        yield f"refused: {plan.refusal}"
        return
    yield f"program      dicom-ingest {plan.release}"
    found = plan.data_format
    written = (
        f"format {found.format}, last used by dicom-ingest {found.program}" if found else "no version yet"
    )
    yield f"data folder  {plan.data_dir}: {written}"
    versions = f"{plan.schema_version or 'none'} -> {_name_needed(plan)}"
    yield f"ledger       {plan.ledger}: schema version {versions}"
    yield from (f"  {_format_step(step)}" for step in plan.steps)
    if plan.steps:
        yield from _format_needs(plan)
    yield plan.verdict.value


def _name_needed(plan: "UpgradePlan") -> str:
    from ingest.program import SCHEMA_VERSION

    return plan.steps[-1].revision if plan.steps else plan.schema_version or SCHEMA_VERSION


def _format_step(step: "PlannedStep") -> str:
    tables = ", ".join(f"about {rows:,} rows of {table}" for table, rows in step.rows.items())
    return f"{step.revision}  {step.sentence} " + (
        f"Reads or writes {tables}: about {_format_seconds(step.seconds)}." if tables else "At once."
    )


def _format_needs(plan: "UpgradePlan") -> Iterator[str]:
    from rich.filesize import decimal

    free = "on the disk of the server" if plan.bytes_free is None else f"of {decimal(plan.bytes_free)} free"
    yield f"time         about {_format_seconds(plan.seconds)}"
    yield f"room         {decimal(plan.bytes_needed)} {free}; the ledger has {decimal(plan.ledger_bytes)}"
    if plan.is_node_running:
        yield f"first        stop the node, or the workers, on {plan.data_dir}"
    for host in plan.hosts:
        yield f"first        stop {host.role} on {host.host}, dicom-ingest {host.release} ({host.data_dir})"
    yield f"first        back up the ledger: {_suggest_backup(plan)}"


def _suggest_backup(plan: "UpgradePlan") -> str:
    if plan.ledger.startswith("sqlite"):
        file = plan.ledger.partition(":///")[2].partition("?")[0]
        return f"sqlite3 {file} \"VACUUM INTO '{file}.{plan.schema_version}'\""
    return f"pg_dump --format custom --file ledger.{plan.schema_version}.dump DATABASE"


def _format_seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
