"""Commands that ask the ledger, and their options."""

# ruff: noqa: PLC0415 - as in ingest.cli: --help starts fast

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from ingest.ledger.delivery_admin import DeliveryFilter

_F = TypeVar("_F", bound=Callable[..., Any])

# As `ingest.ledger.DeliveryState` has them, without loading the ledger for --help.
STATES = ("waiting", "sending", "delivered", "retry", "dead", "dropped")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def when(_context: click.Context, _parameter: click.Parameter, value: str | None) -> int | None:
    """Unix milliseconds of "2h" (ago) or of an ISO 8601 time, which is UTC where it says nothing else."""
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


_FILTERS = (
    click.option("--destination", metavar="NAME", help="Of this destination."),
    click.option("--study", "study_uid", metavar="UID", help="Of this Study Instance UID."),
    click.option("--series", "series_uid", metavar="UID", help="Of this Series Instance UID."),
    click.option("--sop", "sop_instance_uid", metavar="UID", help="Of this SOP Instance UID."),
    click.option("--state", "states", type=click.Choice(STATES), multiple=True, help="Repeatable."),
    click.option("--error", metavar="TEXT", help="Whose last error has this in it."),
    click.option("--since", callback=when, metavar="TIME", help="Changed since: 2h ago, or ISO 8601."),
    click.option("--until", callback=when, metavar="TIME", help="Changed before; likewise."),
)


dry_run_option = click.option("--dry-run", is_flag=True, help="Say how many, and change nothing.")


def filter_options(function: _F) -> _F:
    """Options that say which deliveries are meant."""
    for decorate in reversed(_FILTERS):
        function = decorate(function)
    return function


def filter_of(options: dict[str, Any]) -> "DeliveryFilter":
    """What the options mean."""
    from ingest.ledger.delivery_admin import DeliveryFilter
    from ingest.ledger.records import DeliveryState

    return DeliveryFilter(**{**options, "states": tuple(DeliveryState(state) for state in options["states"])})


def require_one(options: dict[str, Any], *, everything: bool) -> None:
    """Make sure that something was named, or `--all` said.

    Raises:
        click.UsageError: Neither was.
    """
    if not everything and not any(options.values()):
        raise click.UsageError("say which: --destination, --study, …, or --all")
