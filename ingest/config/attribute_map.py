"""The file of `[[destinations]] map`: a line for each object to change, found by values of its attributes.

The first line names the columns. `match:KEYWORD` is a column to compare with the attribute, `KEYWORD` a
column with its new value. An empty cell of a new value leaves the attribute as it is. The file is UTF-8, and
its separator is a comma, a semicolon or a tab, as in the first line.

A fault names the file and the line, and never a value.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ingest.config.attribute_values import BINARY, NewValue, parse_attribute, parse_new_value
from ingest.errors import ConditionError, ConfigError

Misfit = tuple[str, str]
"""Cause and remedy of a fault in a file; the cause begins with the file and the line."""

FAULTS_MAX: Final = 20
"""Faults of one file that are reported."""

_MATCH: Final = "match:"
_TEXT_COLUMNS_ONLY: Final = frozenset({"SQ", "OB", "OW", "OF", "OD", "OL", "OV", "UN", "AT", *BINARY})


@dataclass(frozen=True, slots=True)
class AttributeMap:
    """A map in memory.

    Attributes:
        matched: Tags whose values are compared.
        rows: New values, by the compared values (`normalize_value`).
    """

    matched: tuple[int, ...]
    rows: Mapping[tuple[str, ...], tuple[NewValue, ...]]


def normalize_value(text: str) -> str:
    """Return a value as it is compared: without padding, and without empty components at its end."""
    return text.strip(" \0").rstrip("^=")


def read_attribute_map(path: Path) -> AttributeMap:
    """Read a map.

    Raises:
        ConfigError: The file cannot be read, or lines of it are wrong.
    """
    found, misfits = _read_file(path)
    if misfits:
        raise ConfigError([f"{cause}; {remedy}" for cause, remedy in misfits])
    return found


def find_misfits(path: Path) -> Sequence[Misfit]:
    """Return what is wrong with the file of a map."""
    return _read_file(path)[1]


def _read_file(path: Path) -> tuple[AttributeMap, Sequence[Misfit]]:
    nothing = AttributeMap((), {})
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        return nothing, [(f"{path} cannot be read: {error.strerror}", "let this user read it")]
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        return nothing, [(f"{path}:{line}: is not UTF-8", "save the file as UTF-8")]
    reader = _MapReader(path, text)
    return reader.read(), reader.misfits


class _MapReader:
    """Reads the lines of one map. `misfits` has what is wrong with them."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._lines = csv.reader(text.splitlines(keepends=True), delimiter=_find_separator(text), strict=True)
        self.misfits: list[Misfit] = []
        self._names: list[str] = []
        self._matched: dict[int, int] = {}  # columns by tag
        self._set: dict[int, int] = {}

    def read(self) -> AttributeMap:
        rows: dict[tuple[str, ...], tuple[NewValue, ...]] = {}
        first_lines: dict[tuple[str, ...], int] = {}
        try:
            self._read_head(next(self._lines, []))
            for cells in self._lines if not self.misfits else ():
                if not any(cells):
                    continue
                line = self._lines.line_num
                if len(cells) != len(self._names):
                    self._add(line, f"has {len(cells)} cells, and the first line has {len(self._names)}")
                    continue
                key = tuple(normalize_value(cells[column]) for column in self._matched.values())
                if not any(key):
                    # Such a line would give one identity to all objects without one, and mix up patients.
                    self._add(
                        line, "compares empty values only", "fill a cell to compare, or remove the line"
                    )
                if (first := first_lines.setdefault(key, line)) != line:
                    self._add(line, f"compares the same values as line {first}", "keep one of the two")
                rows[key] = tuple(self._read_values(cells, line))
                if len(self.misfits) >= FAULTS_MAX:
                    break
        except csv.Error as error:
            self._add(self._lines.line_num, f"is no line of a CSV file: {error}")
        return AttributeMap(tuple(self._matched), rows)

    def _read_head(self, names: Sequence[str]) -> None:
        self._names = [name.strip() for name in names]
        for column, name in enumerate(self._names):
            keyword = name.removeprefix(_MATCH).strip()
            columns = self._matched if name.startswith(_MATCH) else self._set
            try:
                # A column that is compared may be one that must not be changed, such as a UID.
                is_matched = columns is self._matched
                tag = _parse_matched(keyword) if is_matched else parse_new_value(keyword, "").tag
            except ConditionError as error:
                self._add(1, str(error), error.remedy)
                continue
            if columns.setdefault(tag, column) != column:
                self._add(1, f'names "{keyword}" twice')
        if not self.misfits and not (self._matched and self._set):
            said = 'has no column to compare, or none to set: write for example "match:PatientID,PatientID"'
            self._add(1, said)

    def _read_values(self, cells: Sequence[str], line: int) -> Iterator[NewValue]:
        for column in self._set.values():
            if not cells[column].strip():
                continue
            try:
                yield parse_new_value(self._names[column], cells[column].strip())
            except ConditionError as error:
                self._add(line, str(error), error.remedy)

    def _add(self, line: int, cause: str, remedy: str = "correct the line") -> None:
        self.misfits.append((f"{self._path}:{line}: {cause}", remedy))


def _parse_matched(keyword: str) -> int:
    from ingest.dicom import registry  # noqa: PLC0415 - slow to import, and most nodes change nothing

    tag = registry.find_tag(keyword)
    if tag is None:
        tag, vr = parse_attribute(keyword)
    else:
        vr = registry.find_vr(tag) or "UN"
    if vr.partition(" ")[0] in _TEXT_COLUMNS_ONLY:
        raise ConditionError(f'"{keyword}" has no text to compare (VR {vr})', "compare another attribute")
    return tag


def _find_separator(text: str) -> str:
    head = text.partition("\n")[0]
    return next((each for each in ",;\t" if each in head), ",")
