"""Commands about the web console: its address, its users and its tokens."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from ingest.cli import _options as options
from ingest.cli._base import INSTALLED_CONFIG, CommandGroup, config_option, load_config, require_config
from ingest.cli._tables import ListLayout, format_local_time, print_line, print_list
from ingest.cli._user import load_config_as_owner
from ingest.errors import IngestError

if TYPE_CHECKING:
    from ingest.config.model import Config
    from ingest.console.auth.tokens import Token
    from ingest.console.auth.users import User

USER_FIELDS: Final = ("name", "role")
"""Fields of `ingest console user list`; docs/reference/lists.md describes them."""

TOKEN_FIELDS: Final = ("name", "role", "created_at", "expires_at", "is_expired")
"""Fields of `ingest console token list`; docs/reference/lists.md describes them."""

_USER_ROLES: Final = ("viewer", "operator", "admin")
_TOKEN_ROLES: Final = ("metrics", *_USER_ROLES)
_MEANINGS: Final = "viewer sees; operator also retries, drops and downloads; admin also reloads."


@click.group(cls=CommandGroup, invoke_without_command=True)
@click.option(
    "-c",
    "--config",
    "path",
    envvar="INGEST_CONFIG",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help=f"Configuration: TOML, or Orthanc's JSON. Default: $INGEST_CONFIG, or {INSTALLED_CONFIG}.",
)
@click.pass_context
def console(context: click.Context, path: Path | None) -> None:
    """Show how to reach the web console, or give people access to it.

    \b
    ingest console -c ingest.toml
    ingest console user add anna --role operator -c ingest.toml
    ingest console token add prometheus --role metrics -c ingest.toml

    Prints the address. A console without users asks for a token, which is printed too.
    """
    if context.invoked_subcommand is not None:
        return
    # Not as a callback of the option: every command below has one of its own.
    (option,) = (each for each in context.command.params if each.name == "path")
    found = require_config(context, option, path)
    if found is not None:
        _print_access(load_config_as_owner(found))


def _print_access(config: "Config") -> None:
    from ingest.console.auth.tokens import read_local_token
    from ingest.console.auth.users import UserFile

    settings = config.console
    if settings is None:
        raise IngestError("the configuration has no [console]; add the section, then `ingest reload`")
    scheme = "https" if settings.tls else "http"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    print_line(settings.public_url or f"{scheme}://{host}:{settings.port}/")
    if UserFile(config.console_dir).list_users():
        print_line("log in as one of the users; `ingest console user list` lists them")
    else:
        print_line(f"token: {read_local_token(config.console_dir)}")


@console.group(cls=CommandGroup)
def user() -> None:
    """List and change the users of the console."""


@user.command("add")
@config_option
@click.argument("name")
@click.option("--role", type=click.Choice(_USER_ROLES), default="viewer", show_default=True, help=_MEANINGS)
def add_user(path: Path, name: str, role: str) -> None:
    """Add a user. Asks for the password, or reads it from standard input.

    \b
    ingest console user add anna --role operator -c ingest.toml

    With the first user, the token of `ingest console` is no longer accepted.
    """
    from ingest.audit import Action
    from ingest.console.auth.roles import USER_ROLES_BY_WORD
    from ingest.console.auth.users import UserFile
    from ingest.operations.audit import recorded_change

    config, password = load_config_as_owner(path), _read_password()
    with recorded_change(config, Action.CHANGE_USERS, f"user/{name}", f"added as {role}"):
        UserFile(config.console_dir).add_user(name, USER_ROLES_BY_WORD[role], password)
    print_line(f"{name}: added as {role}")


@user.command("passwd")
@config_option
@click.argument("name")
def change_password(path: Path, name: str) -> None:
    """Change the password of a user, and end all sessions of the user."""
    from ingest.audit import Action
    from ingest.console.auth.users import UserFile
    from ingest.operations.audit import recorded_change

    config, password = load_config_as_owner(path), _read_password()
    with recorded_change(config, Action.CHANGE_USERS, f"user/{name}", "password"):
        UserFile(config.console_dir).change_user(name, password=password)
    print_line(f"{name}: the password is changed; all sessions have ended")


@user.command("role")
@config_option
@click.argument("name")
@click.argument("role", type=click.Choice(_USER_ROLES))
def change_role(path: Path, name: str, role: str) -> None:
    """Change the role of a user, and end all sessions of the user."""
    from ingest.audit import Action
    from ingest.console.auth.roles import USER_ROLES_BY_WORD
    from ingest.console.auth.users import UserFile
    from ingest.operations.audit import recorded_change

    config = load_config_as_owner(path)
    with recorded_change(config, Action.CHANGE_ROLES, f"user/{name}", f"is {role}"):
        UserFile(config.console_dir).change_user(name, role=USER_ROLES_BY_WORD[role])
    print_line(f"{name}: is {role}; all sessions have ended")


@user.command("remove")
@config_option
@click.argument("name")
def remove_user(path: Path, name: str) -> None:
    """Remove a user, and end all sessions of the user."""
    from ingest.audit import Action
    from ingest.console.auth.users import UserFile
    from ingest.operations.audit import recorded_change

    config = load_config_as_owner(path)
    with recorded_change(config, Action.CHANGE_USERS, f"user/{name}", "removed"):
        UserFile(config.console_dir).remove_user(name)
    print_line(f"{name}: removed; all sessions have ended")


@user.command("list")
@config_option
@options.list_format_options
def list_users(path: Path, list_format: str | None) -> None:
    """List the users and their roles."""
    from ingest.console.auth.users import UserFile

    print_list(UserFile(load_config(path).console_dir).list_users(), list_format, make_user_layout())


@console.group(cls=CommandGroup)
def token() -> None:
    """List and change the tokens of programs."""


@token.command("add")
@config_option
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(_TOKEN_ROLES),
    default="viewer",
    show_default=True,
    help=f"metrics reads /metrics only; {_MEANINGS}",
)
@click.option("--days", type=click.IntRange(1, 36500), help="Days until the token ends; never without it.")
def add_token(path: Path, name: str, role: str, days: int | None) -> None:
    """Make a token, and print it once. It is kept nowhere.

    \b
    ingest console token add prometheus --role metrics --days 365 -c ingest.toml

    Programs send it as `Authorization: Bearer TOKEN`.
    """
    from ingest.audit import Action
    from ingest.clock import unix_ms
    from ingest.console.auth.roles import ROLES_BY_WORD
    from ingest.console.auth.tokens import TokenFile
    from ingest.operations.audit import recorded_change

    config = load_config_as_owner(path)
    expires_ms = unix_ms() + days * 86_400_000 if days else 0
    with recorded_change(config, Action.CHANGE_TOKENS, f"token/{name}", f"added as {role}"):
        text = TokenFile(config.console_dir).add_token(name, ROLES_BY_WORD[role], expires_ms)
    print_line(text)


@token.command("remove")
@config_option
@click.argument("name")
def remove_token(path: Path, name: str) -> None:
    """Remove a token. The next request with it is refused."""
    from ingest.audit import Action
    from ingest.console.auth.tokens import TokenFile
    from ingest.operations.audit import recorded_change

    config = load_config_as_owner(path)
    with recorded_change(config, Action.CHANGE_TOKENS, f"token/{name}", "removed"):
        TokenFile(config.console_dir).remove_token(name)
    print_line(f"{name}: removed")


@token.command("list")
@config_option
@options.list_format_options
def list_tokens(path: Path, list_format: str | None) -> None:
    """List the tokens with their roles and ends."""
    from ingest.console.auth.tokens import TokenFile

    print_list(TokenFile(load_config(path).console_dir).list_tokens(), list_format, make_token_layout())


def make_user_layout() -> "ListLayout[User]":
    """Return the layouts of `ingest console user list`."""
    return ListLayout(
        fields=USER_FIELDS,
        to_record=lambda each: {"name": each.name, "role": each.role.word},
        columns=("user", "role"),
        to_cells=lambda each: (each.name, each.role.word),
    )


def make_token_layout() -> "ListLayout[Token]":
    """Return the layouts of `ingest console token list`."""
    from ingest.operations.times import format_iso_time

    def to_record(each: "Token") -> dict[str, object]:
        return {
            "name": each.name,
            "role": each.role.word,
            "created_at": format_iso_time(each.created_ms),
            "expires_at": format_iso_time(each.expires_ms),
            "is_expired": each.is_expired(),
        }

    def to_cells(each: "Token") -> tuple[str, ...]:
        ends = ("ended " if each.is_expired() else "") + format_local_time(each.expires_ms)
        made = format_local_time(each.created_ms)
        return (each.name, each.role.word, made, ends if each.expires_ms else "never")

    return ListLayout(
        fields=TOKEN_FIELDS,
        to_record=to_record,
        columns=("token", "role", "made", "ends"),
        to_cells=to_cells,
    )


def _read_password() -> str:
    """Ask for a password twice; or read the first line of standard input, if that is no terminal."""
    if sys.stdin.isatty():
        return str(click.prompt("Password", hide_input=True, confirmation_prompt=True))
    return sys.stdin.readline().rstrip("\n")
