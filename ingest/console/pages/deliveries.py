"""Deliveries: destinations with their circuits, dead deliveries by reason, lists, and actions."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from ingest.config.model import Config
from ingest.console.live.snapshot import Snapshot
from ingest.console.pages.rendering import (
    Question,
    ask,
    find_way_back,
    go_back,
    leave_notice,
    read_form,
    read_number,
    read_order,
    read_query,
    read_snapshot,
    recording,
    render,
    sort_rows,
)
from ingest.console.problems import ProblemError
from ingest.console.web import Endpoint, get_console, get_principal, read_shared, run_blocking
from ingest.ledger import DeliveryState, Ledger
from ingest.ledger.delivery_admin import DeadGroup
from ingest.ledger.delivery_filter import DeliveryFilter
from ingest.operations.deliveries import (
    drop_deliveries,
    list_deliveries,
    pause_destination,
    release_deliveries,
    resume_destination,
    retry_deliveries,
)

PAGE_ROWS: Final = 100
GROUPED_MAX: Final = 20_000
"""Dead deliveries of one destination that are grouped by their reason."""

_COLUMNS: Final[Mapping[str, Any]] = {
    "name": lambda row: row["name"],
    "circuit": lambda row: (row["paused"], row["circuit"]),
    "rate": lambda row: row["delivered_per_second"],
    "backlog": lambda row: row["backlog"],
    "oldest": lambda row: row["oldest_seconds"] if row["backlog"] else None,
}
_FILTERS: Final = ("destination", "state", "dead_reason", "study_uid", "sop_instance_uid", "back")
"""Values of the forms that retry or drop.

