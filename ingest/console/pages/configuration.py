"""The configuration: what is in force, what a reload would change, checks on demand, and the reload."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from ingest.checks import connect
from ingest.checks.node import check_node
from ingest.config.faults import Fault
from ingest.config.model import Config
from ingest.config.reader import read_notes
from ingest.config.serialization import format_as_toml
from ingest.console.changes import Changes, compare_with_file
from ingest.console.pages.rendering import (
    Question,
    ask,
    go_back,
    leave_notice,
    read_form,
    recording,
    render,
)
from ingest.console.web import Endpoint, get_console, run_blocking, run_for
from ingest.errors import IngestError
from ingest.supervisor import reload_client

CHECK_SECONDS: Final = 120.0
RELOAD_SECONDS: Final = 120.0


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of `check --connect`."""

    answers: Sequence[connect.EchoAnswer]
    faults: Sequence[Fault]


async def show_configuration(request: Request) -> Response:
    """Show the configuration in force, and what a reload would change."""
    return await _render(request, None)


async def _render(request: Request, result: CheckResult | None) -> Response:
    console = get_console(request)
    changes = await run_blocking(request, compare_with_file, console.config, console.path)
    return render(
        request,
        "configuration.html",
        "configuration",
        file=str(console.path),
        text=format_as_toml(console.config),
        changes=_format_changes(changes),
        faults=changes.faults,
        result=result,
    )


def _format_changes(changes: Changes) -> list[dict[str, str]]:
    return [
        {"key": each.key, "before": _format_value(each.before), "after": _format_value(each.after)}
        for each in changes.items
    ]


def _format_value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "" if value is None else str(value)


async def check(request: Request) -> Response:
    """Check everything that the configuration names, with a C-ECHO to each destination."""
    console = get_console(request)
    async with recording(request, "check"):
        result = await run_for(request, CHECK_SECONDS, lambda: _check(console.config, console.path))
    return await _render(request, result)


def _check(config: Config, path: Path) -> CheckResult:
    answers, unreached = connect.check_connections(config)
    faults = [*_read_notes(path), *check_node(config), *unreached]
    return CheckResult(answers, sorted(faults, key=lambda fault: fault.is_note))


def _read_notes(path: Path) -> list[Fault]:
    try:
        return read_notes(path)
    except IngestError:
        return []  # the file in force was read; the page reports the faults of a later one


async def reload(request: Request) -> Response:
    """Ask, and then reload configuration and certificates."""
    console = get_console(request)
    _, confirmed = await read_form(request, ())
    if not confirmed:
        found = await run_blocking(request, compare_with_file, console.config, console.path)
        changes, faults = _format_changes(found), found.faults
        lines = [
            f"{change['key']}: {change['before'] or 'nothing'} becomes {change['after'] or 'nothing'}"
            for change in changes[:12]
        ]
        if len(changes) > 12:
            lines.append(f"and {len(changes) - 12} more")
        question = Question(
            url="/configuration/reload",
            values={},
            question="Reload configuration and certificates?",
            lines=faults
            or lines
            or ["No value has changed. Certificates, keys and revocation lists are read again."],
            label="Reload",
            back="/configuration",
            possible=not faults,
        )
        return ask(request, question, "configuration")
    async with recording(request, "reload"):
        generation = await run_for(
            request, RELOAD_SECONDS, lambda: reload_client.request_reload(console.config)
        )
    leave_notice(request, f"Reloaded: generation {generation} is in force.")
    return go_back("/configuration")


ENDPOINTS: Final = (
    Endpoint("GET", "/configuration", show_configuration),
    Endpoint("POST", "/configuration/check", check),
    Endpoint("POST", "/configuration/reload", reload),
)
