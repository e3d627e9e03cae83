"""Commands about deliveries: list, retry, drop, and deliver stored instances."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ingest.cli import _options as options
from ingest.cli._base import DefaultCommandGroup, config_option, load_config
from ingest.cli._tables import ListLayout, format_local_time, print_line, print_list, print_note
from ingest.cli._user import load_config_as_owner

if TYPE_CHECKING:
    from ingest.ledger import Circuit
    from ingest.ledger.backfill import BackfillCounts
    from ingest.operations.deliveries import ListedDelivery


@click.group(cls=DefaultCommandGroup, subcommand_metavar="[COMMAND]")
def deliveries() -> None:
    """List deliveries, or release held ones.

    \b
    ingest deliveries -c ingest.toml --destination pacs --state dead
    ingest deliveries release -c ingest.toml --destination pacs

    Without a command it lists.
    """


@deliveries.command("list")
@config_option
@options.delivery_filter_options
@options.limit_option
@options.before_option
@options.list_format_options
def list_(path: Path, limit: int, before: int | None, list_format: str | None, **which: Any) -> None:
    """List deliveries, those of the newest instances first.

    \b
    ingest deliveries -c ingest.toml --destination pacs --state dead
    ingest deliveries -c ingest.toml --since 2h --json

    `ingest deliveries` alone lists too.
    """
    from ingest.operations.deliveries import list_deliveries

    found = list_deliveries(load_config(path), options.make_delivery_filter(which), limit, before)
    more = f"--before {found[-1].delivery.id}, or --limit" if len(found) == limit else ""
    print_list(found, list_format, make_delivery_layout(), more=more)


@deliveries.command()
@config_option
@options.delivery_filter_options
@click.option("--all", "everything", is_flag=True, help="Every held delivery.")
@options.dry_run_option
def release(path: Path, everything: bool, dry_run: bool, **which: Any) -> None:
    """Send held deliveries: those of routes with `hold = true`.

    \b
    ingest deliveries release -c ingest.toml --study 1.2.840.1
    ingest deliveries release -c ingest.toml --destination research --dry-run

    Deliveries in other states do not change. Drop those that must not be sent: `ingest drop --state held`.
    """
    options.require_selection(which, everything=everything)
    from ingest.operations.deliveries import release_deliveries

    result = release_deliveries(
        load_config_as_owner(path), options.make_delivery_filter(which), dry_run=dry_run
    )
    _print_counts(result.counts, "would be released" if dry_run else "released")
    _note_queue_error(result.queue_error)


@click.command()
@config_option
@options.delivery_filter_options
@click.option("--all", "everything", is_flag=True, help="Every dead delivery.")
@options.dry_run_option
def retry(path: Path, everything: bool, dry_run: bool, **which: Any) -> None:
    """Send dead deliveries, or those of --state, again.

    \b
    ingest retry -c ingest.toml --destination pacs
    ingest retry -c ingest.toml --state dropped --study 1.2.840.1

    A delivery that is being sent stays as it is, and so does one that waits. The destination is tried at
    once, even if its circuit is open.
    """
    options.require_selection(which, everything=everything)
    from ingest.operations.deliveries import retry_deliveries

    meant = options.make_delivery_filter({**which, "states": which["states"] or ("dead",)})
    result = retry_deliveries(load_config_as_owner(path), meant, dry_run=dry_run)
    verb = "would be" if dry_run else "is"
    _print_counts(
        result.counts,
        "would be sent again" if dry_run else "to be sent again",
        [_format_circuit(name, circuit, verb) for name, circuit in result.open_circuits.items()],
    )
    _note_queue_error(result.queue_error)


@click.command()
@config_option
@options.delivery_filter_options
@click.option("--all", "everything", is_flag=True, help="Every delivery that is not delivered.")
@click.option("--reason", default="dropped by hand", show_default=True, help="Reason, for the ledger.")
@options.yes_option
@options.dry_run_option
def drop(path: Path, everything: bool, reason: str, yes: bool, dry_run: bool, **which: Any) -> None:
    """Drop deliveries that wait, will be retried, or are dead.

    \b
    ingest drop -c ingest.toml --destination old-pacs --state dead

    The instances stay in the store. `ingest retry --state dropped` undoes it.
    """
    options.require_selection(which, everything=everything)
    from ingest.operations.deliveries import drop_deliveries

    meant, config = options.make_delivery_filter(which), load_config_as_owner(path)
    if not yes and not dry_run:
        click.confirm("Drop these deliveries?", abort=True)
    counts = drop_deliveries(config, meant, reason, dry_run=dry_run)
    _print_counts(counts, "would be dropped" if dry_run else "dropped")


@click.command()
@config_option
@click.argument("destination")
@click.option("--reason", default="", metavar="TEXT", help="Reason, for `ingest status` and other people.")
@options.json_option
def pause(path: Path, destination: str, reason: str, as_json: bool) -> None:
    """Send nothing to a destination until `ingest resume`.

    \b
    ingest pause -c ingest.toml pacs --reason "upgrade of the archive, call Ann"

    Instances that are being sent are finished. All other deliveries wait in the ledger, also over a restart.
    `ingest retry` does not end a pause. A pause counts for `give_up_hours`.
    """
    import getpass

    from ingest.operations.deliveries import pause_destination

    # Before root takes the rights of another user.
    try:
        by = getpass.getuser()
    except (KeyError, OSError):
        by = f"uid {os.getuid()}"
    result = pause_destination(load_config_as_owner(path), destination, by, reason)
    if as_json:
        print_line(json.dumps(result.to_json()))
    elif result.before.is_paused:
        print_line(
            f"{destination}: was paused already, since {format_local_time(result.before.paused_at)} "
            f"({result.before.reason})"
        )
    else:
        print_line(f"{destination}: paused; `ingest resume {destination}` ends it")


@click.command()
@config_option
@click.argument("destination")
@options.json_option
def resume(path: Path, destination: str, as_json: bool) -> None:
    """Send again to a paused destination.

    \b
    ingest resume -c ingest.toml pacs
    """
    from ingest.operations.deliveries import resume_destination

    result = resume_destination(load_config_as_owner(path), destination)
    if as_json:
        print_line(json.dumps(result.to_json()))
    elif result.before.is_paused:
        since = format_local_time(result.before.paused_at)
        print_line(f"{destination}: resumed; it was paused since {since} ({result.before.reason})")
    else:
        print_line(f"{destination}: was not paused")
    _note_queue_error(result.queue_error)


@click.command()
@config_option
@click.option(
    "--to",
    "to",
    metavar="NAME",
    multiple=True,
    required=True,
    shell_complete=options.complete_destination,
    help="Name of a destination; repeatable.",
)
@options.instance_filter_options
@click.option("--all", "everything", is_flag=True, help="Every stored instance.")
@click.option("--again", is_flag=True, help="Also instances that are delivered there.")
@options.dry_run_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object for each destination.")
def deliver(
    *,
    path: Path,
    to: tuple[str, ...],
    everything: bool,
    again: bool,
    dry_run: bool,
    as_json: bool,
    **which: Any,
) -> None:
    """Deliver stored instances to a destination.

    \b
    Images that came before their route existed:
      ingest deliver -c ingest.toml --to pacs --all
    A destination that has lost a study:
      ingest deliver -c ingest.toml --to pacs --study 1.2.3 --again

    Routes are not evaluated. Deliveries that wait stay as they are, and `ingest retry` sends dead ones. If
    the command is interrupted, run it again: it finishes the rest.
    """
    if not everything and all(value is None for value in which.values()):
        raise click.UsageError("say which: --study, --calling, --since, …, or --all")
    from ingest.operations.deliveries import backfill_to_json, deliver_instances

    config, meant = load_config_as_owner(path), options.make_instance_filter(which)
    with _show_progress() as report_progress:
        result = deliver_instances(
            config, to, meant, again=again, dry_run=dry_run, report_progress=report_progress
        )
    for name, counts in result.counts.items():
        if as_json:
            print_line(json.dumps(backfill_to_json(name, counts)))
        else:
            for line in _format_backfill(name, counts, dry_run=dry_run):
                print_line(line)
    _note_queue_error(result.queue_error)


def make_delivery_layout() -> "ListLayout[ListedDelivery]":
    """Return the layouts of `ingest deliveries`."""
    from ingest.dicom.priority import Priority
    from ingest.operations.deliveries import DELIVERY_FIELDS

    def to_cells(one: "ListedDelivery") -> tuple[str, ...]:
        commitment = one.delivery.commitment
        return (
            str(one.delivery.id),
            " → ".join(filter(None, (one.delivery.destination, one.delivery.member))),
            one.delivery.state.value + ("" if commitment == "none" else f", {commitment}"),
            Priority(one.delivery.priority).word,
            str(one.delivery.attempts),
            format_local_time(one.delivery.updated_at),
            format_local_time(one.next_attempt_ms),
            one.delivery.sop_instance_uid,
            "" if one.delivery.last_status is None else f"{one.delivery.last_status:04X}",
            "; ".join(filter(None, (one.delivery.last_error, one.waits_for))),
        )

    return ListLayout(
        fields=DELIVERY_FIELDS,
        to_record=lambda one: one.to_json(),
        columns=(
            *("id", "destination", "state", "priority", "attempts", "changed", "next attempt"),
            *("SOP instance", "status", "error"),
        ),
        to_cells=to_cells,
    )


def _print_counts(counts: Mapping[str, int], outcome: str, more: Sequence[str] = ()) -> None:
    lines = [f"{destination}: {count} {outcome}" for destination, count in sorted(counts.items())]
    for line in (*lines, *more) or ("nothing to change",):
        print_line(line)


def _format_circuit(name: str, circuit: "Circuit", verb: str) -> str:
    if circuit.is_paused:
        return f"{name}: {circuit.reason}; nothing is sent before `ingest resume {name}`"
    return f"{name}: was left alone ({circuit.reason}); it {verb} tried at once"


def _note_queue_error(error: str) -> None:
    if error:
        print_note(f"the queue is away ({error}); workers find the deliveries by themselves within seconds")


@contextlib.contextmanager
def _show_progress() -> Iterator[Callable[[str, float], None]]:
    """Show the progress of each destination on standard error, while the context lasts."""
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status("searching") as progress:
        yield lambda name, part: progress.update(escape(f"{name}: {part:.0%} searched"))


def _format_backfill(name: str, counts: "BackfillCounts", *, dry_run: bool) -> Iterator[str]:
    from ingest.ledger import DeliveryState

    remarks = {
        DeliveryState.DELIVERED: "delivered already; --again delivers them again",
        DeliveryState.WAITING: "waiting already",
        DeliveryState.SENDING: "being sent",
        DeliveryState.RETRY: "to be retried already",
        DeliveryState.DEAD: f"dead; `ingest retry --destination {name}` sends them again",
        DeliveryState.DROPPED: (
            f"dropped; `ingest retry --destination {name} --state dropped` sends them again"
        ),
        DeliveryState.HELD: f"held; `ingest deliveries release --destination {name}` sends them",
        DeliveryState.AWAITING: "awaiting the end of their series or study",
    }
    outcome = "would be delivered" if dry_run else "to be delivered"
    if counts.new or not counts.again + counts.left.total():
        yield f"{name}: {counts.new} {outcome}"
    if counts.again:
        yield f"{name}: {counts.again} {outcome} again"
    for state, remark in remarks.items():
        if counts.left[state]:
            yield f"{name}: {counts.left[state]} {remark}"
