"""Operations of the API on users and tokens, as `ingest console user` and `ingest console token` do them."""

import contextlib
from collections.abc import Iterator
from typing import Any, Final

from ingest.audit.recorder import Action
from ingest.clock import unix_ms
from ingest.console.api import models, request_models
from ingest.console.api.actions import record_action
from ingest.console.api.operation import Call, Operation
from ingest.console.auth.roles import ROLES_BY_WORD, USER_ROLES_BY_WORD
from ingest.console.auth.tokens import Token
from ingest.console.auth.users import User
from ingest.errors import IngestError
from ingest.operations.times import format_iso_time

DAY_MS: Final = 86_400_000


@contextlib.contextmanager
def _recording(call: Call, action: Action, kind: str, name: str, **details: Any) -> Iterator[None]:
    """Record a change within the context, as done or as failed."""
    try:
        yield
    except IngestError:
        # A person may type anything as a name: the log keeps only one that exists.
        record_action(call, action, kind, succeeded=False, **details)
        raise
    record_action(call, action, f"{kind}/{name}", **details)


# --- users


def list_users(call: Call) -> dict[str, Any]:
    """List the users."""
    return {"items": [_user_to_json(each) for each in call.console.users.list_users()]}


def _user_to_json(user: User) -> dict[str, Any]:
    return {"name": user.name, "role": user.role.word}


def add_user(call: Call) -> dict[str, Any]:
    """Add a user."""
    body: request_models.NewUser = call.body
    with _recording(call, Action.CHANGE_USERS, "user", body.name, change=f"added as {body.role}"):
        user = call.console.users.add_user(
            body.name, USER_ROLES_BY_WORD[body.role], body.password, keeps_admin=_needs_admin(call)
        )
    return _user_to_json(user)


def change_password(call: Call) -> dict[str, Any]:
    """Change the password of a user."""
    body: request_models.NewPassword = call.body
    name = call.path["name"]
    with _recording(call, Action.CHANGE_USERS, "user", name, change="password"):
        user = call.console.users.change_user(name, password=body.password)
    return _user_to_json(user)


def change_role(call: Call) -> dict[str, Any]:
    """Change the role of a user."""
    body: request_models.NewRole = call.body
    name = call.path["name"]
    with _recording(call, Action.CHANGE_ROLES, "user", name, change=f"is {body.role}"):
        role = USER_ROLES_BY_WORD[body.role]
        user = call.console.users.change_user(name, role=role, keeps_admin=_needs_admin(call))
    return _user_to_json(user)


def remove_user(call: Call) -> dict[str, Any]:
    """Remove a user."""
    name = call.path["name"]
    with _recording(call, Action.CHANGE_USERS, "user", name, change="removed"):
        call.console.users.remove_user(name, keeps_admin=_needs_admin(call))
    return list_users(call)


def _needs_admin(call: Call) -> bool:
    """Return whether the users must have an administrator: no OpenID provider names another one."""
    return call.console.oidc is None


# --- tokens


def list_tokens(call: Call) -> dict[str, Any]:
    """List the tokens."""
    return {"items": [_token_to_json(each) for each in call.console.tokens.list_tokens()]}


def _token_to_json(token: Token) -> dict[str, Any]:
    return {
        "name": token.name,
        "role": token.role.word,
        "created_at": format_iso_time(token.created_ms),
        "expires_at": format_iso_time(token.expires_ms),
        "is_expired": token.is_expired(),
    }


def add_token(call: Call) -> dict[str, Any]:
    """Make a token. Its text is in this answer only."""
    body: request_models.NewToken = call.body
    expires_ms = 0 if body.days is None else unix_ms() + body.days * DAY_MS
    with _recording(call, Action.CHANGE_TOKENS, "token", body.name, change=f"added as {body.role}"):
        text = call.console.tokens.add_token(body.name, ROLES_BY_WORD[body.role], expires_ms)
    expires_at = format_iso_time(expires_ms)
    return {"name": body.name, "role": body.role, "expires_at": expires_at, "token": text}


def remove_token(call: Call) -> dict[str, Any]:
    """Remove a token."""
    name = call.path["name"]
    with _recording(call, Action.CHANGE_TOKENS, "token", name, change="removed"):
        call.console.tokens.remove_token(name)
    return list_tokens(call)


OPERATIONS: Final = (
    Operation("GET", "/users", "List the users and their roles", list_users, models.Users, tag="access"),
    Operation(
        "POST", "/users", "Add a user", add_user, models.User, body=request_models.NewUser, tag="access"
    ),
    Operation(
        "POST",
        "/users/{name}/password",
        "Change the password of a user, and end the sessions of the user",
        change_password,
        models.User,
        body=request_models.NewPassword,
        tag="access",
    ),
    Operation(
        "POST",
        "/users/{name}/role",
        "Change the role of a user, and end the sessions of the user",
        change_role,
        models.User,
        body=request_models.NewRole,
        tag="access",
    ),
    Operation(
        "POST",
        "/users/{name}/remove",
        "Remove a user, and end the sessions of the user",
        remove_user,
        models.Users,
        tag="access",
    ),
    Operation(
        "GET", "/tokens", "List the tokens, without their texts", list_tokens, models.Tokens, tag="access"
    ),
    Operation(
        "POST",
        "/tokens",
        "Make a token; only this answer has its text",
        add_token,
        models.MadeToken,
        body=request_models.NewToken,
        tag="access",
    ),
    Operation("POST", "/tokens/{name}/remove", "Remove a token", remove_token, models.Tokens, tag="access"),
)
