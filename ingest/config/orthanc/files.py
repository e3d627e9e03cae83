"""Reads configuration files of Orthanc into one object, as Orthanc does: variables, then JSON, then merging.

Rules as Orthanc has them: environment variables are put into the text before it is parsed, comments and all;
 an undefined one without a default is empty; what jsoncpp lets pass (comments, trailing commas, the same
key twice in a file, text after the end) passes.
"""

import json
import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from ingest.config.faults import is_text, printable
from ingest.errors import ConfigError

_VARIABLE: Final = re.compile(
    r"""\$\{ (?P<name>[^:}]*)
        (?: :-(?: "(?P<double>[^"]*)" | '(?P<single>[^']*)' | (?P<bare>[^'"}]*) ) )? \}""",
    re.VERBOSE,
)
REGULAR: Final = "name a file, or a folder of Orthanc's configuration files"
"""What to do about a pipe, a socket or a device: a reload reads the configuration again."""

_TOKEN: Final = re.compile(r'"(?:\\.|[^"\\])*"|//[^\n]*|/\*.*?\*/|,', re.DOTALL)
_CLOSING: Final = re.compile(r"\s*[}\]]")


def is_orthanc(path: Path) -> bool:
    """Whether `path` is a folder, ends in .json, or begins as JSON (with comments) does and TOML never."""
    if path.is_dir() or path.suffix.lower() == ".json":
        return True
    try:
        if not is_regular(path):
            return False
        with path.open("rb") as file:
            begin = file.read(4096)
    except (OSError, ValueError):
        return False
    return begin.removeprefix(b"\xef\xbb\xbf").lstrip().startswith((b"{", b"//", b"/*"))


def read(path: Path, environ: Mapping[str, str]) -> dict[str, Any]:
    """One file; or all *.json of a folder (not of those below it), whose keys have to differ.

    Raises:
        ConfigError: With every fault, each a line that names the file.
    """
    files = _files(path) if path.is_dir() else [path]
    merged: dict[str, Any] = {}
    homes: dict[str, Path] = {}
    faults: list[str] = []
    for file in files:
        try:
            found = parse(file, _text(file), environ)
        except ConfigError as error:
            faults += error.faults
            continue
        for key, value in found.items():
            if key in homes:
                cause = f"{printable(key)} is in {homes[key]} too"
                faults.append(f"{file}: {cause}; keep one of both, as Orthanc asks")
                continue
            merged[key], homes[key] = value, file
    if faults:
        raise ConfigError(faults)
    return merged


def is_regular(path: Path) -> bool:
    """Whether reading `path` ends, as it need not with a pipe that nobody writes to.

    Raises:
        OSError: There is nothing, or no way to it.
        ValueError: A NUL in it.
    """
    return stat.S_ISREG(path.stat().st_mode)


def _files(folder: Path) -> list[Path]:
    """What a folder is read from; what cannot be read is told when it is."""
    try:
        found = sorted(file for file in folder.iterdir() if file.suffix.lower() == ".json")
    except OSError as error:
        remedy = "let this user list and search the folder"
        raise ConfigError([f"{folder}: cannot be read: {error.strerror}; {remedy}"]) from None
    files = [file for file in found if not os.path.isdir(file)]
    if not files:
        raise ConfigError([f"{folder}: holds no *.json; name a folder with Orthanc's configuration files"])
    return files


def _text(file: Path) -> str:
    try:
        if not is_regular(file):
            raise ConfigError([f"{file}: is not a regular file; {REGULAR}"])
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError([f"{file}:{line}: is not UTF-8; save the file as UTF-8"]) from None
    except OSError as error:
        remedy = "name a file that this user may read"
        raise ConfigError([f"{file}: cannot be read: {error.strerror}; {remedy}"]) from None
    except ValueError as error:  # a NUL in the path
        raise ConfigError([f"{file!s}: cannot be read: {error}; name a file"]) from None


def parse(file: Path, text: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """The object in `text`; `file` is for messages, which show nothing of the values.

    Raises:
        ConfigError: It is not JSON as Orthanc reads it.
    """
    whole = _plain(substituted(text, environ))
    plain = whole.lstrip()
    skipped = whole[: len(whole) - len(plain)].count("\n")
    try:
        found, _ = json.JSONDecoder(strict=False, parse_constant=_no_constant).raw_decode(plain)
    except json.JSONDecodeError as error:
        line = error.lineno + skipped
        remedy = "correct the JSON syntax (and what environment variables put into it)"
        raise ConfigError([f"{file}:{line}: {error.msg} at column {error.colno}; {remedy}"]) from None
    except (ValueError, RecursionError):
        raise ConfigError([f"{file}: a value is out of range or too deep; correct it"]) from None
    if not isinstance(found, dict):
        raise ConfigError([f"{file}: is not an object; write the keys within {{ }}"])
    torn = _torn(found)
    if torn:
        remedy = "write it in UTF-8 (and what environment variables put into it)"
        raise ConfigError([f"{file}: {torn}: holds what is no character; {remedy}"])
    return found


def _torn(found: dict[str, Any]) -> str:
    """Where half a surrogate pair is, which no output takes: of an escape, or of a byte that is not UTF-8."""
    waiting: list[tuple[str, Any]] = [("", found)]
    while waiting:  # nothing says how deep it is
        place, value = waiting.pop()
        if isinstance(value, str) and not is_text(value):
            return place
        items: Iterable[tuple[Any, Any]] = ()
        if isinstance(value, dict):
            items = value.items()
        elif isinstance(value, list):
            items = enumerate(value)
        for key, item in items:
            inner = (
                f"{place}[{key}]" if isinstance(key, int) else f"{place}.{printable(key)}".removeprefix(".")
            )
            waiting += [(inner, item), (inner, key)]
    return ""


def substituted(text: str, environ: Mapping[str, str]) -> str:
    """`${NAME}` and `${NAME:-default}` (the default may be quoted) replaced; an empty variable is set."""

    def value(found: re.Match[str]) -> str:
        default = found["double"] or found["single"] or found["bare"] or ""
        return environ.get(found["name"], default)

    return _VARIABLE.sub(value, text)


def _plain(text: str) -> str:
    """Without comments and trailing commas; every line stays where it is."""

    def kept(found: re.Match[str]) -> str:
        token = found[0]
        if token.startswith("/"):
            return " " + "\n" * token.count("\n")
        return token

    def closed(found: re.Match[str]) -> str:
        return " " if found[0] == "," and _CLOSING.match(found.string, found.end()) else found[0]

    return _TOKEN.sub(closed, _TOKEN.sub(kept, text))


def _no_constant(name: str) -> float:
    raise ValueError(name)
