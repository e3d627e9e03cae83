"""Commands about alerts: test them, list the alarms that they have reported."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ingest.cli import _options as options
from ingest.cli._base import FAILED, CommandGroup, config_option, exit_with, load_config
from ingest.cli._tables import ListLayout, format_local_time, print_line, print_list
from ingest.cli._user import load_config_as_owner

if TYPE_CHECKING:
    from ingest.operations.alerts import AlertOverview


@click.group(cls=CommandGroup)
def alerts() -> None:
    """Test alerts, and list the alarms that they have reported."""


@alerts.command()
@config_option
@click.argument("name", required=False)
@options.json_option
def test(path: Path, name: str | None, as_json: bool) -> None:
    """Send a test event at once.

    \b
    ingest alerts test -c ingest.toml
    ingest alerts test -c ingest.toml pacs-team

    Without NAME all alerts send one. Exits with 1 if a receiver does not accept it. No node needs to run.
    """
    from ingest.operations.alerts import send_test_events

    results = send_test_events(load_config_as_owner(path), name)
    if as_json:
        print_line(json.dumps([result.to_json() for result in results]))
    else:
        for result in results:
            answer = "accepted" if result.is_sent else f"{result.cause}; {result.remedy}"
            print_line(f"{result.alert}: {result.receiver}: {answer}")
    if not all(result.is_sent for result in results):
        exit_with(FAILED)


@alerts.command("list")
@config_option
@options.list_format_options
def list_(path: Path, list_format: str | None) -> None:
    """List the alarms that alerts have reported, and the events that wait."""
    from ingest.operations.alerts import list_alerts

    print_list(list_alerts(load_config(path)), list_format, make_alert_layout())


def make_alert_layout() -> "ListLayout[AlertOverview]":
    """Return the layouts of `ingest alerts list`."""
    from ingest.operations.alerts import ALERT_FIELDS, name_receiver

    def to_cells(one: "AlertOverview") -> tuple[str, ...]:
        return (
            one.alert.name,
            name_receiver(one.alert),
            ", ".join(alarm["name"] for alarm in one.standing),
            str(one.waiting),
            format_local_time(one.last.created_at) if one.last else "",
            one.last.state.value if one.last else "",
            one.last.last_error if one.last else "",
        )

    return ListLayout(
        fields=ALERT_FIELDS,
        to_record=lambda one: one.to_json(),
        columns=("alert", "receiver", "standing", "waiting", "last event", "state", "last error"),
        to_cells=to_cells,
    )
