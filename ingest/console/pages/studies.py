"""Studies: search and list, one study with its series, one instance with all that happened to it."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final
from urllib.parse import quote, urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ingest.config.model import Config
from ingest.console import audit
from ingest.console.pages.rendering import (
    read_number,
    read_query,
    read_snapshot,
    render,
    require_number,
)
from ingest.console.problems import ProblemError
from ingest.console.web import Endpoint, get_address, get_console, get_principal, run_blocking
from ingest.dicom.uids import names_of
from ingest.ledger import DeliveryState, Instance, InstanceState, Ledger
from ingest.ledger.delivery_admin import DeliveryFilter
from ingest.ledger.index import FoundInstance, FoundStudy, InstanceFilter
from ingest.operations.deliveries import ListedDelivery, list_deliveries
from ingest.operations.instances import list_instances, list_studies

PAGE_ROWS: Final = 50
INSTANCE_ROWS: Final = 200
DELIVERY_ROWS: Final = 200


@dataclass(frozen=True, slots=True)
class SearchField:
    """A field of the search.

    Attributes:
        name: Name in the form.
        label: Label for people.
        type: Type of the input.
        is_secret: Whether its value may name a patient, so that it stays in the session.
        choices: Values to choose from; None for free text.
        hint: An example, or empty.
    """

    name: str
    label: str
    type: str = "text"
    is_secret: bool = False
    choices: Sequence[str] | None = None
    hint: str = ""


_FIELDS: Final = (
    SearchField("study", "Study UID", hint="1.2.840…"),
    SearchField("calling", "Sender (AE title)"),
    SearchField("state", "State of an instance", choices=tuple(state.value for state in InstanceState)),
    SearchField("since", "Received from", "date"),
    SearchField("until", "Received to", "date"),
)


@dataclass(frozen=True, slots=True)
class Search:
    """What a person searches for.

    Attributes:
        values: All values by field.
        faults: Why a value cannot be used, by field.
        which: The conditions.
    """

    values: Mapping[str, str]
    faults: Mapping[str, str] = field(default_factory=dict)
    which: InstanceFilter = field(default_factory=InstanceFilter)


async def show_studies(request: Request) -> Response:
    """Show studies, the one with the newest instance first."""
    console = get_console(request)
    search = _read_search(request)
    snapshot = await read_snapshot(request)
    found = (
        []
        if search.faults
        else await run_blocking(request, list_studies, console.config, search.which, PAGE_ROWS, stable=None)
    )
    return render(
        request,
        "studies.html",
        "studies",
        studies=[_view_study(study) for study in found],
        fields=_FIELDS,
        search=search.values,
        faults=search.faults,
        has_patients=False,
        has_dates=False,
        names_are_indexed=True,
        index_remark="",
        version=snapshot.versions["studies"],
        first_url="",
        next_url="",
    )


async def search_studies(request: Request) -> Response:
    """Keep the terms of a search in the session, and show the result under an address without them."""
    console, principal = get_console(request), get_principal(request)
    form = await request.form()
    values = {each.name: str(form.get(each.name) or "").strip()[:128] for each in _FIELDS}
    secret = {each.name: values[each.name] for each in _FIELDS if each.is_secret and values[each.name]}
    query = {each.name: values[each.name] for each in _FIELDS if not each.is_secret and values[each.name]}
    if secret:
        query["q"] = console.sessions.keep_search(principal.session, secret)
    address = get_address(request)
    given = {name: value for name, value in values.items() if value}
    audit.record_query(console.config, principal.name, address, "studies", given)
    return RedirectResponse(f"/studies?{urlencode(query)}" if query else "/studies", 303)


def _read_search(request: Request) -> Search:
    values = read_query(request, [each.name for each in _FIELDS if not each.is_secret])
    if key := request.query_params.get("q"):
        session = get_principal(request).session
        values |= get_console(request).sessions.find_search(session, key) or {}
    values = {name: value for name, value in values.items() if value}
    faults: dict[str, str] = {}
    conditions: dict[str, Any] = {
        "study_uid": values.get("study"),
        "calling_ae": values.get("calling"),
        "since": _read_day(values, "since", faults),
        "until": _read_day(values, "until", faults, after=True),
    }
    try:
        conditions["states"] = (InstanceState(values["state"]),) if "state" in values else ()
    except ValueError:
        faults["state"] = "There is no such state."
    return Search(values, faults, InstanceFilter(**conditions) if not faults else InstanceFilter())


def _read_day(
    values: Mapping[str, str], name: str, faults: dict[str, str], *, after: bool = False
) -> int | None:
    """Return the begin of a day in the node's time zone, or with `after` its end, in Unix milliseconds."""
    if name not in values:
        return None
    try:
        day = datetime.strptime(values[name], "%Y-%m-%d").astimezone()
    except ValueError:
        faults[name] = "Write a date such as 2026-01-31."
        return None
    return int((day + timedelta(days=int(after))).timestamp() * 1000)


