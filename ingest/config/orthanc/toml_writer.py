"""The writer of an Orthanc configuration as commented TOML."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from ingest.config.faults import Location
from ingest.config.orthanc.reader import read_orthanc_source
from ingest.config.serialization import format_toml_key, format_toml_value
from ingest.config.source import ConfigSource

_PATHS: Final = frozenset({"data_dir", "certificate", "private_key", "trusted"})
"""Keys with paths, among those that an Orthanc configuration sets.

(It never sets `[[peers]] certificate`.)
"""

_COLUMN: Final = 48


def translate_to_toml(path: Path, environ: Mapping[str, str]) -> str:
    """Translate an Orthanc configuration to TOML that means the same in any folder.

    Raises:
        ConfigError: The configuration is not JSON as Orthanc reads it.
    """
    source = read_orthanc_source(path, environ)
    folder = path.absolute() if path.is_dir() else path.absolute().parent
    lines = [
        f"# From the Orthanc configuration {_escape_line_breaks(path.name)}; behind each key, Orthanc's key.",
        "#",
    ]
    lines += [f"# {_escape_line_breaks(str(note))}" for note in source.notes]
    for name, section in sorted(source.tables.items(), key=lambda item: isinstance(item[1], list)):
        if isinstance(section, list):
            for index, item in enumerate(section):
                lines += ["", f"[[{name}]]", *_format_table(source, (name, index), item, folder)]
        elif name == "tls":
            for key, item in section.items():
                lines += [
                    "",
                    f"[tls.{format_toml_key(key)}]",
                    *_format_table(source, (name, key), item, folder),
                ]
        else:
            lines += ["", f"[{name}]", *_format_table(source, (name,), section, folder)]
    return "\n".join(lines) + "\n"


def _format_table(
    source: ConfigSource, location: Location, table: Mapping[str, Any], folder: Path
) -> Iterator[str]:
    for name, value in table.items():
        shown = _make_absolute(value, folder) if name in _PATHS else value
        origin = source.origins.get((*location, name), "")
        line = f"{format_toml_key(name)} = {format_toml_value(shown)}"
        yield f"{line:{_COLUMN}} # {_escape_line_breaks(origin)}" if origin else line


def _make_absolute(value: Any, folder: Path) -> Any:
    if isinstance(value, list):
        return [_make_absolute(item, folder) for item in value]
    return os.path.normpath(folder.resolve() / value)


def _escape_line_breaks(text: str) -> str:
    """Return `text` for a comment: a value of the file may contain a line break."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
