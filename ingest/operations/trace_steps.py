"""Next steps of a trace: what happens next to instances and deliveries, or why nothing does. Without I/O."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from ingest.ledger import Circuit, CircuitState, DeliveryRow, DeliveryState, Instance, InstanceState
from ingest.ledger.commitment_requests import DeliveryCommitment
from ingest.operations.times import format_iso_time
from ingest.operations.trace_events import TraceContext, TracedInstance
from ingest.operations.waiting import WaitingInstance

_COMMITMENT_STEPS: Final = {
    DeliveryCommitment.WANTED.value: "delivered: the destination will be asked to commit to keep it",
    DeliveryCommitment.ASKED.value: "delivered: the destination was asked to commit, and has not reported",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NextStep:
    """What happens next, or why nothing does.

    Attributes:
        text: One line for people.
        destination: Name of the destination; empty if no delivery is meant.
        at_ms: When, in Unix milliseconds; 0 if no time is set.
        since_ms: Since when the reason in `text` holds; 0 if that is not known.
        count: Number of deliveries or instances.
        remedy: What a person can do, or empty.
    """

    text: str
    destination: str = ""
    at_ms: int = 0
    since_ms: int = 0
    count: int = 1
    remedy: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the step for JSON."""
        return {
            "destination": self.destination,
            "text": self.text,
            "at": format_iso_time(self.at_ms),
            "since": format_iso_time(self.since_ms),
            "count": self.count,
            "remedy": self.remedy,
        }


def make_steps(
    context: TraceContext, traced: Iterable[TracedInstance], waiting: Collection[WaitingInstance]
) -> Iterator[NextStep]:
    """Yield the next steps of instances, of their deliveries and of waiting spool entries."""
    for each in traced:
        if each.instance.state is InstanceState.QUARANTINED:
            yield _explain_quarantined(each.instance)
        for delivery in each.deliveries:
            yield from _explain_delivery(context, each.instance, delivery.delivery)
    if waiting and context.runs_workers:
        yield NextStep(text="waits for a persist worker", count=len(waiting))
    elif waiting:
        yield NextStep(
            text="waits: no worker runs on this data folder", count=len(waiting), remedy="`ingest serve`"
        )


def _explain_quarantined(row: Instance) -> NextStep:
    if row.refused_status:
        text = f"nothing: its sender was told {row.refused_status:04X}H, and this is a copy for a person"
    else:
        text = "nothing, until a person decides; its sender believes that it is stored"
    remedy = f"`ingest quarantine compare {row.id}`, then `ingest quarantine release`, `retry` or `drop`"
    return NextStep(text=text, remedy=remedy)


def _explain_delivery(context: TraceContext, instance: Instance, row: DeliveryRow) -> Iterator[NextStep]:
    name = row.destination
    if row.state is DeliveryState.DEAD:
        remedy = f"`ingest retry --destination {name} --study {instance.study_uid}` sends again"
        text = "dead: not tried again by itself"
        yield NextStep(text=text, destination=name, remedy=remedy)
    elif row.state is DeliveryState.DROPPED:
        remedy = f"`ingest retry --destination {name} --state dropped --study {instance.study_uid}`"
        yield NextStep(text="dropped: not sent", destination=name, remedy=remedy)
    elif row.state is DeliveryState.HELD:
        remedy = f"`ingest deliveries release --destination {name} --study {instance.study_uid}`"
        text = "held by its route: sent when a person releases it"
        yield NextStep(text=text, destination=name, remedy=remedy)
    elif row.state is DeliveryState.AWAITING:
        what = row.awaits or "study"
        if context.judges_completion:
            yield NextStep(text=f"sent when its {what} is complete", destination=name)
        else:
            text = f"awaits its {what}, and no route waits for completions any more"
            remedy = f"`ingest retry --destination {name} --state awaiting --study {instance.study_uid}`"
            yield NextStep(text=text, destination=name, remedy=remedy)
    elif row.state is DeliveryState.SENDING:
        if context.runs_workers:
            yield NextStep(
                text="being sent now; otherwise another worker takes it", destination=name, at_ms=row.next_at
            )
        else:
            text = "was being sent when its worker ended; the next worker sends it again"
            yield NextStep(text=text, destination=name, remedy="`ingest serve`")
    elif row.state is not DeliveryState.DELIVERED:
        yield _explain_open(context, row)
    elif row.commitment in _COMMITMENT_STEPS:
        yield NextStep(text=_COMMITMENT_STEPS[row.commitment], destination=name)


def _explain_open(context: TraceContext, row: DeliveryRow) -> NextStep:
    """Explain what a delivery in the state `waiting` or `retry` waits for."""
    name, circuit = row.destination, context.circuits.get(row.destination)
    step = NextStep(text="due: waits for a forward worker", destination=name)
    if name not in context.destinations and name not in context.groups:
        remedy = f"add [[destinations]] {name} and run `ingest reload`, or `ingest drop --destination {name}`"
        return replace(step, text="waits: the configuration has no such destination", remedy=remedy)
    if circuit is not None and circuit.is_paused:
        remedy = f"`ingest resume {name}`"
        return replace(step, text=f"waits: {circuit.reason}", since_ms=circuit.paused_at, remedy=remedy)
    if not context.runs_workers:
        return replace(step, text="waits: no worker runs on this data folder", remedy="`ingest serve`")
    if circuit is not None and circuit.is_left_alone(context.now_ms):
        return _explain_circuit(context, step, circuit)
    if row.suspect_since:
        text = f"tried alone, after all others: {row.breaks} associations broke during it"
        return replace(step, text=text, at_ms=row.next_at)
    return replace(step, text="the next attempt", at_ms=row.next_at) if row.next_at > context.now_ms else step


def _explain_circuit(context: TraceContext, step: NextStep, circuit: Circuit) -> NextStep:
    name = step.destination
    is_open = circuit.state is not CircuitState.CLOSED
    remedy = f"see `ingest check --connect`; `ingest retry --destination {name}` tries at once"
    return replace(
        step,
        text=f"waits, {circuit.reason}; the next probe"
        if is_open
        else f"waits, {circuit.last_error}; the next attempt",
        since_ms=circuit.opened_at if is_open else circuit.last_error_at,
        at_ms=max(circuit.probe_at, context.now_ms),
        remedy=remedy,
    )


def merge_steps(steps: Iterable[NextStep]) -> list[NextStep]:
    """Merge steps of the same destination and text; the time is that of the first."""
    merged: dict[tuple[str, str, str], NextStep] = {}
    for step in steps:
        key = step.destination, step.text, step.remedy
        found = merged.get(key)
        if found is None:
            merged[key] = step
        else:
            times = [each for each in (found.at_ms, step.at_ms) if each]
            merged[key] = replace(found, count=found.count + step.count, at_ms=min(times, default=0))
    return sorted(merged.values(), key=lambda step: (step.destination, step.text))
