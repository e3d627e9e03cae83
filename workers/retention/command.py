"""`ingest retention`: one retention run, or a list of the studies that it would remove."""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from rich.console import Console
from rich.filesize import decimal

from ingest.cli._delivery_tables import iso_time
from ingest.cli.tables import local_time, show
from ingest.config.model import Config
from ingest.errors import ClockJumpError
from ingest.ledger import Ledger
from ingest.workers.retention.policy import RetentionDecision
from ingest.workers.retention.remover import Remover, RetentionClock, RetentionReport

SHOWN: Final = 50
"""Studies that are printed for a person."""


def run_retention(config: Config, *, dry_run: bool, as_json: bool, accept_clock: bool = False) -> int:
    """Run retention once, or list what it would remove. Prints the result, and returns the exit code.

    Args:
        config: The configuration.
        dry_run: Whether to list only.
        as_json: Whether to print JSON.
        accept_clock: Whether a person confirms a clock that jumped ahead.

    Raises:
        ClockJumpError: The clock has jumped ahead.
        RetentionBusyError: Another process runs retention on this store.
        LedgerError: The ledger is away, or of another schema version.
        StoreError: The store is not there.
    """
    console = Console(highlight=False, soft_wrap=as_json)
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        ledger.require_schema()
        jump_ms = 0 if dry_run else RetentionClock(config, ledger).check(accept=accept_clock)
        if jump_ms:
            hours = jump_ms / 3_600_000
            raise ClockJumpError(
                f"the clock is {hours:.0f} hours ahead of what is plausible: nothing was removed; "
                "correct it, or if it is right use --accept-clock"
            )
        remover = Remover(config, ledger)
        if dry_run:
            plan, stored_bytes = list(remover.plan()), ledger.retention.sum_stored_bytes()
        else:
            report = remover.run()
            stored_bytes = ledger.retention.sum_stored_bytes()
    if dry_run:
        _print_plan(console, config, plan, stored_bytes, as_json=as_json)
    else:
        _print_report(console, report, stored_bytes, as_json=as_json)
    return 0


def _print_plan(
    console: Console, config: Config, plan: Sequence[RetentionDecision], stored_bytes: int, *, as_json: bool
) -> None:
    removable = [decision for decision in plan if decision.is_removable]
    held_back = [decision for decision in plan if not decision.is_removable]
    left_bytes = stored_bytes - sum(decision.study.size for decision in removable)
    if as_json:
        plain = {
            "go": [_to_json(decision) for decision in removable],
            "held": [_to_json(decision) for decision in held_back],
        }
        console.print(
            json.dumps({**plain, "kept_bytes": stored_bytes, "left_bytes": left_bytes}), markup=False
        )
        return
    if not config.retention.needs_remover:
        console.print("\\[retention] is not set: nothing is ever removed")
        return
    for label, decisions in (
        ("would go", removable),
        ("held back, since a destination is owed them", held_back),
    ):
        if decisions:
            console.print(f"{label}: {_describe_total(decisions)}")
            _print_studies(decisions)
            if len(decisions) > SHOWN:
                console.print(f"and {len(decisions) - SHOWN} more; --json names all")
    console.print(f"{decimal(stored_bytes)} in the store, {decimal(left_bytes)} would be left")
    if config.retention.refuses_when_full and left_bytes >= config.retention.max_bytes > 0:
        limit = decimal(config.retention.max_bytes)
        console.print(f"nothing goes for max_bytes, {limit}: what comes is refused until there is room")


def _describe_total(decisions: Sequence[RetentionDecision]) -> str:
    count = sum(decision.study.instances for decision in decisions)
    size = sum(decision.study.size for decision in decisions)
    return f"{len(decisions)} studies, {count} instances, {decimal(size)}"


def _print_studies(decisions: Sequence[RetentionDecision]) -> None:
    show(
        ("study", "last instance", "instances", "owed", "bytes", "why"),
        [
            (
                decision.study.study_uid or "(none)",
                local_time(decision.study.newest_at),
                str(decision.study.instances),
                str(decision.study.owed),
                str(decision.study.size),
                decision.reason.value,
            )
            for decision in decisions[:SHOWN]
        ],
    )


def _to_json(decision: RetentionDecision) -> dict[str, Any]:
    return {
        **asdict(decision.study),
        "newest_at": iso_time(decision.study.newest_at),
        "reason": decision.reason.value,
    }


def _print_report(console: Console, report: RetentionReport, stored_bytes: int, *, as_json: bool) -> None:
    if as_json:
        console.print(json.dumps({**asdict(report), "kept_bytes": stored_bytes}), markup=False)
        return
    console.print(
        f"removed {report.studies} studies, {report.instances} instances, {decimal(report.size)}; "
        f"{decimal(stored_bytes)} left"
    )
    if report.held:
        console.print(
            f"held back {report.held} studies, {decimal(report.held_size)}, that destinations are owed"
        )
    if report.forgotten:
        console.print(f"forgot {report.forgotten} rows of the ledger")
