"""Imports run one way: ext <- ingest <- workers, and nothing of ours depends on tests or benchmarks."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.supervisor import supervisor

ROOT = Path(__file__).parents[2]
OURS = {"ext", "ingest", "workers", "tests", "benchmarks"}

MAY_IMPORT = {
    "ext": {"ext"},
    "ingest": {"ext", "ingest"},
    "workers": {"ext", "ingest", "workers"},
}

# What these must not load: listeners and the supervisor fork, and stay small.
SLOW = {"sqlalchemy", "alembic", "rq", "numpy"}


def modules(package: str) -> Iterator[Path]:
    for suffix in ("py", "pyi"):
        yield from sorted((ROOT / package).rglob(f"*.{suffix}"))


def imported(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that a module imports, relative names made absolute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = (
                ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            )
            yield node.lineno, f"{prefix}.{node.module or ''}".strip(".")
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = ast.unparse(node.func)
            if name in {"importlib.import_module", "import_module", "__import__"}:
                yield node.lineno, str(node.args[0].value)


def faults(package: str) -> list[str]:
    found = []
    for path in modules(package):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts[:-1])
        for line, target in imported(ast.parse(path.read_text()), name):
            top = re.sub(r"^ingest\.(ext|workers)\b", r"\1", target).partition(".")[0]
            if top in OURS and top not in MAY_IMPORT[package]:
                found.append(f"{path.relative_to(ROOT)}:{line} imports {target}")
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_run_one_way(package: str) -> None:
    assert list(modules(package))
    assert faults(package) == []


def test_cython_modules_import_nothing_of_ours_but_ext() -> None:
    found = []
    for path in sorted((ROOT / "ext").glob("*.p[yx][xd]")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            words = line.split()
            if words[:1] in (["from"], ["import"], ["cimport"]) and re.match(
                r"(ext|workers|tests|benchmarks|ingest(?!\.ext\b))\b", words[1]
            ):
                found.append(f"{path.name}:{number} {line}")
    assert found == []


@pytest.mark.parametrize("entry", supervisor.WORKERS.values())
def test_entry_points_of_workers_are_named_as_text_and_exist(entry: str) -> None:
    module, _, name = entry.partition(":")
    assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize("role", supervisor.WORKERS)
def test_entry_points_take_what_the_supervisor_gives(role: str) -> None:
    module, _, name = supervisor.WORKERS[role].partition(":")
    taken = list(inspect.signature(getattr(importlib.import_module(module), name)).parameters)
    assert taken == ["config", "stop", *(["remotes"] if role == "forward" else [])]


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


@pytest.mark.parametrize("path", sorted((ROOT / "ingest" / "dicom").glob("*.py")), ids=lambda path: path.name)
def test_what_decides_knows_of_no_network_and_no_clock(path: Path) -> None:
    names = {target.partition(".")[0] for _, target in imported(ast.parse(path.read_text()), "ingest.dicom")}
    assert not names & {"socket", "asyncio", "uvloop", "ssl", "time", "threading", "redis", "subprocess"}
