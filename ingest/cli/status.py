"""`ingest status`: print the status of a node once, or again and again."""

import gc
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ingest.cli._base import config_option, exit_with, load_config

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from ingest.config.model import Config

_VERDICT_STYLES: Final = ("bold green", "bold yellow", "bold red")
"""Style of the first line, by exit code."""


@click.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--watch",
    type=click.FloatRange(min=0.1),
    is_flag=False,
    flag_value=2.0,
    metavar="[SECONDS]",
    help="Fill the screen, and repeat every SECONDS (2 by default) until interrupted.",
)
def status(path: Path, as_json: bool, watch: float | None) -> None:
    """Show listeners, spool, queue, destinations and certificates.

    \b
    ingest status -c ingest.toml
    ingest status -c ingest.toml --watch
    ingest status -c ingest.toml --json

    The first line is the verdict. Exits with 0 if the node is well, with 1 if it is degraded, with 2 if it
    does not run or cannot serve its purpose.
    """
    # Importing is most of the work of this command, and the garbage collector would walk the growing heap
    # again and again. Without the collector, the command needs an eighth less time.
    gc.disable()
    exit_with(_print_status(load_config(path), as_json=as_json, watch_seconds=watch))


def _print_status(config: "Config", *, as_json: bool, watch_seconds: float | None) -> int:
    from rich.console import Console

    from ingest.cli._status_page import lay_out_page
    from ingest.cli._tables import wrap_words
    from ingest.status.report import gather_status

    console = Console(highlight=False, soft_wrap=True, emoji=False)
    now = gather_status(config)
    if as_json:
        console.print(json.dumps(now, indent=2), markup=False)
        return int(now["exit_code"])
    width = console.width if console.is_terminal else None
    if watch_seconds is not None:
        gc.enable()
        return _watch_status(config, now, watch_seconds, width)
    for line in lay_out_page(now, None, width):
        style = _choose_style(line, now)
        # The tables fit already. The verdict, which has a style, may be too long.
        for part in wrap_words(line, width) if style else [line]:
            console.print(part, style=style, markup=False)
    return int(now["exit_code"])


def _watch_status(config: "Config", now: dict[str, Any], seconds: float, width: int | None) -> int:
    from rich.console import Console
    from rich.live import Live

    from ingest.status.report import gather_status

    before = None
    console = Console(highlight=False, emoji=False)
    try:
        with Live(console=console, auto_refresh=False, screen=console.is_terminal) as live:
            while True:
                live.update(_compose_screen(console, now, before, width, seconds), refresh=True)
                time.sleep(seconds)
                before, now = now, gather_status(config)
                width = console.width if console.is_terminal else None
    except KeyboardInterrupt:
        return int(now["exit_code"])


def _compose_screen(
    console: "Console",
    now: Mapping[str, Any],
    before: Mapping[str, Any] | None,
    width: int | None,
    seconds: float,
) -> "Text":
    """Return the lines that fit the terminal, then a line with the time and the number of hidden lines."""
    from rich.text import Text

    from ingest.cli._status_page import lay_out_page

    lines = [
        part
        for line in lay_out_page(now, before, width)
        for part in (Text(line, _choose_style(line, now) or "").wrap(console, console.width) or [Text("")])
    ]
    if width is None:
        return Text("\n").join(lines)
    room = max(console.height - 1, 1)
    hidden = max(len(lines) - room, 0)
    more = f"  {hidden} more lines below: make the terminal taller" if hidden else ""
    footer = f"{time.strftime('%H:%M:%S')}  every {seconds:g} s, Ctrl-C ends{more}"
    shown = lines[:room] + [Text("")] * (room - len(lines))
    return Text("\n").join([*shown, Text(footer.ljust(console.width)[: console.width], "reverse")])


def _choose_style(line: str, now: Mapping[str, Any]) -> str | None:
    from ingest.cli._status_page import TITLES

    if line.startswith(now["verdict"]):
        return _VERDICT_STYLES[now["exit_code"]]
    return "bold" if line in TITLES else None
