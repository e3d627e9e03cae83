"""The codec process: transcodes one frame after another, until its worker closes the pipe.

A request is a line of JSON on standard input; its frame is in the shared memory, from position 0. The answer
is a line of JSON on standard output, and the new frame is at the same place.
"""

import json
import os
import resource
import signal
import sys
from typing import Any, Final

from ingest.codecs.frame import FrameJob

MEMORY_BYTES_MAX: Final = 2 << 30
"""Limit of a codec's memory. A damaged frame may claim any size."""


def main() -> int:
    """Answer requests until the end of standard input."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the end of the worker is the end of this process
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    # Some libraries print to standard output.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    memory = int(sys.argv[1])
    for line in sys.stdin.buffer:
        answers.write(json.dumps(_answer(json.loads(line), memory)).encode() + b"\n")
    return 0


def _answer(request: dict[str, Any], memory: int) -> dict[str, Any]:
    from ingest.codecs.libraries import transcode_frame  # noqa: PLC0415 - after the limits are set

    try:
        frame = os.pread(memory, request["length"], 0)
        made = transcode_frame(FrameJob.from_json(request["job"]), frame)
        os.pwrite(memory, made, 0)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"length": len(made)}


if __name__ == "__main__":
    sys.exit(main())
