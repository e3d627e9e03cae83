"""The tables of a configuration file, before validation."""

import stat
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from ingest.config.faults import Fault, FaultKind, Location, escape_unprintable

REGULAR_FILE_REMEDY: Final = "name a file, or a folder of Orthanc's configuration files"
"""For a pipe, a socket or a device: a reload must be able to read the configuration again."""


@dataclass(slots=True)
class ConfigSource:
    """The tables of a TOML file, or what an Orthanc configuration becomes.

    Attributes:
        tables: The tables as a TOML file has them.
        origins: Orthanc's key for each location in the tables, for messages and comments.
        faults: Why the file cannot be used.
        notes: Keys of the file that have no effect, or a different one.
        remedies: Remedies for locations in the tables where the words of TOML would mislead.
    """

    tables: dict[str, Any] = field(default_factory=dict)
    origins: dict[Location, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    notes: list[Fault] = field(default_factory=list)
    remedies: dict[Location, str] = field(default_factory=dict)

    def set_value(self, key: str, location: Location, value: Any) -> None:
        """Put `value` into the tables, and remember Orthanc's key for it."""
        here: Any = self.tables
        for part, next_part in pairwise(location):
            new_table: Any = [] if isinstance(next_part, int) else {}
            if isinstance(here, list):
                if part == len(here):
                    here.append(new_table)
                here = here[int(part)]
            else:
                here = here.setdefault(part, new_table)
        here[location[-1]] = value
        self.origins[location] = key

    def add_fault(self, key: str, cause: str, remedy: str) -> None:
        """Add a fault that keeps the node from running, unless the list has the same one already."""
        fault = Fault(key, cause, remedy)
        if fault not in self.faults:
            self.faults.append(fault)

    def add_note(self, key: str, cause: str, remedy: str) -> None:
        """Add a remark that a node logs at its start."""
        note = Fault(escape_unprintable(key), escape_unprintable(cause), remedy, FaultKind.NOTE)
        self.notes.append(note)


def is_orthanc_file(path: Path) -> bool:
    """Return whether `path` is a configuration of Orthanc.

    It is one if it is a folder, ends in .json, or begins with a bracket or a comment of JSON. TOML begins
    with none of them.
    """
    if path.is_dir() or path.suffix.lower() == ".json":
        return True
    try:
        if not is_regular_file(path):
            return False
        with path.open("rb") as file:
            beginning = file.read(4096)
    except (OSError, ValueError):
        return False
    return beginning.removeprefix(b"\xef\xbb\xbf").lstrip().startswith((b"{", b"//", b"/*"))


def is_regular_file(path: Path) -> bool:
    """Return whether `path` is a regular file: reading a pipe without a writer would not end.

    Raises:
        OSError: The file does not exist, or cannot be reached.
        ValueError: The path contains a NUL.
    """
    return stat.S_ISREG(path.stat().st_mode)
