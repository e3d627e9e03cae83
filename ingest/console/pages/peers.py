"""Peers and certificates: who called with which certificate, when it ends, and who was refused and why."""

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from ingest.config.model import ANY_AE_TITLE, Config
from ingest.console.pages.rendering import read_order, read_query, read_snapshot, render, sort_rows
from ingest.console.web import Endpoint, get_console, read_shared
from ingest.operations.callers import Caller, RefusalGroup, list_callers, list_refusals
from ingest.tls.expiry import THRESHOLDS

SOON_DAYS: Final = THRESHOLDS[-1]

CALLERS_MAX: Final = 200
REFUSED_MAX: Final = 8
"""Rows of each group of refusals; the others are counted."""

_COLUMNS: Final[Mapping[str, Any]] = {
    "whose": lambda row: row["whose_text"],
    "subject": lambda row: row["subject"],
    "role": lambda row: row["role"],
    "end": lambda row: row["ends_ms"],
}


async def show_peers(request: Request) -> Response:
    """Show the callers that the configuration allows, and all certificates."""
    config = get_console(request).config
    snapshot = await read_snapshot(request)
    order = read_order(request, _COLUMNS, "end")
    shared = await read_shared(request, snapshot.versions["peers"], _read_callers, config)
    callers, refusals = shared.value
    certificates = [_view_certificate(row) for row in snapshot.status["certificates"]]
    return render(
        request,
        "peers.html",
        "peers",
        peers=_view_peers(config),
        callers=[(caller, _judge_end(caller)) for caller in callers[:CALLERS_MAX]],
        callers_left=max(0, len(callers) - CALLERS_MAX),
        refusals=refusals,
        refused_max=REFUSED_MAX,
        certificates=sort_rows([row for row in certificates if not row["error"]], order, _COLUMNS),
        certificate_errors=[row for row in certificates if row["error"]],
        sort=order,
        query=read_query(request, ("sort",)),
        soon_days=SOON_DAYS,
        version=shared.version,
    )


def _read_callers(config: Config) -> tuple[list[Caller], list[RefusalGroup]]:
    return list_callers(config), list_refusals(config)


def _view_peers(config: Config) -> list[dict[str, Any]]:
    return [
        {
            "ae_title": "every other caller" if peer.ae_title == ANY_AE_TITLE else peer.ae_title,
            "hosts": ", ".join(peer.hosts) or "any",
            "binding": peer.certificate or (f"issuer {peer.issuer}" if peer.issuer else ""),
            "allow": ", ".join(peer.allow),
        }
        for peer in config.peers
    ]


def _judge_end(caller: Caller) -> str:
    """Return the state of a caller's certificate; empty without one."""
    if not caller.not_after_ms:
        return ""
    return _name_state((caller.not_after_ms / 1000 - time.time()) / 86_400)


def _name_state(days: float) -> str:
    return "ended" if days <= 0 else "ends soon" if days <= SOON_DAYS else "valid"


def _view_certificate(row: Mapping[str, Any]) -> dict[str, Any]:
    days = row.get("days_left")
    state = "valid" if days is None else _name_state(days)
    return {
        "error": row.get("error", ""),
        "section": row.get("section", ""),
        "file": row.get("file", ""),
        "role": row.get("role", ""),
        "whose_text": ", ".join(row.get("whose", ())),
        "subject": row.get("subject", ""),
        "sha256": row.get("sha256", ""),
        "ends_ms": datetime.fromisoformat(row["not_after"]).timestamp() * 1000
        if "not_after" in row
        else None,
        "days_left": days,
        "state": state,
    }


ENDPOINTS: Final = (Endpoint("GET", "/peers", show_peers),)
