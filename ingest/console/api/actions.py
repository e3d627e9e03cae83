"""Operations of the API that change something: deliveries, destinations, quarantine."""

import importlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from ingest.audit.recorder import Action
from ingest.console import audit
from ingest.console.api import models, request_models
from ingest.console.api.lists import F, make_delivery_filter, make_instance_filter
from ingest.console.api.operation import Call, Operation
from ingest.console.problems import ProblemError
from ingest.ledger.records import DeliveryState
from ingest.operations import deliveries

QUARANTINE: Final = "ingest.workers.quarantine.command"
"""Named as text: the console does not import workers."""

_PLAIN: Final = frozenset(
    {
        *("destination", "states", "study_uid", "series_uid", "sop_instance_uid", "calling_ae"),
        *("since", "until"),
    }
)
"""Conditions whose values may be in the log."""

ACTION_SECONDS: Final = 120.0
"""Deadline of an action on many rows. Its rows are changed in parts, and a repetition does what is left."""


def record_action(
    call: Call,
    action: Action,
    target: str,
    *,
    succeeded: bool = True,
    study_uid: str | None = None,
    note: str = "",
    **details: Any,
) -> None:
    """Record an action in the log and in the audit trail; see `ingest.console.audit.record_action`."""
    audit.record_action(
        call.config,
        call.principal.name,
        call.address,
        action,
        target,
        succeeded=succeeded,
        details=details,
        study_uid=study_uid,
        note=note,
    )


def _require_conditions(which: F, *, everything: bool) -> F:
    if which == type(which)() and not everything:
        raise ProblemError(422, "there is no condition", "set conditions, or `everything` to true")
    return which


def _describe_conditions(call: Call) -> str:
    """Name conditions for the log, without values that may name a patient or are free text."""
    hidden = {"everything", "dry_run", "reason", "to", "again"}
    given = call.body.model_dump(mode="json", exclude_defaults=True, exclude=hidden)
    plain = {name: audit.hide_typed_text(call.config, name, given[name]) for name in given if name in _PLAIN}
    return ", ".join(f"{name}={plain[name]}" if name in plain else name for name in given) or "all"


def retry(call: Call) -> dict[str, Any]:
    """Send deliveries again."""
    body: request_models.DeliveryRetry = call.body
    which = _require_conditions(make_delivery_filter(body), everything=body.everything)
    # As `ingest retry`: what was delivered or dropped is sent again only if the request names its state.
    which = replace(which, states=which.states or (DeliveryState.DEAD,))
    result = deliveries.retry_deliveries(call.config, which, dry_run=body.dry_run)
    if not body.dry_run:
        record_action(
            call, Action.RETRY, "deliveries", conditions=_describe_conditions(call), counts=result.counts
        )
    return {
        "counts": dict(result.counts),
        "dry_run": body.dry_run,
        "queue_error": result.queue_error,
        "open_circuits": sorted(result.open_circuits),
    }


def release_held(call: Call) -> dict[str, Any]:
    """Send held deliveries."""
    body: request_models.DeliveryRelease = call.body
    which = _require_conditions(make_delivery_filter(body), everything=body.everything)
    result = deliveries.release_deliveries(call.config, which, dry_run=body.dry_run)
    if not body.dry_run:
        given = _describe_conditions(call)
        record_action(call, Action.RELEASE_DELIVERIES, "deliveries", conditions=given, counts=result.counts)
    return {"counts": dict(result.counts), "dry_run": body.dry_run, "queue_error": result.queue_error}


def drop(call: Call) -> dict[str, Any]:
    """Give deliveries up."""
    body: request_models.DeliveryDrop = call.body
    which = _require_conditions(make_delivery_filter(body), everything=body.everything)
    reason = f"{call.principal.name}: {body.reason}"
    counts = deliveries.drop_deliveries(call.config, which, reason, dry_run=body.dry_run)
    if not body.dry_run:
        given = _describe_conditions(call)
        record_action(call, Action.DROP, "deliveries", conditions=given, counts=counts, note=body.reason)
    return {"counts": dict(counts), "dry_run": body.dry_run}


