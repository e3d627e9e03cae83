"""Options that several commands of `python -m benchmarks` share."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from benchmarks.load import Load
from benchmarks.receivers import Target

Command = TypeVar("Command", bound=Callable[..., Any])
FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
FACTORS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class Bytes(click.ParamType[int]):
    """A number of bytes: 8192, 8K, 512KB, 27M, 1G."""

    name = "bytes"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read it; fails with a usage error."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d+)\s*([KMG]?)B?", value.strip(), re.IGNORECASE)
        if found is None:
            self.fail(f"{value!r} is no number of bytes; write 8192, 8K, 27M or 1G", param, ctx)
        return int(found[1]) * FACTORS[found[2].upper()]


LOAD = (
    click.option("--size", type=Bytes(), default="512K", show_default=True, help="Of a data set."),
    click.option("--instances", default=100, show_default=True, help="For each association."),
    click.option("--associations", default=4, show_default=True, help="At the same time."),
    click.option("--pdu", type=Bytes(), default="128K", show_default=True, help="Longest P-DATA-TF."),
    click.option(
        "--tls-version", type=click.Choice(["TLSv1.3", "TLSv1.2"]), default="TLSv1.3", show_default=True
    ),
    click.option("--operations", default=1, show_default=True, help="Asynchronous operations to ask for."),
    click.option("--think", "think_ms", default=0.0, show_default=True, help="Pause before each, in ms."),
    click.option("--churn", is_flag=True, help="An association for each instance."),
    click.option("--idle", default=0, show_default=True, help="Further associations that say nothing."),
)
PLACES = (
    click.option("--memory", type=FOLDER, help="For CPU figures.  [default: /dev/shm, where it is tmpfs]"),
    click.option("--disk", type=FOLDER, help="For figures with fsync.  [default: the temporary folder]"),
)
OUTPUT = (
    click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures there."),
    click.option("--plots", "plots_folder", type=FOLDER, help="Draw them there, with a page of figures."),
)
CONNECTION = (
    click.option("--certificate", type=FILE, help="Of the sender, PEM; without it DICOM is sent in clear."),
    click.option("--key", type=FILE, help="Of the sender, PEM."),
    click.option("--trusted", type=FILE, help="Certificates that the receiver's must come from, PEM."),
    click.option("--called", default="ANY-SCP", show_default=True, help="AE title of the receiver."),
    click.option("--calling", default="LOAD", show_default=True, help="AE title of the sender."),
)


def with_options(*groups: tuple[Callable[[Any], Any], ...]) -> Callable[[Command], Command]:
    """Return a decorator that adds all options, in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed([option for group in groups for option in group]):
            command = option(command)
        return command

    return decorate


def load_of(values: dict[str, Any]) -> Load:
    """Take the load that the options `LOAD` describe out of `values`."""
    return Load(
        values.pop("size"),
        values.pop("instances"),
        values.pop("associations"),
        values.pop("pdu"),
        values.pop("tls_version"),
        operations=values.pop("operations"),
        think_seconds=values.pop("think_ms") / 1e3,
        churn=values.pop("churn"),
        idle=values.pop("idle"),
    )


def target_of(address: str, values: dict[str, Any]) -> Target:
    """Whom the options `CONNECTION` describe; takes them out of `values`.

    Raises:
        click.UsageError: The address or the key material is not complete.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        raise click.UsageError(f"{address!r} is no HOST:PORT")
    certificate, key, trusted = (values.pop(name) for name in ("certificate", "key", "trusted"))
    if any((certificate, key, trusted)) and not all((certificate, key, trusted)):
        raise click.UsageError("TLS needs --certificate, --key and --trusted together")
    called, calling = values.pop("called"), values.pop("calling")
    return Target(host.strip("[]"), int(port), certificate, key, trusted, called, calling)
