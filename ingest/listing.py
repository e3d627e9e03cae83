"""`ingest deliveries`, `retry` and `drop`: what went where, and sending it again or never."""

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Final

import redis
from rich.console import Console

from ingest.config.model import Config
from ingest.errors import IngestError
from ingest.ledger import Ledger
from ingest.ledger.search import Filter, FoundDelivery
from ingest.queue import connect
from ingest.tables import local_time, print_line, printable, show
from ingest.wake import wake

TIMES: Final = ("created_at", "updated_at", "next_at")


class UnknownDestinationError(IngestError):
    """Neither the configuration nor the ledger knows a destination of this name."""


def list_deliveries(config: Config, which: Filter, limit: int, before: int | None, *, as_json: bool) -> int:
    """Print deliveries, the newest first; as JSON one object a line. Returns the exit code."""
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        _known(config, ledger, which)
        found = ledger.find_deliveries(which, limit, before=before)
    if as_json:
        for row in found:
            print_line(json.dumps(_plain(row)))
    else:
        _show(found)
        if len(found) == limit:
            print_line(f"more: --before {found[-1].id}, or --limit")
    return 0


def send_again(config: Config, which: Filter, *, dry_run: bool) -> int:
    """Have deliveries wait again, and say how many; returns the exit code.

    Their destinations, and the one that was named, are asked at once, whatever was known of them.
    """
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        _known(config, ledger, which)
        changed = ledger.send_again(which, time.time_ns() // 1_000_000, dry_run=dry_run)
        if dry_run:
            _say(changed, "would be sent again")
            return 0
        _say(changed, "to be sent again")
        client = connect(config, timeout=2.0)
        try:
            for destination in changed.keys() | ({which.destination} if which.destination else set()):
                # Who wants it sent again wants it now, whatever the remote said before.
                ledger.close_circuit(destination)
                wake(client, destination)
        except redis.RedisError as error:
            print_note(f"the queue is away ({error}); workers find them by themselves within seconds")
        finally:
            client.close()
        return 0


def give_up(config: Config, which: Filter, reason: str, *, dry_run: bool) -> int:
    """Drop deliveries, and say how many; returns the exit code."""
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        _known(config, ledger, which)
        changed = ledger.give_up(which, reason, time.time_ns() // 1_000_000, dry_run=dry_run)
    _say(changed, "would be dropped" if dry_run else "dropped")
    return 0


def print_note(text: str) -> None:
    """Something to know, on standard error."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(printable(text), markup=False)


def _known(config: Config, ledger: Ledger, which: Filter) -> None:
    name = which.destination
    if name is None or name in {destination.name for destination in config.destinations}:
        return
    if not ledger.find_deliveries(Filter(destination=name), 1):
        known = ", ".join(destination.name for destination in config.destinations) or "none"
        raise UnknownDestinationError(f'there is no destination "{name}"; the configuration has {known}')


def _say(changed: dict[str, int], what: str) -> None:
    for destination, count in sorted(changed.items()):
        print_line(f"{destination}: {count} {what}")
    if not changed:
        print_line("nothing to change")


def iso_time(milliseconds: int) -> str | None:
    """Unix milliseconds as people and programs read them; None for 0."""
    if not milliseconds:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")


def _plain(row: FoundDelivery) -> dict[str, object]:
    values = asdict(row) | {name: iso_time(getattr(row, name)) for name in TIMES}
    values["last_status"] = None if row.last_status is None else f"{row.last_status:04X}"
    return values


def _show(found: Sequence[FoundDelivery]) -> None:
    show(
        ("id", "destination", "state", "attempts", "changed", "SOP instance", "status", "error"),
        [
            (
                str(row.id),
                row.destination,
                row.state.value,
                str(row.attempts),
                local_time(row.updated_at),
                row.sop_instance_uid,
                "" if row.last_status is None else f"{row.last_status:04X}",
                row.last_error or "",
            )
            for row in found
        ],
    )
