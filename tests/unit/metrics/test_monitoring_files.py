"""The alert rules and the dashboard use metrics and labels that exist, and the rules do what they say."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ingest.metrics.families import FAMILIES, Choice, Family, Kind
from ingest.status.exposition import SCRAPE_ERRORS, SCRAPE_SECONDS
from ingest.status.gathered_metrics import GATHERED
from tests.support.peers import require_program

CONFIG = Path(__file__).parents[3] / "config"
RULES = CONFIG / "prometheus/dicom-ingest.rules.yml"
DASHBOARD = CONFIG / "grafana/dicom-ingest.json"
_USE = re.compile(r"\b(dicom_ingest_\w+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)(=~|!=|=)"([^"]*)"')
ADDED_BY_PROMETHEUS = {"instance", "job", "le"}


def every_name() -> dict[str, Family]:
    names = {}
    for family in (*FAMILIES, *GATHERED, SCRAPE_ERRORS, SCRAPE_SECONDS):
        endings = ("_bucket", "_sum", "_count") if family.kind is Kind.HISTOGRAM else ("",)
        names.update({family.full_name + ending: family for ending in endings})
    return names


def dashboard_expressions(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        yield from (part[key] for key in ("expr", "definition") if isinstance(part.get(key), str))
        for each in part.values():
            yield from dashboard_expressions(each)
    elif isinstance(part, list):
        for each in part:
            yield from dashboard_expressions(each)


def find_faults(expression: str) -> Iterator[str]:
    known = every_name()
    for name, matchers in _USE.findall(expression):
        family = known.get(name)
        if family is None:
            yield f"{name}: no such metric"
            continue
        labels = {label.name: label for label in family.labels}
        for label, operator, wanted in _MATCHER.findall(matchers):
            if label in ADDED_BY_PROMETHEUS or wanted.startswith("$"):
                continue
            if label not in labels:
                yield f"{name}: no label {label}"
                continue
            choice = labels[label]
            values = wanted.split("|") if operator == "=~" else [wanted]
            if isinstance(choice, Choice) and choice.values:
                yield from (f"{name}: no {label} {each}" for each in values if each not in choice.values)


def test_the_dashboard_uses_metrics_that_exist() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    expressions = list(dashboard_expressions(dashboard))
    assert len(expressions) > 60
    assert [fault for expression in expressions for fault in find_faults(expression)] == []


def test_the_dashboard_shows_nearly_every_metric() -> None:
    """A metric that is not on it is of no interest over time: the list says which those are."""
    used = {
        name
        for each in dashboard_expressions(json.loads(DASHBOARD.read_text()))
        for name, _ in _USE.findall(each)
    }
    missing = {family.name for name, family in every_name().items()} - {
        every_name()[name].name for name in used if name in every_name()
    }
    assert missing == {"build_info", "configuration_generation", "destination_paused", "processes_wanted"}


def test_the_panels_of_the_dashboard_fill_its_rows() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    cells: dict[tuple[int, int], int] = {}
    for panel in panels:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert cells.setdefault((x, y), panel["id"]) == panel["id"], panel["title"]
    assert len(cells) == 24 * (1 + max(y for _, y in cells))
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_the_rules_use_metrics_that_exist_and_name_a_remedy() -> None:
    text = RULES.read_text()
    assert list(find_faults(text)) == []
    assert text.count("- alert: ") == text.count("\n          remedy: ") == text.count("labels: {severity: ")


def test_a_name_that_does_not_exist_is_found() -> None:
    faults = list(find_faults('rate(dicom_ingest_nonsense_total[1m]) + dicom_ingest_deliveries{age="1"}'))
    assert faults == ["dicom_ingest_nonsense_total: no such metric", "dicom_ingest_deliveries: no label age"]


@pytest.mark.interop
@pytest.mark.parametrize(
    "command",
    [("check", "config", "prometheus.yml"), ("test", "rules", "dicom-ingest.test.yml")],
    ids=lambda command: command[0],
)
def test_promtool_accepts_the_configuration_and_the_rules_do_what_their_tests_say(
    command: tuple[str, ...],
) -> None:
    done = subprocess.run(
        [require_program("promtool"), *command],
        cwd=CONFIG / "prometheus",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_rule_has_a_test() -> None:
    named = set(re.findall(r"- alert: (\w+)", RULES.read_text()))
    tested = (CONFIG / "prometheus/dicom-ingest.test.yml").read_text()
    firing = {
        name
        for name in named
        if re.search(rf"alertname: {name}\n\s+eval_time: \S+\n\s+exp_alerts:\n", tested)
    }
    assert firing == named
