"""`ingest init`: write the first configuration of a node."""

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from ingest.cli._program import name_program

if TYPE_CHECKING:
    from ingest.operations.first_configuration import FirstChoices, FirstDestination, NodeUser, WrittenFiles

DEFAULT_AE_TITLE: Final = "INGEST"
DEFAULT_PORT: Final = 2762
DEFAULT_CONSOLE_PORT: Final = 8080

_T = TypeVar("_T")


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--ae-title", metavar="AE", help=f"AE title of the node. Default: {DEFAULT_AE_TITLE}.")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    help=f"Port on which the node takes DICOM over TLS. Default: {DEFAULT_PORT}.",
)
@click.option("--host", default="0.0.0.0", show_default=True, help="Address on which it listens.")  # noqa: S104
@click.option("--destination", metavar="AE@HOST:PORT", help="First destination. Default: none.")
@click.option(
    "--tls/--plain", "is_tls", default=None, help="Whether the destination takes TLS. Default: --tls."
)
@click.option(
    "--console/--no-console",
    "has_console",
    default=None,
    help="Whether the node has a web console, for this machine alone. Default: if it is installed.",
)
@click.option(
    "--console-port",
    type=click.IntRange(1, 65535),
    default=DEFAULT_CONSOLE_PORT,
    show_default=True,
    help="Port of the web console.",
)
@click.option("--name", metavar="HOST", help="Name of this machine in the certificate. Default: its own.")
@click.option(
    "--data-dir", default="var", show_default=True, help="Folder of spool, store and ledger, seen from DIR."
)
@click.option(
    "--user", metavar="NAME", help="User that the node runs as; only root can name one. Default: this user."
)
@click.option("--yes", is_flag=True, help="Do not ask; take the defaults of options that are not given.")
def init(folder: Path, user: str | None, yes: bool, **options: Any) -> None:
    """Write the first configuration of a node into DIR.

    \b
    ingest init site
    ingest init site --yes --ae-title PACS1 --destination ARCHIVE@archive.example.org:2762
    ingest init /etc/dicom-ingest --data-dir /var/lib/dicom-ingest --user dicom-ingest

    Writes ingest.toml with comments, a key pair and a list of trusted certificates. No file is replaced.
    In a terminal the command asks for what no option says. Then it prints the next commands. The user of
    --user owns the keys and the data folder, and can read the configuration.
    """
    from ingest.checks.listening import check_listening
    from ingest.config.reader import load_config
    from ingest.operations.first_configuration import write_first_configuration

    node_user = _find_node_user(user) if user else None
    choices = _choose(options, is_asking=not yes and sys.stdin.isatty() and sys.stdout.isatty())
    files = write_first_configuration(folder, choices, node_user)
    click.echo("\n".join(_describe(files, choices, user)))
    faults = [*check_listening(load_config(files.configuration))]
    if faults:
        from rich.console import Console

        from ingest.cli._faults import print_fault

        click.echo("\nOn this machine, the node could not start now:")
        for fault in faults:
            print_fault(Console(highlight=False, soft_wrap=True), fault)


def _find_node_user(name: str) -> "NodeUser":
    from ingest.cli._user import find_user
    from ingest.operations.first_configuration import NodeUser

    found = find_user(name)
    if os.geteuid() != 0:
        raise click.UsageError("only root can give files to another user: run this command as root")
    return NodeUser(found.pw_uid, found.pw_gid)


