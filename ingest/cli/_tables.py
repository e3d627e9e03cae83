"""Tables and lines in a terminal, with whole identifiers and without control characters of peers.

A UID that is cut cannot be searched for or copied. Therefore a table is printed whole if it fits into the
terminal; otherwise each row becomes a few lines. If the output is not a terminal, each row is one line of any
length, so that `grep` and `awk` find whole values.
"""

import csv
import json
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Generic, TextIO, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

GAP: Final = "  "

FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r")
"""Spreadsheets read a cell with such a first character as a formula. Peers choose AE titles and comments."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ListLayout(Generic[_T]):
    """The layouts of one list: the fields of JSON and CSV, and the columns of its table.

    Attributes:
        fields: Names of the fields, in their order; docs/reference/lists.md describes them.
        to_record: Returns the fields of a row by name.
        columns: Headings of the table.
        to_cells: Returns the cells of a row, one for each heading.
    """

    fields: Sequence[str]
    to_record: Callable[[_T], Mapping[str, Any]]
    columns: Sequence[str]
    to_cells: Callable[[_T], Sequence[str]]


def escape_controls(text: str) -> str:
    r"""Return `text` with an escape for each character that could control the terminal.

    Peers choose UIDs, AE titles and error comments, which may contain escape sequences: "\x1b" is printed as
    the four characters `\x1b`.
    """
    return "".join(each if each.isprintable() else _escape_character(each) for each in text)


def _escape_character(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


def format_local_time(unix_ms: int | None) -> str:
    """Write Unix milliseconds as a short time in the zone of this machine; nothing for None and 0."""
    if not unix_ms:
        return ""
    return f"{datetime.fromtimestamp(unix_ms / 1000, UTC).astimezone():%Y-%m-%d %H:%M:%S %Z}"


def format_count(count: int, noun: str, plural: str = "") -> str:
    """Write a number with its noun: "1 fault", "2 faults"."""
    return f"{count} {noun if count == 1 else plural or f'{noun}s'}"


def lay_out_table(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int | None) -> list[str]:
    """Lay out a table.

    Args:
        columns: The headings.
        rows: Rows with one cell for each column.
        width: The width of the terminal in cells; None if the output is not a terminal.

    Returns:
        A line with the headings and one line for each row. If that is wider than the terminal, a block of
        lines for each row.
    """
    from rich.cells import cell_len

    cells = [[escape_controls(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(columns, *cells, strict=True)]
    if width is None or sum(widths) + len(GAP) * (len(widths) - 1) <= width:
        return [_format_row(row, widths) for row in (columns, *cells)]
    return _format_blocks(columns, cells, width)


def _format_row(row: Sequence[str], widths: Sequence[int]) -> str:
    from rich.cells import cell_len

    padded = (cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
    return GAP.join(padded).rstrip()


def _format_blocks(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    margin = max(map(len, columns))
    indent = " " * (margin + 2 * len(GAP))
    lines = []
    for row in rows:
        is_first = True
        for name, cell in zip(columns, row, strict=True):
            if cell:
                label = name.ljust(margin + (len(GAP) if is_first else 0))
                first, *rest = wrap_words(cell, max(width - len(indent), 1), indent="")
                lines.append(f"{'' if is_first else GAP}{label}{GAP}{first}")
                lines += (f"{indent}{part}" for part in rest)
                is_first = False
    return lines


def wrap_words(text: str, width: int | None, indent: str = GAP) -> list[str]:
    """Break a line between words, with `indent` before each further line. A word stays whole at any width.

    A line that fits, or that does not go to a terminal (no width), is returned as it is.
    """
    from rich.cells import cell_len

    if width is None or cell_len(text) <= width:
        return [text]
    return textwrap.wrap(
        text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def print_list(
    rows: Sequence[_T], list_format: str | None, layout: ListLayout[_T], *, more: str = ""
) -> None:
    """Print a list in the format that the options of `list_format_options` ask for.

    Args:
        rows: The rows.
        list_format: "json", "csv", "wide", or None for a table of the terminal's width.
        layout: The fields and columns of the list.
        more: How to see the next rows, for people; empty if there are none.
    """
    if list_format == "json":
        print_json_lines(map(layout.to_record, rows))
    elif list_format == "csv":
        print_csv(layout.fields, map(layout.to_record, rows))
    else:
        print_table(layout.columns, [layout.to_cells(row) for row in rows], is_wide=list_format == "wide")
        if more:
            print_line(f"more: {more}")


def print_csv(fields: Sequence[str], records: Iterable[Mapping[str, Any]]) -> None:
    """Print records as CSV (RFC 4180) with a line of headings.

    Values that are lists or mappings are written as JSON. A text that a spreadsheet would take for a formula
    begins with an apostrophe.
    """
    writer = csv.writer(sys.stdout)
    writer.writerow(fields)
    for record in records:
        writer.writerow([_format_csv_cell(record.get(name)) for name in fields])


def _format_csv_cell(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return "" if value is None else json.dumps(value)
    if not isinstance(value, str):
        return json.dumps(value, default=str)
    text = escape_controls(str(value))
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str = "",
    file: TextIO | None = None,
    is_wide: bool = False,
) -> None:
    """Print a table to standard output, or to `file`, in the width of that terminal, or as wide as it is."""
    console = _open_console(file)
    if title:
        console.print(title, style="bold", markup=False)
    width = console.width if console.is_terminal and not is_wide else None
    lines = lay_out_table(columns, rows, width)
    has_headings = len(lines) == len(rows) + 1
    for number, line in enumerate(lines):
        console.print(line, style="dim" if has_headings and number == 0 else None, markup=False)


def find_width() -> int | None:
    """Return the width of the terminal in cells; None if standard output is no terminal."""
    console = _open_console()
    return console.width if console.is_terminal else None


def print_line(text: str) -> None:
    """Print one line of any length, without markup and control characters."""
    _open_console().print(escape_controls(text), markup=False)


def print_json_lines(objects: Iterable[Mapping[str, Any]]) -> None:
    """Print each object as one line of JSON."""
    for one in objects:
        print_line(json.dumps(one))


def print_note(text: str) -> None:
    """Print one line to standard error."""
    _open_console(sys.stderr).print(escape_controls(text), markup=False)


def _open_console(file: TextIO | None = None) -> "Console":
    from rich.console import Console

    # sys.stdout is read here and not at import, because tests and `--watch` replace it.
    return Console(file=file or sys.stdout, highlight=False, soft_wrap=True, emoji=False)
