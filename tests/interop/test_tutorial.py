"""The tutorial of docs/: each command runs as it is printed, in a fresh folder."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.nodes import eventually
from tests.support.ports import free_port

PAGE = Path(__file__).parents[2] / "docs" / "tutorial" / "five-minutes.md"
_NOT_RUN = ("make ", "export ", "mkdir ", "ingest serve")


class Tutorial:
    """A folder in which the page is followed, on ports of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        text = PAGE.read_text()
        for printed in ("2762", "2763"):
            text = text.replace(printed, str(free_port()))
        blocks = re.findall(r"```(toml)?\n(.*?)```", text, re.DOTALL)
        configurations = [content for language, content in blocks if language]
        for name, content in zip(("node", "archive"), configurations, strict=True):
            (folder / f"{name}.toml").write_text(content)
        self.commands = [
            command for language, block in blocks if not language for command in _commands_of(block)
        ]

    def run_until(self, last: str) -> str:
        """Run the next commands, up to the first one that contains `last`; return its output."""
        while True:
            command = self.commands.pop(0)
            said = self.run(command)
            if last in command:
                return said

    def run(self, command: str) -> str:
        environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["bash", "-ec", command], cwd=self.folder, env=environment, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    @contextmanager
    def serving(self, name: str) -> Iterator[None]:
        command = [sys.executable, "-m", "ingest.cli", "serve", "-c", f"{name}.toml"]
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, cwd=self.folder, stdout=subprocess.PIPE, stderr=log, text=True
            )
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("ready"), (self.folder / f"{name}.log").read_text()
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
        assert process.returncode == 0


def _commands_of(block: str) -> Iterator[str]:
    """The commands of a block: the lines after a prompt if there is one, otherwise all lines."""
    lines = block.splitlines()
    prompted = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    yield from (line for line in prompted or lines if line and not line.startswith(_NOT_RUN))


@pytest.mark.slow
def test_the_tutorial_works_as_it_is_printed(tmp_path: Path) -> None:
    tutorial = Tutorial(tmp_path)
    assert "sound" in tutorial.run_until("check -c archive.toml")
    with tutorial.serving("node"):
        with tutorial.serving("archive"):
            assert "answered in" in tutorial.run_until("--connect")
            assert "1 of 1 stored" in tutorial.run_until("ingest send")
            show = "ingest instances -c node.toml"
            eventually(lambda: "archive delivered" in tutorial.run(show), 20, "delivered to the archive")
            assert tutorial.run_until("find").count(".dcm") == 2
        assert "1 of 1 stored" in tutorial.run_until("ingest send")
        waiting = tutorial.commands.pop(0)
        eventually(lambda: "Connection refused" in tutorial.run(waiting), 20, "the reason of the wait")
        with tutorial.serving("archive"):
            (show,) = tutorial.commands
            eventually(lambda: tutorial.run(show).count("delivered") == 2, 30, "the second delivery")
