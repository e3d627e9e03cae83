"""Values and pictures of the console's pages, and the files that browsers load."""

import hashlib
import re
from pathlib import Path

import jinja2
import pytest

from ingest.console.formatting import (
    FILTERS,
    format_bytes,
    format_person_name,
    format_rate,
    format_relative,
    format_seconds,
    mark_code,
)
from ingest.console.live.flow import SHOWN_MAX, FlowNode, draw_tall, draw_wide, make_sender, read_flow

CONSOLE = Path(__file__).parents[3] / "ingest/console"
VENDOR = CONSOLE / "static/vendor"


def make_status(destinations: int = 2, **changes: object) -> dict:
    """Return the status of a node that is well, with the values that the picture shows."""
    rows = [
        {
            "name": f"d{number}",
            "circuit": "closed",
            "backlog": 0,
            "oldest_seconds": None,
            "delivered_per_second": 0.5,
            "paused_at_ms": 0,
        }
        for number in range(destinations)
    ]
    return {
        "listeners": [{"state": "accepting", "active": 2}],
        "spool": {"waiting": 3, "bytes": 1000, "oldest_seconds": None},
        "queue": {"reachable": True, "references": 3, "oldest_seconds": 0},
        "store": {"full": ""},
        "ledger": {"reachable": True, "read_only": "", "instances": {"stored": 7}, "destinations": rows},
        **changes,
    }


def test_vendored_files_are_those_of_their_packages() -> None:
    lines = (VENDOR / "SHA256SUMS").read_text().splitlines()
    listed = {name: digest for digest, name in (line.split() for line in lines)}
    shipped = {
        str(path.relative_to(VENDOR))
        for path in VENDOR.rglob("*")
        if path.is_file() and path.suffix in {".js", ".css", ".woff2"}
    }
    assert listed.keys() == shipped
    for name, digest in listed.items():
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == digest, name


def test_pages_have_no_inline_script_or_style_and_name_no_other_host() -> None:
    for path in [*CONSOLE.glob("templates/**/*.html"), *CONSOLE.glob("static/*")]:
        if path.is_dir():
            continue
        text = path.read_text()
        assert not re.search(r"\s(style|on[a-z]+|hx-on[^=]*)=", text) or path.suffix == ".js", path
        assert not re.search(r"<script(?![^>]* src=)|<style|javascript:", text), path
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), path
        assert "|safe" not in text.replace(" ", ""), path


@pytest.mark.parametrize("name", sorted(path.name for path in (CONSOLE / "templates").glob("*.html")))
def test_every_template_compiles(name: str) -> None:
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(CONSOLE / "templates"), autoescape=True)
    environment.filters.update(FILTERS)
    environment.get_template(name)


def test_values_are_written_for_people() -> None:
    assert [format_seconds(value) for value in (0.25, 59, 61, 7200, 200_000)] == [
        *("250 ms", "59 s", "1 min", "2 h", "2 days")
    ]
    assert format_relative(0, now=90) == "1 min ago"
    assert format_relative(90_000, now=0) == "in 1 min"
    assert [format_rate(value) for value in (None, 0, 0.05, 4, 1234)] == [
        *("–", "0/s", "3.0/min", "4.0/s", "1\N{NARROW NO-BREAK SPACE}234/s")
    ]
    assert [format_bytes(value) for value in (12, 1500, 150_000_000)] == ["12 bytes", "1.5 kB", "150 MB"]
    assert format_person_name("Yamada^Tarou=山田^太郎") == "Yamada, Tarou (山田, 太郎)"
    assert format_person_name("^^^") == ""


def test_code_in_a_remedy_is_marked_and_everything_else_escaped() -> None:
    assert mark_code("run `a <b>` & <i>") == "run <code>a &lt;b&gt;</code> &amp; &lt;i&gt;"


def test_picture_shows_an_open_circuit_first_and_folds_what_does_not_fit() -> None:
    status = make_status(destinations=SHOWN_MAX + 5)
    failing = status["ledger"]["destinations"][-1]
    failing.update(circuit="open", backlog=4, oldest_seconds=700.0)
    flow = read_flow(status, [], 1.0, 1.0)
    assert len(flow.destinations) == SHOWN_MAX
    first, last = flow.destinations[0], flow.destinations[-1]
    assert (first.title, first.kind, first.age, first.edge) == (failing["name"], "fail", "11 min", "fail")
    assert last.title == "6 more destinations"
    assert last.detail == "all well"


def test_picture_says_how_long_the_oldest_instance_is_in_the_spool() -> None:
    status = make_status(spool={"waiting": 1, "bytes": 1000, "oldest_seconds": 61.0})
    assert read_flow(status, [], None, None).stages["spool"].age == "1 min"


def test_picture_says_what_is_away() -> None:
    away = {"reachable": False, "error": "refused"}
    status = make_status(queue=away, ledger={**away, "read_only": ""}, listeners=[])
    stages = read_flow(status, [], None, None).stages
    assert [stages[name].kind for name in ("listeners", "queue", "store")] == ["fail"] * 3


def test_boxes_of_both_pictures_lie_within_them_and_do_not_overlap() -> None:
    senders = [make_sender(f"CT{number}", 2.0, 5, None, 0.0) for number in range(SHOWN_MAX + 3)]
    flow = read_flow(make_status(destinations=20), senders, 9.0, 8.5)
    for drawing in (draw_wide(flow), draw_tall(flow)):
        boxes = drawing.boxes
        assert len(boxes) == 2 * SHOWN_MAX + 4
        for box in boxes:
            assert 0 <= box.x <= box.x + box.width <= drawing.width
            assert 0 <= box.y <= box.y + box.height <= drawing.height
        for number, one in enumerate(boxes):
            for other in boxes[number + 1 :]:
                beside = one.x + one.width <= other.x or other.x + other.width <= one.x
                assert beside or one.y + one.height <= other.y or other.y + other.height <= one.y


def test_edge_is_wider_and_moves_with_a_rate() -> None:
    def draw(rate: float) -> tuple[str, float]:
        sender = FlowNode(title="CT1", detail="", kind="ok", href="/", rate=rate)
        edge = draw_wide(read_flow(make_status(), [sender], 0.0, 0.0)).edges[3]
        return edge.style, edge.width

    still, slow, fast = draw(0), draw(1), draw(100)
    assert still[0] == ""
    assert slow[0] == "busy"
    assert still[1] < slow[1] < fast[1]


@pytest.mark.parametrize("day", ["9999-12-31", "tomorrow"])
def test_day_that_no_clock_shows_is_a_fault_of_the_field(day: str) -> None:
    from ingest.console.pages.studies import _read_day

    faults: dict[str, str] = {}
    assert _read_day({"until": day}, "until", faults, after=True) is None
    assert "until" in faults
