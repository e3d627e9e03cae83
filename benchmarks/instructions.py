"""How many instructions parsing a fixed stream takes, counted by valgrind: the same figure on every run.

Counted is what happens inside the parser's methods, down to the write; not the interpreter around them and
not the kernel's work.
"""

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import stream
from benchmarks.peers import find_program

ROUNDS = 8
METHODS = "__pyx_pw_6ingest_3ext_3pdu_9PDUParser_*"  # Cython's names of what Python calls
SECONDS = 300


class CountError(Exception):
    """There is no count; the message says what valgrind printed."""


@dataclass(frozen=True, slots=True)
class Count:
    """Instructions for one stream.

    Attributes:
        stream: Its name.
        total: For the whole stream.
        per_byte: Of the stream.
        per_pdu: Of the P-DATA-TFs in it.
        per_instance: Of the C-STORE requests in it.
    """

    stream: str
    total: int
    per_byte: float
    per_pdu: float
    per_instance: float


def count_all() -> list[Count]:
    """Count every fixed stream.

    Raises:
        Unavailable: valgrind is not on the PATH.
        CountError: It ended without a count.
    """
    return [count(number) for number in range(len(stream.STREAMS))]


def as_values(counts: list[Count]) -> list[dict[str, object]]:
    """For JSON."""
    return [asdict(count) for count in counts]


def count(number: int) -> Count:
    """Count one of `stream.STREAMS`.

    Raises:
        Unavailable: valgrind is not on the PATH.
        CountError: It ended without a count.
    """
    sample = stream.stream(*stream.STREAMS[number])
    total = _instructions(sample.data, ROUNDS) / ROUNDS
    return Count(
        sample.name,
        round(total),
        total / len(sample.data),
        total / sample.pdus,
        total / sample.instances,
    )


def _instructions(data: bytes, rounds: int) -> int:
    """Of the parser's methods in a process that parses `data` so often."""
    valgrind = find_program("valgrind")
    with tempfile.TemporaryDirectory(prefix="callgrind") as folder:
        command = [valgrind, "--tool=callgrind", f"--toggle-collect={METHODS}"]
        command += [f"--callgrind-out-file={Path(folder) / 'out'}"]
        command += [sys.executable, "-m", "benchmarks.parsing", str(rounds)]
        # One seed, one allocator, no late binding and no bytecode that one run leaves for the next, or the
        # count would differ from run to run.
        environment = {
            **os.environ,
            "PYTHONHASHSEED": "0",
            "PYTHONMALLOC": "malloc",
            "PYTHONDONTWRITEBYTECODE": "1",
            "LD_BIND_NOW": "1",
        }
        done = subprocess.run(
            command,
            env=environment,
            input=data,
            capture_output=True,
            timeout=SECONDS,
            check=False,
            cwd=Path(__file__).parents[1],
        )
    said = done.stderr.decode(errors="replace")
    found = re.search(r"Collected : (\d+)", said)
    if done.returncode != 0 or found is None or int(found[1]) == 0:
        raise CountError(f"valgrind counted nothing (exit {done.returncode}):\n{said[-2000:]}")
    return int(found[1])
