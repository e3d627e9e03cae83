"""Options that several commands share."""

import os
import re
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from ingest.config.model import TLS
    from ingest.ledger.delivery_filter import DeliveryFilter
    from ingest.ledger.instance_filter import InstanceFilter

_F = TypeVar("_F", bound=Callable[..., Any])
Decorator = Callable[[_F], _F]

# The states of the ledger, repeated here so that --help needs no ledger. A test compares them.
DELIVERY_STATES: Final = ("waiting", "sending", "delivered", "retry", "dead", "dropped", "held", "awaiting")
INSTANCE_STATES: Final = ("stored", "variant", "quarantined", "replaced", "removing", "removed")
COMMITMENT_STATES: Final = ("waiting", "due", "reported", "failed")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def combine(*options: Callable[[_F], _F]) -> Callable[[_F], _F]:
    """Combine options into one decorator. `--help` lists them in the same order."""

    def decorate(function: _F) -> _F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def parse_time(_context: click.Context, _parameter: click.Parameter, value: str | None) -> int | None:
    """Parse "2h" (ago) or an ISO 8601 time, which is UTC without a zone, to Unix milliseconds."""
    if value is None:
        return None
    ago = re.fullmatch(r"(\d{1,6})([smhd])", value)
    try:
        if ago:
            moment = datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        else:
            moment = datetime.fromisoformat(value)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise click.BadParameter("write 30m, 2h, 3d, or a time such as 2026-01-31T08:00") from None
    return int(moment.timestamp() * 1000)


