"""The tutorial of docs/: each command runs as it is printed, in a fresh folder."""

import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.nodes import eventually
from tests.support.pages import DOCS, SHELL, Walk, read_blocks, serving

PAGE = DOCS / "tutorial" / "five-minutes.md"


class Tutorial:
    """A folder in which the page is followed, command by command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.walk = Walk(folder)
        blocks = read_blocks(PAGE)
        for block in blocks:
            if block.file_name:
                self.walk.follow(block)
        self.commands = list(self._read_commands())

    def _read_commands(self) -> Iterator[str]:
        for block in read_blocks(PAGE):
            if block.language in SHELL and not block.remark:
                yield from (line for line in self.walk.localize(block.commands).splitlines() if line)

    def run_until(self, last: str) -> str:
        """Run the next commands, up to the first one that contains `last`; return its output."""
        while True:
            command = self.commands.pop(0)
            # The test starts and stops the nodes at the places where the page does.
            said = "" if command.startswith("ingest serve") else self.walk.run(command)
            if last in command:
                return said


@pytest.mark.slow
def test_the_tutorial_works_as_it_is_printed(tmp_path: Path) -> None:
    tutorial = Tutorial(tmp_path)
    walk = tutorial.walk
    assert "sound" in tutorial.run_until("check -c archive/ingest.toml")
    with serving(tmp_path, "node/ingest.toml"):
        with serving(tmp_path, "archive/ingest.toml"):
            assert "answered in" in tutorial.run_until("--connect")
            assert "1 of 1 stored" in tutorial.run_until("ingest send")
            show = "ingest instances -c node/ingest.toml"
            eventually(lambda: "archive delivered" in walk.run(show), 20, "delivered to the archive")
            assert tutorial.run_until("find").count(".dcm") == 2
            address, token = tutorial.run_until("ingest console").split()[:3:2]
            assert token.startswith("ingest_")
            with urllib.request.urlopen(f"{address}login", timeout=10) as page:
                assert b"token" in page.read()
        assert "1 of 1 stored" in tutorial.run_until("ingest send")
        waiting = tutorial.commands.pop(0)
        eventually(lambda: "Connection refused" in walk.run(waiting), 20, "the reason of the wait")
        with serving(tmp_path, "archive/ingest.toml"):
            (show,) = tutorial.commands
            eventually(lambda: walk.run(show).count("delivered") == 2, 30, "the second delivery")
