"""Completions of studies and series, for lists of the command line and the API."""

import contextlib
from typing import Any, Final

from ingest.config.model import Config
from ingest.ledger import Ledger
from ingest.ledger.receptions import CompletionEvent
from ingest.operations.times import format_iso_time

COMPLETION_FIELDS: Final = (
    *("id", "study_uid", "series_uid", "generation", "event", "at", "instances"),
    *("first_stored_at", "last_stored_at"),
)
"""Fields of the list in JSON and CSV; docs/reference/lists.md describes them."""


def list_completions(
    config: Config, limit: int = 100, study_uid: str | None = None, before: int | None = None
) -> list[CompletionEvent]:
    """Return completions of studies and series, and when complete ones were reopened, the newest first.

    Args:
        config: The configuration.
        limit: Maximum number of events.
        study_uid: Only events of this study; None for all.
        before: The last id of the previous page.

    Raises:
        LedgerError: The ledger is unavailable.
    """
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        ledger.require_schema()
        return ledger.receptions.list_events(limit, study_uid=study_uid, before=before)


def completion_to_json(one: CompletionEvent) -> dict[str, Any]:
    """Return an event as values for JSON."""
    return {
        "id": one.id,
        "study_uid": one.study_uid,
        "series_uid": one.series_uid,
        "generation": one.generation,
        "event": one.event,
        "at": format_iso_time(one.at),
        "instances": one.instances,
        "first_stored_at": format_iso_time(one.first_at),
        "last_stored_at": format_iso_time(one.last_at),
    }
