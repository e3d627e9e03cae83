"""Studies: search and list, one study with its series, one instance with all that happened to it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from typing import Any, Final
from urllib.parse import quote, urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ingest.config.model import Config
from ingest.console import audit
from ingest.console.auth.roles import Role
from ingest.console.formatting import with_query
from ingest.console.pages.rendering import (
    read_number,
    read_order,
    read_query,
    read_snapshot,
    record_view,
    render,
    require_number,
)
from ingest.console.problems import ProblemError
from ingest.console.web import (
    Endpoint,
    get_address,
    get_console,
    get_principal,
    is_live_request,
    read_shared,
    run_blocking,
)
from ingest.dicom.uids import names_of
from ingest.errors import UnknownObjectError
from ingest.ledger import DeliveryState, Instance, InstanceState
from ingest.ledger.delivery_filter import DeliveryFilter
from ingest.ledger.instance_filter import InstanceFilter
from ingest.ledger.study_lists import FoundStudy, StudySort
from ingest.operations.deliveries import ListedDelivery, list_deliveries
from ingest.operations.instances import StudyDetails, find_instance, find_study, list_studies
from ingest.operations.trace import Trace, trace
from ingest.operations.trace_events import TraceKind
from ingest.operations.waiting import SpoolSearch, find_waiting

PAGE_ROWS: Final = 50
INSTANCE_ROWS: Final = 200
DELIVERY_ROWS: Final = 200
SEARCH_SECONDS: Final = 0.3
"""Longest search of the spool for a page, because a person waits for it."""


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
    SearchField("name", "Patient name", is_secret=True, hint="Family^Given, * and ?"),
    SearchField("patient", "Patient ID", is_secret=True),
    SearchField("accession", "Accession number", is_secret=True),
    SearchField("from", "Study date from", "date"),
    SearchField("to", "Study date to", "date"),
    SearchField("modality", "Modality", hint="CT"),
    SearchField("calling", "Sender (AE title)"),
    SearchField("destination", "Destination"),
    SearchField("delivery", "State of a delivery", choices=tuple(state.value for state in DeliveryState)),
    SearchField("state", "State of an instance", choices=tuple(state.value for state in InstanceState)),
    SearchField("since", "Received from", "date"),
    SearchField("until", "Received to", "date"),
    SearchField("study", "Study Instance UID", hint="1.2.840…"),
)
_ORDERS: Final[Mapping[str, StudySort]] = {
    "received": "received",
    "date": "date",
    "name": "name",
    "patient": "patient_id",
    "accession": "accession",
}
"""Orders of the list, by the key in the address."""


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
    """Show studies, by default the one with the newest instance first."""
    console = get_console(request)
    search, order = _read_search(request), read_order(request, _ORDERS, "-received")
    after = _read_place(request)
    level = console.config.ledger.index
    version = (await read_snapshot(request)).versions["studies"]
    found: list[FoundStudy] = []
    if not search.faults:
        shared = await read_shared(
            request,
            version,
            list_studies,
            console.config,
            search.which,
            PAGE_ROWS,
            sort=_ORDERS[order.key],
            ascending=not order.descending,
            after=after,
        )
        found, version = shared.value, shared.version
    query = {name: value for name, value in request.query_params.items() if name != "after"}
    last = found[-1] if len(found) == PAGE_ROWS else None
    return render(
        request,
        "studies.html",
        "studies",
        studies=found,
        fields=[each for each in _FIELDS if _is_indexed(each, level)],
        search=search.values,
        faults=search.faults,
        has_patients=level != "none",
        sort=order,
        query=query,
        index_level=level,
        version="" if after else version,
        first_query=with_query(query) if after else "",
        next_query=with_query(query, after=f"{last.last_at}~{last.study_uid}") if last else "",
        is_searching=bool(search.values),
    )


def _is_indexed(field_: SearchField, level: str) -> bool:
    """Return whether the ledger has what a field of the search asks for."""
    if field_.name == "name":
        return level == "full"
    return level != "none" or field_.name not in {"patient", "accession", "from", "to", "modality"}


def _read_place(request: Request) -> tuple[int, str] | None:
    """Return the last study of the previous page: its time and its UID."""
    at, separator, uid = request.query_params.get("after", "").partition("~")
    number = read_number(at)
    return (number, uid[:128]) if separator and number is not None else None


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
    # The record is written to the disk: not in the event loop.
    await run_blocking(request, audit.record_query, console.config, principal.name, address, "studies", given)
    return RedirectResponse(f"/studies?{urlencode(query)}" if query else "/studies", 303)


def _read_search(request: Request) -> Search:
    values = read_query(request, [each.name for each in _FIELDS if not each.is_secret])
    if key := request.query_params.get("q"):
        session = get_principal(request).session
        values |= get_console(request).sessions.find_search(session, key) or {}
    values = {name: value for name, value in values.items() if value}
    faults: dict[str, str] = {}
    conditions: dict[str, Any] = {
        "patient_name": values.get("name"),
        "patient_id": values.get("patient"),
        "accession_number": values.get("accession"),
        "date_from": _read_dicom_date(values, "from", faults),
        "date_to": _read_dicom_date(values, "to", faults),
        "modality": values.get("modality"),
        "study_uid": values.get("study"),
        "calling_ae": values.get("calling"),
        "destination": values.get("destination"),
        "since": _read_day(values, "since", faults),
        "until": _read_day(values, "until", faults, after=True),
    }
    try:
        conditions["states"] = (InstanceState(values["state"]),) if "state" in values else ()
        conditions["delivery_states"] = (DeliveryState(values["delivery"]),) if "delivery" in values else ()
    except ValueError:
        faults["state"] = "There is no such state."
    return Search(values, faults, InstanceFilter(**conditions) if not faults else InstanceFilter())


def _read_dicom_date(values: Mapping[str, str], name: str, faults: dict[str, str]) -> str | None:
    if name not in values:
        return None
    try:
        return date.fromisoformat(values[name]).strftime("%Y%m%d")
    except ValueError:
        faults[name] = "Write a date such as 2026-01-31."
        return None


def _read_day(
    values: Mapping[str, str], name: str, faults: dict[str, str], *, after: bool = False
) -> int | None:
    """Return the begin of a day in the node's time zone, or with `after` its end, in Unix milliseconds."""
    if name not in values:
        return None
    try:
        day = datetime.strptime(values[name], "%Y-%m-%d").astimezone()
        return int((day + timedelta(days=int(after))).timestamp() * 1000)
    except (ValueError, OverflowError):
        faults[name] = "Write a date such as 2026-01-31."
        return None


