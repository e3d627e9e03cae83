"""Operations of the API that list studies, instances, deliveries and the quarantine."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final, TypeVar

from ingest.audit.recorder import Action
from ingest.console import audit
from ingest.console.api import models, request_models
from ingest.console.api.operation import Call, Operation
from ingest.console.api.request_models import to_unix_ms
from ingest.console.problems import ProblemError
from ingest.ledger import Instance
from ingest.ledger.delivery_filter import DeliveryFilter
from ingest.ledger.instance_filter import InstanceFilter
from ingest.ledger.records import InstanceState
from ingest.operations import deliveries, instances
from ingest.operations.comparison import compare_quarantined

F = TypeVar("F", InstanceFilter, DeliveryFilter)
"""A filter of the ledger."""


def make_instance_filter(body: request_models.ObjectSearch) -> InstanceFilter:
    """Make the filter of a search."""
    return _make_filter(InstanceFilter, body, request_models.ObjectSearch)


def make_delivery_filter(body: request_models.DeliveryConditions) -> DeliveryFilter:
    """Make the filter of a search for deliveries."""
    return _make_filter(DeliveryFilter, body, request_models.DeliveryConditions)


def _make_filter(
    kind: type[F], body: request_models.TimedConditions, conditions: type[request_models.TimedConditions]
) -> F:
    """Make a filter of the conditions of a request: their names are those of the filter."""
    values = {name: getattr(body, name) for name in conditions.model_fields}
    values |= {"since": to_unix_ms(body.since), "until": to_unix_ms(body.until)}
    return kind(**values)


def record_search(call: Call, subject: str) -> None:
    """Record a search with its criteria."""
    criteria = json.loads(call.body.model_dump_json(exclude_defaults=True))
    audit.record_query(call.config, call.principal.name, call.address, subject, criteria)


def _record_view(call: Call, target: str, study_uid: str) -> None:
    audit.record_action(
        call.config, call.principal.name, call.address, Action.VIEW, target, study_uid=study_uid
    )


def _make_page(items: Sequence[dict[str, Any]], limit: int) -> dict[str, Any]:
    return {"items": list(items), "next": items[-1]["id"] if len(items) == limit else None}


def search_studies(call: Call) -> dict[str, Any]:
    """List studies."""
    record_search(call, "studies")
    body: request_models.StudySearch = call.body
    after = None if body.after is None else (body.after.last_ms, body.after.study_uid)
    found = instances.list_studies(
        call.config, make_instance_filter(body), body.limit, stable=body.stable, after=after
    )
    last = found[-1] if len(found) == body.limit else None
    return {
        "items": [instances.study_to_json(study) for study in found],
        "next": None if last is None else {"last_ms": last.last_at, "study_uid": last.study_uid},
    }


def find_study(call: Call) -> instances.StudyDetails:
    """Return the study of the path.

    Raises:
        ProblemError: There is none.
    """
    uid = call.path["study_uid"]
    found = instances.find_study(call.config, uid, 1)
    if found is None:
        raise ProblemError(404, "there is no such study", "see `POST /api/v1/studies/search`")
    return found


def show_study(call: Call) -> dict[str, Any]:
    """Show one study."""
    found = find_study(call)
    _record_view(call, f"study/{found.study.study_uid}", found.study.study_uid)
    return instances.study_to_json(found.study)


def list_series(call: Call) -> dict[str, Any]:
    """List the series of a study."""
    found = find_study(call)
    _record_view(call, f"study/{found.study.study_uid}", found.study.study_uid)
    return {"items": [asdict(each) for each in found.series]}


def search_instances(call: Call) -> dict[str, Any]:
    """List instances."""
    record_search(call, "instances")
    body: request_models.InstanceSearch = call.body
    found = instances.list_instances(call.config, make_instance_filter(body), body.limit, body.before)
    return _make_page([instances.instance_to_json(each) for each in found], body.limit)


def find_instance(call: Call, number: int) -> Instance:
    """Return the instance of an id.

    Raises:
        ProblemError: There is none.
    """
    row = instances.find_instance(call.config, number)
    if row is None:
        raise ProblemError(404, f"there is no instance {number}", "see `POST /api/v1/instances/search`")
    return row


def read_id(call: Call) -> int:
    """Return the id in the path.

    Raises:
        ProblemError: It is no id.
    """
    text = call.path["id"]
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 2**63:
        raise ProblemError(404, "the path has no id of an instance", "an id is a number above 0")
    return int(text)


def show_instance(call: Call) -> dict[str, Any]:
    """Show one instance with its deliveries."""
    row = find_instance(call, read_id(call))
    which = InstanceFilter(sop_instance_uid=row.sop_instance_uid)
    for each in instances.list_instances(call.config, which, request_models.MAX_LIMIT, before=row.id + 1):
        if each.instance.id == row.id:
            _record_view(call, f"instance/{row.id}", row.study_uid)
            return instances.instance_to_json(each)
    raise ProblemError(404, f"there is no instance {row.id}")


def search_deliveries(call: Call) -> dict[str, Any]:
    """List deliveries."""
    record_search(call, "deliveries")
    body: request_models.DeliverySearch = call.body
    found = deliveries.list_deliveries(call.config, make_delivery_filter(body), body.limit, body.before)
    return _make_page([each.to_json() for each in found], body.limit)


def compare(call: Call) -> dict[str, Any]:
    """Compare a quarantined instance with the stored one."""
    found = compare_quarantined(call.config, read_id(call))
    _record_view(call, f"instance/{found.quarantined.id}", found.quarantined.study_uid)
    return found.to_json()


def search_quarantine(call: Call) -> dict[str, Any]:
    """List the quarantine."""
    record_search(call, "quarantine")
    body: request_models.InstanceSearch = call.body
    body = body.model_copy(update={"states": (InstanceState.QUARANTINED,)})
    found = instances.list_instances(call.config, make_instance_filter(body), body.limit, body.before)
    rows = [instances.quarantined_to_json(each.instance, call.config.quarantine_dir) for each in found]
    return _make_page(rows, body.limit)


OPERATIONS: Final = (
    Operation(
        "POST",
        "/studies/search",
        "List studies, the one with the newest instance first",
        search_studies,
        models.Studies,
        body=request_models.StudySearch,
        tag="studies",
    ),
    Operation("GET", "/studies/{study_uid}", "Show a study", show_study, models.Study, tag="studies"),
    Operation(
        "GET",
        "/studies/{study_uid}/series",
        "List the series of a study",
        list_series,
        models.SeriesList,
        tag="studies",
    ),
    Operation(
        "POST",
        "/instances/search",
        "List instances, the newest first",
        search_instances,
        models.Instances,
        body=request_models.InstanceSearch,
        tag="instances",
    ),
    Operation(
        "GET",
        "/instances/{id}",
        "Show an instance with its deliveries",
        show_instance,
        models.InstanceWithDeliveries,
        tag="instances",
    ),
    Operation(
        "POST",
        "/deliveries/search",
        "List deliveries, those of the newest instances first",
        search_deliveries,
        models.Deliveries,
        body=request_models.DeliverySearch,
        tag="deliveries",
    ),
    Operation(
        "POST",
        "/quarantine/search",
        "List the quarantine, the newest first",
        search_quarantine,
        models.QuarantinedInstances,
        body=request_models.InstanceSearch,
        tag="quarantine",
    ),
    Operation(
        "GET",
        "/quarantine/{id}/comparison",
        "Compare a quarantined instance with the stored one of its UID",
        compare,
        models.Comparison,
        tag="quarantine",
    ),
)
