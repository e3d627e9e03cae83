"""An Orthanc configuration written as commented TOML of ours."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from ingest.config.faults import Location
from ingest.config.orthanc import reader
from ingest.config.orthanc.source import Source
from ingest.config.show import toml_key, toml_value

_PATHS: Final = frozenset({"data_dir", "certificate", "private_key", "trusted"})
"""The keys, of those that an Orthanc configuration sets, that are paths (`[[peers]] certificate` is none)."""

_COLUMN: Final = 48


def as_toml(path: Path, environ: Mapping[str, str]) -> str:
    """What `ingest.config.load` makes of `path`, as TOML that it reads alike from any folder.

    Raises:
        ConfigError: It is not JSON as Orthanc reads it.
    """
    source = reader.read(path, environ)
    folder = path.absolute() if path.is_dir() else path.absolute().parent
    lines = [f"# From the Orthanc configuration {_one_line(path.name)}; behind each key, Orthanc's.", "#"]
    lines += [f"# {_one_line(str(note))}" for note in source.notes]
    for name, section in sorted(source.tables.items(), key=lambda item: isinstance(item[1], list)):
        if isinstance(section, list):
            for index, item in enumerate(section):
                lines += ["", f"[[{name}]]", *_table(source, (name, index), item, folder)]
        elif name == "tls":
            for key, item in section.items():
                lines += ["", f"[tls.{toml_key(key)}]", *_table(source, (name, key), item, folder)]
        else:
            lines += ["", f"[{name}]", *_table(source, (name,), section, folder)]
    return "\n".join(lines) + "\n"


def _table(source: Source, place: Location, table: Mapping[str, Any], folder: Path) -> Iterator[str]:
    for name, value in table.items():
        shown = _absolute(value, folder) if name in _PATHS else value
        origin = source.origins.get((*place, name), "")
        line = f"{toml_key(name)} = {toml_value(shown)}"
        yield f"{line:{_COLUMN}} # {_one_line(origin)}" if origin else line


def _absolute(value: Any, folder: Path) -> Any:
    if isinstance(value, list):
        return [_absolute(item, folder) for item in value]
    return os.path.normpath(folder.resolve() / value)


def _one_line(text: str) -> str:
    """For a comment: what came from the file could hold a line break."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
