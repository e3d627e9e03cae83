"""Commands that convert configurations."""

# ruff: noqa: PLC0415 - as in ingest.cli: --help starts fast

import os
from pathlib import Path

import click

from ingest.errors import IngestError


@click.command("import-orthanc")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Write there instead of to standard output."
)
@click.option("--force", is_flag=True, help="Replace what is there.")
def import_orthanc(path: Path, output: Path | None, force: bool) -> None:
    """Write an Orthanc configuration as TOML.

    FILE may be a folder of them. The TOML means the same, names Orthanc's key behind each of ours, and says
    what has no effect here. Paths become absolute; environment variables get their values of now.
    """
    from ingest.config.orthanc.toml_writer import translate_to_toml
    from ingest.config.reader import load_config

    # INGEST_… stays out of it: who reads the TOML reads them too.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("INGEST_")}
    load_config(path, environ=environ)
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
