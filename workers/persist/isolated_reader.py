"""Reading a Part 10 file in a process of its own, where reading it may be what kills a worker.

    python -m workers.trial DESCRIPTOR header|meta [TAG …]

prints what the file says as one JSON object. Its end tells the worker whether reading the file kills.
"""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from ingest.dicom.part10 import read_file_meta
from ingest.errors import PeerError
from ingest.workers.persist.arrival import Facts, identify
from ingest.workers.store.filesystem import Source

TRIAL_SECONDS: Final = 60.0
COMMAND: Final = (sys.executable, "-P", "-m", "ingest.workers.persist.isolated_reader")
_POLL_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class Trial:
    """What a trial has shown.

    Attributes:
        said: What could be read of the file, by the names of `Facts`; empty where that is nothing.
        fault: Why the file cannot be read, or empty where it can.
    """

    said: dict[str, Any]
    fault: str


def try_to_read(fd: int, tags: Sequence[int], progress: Callable[[], object]) -> Trial:
    """Read the header of a Part 10 file in a process of its own.

    Args:
        fd: The open file.
        tags: Further top-level attributes to read.
        progress: Called often while the process is at work.

    Raises:
        OSError: No process could be had, or something else ended it: nothing is proved.
    """
    code, said = _run(fd, ["header", *map(str, tags)], progress)
    if code >= 0 and "fault" not in said:
        return Trial(said, "")
    fault = said["fault"] if code >= 0 else f"reading it ends a process with {signal.Signals(-code).name}"
    code, said = _run(fd, ["meta"], progress)
    return Trial({} if code < 0 or "fault" in said else said, fault)


def _run(fd: int, arguments: Sequence[str], progress: Callable[[], object]) -> tuple[int, dict[str, Any]]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [*COMMAND, str(fd), *arguments],
        pass_fds=[fd],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    ) as process:
        try:
            said = _answer(process, progress)
        finally:
            process.kill()
    code = process.returncode
    # A person, or the kernel for want of memory, ends a process with KILL: that says nothing of the file.
    if code in {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT}:
        raise OSError(errno.EAGAIN, f"a file could not be tried: its process was ended with signal {-code}")
    return code, json.loads(said) if said else {}


def _answer(process: subprocess.Popen[bytes], progress: Callable[[], object]) -> bytes:
    """What the process prints; what is ended at the deadline counts as killed."""
    deadline = time.monotonic() + TRIAL_SECONDS
    while True:
        try:
            return process.communicate(timeout=_POLL_SECONDS)[0]
        except subprocess.TimeoutExpired:
            if time.monotonic() > deadline:
                return b""
            progress()


def _say(facts: Facts) -> dict[str, Any]:
    wanted = {name: value for name, value in asdict(facts).items() if isinstance(value, str | int)}
    return {name: wanted[name] for name in wanted if name not in {"conflict", "note", "receiver"}}


def _read(fd: int, what: str, tags: Sequence[int]) -> dict[str, Any]:
    try:
        if what == "header":
            return _say(identify(Source.of("", fd, synced=True), tags))
        meta, offset = read_file_meta(fd)
    except (OSError, MemoryError):
        raise
    except PeerError as error:
        return {"fault": str(error)}
    except Exception as error:  # a fault of ours that the file's bytes bring out
        return {"fault": f"{type(error).__name__}: {error}"}
    return {
        "sop_instance_uid": meta.sop_instance_uid,
        "sop_class_uid": meta.sop_class_uid,
        "transfer_syntax_uid": meta.transfer_syntax_uid,
        "calling_ae": meta.calling_ae,
        "called_ae": meta.called_ae,
        "source": meta.source_address or "",
        "data_set_offset": offset,
    }


def main(arguments: Sequence[str]) -> int:
    """The process of a trial; returns its exit code."""
    fd, what, *tags = arguments
    json.dump(_read(int(fd), what, [int(tag) for tag in tags]), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
