"""What is wrong with a configuration, said so that a person can put it right: key, cause, remedy."""

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from ingest.config.model import Config

Location = tuple[str | int, ...]

_UNION_TAGS = {"str", "literal[False]"}
"""What pydantic appends to the location of a fault in `tls: str | Literal[False]`; users know the key."""

_WRONG_TYPE = {
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
_BOUNDS = {"greater_than": ">", "greater_than_equal": "≥", "less_than": "<", "less_than_equal": "≤"}
_AE_TITLE = (
    "is not an AE title",
    "write 1 to 16 characters without backslash and control characters (PS3.5 6.2)",
)
_FORMS = {
    "ae_title": _AE_TITLE,
    "calling_ae_title": _AE_TITLE,
    "name": ("cannot be a name", "use 1 to 64 letters, digits, '.', '_' and '-'"),
    "host": ("is empty", "write an address or a host name"),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing to put right.

    Attributes:
        key: Dotted key with list indices from 0 (`destinations[1].port`), or the file.
        cause: What is wrong with it.
        remedy: What to do.
        note: True where the node can run all the same.
    """

    key: str
    cause: str
    remedy: str
    note: bool = False

    def __str__(self) -> str:
        return f"{self.key}: {self.cause}; {self.remedy}"


def printable(text: str) -> str:
    """`text` within a line: what would break the line, or speak to a terminal, as Python escapes it."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def is_text(text: str) -> bool:
    """Whether all of it are characters: of bytes that are not UTF-8 Python makes half surrogate pairs."""
    return not any("\ud800" <= sign <= "\udfff" for sign in text)


def dotted(location: Location) -> str:
    """`("destinations", 1, "port")` as `destinations[1].port`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def annotation_at(location: Location) -> Any:
    """The type that the models give to a key, or None where there is no such key."""
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


def faults_of(error: ValidationError) -> dict[Location, Fault]:
    """Every fault that the models found, by location; a union's several complaints are one."""
    found: dict[Location, Fault] = {}
    for detail in error.errors(include_url=False):
        location = detail["loc"]
        while len(location) > 1 and location[-1] in _UNION_TAGS:
            location = location[:-1]
        if len(location) == len(detail["loc"]):
            cause, remedy = _explain(
                detail["type"], location, detail.get("input"), detail.get("ctx", {}), detail["msg"]
            )
        else:
            cause, remedy = (
                "is neither a name nor false",
                "write the NAME of a [tls.NAME] section in quotes, or false",
            )
        found[location] = Fault(dotted(location), cause, remedy)
    return found


def _explain(
    kind: str, location: Location, value: Any, context: dict[str, Any], message: str
) -> tuple[str, str]:
    """Cause and remedy of one of pydantic's complaints, in words of the file."""
    name = str(location[-1]) if location else ""
    answer = message, "correct it"
    if kind == "extra_forbidden":
        answer = _unknown(location)
    elif kind == "tuple_type" and len(location) == 1:
        answer = "is not a list of tables", f"write [[{name}]]"
    elif kind in _WRONG_TYPE:
        answer = _WRONG_TYPE[kind]
    elif kind in {"dict_type", "model_type", "model_attributes_type"}:
        answer = "is not a table", f"write it as [{dotted(location)}]"
    elif kind == "literal_error":
        answer = f"{_shown(value)} is not known", f"write {context['expected']}"
    elif kind in _BOUNDS:
        bound = next(iter(context.values()))
        answer = f"{_shown(value)} is out of range", f"write a number {_BOUNDS[kind]} {_shown(bound)}"
    elif kind.startswith("string_"):
        cause, remedy = _FORMS.get(name, answer)
        answer = (f"{_shown(value)} {cause}" if value else "is empty"), remedy
    elif kind == "value_error":
        answer = str(context["error"]), "write a value, or remove the key"
    return answer


def _unknown(location: Location) -> tuple[str, str]:
    """Name the nearest key of the same section, or the section that has this very key."""
    name = str(location[-1])
    section = annotation_at(location[:-1])
    known = list(section.model_fields) if isinstance(section, type) and issubclass(section, BaseModel) else []
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return "unknown key", f"did you mean {near[0]}?"
    homes = [
        f"[{key}]"
        for key in Config.model_fields
        if name in getattr(annotation_at((key,)), "model_fields", ())
    ]
    if homes:
        return "unknown key here", f"it belongs to {' or '.join(homes)}"
    return "unknown key", f"remove it; known here: {', '.join(known)}"


def _shown(value: Any) -> str:
    """A value as a person wrote it, short; anything that may be long or secret is left out."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def without(faults: Sequence[Fault], keys: Sequence[str]) -> list[Fault]:
    """`faults` but for what is at, below or just above one of `keys`: one mistake need not be told twice."""

    def known(key: str) -> bool:
        return any(key == k or key.startswith((f"{k}.", f"{k}[")) or k.startswith(f"{key}[") for k in keys)

    return [fault for fault in faults if not known(fault.key)]
