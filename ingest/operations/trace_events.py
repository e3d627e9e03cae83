"""Events of a trace: what happened to instances and deliveries, made of their rows. Without I/O.

Events of the same kind and text are one event with a count. A study has thousands of instances, and nearly
all of them have the same way.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, Final

from ingest.config.model import Config, Destination
from ingest.dicom.statuses import StatusPattern, StatusRules, name_status
from ingest.filesystem import node_lock
from ingest.ledger import Attempt, Circuit, DeliveryRow, DeliveryState, Instance, InstanceState
from ingest.ledger.callers import CallerCertificate
from ingest.ledger.receptions import CompletionEvent
from ingest.operations.times import format_iso_time
from ingest.operations.waiting import WaitingInstance


class TraceKind(StrEnum):
    """Kind of an event. The order is that of events of the same time."""

    RECEIVED = "received"
    WAITING = "waiting"
    """Committed in the spool, and not stored yet."""
    STORED = "stored"
    VARIANT = "variant"
    QUARANTINED = "quarantined"
    REPLACED = "replaced"
    REMOVED = "removed"
    COMPLETE = "complete"
    """The study or the series was complete."""
    REOPENED = "reopened"
    ROUTED = "routed"
    NOT_ROUTED = "not routed"
    REQUEUED = "requeued"
    """A person asked for another delivery."""
    ATTEMPT = "attempt"
    """An attempt that did not deliver."""
    NOT_KEPT = "not kept"
    """Attempts without a row: the ledger keeps the first and the last ones."""
    DELIVERED = "delivered"
    DEAD = "dead"
    DROPPED = "dropped"


_ORDER: Final = {kind: number for number, kind in enumerate(TraceKind)}


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceEvent:
    """An event, or several of the same kind and text.

    Attributes:
        at_ms: When, in Unix milliseconds; 0 if the time was not recorded.
        last_ms: When the last of them happened.
        count: Number of events.
        text: One line for people. An error comment of a remote may contain patient data.
        destination: Name of the destination; empty for other events.
        duration_ms: The longest duration of an attempt; None if there was none.
        remedy: What a person can do, or empty.
    """

    kind: TraceKind
    at_ms: int
    text: str
    last_ms: int = 0
    count: int = 1
    destination: str = ""
    duration_ms: int | None = None
    remedy: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the event for JSON."""
        return {
            "kind": self.kind.value,
            "at": format_iso_time(self.at_ms),
            "last_at": format_iso_time(self.last_ms or self.at_ms),
            "count": self.count,
            "destination": self.destination,
            "text": self.text,
            "duration_ms": self.duration_ms,
            "remedy": self.remedy,
        }


@dataclass(frozen=True, slots=True)
class TracedDelivery:
    """A delivery with its failed attempts, the first one first."""

    delivery: DeliveryRow
    attempts: Sequence[Attempt] = ()

    @property
    def not_kept(self) -> int:
        """The number of attempts between the first and the last ones that have no row."""
        return self.attempts[-1].number - len(self.attempts) if self.attempts else 0

    def to_json(self) -> dict[str, Any]:
        """Return the delivery for JSON."""
        row = self.delivery
        return {
            "id": row.id,
            "destination": row.destination,
            "member": row.member,
            "state": row.state.value,
            "attempts": row.attempts,
            "next_at": format_iso_time(row.next_at),
            "last_status": format_status(row.last_status),
            "last_error": row.last_error,
            "created_at": format_iso_time(row.created_at),
            "updated_at": format_iso_time(row.updated_at),
            "duration_ms": row.duration_ms,
            "failed_attempts": [
                {
                    "number": attempt.number,
                    "ended_at": format_iso_time(attempt.ended_at),
                    "duration_ms": attempt.duration_ms,
                    "state": attempt.state.value,
                    "status": format_status(attempt.status),
                    "error": attempt.error,
                    "next_at": format_iso_time(attempt.next_at),
                }
                for attempt in self.attempts
            ],
            "attempts_not_kept": self.not_kept,
        }


