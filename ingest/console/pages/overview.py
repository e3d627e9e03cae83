"""The overview: alarms, the picture of the flow, charts, listeners, free space, and the live stream."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ingest.console.events import open_stream
from ingest.console.live import flow
from ingest.console.live.parts import PartsEncoder
from ingest.console.live.snapshot import Snapshot
from ingest.console.pages.rendering import read_snapshot, render
from ingest.console.problems import ProblemError
from ingest.console.web import Endpoint, get_console, read_shared
from ingest.operations.charts import SPANS, Charts, Column, show_charts
from ingest.status.verdict import MAX_QUEUE_SECONDS

PARTS: Final = ("alarms", "vitals", "flow", "way", "disks")
"""Parts of the page that change while it is open; each has a template of its name in `parts/`."""

CHARTS_SECONDS: Final = 10.0
"""Viewers share the series of charts for this time; the monitor takes a sample every 20 s."""

LOW_SHARE: Final = 0.1
"""A disk with less free space is marked, before anything is refused."""


CHARTS: Final = (
    ("throughput", "Throughput", "instances per second"),
    ("backlog", "What waits", "instances"),
    ("receiving", "Time to receive and commit", "median and 99th percentile"),
    ("delivering", "Time to store and deliver", "median and 99th percentile"),
)
"""Key, title and unit of each chart."""

_SERIES: Final[Mapping[str, tuple[str, Sequence[tuple[str, str]]]]] = {
    "throughput": (
        "/s",
        (
            ("received_per_second", "Received"),
            ("delivered_per_second", "Delivered"),
            ("refused_per_second", "Refused"),
        ),
    ),
    "backlog": (
        "",
        (("spool_entries", "In the spool"), ("queue_entries", "In the queue"), ("backlog", "To deliver")),
    ),
    "receiving": (
        "s",
        (
            ("receive_p50_seconds", "Receive, median"),
            ("receive_p99_seconds", "Receive, p99"),
            ("commit_p99_seconds", "Commit, p99"),
        ),
    ),
    "delivering": (
        "s",
        (
            ("queue_p50_seconds", "Store, median"),
            ("queue_p99_seconds", "Store, p99"),
            ("delivery_p99_seconds", "Deliver, p99"),
        ),
    ),
}


async def show_overview(request: Request) -> Response:
    """Show the overview."""
    snapshot = await read_snapshot(request)
    return render(request, "overview.html", "overview", charts=CHARTS, **view_snapshot(snapshot))


def view_snapshot(snapshot: Snapshot) -> dict[str, Any]:
    """Return what the parts of the page show."""
    status = snapshot.status
    picture = flow.read_flow(
        status, snapshot.senders, snapshot.received_per_second, snapshot.stored_per_second
    )
    destinations = status["ledger"].get("destinations", ())
    ages = [
        row["oldest_seconds"] for row in destinations if row["backlog"] and row["oldest_seconds"] is not None
    ]
    oldest = max(ages, default=None)
    return {
        "status": status,
        "received": snapshot.received_per_second,
        "bytes_rate": snapshot.bytes_per_second,
        "active": sum(row["active"] for row in status["listeners"]),
        "queue_seconds": status["queue"].get("oldest_seconds"),
        "late": status["queue"].get("oldest_seconds", 0) >= MAX_QUEUE_SECONDS,
        "backlog": sum(row["backlog"] for row in destinations),
        "oldest_delivery": oldest,
        "waiting_is_old": oldest is not None and oldest >= flow.OLD_SECONDS,
        "dead": snapshot.dead,
        "quarantined": snapshot.quarantined,
        "disks": view_disks(status["disks"]),
        "flow_wide": flow.draw_wide(picture),
        "flow_tall": flow.draw_tall(picture),
    }


def view_disks(disks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the disks with the share that is used. Folders on one file system are one row."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for disk in disks:
        free, total = disk.get("free_bytes", 0), disk.get("total_bytes", 0)
        # Two folders may differ by a block between two calls.
        key = (total, free >> 20, disk.get("error", ""))
        row = rows.get(key)
        if row is None:
            rows[key] = {**_judge_disk(disk), "uses": disk["use"]}
        else:
            row["uses"] += f", {disk['use']}"
    return list(rows.values())


def _judge_disk(disk: Mapping[str, Any]) -> dict[str, Any]:
    free, total, bound = disk.get("free_bytes", 0), disk.get("total_bytes", 0), disk["refuses_below"]
    kind, words = "ok", ""
    if free <= bound:
        kind, words = "fail", "full: instances are refused"
    elif free < 2 * bound or (total and free < LOW_SHARE * total):
        kind, words = "warn", "nearly full"
    return {
        "path": disk["path"],
        "error": disk.get("error", ""),
        "free_bytes": free,
        "total_bytes": total,
        "used": (total - free) / total if total else 0.0,
        "kind": kind,
        "words": words,
    }


async def read_chart_series(request: Request) -> Response:
    """Return the series of all charts for the last hour or day."""
    span = request.query_params.get("range", "hour")
    if span not in SPANS:
        raise ProblemError(422, "there is no such range", f"ask for one of {', '.join(SPANS)}")
    version = str(int(time.time() // CHARTS_SECONDS))
    charts = (await read_shared(request, version, show_charts, get_console(request).config, span)).value
    return JSONResponse({"times": charts.times, **{key: _view_chart(charts, key) for key in _SERIES}})


def _view_chart(charts: Charts, key: str) -> dict[str, Any]:
    unit, names = _SERIES[key]
    nothing: Column = [None] * len(charts.times)
    series = [{"label": label, "values": charts.series.get(name, nothing)} for name, label in names]
    return {"unit": unit, "series": series}


async def stream_parts(request: Request) -> Response:
    """Stream the parts of a page that have changed. One snapshot serves all browsers."""
    return open_stream(
        request, PartsEncoder(PARTS if request.query_params.get("page") == "overview" else ()).encode
    )


ENDPOINTS: Final = (
    Endpoint("GET", "/", show_overview),
    Endpoint("GET", "/overview/charts", read_chart_series),
    Endpoint("GET", "/events", stream_parts),
)
