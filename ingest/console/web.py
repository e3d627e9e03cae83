"""What every handler uses: the console's context, endpoints, and work in threads with a deadline."""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.templating import Jinja2Templates

from ingest.config.model import Config, ConsoleSettings
from ingest.console.auth.login_limit import LoginLimit
from ingest.console.auth.oidc import OIDCClient
from ingest.console.auth.roles import Principal
from ingest.console.auth.sessions import Sessions
from ingest.console.auth.tokens import TokenFile
from ingest.console.auth.users import UserFile
from ingest.console.live.shared import Shared, SharedReadings, SpoolSearches
from ingest.console.live.snapshot import SnapshotSource
from ingest.console.problems import ProblemError
from ingest.errors import (
    ConfigError,
    IngestError,
    LedgerError,
    UnknownAlertError,
    UnknownDestinationError,
    UnknownObjectError,
    UnknownUserError,
    UnknownWebhookError,
)
from ingest.supervisor.console_watch import ConsoleLink

if TYPE_CHECKING:
    from ingest.console.events import EventHub

P = ParamSpec("P")
T = TypeVar("T")

THREADS: Final = 8
"""Requests that use the ledger or files at a time."""

WAITING_MAX: Final = 128
"""Requests that wait for a thread. Further ones are refused at once."""

DEADLINE_SECONDS: Final = 20.0
"""How long a request waits for a thread and its answer."""


PROBE_THREADS: Final = 2
"""Threads for /live and /ready only, so that no other work makes a healthy node look ill."""

LOGIN_THREADS: Final = 2
"""Passwords that are hashed at a time, each in 64 MiB. As many answers of the OpenID provider are awaited."""

LOGINS_WAITING_MAX: Final = 16
"""Logins that wait for one of these threads. Further ones are refused at once."""

LIVE_HEADER: Final = "x-live"
"""Header of requests that the script of a page sends by itself."""


class WorkPool:
    """Threads for blocking work: SQL, files, sockets.

    A call that exceeds its deadline is given up. Its thread goes on until the call returns, and is not used
    meanwhile; each statement and each connection has a deadline of its own.
    """

    def __init__(
        self, threads: int = THREADS, waiting_max: int = WAITING_MAX, busy_status: int = 503
    ) -> None:
        """Prepare the threads; they start with the first work.

        Args:
            threads: Calls at a time.
            waiting_max: Calls that wait for a thread.
            busy_status: HTTP status of a call beyond these.
        """
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="console")
        self._threads = threads
        self._max = threads + waiting_max
        self._busy_status = busy_status
        self._outstanding = 0
        self._last_end = 0.0

    async def run(self, seconds: float, function: Callable[[], T]) -> T:
        """Run a function in a thread.

        Raises:
            ProblemError: There is no answer within `seconds`, or too many requests wait.
        """
        loop = asyncio.get_running_loop()
        if self._outstanding >= self._max:
            raise ProblemError(
                self._busy_status, "too many requests wait", "try again in a moment", {"Retry-After": "5"}
            )
        if not self._outstanding:
            self._last_end = loop.time()
        self._outstanding += 1
        future = loop.run_in_executor(self._executor, function)
        future.add_done_callback(self._note_end)
        try:
            # A cancelled future would be forgotten while its thread still runs: shield it.
            return await asyncio.wait_for(asyncio.shield(future), seconds)
        except TimeoutError:
            future.add_done_callback(_forget_result)
            raise ProblemError(
                503,
                f"there is no answer within {seconds:.0f} s",
                "ask for less at a time, or see whether disk and database are busy",
                {"Retry-After": "10"},
            ) from None
        except asyncio.CancelledError:
            future.add_done_callback(_forget_result)
            raise

    def _note_end(self, _future: "asyncio.Future[T]") -> None:
        self._outstanding -= 1
        self._last_end = asyncio.get_running_loop().time()

    def is_stuck(self, seconds: float) -> bool:
        """Return whether all threads are busy and no work has ended for this long."""
        now = asyncio.get_running_loop().time()
        return self._outstanding >= self._threads and now - self._last_end > seconds

    def close(self) -> None:
        """Forget work that has not begun. Threads that hang end with the process."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def _forget_result(future: "asyncio.Future[T]") -> None:
    if not future.cancelled():
        future.exception()


@dataclass(slots=True)
class Console:
    """Everything that handlers use.

    Attributes:
        config: The configuration that this process was started with.
        path: File of the configuration.
        settings: `[console]`.
        users: Local users.
        tokens: API tokens.
        oidc: Login at an OpenID provider; None without one.
        login_limit: Failed logins of the last minutes.
        sessions: Sessions of people.
        work: Threads for blocking work.
        probes: Threads for the questions of load balancers.
        logins: Threads that check passwords.
        provider: Threads that wait for the OpenID provider.
        pages: Templates.
        snapshots: The node as all browsers see it.
        events: What browsers see live.
        shared: What open pages read when they refresh themselves.
        searches: What the spool had for them when a person looked.
        link: What supervisor and console tell each other.
    """

    config: Config
    path: Path
    settings: ConsoleSettings
    users: UserFile
    tokens: TokenFile
    oidc: OIDCClient | None
    login_limit: LoginLimit
    sessions: Sessions
    work: WorkPool
    probes: WorkPool
    logins: WorkPool
    provider: WorkPool
    pages: Jinja2Templates
    snapshots: SnapshotSource
    events: "EventHub"
    link: ConsoleLink
    shared: SharedReadings = field(default_factory=SharedReadings)
    searches: SpoolSearches = field(default_factory=SpoolSearches)

    @property
    def pools(self) -> tuple[WorkPool, ...]:
        """All threads for blocking work."""
        return self.work, self.probes, self.logins, self.provider


Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A route with its handler. `ROUTE_ROLES` says which role may use it.

    Attributes:
        method: GET or POST.
        path: Path with Starlette's parameters.
        handler: The handler.
        max_bytes: Largest body of a request.
        seconds: Time in which the body of a request must arrive.
    """

    method: str
    path: str
    handler: Handler
    max_bytes: int = 64 * 1024
    seconds: float = 15.0


