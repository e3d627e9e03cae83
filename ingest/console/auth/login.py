"""Login, logout, and the principal of a request."""

import functools
import hashlib
import hmac
import math
import secrets
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ingest.config.model import ConsoleSettings
from ingest.console import audit
from ingest.console.auth.oidc import OIDCError, StrangeAnswerError
from ingest.console.auth.roles import NOBODY, Principal, Role
from ingest.console.auth.sessions import Session, derive_csrf_token
from ingest.console.auth.tokens import digest_token, read_local_token
from ingest.console.auth.users import normalize_name
from ingest.console.problems import ProblemError
from ingest.console.web import (
    Console,
    Endpoint,
    get_address,
    get_console,
    get_principal,
    is_live_request,
    run_blocking,
    run_for,
)
from ingest.errors import IngestError

LOCAL_USER: Final = "local"
"""Name of the person who has logged in with the token of a console without users."""

LOGIN_SECONDS: Final = 30.0
"""Deadline of a login: two passwords are hashed at a time, and others wait. The same for the provider."""

OIDC_CALLBACK: Final = "/login/oidc/callback"

CSRF_HEADER: Final = "x-csrf-token"
CSRF_FIELD: Final = "csrf_token"


def name_cookie(settings: ConsoleSettings, purpose: str = "session") -> str:
    """Return the name of a cookie. Browsers do not tell ports apart, so the port is part of the name."""
    prefix = "__Host-" if settings.is_https else ""
    return f"{prefix}ingest-{purpose}-{settings.port}"


def set_cookie(response: Response, settings: ConsoleSettings, name: str, value: str) -> None:
    """Set a cookie that scripts cannot read and other sites cannot send. It ends with the browser."""
    response.set_cookie(name, value, path="/", secure=settings.is_https, httponly=True, samesite="strict")


def delete_cookie(response: Response, settings: ConsoleSettings, name: str) -> None:
    """Let the browser forget a cookie."""
    response.delete_cookie(name, path="/", secure=settings.is_https, httponly=True, samesite="strict")


# --- who asks


def find_principal(request: Request, *, is_activity: bool | None = None) -> Principal:
    """Return the principal of a request: that of its token, or of its session.

    Raises:
        ProblemError: The request has a token that is not valid.
    """
    console = get_console(request)
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme:
        principal = _find_token(console, token.strip()) if scheme.lower() == "bearer" else None
        if principal is None:
            raise ProblemError(
                401,
                "the token is not valid",
                "make one with `ingest console token add`",
                {"WWW-Authenticate": "Bearer"},
            )
        return principal
    secret = request.cookies.get(name_cookie(console.settings), "")
    if not secret:
        return NOBODY
    if is_activity is None:
        # A stream, and a list that a page reads again by itself, are no sign of a person.
        is_activity = not request.url.path.endswith("/events") and not is_live_request(request)
    found = console.sessions.find(secret, is_activity=is_activity)
    if found is None:
        return NOBODY
    key, session = found
    role = find_session_role(console, session)
    if role is Role.NOBODY:
        console.sessions.close(key)
        return NOBODY
    return Principal(session.user, role, key, derive_csrf_token(secret))


def find_session_role(console: Console, session: Session) -> Role:
    """Return the role that a session has now; NOBODY if its user or token has changed."""
    try:
        if session.origin == "password":
            user = console.users.find_user(session.user)
            return user.role if user is not None and user.version == session.version else Role.NOBODY
        if session.origin == "token":
            if needs_user(console):
                return Role.NOBODY
            current = digest_token(read_local_token(console.config.console_dir))
            return session.role if session.version == current else Role.NOBODY
        if session.origin == "oidc":
            return session.role if session.version == _version_oidc(console) else Role.NOBODY
    except IngestError as error:
        raise ProblemError(503, str(error)) from error
    return Role.NOBODY


def _version_oidc(console: Console) -> str:
    """Return what sessions of the provider depend on: another provider or mapping of roles ends them."""
    settings = console.settings.oidc
    return "" if settings is None else hashlib.sha256(settings.model_dump_json().encode()).hexdigest()


def is_principal_valid(request: Request, principal: Principal) -> bool:
    """Return whether a principal may still do what it began, such as a stream of events."""
    console = get_console(request)
    if principal.session:
        try:
            return find_principal(request, is_activity=False).role >= principal.role
        except ProblemError:
            return False
    token = request.headers.get("authorization", "").partition(" ")[2].strip()
    found = _find_token(console, token)
    return found is not None and found.role >= principal.role


def needs_user(console: Console) -> bool:
    """Return whether a login needs a user, because the console has some."""
    return console.oidc is not None or bool(console.users.list_users())


def _has_users(console: Console) -> bool:
    return bool(console.users.list_users())


