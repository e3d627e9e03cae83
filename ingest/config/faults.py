"""Configuration faults, each with key, cause and remedy."""

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, get_args, get_origin

from pydantic import BaseModel, ValidationError

from ingest.config.model import Config

Location = tuple[str | int, ...]

_UNION_TAGS: Final = {"str", "literal[False]"}
"""Parts that pydantic appends to the location of a fault in `tls: str | Literal[False]`.

The file has no such key.
"""

_WRONG_TYPE: Final = {
    "string_type": ("is not a string", "write it in quotes"),
    "path_type": ("is not a path", "write it in quotes"),
    "int_type": ("is not a whole number", "write digits, without quotes"),
    "int_from_float": ("is not a whole number", "write digits, without quotes"),
    "float_type": ("is not a number", "write digits, without quotes"),
    "bool_type": ("is neither true nor false", "write true or false, without quotes"),
    "tuple_type": ("is not a list", 'write it as ["...", "..."]'),
    "finite_number": ("is not a finite number", "write a number"),
    "missing": ("is missing", "add it"),
}
_BOUNDS: Final = {"greater_than": ">", "greater_than_equal": "≥", "less_than": "<", "less_than_equal": "≤"}
_AE_TITLE: Final = (
    "is not an AE title",
    "write 1 to 16 characters without backslash and control characters (PS3.5 6.2)",
)
_WRONG_TEXT: Final = {
    "ae_title": _AE_TITLE,
    "calling_ae_title": _AE_TITLE,
    "name": ("cannot be a name", "use 1 to 64 letters, digits, '.', '_' and '-'"),
    "host": ("is empty", "write an address or a host name"),
}


class FaultKind(StrEnum):
    """Whether a node can run with a configuration fault."""

    FAULT = "fault"
    """The node cannot run, or cannot do part of its work."""
    WARNING = "warning"
    """The node runs, and will soon not do its work, or not as the user that it should run as."""
    NOTE = "note"
    """The node runs, but the setting may surprise."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A configuration fault.

    Attributes:
        key: Dotted key with list indices from 0 (`destinations[1].port`), or the file.
        cause: The error in the value of the key.
        remedy: What to do about it; empty where the cause names the remedy.
        kind: Whether the node can run with this fault.
    """

    key: str
    cause: str
    remedy: str
    kind: FaultKind = FaultKind.FAULT

    @property
    def is_note(self) -> bool:
        """Whether the node can run with this fault: it is a note or a warning."""
        return self.kind is not FaultKind.FAULT

    def __str__(self) -> str:
        return f"{self.key}: {self.explanation}"

    @property
    def explanation(self) -> str:
        """The cause, followed by the remedy."""
        return f"{self.cause}; {self.remedy}" if self.remedy else self.cause


def escape_unprintable(text: str) -> str:
    """Return `text` as one line: write each character that is not printable as a Python escape."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def is_utf8(text: str) -> bool:
    """Return whether `text` came from UTF-8: Python turns other bytes into halves of surrogate pairs."""
    return not any("\ud800" <= sign <= "\udfff" for sign in text)


def format_location(location: Location) -> str:
    """Write `("destinations", 1, "port")` as `destinations[1].port`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def find_annotation(location: Location) -> Any:
    """Return the type that the models give to a key, or None if there is no such key."""
    kind: Any = Config
    for part in location:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            field = kind.model_fields.get(str(part))
            kind = field.annotation if field else None
        elif get_origin(kind) is dict:
            kind = get_args(kind)[1]
        elif get_origin(kind) is tuple and isinstance(part, int):
            kind = get_args(kind)[0]
        else:
            return None
    return kind


def collect_model_faults(error: ValidationError) -> dict[Location, Fault]:
    """Return every fault that the models found, by location; the complaints about one union are one fault."""
    faults: dict[Location, Fault] = {}
    for detail in error.errors(include_url=False):
        location = detail["loc"]
        while len(location) > 1 and location[-1] in _UNION_TAGS:
            location = location[:-1]
        if len(location) == len(detail["loc"]):
            cause, remedy = _explain_complaint(
                detail["type"], location, detail.get("input"), detail.get("ctx", {}), detail["msg"]
            )
        else:
            cause, remedy = (
                "is neither a name nor false",
                "write the NAME of a [tls.NAME] section in quotes, or false",
            )
        faults[location] = Fault(format_location(location), cause, remedy)
    return faults


def _explain_complaint(
    kind: str, location: Location, value: Any, context: dict[str, Any], message: str
) -> tuple[str, str]:
    """Return cause and remedy of one of pydantic's complaints, in the words of the file."""
    name = str(location[-1]) if location else ""
    answer = message, "correct it"
    if kind == "extra_forbidden":
        answer = _explain_unknown_key(location)
    elif kind == "tuple_type" and len(location) == 1:
        answer = "is not a list of tables", f"write [[{name}]]"
    elif kind in _WRONG_TYPE:
        answer = _WRONG_TYPE[kind]
    elif kind in {"dict_type", "model_type", "model_attributes_type"}:
        answer = "is not a table", f"write it as [{format_location(location)}]"
    elif kind == "literal_error":
        answer = f"{_shorten_value(value)} is not known", f"write {context['expected']}"
    elif kind in _BOUNDS:
        bound = next(iter(context.values()))
        cause = f"{_shorten_value(value)} is out of range"
        answer = cause, f"write a number {_BOUNDS[kind]} {_shorten_value(bound)}"
    elif kind.startswith("string_"):
        cause, remedy = _WRONG_TEXT.get(name, answer)
        answer = (f"{_shorten_value(value)} {cause}" if value else "is empty"), remedy
    elif kind == "value_error":
        answer = str(context["error"]), "write a value, or remove the key"
    return answer


def _explain_unknown_key(location: Location) -> tuple[str, str]:
    """Suggest the most similar key of the same section, or the section that has this key."""
    name = str(location[-1])
    section = find_annotation(location[:-1])
    known = list(section.model_fields) if isinstance(section, type) and issubclass(section, BaseModel) else []
    similar = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if similar:
        return "unknown key", f"did you mean {similar[0]}?"
    homes = [
        f"[{key}]"
        for key in Config.model_fields
        if name in getattr(find_annotation((key,)), "model_fields", ())
    ]
    if homes:
        return "unknown key here", f"it belongs to {' or '.join(homes)}"
    return "unknown key", f"remove it; known here: {', '.join(known)}"


def _shorten_value(value: Any) -> str:
    """Return a value as the file has it, cut after 60 characters."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def remove_reported(faults: Sequence[Fault], keys: Sequence[str]) -> list[Fault]:
    """Return `faults` without those at, below or directly above one of `keys`: one mistake is one fault."""

    def is_reported(key: str) -> bool:
        return any(key == k or key.startswith((f"{k}.", f"{k}[")) or k.startswith(f"{key}[") for k in keys)

    return [fault for fault in faults if not is_reported(fault.key)]
