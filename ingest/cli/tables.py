"""Lists for people: tables that never cut an identifier, and never let a peer's text act on the terminal.

A UID that is cut cannot be searched for or copied. So a table is printed whole where it fits in the terminal;
where it does not, each row becomes a few lines of its own. Where the output is no terminal, each row is one
line, however long, without boxes, so that `grep` and `awk` find what they look for.
"""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console

GAP = "  "


def printable(text: str) -> str:
    r"""Return `text` with each character that could act on a terminal written as an escape.

    What peers choose (UIDs, AE titles, error comments) may hold escape sequences: "\x1b" is printed as the
    four characters `\x1b`.
    """
    return "".join(each if each.isprintable() else _escaped(each) for each in text)


def _escaped(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


def local_time(milliseconds: int | None) -> str:
    """Unix milliseconds as a short time of this machine's zone; empty for None and 0."""
    if not milliseconds:
        return ""
    return f"{datetime.fromtimestamp(milliseconds / 1000, UTC).astimezone():%Y-%m-%d %H:%M:%S %Z}"


def lines(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int | None) -> list[str]:
    """Lay out a table.

    Args:
        columns: Their headings.
        rows: As many cells each as there are columns.
        width: Of the terminal, in cells; None where the output is no terminal.

    Returns:
        One line for each row below the headings; or, where that is wider than the terminal, a block of lines
        for each row.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(columns, *cells, strict=True)]
    if width is None or sum(widths) + len(GAP) * (len(widths) - 1) <= width:
        return [_line(row, widths) for row in (columns, *cells)]
    return _blocks(columns, cells)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    padded = (cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
    return GAP.join(padded).rstrip()


def _blocks(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    margin = max(map(cell_len, columns))
    found = []
    for row in rows:
        first = True
        for name, cell in zip(columns, row, strict=True):
            if cell:
                found.append(
                    f"{'' if first else GAP}{name.ljust(margin + (len(GAP) if first else 0))}{GAP}{cell}"
                )
                first = False
    return found


def show(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "", file: TextIO | None = None
) -> None:
    """Print a table to standard output, or to `file`, as wide as that is."""
    # Looked up now: tests and `--watch` put others in place.
    output = file or sys.stdout
    console = Console(file=output, highlight=False, soft_wrap=True, emoji=False)
    if title:
        console.print(title, style="bold", markup=False)
    found = lines(columns, rows, console.width if console.is_terminal else None)
    has_headings = len(found) == len(rows) + 1
    for number, line in enumerate(found):
        console.print(line, style="dim" if has_headings and number == 0 else None, markup=False)


def print_line(text: str) -> None:
    """Print one line, however long; nothing in it is taken for markup or acts on the terminal."""
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True, emoji=False)
    console.print(printable(text), markup=False)
