"""What every page shares: navigation, notices, values of the template, and the query of an address."""

import asyncio
import contextlib
import functools
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import jinja2
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ingest.audit.recorder import Action
from ingest.console import audit
from ingest.console.auth.login import find_next_page
from ingest.console.auth.roles import Role
from ingest.console.formatting import FILTERS
from ingest.console.live.snapshot import Snapshot
from ingest.console.problems import ProblemError
from ingest.console.web import (
    DEADLINE_SECONDS,
    get_address,
    get_console,
    get_principal,
    is_live_request,
    run_blocking,
    run_bounded,
)

PAGES: Final[Sequence[tuple[str, str, str, Role]]] = (
    ("overview", "/", "Overview", Role.VIEWER),
    ("studies", "/studies", "Studies", Role.VIEWER),
    ("deliveries", "/deliveries", "Deliveries", Role.VIEWER),
    ("quarantine", "/quarantine", "Quarantine", Role.VIEWER),
    ("peers", "/peers", "Peers and certificates", Role.VIEWER),
    ("routes", "/routes", "Routes", Role.VIEWER),
    ("configuration", "/configuration", "Configuration", Role.ADMIN),
    ("users", "/users", "Users", Role.ADMIN),
)
"""Key, address, label and lowest role of each page in the navigation."""

MAX_NOTICES: Final = 1000
THEMES: Final = frozenset({"light", "dark"})

_Row = TypeVar("_Row")


@dataclass(frozen=True, slots=True)
class Notice:
    """A sentence for the next page of a session, after an action."""

    text: str
    kind: str = "ok"


class Notices:
    """Notices that no page has shown yet, by session; in memory only."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, list[Notice]] = OrderedDict()

    def add(self, session: str, notice: Notice) -> None:
        """Keep a notice for the next page of a session."""
        with self._lock:
            self._waiting.setdefault(session, []).append(notice)
            while len(self._waiting) > MAX_NOTICES:
                self._waiting.popitem(last=False)

    def take(self, session: str) -> list[Notice]:
        """Return the notices of a session, and forget them."""
        with self._lock:
            return self._waiting.pop(session, [])


_notices: Final = Notices()


def prepare_environment(environment: jinja2.Environment) -> None:
    """Add the filters and functions that the templates use."""
    environment.filters.update(FILTERS)
    environment.globals["static"] = lambda name: f"/static/{name}"


def describe_request(request: Request) -> dict[str, Any]:
    """Return the values that every template uses; a context processor."""
    principal = getattr(request.state, "principal", None)
    role = principal.role if principal else Role.NOBODY
    theme = request.cookies.get("theme", "")
    console = get_console(request)
    snapshot = console.snapshots.peek()
    is_part = is_live_request(request) or "hx-request" in request.headers
    return {
        "theme": theme if theme in THEMES else "",
        "pages": [(key, href, label) for key, href, label, lowest in PAGES if role >= lowest],
        "counts": snapshot.count_attention() if snapshot and role else {},
        # A part of a page has no place for notices: they wait for the next whole page.
        "notices": _notices.take(principal.session)
        if principal and principal.session and not is_part
        else [],
        "may_operate": role >= Role.OPERATOR,
        "is_admin": role >= Role.ADMIN,
    }


def render(request: Request, template: str, page: str, status_code: int = 200, **values: Any) -> Response:
    """Return a page from a template."""
    response: Response = get_console(request).pages.TemplateResponse(
        request, template, {"page": page, "own_url": own_url(request), **values}, status_code=status_code
    )
    return response


def own_url(request: Request) -> str:
    """Return path and query of a request: states, order, place and UIDs, and never anything of a patient."""
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")


def leave_notice(request: Request, text: str, kind: str = "ok") -> None:
    """Let the next page of this session show a sentence."""
    session = get_principal(request).session
    if session:
        _notices.add(session, Notice(text, kind))


async def read_snapshot(request: Request, max_age_seconds: float = 2.0) -> Snapshot:
    """Return a snapshot of the node that is not older. All pages share it."""
    console = get_console(request)
    return await run_bounded(console, DEADLINE_SECONDS, lambda: console.snapshots.read(max_age_seconds))


# --- values of an address


def read_query(request: Request, names: Collection[str]) -> dict[str, str]:
    """Return the named values of the query, without padding; others are ignored."""
    return {name: request.query_params.get(name, "").strip()[:128] for name in names}


def read_number(text: str) -> int | None:
    """Return the number of a page or a row; None without one."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


def require_number(text: object) -> int:
    """Return the id of a row.

    Raises:
        ProblemError: It is no number.
    """
    number = read_number(str(text))
    if number is None:
        raise ProblemError(404, "there is no such row", "go back to the list")
    return number


@dataclass(frozen=True, slots=True)
class Order:
    """The order of a table: a column, and whether the largest value comes first."""

    key: str
    descending: bool


