"""The codec processes of one forward worker: at most `encoders` of them, started with the first frame.

Each process has a block of shared memory that holds one frame. Memory is therefore bounded by a frame for
each encoder. Frames come back in order. While the worker sends one, the processes transcode the next ones.

A process that ends, or does not answer in time, is replaced at the next frame. Its frame is the cause.
"""

import errno
import json
import os
import select
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Final

from ingest.codecs.frame import FrameJob
from ingest.errors import RewriteError

ANSWER_SECONDS: Final = 30.0
"""Deadline for a small frame. A large one gets a second more for each `BYTES_PER_SECOND`."""
BYTES_PER_SECOND: Final = 1 << 20
TICK_SECONDS: Final = 0.2
END_SECONDS: Final = 5.0

_ANSWER_BYTES_MAX: Final = 1 << 16
_ENVIRONMENT: Final = {
    # Libraries for arrays would start a thread for each core.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # Without these, the memory of each frame goes back to the kernel and is cleared again for the next one.
    # That takes a sixth of the time of a fast codec.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 26),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 27),
}


class CodecPool:
    """Codec processes, none of them at first. A fork inherits an empty pool."""

    def __init__(self, encoders: int) -> None:
        """Prepare without starting a process."""
        self._encoders = [_Encoder() for _ in range(encoders)]

    def transcode(
        self, job: FrameJob, frames: Iterable[bytes], on_tick: Callable[[], None]
    ) -> Generator[bytes, None, None]:
        """Yield the frames of a data set in the wanted transfer syntax, in order.

        Args:
            job: What to do with each frame.
            frames: The frames. At most one for each encoder is read ahead.
            on_tick: Called at least twice a second during each wait.

        Raises:
            RewriteError: A frame cannot be transcoded.
            OSError: A process cannot be started, or a frame cannot be read.
        """
        token = object()
        waiting: deque[_Encoder] = deque()
        try:
            for frame in frames:
                if len(waiting) < len(self._encoders):
                    encoder, made = self._encoders[len(waiting)], None
                else:
                    encoder = waiting.popleft()
                    made = encoder.receive(on_tick)
                encoder.submit(job, frame, token)
                waiting.append(encoder)
                if made is not None:
                    yield made
            while waiting:
                yield waiting.popleft().receive(on_tick)
        finally:
            for encoder in waiting:
                encoder.stop_if_busy(token)

    def close(self) -> None:
        """End the processes."""
        for encoder in self._encoders:
            encoder.stop()


class _Encoder:
    """One codec process."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._memory = -1
        self._token: object | None = None
        self._deadline = 0.0

    def submit(self, job: FrameJob, frame: bytes, token: object) -> None:
        """Give a frame to the process, which starts if there is none."""
        if self._token is not None:  # somebody has left a data set in its midst
            self.stop()
        if self._process is not None and self._process.poll() is not None:
            self.stop()
        if self._process is None:
            self._start()
        process = self._process
        if process is None or process.stdin is None:
            raise OSError(errno.EAGAIN, "a codec process could not be started")
        # A write to shared memory ends only in parts if a signal interrupts it.
        view = memoryview(frame)
        at = 0
        while at < len(view):
            at += os.pwrite(self._memory, view[at:], at)
        request = {"job": job.to_json(), "length": len(frame)}
        self._token = token
        self._deadline = (
            time.monotonic() + ANSWER_SECONDS + max(len(frame), job.layout.size_bytes) / BYTES_PER_SECOND
        )
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError as error:
            self.stop()
            raise OSError(errno.EAGAIN, "a codec process has ended") from error

    def receive(self, on_tick: Callable[[], None]) -> bytes:
        """Wait for the frame that was submitted."""
        process = self._process
        if process is None or process.stdout is None:
            raise RewriteError("its codec was ended")
        fd, line = process.stdout.fileno(), b""
        # INVARIANT 7: every wait has a deadline
        while not line.endswith(b"\n"):
            left = self._deadline - time.monotonic()
            # The answer may have waited for us: a slow remote takes the frames before it.
            if select.select([fd], [], [], max(0.0, min(left, TICK_SECONDS)))[0]:
                piece = os.read(fd, _ANSWER_BYTES_MAX)
                line += piece
                if not piece:
                    self.stop()
                    raise RewriteError("its codec has crashed")
            elif left <= 0:
                self.stop()
                raise RewriteError("its codec did not answer in time")
            else:
                on_tick()
        self._token = None
        answer = json.loads(line)
        if "error" in answer:
            raise RewriteError(f"its codec refuses it: {answer['error']}")
        made = os.pread(self._memory, answer["length"], 0)
        if len(made) != answer["length"]:
            raise OSError(errno.EIO, "the memory of a codec is short")
        return made

    def stop_if_busy(self, token: object) -> None:
        """End the process if it still has a frame of this data set."""
        if self._token is token:
            self.stop()

    def stop(self) -> None:
        """End the process."""
        self._token = None
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait(END_SECONDS)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        os.close(self._memory)

    def _start(self) -> None:
        self._memory = os.memfd_create("ingest-frame")
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "ingest.codecs.program", str(self._memory)],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=(self._memory,),
                env=os.environ | _ENVIRONMENT,
            )
        except OSError:
            os.close(self._memory)
            raise
