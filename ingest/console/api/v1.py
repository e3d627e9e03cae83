"""The JSON API, version 1: the same functions as the command line, with the same values."""

import functools
import importlib.metadata
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ingest.console.api import access, actions, files, jobs, lists, node
from ingest.console.api.openapi import describe_api
from ingest.console.events import open_stream
from ingest.console.live.parts import format_event
from ingest.console.web import Endpoint

PREFIX: Final = "/api/v1"

OPERATIONS: Final = (
    *node.OPERATIONS,
    *lists.OPERATIONS,
    *actions.OPERATIONS,
    *files.OPERATIONS,
    *jobs.OPERATIONS,
    *access.OPERATIONS,
)
"""Every operation. `ingest.console.auth.roles` has the role of each."""


@functools.cache
def describe() -> dict[str, Any]:
    """Return the OpenAPI description."""
    return describe_api(OPERATIONS, PREFIX, importlib.metadata.version("dicom-ingest"))


async def show_description(_request: Request) -> Response:
    """Send the OpenAPI description."""
    return JSONResponse(describe())


async def stream_events(request: Request) -> Response:
    """Stream the status of the node as server-sent events."""
    return open_stream(request, lambda news: format_event("status", news.snapshot.status))


ENDPOINTS: Final = (
    Endpoint("GET", f"{PREFIX}/openapi.json", show_description),
    Endpoint("GET", f"{PREFIX}/events", stream_events),
    *(operation.to_endpoint(PREFIX) for operation in OPERATIONS),
    *files.list_endpoints(PREFIX),
)
