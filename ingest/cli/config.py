"""Commands that show and convert configurations."""

import os
from pathlib import Path

import click

from ingest.cli._base import CommandGroup, config_option, load_config
from ingest.errors import IngestError


@click.group(cls=CommandGroup)
def config() -> None:
    """Show and convert configurations."""


@config.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of TOML.")
def show(path: Path, as_json: bool) -> None:
    """Print the effective configuration, without secrets.

    It includes defaults and the environment. Passwords in URLs are masked.
    """
    from ingest.config.serialization import format_as_json, format_as_toml

    loaded = load_config(path)
    click.echo(format_as_json(loaded) if as_json else format_as_toml(loaded), nl=as_json)


@config.command("import-orthanc")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write this file, not standard output.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
def import_orthanc(path: Path, output: Path | None, force: bool) -> None:
    """Translate an Orthanc configuration to TOML.

    \b
    ingest config import-orthanc /etc/orthanc -o ingest.toml

    FILE may be a folder of configuration files. The TOML means the same, names Orthanc's key behind each of
    its keys, and lists keys without effect. Paths become absolute. Environment variables get their present
    values.
    """
    from ingest.config.orthanc.toml_writer import translate_to_toml
    from ingest.config.reader import load_config as validate_config

    # INGEST_… variables stay out of the TOML: the node that reads the TOML reads them too.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("INGEST_")}
    validate_config(path, environ=environ)
    text = translate_to_toml(path, environ)
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        with output.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise IngestError(f"{output} exists; name another file, or add --force") from None
    except OSError as error:
        raise IngestError(f"{output}: {error.strerror}; name a file that this user may write") from None
    click.echo(output)
