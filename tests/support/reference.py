"""Writes the reference pages that follow from the code: `python -m tests.support.reference`.

docs/reference/configuration.md is written by hand, except the names, types and defaults of its tables. Those
follow a remark with the names of models. options.md and api-routes.md are made as a whole.
"""

import re
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import annotated_types
import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ingest.config import model

FOLDER: Final = Path(__file__).parents[2] / "docs" / "reference"
CONFIGURATION: Final = FOLDER / "configuration.md"
OPTIONS: Final = FOLDER / "options.md"
API_ROUTES: Final = FOLDER / "api-routes.md"
COMMAND: Final = "python -m tests.support.reference"

_TABLE: Final = re.compile(r"<!-- keys: (\w+) -->\n\n\| key .*?\n(?:\|.*\n)+")
_KEY: Final = re.compile(r"`([a-z0-9_]+)`")
_UNITS: Final = {
    "seconds": "seconds",
    "minutes": "minutes",
    "hours": "hours",
    "days": "days",
    "bytes": "bytes",
    "mb_per_s": "MB/s",
    "share": "share",
    "watermark": "share",
}
_HUGE: Final = 10**6


def write_row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"


def write_head(*cells: str) -> str:
    return write_row(*cells) + "|---" * len(cells) + "|\n"


# --- configuration


def made_configuration(page: str) -> str:
    """Return the page with names, types and defaults of the models; meanings stay.

    A key that no table has is added to the last table of its model, with an empty meaning.
    """
    tables = list(_TABLE.finditer(page))
    last = {found[1]: found.start() for found in tables}
    known = {name: [key for found in tables if found[1] == name for key in _keys(found[0])] for name in last}

    def rewrite(found: re.Match[str]) -> str:
        fields = {field.alias or key: field for key, field in getattr(model, found[1]).model_fields.items()}
        meanings = dict(_meanings(found[0]))
        if found.start() == last[found[1]]:
            meanings |= {key: "" for key in fields if key not in known[found[1]]}
        rows = "".join(
            write_row(f"`{key}`", describe_type(key, fields[key]), describe_default(fields[key]), meaning)
            for key, meaning in meanings.items()
            if key in fields
        )
        return f"<!-- keys: {found[1]} -->\n\n{write_head('key', 'type', 'default', 'meaning')}{rows}"

    return _TABLE.sub(rewrite, page)


