"""`python reaper.py PROGRAM …`: runs a program and waits for all its descendants, also for orphans.

So the kernel adds their CPU time to this process's account of its children (wait(2)): how `Group` counts
where it may make no control group. TERM and INT are passed on; the exit code is the program's.
"""

import contextlib
import ctypes
import os
import signal
import sys

import psutil

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def main(argv: list[str]) -> int:
    """Run `argv` to its end and that of all that it started."""
    library = ctypes.CDLL(None, use_errno=True)
    library.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    program = os.fork()
    if program == 0:
        library.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        try:
            os.execv(argv[0], argv)
        finally:
            os._exit(127)

    told: list[int] = []

    def forward(number: int, _frame: object) -> None:
        told.append(number)
        with contextlib.suppress(ProcessLookupError):
            os.kill(program, number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, forward)
    code = 0
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            return code
        if pid == program:
            code = os.waitstatus_to_exitcode(status)
            if told:
                _end_orphans(told[-1])


def _end_orphans(number: int) -> None:
    """Signal what the program has left behind."""
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.send_signal(number)


if __name__ == "__main__":
    result = main(sys.argv[1:])
    sys.exit(result if result >= 0 else 128 - result)