def read_order(request: Request, columns: Collection[str], default: str) -> Order:
    """Return the order that the query asks for: `sort=KEY` or `sort=-KEY`."""
    text = request.query_params.get("sort", "") or default
    key = text.removeprefix("-")
    return Order(key, text.startswith("-")) if key in columns else read_default_order(default)


def read_default_order(default: str) -> Order:
    """Return the order that a page has by itself."""
    return Order(default.removeprefix("-"), default.startswith("-"))


def sort_rows(rows: Sequence[_Row], order: Order, values: Mapping[str, Any]) -> list[_Row]:
    """Sort rows; `values` has a function for each column."""
    pick = values[order.key]
    return sorted(rows, key=lambda row: _sort_key(pick(row)), reverse=order.descending)


def _sort_key(value: Any) -> tuple[bool, Any]:
    return (value is not None, value if value is not None else 0)


# --- actions: each asks first


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a person confirms before an action.

    Attributes:
        url: Address of the action.
        values: Values of its form.
        question: The question.
        label: Text of the button.
        lines: Explanations.
        counts: Numbers by name, such as deliveries by destination.
        back: Page to return to.
        is_danger: Whether the action cannot be undone.
        asks_reason: Whether the person gives a reason.
        possible: Whether there is anything to do.
    """

    url: str
    values: Mapping[str, str]
    question: str
    label: str
    lines: Sequence[str] = ()
    counts: Mapping[str, int] | None = None
    back: str = "/"
    is_danger: bool = False
    asks_reason: bool = False
    possible: bool = True


def ask(request: Request, question: Question, page: str) -> Response:
    """Return the question: for the dialog of the page, or as a page of its own."""
    template = "confirm.html" if "hx-request" in request.headers else "confirm_page.html"
    return render(
        request,
        template,
        page,
        url=question.url,
        values={name: value for name, value in question.values.items() if value},
        question=question.question,
        label=question.label,
        lines=question.lines,
        counts_by_name=question.counts or {},
        back=question.back,
        is_danger=question.is_danger,
        asks_reason=question.asks_reason,
        possible=question.possible,
    )


async def read_form(request: Request, names: Collection[str]) -> tuple[dict[str, str], bool]:
    """Return the named values of a form, and whether the person has confirmed."""
    form = await request.form()
    values = {name: str(form.get(name) or "").strip()[:2048] for name in names}
    return values, form.get("confirmed") == "1"


def find_way_back(values: Mapping[str, str], default: str) -> str:
    """Return the page to return to after an action; never one of another site."""
    back = values.get("back", "")
    return find_next_page(back) if back else default


def go_back(path: str) -> Response:
    """Show a page again after an action. A reload of it repeats nothing."""
    return RedirectResponse(path, 303)


_ACTIONS: Final = {
    "retry": Action.RETRY,
    "release": Action.RELEASE_DELIVERIES,
    "drop": Action.DROP,
    "pause": Action.PAUSE,
    "resume": Action.RESUME,
    "reload": Action.RELOAD,
    "password_changed": Action.CHANGE_USERS,
}


@contextlib.asynccontextmanager
async def recording(request: Request, action: str, *, note: str = "", **subject: str) -> AsyncIterator[None]:
    """Record an action when it ends, also if it fails, and let the next page show its effect.

    Args:
        request: The request.
        action: The action.
        note: Free text for the audit trail only.
        subject: What it concerns; no patient data.
    """
    # A record is synced to disk, which may take seconds. The event loop serves other people meanwhile.
    # The pool of `run_blocking` refuses work while it is full, and would lose the record.
    record = functools.partial(_record_action, request, action, subject, note)
    try:
        yield
    except Exception:
        await asyncio.to_thread(record, succeeded=False)
        raise
    await asyncio.to_thread(record, succeeded=True)


async def record_view(request: Request, target: str, study_uid: str) -> None:
    """Record that a person looked at a study or an instance; a refresh by the page itself is no look."""
    if is_live_request(request):
        return
    principal = get_principal(request)
    known = (get_console(request).config, principal.name, get_address(request), Action.VIEW, target)
    # A message names the patient: it asks the ledger.
    await run_blocking(request, functools.partial(audit.record_action, *known, study_uid=study_uid))


def _record_action(
    request: Request, action: str, subject: Mapping[str, str], note: str, *, succeeded: bool
) -> None:
    get_console(request).snapshots.expire()
    principal, address = get_principal(request), get_address(request)
    known = {name: value for name, value in subject.items() if value}
    kind = _ACTIONS.get(action, Action.OTHER)
    target = f"destination/{known['destination']}" if "destination" in known else action
    config = get_console(request).config
    audit.record_action(
        config, principal.name, address, kind, target, succeeded=succeeded, details=known, note=note
    )
