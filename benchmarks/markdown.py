"""The page of a benchmark report in Markdown, beside its plots."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import pairs
from benchmarks.report import ABSOLUTE, SHOWN, has_memory, number, shown_name, versions
from benchmarks.rounds import MEASURES

Values = dict[str, Any]


def write(report: Values, path: Path, plots: Sequence[Path]) -> None:
    """Write the page of a report. The plots are in the same folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(_lines(report, plots)) + "\n")


def _lines(report: Values, plots: Sequence[Path]) -> Iterator[str]:
    machine = report["machine"]
    systems = ", ".join(f"{name} on {system}" for name, system in machine["file_systems"].items())
    yield f"# Benchmark report of {machine['date'][:10]}\n"
    yield "This page compares what receiving, sending and forwarding DICOM over mutual TLS costs."
    yield "`python -m benchmarks` wrote it; [Measure](../../how-to/benchmarks.md) explains how to read it.\n"
    yield "The machine:"
    yield f"{machine['cores']} cores of {machine['processor']}, {machine['memory_gb']} GB;"
    yield f"{machine['system']}, kernel {machine['kernel']}; {machine['openssl']};"
    yield f"Python {machine['python']}; {systems}.\n"
    yield from (f"- {version}" for version in versions(report))
    yield from _judged("Limits", report["claims"], limits=True)
    yield from _judged("Where this node costs more or is slower", report["losses"], limits=False)
    if report["lost"]:
        yield "\n## Acknowledged instances that were lost\n"
        yield from (f"- {line}" for line in report["lost"])
    yield "\n## Plots\n"
    yield from (f"![{plot.stem}]({plot.name})" for plot in plots)
    yield "\n## Workloads\n\nEach cell is the median of the runs, with the least and the most in brackets."
    for work in report["works"]:
        yield from _work(work)
    yield from _rest(report)


def _judged(title: str, judged: Sequence[Values], *, limits: bool) -> Iterator[str]:
    if not judged:
        return
    yield f"\n## {title}\n"
    yield "| work | measure | ratio | 95% | pairs |" + (" limit | kept |" if limits else "")
    yield "|---|---|---|---|---|" + ("---|---|" if limits else "")
    for one in judged:
        against = f" / {one['against']}" if one["against"] else ""
        measure = f"{({**MEASURES, **ABSOLUTE})[one['measure']]}, {one['of']}{against}"
        interval = f"{number(one['low'])} – {number(one['high'])}"
        row = f"| {one['work']} | {measure} | {number(one['value'])} | {interval} | {one['runs']} |"
        sign = "≤" if one["at_most"] else "≥"
        yield row + (f" {sign} {one['limit']:g} | {one['kept']} |" if limits else "")


def _work(work: Values) -> Iterator[str]:
    ran = {label: entrant for label, entrant in work["entrants"].items() if entrant["samples"]}
    samples = [sample for entrant in ran.values() for sample in entrant["samples"]]
    measures = [name for name in SHOWN if any(name in sample for sample in samples)]
    yield f"\n### {work['name']}: {work['durability']}, in {work['place']}\n"
    if not ran:
        return
    more = ["PSS MB", "runs"] if has_memory(work) else ["runs"]
    yield "| | " + " | ".join([*(MEASURES[name] for name in measures), *more]) + " |"
    yield "|---|" + "---|" * (len(measures) + len(more))
    for label, entrant in ran.items():
        cells = [_spread(entrant["samples"], name) for name in measures]
        cells += [f"{entrant['pss_mb']:.1f}"] if has_memory(work) else []
        cells.append(str(len(entrant["samples"])))
        yield f"| {shown_name(work, label)} | " + " | ".join(cells) + " |"


def _spread(samples: Sequence[Values], measure: str) -> str:
    values = [sample[measure] for sample in samples if measure in sample]
    if not values:
        return ""
    found = pairs.spread(values)
    return f"{number(found.median)} ({number(found.least)} – {number(found.most)})"


def _rest(report: Values) -> Iterator[str]:
    for one in report.get("path", ()):
        cpu = ", ".join(f"{name} {number(ms)}" for name, ms in one["cpu_ms"].items() if ms >= 0.001)
        yield f"\n### Whole path, {one['name']}\n"
        yield f"{number(one['rate'])} instances/s, {number(one['mb_s'])} MB/s for {number(one['seconds'])} s;"
        yield f"the queue {'grows' if one['growing'] else 'does not grow'}. It is empty"
        yield f"{number(one['drained_seconds'])} s after the last answer. p99 {number(one['p99_ms'])} ms."
        yield f"CPU in ms for each instance: {cpu}."
    if report.get("instructions"):
        yield "\n### Instructions of the parser\n\n| stream | each PDU | each instance |\n|---|---|---|"
        for one in report["instructions"]:
            yield f"| {one['stream']} | {number(one['per_pdu'])} | {number(one['per_instance'])} |"
