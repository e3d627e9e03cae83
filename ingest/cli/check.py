"""`ingest check`: validate a configuration and everything that it names."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ingest.cli._base import FAILED, config_option, exit_with, load_config
from ingest.cli._tables import format_count

if TYPE_CHECKING:
    from ingest.checks.connect import EchoAnswer
    from ingest.config.faults import Fault


@click.command()
@config_option
@click.option(
    "--connect",
    is_flag=True,
    help="Also send a C-ECHO to every destination, and connect to the audit repository.",
)
@click.option("--ready", is_flag=True, help="Only ask whether the running node receives; for health checks.")
@click.option("--live", is_flag=True, help="Only ask whether the supervisor lives; if not, restart it.")
def check(path: Path, connect: bool, ready: bool, live: bool) -> None:
    """Check configuration, certificates, folders, queue and ledger.

    \b
    ingest check -c ingest.toml
    ingest check -c ingest.toml --connect
    ingest check -c ingest.toml --ready

    Prints the cause and the remedy of each fault. Exits with 0 without faults, with 1 on faults, with 2 if
    the file itself cannot be used. Notes are no faults: the node can run with them.

    With --ready only reception is checked: the command exits with 0 if the node receives, otherwise with 1
    and the reasons. With --live it is the same for the supervisor, which nothing but a restart helps.
    """
    if ready + live + connect > 1:
        raise click.UsageError("--ready, --live and --connect exclude each other")
    if ready or live:
        exit_with(_print_health(path, is_ready_asked=ready))
    from ingest.checks.node import check_node
    from ingest.config.reader import read_notes

    config = load_config(path)
    faults = [*read_notes(path), *check_node(config)]
    if connect:
        from ingest.checks import connect as connections

        results = connections.check_destinations(config)
        _print_answers(result for result in results if isinstance(result, connections.EchoAnswer))
        faults += connections.list_faults(results) + connections.check_repository(config)
    _print_faults(path, faults)
    exit_with(FAILED if any(not fault.is_note for fault in faults) else 0)


def _print_health(path: Path, *, is_ready_asked: bool) -> int:
    from ingest.config.reader import load_config
    from ingest.status.health import check_liveness, check_readiness

    run_dir = load_config(path).run_dir
    health = check_readiness(run_dir) if is_ready_asked else check_liveness(run_dir)
    word = "ready" if is_ready_asked else "live"
    click.echo(word if health.is_ok else f"not {word}: " + "; ".join(health.reasons))
    return 0 if health.is_ok else FAILED


def _print_answers(answers: "Iterable[EchoAnswer]") -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False, soft_wrap=True)
    for answer in answers:
        text = f"{answer.name}: {answer.remote} answered in {answer.seconds * 1000:.0f} ms"
        console.print(f"[green]ok   [/green] {escape(text)}")


def _print_faults(path: Path, faults: "Sequence[Fault]") -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False, soft_wrap=True)
    for fault in sorted(faults, key=lambda fault: fault.is_note):
        label = "[yellow]note [/yellow]" if fault.is_note else "[red]fault[/red]"
        console.print(f"{label} [bold]{escape(fault.key)}[/bold]: {escape(fault.explanation)}")
    count = sum(not fault.is_note for fault in faults)
    color, verdict = ("red", format_count(count, "fault")) if count else ("green", "sound")
    console.print(f"[{color}]{escape(str(path))}: {verdict}[/{color}]")