def _view_study(study: FoundStudy) -> dict[str, Any]:
    return {
        "study_uid": study.study_uid,
        "href": f"/studies/{quote(study.study_uid)}",
        "title": "",
        "patient_name": "",
        "patient_id": "",
        "accession_number": "",
        "study_date": "",
        "instances": study.instances,
        "size": study.size,
        "states": study.states,
        "deliveries": study.deliveries,
        "stable": study.stable,
        "last_at": study.last_at,
    }


# --- one study


@dataclass(frozen=True, slots=True)
class TimelineEvent:
    """One line of a timeline.

    Attributes:
        at: When it happened, or will happen, in Unix milliseconds; 0 if it is not known.
        what: What happened.
        detail: More about it, or empty.
        kind: ok, warn, fail, next, or empty.
    """

    at: int
    what: str
    detail: str = ""
    kind: str = ""


@dataclass(frozen=True, slots=True)
class StudyRows:
    """A study with a page of its instances."""

    study: FoundStudy
    instances: Sequence[FoundInstance]


async def show_study(request: Request) -> Response:
    """Show one study."""
    console = get_console(request)
    uid = request.path_params["uid"]
    query = read_query(request, ("before",))
    before = read_number(query["before"])
    snapshot = await read_snapshot(request)
    rows = await run_blocking(request, _read_study, console.config, uid, before)
    found = rows.instances
    return render(
        request,
        "study.html",
        "studies",
        study=rows.study,
        title="",
        facts=(),
        destinations=_count_by_destination(found),
        timeline=_describe_study(rows),
        series_list=_group_by_series(found),
        next_url=(f"?before={found[-1].instance.id}" if len(found) == INSTANCE_ROWS else ""),
        version="" if before else snapshot.versions["studies"],
    )


def _read_study(config: Config, uid: str, before: int | None) -> StudyRows:
    which = InstanceFilter(study_uid=uid)
    studies = list_studies(config, which, 1, stable=None)
    if not studies:
        raise ProblemError(
            404, "the ledger has no such study", "search for it: its instances may have been removed"
        )
    return StudyRows(studies[0], list_instances(config, which, INSTANCE_ROWS, before))


