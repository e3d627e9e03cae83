"""Environment variables `INGEST_SECTION__KEY`, which override a key of the file.

The value is written as in TOML (`INGEST_RECEIVE__PROCESSES=2`, `INGEST_LISTENERS__0__TLS=false`), or without
quotes if the key takes text (`INGEST_NODE__AE_TITLE=STORE1`). An index from 0 names a table of a list.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, Final, Literal, get_args, get_origin

from pydantic import BaseModel

from ingest.config.faults import Fault, Location, find_annotation, is_utf8

PREFIX: Final = "INGEST_"


def apply_environment(
    tables: dict[str, Any], environ: Mapping[str, str]
) -> tuple[dict[Location, str], list[Fault]]:
    """Write every override into `tables`.

    Returns:
        The variable behind each key that was set, with which a fault can name the variable. Then a fault for
        each variable that names no key of the file.
    """
    origins: dict[Location, str] = {}
    faults = []
    for variable in sorted(environ):
        if not variable.startswith(PREFIX) or "__" not in variable:
            continue
        if not is_utf8(variable + environ[variable]):
            faults.append(Fault(variable, "is not UTF-8", "set it in UTF-8"))
            continue
        location = _find_location(tables, variable.removeprefix(PREFIX).split("__"))
        if location is None:
            remedy = (
                "name sections and keys of the file, as in INGEST_NODE__AE_TITLE or INGEST_LISTENERS__0__PORT"
            )
            faults.append(Fault(variable, "names no place in the configuration", remedy))
            continue
        parent: Any = tables
        for part in location[:-1]:
            parent = parent[part]
        parent[location[-1]] = _parse_value(environ[variable], find_annotation(location))
        origins[location] = variable
    return origins, faults


def _find_location(tables: dict[str, Any], parts: list[str]) -> Location | None:
    """Follow the parts of a variable's name, and make missing tables on the way; None if there is no way."""
    here: Any = tables
    location: list[str | int] = []
    for depth, part in enumerate(parts):
        if isinstance(here, list):
            if not part.isdecimal() or int(part) >= len(here):
                return None
            step: str | int = int(part)
        elif isinstance(here, dict) and part:
            step = _find_key(here, part)
            if depth < len(parts) - 1:
                here.setdefault(step, {})
        else:
            return None
        location.append(step)
        if depth < len(parts) - 1:
            here = here[step]
    return tuple(location) if isinstance(here, dict) and len(parts) > 1 else None


def _find_key(table: Mapping[str, Any], part: str) -> str:
    """Return the key that `part` means.

    A variable distinguishes neither case nor hyphens. The NAME of a [tls.NAME] may contain both.
    """
    return next((key for key in table if key.replace("-", "_").upper() == part.upper()), part.lower())


def _parse_value(text: str, annotation: Any) -> Any:
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        table = {}
    if table.keys() != {"value"}:
        return [text] if _is_list_of_text(annotation) and text else text
    value = table["value"]
    if _accepts_text(annotation) and not isinstance(value, str) and not _accepts_false(annotation, value):
        return text
    return value


def _accepts_text(annotation: Any) -> bool:
    if get_origin(annotation) is Literal:
        return str in {type(choice) for choice in get_args(annotation)}
    options = get_args(annotation) or (annotation,)
    return any(option in {str, Path} for option in options) and get_origin(annotation) not in {tuple, dict}


def _accepts_false(annotation: Any, value: Any) -> bool:
    return value is False and any(get_args(option) == (False,) for option in get_args(annotation))


def _is_list_of_text(annotation: Any) -> bool:
    if get_origin(annotation) is not tuple:
        return False
    item = get_args(annotation)[0]
    return not (isinstance(item, type) and issubclass(item, BaseModel | NoneType))
