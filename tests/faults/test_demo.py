"""The demo: everything arrives, it says so, and nothing of it is left; with `--keep` not before Ctrl-C."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.consoles import post_login
from tests.support.nodes import eventually

ROOT = Path(__file__).parents[2]


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with a space, and short: in pytest's own a socket would not fit, and be elsewhere."""
    with tempfile.TemporaryDirectory(prefix="a b ") as folder:
        yield Path(folder)


def start(place: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(Path(sys.executable).with_name("ingest")), "demo", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environ(place),
        start_new_session=True,
        # A test run in the background ignores the signal, and its children would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def environ(place: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "TMPDIR": str(place), "PYTHONPATH": str(ROOT), "PATH": path, "COLUMNS": "80"}


def assert_nothing_left(place: Path) -> None:
    assert list(place.iterdir()) == []
    left = [process.info["cmdline"] for process in psutil.process_iter(["cmdline"])]
    assert not [line for line in left if line and any(str(place) in word for word in line)]


@pytest.mark.long
def test_demo_takes_every_file_through_two_nodes_and_leaves_nothing(place: Path) -> None:
    process = start(place)
    said, _ = process.communicate(timeout=150)
    assert process.returncode == 0, said[-4000:]
    assert said.count("all equal") == 2
    assert_nothing_left(place)


def test_kept_demo_can_be_looked_at_and_ends_with_ctrl_c(place: Path) -> None:
    process = start(place, "--keep")
    said = ""
    try:
        assert process.stdout is not None
        for line in process.stdout:
            said += line
            if line.startswith("Ctrl-C stops"):
                break
        assert said.count("all equal") == 2, said[-4000:]
        values = dict(re.findall(r"^  (console|token|store) +(.+)$", said, re.MULTILINE))
        with httpx.Client(base_url=values["console"], timeout=20, trust_env=False) as browser:
            assert post_login(browser, "", values["token"]).status_code == 303
            page = browser.get("/", headers={"Accept": "text/html"})
            assert (page.status_code, "INGEST" in page.text) == (200, True)
        # The commands work as they are printed, in a shell of another folder.
        commands = re.findall(r"^  ((?:export|ingest) .+)$", said, re.MULTILINE)
        assert len(commands) == 6
        done = subprocess.run(
            ["bash", "-ec", "\n".join(commands)],
            cwd="/",
            env=environ(place),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "1 of 1 stored" in done.stdout
        store = Path(values["store"])
        remote = store.parents[2] / "remote" / "var" / "store"
        sent = sorted(path.relative_to(store) for path in store.rglob("*.dcm"))
        eventually(lambda: sorted(each.relative_to(remote) for each in remote.rglob("*.dcm")) == sent, 30)
        running = psutil.Process(process.pid).children(recursive=True)
        assert len(running) > 6
        os.killpg(process.pid, signal.SIGINT)
        rest, _ = process.communicate(timeout=90)
        assert process.returncode == 0, rest
    finally:
        process.kill()
        process.communicate()
    assert not [each for each in running if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
    assert_nothing_left(place)
