"""Older releases of this program, built from its history, and nodes that run them."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.nodes import Node

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "build" / "releases"
"""Built trees stay here: a commit never changes."""


def build_release(commit: str) -> Path:
    """Return the tree of a commit with its extensions built; skip, in CI too, without the history."""
    folder = CACHE / commit
    if folder.is_dir():
        return folder
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=False)
    if archive.returncode:
        pytest.skip(
            f"commit {commit[:12]} cannot be built, so no upgrade from it is tried: {_explain_absence()}"
        )
    CACHE.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=commit, dir=CACHE))
    subprocess.run(["tar", "-x"], cwd=building, input=archive.stdout, check=True)
    if _has_our_extensions(commit):
        for built in (ROOT / "ext").glob("*.so"):
            shutil.copy(built, building / "ext")
    else:
        _build_extensions(building)
    try:
        building.rename(folder)
    except OSError:  # another process was faster
        shutil.rmtree(building)
    return folder


def _explain_absence() -> str:
    command = ["git", "rev-parse", "--is-shallow-repository"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if told.returncode:
        return f"git finds no repository here, as in an unpacked sdist ({told.stderr.strip()})"
    if told.stdout.strip() == "true":
        return "this clone is shallow; get its history with `git fetch --unshallow`"
    return "the history of this repository does not have it"


def _has_our_extensions(commit: str) -> bool:
    """Whether the extensions of a commit are those of this tree, so that nothing has to be compiled."""
    compared = subprocess.run(["git", "diff", "--quiet", commit, "--", "ext"], cwd=ROOT, check=False)
    return compared.returncode == 0


def _build_extensions(tree: Path) -> None:
    # Without optimisation they are built in a third of the time. What is tested here is no speed.
    compiler = tree / "cc"
    compiler.write_text('#!/bin/bash\nexec gcc "${@/-O3/-O0}"\n')
    compiler.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "-j2"],
        cwd=tree, capture_output=True, text=True, check=False,
        env={**os.environ, "CC": str(compiler), "PYTHONPATH": str(tree)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]


def launch_old(node: Node, tree: Path) -> None:
    """Start a node with the code of another tree, on the folder and the ports of `node`."""
    node.tree = tree
    try:
        node.start()
    finally:
        node.tree = ROOT
