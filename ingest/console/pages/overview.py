"""The overview: the flow of instances, and what needs a person."""

from starlette.requests import Request
from starlette.responses import Response

from ingest.console.web import get_console, run_blocking
from ingest.status.report import gather_status


async def show_overview(request: Request) -> Response:
    """Show the overview."""
    console = get_console(request)
    status = await run_blocking(request, gather_status, console.config)
    response: Response = console.pages.TemplateResponse(request, "overview.html", {"status": status})
    return response
