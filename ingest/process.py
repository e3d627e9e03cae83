"""Properties of the current process: its end with its parent, its name, no core dumps."""

import ctypes
import json
import os
import resource
import select
import signal
import time
from collections.abc import Callable
from typing import Any, Final

PR_SET_PDEATHSIG: Final = 1
PR_SET_NAME: Final = 15

_libc = ctypes.CDLL(None, use_errno=True)


def prepare_parent_death_signal(number: signal.Signals, parent: int | None = None) -> Callable[[], None]:
    """Return a function that the child calls, so that the kernel sends it `number` when the parent ends.

    Call this in the parent, before the fork. The function compares the parent's pid, because the parent may
    end between fork(2) and prctl(2). The kernel would then send no signal, and the child ends itself.

    Args:
        number: The signal.
        parent: The parent's pid, if this is called in the child.
    """
    expected = os.getpid() if parent is None else parent

    def die_with_parent() -> None:
        _libc.prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != expected:
            os._exit(1)

    return die_with_parent


def call_in_child(work: Callable[[], object], seconds: float) -> Any:
    """Call a function in a child process, for work that could block, or load much. No threads may run.

    Args:
        work: Returns a value that JSON can write. Its exceptions are not passed on.
        seconds: How long to wait for the value.

    Returns:
        The value; None if it did not come in time, or not at all.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    data, deadline = b"", time.monotonic() + seconds
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
            piece = pipe.read(65536)
            if not piece:
                os.waitpid(child, 0)
                return json.loads(data) if data else None
            data += piece
    # If a system call of the child does not return, the child stays until that call ends.
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, os.WNOHANG)
    return None


def disable_core_dumps() -> None:
    """Keep the kernel from writing core dumps of this process and its children, because they hold keys.

    The limit is one byte, not zero. If `core_pattern` names a program, the kernel pipes a core into it even
    with limit 0, but not with limit 1 (core(5)). Where the limit is 0 already, it cannot be raised.
    """
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    limit = 0 if hard == 0 else 1
    resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))


def set_process_name(name: str) -> None:
    """Set the name that `ps` and `top` show, at most 15 bytes."""
    _libc.prctl(PR_SET_NAME, name.encode()[:15], 0, 0, 0)