def _rows(table: str) -> Iterator[list[str]]:
    for line in table.splitlines():
        if line.startswith("| `"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def _keys(table: str) -> list[str]:
    return [_KEY.findall(cells[0])[0] for cells in _rows(table)]


def _meanings(table: str) -> Iterator[tuple[str, str]]:
    return ((_KEY.findall(cells[0])[0], cells[-1]) for cells in _rows(table))


def describe_type(key: str, field: FieldInfo) -> str:
    """Return the type of a key with its unit and range, for people."""
    return _describe(key, field.annotation, field.metadata)


def _describe(key: str, kind: Any, metadata: Iterable[Any] = ()) -> str:
    origin = typing.get_origin(kind)
    if origin is Annotated:
        return _describe(key, typing.get_args(kind)[0], kind.__metadata__)
    if origin is Literal:
        return ", ".join(
            f"`{value}`" if isinstance(value, str) else str(value).lower() for value in kind.__args__
        )
    if origin in {typing.Union, types.UnionType}:
        return _describe_union(key, [each for each in kind.__args__ if each is not type(None)])
    if origin is tuple:
        inner = kind.__args__[0]
        names = _describe(key, inner)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            return "list of tables"
        return f"list of {names}"
    if origin is dict or (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return "table"
    if kind is bool:
        return "boolean"
    if kind in {int, float}:
        unit = next((unit for end, unit in _UNITS.items() if key.endswith(end)), "number")
        return ", ".join(filter(None, (unit, _describe_range(metadata))))
    if kind is Path:
        return "path"
    if "ae_title" in key:
        return "AE title"
    return "text"


def _describe_union(key: str, kinds: list[Any]) -> str:
    return " or ".join(_describe(key, kind) for kind in kinds)


def _describe_range(metadata: Iterable[Any]) -> str:
    bounds: dict[str, float] = {}
    for each in metadata:
        for part in each if isinstance(each, annotated_types.GroupedMetadata) else [each]:
            for name in ("ge", "gt", "le", "lt"):
                if hasattr(part, name):
                    bounds[name] = getattr(part, name)
        inner = getattr(each, "metadata", ())
        for part in inner:
            for name in ("ge", "gt", "le", "lt"):
                if hasattr(part, name):
                    bounds[name] = getattr(part, name)
    low = f"above {bounds['gt']}" if "gt" in bounds else str(bounds["ge"]) if "ge" in bounds else ""
    high = bounds.get("le", bounds.get("lt"))
    if high is None or (high >= _HUGE and high not in {2**15, 4 * 1024**2, 1024**2, 16 * 1024**2}):
        return low if low.startswith("above") else f"at least {low}" if low else ""
    high_text = f"below {high}" if "lt" in bounds else str(high)
    return f"{low} to {high_text}" if low else f"at most {high_text}"


def describe_default(field: FieldInfo) -> str:
    """Return the default of a key as TOML, for people."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "–"
    return f"`{_write_toml(value, field)}`"


def _write_toml(value: Any, field: FieldInfo) -> str:
    if value is None:
        return '""' if "Path" in str(field.annotation) else "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(_write_toml(each, field) for each in value) + "]"
    if isinstance(value, dict):
        return "{}"
    return f'"{value}"'


# --- command line


def made_options() -> str:
    """Return the page of all options, from the commands themselves."""
    from ingest.cli import main

    parts = [
        "# Options\n\nEvery option of every command, as `--help` prints it. "
        "[Commands](commands.md) is the overview.\n\n"
        "`-h` and `--help` print the help of a command. `-c FILE` names the configuration. "
        "`INGEST_CONFIG` in the environment can name it instead.\n"
    ]
    parts += [_write_command(name, command) for name, command in _leaves(main, "ingest")]
    return "\n".join(parts)


def _leaves(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        yield name, command
        return
    if command.invoke_without_command:
        yield name, command
    for each in command.commands:
        yield from _leaves(command.commands[each], f"{name} {each}")


def _write_command(name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=name)
    words = " ".join(command.collect_usage_pieces(context))
    text = f"## {name}\n```text\n{name} {words}\n```\n\n"
    text += "".join(_write_paragraphs(command.help or ""))
    records = [
        record
        for parameter in command.get_params(context)
        if not {"--help", "-c"} & set(parameter.opts)
        and (record := parameter.get_help_record(context)) is not None
    ]
    if records:
        text += write_head("option", "meaning")
        text += "".join(write_row(f"`{_escape(name)}`", _escape(meaning)) for name, meaning in records)
    return text


def _write_paragraphs(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        lines = [line.strip() for line in paragraph.splitlines()]
        if lines[0] == "\b":
            yield "```text\n" + "\n".join(lines[1:]) + "\n```\n\n"
        else:
            yield " ".join(lines) + "\n\n"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


# --- API


def made_api_routes() -> str:
    """Return the page of all routes of the API, from its OpenAPI description."""
    from ingest.console.api.v1 import describe

    description = describe()
    schemas = description["components"]["schemas"]
    parts = [
        "# Routes of the API\n\nEvery route with the fields of its request and its answer, from the "
        "description that the console serves under `/api/v1/openapi.json`. [JSON API](api.md) has the "
        "rules.\n"
    ]
    for path, methods in description["paths"].items():
        for method, route in methods.items():
            parts.append(_write_route(method.upper(), path, route, schemas))
    parts.append("## Types\nValues that requests and answers have in common.\n")
    parts += [_write_type(name, schemas[name]) for name in sorted(schemas)]
    return "\n".join(parts)


def _write_route(method: str, path: str, route: dict[str, Any], schemas: dict[str, Any]) -> str:
    text = f"## {method} {path}\n{route['summary']}. {route['description']}\n\n"
    rows = [
        (f"`{each['name']}`", each["in"], _name_schema(each["schema"]), _explain(each["schema"]))
        for each in route["parameters"]
    ]
    if (body := route.get("requestBody")) is not None:
        rows += _list_fields(body["content"], schemas, "body")
    if rows:
        text += "Request:\n\n" + _write_table(("field", "in", "type", "meaning"), rows) + "\n"
    found = _list_fields(route["responses"]["200"].get("content", {}), schemas, "")
    if found:
        rows = [(name, kind, meaning) for name, _, kind, meaning in found]
        text += "Answer:\n\n" + _write_table(("field", "type", "meaning"), rows)
    return text


def _write_type(name: str, schema: dict[str, Any]) -> str:
    text = f"### {name}\n{' '.join(schema.get('description', '').split())}\n\n"
    if "properties" in schema:
        rows = [
            (f"`{key}`", _name_schema(field), _explain(field)) for key, field in schema["properties"].items()
        ]
        return text + _write_table(("field", "type", "meaning"), rows)
    return text + f"One of {_name_schema(schema)}.\n"


def _write_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table, without its last column if that is empty."""
    columns = len(head) if any(row[-1] for row in rows) else len(head) - 1
    return write_head(*head[:columns]) + "".join(write_row(*row[:columns]) for row in rows)


def _list_fields(
    content: dict[str, Any], schemas: dict[str, Any], place: str
) -> list[tuple[str, str, str, str]]:
    if "application/json" not in content:
        return [("", place, each, "") for each in content]
    schema = content["application/json"]["schema"]
    known = schemas.get(schema.get("$ref", "").rpartition("/")[2], schema)
    required = known.get("required", []) if place else []
    return [
        (
            f"`{name}`" + (" (required)" if name in required else ""),
            place,
            _name_schema(field),
            _explain(field),
        )
        for name, field in known.get("properties", {}).items()
    ]


def _name_schema(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_name_schema(each) for each in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {_name_schema(schema.get('items', {}))}"
    form = schema.get("format")
    return f"{kind} ({form})" if form else str(kind)


def _explain(schema: dict[str, Any]) -> str:
    return _escape(str(schema.get("description", "")))


def pages() -> dict[Path, str]:
    """Return every page with the text that it should have."""
    return {
        CONFIGURATION: made_configuration(CONFIGURATION.read_text()),
        OPTIONS: made_options(),
        API_ROUTES: made_api_routes(),
    }


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
