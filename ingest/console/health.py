"""Whether the node lives and is ready, for load balancers and container runtimes. No login, and no detail."""

from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ingest.acceptor.accept_gate import STALE_MS
from ingest.acceptor.scoreboard import ACCEPTING, Scoreboard
from ingest.config.model import Config
from ingest.console.web import Endpoint, get_console, run_blocking


async def show_live(_request: Request) -> Response:
    """Say that this process serves."""
    return JSONResponse({"live": True})


async def show_ready(request: Request) -> Response:
    """Say whether the node receives instances: 200, or 503 also while it stops."""
    console = get_console(request)
    is_ready = not console.link.is_draining and await run_blocking(request, _is_accepting, console.config)
    return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)


def _is_accepting(config: Config) -> bool:
    board = Scoreboard.open_reader(config.run_dir / "scoreboard")
    rows = board.list_listeners() if board else []
    return any(row.state == ACCEPTING and abs(row.age_ms) <= STALE_MS for row in rows)


ENDPOINTS: Final = (
    Endpoint("GET", "/live", show_live),
    Endpoint("GET", "/ready", show_ready),
)
