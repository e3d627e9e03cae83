"""Whether the node lives and is ready, for load balancers; its metrics, for Prometheus.

`/live` and `/ready` need no login, and show details to a viewer only. `/live` is about the supervisor: a
console that hangs does not answer at all.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ingest.console.auth.roles import Role
from ingest.console.web import Endpoint, get_console, get_principal, run_blocking, run_for
from ingest.status.exposition import CONTENT_TYPE, render_metrics
from ingest.status.health import Health, check_liveness, check_readiness


async def _answer(request: Request, health: Health) -> Response:
    is_viewer = get_principal(request).role >= Role.VIEWER
    return JSONResponse(health.to_json(with_detail=is_viewer), 200 if health.is_ok else 503)


PROBE_SECONDS: Final = 5.0


async def _check(request: Request, check: Callable[[Path], Health]) -> Health:
    console = get_console(request)
    return await run_for(
        request, PROBE_SECONDS, functools.partial(check, console.config.run_dir), console.probes
    )


async def show_live(request: Request) -> Response:
    """Say whether the node lives: 200, otherwise 503."""
    return await _answer(request, await _check(request, check_liveness))


async def show_ready(request: Request) -> Response:
    """Say whether the node receives instances: 200, otherwise 503, also while it stops."""
    if get_console(request).link.is_draining:  # shared memory is never late, and needs no disk
        return await _answer(request, Health(is_ok=False, reasons=("the node is ending",)))
    return await _answer(request, await _check(request, check_readiness))


async def show_metrics(request: Request) -> Response:
    """Show the metrics of the node in the text format of Prometheus."""
    content = await run_blocking(request, render_metrics, get_console(request).config)
    return Response(content, media_type=CONTENT_TYPE)


ENDPOINTS: Final = (
    Endpoint("GET", "/live", show_live),
    Endpoint("GET", "/ready", show_ready),
    Endpoint("GET", "/metrics", show_metrics),
)
