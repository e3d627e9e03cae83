"""Commands about the web console: its address, its users and its tokens."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ingest.cli._base import CommandGroup, config_option, load_config
from ingest.cli._tables import format_local_time, print_line, print_table
from ingest.errors import IngestError

if TYPE_CHECKING:
    from ingest.config.model import Config

_ROLES = ("viewer", "operator", "admin")

_role_option = click.option(
    "--role",
    type=click.Choice(_ROLES),
    help="viewer sees; operator also retries, drops and downloads; admin also reloads.",
)


@click.group(cls=CommandGroup, invoke_without_command=True)
@click.option(
    "-c",
    "--config",
    "path",
    envvar="INGEST_CONFIG",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Configuration: TOML, or Orthanc's JSON. Default: $INGEST_CONFIG.",
)
@click.pass_context
def console(context: click.Context, path: Path | None) -> None:
    """Show how to reach the web console, or give people access to it.

    \b
    ingest console -c ingest.toml
    ingest console user add anna --role operator -c ingest.toml
    ingest console token add prometheus --role viewer -c ingest.toml

    Prints the address. A console without users asks for a token, which is printed too.
    """
    if context.invoked_subcommand is not None:
        return
    if path is None:
        raise click.UsageError("name the configuration: -c FILE, or $INGEST_CONFIG")
    _print_access(load_config(path))


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
@_role_option
def add_user(path: Path, name: str, role: str | None) -> None:
    """Add a user. Asks for the password, or reads it from standard input.

    \b
    ingest console user add anna --role operator -c ingest.toml

    With the first user, the token of `ingest console` is no longer accepted.
    """
    from ingest.console.auth.roles import ROLES_BY_WORD
    from ingest.console.auth.users import UserFile

    users = UserFile(load_config(path).console_dir)
    users.add_user(name, ROLES_BY_WORD[role or "viewer"], _read_password())
    print_line(f"{name}: added as {role or 'viewer'}")


@user.command("passwd")
@config_option
@click.argument("name")
def change_password(path: Path, name: str) -> None:
    """Change the password of a user, and end all sessions of the user."""
    from ingest.console.auth.users import UserFile

    UserFile(load_config(path).console_dir).change_user(name, password=_read_password())
    print_line(f"{name}: the password is changed; all sessions have ended")


@user.command("role")
@config_option
@click.argument("name")
@click.argument("role", type=click.Choice(_ROLES))
def change_role(path: Path, name: str, role: str) -> None:
    """Change the role of a user, and end all sessions of the user."""
    from ingest.console.auth.roles import ROLES_BY_WORD
    from ingest.console.auth.users import UserFile

    UserFile(load_config(path).console_dir).change_user(name, role=ROLES_BY_WORD[role])
    print_line(f"{name}: is {role}; all sessions have ended")


@user.command("remove")
@config_option
@click.argument("name")
def remove_user(path: Path, name: str) -> None:
    """Remove a user, and end all sessions of the user."""
    from ingest.console.auth.users import UserFile

    UserFile(load_config(path).console_dir).remove_user(name)
    print_line(f"{name}: removed; all sessions have ended")


@user.command("list")
@config_option
def list_users(path: Path) -> None:
    """List the users and their roles."""
    from ingest.console.auth.users import UserFile

    found = UserFile(load_config(path).console_dir).list_users()
    print_table(("user", "role"), [(each.name, each.role.word) for each in found])


@console.group(cls=CommandGroup)
def token() -> None:
    """List and change the tokens of programs."""


@token.command("add")
@config_option
@click.argument("name")
@_role_option
@click.option("--days", type=click.IntRange(1, 36500), help="Days until the token ends; never without it.")
def add_token(path: Path, name: str, role: str | None, days: int | None) -> None:
    """Make a token, and print it once. It is kept nowhere.

    \b
    ingest console token add prometheus --role viewer --days 365 -c ingest.toml

    Programs send it as `Authorization: Bearer TOKEN`.
    """
    from ingest.clock import unix_ms
    from ingest.console.auth.roles import ROLES_BY_WORD
    from ingest.console.auth.tokens import TokenFile

    expires_ms = unix_ms() + days * 86_400_000 if days else 0
    tokens = TokenFile(load_config(path).console_dir)
    print_line(tokens.add_token(name, ROLES_BY_WORD[role or "viewer"], expires_ms))


@token.command("remove")
@config_option
@click.argument("name")
def remove_token(path: Path, name: str) -> None:
    """Remove a token. The next request with it is refused."""
    from ingest.console.auth.tokens import TokenFile

    TokenFile(load_config(path).console_dir).remove_token(name)
    print_line(f"{name}: removed")


@token.command("list")
@config_option
def list_tokens(path: Path) -> None:
    """List the tokens with their roles and ends."""
    from ingest.console.auth.tokens import TokenFile

    rows = [
        (
            each.name,
            each.role.word,
            format_local_time(each.created_ms),
            ("ended " if each.is_expired() else "") + format_local_time(each.expires_ms)
            if each.expires_ms
            else "never",
        )
        for each in TokenFile(load_config(path).console_dir).list_tokens()
    ]
    print_table(("token", "role", "made", "ends"), rows)


def _read_password() -> str:
    """Ask for a password twice; or read the first line of standard input, if that is no terminal."""
    if sys.stdin.isatty():
        return str(click.prompt("Password", hide_input=True, confirmation_prompt=True))
    return sys.stdin.readline().rstrip("\n")
