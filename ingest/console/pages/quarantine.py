"""The quarantine: what is there and why, a comparison with the stored object, and decisions."""

import importlib
from dataclasses import dataclass
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from ingest.audit.recorder import Action
from ingest.console import audit
from ingest.console.pages.rendering import (
    Question,
    ask,
    go_back,
    leave_notice,
    read_form,
    read_number,
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
    read_shared,
    run_blocking,
)
from ingest.ledger import InstanceState
from ingest.ledger.instance_filter import InstanceFilter
from ingest.operations.comparison import compare_quarantined
from ingest.operations.instances import find_instance, list_instances, name_quarantine_kind

PAGE_ROWS: Final = 100
NOTICES_MAX: Final = 3

COMMANDS: Final = "ingest.workers.quarantine.command"
"""Named as text: the console does not import workers."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A decision that a person can make about an instance in quarantine.

    Attributes:
        action: What the audit trail calls it.
        function: Name of its function in `COMMANDS`.
        question, line, label: Texts of the question.
    """

    name: str
    action: Action
    function: str
    question: str
    line: str
    label: str


_RELEASE: Final = Decision(
    "release",
    Action.RELEASE,
    "release_instances",
    "Release this instance?",
    "It is stored, routed and delivered like a new one. The object that is stored under its UID goes into "
    "quarantine instead.",
    "Release",
)
_RETRY: Final = Decision(
    "retry",
    Action.RELEASE,
    "retry_instances",
    "Store this instance again?",
    "If its cause is mended, it is stored, routed and delivered like a new one. It replaces nothing.",
    "Retry",
)
_DROP: Final = Decision(
    "drop",
    Action.DROP_QUARANTINED,
    "drop_instances",
    "Drop this instance for good?",
    "Its file is removed from the quarantine and cannot be brought back. Its row in the ledger stays.",
    "Drop",
)
_OUTCOMES: Final = {
    "released": "is released",
    "stored": "is stored",
    "removed": "was stored already, so this copy is removed",
    "dropped": "is dropped",
}


async def show_quarantine(request: Request) -> Response:
    """Show the instances in quarantine, the newest first."""
    config = get_console(request).config
    query = read_query(request, ("before",))
    before = read_number(query["before"])
    which = InstanceFilter(states=(InstanceState.QUARANTINED,))
    snapshot = await read_snapshot(request)
    version = snapshot.versions["quarantine"]
    shared = await read_shared(request, version, list_instances, config, which, PAGE_ROWS, before)
    found = shared.value
    rows = [{"instance": one.instance, "kind": name_quarantine_kind(one.instance)} for one in found]
    return render(
        request,
        "quarantine.html",
        "quarantine",
        rows=rows,
        query=query,
        next_before=found[-1].instance.id if len(found) == PAGE_ROWS else None,
        version="" if before else shared.version,
    )


async def show_quarantined(request: Request) -> Response:
    """Show one instance in quarantine."""
    number = require_number(request.path_params["number"])
    config = get_console(request).config
    row = await run_blocking(request, find_instance, config, number)
    if row is None:
        raise ProblemError(404, f"there is no instance {number}", "go back to the quarantine")
    if row.state is not InstanceState.QUARANTINED:
        return go_back(f"/instances/{number}")
    comparison = await run_blocking(request, compare_quarantined, config, number)
    await record_view(request, f"instance/{number}", row.study_uid)
    return render(
        request,
        "quarantined.html",
        "quarantine",
        instance=row,
        kind=name_quarantine_kind(row),
        comparison=comparison,
    )


async def release(request: Request) -> Response:
    """Ask, and then release an instance."""
    return await _decide(request, _RELEASE)


async def retry(request: Request) -> Response:
    """Ask, and then store one instance again, or all acknowledged ones."""
    return await _decide(request, _RETRY)


async def drop(request: Request) -> Response:
    """Ask, and then drop an instance."""
    return await _decide(request, _DROP)


async def _decide(request: Request, decision: Decision) -> Response:
    values, confirmed = await read_form(request, ("id", "all"))
    takes_all = decision is _RETRY and values["all"] == "1"
    ids = [] if takes_all else [require_number(values["id"])]
    if not confirmed:
        question = Question(
            url=f"/quarantine/{decision.name}",
            values=values,
            question="Store all acknowledged instances again?" if takes_all else decision.question,
            lines=(decision.line,),
            label=decision.label,
            back="/quarantine" if takes_all else f"/quarantine/{ids[0]}",
            is_danger=decision is _DROP,
        )
        return ask(request, question, "quarantine")
    function = getattr(importlib.import_module(COMMANDS), decision.function)
    console, principal = get_console(request), get_principal(request)
    results = (await run_blocking(request, function, console.config, ids)).results
    console.snapshots.expire()
    known = (console.config, principal.name, get_address(request), decision.action)
    await run_blocking(request, audit.record_decisions, *known, results)
    for result in results[:NOTICES_MAX]:
        if result.outcome == "failed":
            leave_notice(request, result.error, "fail")
        else:
            to = f"; it goes to {', '.join(result.destinations)}" if result.destinations else ""
            leave_notice(request, f"Instance {result.id} {_OUTCOMES[result.outcome]}{to}.")
    if len(results) > NOTICES_MAX:
        failures = sum(result.outcome == "failed" for result in results)
        leave_notice(request, f"{len(results)} instances in all, {failures} of them failed.", "warn")
    if not results:
        leave_notice(request, "There was no acknowledged instance in quarantine.", "warn")
    return go_back("/quarantine")


ENDPOINTS: Final = (
    Endpoint("GET", "/quarantine", show_quarantine),
    Endpoint("GET", "/quarantine/{number}", show_quarantined),
    Endpoint("POST", "/quarantine/release", release),
    Endpoint("POST", "/quarantine/retry", retry),
    Endpoint("POST", "/quarantine/drop", drop),
)
