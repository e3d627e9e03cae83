"""The own account, and the list of users for administrators."""

import functools
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from ingest.console.auth.login import LOCAL_USER, LOGIN_SECONDS
from ingest.console.pages.rendering import go_back, leave_notice, record_action, render
from ingest.console.web import Endpoint, get_console, get_principal, run_blocking, run_for
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
    verify = functools.partial(console.users.verify_password, principal.name, old)
    user = await run_for(request, LOGIN_SECONDS, verify, console.logins)
    if user is None:
        return await _render_account(request, "The present password is wrong.", 422)
    try:
        await console.work.run(20.0, lambda: console.users.change_user(user.name, password=new))
    except IngestError as error:
        return await _render_account(request, f"{error}", 422)
    record_action(request, "password_changed", user=user.name)
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
