"""Roles of people and programs, and the one table of what each role may do."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final


class Role(IntEnum):
    """The role of a principal. A higher role may do everything that a lower one may do."""

    NOBODY = 0
    """No login: the login page, style sheets, and whether the node is ready."""
    METRICS = 1
    """Reads the metrics, and nothing else. Only tokens have this role."""
    VIEWER = 2
    """Sees pages and lists, but no files."""
    OPERATOR = 3
    """Also downloads files, retries, drops, pauses, resumes, and decides about the quarantine."""
    ADMIN = 4
    """Also sees the configuration, reloads it, and gives access to people and programs."""

    @property
    def word(self) -> str:
        """The role as files, commands and pages name it."""
        return self.name.lower()


ROLES_BY_WORD: Final[Mapping[str, Role]] = {role.word: role for role in Role if role is not Role.NOBODY}
"""Roles of tokens."""

USER_ROLES_BY_WORD: Final[Mapping[str, Role]] = {role.word: role for role in Role if role >= Role.VIEWER}
"""Roles of people."""


@dataclass(frozen=True, slots=True)
class Principal:
    """The person or program of a request.

    Attributes:
        name: Name for the log and the audit trail: a user, `token:NAME`, or empty for nobody.
        role: The role.
        session: Key of the session; empty for a token.
        csrf_token: What an unsafe request of the session must carry; empty for a token.
    """

    name: str = ""
    role: Role = Role.NOBODY
    session: str = ""
    csrf_token: str = ""


NOBODY: Final = Principal()

ROUTE_ROLES: Final[Mapping[str, Role]] = {
    # --- without login
    "GET /live": Role.NOBODY,
    "GET /ready": Role.NOBODY,
    "GET /static/{name:path}": Role.NOBODY,
    "GET /login": Role.NOBODY,
    "POST /login": Role.NOBODY,
    "GET /login/oidc": Role.NOBODY,
    "GET /login/oidc/callback": Role.NOBODY,
    # --- the own session
    "POST /logout": Role.VIEWER,
    "POST /logout-everywhere": Role.VIEWER,
    # --- pages
    "GET /": Role.VIEWER,
    "GET /events": Role.VIEWER,
    "GET /overview/charts": Role.VIEWER,
    "GET /studies": Role.VIEWER,
    "POST /studies/search": Role.VIEWER,
    "GET /studies/{uid}": Role.VIEWER,
    "GET /instances/{number}": Role.VIEWER,
    "GET /deliveries": Role.VIEWER,
    "GET /deliveries/list": Role.VIEWER,
    "POST /deliveries/retry": Role.OPERATOR,
    "POST /deliveries/release": Role.OPERATOR,
    "POST /deliveries/drop": Role.OPERATOR,
    "POST /deliveries/pause": Role.OPERATOR,
    "POST /deliveries/resume": Role.OPERATOR,
    "GET /quarantine": Role.VIEWER,
    "GET /quarantine/{number}": Role.OPERATOR,
    "POST /quarantine/release": Role.OPERATOR,
    "POST /quarantine/retry": Role.OPERATOR,
    "POST /quarantine/drop": Role.OPERATOR,
    "GET /peers": Role.VIEWER,
    "GET /routes": Role.VIEWER,
    "POST /routes/test": Role.OPERATOR,
    "GET /configuration": Role.ADMIN,
    "POST /configuration/check": Role.ADMIN,
    "POST /configuration/reload": Role.ADMIN,
    "GET /account": Role.VIEWER,
    "POST /account/password": Role.VIEWER,
    "GET /users": Role.ADMIN,
    # --- API
    "GET /api/v1/openapi.json": Role.VIEWER,
    "GET /api/v1/status": Role.VIEWER,
    "GET /api/v1/events": Role.VIEWER,
    "GET /api/v1/alarms": Role.VIEWER,
    "GET /api/v1/destinations": Role.VIEWER,
    "POST /api/v1/destinations/{name}/pause": Role.OPERATOR,
    "POST /api/v1/destinations/{name}/resume": Role.OPERATOR,
    "GET /api/v1/certificates": Role.VIEWER,
    "GET /api/v1/callers": Role.VIEWER,
    "GET /api/v1/refusals": Role.VIEWER,
    "GET /api/v1/commitments": Role.VIEWER,
    "GET /api/v1/commitments/sent": Role.VIEWER,
    "GET /api/v1/completions": Role.VIEWER,
    "GET /api/v1/alerts": Role.VIEWER,
    "POST /api/v1/alerts/test": Role.ADMIN,
    "GET /api/v1/webhooks": Role.VIEWER,
    "GET /api/v1/webhooks/events": Role.VIEWER,
    "POST /api/v1/webhooks/test": Role.ADMIN,
    "POST /api/v1/webhooks/replay": Role.OPERATOR,
    "GET /api/v1/audit": Role.ADMIN,
    "POST /api/v1/audit/test": Role.ADMIN,
    "POST /api/v1/trace": Role.VIEWER,
    "GET /api/v1/samples": Role.VIEWER,
    "POST /api/v1/studies/search": Role.VIEWER,
    "GET /api/v1/studies/{study_uid}": Role.VIEWER,
    "GET /api/v1/studies/{study_uid}/series": Role.VIEWER,
    "POST /api/v1/instances/search": Role.VIEWER,
    "GET /api/v1/instances/{id}": Role.VIEWER,
    "GET /api/v1/instances/{id}/file": Role.OPERATOR,
    "POST /api/v1/deliveries/search": Role.VIEWER,
    "POST /api/v1/deliveries": Role.OPERATOR,
    "POST /api/v1/deliveries/retry": Role.OPERATOR,
    "POST /api/v1/deliveries/release": Role.OPERATOR,
    "POST /api/v1/deliveries/drop": Role.OPERATOR,
    "POST /api/v1/quarantine/search": Role.VIEWER,
    "GET /api/v1/quarantine/{id}/comparison": Role.OPERATOR,
    "POST /api/v1/quarantine/release": Role.OPERATOR,
    "POST /api/v1/quarantine/retry": Role.OPERATOR,
    "POST /api/v1/quarantine/drop": Role.OPERATOR,
    "GET /api/v1/routes": Role.VIEWER,
    "POST /api/v1/routes/test": Role.OPERATOR,
    "POST /api/v1/routes/test-file": Role.OPERATOR,
    "GET /api/v1/configuration": Role.ADMIN,
    "GET /api/v1/configuration/changes": Role.ADMIN,
    "POST /api/v1/check": Role.ADMIN,
    "POST /api/v1/reload": Role.ADMIN,
    "GET /api/v1/retention": Role.ADMIN,
    "GET /api/v1/ledger/jobs": Role.ADMIN,
    "POST /api/v1/ledger/jobs": Role.ADMIN,
    "GET /api/v1/users": Role.ADMIN,
    "POST /api/v1/users": Role.ADMIN,
    "POST /api/v1/users/{name}/password": Role.ADMIN,
    "POST /api/v1/users/{name}/role": Role.ADMIN,
    "POST /api/v1/users/{name}/remove": Role.ADMIN,
    "GET /api/v1/tokens": Role.ADMIN,
    "POST /api/v1/tokens": Role.ADMIN,
    "POST /api/v1/tokens/{name}/remove": Role.ADMIN,
    "GET /metrics": Role.METRICS,
}
"""The lowest role for each route, as "METHOD path". A route that is not listed cannot be added."""

OPEN_TO_THIS_HOST: Final = frozenset({"GET /metrics"})
"""Routes that need no login on a console that only this host can reach."""
