"""What all modules of commands share: groups, the configuration option, exit codes."""

# ruff: noqa: PLC0415 - as in ingest.cli: --help starts fast

import errno
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ingest.errors import BootError, ConfigError, IngestError

if TYPE_CHECKING:
    from ingest.config.model import Config

FAULTS = 1
BAD_CONFIGURATION = 2
CANNOT_BOOT = 3

_F = TypeVar("_F", bound=Callable[..., Any])


class Commands(click.Group):
    """A group that lists its commands in the order of the source and turns our errors into exit codes.

    Attributes:
        refused: The code for `ConfigError`.
    """

    refused = BAD_CONFIGURATION

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """The order in which they are told, not the alphabet's."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; `ConfigError` exits with 2, `BootError` with 3, what else is ours with 1."""
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            _say_faults(error.faults)
            ctx.exit(self.refused)
        except BootError as error:
            _say_faults([str(error)])
            ctx.exit(CANNOT_BOOT)
        except IngestError as error:
            _say_faults([str(error)])
            ctx.exit(FAULTS)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # click ends in silence
            _say_faults([f"{error.filename}: {error.strerror}" if error.filename else str(error)])
            ctx.exit(FAULTS)


def _say_faults(lines: Sequence[str]) -> None:
    for line in lines:
        click.echo(f"{click.style('error', fg='red')} {line}", err=True)


def config_option(function: _F) -> _F:
    """`-c FILE`, as `path`."""
    return click.option(
        "-c",
        "--config",
        "path",
        required=True,
        envvar="INGEST_CONFIG",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="TOML configuration (see config/ingest.toml) or Orthanc's JSON, or $INGEST_CONFIG.",
    )(function)


def load_config(path: Path) -> "Config":
    """Read the configuration for a command, and log only warnings, to standard error."""
    from ingest.config import reader
    from ingest.log import configure_logging

    configure_logging("warning", "console", None)
    return reader.load_config(path)
