"""`ingest completion`: print the script that completes commands, options and names in a shell."""

from typing import Final

import click

SHELLS: Final = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the script that completes commands in a shell.

    \b
    ingest completion bash > ~/.local/share/bash-completion/completions/ingest
    ingest completion zsh > "${fpath[1]}/_ingest"
    ingest completion fish > ~/.config/fish/completions/ingest.fish

    It completes commands, options, states and the destinations of the configuration. Start a new shell
    afterwards. bash needs version 4.4 or newer.
    """
    from click.shell_completion import get_completion_class

    generator = get_completion_class(shell)
    if generator is None:
        raise click.UsageError(f"this version of click completes nothing in {shell}")
    root = click.get_current_context().find_root().command
    click.echo(generator(root, {}, "ingest", "_INGEST_COMPLETE").source())
