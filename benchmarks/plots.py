"""Plots of a report for docs/reference/benchmarks/: costs, ratios, latencies, the queue of the whole path."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # no display

from matplotlib import pyplot, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import pairs
from benchmarks.rounds import LESS_IS_BETTER, MEASURES

Values = dict[str, Any]
COLOURS = {
    "ours": "#1b6ca8",
    "floor": "#8a8a8a",
    "dcmtk": "#c96a12",
    "dcmtk-nodelay": "#e8a86a",
    "orthanc": "#5b8c3a",
    "orthanc-nodelay": "#a3c78a",
    "pynetdicom": "#8e4585",
    "dcm4che": "#b3273f",
}
OTHER = "#444444"
KEPT = {"yes": "#2e7d32", "likely": "#c9a012", "no": "#c62828"}
DPI = 110


def draw(report: Values, folder: Path) -> list[Path]:
    """Write every plot that the report has figures for; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    plots: dict[str, Callable[[Values, Path], bool]] = {
        "cost.png": _cost,
        "small.png": _small,
        "latency.png": _latency,
        "storescu.png": _storescu,
        "sending.png": _sending,
        "forwarding.png": _forwarding,
        "ratios.png": _ratios,
        "path.png": _path,
    }
    return [folder / name for name, plot in plots.items() if plot(report, folder / name)]


def _cost(report: Values, path: Path) -> bool:
    works = [work for work in report["works"] if _has(work, "ours") and _load(work)["size"] >= 128 << 10]
    works = [work for work in works if work["sender"] == "load" and work["place"] == "memory"]
    return _bars(report, path, works, "cpu_s_gb", "CPU time of receiving, data sets of 128 KB and more")


def _small(report: Values, path: Path) -> bool:
    works = [work for work in report["works"] if _has(work, "ours") and _load(work)["size"] < 128 << 10]
    works = [work for work in works if work["sender"] == "load"]
    return _bars(report, path, works, "cpu_ms", "CPU time of receiving, small instances")


def _latency(report: Values, path: Path) -> bool:
    works = [work for work in report["works"] if _has(work, "ours") and work["sender"] == "load"]
    works = [work for work in works if _load(work)["associations"] > 1]
    return _bars(report, path, works, "p99_ms", "99th percentile of the time to the answer", log=True)


def _storescu(report: Values, path: Path) -> bool:
    works = [work for work in report["works"] if work["sender"] == "storescu"]
    return _bars(report, path, works, "seconds", "DCMTK's storescu as the sender, wall time", log=True)


def _sending(report: Values, path: Path) -> bool:
    works = [work for work in report["works"] if work["sender"] == "alone"]
    return _bars(report, path, works, "cpu_s_gb", "CPU time of sending", log=True)


def _forwarding(report: Values, path: Path) -> bool:
    works = [work for work in report["works"] if work["sender"] == "forward"]
    return _bars(report, path, works, "rate", "Instances a second from node to node, durable", log=True)


