"""What the benchmarks make of their figures: order of runs, judged claims, losses, tables, plots."""

import io
import time
from dataclasses import replace

import pytest
from rich.console import Console

from benchmarks import forwarding, judged, markdown, plots, report, rounds, sending, suite, workloads
from benchmarks.load import Load, LoadError
from benchmarks.path import growth
from benchmarks.receivers import Facts
from benchmarks.workloads import Claim, Entrant, Work

LOAD = Load(128 << 10, 10, 4)
WORK = Work("some work", workloads.entrants(LOAD, "ours", "floor", "dcm4che"))
MACHINE = {
    "date": "2026-01-02T03:04:05+00:00",
    "processor": "a processor",
    "cores": 2,
    "system": "a system",
    "kernel": "6",
    "openssl": "OpenSSL 3",
    "python": "3.11",
    "node": "1",
    "memory_gb": 8,
    "file_systems": {"memory": "tmpfs"},
}


def sample(number, cpu, **changed):
    figures = {"seconds": 1.0, "instances": 10, "rate": 10.0, "mb_s": 1.3, "cpu_s_gb": cpu, "cpu_ms": cpu}
    return {"round": number, **figures, "p50_ms": 1.0, "p99_ms": 2.0, "failed": 0, "missing": 0, **changed}


def values(work, ours, floor, **changed):
    """A work's outcome: `ours` and `floor` are CPU costs by round."""
    taken = rounds.nothing_yet(work)
    taken["dcm4che"].unavailable = "no such storescp on the PATH"
    for label, costs in (("ours", ours), ("floor", floor)):
        taken[label].facts = Facts(label, "1", durable=False)
        taken[label].counted_by = "cgroup v2"
        taken[label].samples = [sample(number, cost, **changed) for number, cost in costs.items()]
    return {**rounds.as_values(work, taken), "broken": "", "took_seconds": 1.0}


def complete(*works, **more):
    return judged.complete({"machine": MACHINE, "works": list(works), **more})


def claimed(*claims):
    return replace(WORK, claims=claims)


def test_only_rounds_in_which_both_ran_are_paired():
    work = values(WORK, {0: 1.0, 1: 8.0, 2: 3.0}, {0: 2.0, 2: 2.0})
    assert judged.paired(work, "ours", "floor", "cpu_s_gb") == ([1.0, 3.0], [2.0, 2.0])


def test_a_round_that_was_too_short_for_the_clock_is_left_out():
    work = values(WORK, {0: 1.0, 1: 0.0, 2: 3.0}, {0: 0.0, 1: 2.0, 2: 2.0})
    assert judged.paired(work, "ours", "floor", "cpu_s_gb") == ([3.0], [2.0])
    assert complete(values(WORK, {0: 0.0}, {0: 0.0}))["losses"] == []


def test_a_claim_is_judged_by_the_interval_of_its_ratio():
    work = values(claimed(Claim("cpu_s_gb", 1.05, against="floor")), {0: 1.0, 1: 1.02}, {0: 1.0, 1: 1.0})
    (found,) = complete(work)["claims"]
    assert (found["value"], found["kept"], found["runs"]) == (pytest.approx(1.01), "yes", 2)


def test_a_claim_against_who_could_not_run_is_left_out():
    work = values(claimed(Claim("cpu_s_gb", 0.3, against="dcm4che")), {0: 1.0}, {0: 1.0})
    assert complete(work)["claims"] == []


def test_a_limit_of_the_measure_itself_is_held_against_its_worst_run():
    work = values(claimed(Claim("p99_ms", 2.5), Claim("p99_ms", 1.5)), {0: 1.0}, {0: 1.0})
    assert [one["kept"] for one in complete(work)["claims"]] == ["yes", "no"]


def test_where_we_lose_clearly_is_named():
    work = values(WORK, {0: 2.0, 1: 2.1}, {0: 1.0, 1: 1.0})
    assert [(one["measure"], one["against"]) for one in complete(work)["losses"]] == [("cpu_s_gb", "floor")]


def test_what_is_acknowledged_and_not_stored_is_named():
    found = complete(values(WORK, {0: 1.0}, {0: 1.0}, missing=2))
    assert found["lost"] == [f"some work, {who}: 0 failed, 2 not stored" for who in ("ours", "floor")]


def test_a_work_that_broke_off_is_named():
    found = complete({**values(WORK, {}, {}), "broken": "LoadError: gone"})
    assert found["lost"] == ["some work: LoadError: gone"]


def test_the_whole_path_and_idle_associations_are_judged():
    path = {"name": "8 KB × 4", "rate": 1600.0, "growing": True, "persist_ms": 0.3, "failed": 0, "missing": 0}
    idle = {"receiver": "ours", "associations": 1000, "pss_before_mb": 90.0, "pss_idle_mb": 300.0}
    found = complete(path=[path], idle=[{**idle, "cpu_percent": 0.5, "missing": 0}])["claims"]
    kept = {one["measure"]: one["kept"] for one in found}
    assert [name for name, verdict in kept.items() if verdict == "no"] == ["added_mb", "growing"]
    assert len(kept) == 5


