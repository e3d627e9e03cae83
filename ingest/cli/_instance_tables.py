"""`ingest studies`, `instances` and `quarantine list`: what was received, and what became of it."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.filesize import decimal

from ingest.cli._delivery_tables import iso_time
from ingest.cli.tables import local_time, print_line, show
from ingest.clock import unix_ms
from ingest.config.model import Config
from ingest.ledger import Instance, InstanceState, Ledger
from ingest.ledger.index import FoundInstance, FoundStudy, InstanceFilter


def list_instances(
    config: Config, which: InstanceFilter, limit: int, before: int | None, *, as_json: bool
) -> int:
    """Print instances, the newest first; as JSON one object a line. Returns the exit code."""
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        found = ledger.index.find_instances(which, limit, before=before)
    if as_json:
        _print_lines({**_plain(one.instance), "deliveries": dict(one.deliveries)} for one in found)
    else:
        _instances(found)
        _say_more([one.instance for one in found], limit)
    return 0


def list_quarantine(
    config: Config, which: InstanceFilter, limit: int, before: int | None, *, as_json: bool
) -> int:
    """Print what is in quarantine, likewise."""
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        found = [one.instance for one in ledger.index.find_instances(which, limit, before=before)]
    if as_json:
        _print_lines(
            {**_plain(row), "kind": _kind(row), "file": str(config.quarantine_dir / row.store_key)}
            for row in found
        )
    else:
        _quarantine(found)
        _say_more(found, limit)
    return 0


def list_studies(
    config: Config, which: InstanceFilter, limit: int, *, stable: bool | None, as_json: bool
) -> int:
    """Print studies, likewise; `stable` means only those that are, or are not."""
    lately = unix_ms() - config.node.stable_seconds * 1000
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        found = ledger.index.find_studies(which, limit, lately=lately, stable=stable)
    if as_json:
        _print_lines(
            asdict(one) | {name: iso_time(getattr(one, name)) for name in ("first_at", "last_at")}
            for one in found
        )
        return 0
    _studies(found)
    if len(found) == limit:
        print_line("more: --limit, or --until")
    return 0


def _print_lines(objects: Iterator[Mapping[str, Any]]) -> None:
    for one in objects:
        print_line(json.dumps(one))


def _say_more(rows: Sequence[Instance], limit: int) -> None:
    if len(rows) == limit:
        print_line(f"more: --before {rows[-1].id}, or --limit")


def _plain(row: Instance) -> dict[str, Any]:
    return asdict(row) | {name: iso_time(getattr(row, name)) for name in ("received_at", "stored_at")}


def _kind(row: Instance) -> str:
    """Whether its sender knows that it is not stored."""
    return "refused" if row.refused_status else "conflict"


def _instances(found: Sequence[FoundInstance]) -> None:
    show(
        (
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
        ),
        [
            (
                str(one.instance.id),
                one.instance.state.value,
                one.instance.sop_instance_uid,
                one.instance.study_uid,
                decimal(one.instance.size),
                local_time(one.instance.received_at),
                one.instance.calling_ae,
                one.instance.routed,
                ", ".join(f"{name} {state.value}" for name, state in one.deliveries.items()),
                one.instance.note,
            )
            for one in found
        ],
    )


def _quarantine(found: Sequence[Instance]) -> None:
    show(
        ("id", "kind", "times", "SOP instance", "study", "reason", "size", "received", "file"),
        [
            (
                str(row.id),
                _kind(row),
                str(row.times),
                row.sop_instance_uid,
                row.study_uid,
                row.note,
                decimal(row.size),
                local_time(row.received_at),
                row.store_key,
            )
            for row in found
        ],
    )


def _studies(found: Sequence[FoundStudy]) -> None:
    show(
        ("study", "stored", "others", "size", "first received", "last received", "stable", "deliveries"),
        [
            (
                one.study_uid or "(none)",
                str(one.instances),
                _others(one),
                decimal(one.size),
                local_time(one.first_at),
                local_time(one.last_at),
                "yes" if one.stable else "no",
                _counted(one.deliveries),
            )
            for one in found
        ],
    )


def _others(one: FoundStudy) -> str:
    others = {state: count for state, count in one.states.items() if state is not InstanceState.STORED}
    return ", ".join(filter(None, (f"copies {one.copies}" if one.copies else "", _counted(others))))


def _counted(counts: Mapping[Any, int]) -> str:
    return ", ".join(f"{state.value} {count}" for state, count in sorted(counts.items()))
