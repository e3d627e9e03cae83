"""Compare a quarantined instance with the stored one of its SOP Instance UID, attribute by attribute."""

import contextlib
import hashlib
import os
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from ingest.config.model import Config
from ingest.errors import NotQuarantinedError, PathEscapesError
from ingest.filesystem.beneath import open_beneath
from ingest.ledger import Instance, InstanceState, Ledger

MAX_ROWS: Final = 500
"""Attributes that a comparison lists; those that differ come first."""

MAX_TEXT: Final = 200
"""Characters of a value that are shown."""

READ_BYTES: Final = 16 * 1024**2
"""Bytes of each file that are read. Pixel data beyond are compared by their length only."""

_LONG_VALUES: Final = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})


@dataclass(frozen=True, slots=True)
class ComparedAttribute:
    """An attribute of both instances; an empty text where one lacks it."""

    tag: str
    name: str
    stored: str
    quarantined: str
    differs: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both instances side by side.

    Attributes:
        rows: Attributes, those that differ first.
        remark: How much differs, or why nothing can be compared.
        stored_id: Row of the stored instance; None without one.
    """

    rows: tuple[ComparedAttribute, ...] = ()
    remark: str = ""
    stored_id: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the comparison for JSON."""
        return asdict(self)


def compare_quarantined(config: Config, number: int) -> Comparison:
    """Compare the instance of a row in quarantine with the stored one of its UID.

    Raises:
        NotQuarantinedError: The row is not in quarantine.
    """
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        own = ledger.instances.find_by_ids([number]).get(number)
        if own is None or own.state is not InstanceState.QUARANTINED:
            raise NotQuarantinedError(f"{number}: is not in quarantine; see `ingest quarantine list`")
        same = ledger.instances.find_by_sop_instance_uid(own.sop_instance_uid) if own.sop_instance_uid else []
    stored = next((row for row in same if row.state is InstanceState.STORED), None)
    if stored is None:
        return Comparison(remark="No instance of this SOP Instance UID is stored.")
    before = _read_attributes(config.store_root, stored)
    after = _read_attributes(config.quarantine_dir, own)
    if before is None or after is None:
        name = "stored" if before is None else "quarantined"
        return Comparison(remark=f"The {name} file cannot be read.", stored_id=stored.id)
    rows = [
        ComparedAttribute(tag, name, was, now, was != now)
        for tag in sorted(before.keys() | after.keys())
        for (name, was, now) in [_pair(before.get(tag), after.get(tag))]
    ]
    differing = sum(row.differs for row in rows)
    rows.sort(key=lambda row: not row.differs)
    remark = f"{differing} of {len(rows)} attributes differ."
    if len(rows) > MAX_ROWS:
        remark += f" The first {MAX_ROWS} are shown."
    return Comparison(tuple(rows[:MAX_ROWS]), remark, stored.id)


_Attribute = tuple[str, str]
"""Name and value of an attribute."""


def _pair(before: _Attribute | None, after: _Attribute | None) -> tuple[str, str, str]:
    name = (before or after or ("", ""))[0]
    return name, before[1] if before else "", after[1] if after else ""


def _read_attributes(root: Path, row: Instance) -> dict[str, _Attribute] | None:
    """Return the attributes of a file by tag; None if it cannot be read.

    A peer made the file. pydicom may raise anything while it reads such a file, and only the first part of a
    large one is read.
    """
    import pydicom  # noqa: PLC0415 - few processes compare files

    try:
        fd = open_beneath(root, row.store_key)
    except (OSError, PathEscapesError):
        return None
    try:
        with open(fd, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            is_large = os.fstat(fd).st_size > READ_BYTES
            data = pydicom.dcmread(file, force=True, stop_before_pixels=is_large, defer_size=1024**2)
            found: dict[str, _Attribute] = {}
            _flatten(data, "", found)
    except Exception:
        return None
    return found


def _flatten(data: Any, prefix: str, found: dict[str, _Attribute]) -> None:
    for element in data:
        tag = f"{prefix}({element.tag.group:04X},{element.tag.element:04X})"
        if element.VR == "SQ":
            for index, item in enumerate(element.value):
                _flatten(item, f"{tag}[{index}].", found)
        elif len(found) < 20 * MAX_ROWS:
            found[tag] = str(element.name), _format_value(element)


def _format_value(element: Any) -> str:
    value = element.value
    if element.VR in _LONG_VALUES and isinstance(value, bytes):
        return f"{len(value)} bytes, {hash_bytes(value)}"
    text = "\\".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}… ({len(text)} characters)"


def hash_bytes(value: bytes) -> str:
    """Return the begin of the SHA-256 of a value, so that different pixels look different."""
    return f"SHA-256 {hashlib.sha256(value).hexdigest()[:16]}"
