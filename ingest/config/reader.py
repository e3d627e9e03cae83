"""The reader of configurations: file, environment, models and rules, with all faults reported at once."""

import json
import os
import re
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from ingest.config import rules
from ingest.config.environment import apply_environment
from ingest.config.faults import (
    Fault,
    Location,
    collect_model_faults,
    escape_unprintable,
    format_location,
    remove_reported,
)
from ingest.config.model import Config
from ingest.config.passwords import insert_passwords
from ingest.config.source import REGULAR_FILE_REMEDY, ConfigSource, is_orthanc_file, is_regular_file
from ingest.errors import ConfigError

_STAND_INS: Final = {"ae_title": "MISSING", "host": "missing", "to": [], "type": "webhook", "hours": 1}
"""Values for required keys that are missing. The rules can then check the rest of the configuration."""

_MAX_REPAIRS: Final = 4
"""A repair may reveal a fault below it. The models are three levels deep."""


def load_config(
    path: str | os.PathLike[str], *, roles: Collection[str] = (), environ: Mapping[str, str] | None = None
) -> Config:
    """Read a configuration, apply the environment, and validate the result.

    Args:
        path: A TOML file, or an Orthanc configuration (a JSON file or a folder of them). Relative paths in it
            start at its folder.
        roles: The roles that will run with it ("listen", "persist", "forward", "retain", "monitor",
            "console"). "listen" requires a listener.
        environ: Environment variables to use instead of `os.environ`.

    Raises:
        ConfigError: The configuration has faults. The error has all of them, each a line `key: cause;
        remedy`.
    """
    file = Path(path)
    environ = os.environ if environ is None else environ
    source = read_source(file, environ)
    tables = source.tables
    variables, faults = apply_environment(tables, environ)
    node = tables.setdefault("node", {})
    if isinstance(node, dict):  # the default starts at the file's folder, as a path in the file does
        node.setdefault("data_dir", str(Config().data_dir))
    folder = file.absolute() if file.is_dir() else file.absolute().parent
    config, model_faults = _validate_tables(tables, {"folder": folder.resolve()})
    faults += model_faults
    if config is not None:
        names = rules.SectionNames.of_tables(tables)
        rule_faults = list(rules.check_rules(config, names, roles))
        faults += remove_reported(rule_faults, [fault.key for fault in model_faults])
    reported = {fault.key for fault in source.faults}
    faults = [
        *source.faults,
        *(each for each in faults if _find_origin(each, source.origins) not in reported),
    ]
    if faults or config is None:
        raise ConfigError([escape_unprintable(_format_fault(each, variables, source)) for each in faults])
    try:
        return insert_passwords(config)
    except (OSError, ValueError) as error:
        raise ConfigError(
            [f"{file}: a password file was replaced while it was read: {error}; try again"]
        ) from None


def read_source(file: Path, environ: Mapping[str, str]) -> ConfigSource:
    """Read the tables of a TOML file, or translate an Orthanc configuration into tables.

    Raises:
        ConfigError: The file cannot be read or parsed.
    """
    if is_orthanc_file(file):
        # Few nodes have an Orthanc configuration: the others do not pay for the import.
        from ingest.config.orthanc.reader import read_orthanc_source  # noqa: PLC0415

        return read_orthanc_source(file, environ)
    return ConfigSource(_read_toml(file))


def read_notes(path: Path, environ: Mapping[str, str] | None = None) -> list[Fault]:
    """Return the notes about a file that a node logs at start: Orthanc's keys with no or another effect."""
    return read_source(path, os.environ if environ is None else environ).notes


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        if not is_regular_file(file):
            raise ConfigError([f"{file}: is not a regular file; {REGULAR_FILE_REMEDY}"])
        return tomllib.loads(file.read_bytes().decode("utf-8"))
    except OSError as error:
        remedy = "name a TOML file that this user may read"
        raise ConfigError([f"{file}: cannot be read: {error.strerror}; {remedy}"]) from None
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError, and a NUL in the path
        raise ConfigError([_format_syntax_error(file, error)]) from None


def _format_syntax_error(file: Path, error: ValueError) -> str:
    """Write a syntax error as `file:line: cause; remedy`.

    Before Python 3.14 tomllib gives the line only in its message, so this function parses the message.
    """
    if isinstance(error, UnicodeDecodeError):
        line = error.object[: error.start].count(b"\n") + 1
        return f"{file}:{line}: is not UTF-8; save the file as UTF-8"
    if not isinstance(error, tomllib.TOMLDecodeError):
        return f"{file!s}: cannot be read: {error}; name a TOML file"
    position = re.search(r" \(at line (\d+), column (\d+)\)$", str(error))
    if position is None:
        return f"{file}: {error}; correct the TOML syntax"
    message = str(error)[: position.start()]
    return f"{file}:{position[1]}: {message} at column {position[2]}; correct the TOML syntax"


def _validate_tables(tables: dict[str, Any], context: dict[str, Any]) -> tuple[Config | None, list[Fault]]:
    """Validate the tables with the models.

    Returns:
        The configuration and no faults; or the faults, with a configuration that leaves the wrong values
        out. The configuration is None if too much is wrong.
    """
    faults: dict[Location, Fault] = {}
    # The models read JSON: in strict mode, Python input would refuse a list for a tuple and a string for a
    # path.
    values = json.loads(json.dumps(tables, default=lambda value: {"a TOML date or time": str(value)}))
    for _ in range(_MAX_REPAIRS):
        try:
            config = Config.model_validate_json(json.dumps(values), strict=True, context=context)
        except ValidationError as error:
            found = collect_model_faults(error)
            for location, fault in found.items():
                if not any(location[: len(known)] == known for known in faults):
                    faults[location] = fault
            for location in found:
                _repair_value(values, location)
        else:
            return config, list(faults.values())
    return None, list(faults.values())


def _repair_value(values: dict[str, Any], location: Location) -> None:
    """Remove a wrong value, or put a stand-in where a value is required."""
    while len(location) > 2 and isinstance(location[-1], int):
        location = location[:-1]
    parent: Any = values
    for part in location[:-1]:
        try:
            parent = parent[part]
        except (KeyError, IndexError):
            return  # an earlier repair has removed it
    name = location[-1]
    if isinstance(parent, list):
        parent[int(name)] = {}
    elif isinstance(parent, dict) and name in parent:
        del parent[name]
        if location[0] == "listeners" and name == "port":
            parent["port"] = 0  # another listener may have the default port
    elif isinstance(parent, dict):
        parent[str(name)] = _STAND_INS.get(str(name), f"missing-{location[-2]}" if len(location) > 1 else "")


def _format_fault(fault: Fault, variables: Mapping[Location, str], source: ConfigSource) -> str:
    """Write a fault with the variable or Orthanc's key that set the value.

    A list's origin holds for its items.
    """
    for location, variable in variables.items():
        if fault.key == format_location(location):
            return f"{fault.key} (from {variable}): {fault.explanation}"
    key = _find_origin(fault, source.origins)
    remedies = {format_location(location): remedy for location, remedy in source.remedies.items()}
    remedy = remedies.get(fault.key, fault.remedy)
    return f"{key} ({fault.key}): {fault.cause}; {remedy}" if key else str(fault)


def _find_origin(fault: Fault, orthanc_keys: Mapping[Location, str]) -> str:
    for location, key in orthanc_keys.items():
        text = format_location(location)
        if fault.key == text or fault.key.startswith(f"{text}["):
            return key
    return ""
