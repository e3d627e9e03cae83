"""Read a Part 10 file in a separate process, because reading it may kill a worker.

    python -m ingest.workers.persist.isolated_reader DESCRIPTOR header|meta [TAG …]

The process prints the header of the file as one JSON object. Its end shows whether reading the file kills.
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

from ingest.dicom.file_header import InstanceHeader, read_instance_header
from ingest.dicom.part10 import read_file_meta
from ingest.errors import PeerError

READ_SECONDS: Final = 60.0
COMMAND: Final = (sys.executable, "-P", "-m", "ingest.workers.persist.isolated_reader")
_POLL_SECONDS: Final = 0.2
# Texts and numbers that the process prints. Notes and raw attributes stay behind: the file goes to
# quarantine.
_PRINTED: Final = frozenset(
    {
        "sop_instance_uid",
        "sop_class_uid",
        "study_uid",
        "series_uid",
        "transfer_syntax_uid",
        "calling_ae",
        "called_ae",
        "source",
        "size",
        "data_set_offset",
    }
)


@dataclass(frozen=True, slots=True)
class IsolatedReading:
    """The finding of the process.

    Attributes:
        header: The readable part of the header; blank if nothing was readable.
        fault: Why the file cannot be read, or empty.
    """

    header: InstanceHeader
    fault: str


def read_isolated(fd: int, tags: Sequence[int], progress: Callable[[], object]) -> IsolatedReading:
    """Read the header of a Part 10 file in a separate process.

    Args:
        fd: The open file.
        tags: Further top-level attributes to read.
        progress: Called often while the process works.

    Raises:
        OSError: No process could be started, or a person ended it. That proves nothing about the file.
    """
    code, answer = _run_reader(fd, ["header", *map(str, tags)], progress)
    if code >= 0 and "fault" not in answer:
        return IsolatedReading(InstanceHeader(**answer), "")
    fault = answer["fault"] if code >= 0 else f"reading it ends a process with {signal.Signals(-code).name}"
    code, answer = _run_reader(fd, ["meta"], progress)
    return IsolatedReading(InstanceHeader(**({} if code < 0 or "fault" in answer else answer)), fault)


def _run_reader(
    fd: int, arguments: Sequence[str], progress: Callable[[], object]
) -> tuple[int, dict[str, Any]]:
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
            output = _read_output(process, progress)
        finally:
            process.kill()
    code = process.returncode
    # A person, or the kernel for lack of memory, ends a process with SIGKILL. That proves nothing about the
    # file. INVARIANT 11: our faults quarantine no image.
    if code in {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT}:
        raise OSError(errno.EAGAIN, f"a file could not be tried: its process was ended with signal {-code}")
    return code, json.loads(output) if output else {}


def _read_output(process: subprocess.Popen[bytes], progress: Callable[[], object]) -> bytes:
    """Read what the process prints. A process that reaches the deadline counts as killed."""
    # INVARIANT 7: every wait has a deadline.
    deadline = time.monotonic() + READ_SECONDS
    while True:
        try:
            return process.communicate(timeout=_POLL_SECONDS)[0]
        except subprocess.TimeoutExpired:
            if time.monotonic() > deadline:
                return b""
            progress()


def _read_file(fd: int, part: str, tags: Sequence[int]) -> dict[str, Any]:
    """Read a file in the process, as the fields of `InstanceHeader`, or a "fault"."""
    try:
        if part == "header":
            header = asdict(read_instance_header(fd, os.fstat(fd).st_size, tags))
            return {name: header[name] for name in _PRINTED}
        meta, offset = read_file_meta(fd)
    except (OSError, MemoryError):
        raise
    except PeerError as error:
        return {"fault": str(error)}
    except Exception as error:  # a defect of ours that the bytes of the file bring out
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
    """Run the process, and return its exit code."""
    fd, part, *tags = arguments
    json.dump(_read_file(int(fd), part, [int(tag) for tag in tags]), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