`state` may name several states, with commas between them. `dead_reason` is status and error of a `DeadGroup`,
as JSON: a form would change line ends and outer spaces of the error.
"""


async def show_deliveries(request: Request) -> Response:
    """Show the destinations, and the dead deliveries by reason."""
    config = get_console(request).config
    snapshot = await read_snapshot(request)
    order = read_order(request, _COLUMNS, "name")
    shared = await read_shared(request, snapshot.versions["deliveries"], _group_dead, config, snapshot)
    groups = shared.value
    return render(
        request,
        "deliveries.html",
        "deliveries",
        destinations=sort_rows(_view_destinations(config, snapshot), order, _COLUMNS),
        sort=order,
        query=read_query(request, ("sort",)),
        dead=[(group, json.dumps([group.status, group.error], ensure_ascii=False)) for group in groups],
        dead_remark=_remark_on_groups(groups, snapshot.dead),
        version=shared.version,
    )


def _view_destinations(config: Config, snapshot: Snapshot) -> list[dict[str, Any]]:
    ledger = snapshot.status["ledger"]
    addresses = {
        each.name: f"{each.ae_title} {each.host}:{each.port}{' TLS' if each.tls else ''}"
        for each in config.destinations
    }
    addresses |= {each.name: f"{each.policy}: {', '.join(each.members)}" for each in config.groups}
    return [
        {
            **row,
            "address": addresses.get(row["name"], "not in the configuration any more"),
            "states": ledger["deliveries"].get(row["name"], {}),
            "paused": bool(row["paused_at_ms"]),
            "pause_note": ": ".join(part for part in (f"by {row['paused_by']}", row["pause_reason"]) if part),
            "last_error_ms": _find_time(snapshot, row["last_error_seconds"]),
        }
        for row in ledger.get("destinations", ())
    ]


def _find_time(snapshot: Snapshot, age_seconds: float | None) -> int:
    """Return when something happened, in Unix milliseconds; 0 if it did not."""
    return 0 if age_seconds is None else round((snapshot.status["time"] - age_seconds) * 1000)


def _group_dead(config: Config, snapshot: Snapshot) -> list[DeadGroup]:
    names = [
        name for name, states in snapshot.status["ledger"].get("deliveries", {}).items() if states.get("dead")
    ]
    if not names:
        return []
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        return ledger.delivery_admin.group_dead(names, GROUPED_MAX)


def _remark_on_groups(groups: Sequence[DeadGroup], dead: int) -> str:
    counted = sum(group.count for group in groups)
    return f"{counted} of {dead} dead deliveries are grouped." if counted < dead else ""


async def show_list(request: Request) -> Response:
    """Show deliveries, the newest first."""
    config = get_console(request).config
    query = read_query(request, ("destination", "state", "study", "before"))
    states = _read_states(query["state"])
    which = DeliveryFilter(
        destination=query["destination"] or None, study_uid=query["study"] or None, states=states
    )
    before = read_number(query["before"])
    snapshot = await read_snapshot(request)
    version = snapshot.versions["deliveries"]
    shared = await read_shared(request, version, list_deliveries, config, which, PAGE_ROWS, before)
    found = shared.value
    return render(
        request,
        "delivery_list.html",
        "deliveries",
        deliveries=found,
        query=query,
        all_states=[state.value for state in DeliveryState],
        next_before=found[-1].delivery.id if len(found) == PAGE_ROWS else None,
        # A page of older rows stays as it is.
        version="" if before else shared.version,
    )


def _read_states(text: str) -> tuple[DeliveryState, ...]:
    try:
        return tuple(DeliveryState(word) for word in text.split(",")) if text else ()
    except ValueError:
        raise ProblemError(404, "there is no such state of a delivery", "go back to the list") from None


def _read_filter(values: Mapping[str, str]) -> DeliveryFilter:
    return DeliveryFilter(
        destination=values["destination"] or None,
        study_uid=values["study_uid"] or None,
        sop_instance_uid=values["sop_instance_uid"] or None,
        states=_read_states(values["state"]),
        reason=_read_reason(values["dead_reason"]),
    )


def _read_reason(text: str) -> tuple[int | None, str] | None:
    if not text:
        return None
    try:
        status, error = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        status, error = -1, ""
    is_status = status is None or (isinstance(status, int) and 0 <= status <= 0xFFFF)
    if not is_status or not isinstance(error, str):
        raise ProblemError(422, "the reason cannot be read", "go back to the list")
    return status, error


async def retry(request: Request) -> Response:
    """Ask, and then make deliveries due again."""
    config = get_console(request).config
    values, confirmed = await read_form(request, _FILTERS)
    # As `ingest retry`: what was delivered or dropped is sent again only if the form names its state.
    values["state"] = values["state"] or DeliveryState.DEAD.value
    which = _read_filter(values)
    if not confirmed:
        planned = await run_blocking(request, retry_deliveries, config, which, dry_run=True)
        count = sum(planned.counts.values())
        lines = [
            f"Those in these states: {', '.join(state.value for state in which.states)}.",
            "They are sent at once, as if they were new. An open circuit of these destinations is closed.",
        ]
        if not count:
            lines = [
                "No delivery has to change. An open circuit is closed, and the destination is tried now."
            ]
        question = Question(
            url="/deliveries/retry",
            values=values,
            question=f"Retry {_count(count)}?",
            lines=lines,
            counts=planned.counts,
            label="Retry",
            back=find_way_back(values, "/deliveries"),
            possible=bool(count or which.destination),
        )
        return ask(request, question, "deliveries")
    async with _recording(request, "retry", values):
        result = await run_blocking(request, retry_deliveries, config, which, dry_run=False)
    text = f"{_count(sum(result.counts.values()))} will be sent again."
    if result.queue_error:
        text += " The queue is away; workers find them by themselves within seconds."
    leave_notice(request, text)
    return go_back(find_way_back(values, "/deliveries"))


async def release(request: Request) -> Response:
    """Ask, and then let workers send held deliveries."""
    config = get_console(request).config
    values, confirmed = await read_form(request, _FILTERS)
    which = _read_filter(values)
    if which == DeliveryFilter():
        raise ProblemError(422, "no condition is named", "choose a destination or a study first")
    if not confirmed:
        planned = await run_blocking(request, release_deliveries, config, which, dry_run=True)
        count = sum(planned.counts.values())
        question = Question(
            url="/deliveries/release",
            values=values,
            question=f"Release {_count(count)}?",
            lines=("Their routes hold them. They are sent now, and cannot be taken back.",),
            counts=planned.counts,
            label="Release",
            back=find_way_back(values, "/deliveries"),
            possible=bool(count),
        )
        return ask(request, question, "deliveries")
    async with _recording(request, "release", values):
        result = await run_blocking(request, release_deliveries, config, which, dry_run=False)
    count = sum(result.counts.values())
    text = f"{_count(count)} {'is' if count == 1 else 'are'} released."
    if result.queue_error:
        text += " The queue is away; workers find them by themselves within seconds."
    leave_notice(request, text)
    return go_back(find_way_back(values, "/deliveries"))


async def drop(request: Request) -> Response:
    """Ask, and then drop deliveries."""
    config = get_console(request).config
    values, confirmed = await read_form(request, (*_FILTERS, "reason"))
    which = _read_filter(values)
    if which.destination is None:
        raise ProblemError(422, "no destination is named", "choose a destination first")
    if not confirmed or not values["reason"]:
        counts = await run_blocking(request, drop_deliveries, config, which, "", dry_run=True)
        count = sum(counts.values())
        question = Question(
            url="/deliveries/drop",
            values={name: value for name, value in values.items() if name != "reason"},
            question=f"Drop {_count(count)}?",
            lines=(
                "The node will not send them. The instances stay in the store, and can be sent again later.",
            ),
            counts=counts,
            label="Drop",
            back=find_way_back(values, "/deliveries"),
            is_danger=True,
            asks_reason=True,
            possible=bool(count),
        )
        return ask(request, question, "deliveries")
    reason = f"dropped by {get_principal(request).name}: {values['reason'][:200]}"
    async with _recording(request, "drop", values):
        counts = await run_blocking(request, drop_deliveries, config, which, reason, dry_run=False)
    leave_notice(
        request, f"{_count(sum(counts.values()))} {'is' if sum(counts.values()) == 1 else 'are'} dropped."
    )
    return go_back(find_way_back(values, "/deliveries"))


async def pause(request: Request) -> Response:
    """Ask, and then pause a destination."""
    config = get_console(request).config
    values, confirmed = await read_form(request, ("destination", "reason", "back"))
    name = values["destination"]
    if not confirmed or not values["reason"]:
        question = Question(
            url="/deliveries/pause",
            values={"destination": name, "back": values["back"]},
            question=f"Pause {name}?",
            lines=("Nothing is sent to it until a person resumes it. What is routed to it waits.",),
            label="Pause",
            back=find_way_back(values, "/deliveries"),
            asks_reason=True,
        )
        return ask(request, question, "deliveries")
    by, reason = get_principal(request).name, values["reason"][:200]
    async with _recording(request, "pause", values):
        await run_blocking(request, pause_destination, config, name, by, reason)
    leave_notice(request, f"{name} is paused.")
    return go_back(find_way_back(values, "/deliveries"))


async def resume(request: Request) -> Response:
    """Ask, and then resume a destination."""
    config = get_console(request).config
    values, confirmed = await read_form(request, ("destination", "back"))
    name = values["destination"]
    if not confirmed:
        question = Question(
            url="/deliveries/resume",
            values=values,
            question=f"Resume {name}?",
            lines=("What waits for it is sent at once.",),
            label="Resume",
            back=find_way_back(values, "/deliveries"),
        )
        return ask(request, question, "deliveries")
    async with _recording(request, "resume", values):
        await run_blocking(request, resume_destination, config, name)
    leave_notice(request, f"{name} is resumed.")
    return go_back(find_way_back(values, "/deliveries"))


def _count(count: int) -> str:
    return f"{count} {'delivery' if count == 1 else 'deliveries'}"


def _recording(
    request: Request, action: str, values: Mapping[str, str]
) -> contextlib.AbstractAsyncContextManager[None]:
    subject = {
        name: values.get(name, "") for name in ("destination", "state", "study_uid", "sop_instance_uid")
    }
    # The error of a delivery and a person's reason are free text: the log does not get them.
    texts = ("dead_reason", "reason")
    note = ", ".join(f"{name} {values[name]}" for name in texts if values.get(name))
    return recording(request, action, note=note, **subject)


ENDPOINTS: Final = (
    Endpoint("GET", "/deliveries", show_deliveries),
    Endpoint("GET", "/deliveries/list", show_list),
    Endpoint("POST", "/deliveries/retry", retry),
    Endpoint("POST", "/deliveries/release", release),
    Endpoint("POST", "/deliveries/drop", drop),
    Endpoint("POST", "/deliveries/pause", pause),
    Endpoint("POST", "/deliveries/resume", resume),
)
