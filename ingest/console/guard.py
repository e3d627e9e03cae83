"""What stands before each handler: its role, the CSRF token, and bounds on the body of the request."""

import asyncio
from typing import Final
from urllib.parse import quote

from starlette.formparsers import MultiPartParser
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import Message, Receive, Scope, Send

from ingest.console.auth.login import require_csrf_token
from ingest.console.auth.roles import OPEN_TO_THIS_HOST, ROUTE_ROLES, Role
from ingest.console.problems import ProblemError, answer_error, wants_html
from ingest.console.web import Endpoint, get_console, get_principal, is_live_request

# Keep forms in memory, which `bound_body` bounds. A larger part would go to a file in /tmp, and it may be the
# image of a patient.
MultiPartParser.spool_max_size = 1 << 30

_TOO_LARGE: Final = "send less at a time"


class GuardedHandler:
    """A handler that only its roles reach."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Find the role of the route. A route without one is a defect, and raises KeyError at the start."""
        self.path = endpoint.path
        self._endpoint = endpoint
        key = f"{endpoint.method} {endpoint.path}"
        self._role = ROUTE_ROLES[key]
        self._is_open_to_this_host = key in OPEN_TO_THIS_HOST

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check role and CSRF token, then handle the request."""
        request = Request(scope, bound_body(receive, self._endpoint.max_bytes, self._endpoint.seconds))
        try:
            response = await self._handle(request)
        except ProblemError as error:
            response = answer_error(request, error)
        finally:
            await request.close()  # files of a form
        await response(scope, receive, send)

    async def _handle(self, request: Request) -> Response:
        principal = get_principal(request)
        is_open = self._is_open_to_this_host and not get_console(request).settings.is_public
        if principal.role < self._role and not is_open:
            if principal.role is not Role.NOBODY:
                cause = f"the role {principal.role.word} may not do this; it needs {self._role.word}"
                raise ProblemError(403, cause, "ask an administrator of the console")
            # The script of a page would put the login page in the place of its list.
            if self._endpoint.method == "GET" and wants_html(request) and not is_live_request(request):
                return RedirectResponse(f"/login?next={quote(request.url.path)}", 303)
            remedy = "log in, or send a token as `Authorization: Bearer TOKEN`"
            raise ProblemError(401, "a login is needed", remedy, {"WWW-Authenticate": "Bearer"})
        if int(request.headers.get("content-length") or 0) > self._endpoint.max_bytes:
            raise ProblemError(413, f"more than {self._endpoint.max_bytes} bytes", _TOO_LARGE)
        if self._endpoint.method == "POST":
            await require_csrf_token(request)
        return await self._endpoint.handler(request)


def bound_body(receive: Receive, max_bytes: int, seconds: float) -> Receive:
    """Return a `receive` that refuses a body that is too large or too slow.

    The time begins with the first read. After the body, only the end of the connection is awaited, without a
    deadline.
    """
    deadline: float | None = None
    total = 0
    is_complete = False

    async def receive_bounded() -> Message:
        nonlocal deadline, total, is_complete
        if is_complete:
            return await receive()
        now = asyncio.get_running_loop().time()
        deadline = deadline or now + seconds
        try:
            message = await asyncio.wait_for(receive(), max(0.0, deadline - now))
        except TimeoutError:
            raise ProblemError(
                408, f"the body did not arrive within {seconds:.0f} s", "try again", {"Connection": "close"}
            ) from None
        total += len(message.get("body", b""))
        is_complete = not message.get("more_body", False)
        if total > max_bytes:
            raise ProblemError(413, f"more than {max_bytes} bytes", _TOO_LARGE, {"Connection": "close"})
        return message

    return receive_bounded
