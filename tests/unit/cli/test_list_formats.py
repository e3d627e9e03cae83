"""Formats of lists: JSON and CSV have the fields of docs/reference/lists.md, whatever peers put into them."""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from ingest.cli._tables import ListLayout, print_list
from ingest.cli.console import TOKEN_FIELDS, USER_FIELDS
from ingest.operations.alerts import ALERT_FIELDS
from ingest.operations.callers import CALLER_FIELDS, REFUSAL_FIELDS
from ingest.operations.commitment import COMMITMENT_FIELDS, SENT_FIELDS
from ingest.operations.deliveries import DELIVERY_FIELDS
from ingest.operations.instances import INSTANCE_FIELDS, QUARANTINE_FIELDS, STUDY_FIELDS

PAGE = (Path(__file__).parents[3] / "docs/reference/lists.md").read_text()

LAYOUT: ListLayout[dict[str, object]] = ListLayout(
    fields=("name", "count", "states", "missing"),
    to_record=lambda row: row,
    columns=("name", "count"),
    to_cells=lambda row: (str(row["name"]), str(row["count"])),
)


def fields_of(heading: str) -> list[str]:
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`(\w+)`", row)]


@pytest.mark.parametrize(
    ("heading", "fields"),
    [
        ("ingest studies", STUDY_FIELDS),
        ("ingest instances", INSTANCE_FIELDS),
        ("ingest deliveries", DELIVERY_FIELDS),
        ("ingest alerts list", ALERT_FIELDS),
        ("ingest callers", CALLER_FIELDS),
        ("ingest commitment list", COMMITMENT_FIELDS),
        ("ingest commitment sent", SENT_FIELDS),
        ("ingest refusals", REFUSAL_FIELDS),
        ("ingest console user list", USER_FIELDS),
        ("ingest console token list", TOKEN_FIELDS),
        ("ingest quarantine list", [name for name in QUARANTINE_FIELDS if name not in INSTANCE_FIELDS]),
    ],
)
def test_documented_fields_are_those_of_the_list(heading: str, fields: Sequence[str]) -> None:
    assert sorted(fields_of(heading)) == sorted(fields)


def test_csv_keeps_lists_commas_quotes_and_lines(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"name": 'a, "b"', "count": 7, "states": {"dead": 2}, "missing": None},
        {"name": "山田", "count": -1, "states": [], "missing": None},
    ]
    print_list(rows, "csv", LAYOUT)
    assert list(csv.reader(io.StringIO(capsys.readouterr().out))) == [
        ["name", "count", "states", "missing"],
        ['a, "b"', "7", '{"dead": 2}', ""],
        ["山田", "-1", "[]", ""],
    ]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", '=HYPERLINK("x")'])
def test_a_spreadsheet_computes_nothing_that_a_peer_sent(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    print_list([{"name": text, "count": 1}], "csv", LAYOUT)
    assert list(csv.reader(io.StringIO(capsys.readouterr().out)))[1][0] == f"'{text}"


def test_csv_without_rows_has_its_headings(capsys: pytest.CaptureFixture[str]) -> None:
    print_list([], "csv", LAYOUT)
    assert capsys.readouterr().out == "name,count,states,missing\r\n"


def test_csv_and_json_say_nothing_about_further_rows(capsys: pytest.CaptureFixture[str]) -> None:
    for list_format in ("csv", "json"):
        print_list([{"name": "a", "count": 1}], list_format, LAYOUT, more="--before 3")
        assert "--before" not in capsys.readouterr().out
    print_list([{"name": "a", "count": 1}], None, LAYOUT, more="--before 3")
    assert capsys.readouterr().out.endswith("more: --before 3\n")
