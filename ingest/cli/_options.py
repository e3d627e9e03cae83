"""Options of the commands that call a remote: AE titles and TLS, as DCMTK's tools name them and as words."""

# ruff: noqa: PLC0415 - as in ingest.cli: --help starts fast

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from ingest.config.model import TLS

_F = TypeVar("_F", bound=Callable[..., Any])


def _ae_title(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    from pydantic import TypeAdapter, ValidationError

    from ingest.config.model import AETitle

    try:
        return str(TypeAdapter(AETitle).validate_python(value))
    except ValidationError:
        raise click.BadParameter("an AE title has 1 to 16 characters, without backslash") from None


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FILE_OR_FOLDER = click.Path(exists=True, path_type=Path)
_AE_TITLE: dict[str, Any] = {"show_default": True, "callback": _ae_title, "metavar": "AE"}

_REMOTE = (
    click.argument("host"),
    click.argument("port", type=click.IntRange(1, 65535)),
    click.option("-aec", "--called", default="ANY-SCP", help="AE title of the remote.", **_AE_TITLE),
    click.option("-aet", "--calling", default="INGEST", help="Our AE title.", **_AE_TITLE),
    click.option("--tls", "use_tls", is_flag=True, help="Use TLS; any other --tls option says so too."),
    click.option("--tls-cert", type=_FILE, help="Our certificate, PEM with chain."),
    click.option("--tls-key", type=_FILE, help="Its private key."),
    click.option("--tls-pkcs12", type=_FILE, help="Both, in PKCS#12."),
    click.option("--tls-password-file", type=_FILE, help="With the password of an encrypted key or PKCS#12."),
    click.option(
        "--tls-trusted",
        type=_FILE_OR_FOLDER,
        multiple=True,
        help="Certificates to verify the remote with; repeatable.",
    ),
    click.option("--tls-check-name", is_flag=True, help="The certificate of the remote must name HOST."),
    click.option("--tls-no-verify", is_flag=True, help="Take any certificate: for tests only."),
)


def remote_options(function: _F) -> _F:
    """HOST, PORT, AE titles and TLS for a command that calls a remote."""
    for decorate in reversed(_REMOTE):
        function = decorate(function)
    return function


def tls_of(options: dict[str, Any]) -> "TLS | None":
    """The TLS settings that the options ask for; None is plain DICOM."""
    if not any(options.values()):
        return None
    if not options["tls_trusted"] and not options["tls_no_verify"]:
        raise click.UsageError("name --tls-trusted to verify the remote, or --tls-no-verify to take any")
    if options["tls_no_verify"] and (options["tls_trusted"] or options["tls_check_name"]):
        raise click.UsageError("--tls-no-verify contradicts --tls-trusted and --tls-check-name")
    if (options["tls_cert"] is None) != (options["tls_key"] is None):
        raise click.UsageError("--tls-cert and --tls-key go together")
    if options["tls_cert"] is not None and options["tls_pkcs12"] is not None:
        raise click.UsageError("--tls-pkcs12 holds certificate and key: name it without --tls-cert")
    from ingest.config.model import TLS
    from ingest.tls.contexts import client_context

    tls = TLS(
        certificate=options["tls_cert"],
        private_key=options["tls_key"],
        pkcs12=options["tls_pkcs12"],
        password_file=options["tls_password_file"],
        trusted=options["tls_trusted"],
        peer_certificate="none" if options["tls_no_verify"] else "required",
        check_server_name=options["tls_check_name"],
    )
    client_context(tls)  # a bad pair or bundle is named before anything is sent
    return tls
