"""The page of licences names every dependency, and none has the GPL."""

import re
import sys
from pathlib import Path

import pytest

from tests.support.licences import NPM, PAGE, list_dependencies, list_npm_licences

VENDOR = Path(__file__).parents[2] / "ingest/console/static/vendor"

_ROW = re.compile(r"^\| ([\w./@-]+) \| (.+) \|$", re.MULTILINE)


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the page has what Python 3.11 needs")
def test_page_has_every_dependency_and_no_gpl() -> None:
    licences = dict(_ROW.findall(PAGE.read_text()))
    missing = set(list_dependencies()) - set(licences)
    assert missing == set(), "run `make licences`"
    strong = {
        name
        for name, licence in licences.items()
        if re.search(r"\bA?GPL|(?<!Lesser )General Public", licence)
    }
    assert strong == set()
    weak = {name for name, licence in licences.items() if re.search(r"LGPL|Lesser General", licence)}
    assert weak == {"psycopg"}
    assert "UNKNOWN" not in licences.values()


@pytest.mark.parametrize("folder", NPM)
def test_page_has_every_npm_package(folder: str) -> None:
    page = PAGE.read_text()
    _, _, below = page.partition(f"## {NPM[folder]}\n")
    rows = dict(_ROW.findall(below.partition("\n## ")[0]))
    assert {name: rows.get(name) for name in list_npm_licences(folder)} == list_npm_licences(folder), (
        "run `make licences`"
    )


def test_page_names_the_vendored_files() -> None:
    page = PAGE.read_text()
    for row in re.findall(
        r"^\| `([a-z]+)/.*\| (0BSD|MIT|OFL 1\.1),", (VENDOR / "README.md").read_text(), re.M
    ):
        folder, licence = row
        assert licence in page
        assert folder == "fonts" or folder in page.lower()
