"""What a reload would change: the values of the file beside those in force."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ingest.config.model import Config
from ingest.config.reader import load_config
from ingest.config.serialization import config_to_values
from ingest.errors import ConfigError, IngestError


@dataclass(frozen=True, slots=True)
class Change:
    """A value that a reload would change.

    Attributes:
        key: Key in the file. An entry of a list of tables has its name, as in `destinations[pacs].port`.
        before: The value in force; None if there is none.
        after: The value in the file; None if it was removed.
    """

    key: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class Changes:
    """The changes, and why a reload would be refused."""

    items: Sequence[Change] = ()
    faults: Sequence[str] = field(default=())


def compare_with_file(config: Config, path: Path) -> Changes:
    """Compare the configuration in force with its file."""
    try:
        coming = load_config(path)
    except ConfigError as error:
        return Changes(faults=[str(fault) for fault in error.faults])
    except IngestError as error:
        return Changes(faults=[str(error)])
    before, after = dict(_flatten(config_to_values(config))), dict(_flatten(config_to_values(coming)))
    return Changes(
        [
            Change(key, before.get(key), after.get(key))
            for key in {**before, **after}
            if before.get(key) != after.get(key)
        ]
    )


def _flatten(values: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, Mapping) and values:
        for name, value in values.items():
            yield from _flatten(value, f"{key}.{name}" if key else str(name))
    elif isinstance(values, list) and values and all(isinstance(each, Mapping) for each in values):
        for name, value in zip(_name_entries(values), values, strict=True):
            yield from _flatten(value, f"{key}[{name}]")
    else:
        yield key, values


def _name_entries(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a name for each entry; its number if it has none, or shares it with another."""
    names = [str(entry.get("name") or entry.get("ae_title") or "") for entry in entries]
    counts = Counter(names)
    return [name if name and counts[name] == 1 else str(index) for index, name in enumerate(names)]