# --- one study


_KINDS: Final[Mapping[TraceKind, str]] = {
    TraceKind.RECEIVED: "ok",
    TraceKind.WAITING: "next",
    TraceKind.STORED: "ok",
    TraceKind.VARIANT: "ok",
    TraceKind.QUARANTINED: "warn",
    TraceKind.ROUTED: "ok",
    TraceKind.ATTEMPT: "warn",
    TraceKind.DELIVERED: "ok",
    TraceKind.DEAD: "fail",
}
"""How the timeline marks an event; others get no colour."""


async def show_study(request: Request) -> Response:
    """Show one study."""
    console = get_console(request)
    uid = request.path_params["uid"]
    before = read_number(read_query(request, ("before",))["before"])
    version = (await read_snapshot(request)).versions["studies"]
    search = _find_search(request)
    shared = await read_shared(request, version, _read_study, console.config, uid, before, search)
    details, way = shared.value
    _keep_search(request, way)
    if details is None:
        raise ProblemError(
            404, "the ledger has no such study", "search for it; its instances may have been removed"
        )
    found = details.instances
    await record_view(request, f"study/{uid}", uid)
    return render(
        request,
        "study.html",
        "studies",
        study=details.study,
        destinations=details.deliveries,
        way=way.trace,
        kinds=_KINDS,
        series_list=[
            (series, [one for one in found if one.instance.series_uid == series.series_uid])
            for series in details.series
        ],
        next_url=f"?before={found[-1].instance.id}" if len(found) == INSTANCE_ROWS else "",
        version="" if before else shared.version,
    )


@dataclass(frozen=True, slots=True)
class Way:
    """The trace of a study or an instance, and the search of the spool that it comes from.

    Attributes:
        trace: The trace; None if the rows have just been removed.
        search: The search; None if there was none.
    """

    trace: Trace | None
    search: SpoolSearch | None


def _find_search(request: Request) -> SpoolSearch | None:
    """Return the last search for a page that refreshes itself; None for a person, who gets a new one."""
    return get_console(request).searches.find(request.url.path) if is_live_request(request) else None


def _keep_search(request: Request, way: Way) -> None:
    if way.search is not None and not is_live_request(request):
        get_console(request).searches.keep(request.url.path, way.search)


def _read_study(
    config: Config, uid: str, before: int | None, search: SpoolSearch | None
) -> tuple[StudyDetails | None, Way]:
    details = find_study(config, uid, INSTANCE_ROWS, before=before)
    return details, Way(None, None) if details is None else _read_way(config, uid, search)


def _read_way(config: Config, uid: str, search: SpoolSearch | None) -> Way:
    search = search or find_waiting(config.spool_dir, uid, seconds=SEARCH_SECONDS)
    try:
        # The pages do not show its instances, which may be thousands.
        return Way(replace(trace(config, uid, search), instances=(), waiting=()), search)
    except UnknownObjectError:
        return Way(None, search)


# --- one instance


async def show_instance(request: Request) -> Response:
    """Show one instance."""
    console = get_console(request)
    number = require_number(request.path_params["number"])
    version = (await read_snapshot(request)).versions["studies"]
    shared = await read_shared(
        request, version, _read_instance, console.config, number, _find_search(request)
    )
    if shared.value is None:
        raise ProblemError(404, f"there is no instance {number}", "search for its study")
    row, deliveries, way = shared.value
    _keep_search(request, way)
    await record_view(request, f"instance/{number}", row.study_uid)
    return render(
        request,
        "instance.html",
        "studies",
        instance=row,
        deliveries=deliveries,
        study_url=f"/studies/{quote(row.study_uid)}",
        sop_class=_name_uid(row.sop_class_uid),
        transfer_syntax=_name_uid(row.transfer_syntax_uid),
        way=way.trace,
        kinds=_KINDS,
        may_download=(
            get_principal(request).role >= Role.OPERATOR
            and console.settings.download
            and row.state in {InstanceState.STORED, InstanceState.VARIANT, InstanceState.QUARANTINED}
        ),
        version=shared.version,
    )


def _read_instance(
    config: Config, number: int, search: SpoolSearch | None
) -> tuple[Instance, list[ListedDelivery], Way] | None:
    row = find_instance(config, number)
    if row is None:
        return None
    which = DeliveryFilter(study_uid=row.study_uid, sop_instance_uid=row.sop_instance_uid)
    deliveries = list_deliveries(config, which, DELIVERY_ROWS, None)
    return row, deliveries, _read_way(config, row.sop_instance_uid, search)


def _name_uid(uid: str) -> str:
    return next((name for name in names_of(uid) if name != uid), "unknown UID")


ENDPOINTS: Final = (
    Endpoint("GET", "/studies", show_studies),
    Endpoint("POST", "/studies/search", search_studies),
    Endpoint("GET", "/studies/{uid}", show_study),
    Endpoint("GET", "/instances/{number}", show_instance),
)
