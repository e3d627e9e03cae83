"""Reads a configuration, TOML or Orthanc's: file, environment, models, rules; tells all faults."""

import json
import os
import re
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ingest.config import rules
from ingest.config.environment import override
from ingest.config.faults import Fault, Location, faults_of, printable, without
from ingest.config.model import Config
from ingest.config.orthanc import files, reader
from ingest.config.orthanc.source import Source
from ingest.errors import ConfigError

_STAND_INS = {"ae_title": "MISSING", "host": "missing", "to": []}
"""Values for required keys that are missing, so that the rules can look at the rest of the configuration."""

_ROUNDS = 4
"""A repair may uncover a fault below it; the models are three levels deep."""


def load(
    path: str | os.PathLike[str], *, roles: Collection[str] = (), environ: Mapping[str, str] | None = None
) -> Config:
    """Read, override, validate.

    Args:
        path: A TOML file, or an Orthanc configuration (a JSON file or a folder of them); relative paths
            start at its folder.
        roles: What will run with it ("listen", "persist", "forward", "retain"); "listen" asks for a listener.
        environ: In place of `os.environ`.

    Raises:
        ConfigError: With every fault, each a line `key: cause; remedy`.
    """
    file = Path(path)
    environ = os.environ if environ is None else environ
    source = read(file, environ)
    data = source.tables
    variables, faults = override(data, environ)
    node = data.setdefault("node", {})
    if isinstance(node, dict):  # the default, like a path in the file, starts at the file's folder
        node.setdefault("data_dir", str(Config().data_dir))
    folder = file.absolute() if file.is_dir() else file.absolute().parent
    config, found = _validate(data, {"folder": folder.resolve()})
    faults += found
    if config is not None:
        names = rules.Names.of(data)
        faults += without(list(rules.faults(config, names, roles)), [f.key for f in found])
    told = {fault.key for fault in source.faults}
    faults = [*source.faults, *(f for f in faults if _origin(f, source.origins) not in told)]
    if faults or config is None:
        raise ConfigError([printable(_line(fault, variables, source)) for fault in faults])
    return config


def read(file: Path, environ: Mapping[str, str]) -> Source:
    """The tables of a file, as they are written or as Orthanc's keys mean them.

    Raises:
        ConfigError: It cannot be read or parsed.
    """
    if files.is_orthanc(file):
        return reader.read(file, environ)
    return Source(_toml(file))


def notes(path: Path, environ: Mapping[str, str] | None = None) -> list[Fault]:
    """What a node says of its file at start: Orthanc's keys that have no effect, or another one."""
    return read(path, os.environ if environ is None else environ).notes


def _toml(file: Path) -> dict[str, Any]:
    try:
        if not files.is_regular(file):
            raise ConfigError([f"{file}: is not a regular file; {files.REGULAR}"])
        return tomllib.loads(file.read_bytes().decode("utf-8"))
    except OSError as error:
        remedy = "name a TOML file that this user may read"
        raise ConfigError([f"{file}: cannot be read: {error.strerror}; {remedy}"]) from None
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError, and a NUL in the path
        raise ConfigError([_syntax(file, error)]) from None


def _syntax(file: Path, error: ValueError) -> str:
    """`file:line: cause; remedy`; tomllib says where only in its message (before Python 3.14)."""
    if isinstance(error, UnicodeDecodeError):
        line = error.object[: error.start].count(b"\n") + 1
        return f"{file}:{line}: is not UTF-8; save the file as UTF-8"
    if not isinstance(error, tomllib.TOMLDecodeError):
        return f"{file!s}: cannot be read: {error}; name a TOML file"
    place = re.search(r" \(at line (\d+), column (\d+)\)$", str(error))
    if place is None:
        return f"{file}: {error}; correct the TOML syntax"
    return f"{file}:{place[1]}: {str(error)[: place.start()]} at column {place[2]}; correct the TOML syntax"


def _validate(data: dict[str, Any], context: dict[str, Any]) -> tuple[Config | None, list[Fault]]:
    """Config and no faults; or the faults and, if it can be had, a Config with the faulty values left out."""
    faults: dict[Location, Fault] = {}
    # As JSON, because strict Python input would refuse a list for a tuple and a string for a path.
    whole = json.loads(json.dumps(data, default=lambda value: {"a TOML date or time": str(value)}))
    for _ in range(_ROUNDS):
        try:
            config = Config.model_validate_json(json.dumps(whole), strict=True, context=context)
        except ValidationError as error:
            found = faults_of(error)
            for location, fault in found.items():
                if not any(location[: len(known)] == known for known in faults):
                    faults[location] = fault
            for location in found:
                _repair(whole, location)
        else:
            return config, list(faults.values())
    return None, list(faults.values())


def _repair(whole: dict[str, Any], location: Location) -> None:
    """Take the faulty value out, or put a stand-in where one is required."""
    while len(location) > 2 and isinstance(location[-1], int):
        location = location[:-1]
    parent: Any = whole
    for part in location[:-1]:
        try:
            parent = parent[part]
        except (KeyError, IndexError):
            return  # went with an earlier repair
    name = location[-1]
    if isinstance(parent, list):
        parent[int(name)] = {}
    elif isinstance(parent, dict) and name in parent:
        del parent[name]
        if location[0] == "listeners" and name == "port":
            parent["port"] = 0  # the default would be taken by another listener
    elif isinstance(parent, dict):
        parent[str(name)] = _STAND_INS.get(str(name), f"missing-{location[-2]}" if len(location) > 1 else "")


def _line(fault: Fault, variables: Mapping[Location, str], source: Source) -> str:
    """With the variable or Orthanc's key that put the value there; that of a list stands for its items."""
    for location, variable in variables.items():
        if fault.key == rules.dotted(location):
            return f"{fault.key} (from {variable}): {fault.cause}; {fault.remedy}"
    key = _origin(fault, source.origins)
    remedies = {rules.dotted(location): remedy for location, remedy in source.remedies.items()}
    remedy = remedies.get(fault.key, fault.remedy)
    return f"{key} ({fault.key}): {fault.cause}; {remedy}" if key else str(fault)


def _origin(fault: Fault, orthanc_keys: Mapping[Location, str]) -> str:
    for location, key in orthanc_keys.items():
        place = rules.dotted(location)
        if fault.key == place or fault.key.startswith(f"{place}["):
            return key
    return ""
