"""The names of the library: each exists, is described, and is imported late."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import ingest

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "reference" / "library.md"


@pytest.mark.parametrize("name", ingest.__all__)
def test_name_exists_has_a_docstring_and_is_on_the_page(name: str) -> None:
    value = getattr(ingest, name)
    assert isinstance(value, str) or value.__doc__
    assert re.search(rf"`{name}\b", PAGE.read_text()), f"{name} is missing in docs/reference/library.md"


def test_page_names_nothing_that_does_not_exist() -> None:
    named = set(re.findall(r"`ingest\.(\w+)", PAGE.read_text()))
    assert named <= {*ingest.__all__, "toml"}


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'ingest' has no attribute 'Nodes'"):
        _ = ingest.Nodes  # type: ignore[attr-defined]
    assert set(ingest.__all__) <= set(dir(ingest))


def test_import_and_help_load_nothing_of_the_library() -> None:
    code = (
        "import sys, ingest, ingest.cli; from click.testing import CliRunner; "
        "assert CliRunner().invoke(ingest.cli.main, ['--help']).exit_code == 0; "
        "print(*(name for name in ('ingest.library', 'sqlalchemy', 'pydantic') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
