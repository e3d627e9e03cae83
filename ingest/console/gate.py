"""What every request passes before its handler: host, headers, login, log, errors.

The gate is the outermost ASGI application. It adds the security headers to every response, errors included,
and no exception leaves it: a traceback would reach the log with values of the request.
"""

import time
from collections.abc import MutableMapping
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

import structlog
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ingest.config.model import ConsoleSettings, is_loopback
from ingest.console.auth.login import find_principal
from ingest.console.auth.roles import NOBODY
from ingest.console.problems import ProblemError, answer_error
from ingest.console.proxies import TrustedProxies
from ingest.log import describe_defect

SECURITY_HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}

HSTS: Final = "max-age=31536000"

_LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_FORWARDED: Final = frozenset(
    {"forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip"}
)
_SAFE: Final = frozenset({"GET", "HEAD"})

log = structlog.get_logger()


class Gate:
    """The outermost application of the console."""

    def __init__(self, app: ASGIApp, settings: ConsoleSettings) -> None:
        """Wrap the router."""
        self._app = app
        self._settings = settings
        self._proxies = TrustedProxies(settings.trusted_proxies)
        self._headers = [(name.encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]
        if settings.is_https:
            self._headers.append((b"strict-transport-security", HSTS.encode()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._add_headers(message)
            await send(message)

        # Starlette sets the application later. Errors of the gate itself need it too.
        scope["app"] = self._app
        scope.setdefault("state", {})["principal"] = NOBODY
        self._proxies.restore_client(scope)
        request = Request(scope, receive)
        try:
            check_host(request, self._settings)
            scope["state"]["principal"] = find_principal(request)
            await self._app(scope, receive, send_with_headers)
        except Exception as error:
            problem = error if isinstance(error, ProblemError) else _hide_defect(scope, error)
            if not status:
                await answer_error(request, problem)(scope, receive, send_with_headers)
        finally:
            _log_request(scope, status, time.monotonic() - began)

    def _add_headers(self, message: MutableMapping[str, Any]) -> None:
        headers = list(message.get("headers", ()))
        present = {name for name, _ in headers}
        headers += [(name, value) for name, value in self._headers if name not in present]
        if b"cache-control" not in present:
            headers.append((b"cache-control", b"no-store"))
        message["headers"] = headers


def check_host(request: Request, settings: ConsoleSettings) -> None:
    """Refuse a request for a host name that is not ours, and an unsafe one from another site's page.

    A page of another site could let its own name point to 127.0.0.1 (DNS rebinding). Its requests would then
    come from a browser of this host, but with the other name in `Host`.

    Raises:
        ProblemError: The host name or the origin is not ours.
    """
    # A proxy hides where a request comes from. Without `public_url` this console believes that only this
    # host reaches it, and opens more, so it serves no proxy that it does not know.
    if not settings.is_public and not _FORWARDED.isdisjoint(request.headers):
        raise ProblemError(
            421, "the request comes through a proxy", "set [console] public_url to the address of the proxy"
        )
    host = request.headers.get("host", "")
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        name = ""
    if not _is_our_name(name, settings):
        raise ProblemError(
            421, "this console does not serve that host name", "set [console] public_url to the name in use"
        )
    if request.method in _SAFE:
        return
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    ours = {f"{request.url.scheme}://{host}", settings.public_url.rstrip("/")}
    # With `Referrer-Policy: no-referrer` browsers send `Origin: null` with forms of our own pages. Such a
    # request is known by Sec-Fetch-Site, and by its CSRF token in any case.
    if site not in {None, "same-origin", "none"} or (origin not in {None, "null"} and origin not in ours):
        raise ProblemError(
            403, "the request comes from a page of another site", "use the console's own pages"
        )


def _is_our_name(name: str, settings: ConsoleSettings) -> bool:
    public = urlsplit(settings.public_url).hostname
    if name in _LOOPBACK_NAMES or name == settings.host.lower() or (public is not None and name == public):
        return True
    if is_loopback(settings.host):
        return False
    try:
        ip_address(name)  # an address cannot be rebound: it is no name
    except ValueError:
        return False
    return True


def _hide_defect(scope: Scope, error: Exception) -> ProblemError:
    """Log a defect of ours by its place. Its message may hold values of patients, so it stays out."""
    log.error("console_defect", route=_name_route(scope), **describe_defect(error))
    return ProblemError(500, "an error of the console has stopped this request", "see its log")


def _name_route(scope: Scope) -> str:
    """Return the path of the route without its values; the path of an unknown route could hold anything."""
    endpoint = scope.get("endpoint")
    return str(getattr(endpoint, "path", "")) or "unknown"


def _log_request(scope: Scope, status: int, seconds: float) -> None:
    """Log a request without its query string and its values."""
    principal = scope["state"]["principal"]
    is_refused_stranger = not principal.name and 400 <= status < 500
    # Anybody can send requests that are refused. They must not fill the disk; logins have their own event.
    is_quiet = (scope["method"] in _SAFE and 0 < status < 400) or is_refused_stranger
    write = log.debug if is_quiet else log.info
    client = scope.get("client")
    write(
        "console_request",
        method=scope["method"] if scope["method"].isalpha() and len(scope["method"]) < 10 else "unknown",
        route=_name_route(scope),
        status=status,
        ms=round(seconds * 1000),
        user=principal.name,
        address=client[0] if client else "",
    )
