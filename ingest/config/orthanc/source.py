"""What an Orthanc configuration says, and what it becomes: a reader and a writer of tables."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

from ingest.config.faults import Fault, Location, printable
from ingest.config.orthanc.keys import HONOURED

TLS_NAME: Final = "orthanc"
"""The `[tls.NAME]` that the keys DicomTls… become; Orthanc has one for both directions."""

NO_DEADLINE: Final = 1e9
"""Seconds; Orthanc's 0 is no timeout at all."""

MOST: Final = 2**32 - 1
"""Orthanc reads numbers into 32 bits, and refuses larger ones."""

TYPES: Final = {bool: "true or false", int: f"a whole number, 0 to {MOST}", str: "a string"}
"""What to write."""


@dataclass(slots=True)
class Source:
    """What an Orthanc configuration becomes.

    Attributes:
        tables: As a TOML file has them.
        origins: Orthanc's key behind each place in the tables, for messages and comments.
        faults: Why it cannot be used.
        notes: What it says that has no effect, or another one.
        remedies: What to do about a fault of a place in the tables, where TOML's words would mislead.
    """

    tables: dict[str, Any] = field(default_factory=dict)
    origins: dict[Location, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    notes: list[Fault] = field(default_factory=list)
    remedies: dict[Location, str] = field(default_factory=dict)

    def set(self, key: str, location: Location, value: Any) -> None:
        """Put `value` into the tables, and note Orthanc's key for it."""
        here: Any = self.tables
        for part, then in pairwise(location):
            fresh: Any = [] if isinstance(then, int) else {}
            if isinstance(here, list):
                if part == len(here):
                    here.append(fresh)
                here = here[int(part)]
            else:
                here = here.setdefault(part, fresh)
        here[location[-1]] = value
        self.origins[location] = key

    def fault(self, key: str, cause: str, remedy: str) -> None:
        """Something that keeps the node from running; told once, however often it is come upon."""
        fault = Fault(key, cause, remedy)
        if fault not in self.faults:
            self.faults.append(fault)

    def note(self, key: str, cause: str, remedy: str) -> None:
        """Something worth a word at start."""
        self.notes.append(Fault(printable(key), printable(cause), remedy, note=True))


class Reader:
    """The values of an Orthanc configuration, with its defaults; a wrong type is a fault, and the default."""

    def __init__(self, values: Mapping[str, Any], source: Source) -> None:
        self.values = values
        self._source = source

    def get(self, key: str) -> Any:
        """The value of an honoured key: of the type of its default, a string where there is none."""
        default = HONOURED[key].default
        value = self.values.get(key, default)
        if isinstance(default, tuple):
            texts = [value] if isinstance(value, str) else value
            if isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts):
                return list(texts)
            self._source.fault(key, "is not a list of strings", 'write it as ["...", "..."]')
            return list(default)
        wanted = str if default is None else type(default)
        if value is not default and (
            type(value) is not wanted or (isinstance(value, int) and not 0 <= value <= MOST)
        ):
            self._source.fault(key, f"is not {TYPES[wanted]}", f"write {TYPES[wanted]}, as Orthanc asks")
            return default
        return value
