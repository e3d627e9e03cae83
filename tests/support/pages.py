"""Pages of docs/ as programs: their blocks in order, and a folder in which a page is followed.

Blocks of `sh` are commands. In blocks of `console` the lines after a prompt are commands, and the others
show what they print. A block whose first line is a comment with a file name is that file. A line
`ingest serve -c FILE` starts a node, which runs until the page ends.

A block of commands that no test can run has no language. A remark stands in the line before it:
`<!-- not run: why -->`.
"""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from tests.support.ports import free_port

DOCS: Final = Path(__file__).parents[2] / "docs"
SHELL: Final = frozenset({"sh", "console"})
_FENCE: Final = re.compile(
    r"^(?P<indent> *)```(?P<language>[\w-]*)\n(?P<text>.*?)^(?P=indent)```$", re.M | re.S
)
_REMARK: Final = re.compile(r"<!-- not run: (.+?) -->\s*\Z")
_FILE: Final = re.compile(r"(?:#|//) ([\w-]+\.(?:toml|json|py))\n")
_SERVE: Final = re.compile(r"^ingest serve -c (\S+)$", re.M)
_PORTS: Final = re.compile(r"\b(104|2762|2763|4242|8042|8080|11112|11113)\b")

_PRELUDE: Final = """
trap 'kill $(jobs -p) 2> /dev/null || true' EXIT
ingest() {
  local code=0
  command ingest "$@" || code=$?
  # A node that a person should look at is no fault of the page.
  if [ "$1" = status ] && [ "$code" = 1 ]; then return 0; fi
  return "$code"
}
"""


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        heading: The heading above it.
        remark: Why it is not run; empty without a remark.
    """

    heading: str
    language: str
    text: str
    remark: str

    @property
    def file_name(self) -> str:
        """The file that the block is; empty if it is none."""
        found = _FILE.match(self.text)
        return found[1] if found and self.language not in SHELL else ""

    @property
    def commands(self) -> str:
        """The commands of a block of `sh` or `console`, as a program for bash."""
        if self.language == "sh":
            return self.text
        lines = [line.removeprefix("$ ") for line in self.text.splitlines() if line.startswith("$ ")]
        return "".join(f"{line}\n" for line in lines)


def read_blocks(page: Path, heading: str | None = None) -> list[Block]:
    """Read the blocks of a page, or those below one heading."""
    text = page.read_text()
    headings = [(found.start(), found[1]) for found in re.finditer(r"^#+ (.+)$", _blank_blocks(text), re.M)]
    blocks = []
    for found in _FENCE.finditer(text):
        above = [name for start, name in headings if start < found.start()]
        indent = len(found["indent"])
        content = re.sub(rf"^ {{1,{indent}}}", "", found["text"], flags=re.M) if indent else found["text"]
        remark = _REMARK.search(text[: found.start()])
        blocks.append(
            Block(above[-1] if above else "", found["language"], content, remark[1] if remark else "")
        )
    return [block for block in blocks if heading in {None, block.heading}]


def read_section(page: Path, heading: str) -> str:
    """Read the text below one heading, up to the next one of its level or above."""
    text = page.read_text()
    found = re.search(rf"^(#+) {re.escape(heading)}$", text, re.M)
    assert found, heading
    rest = text[found.end() :]
    after = re.search(rf"^#{{1,{len(found[1])}}} ", _blank_blocks(rest), re.M)
    return rest[: after.start()] if after else rest


def _blank_blocks(text: str) -> str:
    """Replace fenced blocks by blanks of the same length: their comments are no headings."""
    return _FENCE.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)


class Walk:
    """A folder in which a page is followed, on ports of its own.

    Attributes:
        folder: Where its commands run.
        ports: Printed port to the one that is used.
        typed: The answers to what commands ask.
    """

    typed = "y\n" * 20

    def __init__(self, folder: Path, ports: dict[str, int] | None = None) -> None:
        self.folder = folder
        self.ports = dict(ports or {})
        self._served = contextlib.ExitStack()
        programs = folder / ".programs"
        programs.mkdir(exist_ok=True)
        (programs / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (programs / "python").chmod(0o755)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._served.close()

    def follow(self, block: Block) -> str:
        """Write the file that a block is, or run its commands; returns what they print."""
        if block.file_name:
            (self.folder / block.file_name).write_text(self.localize(block.text))
        if block.language not in SHELL or block.remark:
            return ""
        said, rest = "", self.localize(block.commands)
        for found in _SERVE.finditer(rest):
            said += self.run(rest[: found.start()])
            self._serve(found[1])
            rest = rest[found.end() :]
        return said + self.run(rest)

    def run(self, commands: str, codes: frozenset[int] = frozenset({0})) -> str:
        """Run commands by bash, which stops at the first that fails; returns both outputs."""
        if not commands.strip():
            return ""
        done = subprocess.run(
            ["bash", "-ec", _PRELUDE + commands],
            cwd=self.folder,
            env=self._environment,
            input=self.typed,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=120,
            check=False,
        )
        assert done.returncode in codes, (
            f"{commands}\nexit code {done.returncode}\n{done.stdout}{done.stderr}"
        )
        return done.stdout + done.stderr

    def localize(self, text: str) -> str:
        """Put ports of our own and the file of this folder in the place of those that are printed."""
        text = text.replace("/etc/dicom-ingest/ingest.toml", "ingest.toml").replace(
            "-c FILE", "-c ingest.toml"
        )
        return _PORTS.sub(lambda found: str(self._choose_port(found[1])), text)

    def _choose_port(self, printed: str) -> int:
        if printed not in self.ports:
            self.ports[printed] = free_port()
        return self.ports[printed]

    @property
    def _environment(self) -> dict[str, str]:
        # pynetdicom installs programs with the names of DCMTK's beside ours, so ours come last.
        own = Path(sys.executable).parent
        path = f"{self.folder}/.programs:{os.environ['PATH']}:/usr/sbin:{own}"
        return os.environ | {"PATH": path, "NO_COLOR": "1"}

    def _serve(self, name: str) -> None:
        self._served.enter_context(serving(self.folder, name))


@contextlib.contextmanager
def serving(folder: Path, name: str) -> Iterator[None]:
    """Run a node with a configuration of this folder until the end of the context."""
    log_path = folder / f"{name}.log"
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ingest.cli", "serve", "-c", name],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready"), log_path.read_text()
        yield
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 0, log_path.read_text()[-3000:]