@dataclass(frozen=True, slots=True)
class TracedInstance:
    """A row of the ledger with its deliveries."""

    instance: Instance
    deliveries: Sequence[TracedDelivery] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the instance for JSON."""
        row = self.instance
        times = {name: format_iso_time(getattr(row, name)) for name in ("received_at", "stored_at")}
        deliveries = [each.to_json() for each in self.deliveries]
        return {"id": row.id} | asdict(row) | times | {"deliveries": deliveries}


def format_status(status: int | None) -> str | None:
    """Write a DIMSE status as four hexadecimal digits; None without one."""
    return None if status is None else f"{status:04X}"


class TraceContext:
    """The state of the node that events and next steps need beside the rows."""

    def __init__(
        self,
        config: Config,
        circuits: Mapping[str, Circuit],
        certificates: Mapping[str, CallerCertificate],
        now_ms: int,
    ) -> None:
        self.config = config
        self.circuits = circuits
        self.certificates = certificates
        self.now_ms = now_ms
        self.judges_completion = config.judges_completion
        self.destinations = {each.name: each for each in config.destinations}
        self.groups = {each.name for each in config.groups}
        self.runs_node = node_lock.is_node_running(config.run_dir)
        self.runs_workers = self.runs_node or node_lock.are_workers_running(config.run_dir)
        self._rules: dict[str, StatusRules] = {}

    def name_meaning(self, destination: str, status: int) -> str:
        """Return the name of a status and its consequence at a destination."""
        if destination not in self._rules:
            self._rules[destination] = _read_rules(self.destinations.get(destination))
        meaning = self._rules[destination].find_meaning(status).value
        return ", ".join(filter(None, (name_status(status), meaning)))


def _read_rules(destination: Destination | None) -> StatusRules:
    if destination is None:
        return StatusRules()
    return StatusRules(
        tuple(map(StatusPattern.parse, destination.retry_statuses)),
        tuple(map(StatusPattern.parse, destination.dead_statuses)),
    )


def make_events(
    context: TraceContext,
    traced: Iterable[TracedInstance],
    waiting: Iterable[WaitingInstance],
    completions: Iterable[CompletionEvent] = (),
) -> Iterator[TraceEvent]:
    """Yield the events of instances, of their deliveries and studies, and of waiting spool entries."""
    for each in traced:
        yield from _make_instance_events(context, each)
        for delivery in each.deliveries:
            yield from _make_delivery_events(context, delivery)
    for event in completions:
        what = "series" if event.series_uid else "study"
        number = f", for the {event.generation}. time" if event.generation > 1 else ""
        text = f"the {what} was complete{number}: {event.instances} instances"
        if event.event == TraceKind.REOPENED:
            text = f"an instance came after the completion of the {what}"
        yield TraceEvent(kind=TraceKind(event.event), at_ms=event.at, text=text)
    for entry in waiting:
        header = entry.header
        sender = _describe_sender(context, header.calling_ae, header.source, header.fingerprint)
        yield TraceEvent(kind=TraceKind.RECEIVED, at_ms=entry.received_at, text=sender)
        text = "durable in the spool, not in store and ledger yet"
        yield TraceEvent(kind=TraceKind.WAITING, at_ms=entry.received_at, text=text)


_STORED_KINDS: Final = {
    InstanceState.VARIANT: (TraceKind.VARIANT, "in the store beside the first object of its UID"),
    InstanceState.QUARANTINED: (TraceKind.QUARANTINED, "in quarantine"),
}


def _make_instance_events(context: TraceContext, traced: TracedInstance) -> Iterator[TraceEvent]:
    row = traced.instance
    sender = _describe_sender(context, row.calling_ae, row.source, row.certificate)
    yield TraceEvent(kind=TraceKind.RECEIVED, at_ms=row.received_at, text=sender)
    kind, text = _STORED_KINDS.get(row.state, (TraceKind.STORED, "in the store"))
    note = f"{text}: {row.note}" if row.note else text
    yield TraceEvent(kind=kind, at_ms=row.stored_at, text=note)
    if row.state is not InstanceState.QUARANTINED:
        yield _make_routing_event(traced)
    if row.state is InstanceState.REPLACED:
        yield TraceEvent(
            kind=TraceKind.REPLACED, at_ms=0, text="another object of its SOP instance UID replaced it"
        )
    if row.state in {InstanceState.REMOVING, InstanceState.REMOVED}:
        yield TraceEvent(kind=TraceKind.REMOVED, at_ms=0, text="its file was removed from this node")


def _describe_sender(context: TraceContext, calling_ae: str, source: str, fingerprint: str) -> str:
    """Describe a sender without its port, so that instances of one sender have the same text."""
    scheme, _, rest = source.partition("://")
    host = rest.rpartition(":")[0] or rest
    text = f"from {calling_ae or '(no AE title)'}"
    if host:
        text += f" at {host}"
    if source:
        text += " over TLS" if scheme == "dicom-tls" else " without TLS"
    if fingerprint:
        known = context.certificates.get(fingerprint)
        text += f", certificate {known.subject}" if known else f", certificate {fingerprint}"
    elif scheme == "dicom-tls":
        text += ", no certificate"
    return text


def _make_routing_event(traced: TracedInstance) -> TraceEvent:
    row, names = traced.instance, [each.delivery.destination for each in traced.deliveries]
    if names:
        by = f"by {row.routed}" if row.routed else "by a person"
        return TraceEvent(kind=TraceKind.ROUTED, at_ms=row.stored_at, text=f"{by}, to {', '.join(names)}")
    remedy = "" if "on purpose" in row.routed else "`ingest deliver --to NAME` sends it by hand"
    return TraceEvent(
        kind=TraceKind.NOT_ROUTED,
        at_ms=row.stored_at,
        text=row.routed or "there was no route",
        remedy=remedy,
    )


def _make_delivery_events(context: TraceContext, traced: TracedDelivery) -> Iterator[TraceEvent]:
    row, number = traced.delivery, 0
    for attempt in traced.attempts:
        if attempt.number > number + 1:
            gap = attempt.number - number - 1
            yield TraceEvent(
                kind=TraceKind.NOT_KEPT,
                at_ms=attempt.ended_at,
                text="attempts without a row: the first and the last ones are kept",
                count=gap,
                destination=row.destination,
            )
        number = attempt.number
        yield TraceEvent(
            kind=TraceKind.DEAD if attempt.state is DeliveryState.DEAD else TraceKind.ATTEMPT,
            at_ms=attempt.ended_at,
            text=_describe_answer(context, row.member or row.destination, attempt.status, attempt.error),
            destination=row.destination,
            duration_ms=attempt.duration_ms,
        )
    if any(attempt.ended_at < row.created_at for attempt in traced.attempts):
        yield TraceEvent(
            kind=TraceKind.REQUEUED,
            at_ms=row.created_at,
            text="a person had it sent again",
            destination=row.destination,
        )
    end = _END_KINDS.get(row.state)
    has_row = bool(traced.attempts) and traced.attempts[-1].state is row.state is DeliveryState.DEAD
    if end is not None and not has_row:
        yield TraceEvent(
            kind=end,
            at_ms=row.updated_at,
            text=_describe_end(context, row),
            destination=row.destination,
            duration_ms=row.duration_ms,
        )


_END_KINDS: Final = {
    DeliveryState.DELIVERED: TraceKind.DELIVERED,
    DeliveryState.DEAD: TraceKind.DEAD,
    DeliveryState.DROPPED: TraceKind.DROPPED,
}


def _describe_end(context: TraceContext, row: DeliveryRow) -> str:
    answer = _describe_answer(context, row.member or row.destination, row.last_status, row.last_error or "")
    member = f"by its member {row.member}" if row.member and row.state is DeliveryState.DELIVERED else ""
    return "; ".join(filter(None, (member, answer)))


def _describe_answer(context: TraceContext, destination: str, status: int | None, error: str) -> str:
    if status is None:
        return error
    meaning = context.name_meaning(destination, status)
    return f"{error or f'answered {status:04X}H'} ({meaning})"


def merge_events(events: Iterable[TraceEvent]) -> list[TraceEvent]:
    """Merge events of the same kind, destination and text, and sort them by the time of the first one."""
    merged: dict[tuple[TraceKind, str, str], TraceEvent] = {}
    for event in events:
        key = event.kind, event.destination, event.text
        found = merged.get(key)
        merged[key] = event if found is None else _join_events(found, event)
    return sorted(
        merged.values(),
        key=lambda event: (event.at_ms == 0, event.at_ms, _ORDER[event.kind], event.destination),
    )


def _join_events(one: TraceEvent, other: TraceEvent) -> TraceEvent:
    durations = [each for each in (one.duration_ms, other.duration_ms) if each is not None]
    return replace(
        one,
        at_ms=min(one.at_ms, other.at_ms),
        last_ms=max(one.last_ms or one.at_ms, other.at_ms),
        count=one.count + other.count,
        duration_ms=max(durations, default=None),
    )