def get_console(request: Request) -> Console:
    """Return the context of the console."""
    console: Console = request.app.state.console
    return console


def get_principal(request: Request) -> Principal:
    """Return the person or program of a request."""
    principal: Principal = request.state.principal
    return principal


def get_address(request: Request) -> str:
    """Return the IP address of the client; behind a proxy that is not trusted, that of the proxy."""
    return request.client.host if request.client else ""


def is_live_request(request: Request) -> bool:
    """Return whether the script of a page asks by itself, without a person."""
    return LIVE_HEADER in request.headers


async def run_blocking(request: Request, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a function of ours in a thread, within `DEADLINE_SECONDS`.

    Raises:
        ProblemError: The function raised an error that a person can act on, or took too long.
    """
    return await run_for(request, DEADLINE_SECONDS, functools.partial(function, *args, **kwargs))


async def run_for(
    request: Request, seconds: float, function: Callable[[], T], pool: WorkPool | None = None
) -> T:
    """Run a function of ours in a thread of the pool, by default `Console.work`, within `seconds`.

    Raises:
        ProblemError: As `run_blocking`. A page that refreshes itself may not do work of its own: there may be
            many, and they never tire. It uses `read_shared`, whose cost has a bound.
    """
    if is_live_request(request):
        raise ProblemError(400, "a page that refreshes itself may not ask for this", "load the page again")
    return await run_bounded(get_console(request), seconds, function, pool)


async def read_shared(
    request: Request, version: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
) -> Shared[T]:
    """Run a function that reads what a page shows. Refreshes of the page share one reading.

    The value must depend on path, query and the search of the session alone, because all viewers get it.
    `version` is a word that changes with the content of the page.

    Raises:
        ProblemError: As `run_blocking`.
    """
    console, read = get_console(request), functools.partial(function, *args, **kwargs)
    if not is_live_request(request):
        return Shared(await run_for(request, DEADLINE_SECONDS, read), version)
    session = get_principal(request).session if "q" in request.query_params else ""
    key = (request.url.path, request.url.query, session)
    return await console.shared.read(key, version, lambda: run_bounded(console, DEADLINE_SECONDS, read))


async def run_bounded(
    console: Console, seconds: float, function: Callable[[], T], pool: WorkPool | None = None
) -> T:
    """Run a function as `run_for` does, also for pages that refresh themselves: they share what it reads."""
    try:
        return await (pool or console.work).run(seconds, function)
    except (
        UnknownAlertError,
        UnknownDestinationError,
        UnknownObjectError,
        UnknownUserError,
        UnknownWebhookError,
    ) as error:
        raise ProblemError(404, str(error)) from error
    except ConfigError as error:
        raise ProblemError(422, "; ".join(error.faults), "correct the configuration") from error
    except LedgerError as error:
        raise ProblemError(503, str(error), "see `ingest check`", {"Retry-After": "10"}) from error
    except IngestError as error:
        raise ProblemError(409, str(error)) from error
