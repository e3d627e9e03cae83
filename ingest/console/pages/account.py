"""The own account, and the list of users for administrators."""

import functools
import math
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from ingest.console.auth.login import LOCAL_USER, LOGIN_SECONDS
from ingest.console.auth.users import normalize_name
from ingest.console.pages.rendering import go_back, leave_notice, recording, render
from ingest.console.web import (
    Endpoint,
    get_address,
    get_console,
    get_principal,
    run_blocking,
    run_for,
)
from ingest.errors import IngestError


async def show_account(request: Request) -> Response:
    """Show the own account."""
    return await _render_account(request, "", 200)


async def _render_account(request: Request, fault: str, status: int) -> Response:
    console, principal = get_console(request), get_principal(request)
    user = await run_blocking(request, console.users.find_user, principal.name)
    return render(
        request,
        "account.html",
        "account",
        status,
        has_password=user is not None and principal.name != LOCAL_USER,
        fault=fault,
        session_minutes=console.settings.session_minutes,
        idle_minutes=console.settings.idle_minutes,
    )


async def change_password(request: Request) -> Response:
    """Change the own password. All sessions of the user end."""
    console, principal = get_console(request), get_principal(request)
    form = await request.form()
    old, new, again = (str(form.get(name) or "") for name in ("old", "new", "again"))
    if new != again:
        return await _render_account(request, "The new passwords differ.", 422)
    # The thief of a session must not guess the password faster than at the login.
    key, address = normalize_name(principal.name)[:64], get_address(request)
    if wait := console.login_limit.begin(key, address):
        seconds = math.ceil(wait)
        refusal = await _render_account(request, f"Too many wrong passwords. Try again in {seconds} s.", 429)
        refusal.headers["retry-after"] = str(seconds)
        return refusal
    try:
        verify = functools.partial(console.users.verify_password, principal.name, old)
        user = await run_for(request, LOGIN_SECONDS, verify, console.logins)
        note = console.login_limit.note_success if user else console.login_limit.note_failure
        note(key, address)
    finally:
        console.login_limit.end(key, address)
    if user is None:
        return await _render_account(request, "The present password is wrong.", 422)
    try:
        async with recording(request, "password_changed", user=user.name):
            await console.work.run(20.0, lambda: console.users.change_user(user.name, password=new))
    except IngestError as error:
        return await _render_account(request, f"{error}", 422)
    leave_notice(request, "The password is changed.")
    return go_back("/login")


async def show_users(request: Request) -> Response:
    """Show the users, without anything secret."""
    console = get_console(request)
    users = await run_blocking(request, console.users.list_users)
    return render(request, "users.html", "users", users=[(user.name, user.role.word) for user in users])


ENDPOINTS: Final = (
    Endpoint("GET", "/account", show_account),
    Endpoint("POST", "/account/password", change_password),
    Endpoint("GET", "/users", show_users),
)
