"""What a run of the suite came to: each claim judged, each loss named.

A report is plain values, so that one read back from JSON gives the same tables and plots.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks import pairs
from benchmarks.rounds import LESS_IS_BETTER

Values = dict[str, Any]
PATH_LIMITS = {"8 KB × 4": ("rate", 1500.0), "512 KB × 4": ("mb_s", 200.0)}
PERSIST_MS = 0.35
IDLE_MB, IDLE_PERCENT = 100.0, 1.0


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
    """Return the measure of both entrants in the rounds in which both ran.

    A round that was too short to be measured is left out.
    """
    mine, theirs = (
        {
            sample["round"]: sample[measure]
            for sample in work["entrants"][label]["samples"]
            if measure in sample
        }
        for label in (of, against)
    )
    rounds = sorted(mine.keys() & theirs.keys())
    return pairs.both_measured([mine[number] for number in rounds], [theirs[number] for number in rounds])


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


def bounds(report: Values) -> Iterator[Judged]:
    """Judge the claims about idle associations and the whole path, each measured once."""
    for one in report.get("idle", ()):
        name = f"{one['associations']} idle associations"
        added = one["pss_idle_mb"] - one["pss_before_mb"]
        yield _bound(name, "added_mb", added, IDLE_MB * one["associations"] / 1000)
        yield _bound(name, "cpu_percent", one["cpu_percent"], IDLE_PERCENT)
    for one in report.get("path", ()):
        name = f"whole path, {one['name']}"
        if one["name"] in PATH_LIMITS:
            measure, limit = PATH_LIMITS[one["name"]]
            yield _bound(name, measure, one[measure], limit, at_most=False)
        yield _bound(name, "growing", float(one["growing"]), 0.0)
        yield _bound(name, "persist_ms", one["persist_ms"], PERSIST_MS)


def _bound(work: str, measure: str, value: float, limit: float, *, at_most: bool = True) -> Judged:
    own = pairs.Ratio(value, value, value, 1)
    kept = own.verdict(limit, at_most=at_most)
    return Judged(work, measure, "ours", "", limit, at_most, value, value, value, 1, kept)


def losses(work: Values) -> Iterator[Judged]:
    """Where the first entrant is dearer or slower than another, whether a claim asks for it or not.

    Only where the whole interval says so.
    """
    first, *others = work["entrants"]
    for other in others:
        if work["entrants"][other]["facts"] == work["entrants"][first]["facts"]:
            continue  # the same receiver under another load
        for measure in ("rate", "cpu_s_gb", "p99_ms", "seconds"):
            if measure == "seconds" and work["sender"] == "load":
                continue  # the rate says it, and for different numbers of instances too
            mine, theirs = paired(work, first, other, measure)
            if not mine:
                continue
            own = pairs.ratio(mine, theirs)
            at_most = measure in LESS_IS_BETTER
            kept = own.verdict(1.0, at_most=at_most)
            if (own.low if at_most else 1 / own.high) > 1:
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
    """Return the runs in which something failed or an acknowledged instance was not stored."""
    lines = [
        f"{work['name']}, {label}: {sample['failed']:.0f} failed, {sample['missing']:.0f} not stored"
        for work in report["works"]
        for label, entrant in work["entrants"].items()
        for sample in entrant["samples"]
        if sample["failed"] or sample["missing"]
    ]
    lines += report.get("broken", [])
    lines += [f"{work['name']}: {work['broken']}" for work in report["works"] if work["broken"]]
    lines += [
        f"{one['receiver']}, idle: {one['missing']} not stored"
        for one in report.get("idle", ())
        if one["missing"]
    ]
    lines += [
        f"whole path, {one['name']}: {one['failed']} failed, {one['missing']} not stored"
        for one in report.get("path", ())
        if one["failed"] or one["missing"]
    ]
    return lines


def complete(report: Values) -> Values:
    """Complete a report with judged claims and named losses."""
    works = report["works"]
    return {
        **report,
        "claims": [
            *(asdict(one) for work in works for one in judge(work)),
            *(asdict(one) for one in bounds(report)),
        ],
        "losses": [asdict(one) for work in works for one in losses(work)],
        "lost": lost(report),
    }
