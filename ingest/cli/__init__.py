"""The command `ingest`: options and exit codes; the work of each command lives elsewhere."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help and short commands start fast

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ingest.cli._base import FAULTS, Commands, config_option, load_config
from ingest.cli._options import remote_options, tls_of
from ingest.cli.certs import certs
from ingest.cli.config import import_orthanc
from ingest.cli.deliver import deliver
from ingest.cli.deliveries import dry_run_option, filter_of, filter_options, require_one
from ingest.cli.instances import COMMANDS as STORE_COMMANDS
from ingest.cli.ledger import ledger
from ingest.cli.retention import retention

if TYPE_CHECKING:
    from ingest.config.faults import Fault

ROUTES = "ingest.workers.route_test"
"""Named and not imported: what workers do is theirs."""


def _run(path: Path, *roles: str) -> None:
    from ingest.supervisor import supervisor

    click.get_current_context().exit(supervisor.run_supervisor(path, frozenset(roles)))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dicom-ingest", prog_name="ingest")
def main() -> None:
    """Receive DICOM over TLS, keep it durably, forward it over TLS.

    Exit codes: 0 done, 1 failed or faults found, 2 bad configuration or usage, 3 a process of the node could
    not start with this configuration.
    """


@main.command()
@config_option
def serve(path: Path) -> None:
    """Run the whole node in the foreground.

    TERM and INT drain and stop, a second one stops at once; HUP reloads configuration and certificates; USR1
    opens the log file again.
    """
    _run(path, "listen", "persist", "forward", "retain")


@main.command()
@config_option
def listen(path: Path) -> None:
    """Run the listeners alone: receive, spool, put on the queue."""
    _run(path, "listen")


@main.group(cls=Commands)
def work() -> None:
    """Run workers of one kind alone, on this host or another."""


@work.command()
@config_option
def persist(path: Path) -> None:
    """Move what the queue names from the spool into store and ledger."""
    _run(path, "persist")


@work.command()
@config_option
def forward(path: Path) -> None:
    """Send what the ledger says is due to its destinations."""
    _run(path, "forward")


@work.command()
@config_option
def retain(path: Path) -> None:
    """Remove from the store and the ledger what [retention] says."""
    _run(path, "retain")


@main.command()
@config_option
@click.option("--connect", is_flag=True, help="Also ask every destination with C-ECHO.")
def check(path: Path, connect: bool) -> None:
    """Validate configuration, certificates, folders, queue and ledger.

    Names cause and remedy of each fault. Exits with 0 when all is sound, 1 on faults, 2 when the file itself
    cannot be used.
    """
    from ingest.checks.node import check as look
    from ingest.config.reader import read_notes

    loaded = load_config(path)
    faults = [*read_notes(path), *look(loaded)]
    if connect:
        from ingest.checks.connect import ask

        faults += ask(loaded)
    _print_check(path, faults)
    click.get_current_context().exit(FAULTS if any(not fault.is_note for fault in faults) else 0)


def _print_check(path: Path, faults: "Sequence[Fault]") -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False, soft_wrap=True)
    for fault in sorted(faults, key=lambda fault: fault.is_note):
        label = "[yellow]note [/yellow]" if fault.is_note else "[red]fault[/red]"
        console.print(f"{label} [bold]{escape(fault.key)}[/bold]: {escape(fault.explanation)}")
    serious = sum(not fault.is_note for fault in faults)
    color, verdict = ("red", f"{serious} faults") if serious else ("green", "sound")
    console.print(f"[{color}]{escape(str(path))}: {verdict}[/{color}]")


@main.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option(
    "--watch",
    type=click.FloatRange(min=0.1),
    is_flag=False,
    flag_value=2.0,
    metavar="[SECONDS]",
    help="Again every 2 SECONDS, until interrupted.",
)
def status(path: Path, as_json: bool, watch: float | None) -> None:
    """Show listeners, spool, queue, destinations and certificates."""
    from ingest.status.report import status_command

    click.get_current_context().exit(status_command(load_config(path), as_json=as_json, watch=watch))


for command in (*STORE_COMMANDS, retention, deliver, ledger):
    main.add_command(command)


@main.command()
@config_option
@filter_options
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True)
@click.option("--before", type=int, metavar="ID", help="Only smaller ids: the next page.")
@click.option("--json", "as_json", is_flag=True, help="One object a line.")
def deliveries(path: Path, limit: int, before: int | None, as_json: bool, **which: Any) -> None:
    """List deliveries, the newest first."""
    from ingest.cli._delivery_tables import list_deliveries

    code = list_deliveries(load_config(path), filter_of(which), limit, before, as_json=as_json)
    click.get_current_context().exit(code)


@main.command()
@config_option
@filter_options
@click.option("--all", "everything", is_flag=True, help="All that are dead.")
@dry_run_option
def retry(path: Path, everything: bool, dry_run: bool, **which: Any) -> None:
    """Send deliveries again.

    Those that are dead, or those of --state.

    What is being sent is left alone, and what waits does so already.
    """
    require_one(which, everything=everything)
    from ingest.cli._delivery_tables import send_again

    meant = filter_of({**which, "states": which["states"] or ("dead",)})
    click.get_current_context().exit(send_again(load_config(path), meant, dry_run=dry_run))


@main.command()
@config_option
@filter_options
@click.option("--all", "everything", is_flag=True, help="All that are not delivered.")
@click.option("--reason", default="dropped by hand", show_default=True, help="For the ledger.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@dry_run_option
def drop(path: Path, everything: bool, reason: str, yes: bool, dry_run: bool, **which: Any) -> None:
    """Give up deliveries.

    Those that wait, are to be tried again, or are dead; `retry --state dropped` undoes it.
    """
    require_one(which, everything=everything)
    from ingest.cli._delivery_tables import give_up

    meant, loaded = filter_of(which), load_config(path)
    if not yes and not dry_run:
        click.confirm("Drop these deliveries?", abort=True)
    click.get_current_context().exit(give_up(loaded, meant, reason, dry_run=dry_run))


@main.command()
@config_option
def reload(path: Path) -> None:
    """Have a running node read configuration and keys again.

    They hold for new associations; running ones end as they began. What cannot be used changes nothing: exits
    with 2 and names each fault.
    """
    from ingest.supervisor.reload_client import request_reload

    click.echo(f"reloaded: generation {request_reload(load_config(path))}")


@main.command()
@config_option
def sweep(path: Path) -> None:
    """Reconcile spool, queue and ledger once."""
    from ingest.queue.sweep import sweep_command

    click.get_current_context().exit(sweep_command(load_config(path)))


@main.command()
@remote_options
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-j", "--jobs", type=click.IntRange(1, 64), default=1, show_default=True, help="Associations at a time."
)
def send(
    *, host: str, port: int, files: tuple[Path, ...], called: str, calling: str, jobs: int, **tls: Any
) -> None:
    """Store FILES and folders on a remote with C-STORE.

    Exits with 0 when all were stored, with 1 when some were not: what the remote refused, and what is named
    here and is missing, cannot be read or is no DICOM. Files in folders that are no DICOM are skipped and
    named. Ctrl-C ends it with the counts so far, and with 130.
    """
    settings = tls_of(tls)
    from ingest.cli._send import send_command

    code = send_command(host, port, files, called_ae=called, calling_ae=calling, tls=settings, jobs=jobs)
    click.get_current_context().exit(code)


@main.command()
@remote_options
def echo(host: str, port: int, called: str, calling: str, **tls: Any) -> None:
    """Ask a remote for an answer with C-ECHO."""
    settings = tls_of(tls)
    from ingest.cli._send import echo_command

    code = echo_command(host, port, called_ae=called, calling_ae=calling, tls=settings)
    click.get_current_context().exit(code)


main.add_command(certs)


@main.group(cls=Commands)
def config() -> None:
    """Show and convert configurations."""


@config.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="As JSON instead of TOML.")
def show(path: Path, as_json: bool) -> None:
    """Print the effective configuration without its secrets.

    Defaults and the environment are included; passwords in URLs are masked.
    """
    from ingest.config.serialization import format_as_json, format_as_toml

    loaded = load_config(path)
    click.echo(format_as_json(loaded) if as_json else format_as_toml(loaded), nl=as_json)


config.add_command(import_orthanc)


@main.group(cls=Commands)
def routes() -> None:
    """Look into routes."""


@routes.command()
@config_option
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--calling", metavar="AE", help="As though this AE title had sent them.")
@click.option("--called", metavar="AE", help="As though they had been sent to this AE title.")
@click.option("--source", metavar="ADDRESS", help="As though they had been sent from this IP address.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def test(
    *,
    path: Path,
    files: tuple[Path, ...],
    calling: str | None,
    called: str | None,
    source: str | None,
    as_json: bool,
) -> None:
    """Show which routes would take FILES and folders, and why.

    Prints the values that conditions look at, and destinations that do not get it since it came from there.
    Nothing is stored or sent. Exits with 1 when a file cannot be
    read.
    """
    workers = importlib.import_module(ROUTES)
    explained = workers.explain_routes(load_config(path), files, calling, called, source)
    click.get_current_context().exit(workers.print_explanations(explained, as_json=as_json))


@main.command()
def demo() -> None:
    """Send real files through a node to a remote.

    Both run on this machine and speak mutual TLS; what arrives is compared byte for byte.
    """
    from ingest.cli._demo import run

    click.get_current_context().exit(run())