def _count_by_destination(found: Iterable[FoundInstance]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for one in found:
        for name, state in one.deliveries.items():
            states = counts.setdefault(name, {})
            states[state.value] = states.get(state.value, 0) + 1
    return dict(sorted(counts.items()))


def _group_by_series(found: Iterable[FoundInstance]) -> list[dict[str, Any]]:
    groups: dict[str, list[FoundInstance]] = {}
    for one in found:
        groups.setdefault(one.instance.series_uid, []).append(one)
    return [
        {"series_uid": uid, "title": "Series", "instances": instances, "has_more": False}
        for uid, instances in groups.items()
    ]


def _describe_study(rows: StudyRows) -> list[TimelineEvent]:
    study = rows.study
    senders = ", ".join(
        sorted({one.instance.calling_ae for one in rows.instances if one.instance.calling_ae})
    )
    events = [
        TimelineEvent(study.first_at, "First instance received", f"from {senders}" if senders else "", "ok"),
        TimelineEvent(study.last_at, "Last instance received", "" if study.stable else "more may come", "ok"),
    ]
    states = study.deliveries
    for state, words, kind in (
        (DeliveryState.DELIVERED, "delivered", "ok"),
        (DeliveryState.DEAD, "dead: a person has to decide", "fail"),
        (DeliveryState.DROPPED, "dropped", ""),
        (DeliveryState.RETRY, "wait for the next attempt", "warn"),
        (DeliveryState.WAITING, "wait to be sent", "next"),
        (DeliveryState.SENDING, "are being sent", "next"),
    ):
        if count := states.get(state, 0):
            events.append(
                TimelineEvent(0, f"{count} {'delivery' if count == 1 else 'deliveries'}: {words}", "", kind)
            )
    return events


# --- one instance


async def show_instance(request: Request) -> Response:
    """Show one instance."""
    console = get_console(request)
    number = require_number(request.path_params["number"])
    snapshot = await read_snapshot(request)
    row, deliveries = await run_blocking(request, _read_instance, console.config, number)
    return render(
        request,
        "instance.html",
        "studies",
        instance=row,
        deliveries=deliveries,
        study_url=f"/studies/{quote(row.study_uid)}",
        sop_class=_name_uid(row.sop_class_uid),
        transfer_syntax=_name_uid(row.transfer_syntax_uid),
        timeline=list(_describe_instance(row, deliveries)),
        may_download=False,
        version=snapshot.versions["studies"],
    )


def _read_instance(config: Config, number: int) -> tuple[Instance, list[ListedDelivery]]:
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        row = ledger.instances.find_by_ids([number]).get(number)
    if row is None:
        raise ProblemError(404, f"there is no instance {number}", "search for its study")
    which = DeliveryFilter(study_uid=row.study_uid, sop_instance_uid=row.sop_instance_uid)
    return row, list_deliveries(config, which, DELIVERY_ROWS, None)


def _name_uid(uid: str) -> str:
    return next((name for name in names_of(uid) if name != uid), "unknown UID")


def _describe_instance(row: Instance, deliveries: Sequence[ListedDelivery]) -> Iterator[TimelineEvent]:
    yield TimelineEvent(
        row.received_at, f"Received from {row.calling_ae or 'a caller without AE title'}", row.source, "ok"
    )
    if row.state is InstanceState.QUARANTINED:
        yield TimelineEvent(row.stored_at, "Set aside in quarantine", row.note, "warn")
        yield TimelineEvent(0, "A person decides", "release, retry or drop it", "next")
        return
    yield TimelineEvent(row.stored_at, "Stored", row.store_key, "ok")
    yield TimelineEvent(0, "Routed", row.routed or "there are no routes", "ok")
    for listed in sorted(deliveries, key=lambda each: each.delivery.id):
        yield from _describe_delivery(listed)


def _describe_delivery(listed: ListedDelivery) -> Iterator[TimelineEvent]:
    row = listed.delivery
    status = "" if row.last_status is None else f"{row.last_status:04X}H "
    cause = f"{status}{row.last_error or ''}".strip()
    to = row.destination
    match row.state:
        case DeliveryState.DELIVERED:
            yield TimelineEvent(row.updated_at, f"Delivered to {to}", cause, "ok")
        case DeliveryState.DEAD:
            yield TimelineEvent(row.updated_at, f"Dead: {to} did not take it", cause, "fail")
            yield TimelineEvent(0, "A person decides", "retry or drop it", "next")
        case DeliveryState.DROPPED:
            yield TimelineEvent(row.updated_at, f"Dropped: not sent to {to}", cause, "")
        case DeliveryState.SENDING:
            yield TimelineEvent(row.updated_at, f"Being sent to {to}", "", "next")
        case _:
            if row.attempts:
                yield TimelineEvent(row.updated_at, f"Attempt {row.attempts} to {to} failed", cause, "warn")
            waits = listed.waits_for or "as soon as a worker is free"
            yield TimelineEvent(listed.next_attempt_ms, f"Next attempt to {to}", waits, "next")


ENDPOINTS: Final = (
    Endpoint("GET", "/studies", show_studies),
    Endpoint("POST", "/studies/search", search_studies),
    Endpoint("GET", "/studies/{uid}", show_study),
    Endpoint("GET", "/instances/{number}", show_instance),
)