def _find_token(console: Console, text: str) -> Principal | None:
    try:
        principal = console.tokens.find_principal(text)
        if principal is None and not needs_user(console) and not console.settings.is_public:
            local = read_local_token(console.config.console_dir)
            if hmac.compare_digest(digest_token(text), digest_token(local)):
                return Principal(LOCAL_USER, Role.ADMIN)
    except IngestError as error:
        raise ProblemError(503, str(error)) from error
    return principal


# --- requests that change something


async def require_csrf_token(request: Request) -> None:
    """Refuse an unsafe request of a browser without the token that only our pages know.

    Raises:
        ProblemError: The token is missing or wrong.
    """
    principal = get_principal(request)
    expected = principal.csrf_token
    if not principal.session:
        if principal.role is not Role.NOBODY:
            return  # a browser sends no Authorization header by itself
        cookie = request.cookies.get(name_cookie(get_console(request).settings, "login"), "")
        expected = derive_csrf_token(cookie) if cookie else ""
    given = request.headers.get(CSRF_HEADER)
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given is None and content_type in {"application/x-www-form-urlencoded", "multipart/form-data"}:
        value = (await request.form(max_files=1, max_fields=200)).get(CSRF_FIELD)
        given = value if isinstance(value, str) else None
    if not expected or given is None or not hmac.compare_digest(given.encode(), expected.encode()):
        raise ProblemError(403, "the page is too old, or the request is not from it", "load the page again")


# --- handlers


async def show_login(request: Request) -> Response:
    """Show the login page."""
    console = get_console(request)
    if get_principal(request).role is not Role.NOBODY:
        return RedirectResponse(find_next_page(request.query_params.get("next", "")), 303)
    return await _show_form(request, console, "", 200)


async def _show_form(request: Request, console: Console, error: str, status: int) -> Response:
    cookie = name_cookie(console.settings, "login")
    secret = request.cookies.get(cookie) or secrets.token_urlsafe(24)
    form = await request.form() if request.method == "POST" else {}
    request.state.csrf_token = derive_csrf_token(secret)
    values = {
        "needs_user": await run_blocking(request, needs_user, console),
        "error": error,
        "has_users": await run_blocking(request, _has_users, console),
        "oidc": console.settings.oidc,
        "next": find_next_page(str(form.get("next") or request.query_params.get("next", ""))),
    }
    response: Response = console.pages.TemplateResponse(request, "login.html", values, status_code=status)
    set_cookie(response, console.settings, cookie, secret)
    return response


async def log_in(request: Request) -> Response:
    """Check user and password, or the token of a console without users, and open a session."""
    console = get_console(request)
    form = await request.form()
    name, password = str(form.get("user", "")), str(form.get("password", ""))
    address = get_address(request)
    # Other spellings of a name are the same user, and share the limit.
    key = normalize_name(name)[:64] if await run_blocking(request, needs_user, console) else LOCAL_USER
    if wait := console.login_limit.begin(key, address):
        seconds = math.ceil(wait)
        cause = f"Too many failed logins. Try again in {seconds} s."
        refusal = await _show_form(request, console, cause, 429)
        refusal.headers["retry-after"] = str(seconds)
        return refusal
    try:
        work = functools.partial(_open_session, console, name, password, address)
        secret = await run_for(request, LOGIN_SECONDS, work, console.logins)
        note = console.login_limit.note_success if secret else console.login_limit.note_failure
        note(key, address)
    finally:
        console.login_limit.end(key, address)
    if not secret:
        return await _show_form(request, console, "User or password is wrong.", 401)
    await _close_old_session(request)
    response = RedirectResponse(find_next_page(str(form.get("next", ""))), 303)
    set_cookie(response, console.settings, name_cookie(console.settings), secret)
    delete_cookie(response, console.settings, name_cookie(console.settings, "login"))
    return response


def _open_session(console: Console, name: str, password: str, address: str) -> str:
    """Return the id of a new session; empty if the login is refused."""
    if needs_user(console):
        user = console.users.verify_password(name, password)
        if user is None:
            audit.record_login(console.config, name, address, succeeded=False, how="password")
            return ""
        audit.record_login(console.config, user.name, address, succeeded=True, how="password")
        return console.sessions.open(user.name, user.role, user.version, "password")
    local = digest_token(read_local_token(console.config.console_dir))
    succeeded = hmac.compare_digest(digest_token(password), local) and not console.settings.is_public
    audit.record_login(console.config, LOCAL_USER, address, succeeded=succeeded, how="token of the file")
    return console.sessions.open(LOCAL_USER, Role.ADMIN, local, "token") if succeeded else ""


async def _close_old_session(request: Request) -> None:
    """End the session that the browser had before a login: nobody uses it any more."""
    if old := get_principal(request).session:
        await run_blocking(request, get_console(request).sessions.close, old)


