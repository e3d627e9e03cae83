"""`ingest retention`: one pass of the remover, or what it would do."""

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
from ingest.workers.retention.policy import Decision
from ingest.workers.retention.remover import Ageing, Remover, Report

SHOWN: Final = 50
"""How many studies a person is shown."""


def run(config: Config, *, dry_run: bool, as_json: bool, accept_clock: bool = False) -> int:
    """Remove once, or say what would go; prints it and returns the exit code.

    Args:
        config: The configuration.
        dry_run: Whether only to say.
        as_json: Whether to print for programs.
        accept_clock: Whether a person says that the clock is right although it jumped ahead.

    Raises:
        ClockJumpError: The clock has jumped ahead.
        RetentionBusyError: Another process removes from this store.
        LedgerError: The ledger is away, or of another schema version.
        StoreError: The store is not there.
    """
    console = Console(highlight=False, soft_wrap=as_json)
    with contextlib.closing(Ledger(config.ledger_url)) as ledger:
        ledger.require_schema()
        ahead = 0 if dry_run else Ageing(config, ledger).look(accept=accept_clock)
        if ahead:
            hours = ahead / 3_600_000
            raise ClockJumpError(
                f"the clock is {hours:.0f} hours ahead of what is plausible: nothing was removed; "
                "correct it, or say --accept-clock where it is right"
            )
        remover = Remover(config, ledger)
        if dry_run:
            found, kept = list(remover.decisions()), ledger.retention.sum_stored_bytes()
        else:
            report = remover.remove()
            kept = ledger.retention.sum_stored_bytes()
    if dry_run:
        _show_plan(console, config, found, kept, as_json=as_json)
    else:
        _show_report(console, report, kept, as_json=as_json)
    return 0


def _show_plan(
    console: Console, config: Config, found: Sequence[Decision], kept: int, *, as_json: bool
) -> None:
    going = [one for one in found if one.goes]
    held = [one for one in found if not one.goes]
    left = kept - sum(one.study.size for one in going)
    if as_json:
        plain = {"go": [_plain(one) for one in going], "held": [_plain(one) for one in held]}
        console.print(json.dumps({**plain, "kept_bytes": kept, "left_bytes": left}), markup=False)
        return
    if not config.retention.needs_remover:
        console.print("\\[retention] is not set: nothing is ever removed")
        return
    for label, decisions in (("would go", going), ("held back, since a destination is owed them", held)):
        if decisions:
            console.print(f"{label}: {_sum(decisions)}")
            _show(decisions)
            if len(decisions) > SHOWN:
                console.print(f"and {len(decisions) - SHOWN} more; --json names all")
    console.print(f"{decimal(kept)} in the store, {decimal(left)} would be left")
    if config.retention.refuses_when_full and left >= config.retention.max_bytes > 0:
        limit = decimal(config.retention.max_bytes)
        console.print(f"nothing goes for max_bytes, {limit}: what comes is refused until there is room")


def _sum(decisions: Sequence[Decision]) -> str:
    count = sum(one.study.instances for one in decisions)
    size = sum(one.study.size for one in decisions)
    return f"{len(decisions)} studies, {count} instances, {decimal(size)}"


def _show(decisions: Sequence[Decision]) -> None:
    show(
        ("study", "last instance", "instances", "owed", "bytes", "why"),
        [
            (
                one.study.study_uid or "(none)",
                local_time(one.study.newest_at),
                str(one.study.instances),
                str(one.study.owed),
                str(one.study.size),
                one.reason.value,
            )
            for one in decisions[:SHOWN]
        ],
    )


def _plain(one: Decision) -> dict[str, Any]:
    return {
        **asdict(one.study),
        "newest_at": iso_time(one.study.newest_at),
        "reason": one.reason.value,
    }


def _show_report(console: Console, report: Report, kept: int, *, as_json: bool) -> None:
    if as_json:
        console.print(json.dumps({**asdict(report), "kept_bytes": kept}), markup=False)
        return
    console.print(
        f"removed {report.studies} studies, {report.instances} instances, {decimal(report.size)}; "
        f"{decimal(kept)} left"
    )
    if report.held:
        console.print(
            f"held back {report.held} studies, {decimal(report.held_size)}, that destinations are owed"
        )
    if report.forgotten:
        console.print(f"forgot {report.forgotten} rows of the ledger")
