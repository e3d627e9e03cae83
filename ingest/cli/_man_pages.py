"""Manual pages, made from the commands: `python -m ingest.cli._man_pages FOLDER`.

Needs click-man, which only builds and tests install. `make man` calls this.
"""

import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from inspect import cleandoc
from pathlib import Path
from typing import Final

import click

from ingest.build_info import read_version
from ingest.cli import main as ingest

_EXAMPLES: Final = re.compile(r"\x08\n(.*?)(?=\n\.(?:PP|SH|TP))", re.DOTALL)
"""A paragraph that click must not wrap begins with a backspace."""


def write_man_pages(folder: Path, date: datetime, version: str) -> list[Path]:
    """Write one page for each command into `folder`, and return their paths.

    Args:
        folder: Where the pages go; it is created.
        date: Date in the pages. A build that gives the date of its release can be repeated.
        version: Version in the pages. A build has no installed distribution to ask.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for context in _walk(click.Context(ingest, info_name="ingest")):
        path = folder / f"{context.command_path.replace(' ', '-')}.1"
        path.write_text(_make_page(context, date, version), "utf-8")
        written.append(path)
    return written


def _walk(context: click.Context) -> Iterator[click.Context]:
    yield context
    if isinstance(context.command, click.Group):
        for name, command in context.command.commands.items():
            if not command.hidden:
                yield from _walk(click.Context(command, info_name=name, parent=context))


def _make_page(context: click.Context, date: datetime, version: str) -> str:
    from click_man.man import ManPage  # type: ignore[import-untyped]

    command = context.command
    page = ManPage(context.command_path)
    page.version = version
    page.date = f"{date:%Y-%m-%d}"
    page.short_help = _first_sentence(command)
    page.description = cleandoc(command.help or "")
    page.synopsis = " ".join(command.collect_usage_pieces(context))
    records = (each.get_help_record(context) for each in command.get_params(context))
    page.options = [record for record in records if record is not None]
    if isinstance(command, click.Group):
        page.commands = [(name, _first_sentence(each)) for name, each in command.commands.items()]
    return _EXAMPLES.sub(r".RS\n.nf\n\1\n.fi\n.RE", f"{page}\n")


def _first_sentence(command: click.Command) -> str:
    return (command.help or "").partition("\n")[0].removesuffix(".")


if __name__ == "__main__":
    for each in write_man_pages(Path(sys.argv[1]), datetime.now(UTC), read_version()):
        click.echo(each)
