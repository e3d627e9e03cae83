"""What a program was built from: version and commit.

setup.py writes the commit into the module `ingest._build` of a wheel and of an sdist. A checkout has no such
module, because it would become old with the next commit: git is asked instead.
"""

import subprocess
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Final

DISTRIBUTION: Final = "dicom-ingest"

BUILD_MODULE: Final = "ingest/_build.py"
"""The generated module, in a wheel and in an sdist."""

_GIT_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit of the sources.

    Attributes:
        name: The beginning of its hash, with `-dirty` if files were changed after it.
        date: Its date, as YYYY-MM-DD.
    """

    name: str
    date: str


def read_version() -> str:
    """Return the version of the installed distribution; "0" if the sources run without an installation."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "0"


def find_commit() -> Commit | None:
    """Return the commit that this program was built from; None if nothing says so."""
    try:
        built = import_module("ingest._build")
    except ModuleNotFoundError:
        return _ask_git(Path(__file__).parents[1])
    return Commit(built.COMMIT, built.DATE)


def format_build_module(commit: Commit) -> str:
    """Return the text of the generated module."""
    return f'"""Written by the build."""\n\nCOMMIT = "{commit.name}"\nDATE = "{commit.date}"\n'


def _ask_git(root: Path) -> Commit | None:
    if not (root / ".git").exists():
        return None
    name = _run_git(root, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    date = _run_git(root, "show", "--no-patch", "--format=%cs", "HEAD")
    return Commit(name, date) if name and date else None


def _run_git(root: Path, *arguments: str) -> str:
    """Return what git prints; nothing if it fails or does not end."""
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_GIT_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