def _parse_dates(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> tuple[str | None, str | None] | None:
    """Parse FROM..TO, FROM.., ..TO or one day to eight digits each."""
    if value is None:
        return None
    first, dots, last = value.partition("..")
    begin, end = _parse_day(first), _parse_day(last if dots else first)
    if begin is None and end is None:
        raise click.BadParameter("write a day, FROM..TO, FROM.. or ..TO")
    if begin is not None and end is not None and begin > end:
        raise click.BadParameter(f"{first} is after {last}; write the earlier day first")
    return begin, end


def _parse_day(text: str) -> str | None:
    if not text.strip():
        return None
    try:
        return date.fromisoformat(text.strip()).strftime("%Y%m%d")
    except ValueError:
        raise click.BadParameter(f"{text.strip()!r} is no day; write 2026-01-31 or 20260131") from None


def _parse_ae_title(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    from pydantic import TypeAdapter, ValidationError

    from ingest.config.model import AETitle

    try:
        return str(TypeAdapter(AETitle).validate_python(value))
    except ValidationError:
        raise click.BadParameter("an AE title has 1 to 16 characters, without backslash") from None


def complete_destination(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of destinations that begin with `incomplete`, for the completion of a shell.

    A configuration that is missing or has faults completes nothing, because a shell cannot show an error
    here.
    """
    path = context.params.get("path") or os.environ.get("INGEST_CONFIG")
    if not path:
        return []
    from ingest.config.reader import load_config
    from ingest.errors import IngestError

    try:
        config = load_config(Path(path))
    except (IngestError, OSError):
        return []
    return [name for name in config.target_names if name.startswith(incomplete)]


study_option = click.option("--study", "study_uid", metavar="UID", help="Study Instance UID.")
series_option = click.option("--series", "series_uid", metavar="UID", help="Series Instance UID.")
sop_option = click.option("--sop", "sop_instance_uid", metavar="UID", help="SOP Instance UID.")
calling_option = click.option("--calling", "calling_ae", metavar="AE", help="Calling AE title of the sender.")
since_option = click.option(
    "--since", callback=parse_time, metavar="TIME", help="Received since: 2h (ago) or ISO 8601."
)
until_option = click.option(
    "--until", callback=parse_time, metavar="TIME", help="Received before: 2h (ago) or ISO 8601."
)
limit_option = click.option(
    "--limit", type=click.IntRange(1), default=100, show_default=True, help="Number of rows."
)
before_option = click.option(
    "--before", type=int, metavar="ID", help="The last id of a page: show the next one."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_FORMATS: Final = {
    "json": "Print JSON, one object a line.",
    "csv": "Print CSV (RFC 4180) with a line of headings.",
    "wide": "Print one line for each row, however wide.",
}
list_format_options = combine(
    *(
        click.option(
            f"--{name}", "list_format", type=click.UNPROCESSED, flag_value=name, default=None, help=text
        )
        for name, text in _FORMATS.items()
    )
)
"""How a list is printed, as `list_format`: "json", "csv", "wide", or None for a table that fits."""
dry_run_option = click.option("--dry-run", is_flag=True, help="Print how many, and change nothing.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask for confirmation.")

study_filter_options = combine(
    click.option("--accession", "accession_number", metavar="TEXT", help="Accession number; * and ? match."),
    click.option("--patient-id", metavar="TEXT", help="Patient ID; * and ? match."),
    click.option(
        "--patient-name", metavar="TEXT", help="Name, without regard to case and accents; * and ? match."
    ),
    click.option(
        "--date", "dates", callback=_parse_dates, metavar="FROM..TO", help="Study date: a day, or a range."
    ),
    click.option("--modality", metavar="CS", help="Modality of a series, such as CT."),
)
"""Options that select studies by their attributes, named as in `StudyFilter`."""

destination_option = click.option(
    "--destination", metavar="NAME", shell_complete=complete_destination, help="Name of a destination."
)
any_state_option = click.option(
    "--state",
    "states",
    type=click.Choice((*INSTANCE_STATES, *DELIVERY_STATES)),
    multiple=True,
    help="State of an instance, or of a delivery; repeatable.",
)

instance_filter_options = combine(
    study_filter_options, study_option, series_option, sop_option, calling_option, since_option, until_option
)
"""Options that select instances, named as in `InstanceFilter`."""

delivery_filter_options = combine(
    click.option(
        "--destination", metavar="NAME", shell_complete=complete_destination, help="Name of the destination."
    ),
    study_filter_options,
    study_option,
    series_option,
    sop_option,
    calling_option,
    click.option(
        "--state", "states", type=click.Choice(DELIVERY_STATES), multiple=True, help="State; repeatable."
    ),
    click.option("--error", metavar="TEXT", help="Text in the last error."),
    click.option("--since", callback=parse_time, metavar="TIME", help="Changed since: 2h (ago) or ISO 8601."),
    click.option(
        "--until", callback=parse_time, metavar="TIME", help="Changed before: 2h (ago) or ISO 8601."
    ),
)
"""Options that select deliveries, named as in `DeliveryFilter`."""


def make_delivery_filter(options: dict[str, Any]) -> "DeliveryFilter":
    """Make the filter that the options of `delivery_filter_options` describe."""
    from ingest.ledger.delivery_filter import DeliveryFilter
    from ingest.ledger.records import DeliveryState

    states = tuple(DeliveryState(state) for state in options["states"])
    return DeliveryFilter(**{**_split_dates(options), "states": states})


def make_instance_filter(options: dict[str, Any]) -> "InstanceFilter":
    """Make the filter that the options of `instance_filter_options` and `--state` describe."""
    from ingest.ledger import DeliveryState, InstanceState
    from ingest.ledger.instance_filter import InstanceFilter

    states = dict.fromkeys(options.get("states", ()))
    return InstanceFilter(
        **{
            **_split_dates(options),
            "states": tuple(InstanceState(state) for state in states if state in INSTANCE_STATES),
            "delivery_states": tuple(DeliveryState(state) for state in states if state in DELIVERY_STATES),
        }
    )


def _split_dates(options: dict[str, Any]) -> dict[str, Any]:
    begin, end = options.get("dates") or (None, None)
    others = {name: value for name, value in options.items() if name != "dates"}
    return {**others, "date_from": begin, "date_to": end}


def require_selection(options: dict[str, Any], *, everything: bool) -> None:
    """Make sure that a delivery filter selects something, or that `--all` is given.

    Raises:
        click.UsageError: Neither is given.
    """
    if not everything and not any(options.values()):
        raise click.UsageError("say which: --destination, --study, …, or --all")


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FILE_OR_FOLDER = click.Path(exists=True, path_type=Path)
_AE_TITLE: dict[str, Any] = {"show_default": True, "callback": _parse_ae_title, "metavar": "AE"}

remote_options = combine(
    click.option(
        "-c",
        "--config",
        "path",
        envvar="INGEST_CONFIG",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="Configuration with the destination of --to. Default: $INGEST_CONFIG.",
    ),
    click.option(
        "--to",
        "destination",
        metavar="NAME",
        shell_complete=complete_destination,
        help="A destination of the configuration, with its TLS, AE titles and deadlines.",
    ),
    click.option("-aec", "--called", default="ANY-SCP", help="AE title of the remote.", **_AE_TITLE),
    click.option("-aet", "--calling", default="INGEST", help="AE title of this side.", **_AE_TITLE),
    click.option("--tls", "use_tls", is_flag=True, help="Use TLS. Every other --tls option implies it."),
    click.option("--tls-cert", type=_FILE, help="Certificate of this side: PEM with chain."),
    click.option("--tls-key", type=_FILE, help="Its private key."),
    click.option("--tls-pkcs12", type=_FILE, help="Certificate and key in PKCS#12."),
    click.option("--tls-password-file", type=_FILE, help="Password of the encrypted key or PKCS#12."),
    click.option(
        "--tls-trusted",
        type=_FILE_OR_FOLDER,
        multiple=True,
        help="Certificates to verify the remote with; repeatable.",
    ),
    click.option("--tls-check-name", is_flag=True, help="Require HOST in the certificate of the remote."),
    click.option("--tls-no-verify", is_flag=True, help="Accept any certificate; for tests only."),
)
"""A destination of a configuration; or AE titles and TLS of a remote, named as DCMTK names them."""

_ADDRESS_OPTIONS: Final = ("called", "calling", "use_tls", "tls_")


def parse_address(words: Sequence[str], missing: str) -> tuple[str, int, Sequence[str]]:
    """Return HOST, PORT, and the words after them.

    Args:
        words: The arguments of the command.
        missing: What the command needs.

    Raises:
        click.UsageError: A word is missing, or PORT is no port. Without `--to` also if `-c` was given.
    """
    context = click.get_current_context()
    if context.get_parameter_source("path") is ParameterSource.COMMANDLINE:
        raise click.UsageError("-c FILE needs the name of a destination in it: --to NAME")
    if len(words) < 2:
        raise click.UsageError(f"name {missing}, or a destination of a configuration: -c FILE --to NAME")
    try:
        port = int(words[1])
    except ValueError:
        port = 0
    if not 1 <= port <= 65535:
        raise click.BadParameter(
            f"{words[1]!r} is no port; write a number from 1 to 65535", param_hint="PORT"
        )
    return words[0], port, words[2:]


def require_only_destination(words: Sequence[str], path: Path | None) -> Path:
    """Make sure that `--to` stands without HOST, PORT and options about a remote; return the configuration.

    Args:
        words: The arguments that could be HOST and PORT.
        path: The file of `-c`.

    Raises:
        click.UsageError: The address of the remote is given twice, or no configuration is named.
    """
    context = click.get_current_context()
    if words:
        raise click.UsageError(f"{' '.join(words)} and --to exclude each other: name HOST PORT, or --to NAME")
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name
        and parameter.name.startswith(_ADDRESS_OPTIONS)
        and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    ]
    if given:
        raise click.UsageError(
            f"--to takes AE titles and TLS from the configuration; leave {', '.join(given)} out"
        )
    if path is None:
        raise click.UsageError(
            "--to needs the configuration with the destination: -c FILE, or $INGEST_CONFIG"
        )
    return path


def make_tls_settings(options: dict[str, Any]) -> "TLS | None":
    """Make the TLS settings that the options of `remote_options` describe; None for plain DICOM.

    Raises:
        click.UsageError: Options contradict each other, or one is missing.
        ConfigError: A file cannot be used. It is reported before anything is sent.
    """
    if not any(options.values()):
        return None
    if not options["tls_trusted"] and not options["tls_no_verify"]:
        raise click.UsageError("name --tls-trusted to verify the remote, or --tls-no-verify to accept any")
    if options["tls_no_verify"] and (options["tls_trusted"] or options["tls_check_name"]):
        raise click.UsageError("--tls-no-verify contradicts --tls-trusted and --tls-check-name")
    if (options["tls_cert"] is None) != (options["tls_key"] is None):
        raise click.UsageError("--tls-cert and --tls-key go together")
    if options["tls_cert"] is not None and options["tls_pkcs12"] is not None:
        raise click.UsageError("--tls-pkcs12 contains certificate and key: give it without --tls-cert")
    from ingest.config.model import TLS
    from ingest.tls.contexts import build_client_context

    tls = TLS(
        certificate=options["tls_cert"],
        private_key=options["tls_key"],
        pkcs12=options["tls_pkcs12"],
        password_file=options["tls_password_file"],
        trusted=options["tls_trusted"],
        peer_certificate="none" if options["tls_no_verify"] else "required",
        check_server_name=options["tls_check_name"],
    )
    build_client_context(tls)
    return tls