async def begin_oidc(request: Request) -> Response:
    """Send the browser to the provider."""
    console = get_console(request)
    if console.oidc is None:
        raise ProblemError(404, "this console has no OpenID provider", "log in with user and password")
    base = console.settings.public_url.rstrip("/") or f"{request.url.scheme}://{request.headers['host']}"
    next_page = find_next_page(request.query_params.get("next", ""))
    begin = functools.partial(console.oidc.begin, f"{base}{OIDC_CALLBACK}", next_page)
    key, address = await run_for(request, LOGIN_SECONDS, begin, console.provider)
    response = RedirectResponse(address, 303)
    # Lax: the provider's page leads back here, and a browser would not send a strict cookie then.
    response.set_cookie(
        name_cookie(console.settings, "oidc"),
        key,
        path="/",
        secure=console.settings.is_https,
        httponly=True,
        samesite="lax",
    )
    return response


async def finish_oidc(request: Request) -> Response:
    """Open a session for the person whom the provider has sent back."""
    console, address = get_console(request), get_address(request)
    cookie = name_cookie(console.settings, "oidc")
    key = request.cookies.get(cookie, "")
    if console.oidc is None:
        raise ProblemError(404, "this console has no OpenID provider", "log in with user and password")
    if not key:
        raise ProblemError(403, "no login has begun in this browser", "log in again")
    answer = dict(request.query_params)
    try:
        work = functools.partial(_open_oidc_session, console, key, answer, address)
        secret, next_page = await run_for(request, LOGIN_SECONDS, work, console.provider)
    except ProblemError as error:
        if not isinstance(error.__cause__, OIDCError):
            raise
        if not isinstance(error.__cause__, StrangeAnswerError):
            await _record_refusal(request)
        raise ProblemError(403, error.detail, "log in again, or ask an administrator") from error
    await _close_old_session(request)
    # The browser came from the provider, so it would not send the strict cookie of the session with a
    # redirect. From a page of ours it does.
    response: Response = console.pages.TemplateResponse(request, "logged_in.html", {"next": next_page})
    set_cookie(response, console.settings, name_cookie(console.settings), secret)
    delete_cookie(response, console.settings, cookie)
    return response


async def _record_refusal(request: Request) -> None:
    """Record a refused login at the provider.

    Anybody can begin a login and answer it with a wrong code. Therefore the records of one address are
    limited as failed logins are: a flood must fill neither log nor audit trail. The login itself is not
    limited, because all people behind a proxy share its address, and one of them could keep the others out.
    """
    console, address = get_console(request), get_address(request)
    key = f"oidc:{address}"  # shares no limit with a user: names of users have no colon
    if console.login_limit.wait_seconds(key, key):
        return
    console.login_limit.note_failure(key, key)
    await run_blocking(
        request, audit.record_login, console.config, "", address, succeeded=False, how="OpenID Connect"
    )


def _open_oidc_session(
    console: Console, key: str, answer: Mapping[str, str], address: str
) -> tuple[str, str]:
    if console.oidc is None:
        return "", ""
    person, next_page = console.oidc.finish(key, answer)
    audit.record_login(console.config, person.name, address, succeeded=True, how="OpenID Connect")
    secret = console.sessions.open(person.name, person.role, _version_oidc(console), "oidc")
    return secret, next_page


async def log_out(request: Request) -> Response:
    """End this session."""
    console, principal = get_console(request), get_principal(request)
    await run_blocking(request, console.sessions.close, principal.session)
    return await _answer_logout(request, console)


async def log_out_everywhere(request: Request) -> Response:
    """End all sessions of this user."""
    console, principal = get_console(request), get_principal(request)
    await run_blocking(request, console.sessions.close_all, principal.name)
    return await _answer_logout(request, console)


async def _answer_logout(request: Request, console: Console) -> Response:
    principal = get_principal(request)
    await run_blocking(request, audit.record_logout, console.config, principal.name, get_address(request))
    response = RedirectResponse("/login", 303)
    delete_cookie(response, console.settings, name_cookie(console.settings))
    response.headers["clear-site-data"] = '"cache", "storage"'
    return response


def find_next_page(text: str) -> str:
    """Return the page to show after a login: a path of this console, whatever a link says."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return "/"
    is_ours = text.startswith("/") and not text.startswith("//") and "\\" not in text and text.isprintable()
    return text if is_ours and not parts.scheme and not parts.netloc else "/"


ENDPOINTS: Final = (
    Endpoint("GET", "/login", show_login),
    Endpoint("POST", "/login", log_in),
    Endpoint("GET", "/login/oidc", begin_oidc),
    Endpoint("GET", OIDC_CALLBACK, finish_oidc),
    Endpoint("POST", "/logout", log_out),
    Endpoint("POST", "/logout-everywhere", log_out_everywhere),
)