def test_what_breaks_off_beside_the_works_is_named():
    found = {"broken": [], "machine": MACHINE, "works": []}

    def fails():
        raise LoadError("no answer")

    assert suite.tried(found, "idle associations", fails) == []
    assert judged.complete(found)["lost"] == ["idle associations: LoadError: no answer"]


def test_the_same_receiver_under_another_load_is_no_loss():
    work = values(WORK, {0: 2.0}, {0: 1.0})
    work["entrants"]["floor"]["facts"] = work["entrants"]["ours"]["facts"]
    assert complete(work)["losses"] == []


def test_tables_and_json_say_the_same_after_reading_back(tmp_path):
    work = values(claimed(Claim("cpu_s_gb", 1.05, against="floor")), {0: 1.5, 1: 1.4}, {0: 1.0, 1: 1.0})
    found = complete(work)
    report.write(found, tmp_path / "deep" / "results.json")
    assert report.read(tmp_path / "deep" / "results.json") == found
    shown = io.StringIO()
    report.show(found, Console(width=160, file=shown))
    text = shown.getvalue()
    for expected in (
        "some work",
        "no such storescp",
        "≤ 1.05",
        "1.45",
        "costs more or is slower",
        "cgroup v2",
    ):
        assert expected in text


def test_plots_are_drawn_for_what_there_is(tmp_path):
    work = values(claimed(Claim("cpu_s_gb", 1.05, against="floor")), {0: 1.5, 1: 1.4}, {0: 1.0, 1: 1.0})
    drawn = plots.draw(complete(work), tmp_path)
    assert sorted(path.name for path in drawn) == ["cost.png", "latency.png", "ratios.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


def test_the_page_names_claims_losses_and_figures(tmp_path):
    claims = (Claim("cpu_s_gb", 1.05, against="floor"), Claim("pss_mb", 60))
    work = values(claimed(*claims), {0: 1.5, 1: 1.4}, {0: 1.0, 1: 1.0})
    markdown.write(complete(work), tmp_path / "README.md", [tmp_path / "cost.png"])
    page = (tmp_path / "README.md").read_text()
    assert "| some work | CPU s/GB, ours / floor | 1.45 | 1.40 – 1.50 | 2 | ≤ 1.05 | no |" in page
    assert "| some work | PSS MB, ours |" in page
    assert "![cost](cost.png)" in page
    assert "| floor | 10.00 (10.00 – 10.00) |" in page


def test_who_does_not_sync_when_asked_to_is_named_so():
    work = values(replace(WORK, durability="fsync"), {0: 1.0}, {0: 1.0})
    work["entrants"]["ours"]["facts"]["durable"] = True
    assert [report.shown_name(work, label) for label in ("ours", "floor")] == ["ours", "floor, no fsync"]


def test_each_round_begins_with_another():
    entrants = tuple(Entrant(name, name, LOAD) for name in "abc")
    first = ["".join(one.label for one in rounds.order(entrants, number)) for number in range(4)]
    assert first == ["abc", "bca", "cab", "abc"]


def test_who_takes_long_takes_part_in_fewer_rounds():
    entrants = (Entrant("a", "a", LOAD), Entrant("slow", "b", LOAD, every=4))
    present = [len(rounds.order(entrants, number)) for number in range(9)]
    assert present == [2, 1, 1, 1, 2, 1, 1, 1, 2]


def test_time_is_shared_by_weight_and_what_one_leaves_is_for_the_others(monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    budget = suite.Budget(100.0, [1.0, 1.0, 2.0])
    assert budget.next() == 25.0
    now = 10.0
    assert budget.next() == 30.0
    now = 120.0
    assert budget.next() == 0.0


def test_a_queue_that_swings_does_not_grow():
    steady = [(float(second), 100 + 50 * (second % 2)) for second in range(60)]
    growing = [(float(second), 20 * second) for second in range(60)]
    assert abs(growth(steady)) < 1
    assert growth(growing) == pytest.approx(20)


def test_every_claim_of_the_suite_names_entrants_of_its_work():
    works = [*workloads.suite(), *workloads.forwarded()]
    assert len({work.name for work in works}) == len(works)
    known = {"alone": sending.SENDERS, "forward": forwarding.FORWARDERS, "transit": forwarding.FORWARDERS}
    for work in works:
        labels = {entrant.label for entrant in work.entrants}
        assert {entrant.receiver for entrant in work.entrants} <= set(known.get(work.sender, suite.RECEIVERS))
        for claim in work.claims:
            assert claim.of in labels
            assert claim.against is None or claim.against in labels
            assert work.pairs >= 10 or work.sender in {"forward", "transit"}


def test_memory_is_a_column_only_where_somebody_looked():
    work = values(WORK, {0: 1.0}, {0: 1.0})
    assert not report.has_memory(work)
    work["entrants"]["ours"]["pss_mb"] = 3.0
    assert report.has_memory(work)


def test_senders_and_forwarders_have_plots_of_their_own(tmp_path):
    works = [values(replace(WORK, sender=sender), {0: 1.0}, {0: 2.0}) for sender in ("alone", "forward")]
    drawn = plots.draw(complete(*works), tmp_path)
    assert sorted(path.name for path in drawn) == ["forwarding.png", "sending.png"]
