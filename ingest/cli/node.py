"""Commands that run a node or a part of it, and commands to a running node."""

from pathlib import Path

import click

from ingest.cli._base import CommandGroup, config_option, exit_with, load_config


def _run_roles(path: Path, *roles: str) -> None:
    from ingest.supervisor import supervisor

    exit_with(supervisor.run_supervisor(path, frozenset(roles)))


@click.command()
@config_option
def serve(path: Path) -> None:
    """Run the whole node in the foreground.

    \b
    ingest serve -c /etc/dicom-ingest/ingest.toml

    TERM and INT let associations end and stop the node; a second one stops it at once. HUP reloads the
    configuration and certificates. USR1 opens the log file again.
    """
    _run_roles(path, "listen", "persist", "forward", "retain", "monitor", "console")


@click.command()
@config_option
def listen(path: Path) -> None:
    """Run only the listeners: receive, spool, publish."""
    _run_roles(path, "listen")


@click.group(cls=CommandGroup)
def work() -> None:
    """Run only the workers of one kind, on this or another host."""


@work.command()
@config_option
def persist(path: Path) -> None:
    """Move spooled instances into the store and the ledger."""
    _run_roles(path, "persist")


@work.command()
@config_option
def forward(path: Path) -> None:
    """Send due deliveries to their destinations."""
    _run_roles(path, "forward")


@work.command()
@config_option
def retain(path: Path) -> None:
    """Remove instances and rows as [retention] demands."""
    _run_roles(path, "retain")


@work.command()
@config_option
def monitor(path: Path) -> None:
    """Run the periodic tasks of the node.

    The tasks send alerts and audit messages, judge requests for storage commitment, and record samples for
    the charts of the console.
    """
    _run_roles(path, "monitor")


@work.command("console")
@config_option
def work_console(path: Path) -> None:
    """Run only the web console."""
    _run_roles(path, "console")


@click.command()
@config_option
def reload(path: Path) -> None:
    """Reload configuration and certificates of a running node.

    New associations use them; open associations end as they began. If the new configuration has faults, the
    node keeps the old one; the command prints each fault and exits with 2.
    """
    from ingest.supervisor import reload_client

    click.echo(f"reloaded: generation {reload_client.request_reload(load_config(path))}")


@click.command()
@config_option
def sweep(path: Path) -> None:
    """Reconcile spool, queue and ledger once.

    A running node sweeps by itself every few seconds.
    """
    from ingest.cli._user import load_config_as_owner
    from ingest.queue.sweep import sweep_spool

    result = sweep_spool(load_config_as_owner(path))
    click.echo(
        f"{result.waiting} waiting in the spool, {result.published} of them put back on the queue; "
        f"{result.released} already kept and removed; {result.partials_removed} partial files removed"
    )
