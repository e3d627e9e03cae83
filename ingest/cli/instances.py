"""Commands that list what was received, and those that decide about the quarantine."""

# ruff: noqa: PLC0415 - as in ingest.cli: --help starts fast

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from ingest.cli._base import Commands, config_option, load_config
from ingest.cli.deliveries import when

if TYPE_CHECKING:
    from ingest.ledger.index import InstanceFilter

_F = TypeVar("_F", bound=Callable[..., Any])

QUARANTINE: Final = "ingest.workers.quarantine.command"
"""Named and not imported: what workers do is theirs."""

# As `ingest.ledger.InstanceState` has them, without loading the ledger for --help.
INSTANCE_STATES: Final = ("stored", "variant", "quarantined", "replaced", "removing", "removed")

_study = click.option("--study", "study_uid", metavar="UID", help="Of this Study Instance UID.")
_series = click.option("--series", "series_uid", metavar="UID", help="Of this Series Instance UID.")
_sop = click.option("--sop", "sop_instance_uid", metavar="UID", help="Of this SOP Instance UID.")
_state = click.option(
    "--state", "states", type=click.Choice(INSTANCE_STATES), multiple=True, help="Repeatable."
)
_calling = click.option("--calling", "calling_ae", metavar="AE", help="Sent by this AE title.")
_since = click.option("--since", callback=when, metavar="TIME", help="Received since: 2h ago, or ISO 8601.")
_until = click.option("--until", callback=when, metavar="TIME", help="Received before; likewise.")
_stable = click.option(
    "--stable/--unstable", default=None, help="Those that nothing comes of any more, or that grow."
)
_limit = click.option("--limit", type=click.IntRange(1), default=100, show_default=True)
_before = click.option("--before", type=int, metavar="ID", help="Only smaller ids: the next page.")
_json = click.option("--json", "as_json", is_flag=True, help="One object a line.")
_ids = click.argument("ids", metavar="ID…", nargs=-1, required=True, type=click.IntRange(1))


def _all_of(*options: Callable[[_F], _F]) -> Callable[[_F], _F]:
    def decorate(function: _F) -> _F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


which_option = _all_of(_study, _series, _sop, _calling, _since, _until)
"""Options that say which instances are meant, as `InstanceFilter` names them."""


def _filter_of(options: dict[str, Any]) -> "InstanceFilter":
    from ingest.ledger import InstanceState
    from ingest.ledger.index import InstanceFilter

    states = tuple(InstanceState(state) for state in dict.fromkeys(options.pop("states", ())))
    return InstanceFilter(**options, states=states)


@click.command()
@config_option
@_all_of(_study, _calling, _since, _until, _stable, _limit, _json)
def studies(path: Path, stable: bool | None, limit: int, as_json: bool, **which: Any) -> None:
    """List studies, the one that something was received of last first.

    With --calling, --since and --until those that such an instance was received of; the numbers are those of
    the whole study. Stable is one of which nothing was stored for [node] stable_seconds.
    """
    from ingest.cli._instance_tables import list_studies

    meant = _filter_of(which)
    code = list_studies(load_config(path), meant, limit, stable=stable, as_json=as_json)
    click.get_current_context().exit(code)


@click.command()
@config_option
@_all_of(_study, _series, _sop, _state, _calling, _since, _until, _limit, _before, _json)
def instances(path: Path, limit: int, before: int | None, as_json: bool, **which: Any) -> None:
    """List instances, the newest first."""
    from ingest.cli._instance_tables import list_instances

    code = list_instances(load_config(path), _filter_of(which), limit, before, as_json=as_json)
    click.get_current_context().exit(code)


@click.group(cls=Commands)
def quarantine() -> None:
    """Decide about what collided, failed or was refused."""


@quarantine.command("list")
@config_option
@_all_of(_study, _sop, _since, _until, _limit, _before, _json)
def list_(path: Path, limit: int, before: int | None, as_json: bool, **which: Any) -> None:
    """List what is in quarantine, the newest first.

    A conflict is another object of a SOP instance UID that was there; what is refused was answered with a
    failure, and only a copy of it was kept.
    """
    from ingest.cli._instance_tables import list_quarantine

    meant = _filter_of({**which, "states": ("quarantined",)})
    click.get_current_context().exit(
        list_quarantine(load_config(path), meant, limit, before, as_json=as_json)
    )


@quarantine.command()
@config_option
@_ids
def release(path: Path, ids: tuple[int, ...]) -> None:
    """Make quarantined instances the stored ones.

    Each takes the place of what is stored under its SOP instance UID, which goes into quarantine instead, and
    is routed and delivered as though it had come now. Exits with 1 when one is unknown or cannot be released.
    """
    click.get_current_context().exit(
        importlib.import_module(QUARANTINE).release_instances(load_config(path), ids)
    )


@quarantine.command()
@config_option
@click.argument("ids", metavar="[ID…]", nargs=-1, type=click.IntRange(1))
@click.option("--all", "everything", is_flag=True, help="All that was set aside after it was acknowledged.")
def retry(path: Path, ids: tuple[int, ...], everything: bool) -> None:
    """Try to store acknowledged instances again, as though they came now.

    What was set aside because it could not be persisted is stored, routed and delivered, once the cause is
    mended. What is stored under its SOP instance UID is never replaced: that is what `release` does. Exits
    with 1 when one is unknown, was refused, or still cannot be stored.
    """
    if bool(ids) == everything:
        raise click.UsageError("say which: ID…, or --all")
    click.get_current_context().exit(
        importlib.import_module(QUARANTINE).retry_instances(load_config(path), ids)
    )


@quarantine.command()
@config_option
@_ids
@click.option("--yes", is_flag=True, help="Do not ask.")
def drop(path: Path, ids: tuple[int, ...], yes: bool) -> None:
    """Remove quarantined files for good.

    Their rows stay, as removed. Exits with 1 when one is unknown or not in quarantine.
    """
    loaded = load_config(path)
    if not yes:
        click.confirm(f"Remove {len(set(ids))} quarantined files for good?", abort=True)
    click.get_current_context().exit(importlib.import_module(QUARANTINE).drop_instances(loaded, ids))


COMMANDS: Final = (studies, instances, quarantine)
"""For `ingest.cli` to register."""
