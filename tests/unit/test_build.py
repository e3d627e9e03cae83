"""A build that lacks something ends with what to install. It never makes a package without extensions."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from ingest.extras import EXTRAS

ROOT = Path(__file__).parents[2]

WITHOUT_CYTHON = """
import runpy, sys
sys.modules["Cython"] = None
sys.argv = ["setup.py", *sys.argv[1:]]
runpy.run_path("setup.py", run_name="__main__")
"""

COMPILER = """#!/bin/sh
# Reads a program from its standard input, as the probes of the build write it.
if [ -n "{refused}" ] && cat | tee "$0.source" | grep -q "{refused}"; then
  echo "fatal error: not found" >&2
  exit 1
fi
exec gcc "$@" <"$0.source"
"""


def build(folder: Path, *arguments: str, root: Path = ROOT, compiler: str = "") -> str:
    """Run a build that has to fail, and return its last line."""
    target = ["--build-lib", str(folder / "lib"), "--build-temp", str(folder / "temp")]
    done = subprocess.run(
        [sys.executable, *arguments, "-q", "build_ext", *target],
        cwd=root,
        env={**os.environ, **({"CC": compiler} if compiler else {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "fatal error" not in done.stderr
    assert not list(folder.rglob("*.so"))
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("refused", "package"),
    [("stdio.h", "gcc libc6-dev"), ("Python.h", "python3-dev"), ("openssl/ssl.h", "libssl-dev")],
)
def test_a_build_without_headers_names_the_package_to_install(
    tmp_path: Path, refused: str, package: str
) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text(COMPILER.format(refused=refused))
    compiler.chmod(0o755)
    assert build(tmp_path, "setup.py", compiler=str(compiler)).endswith(f"apt-get install {package}")


def test_a_build_without_a_compiler_names_the_package_to_install(tmp_path: Path) -> None:
    said = build(tmp_path, "setup.py", compiler=str(tmp_path / "absent"))
    assert said == "dicom-ingest: no C compiler runs; apt-get install gcc libc6-dev"


def test_a_build_without_cython_says_so(tmp_path: Path) -> None:
    said = build(tmp_path, "-c", WITHOUT_CYTHON)
    assert said.startswith("dicom-ingest: Cython is missing; pip install 'cython>=3.1'")


def test_a_build_without_cython_sources_says_so(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "ingest").mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "README.md", "ingest/__init__.py", "ingest/build_info.py"):
        shutil.copy(ROOT / name, root / name)
    assert "ext/*.pyx are missing" in build(tmp_path, "setup.py", root=root)


def test_links_that_were_not_unpacked_are_named(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "ingest").mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "README.md", "ingest/__init__.py", "ingest/build_info.py"):
        shutil.copy(ROOT / name, root / name)
    shutil.copytree(ROOT / "ext", root / "ext", ignore=shutil.ignore_patterns("*.so", "*.c"))
    (root / "ingest/ext").write_text("../ext")
    assert "ingest/ext and ingest/workers are no links" in build(tmp_path, "setup.py", root=root)


def test_modules_of_extras_are_those_of_their_packages() -> None:
    tables = tomllib.loads((ROOT / "pyproject.toml").read_text())
    optional = tables["project"]["optional-dependencies"]
    distributions = packages_distributions()
    assert set(optional) == set(EXTRAS)
    for extra, modules in EXTRAS.items():
        wanted = [Requirement(package) for package in optional[extra]]
        packages = {each.name for each in wanted if each.marker is None or each.marker.evaluate()}
        assert {distributions[module][0].lower().replace("_", "-") for module in modules} == packages
        always = {re.split(r"[\[>=]", package)[0] for package in tables["project"]["dependencies"]}
        assert not packages & always


def test_nothing_installs_by_the_bare_name() -> None:
    """On the public index the name is not ours: the wheel is installed by its file name."""
    files = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "Makefile", ROOT / ".ci/run"]
    files += [path for folder in ("config", "ingest", "tests") for path in (ROOT / folder).rglob("*")]
    bare = re.compile(r"""^['"(]?dicom[-_]ingest(\[[\w,]*\])?([=<>~]=?[\w.]*)?['"),.;]*$""")
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in files
        if path.is_file()
        and path.suffix not in {".so", ".pyc", ".woff2"}
        and "node_modules" not in path.parts
        for line in path.read_text("utf-8", "ignore").splitlines()
        if re.search(r"\b(pip|pipx|uv|uvx)3?\b.*\b(install|download|run|tool|wheel)\b", line)
        if any(bare.match(word) for word in line.split())
    ]
    assert found == []
