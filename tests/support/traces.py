"""What a process asked of the kernel, as strace(1) tells it."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.support.peers import require_program

CALLS = "fdatasync,fsync,pwritev,rename,renameat,renameat2,write,sendto"
_CALL = re.compile(r"(?P<name>\w+)\((?P<arguments>.*)\) += (?P<result>-?\d+)")
_RESUMED = re.compile(r"<\.\.\. \w+ resumed>")


def strace(output: Path, *options: str) -> list[str]:
    """The command that writes the calls of another one, or of a process (`-p PID`), to a file."""
    return [
        require_program("strace"),
        "-f",
        "-y",
        "-x",
        "-s",
        "256",
        "-o",
        str(output),
        "-e",
        f"trace={CALLS}",
        *options,
    ]


@dataclass(frozen=True)
class Call:
    """One system call that succeeded.

    Attributes:
        name: As "fsync".
        arguments: As strace prints them, descriptors with their paths.
        start: When it began, as a line of the trace.
        end: When it had returned.
    """

    name: str
    arguments: str
    start: int
    end: int


@dataclass(frozen=True)
class Trace:
    """All of them, in the order in which they returned."""

    all: tuple[Call, ...]

    @classmethod
    def read(cls, path: Path) -> Self:
        """The trace in a file; calls that failed are left out."""
        found: list[Call] = []
        begun: dict[str, tuple[str, int]] = {}
        for number, line in enumerate(path.read_text().splitlines()):
            pid, rest = line.split(maxsplit=1)
            start = number
            if rest.endswith("<unfinished ...>"):
                begun[pid] = rest.removesuffix("<unfinished ...>").rstrip(), number
                continue
            if pid in begun and (resumed := _RESUMED.match(rest)):
                head, start = begun.pop(pid)
                rest = head + rest[resumed.end() :]
            if (match := _CALL.match(rest)) and int(match["result"]) >= 0:
                found.append(Call(match["name"], match["arguments"], start, number))
        return cls(tuple(found))

    def calls(self, *names: str) -> list[Call]:
        """Those with one of the names."""
        return [call for call in self.all if call.name in names]

    def one(self, name: str, about: str) -> Call:
        """The only call of that name in whose arguments a text is.

        Raises:
            AssertionError: There is none, or more than one.
        """
        found = [call for call in self.calls(name) if about in call.arguments]
        assert len(found) == 1, f"{name} of {about}: {found}"
        return found[0]

    def promised(self, name: str, folder: str) -> int:
        """When a file was durable under its name in a folder: its bytes, the name, the folder, in this order.

        Args:
            name: Of the file while it was being received, or a part of it that no other has.
            folder: How the path of the folder that it was moved to ends.

        Raises:
            AssertionError: It never was, or not in this order.
        """
        synced, renamed = self.one("fdatasync", name), self.one("renameat", name)
        assert synced.end < renamed.start, "renamed before its bytes are durable"
        assert f"{folder}>" in renamed.arguments
        ends = [
            call.end
            for call in self.calls("fsync")
            if call.arguments.endswith(f"{folder}>") and call.start > renamed.end
        ]
        assert ends, "its folder was never made durable"
        return min(ends)
