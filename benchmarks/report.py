"""A report as tables for the terminal and as JSON."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import browsers, pairs
from benchmarks.rounds import MEASURES
from benchmarks.workloads import load_name

Values = dict[str, Any]
SHOWN = ("rate", "mb_s", "cpu_s_gb", "cpu_ms", "p50_ms", "p99_ms", "seconds", "backlog_middle", "backlog_end")
ABSOLUTE = {
    "pss_mb": "PSS MB",
    "pss_largest_mb": "PSS MB of the largest process",
    "added_mb": "PSS MB more",
    "cpu_percent": "CPU % of a core",
    "growing": "the queue grows",
    "persist_ms": "CPU ms/instance, persist worker",
}
WIDTH = 118
COLOURS = {"yes": "green", "likely": "yellow", "no": "red"}


def write(report: Values, path: Path) -> None:
    """Write JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


def read(path: Path) -> Values:
    """Read what `write` wrote."""
    found: Values = json.loads(path.read_text())
    return found


def show(report: Values, console: Console) -> None:
    """All tables."""
    machine = report["machine"]
    console.print(
        f"{machine['date']}: {machine['cores']} cores of {machine['processor']}, {machine['system']}, "
        f"kernel {machine['kernel']}, {machine['openssl']}, Python {machine['python']}; "
        f"file systems {machine['file_systems']}",
        highlight=False,
    )
    console.print(", ".join(versions(report)), highlight=False)
    for work in report["works"]:
        console.print(work_table(work))
    for one in report.get("idle", ()):
        console.print(idle_table(one))
    if report.get("path"):
        console.print(path_table(report["path"]))
    if report.get("instructions"):
        console.print(instructions_table(report["instructions"]))
    if report["claims"]:
        console.print(judged_table(report["claims"], "Limits: ratios with 95% intervals"))
    if report["losses"]:
        console.print(judged_table(report["losses"], "Where this node costs more or is slower", limits=False))
    for line in report["lost"]:
        console.print(f"[red]lost[/red] {line}")


def versions(report: Values) -> list[str]:
    """Every receiver that ran, with its version and how its CPU time was counted."""
    found = {}
    for work in report["works"]:
        for entrant in work["entrants"].values():
            if entrant["facts"]:
                name, version = entrant["facts"]["name"], entrant["facts"]["version"]
                found[name] = f"{name} {version} (CPU by {entrant['counted_by']})"
    return list(found.values())


def shown_name(work: Values, label: str) -> str:
    """Return the label, and whether the receiver was asked to sync and does not."""
    durable = work["durability"] != "fsync" or work["entrants"][label]["facts"]["durable"]
    return label if durable else f"{label}, no fsync"


def console() -> Console:
    """Open the terminal, or a file with lines that hold the tables."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=max(WIDTH, terminal.width))


def work_table(work: Values) -> Table:
    """Every entrant's figures: median, and the range over its runs."""
    measures = [
        name
        for name in SHOWN
        if any(name in sample for entrant in work["entrants"].values() for sample in entrant["samples"])
        and (name != "seconds" or work["sender"] != "load")
    ]
    table = Table(
        "",
        *(MEASURES[name] for name in measures),
        *(["PSS MB"] if has_memory(work) else []),
        "runs",
        title=f"{work['name']}: {work['durability']}, in {work['place']}; median, least – most",
        title_justify="left",
    )
    for label, entrant in work["entrants"].items():
        if entrant["unavailable"]:
            table.add_row(label, entrant["unavailable"])
        elif entrant["samples"]:
            rest = [f"{entrant['pss_mb']:.1f}"] if has_memory(work) else []
            cells = [*_cells(entrant["samples"], measures), *rest, str(len(entrant["samples"]))]
            table.add_row(shown_name(work, label), *cells)
    return table


def has_memory(work: Values) -> bool:
    """Whether anybody looked at the memory."""
    return any(entrant["pss_mb"] for entrant in work["entrants"].values())


