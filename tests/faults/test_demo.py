"""The demo, as `make demo` runs it: everything arrives, it says so, and nothing of it is left."""

import os
import subprocess
import sys
from pathlib import Path

import psutil


def test_demo_takes_every_file_through_two_nodes_and_leaves_nothing(tmp_path: Path) -> None:
    place = tmp_path / "with a space"
    place.mkdir()
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
