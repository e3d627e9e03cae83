"""What a run of the suite came to: claims with their ratios, tables for the terminal, JSON.

A report is plain values, so that one read back from JSON gives the same tables and plots.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import pairs
from benchmarks.rounds import LESS_IS_BETTER, MEASURES

Values = dict[str, Any]
SHOWN = ("rate", "mb_s", "cpu_s_gb", "cpu_ms", "p50_ms", "p99_ms", "seconds")
ABSOLUTE = {"pss_mb": "PSS MB", "pss_largest_mb": "PSS MB of the largest process"}
COLOURS = {"yes": "green", "likely": "yellow", "no": "red"}


@dataclass(frozen=True, slots=True)
class Judged:
    """A claim and what came of it.

    Attributes:
        work: Its name.
        measure: Key of the measure.
        of: Label of whom it is asked.
        against: Label of the other; empty where the measure itself is limited.
        limit: The limit.
        at_most: False where more is better.
        value: The ratio or the measure: median.
        low: Lower end of the ratio's 95% interval, or the least run.
        high: Upper end, or the most.
        runs: Pairs, or runs.
        kept: "yes", "likely" or "no".
    """

    work: str
    measure: str
    of: str
    against: str
    limit: float
    at_most: bool
    value: float
    low: float
    high: float
    runs: int
    kept: pairs.Verdict


def paired(work: Values, of: str, against: str, measure: str) -> tuple[list[float], list[float]]:
    """The measure of both in the rounds in which both ran."""
    mine, theirs = (
        {
            sample["round"]: sample[measure]
            for sample in work["entrants"][label]["samples"]
            if measure in sample
        }
        for label in (of, against)
    )
    rounds = sorted(mine.keys() & theirs.keys())
    return [mine[number] for number in rounds], [theirs[number] for number in rounds]


def judge(work: Values) -> Iterator[Judged]:
    """Every claim of a work whose entrants could run."""
    for claim in work["claims"]:
        of, against, measure = claim["of"], claim["against"], claim["measure"]
        common = (work["name"], measure, of, against or "", claim["limit"], claim["at_most"])
        if against is None:
            entrant = work["entrants"][of]
            values = [sample[measure] for sample in entrant["samples"] if measure in sample]
            values = values or [entrant.get(measure, 0.0)]
            found = pairs.spread(values)
            own = pairs.Ratio(found.median, found.least, found.most, found.runs)
        else:
            mine, theirs = paired(work, of, against, measure)
            if not mine:
                continue
            own = pairs.ratio(mine, theirs)
        kept = own.verdict(claim["limit"], at_most=claim["at_most"])
        yield Judged(*common, own.median, own.low, own.high, own.pairs, kept)


def losses(work: Values) -> Iterator[Judged]:
    """Where the first entrant is dearer or slower than another, whether a claim asks for it or not."""
    first, *others = work["entrants"]
    for other in others:
        for measure in ("rate", "cpu_s_gb", "p99_ms", "seconds"):
            if measure == "seconds" and work["sender"] == "load":
                continue  # the rate says it, and for different numbers of instances too
            mine, theirs = paired(work, first, other, measure)
            if not mine:
                continue
            own = pairs.ratio(mine, theirs)
            at_most = measure in LESS_IS_BETTER
            kept = own.verdict(1.0, at_most=at_most)
            if kept == "no":
                yield Judged(
                    work["name"],
                    measure,
                    first,
                    other,
                    1.0,
                    at_most,
                    own.median,
                    own.low,
                    own.high,
                    own.pairs,
                    kept,
                )


def lost(report: Values) -> list[str]:
    """Runs in which something failed or was acknowledged and not stored; there should be none."""
    return [
        f"{work['name']}, {label}: {sample['failed']:.0f} failed, {sample['missing']:.0f} not stored"
        for work in report["works"]
        for label, entrant in work["entrants"].items()
        for sample in entrant["samples"]
        if sample["failed"] or sample["missing"]
    ]


def complete(report: Values) -> Values:
    """The report with its claims judged and its losses named."""
    works = report["works"]
    return {
        **report,
        "claims": [asdict(one) for work in works for one in judge(work)],
        "losses": [asdict(one) for work in works for one in losses(work)],
        "lost": lost(report),
    }


def write(report: Values, path: Path) -> None:
    """Write JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


def show(report: Values, console: Console) -> None:
    """All tables."""
    machine = report["machine"]
    console.print(
        f"{machine['date']}: {machine['cores']} cores of {machine['processor']}, {machine['system']}, "
        f"kernel {machine['kernel']}, {machine['openssl']}, Python {machine['python']}; "
        f"file systems {machine['file_systems']}",
        highlight=False,
    )
    for work in report["works"]:
        console.print(work_table(work))
    if report["claims"]:
        console.print(judged_table(report["claims"], "What must hold: ratios with 95% intervals"))
    if report["losses"]:
        console.print(judged_table(report["losses"], "Where we are dearer or slower", limits=False))
    for line in report["lost"]:
        console.print(f"[red]lost[/red] {line}")


def work_table(work: Values) -> Table:
    """Every entrant's figures: median, and the range over its runs."""
    measures = [
        name
        for name in SHOWN
        if any(name in sample for entrant in work["entrants"].values() for sample in entrant["samples"])
        and (name != "seconds" or work["sender"] != "load")
    ]
    table = Table(
        work["name"],
        *(MEASURES[name] for name in measures),
        "PSS MB",
        "runs",
        title=f"{work['durability']}, in {work['place']}; median (least – most)",
        title_justify="left",
    )
    for label, entrant in work["entrants"].items():
        if entrant["unavailable"]:
            table.add_row(label, entrant["unavailable"])
        elif entrant["samples"]:
            table.add_row(_name(label, entrant), *_cells(entrant["samples"], measures), *_rest(entrant))
    return table


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


def number(value: float) -> str:
    """Three digits or so."""
    return f"{value:,.{0 if abs(value) >= 100 else 2 if abs(value) >= 1 else 3}f}"


def _name(label: str, entrant: Values) -> str:
    return f"{label} ({entrant['facts']['version']})"


def _cells(samples: Sequence[Values], measures: Sequence[str]) -> Iterator[str]:
    for name in measures:
        values = [sample[name] for sample in samples if name in sample]
        if values:
            found = pairs.spread(values)
            yield f"{number(found.median)} ({number(found.least)}–{number(found.most)})"
        else:
            yield ""


def _rest(entrant: Values) -> tuple[str, str]:
    return f"{entrant['pss_mb']:.1f}", str(len(entrant["samples"]))