def _bars(
    report: Values, path: Path, works: Sequence[Values], measure: str, title: str, *, log: bool = False
) -> bool:
    """Horizontal bars, one group a work; the line through a bar is the range of its runs."""
    rows = [
        (f"{label}", entrant, work)
        for work in works
        for label, entrant in work["entrants"].items()
        if any(measure in sample for sample in entrant["samples"])
    ]
    if not rows:
        return False
    figure, axes = pyplot.subplots(figsize=(9, 1.6 + 0.24 * len(rows) + 0.5 * len(works)))
    at, ticks, names = 0.0, [], []
    for number, (label, entrant, work) in enumerate(rows):
        if number == 0 or rows[number - 1][2] is not work:
            at += 1.6
            axes.text(0, at - 0.85, work["name"], transform=_beside(axes), fontsize=8, fontweight="bold")
        found = pairs.spread([sample[measure] for sample in entrant["samples"] if measure in sample])
        colour = COLOURS.get(label, OTHER)
        reach = [[found.median - found.least], [found.most - found.median]]
        axes.barh(at, found.median, xerr=reach, color=colour, height=0.8, error_kw={"lw": 0.8})
        axes.annotate(
            f"{found.median:.3g}",
            (found.most, at),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
        ticks.append(at)
        names.append(f"{label} ({found.runs})")
        at += 1
    axes.set_yticks(ticks, names, fontsize=7)
    axes.set_ylim(at, 0)
    axes.margins(x=0.12)
    if log:
        axes.set_xscale("log")
    better = "less" if measure in LESS_IS_BETTER else "more"
    axes.set_xlabel(f"{MEASURES[measure]}, median and range; {better} is better (number of runs)", fontsize=8)
    return _save(figure, report, path, title)


def _ratios(report: Values, path: Path) -> bool:
    """Every claim's ratio over its limit, so that all share one axis: left of 1 is kept."""
    claims = [claim for claim in report["claims"] if claim["against"]]
    if not claims:
        return False
    figure, axes = pyplot.subplots(figsize=(9, 1.4 + 0.26 * len(claims)))
    names = []
    for at, claim in enumerate(claims):
        ends = [claim[key] / claim["limit"] for key in ("low", "value", "high")]
        if not claim["at_most"]:
            ends = [1 / end for end in reversed(ends)]
        low, middle, high = ends
        axes.plot([low, high], [at, at], color=KEPT[claim["kept"]], lw=3, alpha=0.5)
        axes.plot(middle, at, "o", color=KEPT[claim["kept"]], ms=4)
        sign = "≤" if claim["at_most"] else "≥"
        names.append(
            f"{claim['work']}: {MEASURES[claim['measure']]} {sign} {claim['limit']:g} × {claim['against']}"
        )
    axes.axvline(1, color="black", lw=0.8)
    axes.set_xscale("log")
    for axis_format in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis_format(ticker.FuncFormatter(lambda value, _: f"{value:g}" if _round(value) else ""))
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(
        "share of the limit that is used, median and 95% interval; left of the line is kept", fontsize=8
    )
    return _save(figure, report, path, "Limits")


def _round(value: float) -> bool:
    """One of the ticks 1, 2, 5 of a decade; the others have no room for a number."""
    return f"{value:e}"[0] in "125"


def _path(report: Values, path: Path) -> bool:
    """Plot the number of instances between listener and store during the load."""
    paths = report.get("path", [])
    if not paths:
        return False
    figure, axes = pyplot.subplots(figsize=(9, 3.2))
    for one in paths:
        seconds, waiting = zip(*one["queue"], strict=True)
        axes.plot(seconds, waiting, label=f"{one['name']}: {one['rate']:.0f}/s, {one['mb_s']:.0f} MB/s")
    axes.set_xlabel("seconds", fontsize=8)
    axes.set_ylabel("instances received and not yet in the store", fontsize=8)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    return _save(figure, report, path, "Whole path: fsync, persist worker and ledger")


def _save(figure: Figure, report: Values, path: Path, title: str) -> bool:
    machine = report["machine"]
    pyplot.title(title, fontsize=10, loc="left")
    caption = f"{machine['date'][:10]}; {machine['cores']} cores of {machine['processor']}"
    caption += f"; kernel {machine['kernel']}; {machine['openssl']}; node {machine['node']}"
    figure.text(
        0.01,
        0.005,
        caption,
        fontsize=6,
        color="#555555",
    )
    pyplot.tick_params(axis="x", which="both", labelsize=7)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    # Without the date and version of matplotlib the same figures give the same file.
    figure.savefig(path, dpi=DPI, bbox_inches="tight", metadata={"Software": None})
    pyplot.close(figure)
    return True


def _has(work: Values, label: str) -> bool:
    return label in work["entrants"]


def _load(work: Values) -> Values:
    load: Values = next(iter(work["entrants"].values()))["load"]
    return load


def _beside(axes: Axes) -> Any:
    """Across in shares of the axes, upright in data."""
    return axes.get_yaxis_transform()
