"""The effective configuration as text, without what is secret in it."""

import json
import re
from typing import Any

from ingest.config.model import Config

MASK = "***"

_AUTHORITY = re.compile(r"^([^:/]+://[^:/]*:).*@", re.DOTALL)
_QUERY = re.compile(r"([?&][^=&]*(?:pass|secret|token)[^=&]*=)[^&]*", re.IGNORECASE)


def plain(config: Config) -> dict[str, Any]:
    """The configuration as values of TOML and JSON; passwords in URLs are masked, paths are absolute."""
    data = config.model_dump(mode="json")
    data["node"]["data_dir"] = str(config.data_dir)
    data["receive"]["spool_dir"] = str(config.spool_dir)
    data["store"]["root"] = str(config.store_root)
    data["queue"]["url"] = masked(config.queue.url)
    data["ledger"]["url"] = masked(config.ledger.url)
    return data


def masked(url: str) -> str:
    """A URL whose password, in the authority or the query, is `***`.

    Whoever opens it may take another end of the authority than RFC 3986 has (SQLAlchemy takes passwords with
    "/", "?" and "#"), and it may be a URL that none of them can read: so what looks like a password is one.
    """
    return _QUERY.sub(rf"\1{MASK}", _AUTHORITY.sub(rf"\1{MASK}@", url))


def as_json(config: Config) -> str:
    """As JSON, indented."""
    return json.dumps(plain(config), indent=2, ensure_ascii=False)


def as_toml(config: Config) -> str:
    """As TOML that `ingest.config.load` reads (but for masked passwords)."""
    top: list[str] = []
    tables: list[str] = []
    for name, section in plain(config).items():
        if isinstance(section, list):
            if not section:
                top.append(f"{name} = []")
            tables += [_table(f"[[{name}]]", item) for item in section]
        elif name == "tls":
            tables += [_table(f"[tls.{toml_key(key)}]", item) for key, item in section.items()]
        else:
            tables.append(_table(f"[{name}]", section))
    return "\n\n".join(["\n".join(top), *tables] if top else tables) + "\n"


def _table(head: str, values: dict[str, Any]) -> str:
    return "\n".join([head, *(f"{toml_key(name)} = {toml_value(value)}" for name, value in values.items())])


def toml_key(name: str) -> str:
    """A key as TOML has it, in quotes where it needs them."""
    bare = name.replace("-", "").replace("_", "")
    return name if bare.isalnum() and bare.isascii() else toml_value(name)


def toml_value(value: Any) -> str:
    """A value as TOML has it."""
    if value is None:
        return '""'  # an empty path is none
    if isinstance(value, list):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, dict):
        inner = ", ".join(f"{toml_key(key)} = {toml_value(item)}" for key, item in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    # A JSON string, number or boolean is a TOML one, but for DEL, which TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
