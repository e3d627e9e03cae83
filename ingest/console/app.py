"""The application of the console: its routes, each with a role, behind the gate."""

import asyncio
import contextlib
import importlib.metadata
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final

import jinja2
import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.templating import Jinja2Templates

from ingest.config.model import Config, ConsoleSettings
from ingest.console.api.v1 import ENDPOINTS as API
from ingest.console.auth.login import ENDPOINTS as LOGIN
from ingest.console.auth.login_limit import LoginLimit
from ingest.console.auth.oidc import OIDCClient
from ingest.console.auth.roles import Role
from ingest.console.auth.sessions import Sessions
from ingest.console.auth.tokens import TokenFile
from ingest.console.auth.users import UserFile
from ingest.console.events import EventHub
from ingest.console.gate import Gate
from ingest.console.guard import GuardedHandler
from ingest.console.health import ENDPOINTS as HEALTH
from ingest.console.live.parts import LiveNews, PartsRenderer
from ingest.console.live.snapshot import SnapshotSource
from ingest.console.pages import ENDPOINTS as PAGES
from ingest.console.pages.overview import view_snapshot
from ingest.console.pages.rendering import describe_request, prepare_environment
from ingest.console.problems import ProblemError, answer_error
from ingest.console.static_files import StaticFiles
from ingest.console.web import (
    LOGIN_THREADS,
    LOGINS_WAITING_MAX,
    PROBE_THREADS,
    Console,
    Endpoint,
    WorkPool,
)
from ingest.log import describe_defect
from ingest.supervisor.console_watch import ConsoleLink

TEMPLATES: Final = Path(__file__).parent / "templates"
GATHER_SECONDS: Final = 15.0
LIVE_SECONDS: Final = 0.5
"""Largest age of a snapshot that the stream of events shows."""
SAVE_SECONDS: Final = 60.0
BEAT_SECONDS: Final = 1.0

STUCK_SECONDS: Final = 60.0
"""If all threads are busy and no work ends for this long, the heartbeat stops: the console is replaced."""

log = structlog.get_logger()

_VERSION: Final = importlib.metadata.version("dicom-ingest")


def build_console(config: Config, path: Path, link: ConsoleLink) -> Console:
    """Make the context of all handlers."""
    settings = config.console or ConsoleSettings()
    folder = config.console_dir
    work = WorkPool()
    pages = _prepare_templates(config)
    snapshots = SnapshotSource(config)
    parts = PartsRenderer(pages.env, view_snapshot)

    async def gather() -> LiveNews:
        return await work.run(GATHER_SECONDS, lambda: parts.prepare(snapshots.read(LIVE_SECONDS)))

    minute = 60_000
    return Console(
        config=config,
        path=path,
        settings=settings,
        users=UserFile(folder),
        tokens=TokenFile(folder),
        oidc=None if settings.oidc is None else OIDCClient(config, settings.oidc),
        login_limit=LoginLimit(),
        sessions=Sessions(folder, settings.session_minutes * minute, settings.idle_minutes * minute),
        work=work,
        probes=WorkPool(PROBE_THREADS),
        logins=WorkPool(LOGIN_THREADS, LOGINS_WAITING_MAX, 429),
        provider=WorkPool(LOGIN_THREADS, LOGINS_WAITING_MAX, 429),
        pages=pages,
        snapshots=snapshots,
        events=EventHub(gather),
        link=link,
    )


def _prepare_templates(config: Config) -> Jinja2Templates:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    prepare_environment(environment)
    environment.globals["version"] = _VERSION
    environment.globals["node_name"] = config.node.name or config.node.ae_title

    def add_principal(request: Request) -> dict[str, Any]:
        principal = request.state.principal
        csrf_token = getattr(request.state, "csrf_token", principal.csrf_token)
        return {"principal": principal, "csrf_token": csrf_token, "path": request.url.path, "Role": Role}

    return Jinja2Templates(env=environment, context_processors=[add_principal, describe_request])


def build_app(console: Console) -> Gate:
    """Make the application."""
    app = Starlette(
        routes=[Route(each.path, GuardedHandler(each), methods=[each.method]) for each in list_endpoints()],
        exception_handlers={HTTPException: _answer_http_error, Exception: _answer_defect},
        lifespan=_run_tasks,
    )
    app.router.redirect_slashes = False
    app.state.console = console
    return Gate(app, console.settings)


def list_endpoints() -> tuple[Endpoint, ...]:
    """Return all endpoints of the console."""
    return (*HEALTH, *StaticFiles().list_endpoints(), *LOGIN, *API, *PAGES)


@contextlib.asynccontextmanager
async def _run_tasks(app: Starlette) -> AsyncIterator[None]:
    """Run the console's own tasks while it serves."""
    console: Console = app.state.console
    asyncio.get_running_loop().set_exception_handler(_log_loop_error)
    tasks = [
        asyncio.create_task(console.events.run()),
        asyncio.create_task(_beat(console)),
        asyncio.create_task(_save_sessions(console)),
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        console.sessions.save()
        for pool in console.pools:
            pool.close()


def _log_loop_error(_loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
    """Log an error of a task or callback by its place: asyncio itself would print the values in it."""
    error = context.get("exception")
    place = describe_defect(error) if isinstance(error, BaseException) else {}
    log.error("console_defect", route="event loop", **place)


async def _beat(console: Console) -> None:
    """Show the supervisor that the event loop turns and that work ends."""
    while True:
        # Not `provider`: another host that hangs is no reason to replace this console.
        pools = (console.work, console.probes, console.logins)
        if not any(pool.is_stuck(STUCK_SECONDS) for pool in pools):
            console.link.beat()
        await asyncio.sleep(BEAT_SECONDS)


async def _save_sessions(console: Console) -> None:
    while True:
        await asyncio.sleep(SAVE_SECONDS)
        with contextlib.suppress(ProblemError):
            await console.work.run(SAVE_SECONDS, console.sessions.save)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    """Answer an unknown path or method."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = dict(getattr(error, "headers", None) or {})
    return answer_error(
        request, ProblemError(status, "see /api/v1/openapi.json for what there is", "", headers)
    )


async def _answer_defect(request: Request, _error: Exception) -> Response:
    """Answer a defect of ours. The gate logs it, because Starlette raises it again."""
    return answer_error(
        request, ProblemError(500, "an error of the console has stopped this request", "see its log")
    )
