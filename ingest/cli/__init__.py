"""The command `ingest`. Each group of commands has a module.

The modules parse options, call functions of other packages and print what these return. They import only
click at their top: `ingest --help` and short commands start fast. What a command needs is imported when it
runs.
"""

from typing import Final

import click

from ingest.cli import (
    alerts,
    audit,
    callers,
    certs,
    check,
    commitment,
    completed,
    completion,
    config,
    console,
    deliveries,
    demo,
    init,
    instances,
    ledger,
    metrics,
    node,
    quarantine,
    retention,
    routes,
    send,
    status,
    trace,
    upgrade,
    webhooks,
)
from ingest.cli._base import CommandGroup

COMMANDS: Final = (
    init.init,
    node.serve,
    node.listen,
    node.work,
    check.check,
    status.status,
    metrics.metrics,
    console.console,
    alerts.alerts,
    webhooks.webhooks,
    instances.studies,
    instances.instances,
    completed.completed,
    trace.trace,
    callers.callers,
    callers.refusals,
    quarantine.quarantine,
    commitment.commitment,
    retention.retention,
    deliveries.deliver,
    ledger.ledger,
    upgrade.upgrade,
    deliveries.deliveries,
    deliveries.retry,
    deliveries.drop,
    deliveries.pause,
    deliveries.resume,
    node.reload,
    node.sweep,
    send.send,
    send.echo,
    audit.audit,
    certs.certs,
    config.config,
    routes.routes,
    demo.demo,
    completion.completion,
)
"""Every command, in the order in which `ingest --help` lists them."""


def _print_version(context: click.Context, _: click.Parameter, is_wanted: bool) -> None:
    if not is_wanted or context.resilient_parsing:
        return
    from ingest.cli._version import describe_version

    click.echo("\n".join(describe_version()))
    context.exit()


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and what it was built from, and exit.",
)
def main() -> None:
    """Receive DICOM over TLS, store it durably, forward it over TLS.

    \b
    ingest demo                            try it: two nodes on this machine
    ingest init DIR                        write a first configuration
    ingest check -c ingest.toml            check a configuration
    ingest serve -c ingest.toml            run a node
    ingest status -c ingest.toml           show what it does

    Exit codes: 0 done, 1 failed or faults found, 2 bad configuration or usage, 3 a process of the node could
    not start with this configuration.
    """


for _command in COMMANDS:
    main.add_command(_command)
