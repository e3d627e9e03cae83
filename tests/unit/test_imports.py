"""Imports that the contracts in pyproject.toml cannot see: Cython, entry points, what a process loads."""

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ingest.supervisor import supervisor

ROOT = Path(__file__).parents[2]

# What these must not load: listeners and the supervisor fork, and stay small.
SLOW = {"sqlalchemy", "alembic", "rq", "numpy"}


@pytest.mark.parametrize(
    "path",
    sorted(path for path in (ROOT / "ext").iterdir() if path.suffix in {".pyx", ".pxd", ".pyi"}),
    ids=lambda path: path.name,
)
def test_cython_modules_import_nothing_of_ours_but_ext(path: Path) -> None:
    found = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        words = line.split()
        if words[:1] in (["from"], ["import"], ["cimport"]) and re.match(
            r"(ext|workers|tests|benchmarks|ingest(?!\.ext\b))\b", words[1]
        ):
            found.append(f"{number} {line}")
    assert found == []


@pytest.mark.parametrize("entry", supervisor.WORKERS.values())
def test_entry_points_of_workers_are_named_as_text_and_exist(entry: str) -> None:
    module, _, name = entry.partition(":")
    assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize("role", supervisor.WORKERS)
def test_entry_points_take_what_the_supervisor_gives(role: str) -> None:
    module, _, name = supervisor.WORKERS[role].partition(":")
    taken = list(inspect.signature(getattr(importlib.import_module(module), name)).parameters)
    more = {"forward": ["remotes", "plans"], "console": ["path", "link"]}
    assert taken == ["config", "stop", *more.get(role, [])]


@pytest.mark.parametrize(
    "module", ["ingest.supervisor.supervisor", "ingest.spool.spool", "ingest.dicom.wire"]
)
def test_what_forks_or_decides_loads_no_more_than_it_needs(module: str) -> None:
    code = (
        f"import sys, {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}));"
        "assert 'ingest.workers' not in sys.modules"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(result.stdout.split())
    assert not loaded & SLOW
