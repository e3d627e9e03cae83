"""The JSON API, version 1."""

from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ingest.console.auth.login import is_principal_valid
from ingest.console.live.parts import format_event
from ingest.console.web import Endpoint, get_console, get_principal, run_blocking
from ingest.status.report import gather_status


async def show_status(request: Request) -> Response:
    """Return the status of the node, as `ingest status --json`."""
    return JSONResponse(await run_blocking(request, gather_status, get_console(request).config))


async def stream_events(request: Request) -> Response:
    """Stream the status of the node as server-sent events."""
    principal = get_principal(request)
    return get_console(request).events.open_stream(
        principal.name,
        lambda: is_principal_valid(request, principal),
        lambda news: format_event("status", news.snapshot.status),
    )


ENDPOINTS: Final = (
    Endpoint("GET", "/api/v1/status", show_status),
    Endpoint("GET", "/api/v1/events", stream_events),
)
