"""Routes: the rules as a table, and a tester that says which rules take an instance and why."""

import contextlib
from collections.abc import Mapping
from typing import Any, Final

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response

from ingest.config.model import Config
from ingest.console.api.files import UPLOAD_BYTES, UPLOAD_SECONDS, explain_instance, explain_upload
from ingest.console.api.request_models import AssumedCaller
from ingest.console.pages.rendering import recording, render
from ingest.console.web import Endpoint, get_console, run_blocking
from ingest.ledger import Instance, InstanceState, Ledger


async def show_routes(request: Request) -> Response:
    """Show the routes."""
    return _render(request, get_console(request).config)


def _render(request: Request, config: Config, **values: Any) -> Response:
    shown = {
        "explanation": None,
        "changes": (),
        "offers": (),
        "groups": (),
        "fault": "",
        "form": {},
        **values,
    }
    return render(request, "routes.html", "routes", routes=_view_routes(config), **shown)


def _view_routes(config: Config) -> list[dict[str, Any]]:
    return [
        {
            "name": route.name or f"routes[{number}]",
            "conditions": [(key, _format_test(value)) for key, value in route.when.items()],
            "to": route.to,
            "remarks": [
                text
                for is_set, text in (
                    (route.default, "only if no other route takes it"),
                    (route.stop, "ends the search"),
                    (route.sends_back, "also back to its sender"),
                )
                if is_set
            ],
        }
        for number, route in enumerate(config.routes)
    ]


def _format_test(value: Any) -> str:
    """Write the test of a condition for people."""
    if isinstance(value, list):
        return " or ".join(_format_test(one) for one in value)
    if isinstance(value, Mapping) and "not" in value:
        return f"not {_format_test(value['not'])}"
    if isinstance(value, Mapping):
        low, high = value.get("min"), value.get("max")
        if low is None or high is None:
            return f"at most {high}" if low is None else f"at least {low}"
        return f"{low} to {high}"
    return str(value)


async def test_routes(request: Request) -> Response:
    """Say which routes take a file or a stored instance, and why. Nothing is stored or sent."""
    console = get_console(request)
    form = await request.form()
    upload = form.get("file")
    values = {name: str(form.get(name) or "").strip()[:128] for name in ("uid", "calling", "called")}
    assumed = AssumedCaller(calling_ae=values["calling"] or None, called_ae=values["called"] or None)
    async with recording(request, "routes_test", sop_instance_uid=values["uid"]):
        if isinstance(upload, UploadFile) and upload.size:
            content = await upload.read()
            explained = await run_blocking(request, explain_upload, console, content, assumed)
        elif values["uid"]:
            row = await run_blocking(request, _find_stored, console.config, values["uid"])
            if row is None:
                fault = "No stored instance has this SOP Instance UID."
                return _render(request, console.config, fault=fault, form=values)
            explained = await run_blocking(request, explain_instance, console, row, assumed)
        else:
            fault = "Choose a file, or give a SOP Instance UID."
            return _render(request, console.config, fault=fault, form=values)
    fault = f"The file cannot be read: {explained.error}" if explained.routing is None else ""
    changes = [] if explained.routing is None else explained.changes
    return _render(
        request,
        console.config,
        explanation=explained.routing,
        changes=changes,
        offers=explained.offers,
        groups=explained.groups,
        fault=fault,
        form=values,
    )


def _find_stored(config: Config, uid: str) -> Instance | None:
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        rows = ledger.instances.find_by_sop_instance_uid(uid)
    return next((row for row in rows if row.state in {InstanceState.STORED, InstanceState.VARIANT}), None)


ENDPOINTS: Final = (
    Endpoint("GET", "/routes", show_routes),
    Endpoint("POST", "/routes/test", test_routes, UPLOAD_BYTES, UPLOAD_SECONDS),
)
