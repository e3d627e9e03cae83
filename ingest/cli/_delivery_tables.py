"""`ingest deliveries`, `retry` and `drop`: what went where, and sending it again or never."""

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Final

import redis
from rich.console import Console

from ingest.cli.tables import local_time, print_line, printable, show
from ingest.clock import unix_ms
from ingest.config.model import Config
from ingest.errors import UnknownDestinationError
from ingest.ledger import Circuit, DeliveryState, Ledger
from ingest.ledger.delivery_admin import DeliveryFilter, FoundDelivery
from ingest.queue.client import connect
from ingest.queue.wakeups import send_wake_up

TIMES: Final = ("created_at", "updated_at", "next_at")


def list_deliveries(
    config: Config, which: DeliveryFilter, limit: int, before: int | None, *, as_json: bool
) -> int:
    """Print deliveries, the newest first; as JSON one object a line. Returns the exit code."""
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        _known(config, ledger, which)
        found = ledger.delivery_admin.find_deliveries(which, limit, before=before)
        circuits = ledger.circuits.read_circuits()
    if as_json:
        for row in found:
            print_line(json.dumps(_plain(row, circuits.get(row.destination))))
    else:
        _show(found, circuits)
        if len(found) == limit:
            print_line(f"more: --before {found[-1].id}, or --limit")
    return 0


def send_again(config: Config, which: DeliveryFilter, *, dry_run: bool) -> int:
    """Have deliveries wait again, and say how many; returns the exit code.

    Their destinations, and the one that was named, are asked at once, whatever was known of them.
    """
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        _known(config, ledger, which)
        changed = ledger.delivery_admin.requeue_deliveries(which, unix_ms(), dry_run=dry_run)
        meant = changed.keys() | _named(config, which)
        if dry_run:
            left_alone = {
                name: each for name, each in ledger.circuits.read_circuits().items() if name in meant
            }
            _say(changed, "would be sent again", _circuit_lines(left_alone, "would be"))
            return 0
        # Who wants it sent again wants it now, whatever the remote said before.
        closed = {name: ledger.circuits.close_circuit(name) for name in sorted(meant)}
        _say(changed, "to be sent again", _circuit_lines(closed, "is"))
    _wake_all(config, meant)
    return 0


def _named(config: Config, which: DeliveryFilter) -> set[str]:
    """Destinations that a person has named, by name or by naming nothing else."""
    if which.destination:
        return {which.destination}
    everything = replace(which, states=()) == DeliveryFilter()
    return {destination.name for destination in config.destinations} if everything else set()


def _circuit_lines(circuits: Mapping[str, Circuit], verb: str) -> list[str]:
    """What becomes of the destinations that were left alone after failures."""
    now = unix_ms()
    return [
        f"{name}: was left alone ({circuit.reason}); it {verb} asked at once"
        for name, circuit in sorted(circuits.items())
        if circuit.is_left_alone(now)
    ]


def _wake_all(config: Config, destinations: Iterable[str]) -> None:
    client = connect(config, timeout=2.0)
    try:
        for destination in destinations:
            send_wake_up(client, destination)
    except redis.RedisError as error:
        print_note(f"the queue is away ({error}); workers find them by themselves within seconds")
    finally:
        client.close()


def give_up(config: Config, which: DeliveryFilter, reason: str, *, dry_run: bool) -> int:
    """Drop deliveries, and say how many; returns the exit code."""
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        _known(config, ledger, which)
        changed = ledger.delivery_admin.drop_deliveries(which, reason, unix_ms(), dry_run=dry_run)
    _say(changed, "would be dropped" if dry_run else "dropped")
    return 0


def print_note(text: str) -> None:
    """Something to know, on standard error."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(printable(text), markup=False)


def _known(config: Config, ledger: Ledger, which: DeliveryFilter) -> None:
    name = which.destination
    if name is None or name in {destination.name for destination in config.destinations}:
        return
    if not ledger.delivery_admin.find_deliveries(DeliveryFilter(destination=name), 1):
        known = ", ".join(destination.name for destination in config.destinations) or "none"
        raise UnknownDestinationError(f'there is no destination "{name}"; the configuration has {known}')


def _say(changed: dict[str, int], what: str, more: Sequence[str] = ()) -> None:
    lines = [f"{destination}: {count} {what}" for destination, count in sorted(changed.items())]
    for line in (*lines, *more) or ("nothing to change",):
        print_line(line)


def iso_time(milliseconds: int) -> str | None:
    """Unix milliseconds as people and programs read them; None for 0."""
    if not milliseconds:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")


def _plain(row: FoundDelivery, circuit: Circuit | None) -> dict[str, object]:
    values = asdict(row) | {name: iso_time(getattr(row, name)) for name in TIMES}
    values["last_status"] = None if row.last_status is None else f"{row.last_status:04X}"
    values["waits_for"], next_at = _waits_for(row, circuit)
    values["next_attempt_at"] = iso_time(next_at)
    return values


def _waits_for(row: FoundDelivery, circuit: Circuit | None) -> tuple[str, int]:
    """Why a delivery that is due is not sent, and when it is tried next; "" and 0 of one that is not owed."""
    if row.state not in {DeliveryState.WAITING, DeliveryState.RETRY}:
        return "", 0
    if circuit is not None and circuit.is_left_alone(unix_ms()):
        return circuit.reason, max(row.next_at, circuit.probe_at)
    return "", row.next_at


def _show(found: Sequence[FoundDelivery], circuits: Mapping[str, Circuit]) -> None:
    rows = []
    for row in found:
        waits_for, next_at = _waits_for(row, circuits.get(row.destination))
        rows.append(
            (
                str(row.id),
                row.destination,
                row.state.value,
                str(row.attempts),
                local_time(row.updated_at),
                local_time(next_at),
                row.sop_instance_uid,
                "" if row.last_status is None else f"{row.last_status:04X}",
                "; ".join(filter(None, (row.last_error, waits_for))),
            )
        )
    show(
        (
            *("id", "destination", "state", "attempts", "changed", "next attempt"),
            *("SOP instance", "status", "error"),
        ),
        rows,
    )
