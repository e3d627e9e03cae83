"""Routes: the rules as a table, and a tester that says which rules take an instance and why."""

import contextlib
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response

from ingest.config.model import Config
from ingest.console.pages.rendering import record_action, render
from ingest.console.web import Endpoint, get_console, run_blocking
from ingest.ledger import InstanceState, Ledger
from ingest.operations.routes import RouteExplanation, explain_routes

MAX_FILE_BYTES: Final = 64 * 1024 * 1024
UPLOAD_SECONDS: Final = 60.0


async def show_routes(request: Request) -> Response:
    """Show the routes."""
    return _render(request, get_console(request).config)


def _render(request: Request, config: Config, **values: Any) -> Response:
    shown = {"explanation": None, "fault": "", "form": {}, **values}
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
    config = get_console(request).config
    form = await request.form()
    upload = form.get("file")
    values = {name: str(form.get(name) or "").strip()[:128] for name in ("uid", "calling", "called")}
    assumed = (values["calling"] or None, values["called"] or None)
    if isinstance(upload, UploadFile) and upload.size:
        explained = await run_blocking(request, _explain_upload, config, upload, assumed)
    elif values["uid"]:
        path = await run_blocking(request, _find_file, config, values["uid"])
        if path is None:
            fault = "No stored instance has this SOP Instance UID."
            return _render(request, config, fault=fault, form=values)
        explained = (await run_blocking(request, explain_routes, config, [path], *assumed))[0]
    else:
        return _render(request, config, fault="Choose a file, or give a SOP Instance UID.", form=values)
    record_action(request, "routes_test", sop_instance_uid=values["uid"])
    fault = f"The file cannot be read: {explained.error}" if explained.routing is None else ""
    return _render(request, config, explanation=explained.routing, fault=fault, form=values)


def _explain_upload(
    config: Config, upload: UploadFile, assumed: tuple[str | None, str | None]
) -> RouteExplanation:
    with tempfile.TemporaryDirectory(prefix="ingest-routes-") as folder:
        path = Path(folder) / "upload.dcm"
        with path.open("wb") as file:
            shutil.copyfileobj(upload.file, file)
        return explain_routes(config, [path], *assumed)[0]


def _find_file(config: Config, uid: str) -> Path | None:
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        rows = ledger.instances.find_by_sop_instance_uid(uid)
    stored = [row for row in rows if row.state in {InstanceState.STORED, InstanceState.VARIANT}]
    return config.store_root / stored[0].store_key if stored else None


ENDPOINTS: Final = (
    Endpoint("GET", "/routes", show_routes),
    Endpoint("POST", "/routes/test", test_routes, MAX_FILE_BYTES, UPLOAD_SECONDS),
)
