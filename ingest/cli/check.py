"""`ingest check`: validate a configuration and everything that it names."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ingest.cli import _options as options
from ingest.cli._base import BAD_CONFIGURATION, FAILED, config_option, exit_with, load_config
from ingest.cli._faults import print_fault
from ingest.cli._tables import format_count
from ingest.cli._user import become_user
from ingest.errors import ConfigError, IngestError

if TYPE_CHECKING:
    from rich.console import Console

    from ingest.checks.connect import EchoAnswer
    from ingest.config.faults import Fault


@dataclass(slots=True)
class Findings:
    """The result of a check.

    Attributes:
        faults: Faults, warnings and notes, in this order.
        answers: Destinations that answered a C-ECHO.
        node_pid: Process of the node that runs with this data folder; 0 if none runs.
    """

    faults: "Sequence[Fault]"
    answers: "Sequence[EchoAnswer]" = field(default_factory=tuple)
    node_pid: int = 0

    def count(self, kind: str) -> int:
        """Return the number of faults of one kind: "fault", "warning" or "note"."""
        return sum(fault.kind == kind for fault in self.faults)


@click.command()
@config_option
@click.option(
    "--connect",
    is_flag=True,
    help="Also send a C-ECHO to every destination, and connect to the audit repository.",
)
@click.option("--ready", is_flag=True, help="Only ask whether the running node receives; for health checks.")
@click.option("--live", is_flag=True, help="Only ask whether the supervisor lives; if not, restart it.")
@click.option("--strict", is_flag=True, help="Exit with 1 on warnings, too.")
@click.option("--user", metavar="NAME", help="Check with the rights of this user; only root can.")
@options.json_option
def check(
    *, path: Path, connect: bool, ready: bool, live: bool, strict: bool, user: str | None, as_json: bool
) -> None:
    """Check a configuration, and everything that it names.

    \b
    ingest check -c ingest.toml
    ingest check -c ingest.toml --connect
    ingest check -c ingest.toml --ready
    ingest check -c /etc/dicom-ingest/ingest.toml --user dicom-ingest

    Prints the key, the cause and the remedy of each fault. Exits with 0 without faults, with 1 on faults,
    with 2 if the file itself cannot be used. A warning is a fault to come, such as a certificate that ends
    within 24 hours. Notes are no faults: the node can run with them. The ports of a node that runs with
    this configuration are not in use by another program.

    With --ready only reception is checked: the command exits with 0 if the node receives, otherwise with 1
    and the reasons. With --live it is the same for the supervisor, which nothing but a restart helps.
    """
    if ready + live + connect > 1:
        raise click.UsageError("--ready, --live and --connect exclude each other")
    if ready or live:
        if strict or user:
            raise click.UsageError("--ready and --live go with neither --strict nor --user")
        exit_with(_print_health(path, is_ready_asked=ready, as_json=as_json))
    if user:
        become_user(user)
    try:
        found = _examine(path, connect=connect, user=user or "")
    except ConfigError as error:
        if not as_json:
            raise
        _print_json(path, [_to_record("", cause, "") for cause in error.faults], {"fault": len(error.faults)})
        exit_with(BAD_CONFIGURATION)
        return
    if as_json:
        _print_findings_as_json(path, found)
    else:
        _print_findings(path, found)
    exit_with(FAILED if found.count("fault") or (strict and found.count("warning")) else 0)


def _examine(path: Path, *, connect: bool, user: str) -> Findings:
    from ingest.checks.node import check_node
    from ingest.config.faults import FaultKind
    from ingest.config.reader import read_notes
    from ingest.filesystem.node_lock import find_node_pid

    config = load_config(path)
    faults: list[Fault] = [*read_notes(path), *check_node(config, user=user)]
    answers: list[EchoAnswer] = []
    if connect:
        from ingest.checks import connect as connections

        answers, unreached = connections.check_connections(config)
        faults += unreached
    try:
        pid = find_node_pid(config.run_dir)
    except IngestError:
        pid = 0
    return Findings(sorted(faults, key=lambda fault: [*FaultKind].index(fault.kind)), answers, pid)


def _print_health(path: Path, *, is_ready_asked: bool, as_json: bool) -> int:
    from ingest.config.reader import load_config
    from ingest.status.health import check_liveness, check_readiness

    run_dir = load_config(path).run_dir
    health = check_readiness(run_dir) if is_ready_asked else check_liveness(run_dir)
    word = "ready" if is_ready_asked else "live"
    if as_json:
        click.echo(json.dumps(health.to_json()))
    else:
        click.echo(word if health.is_ok else f"not {word}: " + "; ".join(health.reasons))
    return 0 if health.is_ok else FAILED


def _print_findings_as_json(path: Path, found: Findings) -> None:
    items = [_to_record(fault.key, fault.cause, fault.remedy, fault.kind) for fault in found.faults]
    counts = {kind: found.count(kind) for kind in ("fault", "warning", "note")}
    answers = [
        {"destination": each.name, "remote": str(each.remote), "seconds": each.seconds}
        for each in found.answers
    ]
    _print_json(path, items, counts, answers=answers, node_pid=found.node_pid)


def _to_record(key: str, cause: str, remedy: str, kind: str = "fault") -> dict[str, str]:
    return {"key": key, "kind": str(kind), "cause": cause, "remedy": remedy}


def _print_json(path: Path, items: Sequence[Any], counts: dict[str, int], **more: Any) -> None:
    """Print one object. `is_sound` says the same as exit code 0 without --strict."""
    numbers = {f"{kind}s": counts.get(kind, 0) for kind in ("fault", "warning", "note")}
    values = {"answers": [], "node_pid": 0, **more}
    click.echo(
        json.dumps({"file": str(path), "is_sound": not counts["fault"], **numbers, "items": items, **values})
    )


def _print_findings(path: Path, found: Findings) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False, soft_wrap=True)
    for fault in found.faults:
        print_fault(console, fault)
    if found.node_pid:
        console.print(f"[green]ok     [/green] the node runs as process {found.node_pid}")
    _print_answers(console, found.answers)
    numbers = [format_count(found.count(kind), kind) for kind in ("fault", "warning") if found.count(kind)]
    notes = format_count(found.count("note"), "note") if found.count("note") else ""
    verdict = ", ".join(numbers) or (f"sound, with {notes}" if notes else "sound")
    color = "red" if found.count("fault") else "yellow" if numbers else "green"
    console.print(f"[{color}]{escape(str(path))}: {verdict}[/{color}]")


def _print_answers(console: "Console", answers: "Iterable[EchoAnswer]") -> None:
    from rich.markup import escape

    for answer in answers:
        text = f"{answer.name}: {answer.remote} answered in {answer.seconds * 1000:.0f} ms"
        console.print(f"[green]ok     [/green] {escape(text)}")