def create(call: Call) -> dict[str, Any]:
    """Create deliveries of stored instances."""
    body: request_models.DeliveryCreation = call.body
    which = _require_conditions(make_instance_filter(body), everything=body.everything)
    result = deliveries.deliver_instances(call.config, body.to, which, again=body.again, dry_run=body.dry_run)
    items = [deliveries.backfill_to_json(name, counts) for name, counts in result.counts.items()]
    if not body.dry_run:
        created = {each["destination"]: each["new"] + each["again"] for each in items}
        given = _describe_conditions(call)
        record_action(call, Action.OTHER, "deliveries/create", conditions=given, counts=created)
    return {"items": items, "dry_run": body.dry_run, "queue_error": result.queue_error}


def pause(call: Call) -> dict[str, Any]:
    """Pause a destination."""
    name, body = call.path["name"], call.body
    result = deliveries.pause_destination(call.config, name, call.principal.name, body.reason)
    record_action(call, Action.PAUSE, f"destination/{name}", note=body.reason)
    return result.to_json()


def resume(call: Call) -> dict[str, Any]:
    """End the pause of a destination."""
    name = call.path["name"]
    result = deliveries.resume_destination(call.config, name)
    record_action(call, Action.RESUME, f"destination/{name}")
    return result.to_json()


def _decide(call: Call, function: str, action: Action) -> Mapping[str, Any]:
    body: request_models.Ids = call.body
    results = getattr(importlib.import_module(QUARANTINE), function)(call.config, body.ids)
    audit.record_decisions(call.config, call.principal.name, call.address, action, results.results)
    return {"results": [each.to_json() for each in results.results], "queue_error": results.queue_error}


def release(call: Call) -> Mapping[str, Any]:
    """Store instances of the quarantine in place of the stored ones."""
    return _decide(call, "release_instances", Action.RELEASE)


def retry_quarantined(call: Call) -> Mapping[str, Any]:
    """Store acknowledged instances of the quarantine."""
    return _decide(call, "retry_instances", Action.RELEASE)


def drop_quarantined(call: Call) -> Mapping[str, Any]:
    """Remove instances of the quarantine for good."""
    return _decide(call, "drop_instances", Action.DROP_QUARANTINED)


OPERATIONS: Final = (
    Operation(
        "POST",
        "/deliveries",
        "Deliver stored instances to destinations, whatever the routes say",
        create,
        models.CreatedDeliveries,
        body=request_models.DeliveryCreation,
        tag="deliveries",
        seconds=ACTION_SECONDS,
    ),
    Operation(
        "POST",
        "/deliveries/retry",
        "Send deliveries again",
        retry,
        models.ChangedDeliveries,
        body=request_models.DeliveryRetry,
        tag="deliveries",
        seconds=ACTION_SECONDS,
    ),
    Operation(
        "POST",
        "/deliveries/release",
        "Send held deliveries",
        release_held,
        models.ChangedDeliveries,
        body=request_models.DeliveryRelease,
        tag="deliveries",
        seconds=ACTION_SECONDS,
    ),
    Operation(
        "POST",
        "/deliveries/drop",
        "Give deliveries up",
        drop,
        models.ChangedDeliveries,
        body=request_models.DeliveryDrop,
        tag="deliveries",
        seconds=ACTION_SECONDS,
    ),
    Operation(
        "POST",
        "/destinations/{name}/pause",
        "Let no worker send to a destination",
        pause,
        models.PausedDestination,
        body=request_models.Pause,
        tag="destinations",
    ),
    Operation(
        "POST",
        "/destinations/{name}/resume",
        "End the pause of a destination",
        resume,
        models.PausedDestination,
        tag="destinations",
    ),
    Operation(
        "POST",
        "/quarantine/release",
        "Store instances in place of the stored ones",
        release,
        models.Decisions,
        body=request_models.Ids,
        tag="quarantine",
        seconds=ACTION_SECONDS,
    ),
    Operation(
        "POST",
        "/quarantine/retry",
        "Store acknowledged instances that could not be stored before",
        retry_quarantined,
        models.Decisions,
        body=request_models.Ids,
        tag="quarantine",
        seconds=ACTION_SECONDS,
    ),
    Operation(
        "POST",
        "/quarantine/drop",
        "Remove instances for good",
        drop_quarantined,
        models.Decisions,
        body=request_models.Ids,
        tag="quarantine",
        seconds=ACTION_SECONDS,
    ),
)
