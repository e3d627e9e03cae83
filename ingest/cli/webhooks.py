"""Commands about webhooks: test them, list their events, and send dead ones again."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ingest.cli import _options as options
from ingest.cli._base import FAILED, CommandGroup, config_option, exit_with, load_config
from ingest.cli._tables import ListLayout, format_local_time, print_line, print_list
from ingest.cli._user import load_config_as_owner

if TYPE_CHECKING:
    from ingest.operations.webhooks import WebhookEvent, WebhookOverview


@click.group(cls=CommandGroup)
def webhooks() -> None:
    """Test webhooks, list their events, and send dead events again."""


@webhooks.command()
@config_option
@click.argument("name", required=False)
@options.json_option
def test(path: Path, name: str | None, as_json: bool) -> None:
    """Send a test event at once.

    \b
    ingest webhooks test -c ingest.toml
    ingest webhooks test -c ingest.toml ris

    Without NAME all webhooks get one. Exits with 1 if a receiver does not accept it. No node needs to run.
    """
    from ingest.operations.webhooks import send_test_events

    results = send_test_events(load_config_as_owner(path), name)
    if as_json:
        print_line(json.dumps([result.to_json() for result in results]))
    else:
        for result in results:
            answer = "accepted" if result.is_sent else f"{result.cause}; {result.remedy}"
            print_line(f"{result.webhook}: {result.receiver}: {answer}")
    if not all(result.is_sent for result in results):
        exit_with(FAILED)


@webhooks.command("list")
@config_option
@options.list_format_options
def list_(path: Path, list_format: str | None) -> None:
    """List the webhooks with the number of events that wait or were given up."""
    from ingest.operations.webhooks import list_webhooks

    print_list(list_webhooks(load_config(path)), list_format, make_webhook_layout())


@webhooks.command()
@config_option
@click.argument("name", required=False)
@click.option(
    "--state", type=click.Choice(["waiting", "sending", "dead"]), multiple=True, help="Only in this state."
)
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="At most so many."
)
@options.list_format_options
def events(path: Path, name: str | None, state: tuple[str, ...], limit: int, list_format: str | None) -> None:
    """List events that wait or were given up, the newest first.

    \b
    ingest webhooks events -c ingest.toml ris --state dead
    """
    from ingest.ledger.outbox import EventState
    from ingest.operations.webhooks import list_webhook_events

    found = list_webhook_events(load_config(path), name, [EventState(each) for each in state], limit)
    print_list(found, list_format, make_event_layout())


@webhooks.command()
@config_option
@click.argument("name")
@click.option("--event", "event_ids", multiple=True, metavar="ID", help="Only this event; may be repeated.")
@options.json_option
def replay(path: Path, name: str, event_ids: tuple[str, ...], as_json: bool) -> None:
    """Send events again that were given up, under their ids.

    \b
    ingest webhooks replay -c ingest.toml ris
    ingest webhooks replay -c ingest.toml ris --event 4f1c5b0e-…

    Without --event all of them are sent. A running node sends them within seconds.
    """
    from ingest.operations.webhooks import replay_dead_events

    count = replay_dead_events(load_config_as_owner(path), name, event_ids or None)
    print_line(json.dumps({"replayed": count}) if as_json else f"{count} events wait again")


def make_webhook_layout() -> "ListLayout[WebhookOverview]":
    """Return the layouts of `ingest webhooks list`."""
    from ingest.operations.webhooks import WEBHOOK_FIELDS, name_receiver

    def to_cells(one: "WebhookOverview") -> tuple[str, ...]:
        return (
            one.webhook.name,
            name_receiver(one.webhook),
            str(one.waiting),
            format_local_time(one.oldest_ms) if one.oldest_ms else "",
            str(one.dead),
            one.last_error,
        )

    return ListLayout(
        fields=WEBHOOK_FIELDS,
        to_record=lambda one: one.to_json(),
        columns=("webhook", "receiver", "waiting", "oldest", "dead", "last error"),
        to_cells=to_cells,
    )


def make_event_layout() -> "ListLayout[WebhookEvent]":
    """Return the layouts of `ingest webhooks events`."""
    from ingest.operations.webhooks import EVENT_FIELDS

    def to_cells(one: "WebhookEvent") -> tuple[str, ...]:
        event = one.event
        return (
            event.event_id,
            one.webhook,
            one.kind,
            one.subject,
            event.state.value,
            str(event.attempts),
            format_local_time(event.created_at),
            event.last_error,
        )

    return ListLayout(
        fields=EVENT_FIELDS,
        to_record=lambda one: one.to_json(),
        columns=("id", "webhook", "type", "subject", "state", "attempts", "created", "last error"),
        to_cells=to_cells,
    )
