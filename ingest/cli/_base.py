"""The parts that all commands share: groups, the configuration option, exit codes."""

import errno
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from ingest.errors import AddressAwayError, BootError, ConfigError, IngestError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from ingest.config.model import Config

FAILED: Final = 1
BAD_CONFIGURATION: Final = 2
CANNOT_BOOT: Final = 3
INTERRUPTED: Final = 130
"""128 and the number of SIGINT, as in shells."""

INSTALLED_CONFIG: Final = Path("/etc/dicom-ingest/ingest.toml")
"""Configuration of a node that runs as a service of this machine."""

_F = TypeVar("_F", bound=Callable[..., Any])


class CommandGroup(click.Group):
    """A group that lists its commands in the order of the source and turns errors into exit codes.

    Attributes:
        config_error_code: The exit code for `ConfigError`.
    """

    config_error_code = BAD_CONFIGURATION

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the commands in the order of the source."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command, and turn errors of ours into exit codes. A missing extra is a bad configuration."""
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            _print_errors(error.faults)
            ctx.exit(self.config_error_code)
        except AddressAwayError as error:
            _print_errors([str(error)])
            ctx.exit(FAILED)
        except BootError as error:
            _print_errors([str(error)])
            ctx.exit(CANNOT_BOOT)
        except IngestError as error:
            _print_errors([str(error)])
            ctx.exit(FAILED)
        except ModuleNotFoundError as error:
            _print_errors([_explain_missing_module(error)])
            ctx.exit(BAD_CONFIGURATION)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # click ends silently when the reader of a pipe has gone
            _print_errors([f"{error.filename}: {error.strerror}" if error.filename else str(error)])
            ctx.exit(FAILED)


class DefaultCommandGroup(CommandGroup):
    """A group that runs one of its commands if none is named.

    Attributes:
        default_command: Name of that command. The help of the group shows its options.
    """

    default_command = "list"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the default command in front of arguments that name no command."""
        asks_for_help = bool(args) and set(args) <= set(ctx.help_option_names)
        # The completion of a shell parses the words before the one that is typed: without any, it may be the
        # name of a command.
        is_named = bool(args) and args[0] in self.commands
        if not asks_for_help and not is_named and (args or not ctx.resilient_parsing):
            args = [self.default_command, *args]
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of the default command, and the commands."""
        click.Command.format_options(self.commands[self.default_command], ctx, formatter)
        self.format_commands(ctx, formatter)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> "list[CompletionItem]":
        """Complete the names of commands, and the options of the default command."""
        of_default = self.commands[self.default_command].shell_complete(ctx, incomplete)
        own = super().shell_complete(ctx, incomplete)
        known = {each.value for each in own}
        return own + [each for each in of_default if each.value not in known]


def _print_errors(lines: Sequence[str]) -> None:
    for line in lines:
        click.echo(f"{click.style('error', fg='red')} {line}", err=True)


def _explain_missing_module(error: ModuleNotFoundError) -> str:
    """Return what to install for a module of an extra. Raise the error for another one, which is a defect."""
    from ingest.extras import explain_missing_extra, find_extra

    extra = find_extra(error.name)
    if extra is None:
        raise error
    return f"this command {'; '.join(explain_missing_extra(extra))}"


def exit_with(code: int) -> None:
    """End the command with an exit code."""
    click.get_current_context().exit(code)


def config_option(function: _F) -> _F:
    """Add the option `-c FILE`, as the argument `path`."""
    return click.option(
        "-c",
        "--config",
        "path",
        envvar="INGEST_CONFIG",
        callback=require_config,
        metavar="FILE",
        type=click.Path(path_type=Path),
        help=f"Configuration: TOML, or Orthanc's JSON. Default: $INGEST_CONFIG, or {INSTALLED_CONFIG}.",
    )(function)


def require_config(context: click.Context, option: click.Parameter, path: Path | None) -> Path | None:
    """Return the named configuration, otherwise that of the installed node. Raise if there is none."""
    if path is not None or context.resilient_parsing:
        return path
    try:
        is_installed = INSTALLED_CONFIG.exists()
    except PermissionError:
        # This user may not enter its folder. To call the option missing would mislead.
        is_installed = True
    if not is_installed:
        raise click.MissingParameter(ctx=context, param=option)
    return INSTALLED_CONFIG


def load_config(path: Path) -> "Config":
    """Read the configuration for a command, and log only warnings, to standard error."""
    from ingest.config import reader
    from ingest.log import configure_logging

    configure_logging("warning", "console", None)
    return reader.load_config(path)
