"""Properties of the current process: its end with its parent, its name, no core dumps."""

import ctypes
import os
import resource
import signal
from collections.abc import Callable
from typing import Final

PR_SET_PDEATHSIG: Final = 1
PR_SET_NAME: Final = 15

_libc = ctypes.CDLL(None, use_errno=True)


def prepare_parent_death_signal(number: signal.Signals) -> Callable[[], None]:
    """Return a function that the child calls, so that the kernel sends it `number` when the parent ends.

    Call this in the parent, before the fork. The function compares the parent's pid, because the parent may
    end between fork(2) and prctl(2). The kernel would then send no signal, and the child ends itself.
    """
    parent = os.getpid()

    def die_with_parent() -> None:
        _libc.prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return die_with_parent


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
