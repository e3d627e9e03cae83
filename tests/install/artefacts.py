"""What `make dist` builds, and fresh virtual environments to install it into."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

BUILD_SECONDS = 480
"""Time to compile everything on a busy machine."""


@dataclass(frozen=True)
class Dist:
    """The folder that `make dist` fills.

    Attributes:
        sdist: The sources, as .tar.gz.
        wheel: The wheel for the Python of this checkout.
        constraints: Versions of all dependencies.
    """

    sdist: Path
    wheel: Path
    constraints: Path

    @classmethod
    def of_folder(cls, folder: Path) -> "Dist":
        (sdist,) = folder.glob("*.tar.gz")
        (wheel,) = folder.glob("*.whl")
        return cls(sdist.resolve(), wheel.resolve(), (folder / "constraints.txt").resolve())


def skip_or_fail(reason: str) -> None:
    """Skip a test for which this machine lacks something; with CI=true that is a failure."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)


def require_programs(*names: str) -> None:
    """Skip the test unless all programs are installed."""
    for name in names:
        if shutil.which(name) is None:
            skip_or_fail(f"{name} is missing; .ci/run names its package")


def build_dist(folder: Path) -> Dist:
    """Run `make dist`, or take what INGEST_DIST names."""
    if ready := os.environ.get("INGEST_DIST"):
        return Dist.of_folder(Path(ready))
    run(["make", "-s", "-C", ROOT, "dist", f"DIST={folder}"], timeout=BUILD_SECONDS)
    return Dist.of_folder(folder)


def read_members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each file in a wheel or an sdist."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                if not name.endswith("/"):
                    yield name, wheel.read(name)
        return
    with tarfile.open(archive) as sdist:
        for member in sdist:
            file = sdist.extractfile(member) if member.isfile() else None
            if file is not None:
                yield member.name.partition("/")[2], file.read()


def run(command: "list[Any]", *, timeout: float = 300, check: bool = True, **options: Any) -> str:
    """Run a program outside of the checkout, and return what it prints on both outputs."""
    done = subprocess.run(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        **options,
    )
    assert not check or done.returncode == 0, f"{command} ended with {done.returncode}\n{done.stdout[-6000:]}"
    return done.stdout


@dataclass(frozen=True)
class Venv:
    """A virtual environment that knows nothing of the checkout.

    Attributes:
        folder: Where it is; commands run in the folder around it.
    """

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def ingest(self) -> Path:
        return self.folder / "bin" / "ingest"

    @property
    def environ(self) -> dict[str, str]:
        """The environment without what would lead Python to the checkout."""
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "INGEST_"))
        }
        return {**kept, "NO_COLOR": "1", "COLUMNS": "200"}

    def install(self, dist: Dist, *extras: str) -> None:
        """Install the wheel with these extras from the index that this machine uses."""
        wheel = f"{dist.wheel}[{','.join(extras)}]" if extras else dist.wheel
        self.run("-m", "pip", "install", "--quiet", "--constraint", dist.constraints, wheel)

    def run(self, *arguments: object, **options: Any) -> str:
        """Run Python."""
        return run([self.python, *arguments], cwd=self.folder.parent, env=self.environ, **options)

    def call(self, *arguments: object, **options: Any) -> "subprocess.CompletedProcess[str]":
        """Run `ingest` to its end, whatever its exit code."""
        return subprocess.run(
            [self.ingest, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            cwd=self.folder.parent,
            env=self.environ,
            **options,
        )

    def start(self, *arguments: object, log: Path) -> "subprocess.Popen[str]":
        """Start `ingest`; its standard output is a pipe, and the log goes to a file."""
        with log.open("w") as stream:
            return subprocess.Popen(
                [self.ingest, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                cwd=self.folder.parent,
                env=self.environ,
            )


def create_venv(folder: Path, python: str = sys.executable) -> Venv:
    """Make an empty virtual environment of a Python."""
    run([python, "-m", "venv", folder])
    return Venv(folder)