def _choose(options: dict[str, Any], *, is_asking: bool) -> "FirstChoices":
    """Return the choices: from options, from answers where `is_asking`, otherwise the defaults."""
    import socket

    from ingest.extras import find_missing_modules
    from ingest.operations.first_configuration import FirstChoices, parse_ae_title, parse_destination

    def choose(name: str, question: str, default: str, parse: Callable[[str], _T]) -> _T:
        if options[name] is not None:
            return _parse_option(name, str(options[name]), parse)
        if not is_asking:
            return parse(default)
        return click.prompt(question, default=default, value_proc=_make_parser(parse))

    def confirm(name: str, question: str, *, default: bool) -> bool:
        if options[name] is not None:
            return bool(options[name])
        return click.confirm(question, default=default) if is_asking else default

    def parse_optional(text: str) -> "FirstDestination | None":
        return None if text.strip() in {"", "none"} else parse_destination(text)

    ae_title = choose("ae_title", "AE title of this node", DEFAULT_AE_TITLE, parse_ae_title)
    port = choose("port", "Port for DICOM over TLS", str(DEFAULT_PORT), _parse_port)
    destination = choose("destination", "First destination, as AE@HOST:PORT", "none", parse_optional)
    if destination is not None:
        from dataclasses import replace

        question = f"Does {destination.ae_title} take TLS?"
        destination = replace(destination, is_tls=confirm("is_tls", question, default=True))
    elif options["is_tls"] is not None:
        raise click.UsageError(
            "--tls and --plain are about a destination: name it with --destination AE@HOST:PORT"
        )
    is_installed = not find_missing_modules("console")
    has_console = confirm("has_console", "Web console, for this machine alone?", default=is_installed)
    return FirstChoices(
        machine_name=options["name"] or socket.gethostname(),
        ae_title=ae_title,
        host=options["host"],
        port=port,
        data_dir=options["data_dir"],
        destination=destination,
        console_port=options["console_port"] if has_console else None,
    )


def _parse_option(name: str, text: str, parse: Callable[[str], _T]) -> _T:
    try:
        return parse(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=f"--{name.replace('_', '-')}") from None


def _make_parser(parse: Callable[[str], _T]) -> Callable[[str], _T]:
    """Return a parser for click, which asks again after a UsageError."""

    def parse_answer(text: str) -> _T:
        try:
            return parse(text)
        except ValueError as error:
            raise click.UsageError(str(error)) from None

    return parse_answer


def _parse_port(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise ValueError(f"{text!r} is no port; write a number from 1 to 65535")
    return int(text)


def _describe(files: "WrittenFiles", choices: "FirstChoices", user: str | None) -> Iterator[str]:
    meanings = {
        files.configuration: "the configuration, with comments",
        files.certificate: "the certificate of this node, for its peers",
        files.key: f"its private key; only {user or 'this user'} can read it",
        files.trusted: "the certificates that it trusts",
    }
    width = max(len(str(path)) for path in meanings)
    yield "Written:"
    yield from (f"  {path!s:<{width}}  {meaning}" for path, meaning in meanings.items())
    if user is None and os.geteuid() == 0:
        yield ""
        yield "They belong to root. For a node that runs as another user, begin again in an"
        yield "empty folder, with --user NAME."
    yield ""
    yield "Next, the last one in a second terminal:"
    yield from list_next_commands(files, choices, user)
    if choices.destination is not None:
        yield ""
        yield from _describe_destination(files, choices.destination)
    if choices.console_port is not None:
        command = f"{name_program()} console -c {shlex.quote(str(files.configuration))}"
        yield from ("", "The console, while the node runs:", f"  {command}")


def list_next_commands(
    files: "WrittenFiles", choices: "FirstChoices", user: str | None = None
) -> Iterator[str]:
    """Yield the lines of three commands: check the configuration, run the node, and call it."""
    program, configuration = name_program(), shlex.quote(str(files.configuration))
    host = "localhost" if choices.host in {"0.0.0.0", "::"} else choices.host  # noqa: S104 - compared
    certificate, key, trusted = (
        shlex.quote(str(path)) for path in (files.certificate, files.key, files.trusted)
    )
    node = f"runuser -u {user} -- {program}" if user else program
    yield f"  {node} check -c {configuration}"
    yield f"  {node} serve -c {configuration}"
    yield f"  {program} echo {host} {choices.port} --tls-cert {certificate} \\"
    yield f"    --tls-key {key} --tls-trusted {trusted}"


def _describe_destination(files: "WrittenFiles", destination: "FirstDestination") -> Iterator[str]:
    program, title = name_program(), destination.ae_title
    if destination.is_tls:
        yield f"{title} has to trust {files.certificate}, and this node the certificate of {title}:"
        yield f"  {program} certs trust {shlex.quote(str(files.trusted))} ITS-CERTIFICATE"
        yield f"Then ask whether {title} answers:"
    else:
        yield f"Ask whether {title} answers:"
    yield f"  {program} echo -c {shlex.quote(str(files.configuration))} --to {destination.name}"
