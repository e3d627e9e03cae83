"""`ingest deliver`: what is stored goes to a destination, whenever it came and whatever the routes say."""

import difflib
import json
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Final

import redis
from rich.console import Console
from rich.markup import escape
from rich.status import Status

from ingest.alarms import BOUNDED_ALARM, clear_alarm
from ingest.cli._delivery_tables import print_note
from ingest.clock import unix_ms
from ingest.config.model import Config
from ingest.errors import UnknownDestinationError
from ingest.ledger import DeliveryState, Ledger
from ingest.ledger.backfill import BackfillCounts
from ingest.ledger.index import InstanceFilter
from ingest.queue.client import connect
from ingest.queue.wakeups import send_wake_up

_LEFT: Final = {
    DeliveryState.DELIVERED: "delivered already; --again delivers them again",
    DeliveryState.WAITING: "waiting already",
    DeliveryState.SENDING: "being sent",
    DeliveryState.RETRY: "to be tried again already",
    DeliveryState.DEAD: "dead; `ingest retry --destination {0}` sends them again",
    DeliveryState.DROPPED: "dropped; `ingest retry --destination {0} --state dropped` sends them again",
}


def deliver(
    config: Config,
    to: Sequence[str],
    which: InstanceFilter,
    *,
    again: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Make deliveries of what is stored, say how many, and wake the destinations; returns the exit code.

    Args:
        config: The configuration.
        to: Names of destinations that it has.
        which: Instances that are meant.
        again: Whether what was delivered is to be delivered again.
        dry_run: Count only.
        as_json: Print one object for each destination.

    Raises:
        UnknownDestinationError: The configuration has no destination of that name.
        LedgerError: The ledger is away; the same command again does what is left.
    """
    _require_known(to, [destination.name for destination in config.destinations])
    ledger = Ledger(config.ledger_url)
    ledger.require_schema()
    console, errors = Console(highlight=False, soft_wrap=True), Console(stderr=True)
    due = []
    for name in dict.fromkeys(to):
        with errors.status(escape(f"{name}: looking")) as status:

            def show(part: float, name: str = name, status: Status = status) -> None:
                status.update(escape(f"{name}: {part:.0%} looked at"))

            now = unix_ms()
            counts = ledger.backfill.create_deliveries(
                name, which, now, again=again, dry_run=dry_run, progress=show
            )
        if not dry_run:
            # A person has decided about what was kept back.
            clear_alarm(config.run_dir, f"{BOUNDED_ALARM}.{name}")
            due += [name] if counts.new + counts.again else []
        for line in [json.dumps(_plain(name, counts))] if as_json else _lines(name, counts, dry_run=dry_run):
            console.print(line, markup=False)
    _wake(config, ledger, due)
    return 0


def _require_known(names: Sequence[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.5)
            ask = f'did you mean "{near[0]}"? ' if near else ""
            raise UnknownDestinationError(
                f'there is no destination "{name}"; {ask}the configuration has {", ".join(known) or "none"}'
            )


def _wake(config: Config, ledger: Ledger, destinations: Sequence[str]) -> None:
    """Have destinations asked at once, whatever was known of them."""
    if not destinations:
        return
    client = connect(config, timeout=2.0)
    try:
        for name in destinations:
            ledger.circuits.close_circuit(name)
            send_wake_up(client, name)
    except redis.RedisError as error:
        print_note(f"the queue is away ({error}); workers find them by themselves within seconds")
    finally:
        client.close()


def _lines(name: str, counts: BackfillCounts, *, dry_run: bool) -> Iterator[str]:
    said = "would be delivered" if dry_run else "to be delivered"
    if counts.new or not counts.again + counts.left.total():
        yield f"{name}: {counts.new} {said}"
    if counts.again:
        yield f"{name}: {counts.again} {said} again"
    for state, remark in _LEFT.items():
        if counts.left[state]:
            yield f"{name}: {counts.left[state]} {remark.format(name)}"


def _plain(name: str, counts: BackfillCounts) -> dict[str, Any]:
    left = {state.value: count for state, count in sorted(counts.left.items())}
    return {"destination": name, "new": counts.new, "again": counts.again, "left": left}
