"""List, retry, release, drop and create deliveries."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any, Final

import redis

from ingest.alarms import BOUNDED_ALARM, clear_alarm
from ingest.clock import unix_ms
from ingest.config.hours import find_common_opening_ms, find_delivery_opening_ms
from ingest.config.model import Config, Destination
from ingest.dicom.priority import Priority
from ingest.ledger import Circuit, DeliveryState, Ledger
from ingest.ledger.backfill import BackfillCounts
from ingest.ledger.circuits import combine_circuits
from ingest.ledger.delivery_admin import FoundDelivery
from ingest.ledger.delivery_filter import DeliveryFilter
from ingest.ledger.instance_filter import InstanceFilter
from ingest.ledger.row_values import clean_value
from ingest.operations.destinations import require_destinations
from ingest.operations.instances import require_indexed
from ingest.operations.times import format_iso_time
from ingest.queue.client import connect
from ingest.queue.wakeups import send_wake_up

QUEUE_SECONDS: Final = 2.0
"""Deadline for the queue. Without it, forward workers find new work by themselves within seconds."""

_TIMES: Final = ("created_at", "updated_at", "next_at")

DELIVERY_FIELDS: Final = (
    *(field.name for field in fields(FoundDelivery)),
    *("waits_for", "next_attempt_at"),
)
"""Names of the fields of `ListedDelivery.to_json`."""


@dataclass(frozen=True, slots=True)
class ListedDelivery:
    """A delivery with the reason why it waits.

    Attributes:
        delivery: The row of the ledger.
        waits_for: Why a due delivery is not sent now; empty otherwise.
        next_attempt_ms: When the next attempt is due, in Unix milliseconds; 0 if there will be none.
    """

    delivery: FoundDelivery
    waits_for: str
    next_attempt_ms: int

    def to_json(self) -> dict[str, object]:
        """Return the values of the delivery for JSON."""
        row = self.delivery
        values = asdict(row) | {name: format_iso_time(getattr(row, name)) for name in _TIMES}
        values["last_status"] = None if row.last_status is None else f"{row.last_status:04X}"
        values["priority"] = Priority(row.priority).word
        values["waits_for"] = self.waits_for
        values["next_attempt_at"] = format_iso_time(self.next_attempt_ms)
        return values


@dataclass(frozen=True, slots=True)
class RetryResult:
    """The result of `retry_deliveries`.

    Attributes:
        counts: The number of deliveries for each destination.
        open_circuits: Circuits that were open: their destinations were not tried until now.
        queue_error: Why no worker could be notified; empty if all were.
    """

    counts: Mapping[str, int]
    open_circuits: Mapping[str, Circuit]
    queue_error: str = ""


def list_deliveries(
    config: Config, which: DeliveryFilter, limit: int, before: int | None
) -> list[ListedDelivery]:
    """Return deliveries, those of the newest instances first.

    Raises:
        UnknownDestinationError: Neither the configuration nor the ledger knows the destination.
        NotIndexedError: `[ledger] index` does not keep an attribute that is asked for.
    """
    with _open_ledger(config, which) as ledger:
        found = ledger.delivery_admin.find_deliveries(which, limit, before=before)
        circuits = ledger.circuits.read_circuits()
    circuits |= combine_all_circuits(config, circuits)
    known = {each.name: each for each in config.destinations}
    return [explain_waiting(row, circuits.get(row.destination), known.get(row.destination)) for row in found]


def retry_deliveries(config: Config, which: DeliveryFilter, *, dry_run: bool) -> RetryResult:
    """Make deliveries due again, close the circuits of their destinations, and notify the workers.

    A person who asks for a retry wants an attempt now, regardless of earlier responses. Therefore the circuit
    of a named destination is closed even if it has no such delivery.

    Raises:
        UnknownDestinationError: Neither the configuration nor the ledger knows the destination.
        NotIndexedError: `[ledger] index` does not keep an attribute that is asked for.
    """
    with _open_ledger(config, which) as ledger:
        counts = ledger.delivery_admin.requeue_deliveries(which, unix_ms(), dry_run=dry_run)
        destinations = _add_members(config, counts.keys() | _list_meant_destinations(config, which))
        if dry_run:
            circuits = ledger.circuits.read_circuits()
        else:
            circuits = {name: ledger.circuits.close_circuit(name) for name in sorted(destinations)}
    now = unix_ms()
    was_open = {
        name: circuit
        for name, circuit in sorted(circuits.items())
        if name in destinations and circuit.is_left_alone(now)
    }
    return RetryResult(counts, was_open, "" if dry_run else notify_workers(config, destinations))


@dataclass(frozen=True, slots=True)
class ReleaseResult:
    """The result of `release_deliveries`.

    Attributes:
        counts: The number of deliveries for each destination.
        queue_error: Why no worker could be notified; empty if all were.
    """

    counts: Mapping[str, int]
    queue_error: str = ""


def release_deliveries(config: Config, which: DeliveryFilter, *, dry_run: bool) -> ReleaseResult:
    """Let workers send held deliveries, and notify them. Circuits and pauses stay as they are.

    Raises:
        UnknownDestinationError: Neither the configuration nor the ledger knows the destination.
        NotIndexedError: `[ledger] index` does not keep an attribute that is asked for.
    """
    with _open_ledger(config, which) as ledger:
        counts = ledger.delivery_admin.release_deliveries(which, unix_ms(), dry_run=dry_run)
    return ReleaseResult(counts, "" if dry_run else notify_workers(config, counts))


def drop_deliveries(
    config: Config, which: DeliveryFilter, reason: str, *, dry_run: bool
) -> Mapping[str, int]:
    """Drop deliveries, and return their number for each destination.

    Raises:
        UnknownDestinationError: Neither the configuration nor the ledger knows the destination.
        NotIndexedError: `[ledger] index` does not keep an attribute that is asked for.
    """
    with _open_ledger(config, which) as ledger:
        return ledger.delivery_admin.drop_deliveries(which, reason, unix_ms(), dry_run=dry_run)


@dataclass(frozen=True, slots=True)
class PauseResult:
    """The result of `pause_destination` and `resume_destination`.

    Attributes:
        before: The circuit before.
        after: The circuit after.
        queue_error: Why no worker could be notified; empty if all were.
    """

    before: Circuit
    after: Circuit
    queue_error: str = ""

    def to_json(self) -> dict[str, object]:
        """Return the pause of the destination for JSON."""
        after = self.after
        return {
            "destination": after.destination,
            "was_paused": self.before.is_paused,
            "paused": after.is_paused,
            "paused_at": format_iso_time(after.paused_at),
            "paused_by": after.paused_by,
            "pause_reason": after.pause_reason,
        }


def pause_destination(config: Config, destination: str, by: str, reason: str = "") -> PauseResult:
    """Let no worker send to a destination until `resume_destination`. Instances under way are finished.

    Args:
        config: The configuration.
        destination: Name of the destination.
        by: Name of the person.
        reason: Reason for other persons, or empty.

    Raises:
        UnknownDestinationError: Neither the configuration nor the ledger knows the destination.
    """
    with _open_ledger(config, DeliveryFilter(destination=destination)) as ledger:
        before, after = ledger.circuits.pause(destination, clean_value(by), clean_value(reason), unix_ms())
    return PauseResult(before, after)


def resume_destination(config: Config, destination: str) -> PauseResult:
    """End the pause of a destination, and notify the workers.

    Raises:
        UnknownDestinationError: Neither the configuration nor the ledger knows the destination.
    """
    with _open_ledger(config, DeliveryFilter(destination=destination)) as ledger:
        before, after = ledger.circuits.resume(destination)
    return PauseResult(before, after, notify_workers(config, [destination]) if before.is_paused else "")


@dataclass(frozen=True, slots=True)
class CreationResult:
    """The result of `deliver_instances`.

    Attributes:
        counts: The numbers of deliveries, by destination.
        queue_error: Why no worker could be notified; empty if all were.
    """

    counts: Mapping[str, BackfillCounts]
    queue_error: str = ""


def deliver_instances(
    config: Config,
    to: Iterable[str],
    which: InstanceFilter,
    *,
    again: bool,
    dry_run: bool,
    report_progress: Callable[[str, float], None] = lambda _name, _part: None,
) -> CreationResult:
    """Create deliveries of stored instances to destinations, regardless of the routes, and notify workers.

    If it is interrupted, a repetition creates the others.

    Args:
        config: The configuration.
        to: Names of destinations.
        which: The instances.
        again: Whether to deliver delivered instances again.
        dry_run: Whether only to count.
        report_progress: Called with a destination and the part of it that is done, 0 to 1.

    Raises:
        UnknownDestinationError: The configuration has no destination of a name.
        NotIndexedError: `[ledger] index` does not keep an attribute that is asked for.
    """
    names = list(dict.fromkeys(to))
    require_destinations(config, names)
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        ledger.require_schema()
        counts = {
            name: _create_deliveries(
                config, ledger, name, which, again=again, dry_run=dry_run, report_progress=report_progress
            )
            for name in names
        }
        due = [] if dry_run else [name for name, each in counts.items() if each.new + each.again]
        return CreationResult(counts, _send_at_once(config, ledger, due))


def _create_deliveries(
    config: Config,
    ledger: Ledger,
    destination: str,
    which: InstanceFilter,
    *,
    again: bool,
    dry_run: bool,
    report_progress: Callable[[str, float], None],
) -> BackfillCounts:
    require_indexed(config, which)
    report_progress(destination, 0.0)
    counts = ledger.backfill.create_deliveries(
        destination,
        which,
        unix_ms(),
        again=again,
        dry_run=dry_run,
        progress=partial(report_progress, destination),
    )
    if not dry_run:
        # A person has decided about the instances that were held back.
        clear_alarm(config.run_dir, f"{BOUNDED_ALARM}.{destination}")
    return counts


def backfill_to_json(destination: str, counts: BackfillCounts) -> dict[str, Any]:
    """Return the counts of `deliver_instances` for JSON."""
    left = {state.value: count for state, count in sorted(counts.left.items())}
    return {"destination": destination, "new": counts.new, "again": counts.again, "left": left}


def _send_at_once(config: Config, ledger: Ledger, destinations: Iterable[str]) -> str:
    """Close the circuits of destinations and notify the workers.

    Returns:
        Why no worker could be notified; empty if all were.
    """
    names = sorted(_add_members(config, destinations))
    for name in names:
        ledger.circuits.close_circuit(name)
    return notify_workers(config, names)


def notify_workers(config: Config, destinations: Iterable[str]) -> str:
    """Notify the forward workers of due deliveries.

    Returns:
        Why no worker could be notified; empty if all were.
    """
    names = list(destinations)
    if not names:
        return ""
    client = connect(config, timeout=QUEUE_SECONDS)
    try:
        for name in names:
            send_wake_up(client, name)
    except redis.RedisError as error:
        return str(error)
    finally:
        client.close()
    return ""


@contextlib.contextmanager
def _open_ledger(config: Config, which: DeliveryFilter) -> Iterator[Ledger]:
    """Open the ledger for a filter that it can serve.

    Raises:
        UnknownDestinationError: Neither the configuration nor the ledger knows the destination.
        NotIndexedError: `[ledger] index` does not keep an attribute that is asked for.
    """
    require_indexed(config, which)
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        _require_known_destination(config, ledger, which)
        yield ledger


def _require_known_destination(config: Config, ledger: Ledger, which: DeliveryFilter) -> None:
    """Accept also a destination that the configuration had once: the ledger keeps its deliveries."""
    name = which.destination
    if name is None or name in config.target_names:
        return
    if not ledger.delivery_admin.find_deliveries(DeliveryFilter(destination=name), 1):
        require_destinations(config, [name])


def _list_meant_destinations(config: Config, which: DeliveryFilter) -> set[str]:
    """Return the destination or group that a person named; all of them if the filter names nothing at all."""
    if which.destination:
        return {which.destination}
    names_nothing = replace(which, states=()) == DeliveryFilter()
    return set(config.target_names) if names_nothing else set()


def _add_members(config: Config, names: Iterable[str]) -> set[str]:
    """Add the members of groups: their circuits keep the deliveries of the group."""
    found = set(names)
    return found.union(*(group.members for group in config.groups if group.name in found))


def combine_all_circuits(config: Config, circuits: Mapping[str, Circuit]) -> dict[str, Circuit]:
    """Return the circuits of the groups of a configuration, without those that say no more than closed."""
    combined = {group.name: combine_circuits(group.name, group.members, circuits) for group in config.groups}
    return {name: circuit for name, circuit in combined.items() if circuit is not None}


def explain_waiting(
    row: FoundDelivery, circuit: Circuit | None, destination: Destination | None
) -> ListedDelivery:
    """Say why a delivery waits.

    Args:
        row: The delivery.
        circuit: Circuit of its destination; None if it never failed.
        destination: Its destination; None if the configuration has it no more.
    """
    if row.state is DeliveryState.HELD:
        return ListedDelivery(row, "its route holds it; `ingest deliveries release` sends it", 0)
    if row.state is DeliveryState.AWAITING:
        return ListedDelivery(row, "the end of its series or study", 0)
    if row.state not in {DeliveryState.WAITING, DeliveryState.RETRY}:
        return ListedDelivery(row, "", 0)
    now_ms = unix_ms()
    if circuit is not None and circuit.is_left_alone(now_ms):
        return ListedDelivery(row, circuit.reason, max(row.next_at, circuit.probe_at))
    hours = _list_hours(row, destination, now_ms)
    if not hours:
        return ListedDelivery(row, "", row.next_at)
    # The members of a group have hours of their own, and another one may be open.
    find_opening_ms = (lambda at_ms: at_ms) if destination is None else destination.find_opening_ms
    opening_ms = find_common_opening_ms(row.hours, find_opening_ms, max(row.next_at, now_ms))
    return ListedDelivery(row, " and ".join(hours), opening_ms)


def _list_hours(row: FoundDelivery, destination: Destination | None, now_ms: int) -> list[str]:
    """Return which hours keep a delivery waiting now."""
    found = []
    if find_delivery_opening_ms(row.hours, now_ms) > now_ms:
        found.append(f"the hours of its route: {row.hours}")
    if destination is not None and destination.find_opening_ms(now_ms) > now_ms:
        found.append("the hours of its destination")
    return found
