"""The demo, as `make demo` runs it: everything arrives, it says so, and nothing of it is left."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with a space, and short: in pytest's own a socket would not fit, and be elsewhere."""
    with tempfile.TemporaryDirectory(prefix="a b ") as folder:
        yield Path(folder)


def test_demo_takes_every_file_through_two_nodes_and_leaves_nothing(place: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ingest.cli", "demo"],
        capture_output=True,
        text=True,
        timeout=150,
        env={**os.environ, "TMPDIR": str(place), "PYTHONPATH": str(Path(__file__).parents[2])},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stdout.count("all equal") == 2
    assert list(place.glob("dicom-ingest demo*")) == []
    left = [process.info["cmdline"] for process in psutil.process_iter(["cmdline"])]
    assert not [line for line in left if line and any(str(place) in word for word in line)]
