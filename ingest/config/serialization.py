"""The effective configuration as TOML or JSON, without its secrets."""

import json
import os
import re
from collections.abc import Mapping
from typing import Any, Final

from ingest.config.model import Config
from ingest.config.passwords import remove_password

MASK: Final = "***"

_AUTHORITY: Final = re.compile(r"^([^:/]+://[^:/]*:).*@", re.DOTALL)
_QUERY: Final = re.compile(r"([?&][^=&]*(?:pass|secret|token)[^=&]*=)[^&]*", re.IGNORECASE)


def config_to_values(config: Config) -> dict[str, Any]:
    """Return the values of the configuration, with absolute paths and masked passwords."""
    values = config.model_dump(mode="json")
    values["node"]["data_dir"] = str(config.data_dir)
    values["receive"]["spool_dir"] = str(config.spool_dir)
    values["store"]["root"] = str(config.store_root)
    for name, section in (("queue", config.queue), ("ledger", config.ledger)):
        has_file = section.password_file is not None
        values[name]["url"] = remove_password(section.url) if has_file else mask_url_password(section.url)
    if config.console is not None and config.console.oidc is None:
        del values["console"]["oidc"]  # TOML has no null
    for receiver in (*values["alerts"], *values["webhooks"]):
        receiver["url"] = mask_url_path(receiver["url"])
    return values


def mask_url_password(url: str) -> str:
    """Replace the password of a URL, in the authority or the query, by `***`.

    Programs disagree about where the authority ends: SQLAlchemy accepts passwords with "/", "?" and "#". The
    URL may also be malformed. Therefore everything that looks like a password is masked.
    """
    return _QUERY.sub(rf"\1{MASK}", _AUTHORITY.sub(rf"\1{MASK}@", url))


def mask_url_path(url: str) -> str:
    """Replace the path of a webhook by `***`: many receivers take it as a password."""
    server, separator, rest = mask_url_password(url).partition("://")
    host, slash, path = rest.partition("/")
    return f"{server}{separator}{host}{slash}{MASK if path else ''}"


def format_as_json(config: Config) -> str:
    """Write the configuration as indented JSON."""
    return json.dumps(config_to_values(config), indent=2, ensure_ascii=False)


def format_as_toml(config: Config) -> str:
    """Write the configuration as TOML. `load_config` reads it alike, except for masked passwords."""
    return format_values_as_toml(config_to_values(config))


def format_values_as_toml(values: Mapping[str, Any]) -> str:
    """Write the sections of a configuration as TOML: tables, lists of tables, and `tls` with its names."""
    top: list[str] = []
    tables: list[str] = []
    for name, section in values.items():
        if section is None:
            continue
        if isinstance(section, list | tuple):
            if not section or not all(isinstance(item, Mapping) for item in section):
                top.append(f"{format_toml_key(name)} = {format_toml_value(section)}")
                continue
            tables += [_format_table(f"[[{name}]]", item) for item in section]
        elif not isinstance(section, Mapping):
            # A fault, which the reader reports.
            top.append(f"{format_toml_key(name)} = {format_toml_value(section)}")
        elif name == "tls" and all(isinstance(item, Mapping) for item in section.values()):
            tables += [_format_table(f"[tls.{format_toml_key(key)}]", item) for key, item in section.items()]
        else:
            tables.append(_format_table(f"[{name}]", section))
    return "\n\n".join(["\n".join(top), *tables] if top else tables) + "\n"


def _format_table(head: str, values: Mapping[str, Any]) -> str:
    lines = (f"{format_toml_key(name)} = {format_toml_value(value)}" for name, value in values.items())
    return "\n".join([head, *lines])


def format_toml_key(name: str) -> str:
    """Write a key of TOML, in quotes if it needs them."""
    bare = name.replace("-", "").replace("_", "")
    return name if bare.isalnum() and bare.isascii() else format_toml_value(name)


def format_toml_value(value: Any) -> str:
    """Write a value of TOML."""
    if value is None:
        return '""'  # the models read an empty path as None
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(format_toml_value, value))}]"
    if isinstance(value, Mapping):
        inner = ", ".join(
            f"{format_toml_key(key)} = {format_toml_value(item)}" for key, item in value.items()
        )
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    # A JSON string, number or boolean is also one of TOML, except that TOML wants DEL escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
