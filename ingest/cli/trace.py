"""The command `ingest trace`: the way of a study or an instance, event by event."""

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from ingest.cli import _options as options
from ingest.cli._base import config_option, load_config
from ingest.cli._tables import escape_controls, find_width, format_count, format_local_time, print_line

if TYPE_CHECKING:
    from ingest.operations.trace import Trace
    from ingest.operations.trace_events import TraceEvent
    from ingest.operations.trace_steps import NextStep

INDENT: Final = "    "


@click.command()
@config_option
@click.argument("wanted", metavar="UID|ACCESSION")
@options.json_option
def trace(path: Path, wanted: str, as_json: bool) -> None:
    """Show the way of a study or an instance, and the next step.

    \b
    ingest trace -c ingest.toml 1.2.840.113619.2.55.3
    ingest trace -c ingest.toml A12345 --json

    Give a Study, Series or SOP Instance UID, or an accession number if `[ledger] index` has them. The
    timeline begins with the reception: from whom, and with which certificate. Then come store, routes, and
    each attempt to each destination with its answer. Instances that only the spool has are found, too. Exits
    with 1 if neither ledger nor spool knows it.
    """
    from ingest.operations.trace import trace as find_trace

    found = find_trace(load_config(path), wanted)
    if as_json:
        print_line(json.dumps(found.to_json()))
        return
    for line in lay_out_trace(found, find_width()):
        print_line(line)


def lay_out_trace(found: "Trace", width: int | None) -> Iterator[str]:
    """Lay out a trace as lines. Without a terminal (no width) each event is one line.

    Args:
        found: The trace.
        width: Width of the terminal in cells; None if the output is not a terminal.
    """
    yield f"{found.kind} {escape_controls(found.wanted)}"
    for uid in found.study_uids:
        if uid != found.wanted:
            yield f"study {escape_controls(uid) or '(none)'}"
    yield _count_instances(found)
    for note in found.notes:
        yield f"note: {note}"
    yield ""
    for event in found.events:
        yield from _wrap(_head_event(event), event.text, event.remedy, width)
    if found.next_steps:
        yield ""
        yield "Next"
        for step in found.next_steps:
            yield from _wrap(_head_step(step), _describe_step(step), step.remedy, width)
    if found.certificates:
        yield ""
        yield "Caller certificates"
        for certificate in found.certificates.values():
            until = format_local_time(certificate.not_after)
            yield from _wrap(
                certificate.fingerprint, f"{certificate.subject}, valid until {until}", "", width
            )
    if found.kind != "instance":
        yield ""
        yield from _wrap("Instances", f"see `ingest instances --study {found.study_uids[0]}`", "", width)


def _count_instances(found: "Trace") -> str:
    states: dict[str, int] = {}
    for each in found.instances:
        states[each.instance.state.value] = states.get(each.instance.state.value, 0) + 1
    parts = [f"{count} {state}" for state, count in states.items()]
    if found.waiting:
        parts.append(f"{len(found.waiting)} in the spool")
    total = len(found.instances) + len(found.waiting)
    return f"{format_count(total, 'instance')}: {', '.join(parts)}"


def _head_event(event: "TraceEvent") -> str:
    parts = [format_local_time(event.at_ms) or "time not recorded", event.kind.value]
    if event.destination:
        parts.append(event.destination)
    if event.count > 1:
        parts.append(f"{event.count} times, until {format_local_time(event.last_ms)}")
    if event.duration_ms is not None:
        parts.append(f"{'up to ' if event.count > 1 else ''}{event.duration_ms} ms")
    return "  ".join(parts)


def _head_step(step: "NextStep") -> str:
    parts = [step.destination or "here"]
    if step.count > 1:
        parts.append(f"{step.count} instances")
    return "  ".join(parts)


def _describe_step(step: "NextStep") -> str:
    text = step.text
    if step.at_ms:
        text += f" at {format_local_time(step.at_ms)}"
    if step.since_ms:
        text += f" (since {format_local_time(step.since_ms)})"
    return text


def _wrap(head: str, text: str, remedy: str, width: int | None) -> Iterator[str]:
    """Yield the lines of one event. A word that is wider than the terminal stays whole."""
    head, text, remedy = map(escape_controls, (head, text, remedy))
    rest = [part for part in (text, f"remedy: {remedy}" if remedy else "") if part]
    if width is None:
        yield "  ".join([head, *rest])
        return
    yield from _fill(head, "", width)
    for part in rest:
        yield from _fill(part, INDENT, width)


def _fill(text: str, indent: str, width: int) -> Iterator[str]:
    yield from textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=f"{indent}{INDENT}",
        break_long_words=False,
        break_on_hyphens=False,
    )
