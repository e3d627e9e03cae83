"""List studies, instances and the quarantine."""

import contextlib
from collections.abc import Collection
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final

from ingest.clock import unix_ms
from ingest.config.model import Config
from ingest.ledger import Instance, InstanceState, Ledger
from ingest.ledger.index import FoundInstance, FoundStudy, InstanceFilter
from ingest.operations.times import format_iso_time

STUDY_FIELDS: Final = tuple(field.name for field in fields(FoundStudy))
"""Names of the fields of `study_to_json`."""

_ROW_FIELDS: Final = ("id", *(field.name for field in fields(Instance) if field.name != "id"))
INSTANCE_FIELDS: Final = (*_ROW_FIELDS, "deliveries")
"""Names of the fields of `instance_to_json`."""

QUARANTINE_FIELDS: Final = (*_ROW_FIELDS, "kind", "file")
"""Names of the fields of `quarantined_to_json`."""


def list_studies(
    config: Config, which: InstanceFilter, limit: int, *, stable: bool | None
) -> list[FoundStudy]:
    """Return studies, the one with the newest instance first; with `stable`, only stable or unstable ones."""
    stable_since_ms = unix_ms() - config.node.stable_seconds * 1000
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        return ledger.index.find_studies(which, limit, lately=stable_since_ms, stable=stable)


def list_instances(
    config: Config, which: InstanceFilter, limit: int, before: int | None
) -> list[FoundInstance]:
    """Return instances, the newest first."""
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        return ledger.index.find_instances(which, limit, before=before)


def name_quarantine_kind(row: Instance) -> str:
    """Return "refused" if the sender knows that the instance is not stored, otherwise "conflict"."""
    return "refused" if row.refused_status else "conflict"


def study_to_json(study: FoundStudy) -> dict[str, Any]:
    """Return the values of a study for JSON."""
    times = {name: format_iso_time(getattr(study, name)) for name in ("first_at", "last_at")}
    return asdict(study) | times


def instance_to_json(found: FoundInstance) -> dict[str, Any]:
    """Return the values of an instance, with the state of each delivery, for JSON."""
    return {**_row_to_json(found.instance), "deliveries": dict(found.deliveries)}


def quarantined_to_json(row: Instance, folder: Path) -> dict[str, Any]:
    """Return the values of an instance in quarantine for JSON; `folder` is that of the quarantine."""
    return {**_row_to_json(row), "kind": name_quarantine_kind(row), "file": str(folder / row.store_key)}


def _row_to_json(row: Instance) -> dict[str, Any]:
    times = {name: format_iso_time(getattr(row, name)) for name in ("received_at", "stored_at")}
    return {"id": row.id} | asdict(row) | times


def count_quarantined(config: Config, ids: Collection[int]) -> int:
    """Return how many of these instances are in quarantine."""
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        ledger.require_schema()
        rows = ledger.instances.find_by_ids(set(ids)).values()
    return sum(row.state is InstanceState.QUARANTINED for row in rows)
