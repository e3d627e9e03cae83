"""docs/reference/metrics.md describes every metric, as the code has it."""

from pathlib import Path

from ingest.ext.shared_counters import DURATION_BOUNDS_NS
from ingest.metrics.families import FAMILIES, Choice, Family
from ingest.status.exposition import SCRAPE_ERRORS, SCRAPE_SECONDS
from ingest.status.gathered_metrics import GATHERED

PAGE = (Path(__file__).parents[3] / "docs/reference/metrics.md").read_text()
EVERY_FAMILY = (*FAMILIES, *GATHERED, SCRAPE_ERRORS, SCRAPE_SECONDS)


def line_of(family: Family) -> str:
    labels = ", ".join(f"`{label.name}`" for label in family.labels)
    return f"| `{family.full_name}` | {family.kind.value} | {labels} | {family.text} |"


def test_the_page_has_every_metric_and_no_other() -> None:
    lines = [line for line in PAGE.splitlines() if line.startswith("| `dicom_ingest_")]
    assert sorted(lines) == sorted(map(line_of, EVERY_FAMILY))


def test_the_page_has_every_value_of_every_label() -> None:
    choices = {label for family in FAMILIES for label in family.labels if isinstance(label, Choice)}
    values = {", ".join(f"`{value}`" for value in choice.values) for choice in choices}
    assert [each for each in values if f"| {each} |" not in PAGE] == []
    bounds = ", ".join(f"{bound / 1e9:g}" for bound in DURATION_BOUNDS_NS)
    assert bounds in PAGE.replace("\n  ", " ")


def test_names_say_their_unit() -> None:
    for family in EVERY_FAMILY:
        assert family.name.replace("_", "").isalnum()
        assert not family.name.endswith(("_total", "_ms", "_mb", "_count", "_sum", "_bucket"))
