"""The picture of the flow: senders, listeners, spool, queue, store, destinations, and a rate on each edge.

`read_flow` takes the values from a snapshot. `draw_wide` and `draw_tall` place them. All three are pure.
The template only writes the shapes as SVG.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ingest.console.formatting import format_bytes, format_count, format_rate, format_relative, format_seconds
from ingest.ledger.circuits import CircuitState
from ingest.status.states import ListenerState
from ingest.status.verdict import MAX_QUEUE_SECONDS

SHOWN_MAX: Final = 8
"""Senders or destinations in the picture. One further box stands for the others."""

OLD_SECONDS: Final = 300.0
"""A delivery that waits longer colours its edge."""

WIDE_WIDTH: Final = 1010
TALL_WIDTH: Final = 360

_COLUMNS: Final = {"listeners": (234, 98), "spool": (386, 86), "queue": (526, 86), "store": (666, 86)}
_SENDER_WIDTH: Final = 138
LABEL_WIDTH: Final = 44
_DESTINATION_X: Final = 858
_TOP: Final = 26


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowNode:
    """A box of the picture and the edge that leads to it; for a sender, the edge that leaves it.

    Attributes:
        title: Name of the box.
        value: The most important number, or empty.
        detail: A few words about the state.
        kind: Kind of the state: ok, warn, fail or idle.
        href: Page with more about it.
        rate: Instances per second on the edge; None if unknown.
        age: Words about the age of the backlog on the edge, or empty.
        edge: Kind of the edge: "", "warn" or "fail".
    """

    title: str
    detail: str
    kind: str
    href: str
    value: str = ""
    rate: float | None = None
    age: str = ""
    edge: str = ""


@dataclass(frozen=True, slots=True)
class Flow:
    """Everything that the picture shows, in the order of the way of an instance."""

    senders: Sequence[FlowNode]
    stages: Mapping[str, FlowNode]
    destinations: Sequence[FlowNode]


@dataclass(frozen=True, slots=True)
class Label:
    """A text of the picture: place, CSS class and anchor."""

    x: float
    y: float
    text: str
    style: str
    anchor: str = "start"


@dataclass(frozen=True, slots=True)
class Box:
    """A box with its texts."""

    x: float
    y: float
    width: float
    height: float
    node: FlowNode
    labels: Sequence[Label]


@dataclass(frozen=True, slots=True)
class Edge:
    """A line between two boxes with its width in pixels."""

    path: str
    style: str
    width: float


@dataclass(slots=True)
class Drawing:
    """The shapes of one picture."""

    width: int
    height: int = 0
    boxes: list[Box] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)


# --- values


def read_flow(
    status: Mapping[str, Any], senders: Sequence[FlowNode], received: float | None, stored: float | None
) -> Flow:
    """Return what the picture shows.

    Args:
        status: The status from `ingest.status.report.gather_status`.
        senders: The senders, the busiest first.
        received: Instances received per second; None if unknown.
        stored: Instances stored per second; None if unknown.
    """
    stages = {
        "listeners": _read_listeners(status, received),
        "spool": _read_spool(status, received),
        "queue": _read_queue(status, received),
        "store": _read_store(status, stored),
    }
    destinations = [_read_destination(row) for row in status["ledger"].get("destinations", ())]
    # What fails comes first, so that the box for the others hides nothing that matters.
    destinations.sort(key=lambda node: {"fail": 0, "warn": 1}.get(node.kind, 2))
    return Flow(
        _fold(senders, "senders", "/peers"), stages, _fold(destinations, "destinations", "/deliveries")
    )


def _fold(nodes: Sequence[FlowNode], what: str, href: str) -> list[FlowNode]:
    if len(nodes) <= SHOWN_MAX:
        return list(nodes)
    shown, others = list(nodes[: SHOWN_MAX - 1]), nodes[SHOWN_MAX - 1 :]
    rates = [node.rate for node in others if node.rate is not None]
    rest = FlowNode(
        title=f"{len(others)} more {what}",
        detail="all well" if all(node.kind in {"ok", "idle"} for node in others) else "some need a look",
        kind="warn" if any(node.kind in {"warn", "fail"} for node in others) else "idle",
        href=href,
        rate=sum(rates) if rates else None,
    )
    return [*shown, rest]


def _read_listeners(status: Mapping[str, Any], received: float | None) -> FlowNode:
    rows = status["listeners"]
    accepting = sum(row["state"] == ListenerState.ACCEPTING for row in rows)
    silent = sum(row["state"] == ListenerState.SILENT for row in rows)
    kind = "ok" if accepting and not silent else "fail" if not accepting else "warn"
    return FlowNode(
        title="Listeners",
        value=format_count(sum(row["active"] for row in rows)),
        detail="associations" if accepting else "none accepts",
        kind=kind,
        href="/#receiving",
        rate=received,
    )


def _read_spool(status: Mapping[str, Any], received: float | None) -> FlowNode:
    spool = status["spool"]
    if "error" in spool:
        return FlowNode(title="Spool", detail="cannot be read", kind="fail", href="/#way", rate=received)
    oldest = spool["oldest_seconds"]
    return FlowNode(
        title="Spool",
        value=compact_count(spool["waiting"]),
        detail=format_bytes(spool["bytes"]),
        kind="ok",
        href="/#way",
        rate=received,
        age="" if oldest is None else format_seconds(oldest),
    )


def _read_queue(status: Mapping[str, Any], received: float | None) -> FlowNode:
    queue = status["queue"]
    if not queue["reachable"]:
        return FlowNode(title="Queue", detail="away", kind="fail", href="/#way", edge="fail")
    oldest = queue["oldest_seconds"]
    is_late = oldest >= MAX_QUEUE_SECONDS
    return FlowNode(
        title="Queue",
        value=compact_count(queue["references"]),
        detail="references",
        kind="warn" if is_late else "ok",
        href="/#way",
        rate=received,
        age=format_seconds(oldest) if oldest else "",
        edge="warn" if is_late else "",
    )


def _read_store(status: Mapping[str, Any], stored: float | None) -> FlowNode:
    ledger, full = status["ledger"], status["store"]["full"]
    if not ledger["reachable"] or ledger["read_only"]:
        return FlowNode(title="Store", detail="ledger is away", kind="fail", href="/#way", edge="fail")
    oldest = status["queue"].get("oldest_seconds", 0)
    return FlowNode(
        title="Store",
        value=compact_count(ledger["instances"].get("stored", 0)),
        detail="is full" if full else "instances",
        kind="fail" if full else "ok",
        href="/studies",
        rate=stored,
        age=format_seconds(oldest) if oldest else "",
        edge="warn" if oldest >= MAX_QUEUE_SECONDS else "",
    )


def _read_destination(row: Mapping[str, Any]) -> FlowNode:
    circuit, backlog = row["circuit"], row["backlog"]
    age = row["oldest_seconds"] if backlog else None
    if row["paused_at_ms"]:
        detail, kind = "paused", "warn"
    elif circuit == CircuitState.OPEN:
        detail, kind = "circuit open", "fail"
    elif circuit != CircuitState.CLOSED:
        detail, kind = f"circuit {circuit}", "warn"
    else:
        detail, kind = ("sending" if backlog else "idle"), "ok"
    is_old = age is not None and age >= OLD_SECONDS
    return FlowNode(
        title=row["name"],
        value=f"{compact_count(backlog)} wait" if backlog != 1 else "1 waits",
        detail=detail,
        kind=kind,
        href=f"/deliveries/list?destination={row['name']}",
        rate=row["delivered_per_second"],
        age=format_seconds(age) if age is not None else "",
        edge="fail" if kind == "fail" else "warn" if is_old or kind == "warn" else "",
    )


def make_sender(name: str, rate: float | None, total: float, seen_ms: int | None, now: float) -> FlowNode:
    """Return the box of one sender.

    Args:
        name: Its AE title.
        rate: Instances per second; None if unknown.
        total: Instances since the start of the node.
        seen_ms: When it last sent while the console was looking, in Unix milliseconds.
        now: Current Unix time.
    """
    if seen_ms:
        detail = f"{compact_count(total)}, {format_relative(seen_ms, now)}"
    else:
        detail = f"{compact_count(total)} since the start" if total else "nothing yet"
    return FlowNode(title=name, detail=detail, kind="ok" if rate else "idle", href="/peers", rate=rate)


def compact_count(count: float) -> str:
    """Write a number in at most five characters: 9999, 12.3 k, 4.5 M."""
    for limit, divisor, unit in ((10_000, 1, ""), (1_000_000, 1e3, " k"), (float("inf"), 1e6, " M")):
        if count < limit:
            amount = count / divisor
            return f"{amount:.1f}{unit}" if unit and amount < 100 else f"{amount:.0f}{unit}"
    return ""


# --- places


def draw_wide(flow: Flow) -> Drawing:
    """Place everything from left to right, for desktops."""
    sender_height, destination_height = 48, 62
    rows = max(
        _stack_height(len(flow.senders), sender_height),
        _stack_height(len(flow.destinations), destination_height),
    )
    height = max(rows, 128)
    middle = _TOP + height / 2
    drawing = Drawing(WIDE_WIDTH, int(_TOP + height + 4))
    drawing.labels += [
        Label(0, 12, "SENDERS", "heading"),
        Label(_COLUMNS["listeners"][0], 12, "THIS NODE", "heading"),
        Label(_DESTINATION_X, 12, "DESTINATIONS", "heading"),
    ]
    _draw_stages_across(drawing, flow.stages, middle)
    left, right = _COLUMNS["listeners"][0], sum(_COLUMNS["store"])
    for node, y in _spread(flow.senders, sender_height, middle):
        _add_row(drawing, node, 0, y, (_SENDER_WIDTH, sender_height))
        _connect(drawing, node, (_SENDER_WIDTH, y + sender_height / 2), (left, middle))
        drawing.labels.append(
            Label(
                _SENDER_WIDTH + 6,
                y + sender_height / 2 - 5,
                format_rate(node.rate) if node.rate else "",
                "label",
            )
        )
    for node, y in _spread(flow.destinations, destination_height, middle):
        _add_row(drawing, node, _DESTINATION_X, y, (WIDE_WIDTH - _DESTINATION_X, destination_height))
        at = y + destination_height / 2
        _connect(drawing, node, (right, middle), (_DESTINATION_X, at))
        drawing.labels += _label_edge(node, _DESTINATION_X - 8, at, "end")
    _add_placeholders(drawing, flow, middle)
    return drawing


def _draw_stages_across(drawing: Drawing, stages: Mapping[str, FlowNode], middle: float) -> None:
    before: float | None = None
    for name, (x, width) in _COLUMNS.items():
        node, y = stages[name], middle - 46
        labels = (
            Label(x + width / 2, y + 22, node.title, "title", "middle"),
            Label(x + width / 2, y + 52, node.value, "big", "middle"),
            Label(x + width / 2, y + 76, node.detail, f"small {_style_of(node)}", "middle"),
        )
        drawing.boxes.append(Box(x, y, width, 92, node, labels))
        if before is not None:
            _connect(drawing, node, (before, middle), (x, middle))
            drawing.labels += _label_edge(node, (before + x) / 2, middle, "middle")
        before = x + width


def draw_tall(flow: Flow) -> Drawing:
    """Place everything from top to bottom, for phones."""
    drawing = Drawing(TALL_WIDTH)
    y = 14.0
    drawing.labels.append(Label(0, 12, "SENDERS", "heading"))
    y += 8
    for node in flow.senders or (_nobody("No sender yet"),):
        _add_row(drawing, node, 0, y, (TALL_WIDTH, 46))
        if node.rate:
            drawing.labels.append(Label(TALL_WIDTH - 12, y + 28, format_rate(node.rate), "label", "end"))
        y += 52
    for node in flow.stages.values():
        _connect(drawing, node, (TALL_WIDTH / 2, y - 6), (TALL_WIDTH / 2, y + 30))
        if node.rate is not None:
            drawing.labels.append(Label(TALL_WIDTH / 2 - 10, y + 16, format_rate(node.rate), "label", "end"))
        if node.age:
            drawing.labels.append(Label(TALL_WIDTH / 2 + 10, y + 16, node.age, f"label {node.edge}"))
        y += 30
        labels = (
            Label(14, y + 20, node.title, "title"),
            Label(14, y + 37, node.detail, f"small {_style_of(node)}"),
            Label(TALL_WIDTH - 14, y + 31, node.value, "big", "end"),
        )
        drawing.boxes.append(Box(0, y, TALL_WIDTH, 48, node, labels))
        y += 54
    drawing.labels.append(Label(0, y + 24, "DESTINATIONS", "heading"))
    _connect(drawing, None, (TALL_WIDTH / 2, y - 6), (TALL_WIDTH / 2, y + 32))
    y += 32
    for node in flow.destinations or (_nobody("No destination"),):
        _add_row(drawing, node, 0, y, (TALL_WIDTH, 62))
        for label in _label_edge(node, TALL_WIDTH - 12, y + 33, "end"):
            drawing.labels.append(label)
        y += 68
    drawing.height = int(y)
    return drawing


def _nobody(text: str) -> FlowNode:
    return FlowNode(title=text, detail="", kind="idle", href="/configuration")


def _add_placeholders(drawing: Drawing, flow: Flow, middle: float) -> None:
    if not flow.senders:
        _add_row(drawing, _nobody("No sender yet"), 0, middle - 24, (_SENDER_WIDTH, 48))
    if not flow.destinations:
        width = WIDE_WIDTH - _DESTINATION_X
        _add_row(drawing, _nobody("No destination"), _DESTINATION_X, middle - 24, (width, 48))


def _stack_height(count: int, height: float) -> float:
    return count * (height + 10) - 10 if count else 0


def _spread(nodes: Sequence[FlowNode], height: float, middle: float) -> Iterable[tuple[FlowNode, float]]:
    """Yield the boxes of a column with their tops, centred on the middle."""
    top = middle - _stack_height(len(nodes), height) / 2
    for number, node in enumerate(nodes):
        yield node, top + number * (height + 10)


def _add_row(drawing: Drawing, node: FlowNode, x: float, y: float, size: tuple[float, float]) -> None:
    width, height = size
    has_three = height > 50
    labels = [
        Label(x + 12, y + (20 if node.detail else height / 2 + 4), node.title, "title"),
        Label(x + 12, y + (37 if not has_three else 36), node.detail, f"small {_style_of(node)}"),
    ]
    if has_three:
        labels.append(Label(x + 12, y + 52, node.value, "small"))
    drawing.boxes.append(Box(x, y, width, height, node, labels))


def _style_of(node: FlowNode) -> str:
    return node.kind if node.kind in {"warn", "fail"} else ""


def _label_edge(node: FlowNode, x: float, y: float, anchor: str) -> list[Label]:
    labels = []
    if node.rate is not None:
        labels.append(
            Label(x, y - 7, format_rate(node.rate), "label" if node.rate else "label muted", anchor)
        )
    if node.age:
        labels.append(Label(x, y + 17, node.age, f"label {node.edge or 'muted'}", anchor))
    return labels


def _connect(
    drawing: Drawing, node: FlowNode | None, start: tuple[float, float], end: tuple[float, float]
) -> None:
    """Draw an edge. It is wider with a higher rate, and it moves while something flows."""
    (x1, y1), (x2, y2) = start, end
    if x1 == x2:
        path = f"M{x1:.1f} {y1:.1f}V{y2:.1f}"
    elif y1 == y2:
        path = f"M{x1:.1f} {y1:.1f}H{x2:.1f}"
    elif x1 < WIDE_WIDTH / 2:
        # The level part beside the single box carries the label.
        path = f"M{x1:.1f} {y1:.1f}H{x1 + LABEL_WIDTH}{_curve(x1 + LABEL_WIDTH, y1, x2, y2)}"
    else:
        path = f"M{x1:.1f} {y1:.1f}{_curve(x1, y1, x2 - LABEL_WIDTH, y2)}H{x2:.1f}"
    rate = (node.rate or 0.0) if node else 0.0
    width = 1.6 + min(3.4, max(0.0, rate) ** 0.25)
    style = " ".join(part for part in ("busy" if rate else "", node.edge if node else "") if part)
    drawing.edges.append(Edge(path, style, width if rate else 1.6))


def _curve(x1: float, y1: float, x2: float, y2: float) -> str:
    middle = (x1 + x2) / 2
    return f"C{middle:.1f} {y1:.1f} {middle:.1f} {y2:.1f} {x2:.1f} {y2:.1f}"