def judged_table(judged: Sequence[Values], title: str, *, limits: bool = True) -> Table:
    """Claims or losses."""
    table = Table("work", "measure", "ratio", "95%", "pairs", title=title, title_justify="left")
    if limits:
        table.add_column("limit")
        table.add_column("kept")
    for one in judged:
        measure = {**MEASURES, **ABSOLUTE}[one["measure"]]
        against = f" / {one['against']}" if one["against"] else ""
        row = [one["work"], f"{measure}, {one['of']}{against}", number(one["value"])]
        row += [f"{number(one['low'])} – {number(one['high'])}", str(one["runs"])]
        if limits:
            row.append(f"{'≤' if one['at_most'] else '≥'} {one['limit']:g}")
            row.append(f"[{COLOURS[one['kept']]}]{one['kept']}[/]")
        table.add_row(*row)
    return table


def idle_table(idle: Values) -> Table:
    """Idle associations of one receiver."""
    count = idle["associations"]
    table = Table("", "alone", f"beside {count:,} idle", title=f"{idle['receiver']}: idle associations")
    table.title_justify = "left"
    table.add_row("PSS MB", number(idle["pss_before_mb"]), number(idle["pss_idle_mb"]))
    table.add_row("CPU % of a core, nobody busy", "", number(idle["cpu_percent"]))
    for measure, name in (("cpu_ms", "CPU ms/instance, 4 busy"), ("p99_ms", "p99 ms, 4 busy")):
        cells = _cells([{measure: value} for value in idle[f"{measure}_alone"]], [measure])
        beside = _cells([{measure: value} for value in idle[f"{measure}_beside"]], [measure])
        table.add_row(name, *cells, *beside)
    return table


def path_table(paths: Sequence[Values]) -> Table:
    """Make the table of the whole path."""
    columns = ("seconds", "instances/s", "MB/s", "p99 ms", "most in queue", "queue grows", "drained in s")
    table = Table("whole path, fsync", *columns, "CPU ms/instance", title_justify="left")
    for one in paths:
        roles = {name.removeprefix("ingest-"): ms for name, ms in one["cpu_ms"].items() if ms >= 0.001}
        cpu = "\n".join(f"{name} {number(ms)}" for name, ms in roles.items())
        most = max(waiting for _, waiting in one["queue"])
        figures = (one["seconds"], one["rate"], one["mb_s"], one["p99_ms"], most)
        grows = "yes" if one["growing"] else "no"
        table.add_row(one["name"], *map(number, figures), grows, number(one["drained_seconds"]), cpu)
    return table


def instructions_table(counts: Sequence[Values]) -> Table:
    """Instructions of the parser."""
    columns = ("instructions", "each byte", "each PDU", "each instance")
    table = Table("parsing", *columns, title="Counted by valgrind", title_justify="left")
    for one in counts:
        figures = (one["total"], one["per_byte"], one["per_pdu"], one["per_instance"])
        table.add_row(one["stream"], *map(number, figures))
    return table


def browsers_table(found: browsers.Found) -> Table:
    """Cost of reception in each state, and ratios to the runs without browsers."""
    rounds = len(found.samples["without"])
    title = f"{found.browsers} browsers, {rounds} rounds of {load_name(found.load)}"
    table = Table("measure", *browsers.STATES, "with / without", "again / without", title=title)
    for measure in ("listener_ms", "p99_ms", "rate", "console_share"):
        values = [
            [{measure: getattr(one, measure)} for one in found.samples[state]] for state in browsers.STATES
        ]
        cells = [next(_cells(each, [measure])) for each in values]
        ratios = []
        if measure != "console_share":
            each = [found.ratio(state, measure) for state in ("with", "without, again")]
            ratios = [
                f"{one.median:.3f}\n[dim]{one.low:.3f}–{one.high:.3f}[/]" if one else "" for one in each
            ]
        table.add_row(measure, *cells, *ratios)
    return table


def number(value: float) -> str:
    """Three digits or so."""
    return f"{value:,.{0 if abs(value) >= 100 else 2 if abs(value) >= 1 else 3}f}"


def _cells(samples: Sequence[Values], measures: Sequence[str]) -> Iterator[str]:
    for name in measures:
        values = [sample[name] for sample in samples if name in sample]
        if values:
            found = pairs.spread(values)
            yield f"{number(found.median)}\n[dim]{number(found.least)}–{number(found.most)}[/]"
        else:
            yield ""
