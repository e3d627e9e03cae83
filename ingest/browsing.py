"""`ingest studies`, `instances` and `quarantine list`: what was received, and what became of it."""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from ingest.config.model import Config
from ingest.ledger import Instance, InstanceState, Ledger
from ingest.ledger.browse import FoundInstance, FoundStudy, InstanceFilter
from ingest.listing import iso_time


def list_instances(
    config: Config, which: InstanceFilter, limit: int, before: int | None, *, as_json: bool
) -> int:
    """Print instances, the newest first; as JSON one object a line. Returns the exit code."""
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        found = ledger.find_instances(which, limit, before=before)
    if as_json:
        _print_lines({**_plain(one.instance), "deliveries": dict(one.deliveries)} for one in found)
    else:
        _print_page(_instances(found), [one.instance for one in found], limit)
    return 0


def list_quarantine(
    config: Config, which: InstanceFilter, limit: int, before: int | None, *, as_json: bool
) -> int:
    """Print what is in quarantine, likewise."""
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        found = [one.instance for one in ledger.find_instances(which, limit, before=before)]
    if as_json:
        _print_lines(
            {**_plain(row), "kind": _kind(row), "file": str(config.quarantine_dir / row.store_key)}
            for row in found
        )
    else:
        _print_page(_quarantine(found), found, limit)
    return 0


def list_studies(
    config: Config, which: InstanceFilter, limit: int, *, stable: bool | None, as_json: bool
) -> int:
    """Print studies, likewise; `stable` means only those that are, or are not."""
    lately = time.time_ns() // 1_000_000 - config.node.stable_seconds * 1000
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        found = ledger.find_studies(which, limit, lately=lately, stable=stable)
    if as_json:
        _print_lines(
            asdict(one) | {name: iso_time(getattr(one, name)) for name in ("first_at", "last_at")}
            for one in found
        )
        return 0
    console = Console(highlight=False)
    console.print(_studies(found))
    if len(found) == limit:
        console.print("more: --limit, or --until")
    return 0


def _print_lines(objects: Iterator[Mapping[str, Any]]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for one in objects:
        console.print(json.dumps(one), markup=False)


def _print_page(table: Table, rows: Sequence[Instance], limit: int) -> None:
    console = Console(highlight=False)
    console.print(table)
    if len(rows) == limit:
        console.print(f"more: --before {rows[-1].id}, or --limit")


def _plain(row: Instance) -> dict[str, Any]:
    return asdict(row) | {name: iso_time(getattr(row, name)) for name in ("received_at", "stored_at")}


def _kind(row: Instance) -> str:
    """Whether its sender knows that it is not stored."""
    return "refused" if row.refused_status else "conflict"


def _instances(found: Sequence[FoundInstance]) -> Table:
    columns = (
        "id",
        "state",
        "SOP instance",
        "study",
        "size",
        "received",
        "from",
        "routed",
        "deliveries",
        "note",
    )
    table = Table(*columns)
    for one in found:
        row = one.instance
        table.add_row(
            str(row.id),
            row.state.value,
            *map(escape, (row.sop_instance_uid, row.study_uid)),
            decimal(row.size),
            iso_time(row.received_at) or "",
            *map(escape, (row.calling_ae, row.routed)),
            escape(", ".join(f"{name} {state.value}" for name, state in one.deliveries.items())),
            escape(row.note),
        )
    return table


def _quarantine(found: Sequence[Instance]) -> Table:
    table = Table("id", "kind", "times", "SOP instance", "study", "reason", "size", "received", "file")
    for row in found:
        table.add_row(
            str(row.id),
            _kind(row),
            str(row.times),
            *map(escape, (row.sop_instance_uid, row.study_uid, row.note)),
            decimal(row.size),
            iso_time(row.received_at) or "",
            escape(row.store_key),
        )
    return table


def _studies(found: Sequence[FoundStudy]) -> Table:
    table = Table(
        "study", "stored", "others", "size", "first received", "last received", "stable", "deliveries"
    )
    for one in found:
        others = {state: count for state, count in one.states.items() if state is not InstanceState.STORED}
        table.add_row(
            escape(one.study_uid) or "(none)",
            str(one.instances),
            ", ".join(filter(None, (f"copies {one.copies}" if one.copies else "", _counted(others)))),
            decimal(one.size),
            iso_time(one.first_at) or "",
            iso_time(one.last_at) or "",
            "yes" if one.stable else "no",
            _counted(one.deliveries),
        )
    return table


def _counted(counts: Mapping[Any, int]) -> str:
    return ", ".join(f"{state.value} {count}" for state, count in sorted(counts.items()))
