"""Reads configuration files of Orthanc into one object, as Orthanc does: variables, then JSON, then merging.

Rules as Orthanc has them: environment variables are put into the text before it is parsed, comments and all;
 an undefined one without a default is empty; what jsoncpp lets pass (comments, trailing commas, the same
key twice in a file, text after the end) passes.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ingest.errors import ConfigError

_VARIABLE: Final = re.compile(
    r"""\$\{ (?P<name>[^:}]*)
        (?: :-(?: "(?P<double>[^"]*)" | '(?P<single>[^']*)' | (?P<bare>[^'"}]*) ) )? \}""",
    re.VERBOSE,
)
_TOKEN: Final = re.compile(r'"(?:\\.|[^"\\])*"|//[^\n]*|/\*.*?\*/|,', re.DOTALL)
_CLOSING: Final = re.compile(r"\s*[}\]]")


def is_orthanc(path: Path) -> bool:
    """Whether `path` is a folder, ends in .json, or begins as JSON (with comments) does and TOML never."""
    if path.is_dir() or path.suffix.lower() == ".json":
        return True
    try:
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
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and file.suffix.lower() == ".json")
        if not files:
            raise ConfigError([f"{path}: holds no *.json; name a folder with Orthanc's configuration files"])
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
                faults.append(f"{file}: {key} is in {homes[key]} too; keep one of both, as Orthanc asks")
                continue
            merged[key], homes[key] = value, file
    if faults:
        raise ConfigError(faults)
    return merged


def _text(file: Path) -> str:
    try:
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
    return found


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
