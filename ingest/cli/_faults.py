"""Faults of a configuration in a terminal."""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.console import Console

    from ingest.config.faults import Fault

_COLORS: Final = {"fault": "red", "warning": "yellow", "note": "cyan"}
_INDENT: Final = 8
"""Width of the label of the kind."""


def print_fault(console: "Console", fault: "Fault") -> None:
    """Print a fault on one line, for `grep`; in a terminal on several lines that break between words."""
    from rich.markup import escape
    from rich.padding import Padding
    from rich.text import Text

    color = _COLORS[fault.kind]
    label = f"[{color}]{fault.kind:<7}[/{color}] [bold]{escape(fault.key)}[/bold]"
    if not console.is_terminal:
        console.print(f"{label}: {escape(fault.explanation)}")
        return
    console.print(label)
    for text in (fault.cause, f"→ {fault.remedy}" if fault.remedy else ""):
        if text:
            console.print(Padding(Text(text), (0, 0, 0, _INDENT)), soft_wrap=False)
