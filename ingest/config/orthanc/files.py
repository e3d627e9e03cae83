"""The reader of Orthanc's configuration files: variables, JSON and merging, as in Orthanc.

Environment variables are substituted in the whole text, including comments, before it is parsed. An undefined
variable without a default is empty. The reader accepts what jsoncpp accepts: comments, trailing commas, the
same key twice in a file, text after the end.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from ingest.config.faults import escape_unprintable, is_utf8
from ingest.config.source import REGULAR_FILE_REMEDY, is_regular_file
from ingest.errors import ConfigError

_VARIABLE: Final = re.compile(
    r"""\$\{ (?P<name>[^:}]*)
        (?: :-(?: "(?P<double>[^"]*)" | '(?P<single>[^']*)' | (?P<bare>[^'"}]*) ) )? \}""",
    re.VERBOSE,
)
_TOKEN: Final = re.compile(r'"(?:\\.|[^"\\])*"|//[^\n]*|/\*.*?\*/|,', re.DOTALL)
_CLOSING: Final = re.compile(r"\s*[}\]]")


def read_orthanc_files(path: Path, environ: Mapping[str, str]) -> dict[str, Any]:
    """Read one file, or all *.json directly in a folder. No key may be in two files.

    Raises:
        ConfigError: The files have faults. The error has all of them, each a line that names the file.
    """
    files = _list_files(path) if path.is_dir() else [path]
    merged: dict[str, Any] = {}
    homes: dict[str, Path] = {}
    faults: list[str] = []
    for file in files:
        try:
            values = parse_orthanc_file(file, _read_text(file), environ)
        except ConfigError as error:
            faults += error.faults
            continue
        for key, value in values.items():
            if key in homes:
                cause = f"{escape_unprintable(key)} is in {homes[key]} too"
                faults.append(f"{file}: {cause}; keep one of them, as Orthanc requires")
                continue
            merged[key], homes[key] = value, file
    if faults:
        raise ConfigError(faults)
    return merged


def _list_files(folder: Path) -> list[Path]:
    """Return the configuration files in a folder, readable or not."""
    try:
        found = sorted(file for file in folder.iterdir() if file.suffix.lower() == ".json")
    except OSError as error:
        remedy = "let this user list and search the folder"
        raise ConfigError([f"{folder}: cannot be read: {error.strerror}; {remedy}"]) from None
    files = [file for file in found if not os.path.isdir(file)]
    if not files:
        raise ConfigError([f"{folder}: contains no *.json; name a folder with Orthanc's configuration files"])
    return files


def _read_text(file: Path) -> str:
    try:
        if not is_regular_file(file):
            raise ConfigError([f"{file}: is not a regular file; {REGULAR_FILE_REMEDY}"])
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError([f"{file}:{line}: is not UTF-8; save the file as UTF-8"]) from None
    except OSError as error:
        remedy = "name a file that this user may read"
        raise ConfigError([f"{file}: cannot be read: {error.strerror}; {remedy}"]) from None
    except ValueError as error:  # a NUL in the path
        raise ConfigError([f"{file!s}: cannot be read: {error}; name a file"]) from None


def parse_orthanc_file(file: Path, text: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """Parse the object in `text`. Error messages name `file`, and contain no values.

    Raises:
        ConfigError: The text is not JSON as Orthanc reads it.
    """
    whole = _strip_comments(substitute_variables(text, environ))
    plain = whole.lstrip()
    skipped = whole[: len(whole) - len(plain)].count("\n")
    try:
        found, _ = json.JSONDecoder(strict=False, parse_constant=_refuse_constant).raw_decode(plain)
    except json.JSONDecodeError as error:
        line = error.lineno + skipped
        remedy = "correct the JSON syntax (and what environment variables put into it)"
        raise ConfigError([f"{file}:{line}: {error.msg} at column {error.colno}; {remedy}"]) from None
    except (ValueError, RecursionError):
        raise ConfigError([f"{file}: a value is out of range or too deep; correct it"]) from None
    if not isinstance(found, dict):
        raise ConfigError([f"{file}: is not an object; write the keys within {{ }}"])
    key = _find_invalid_text(found)
    if key:
        remedy = "write it in UTF-8 (and what environment variables put into it)"
        raise ConfigError([f"{file}: {key}: contains half a surrogate pair, which is no character; {remedy}"])
    return found


def _find_invalid_text(values: dict[str, Any]) -> str:
    """Return the key of the first text with half a surrogate pair, or nothing.

    Half a pair comes from an escape or from a byte that is not UTF-8. No output accepts such a text.
    """
    waiting: list[tuple[str, Any]] = [("", values)]
    while waiting:  # no recursion: the depth of the object has no limit
        place, value = waiting.pop()
        if isinstance(value, str) and not is_utf8(value):
            return place
        items: Iterable[tuple[Any, Any]] = ()
        if isinstance(value, dict):
            items = value.items()
        elif isinstance(value, list):
            items = enumerate(value)
        for key, item in items:
            inner = (
                f"{place}[{key}]"
                if isinstance(key, int)
                else f"{place}.{escape_unprintable(key)}".removeprefix(".")
            )
            waiting += [(inner, item), (inner, key)]
    return ""


def substitute_variables(text: str, environ: Mapping[str, str]) -> str:
    """Replace `${NAME}` and `${NAME:-default}`.

    The default may be quoted. An empty variable counts as set.
    """

    def find_value(found: re.Match[str]) -> str:
        default = found["double"] or found["single"] or found["bare"] or ""
        return environ.get(found["name"], default)

    return _VARIABLE.sub(find_value, text)


def _strip_comments(text: str) -> str:
    """Remove comments and trailing commas, and keep the line numbers."""

    def blank_comment(found: re.Match[str]) -> str:
        token = found[0]
        if token.startswith("/"):
            return " " + "\n" * token.count("\n")
        return token

    def blank_trailing_comma(found: re.Match[str]) -> str:
        return " " if found[0] == "," and _CLOSING.match(found.string, found.end()) else found[0]

    return _TOKEN.sub(blank_trailing_comma, _TOKEN.sub(blank_comment, text))


def _refuse_constant(name: str) -> float:
    raise ValueError(name)
