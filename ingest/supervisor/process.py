"""What every process of the node does at its birth: die with its parent, drop what it inherited."""

import ctypes
import os
import resource
import signal
from collections.abc import Callable
from typing import Final

PR_SET_PDEATHSIG: Final = 1
PR_SET_NAME: Final = 15

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(number: signal.Signals) -> Callable[[], None]:
    """A function for the child to call: it has the kernel send it `number` when the calling process ends.

    Made in the parent, so that a parent that ended between fork and prctl(2) is noticed.
    """
    parent = os.getpid()

    def arm() -> None:
        _libc.prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return arm


def leave_no_core() -> None:
    """Have the kernel write nothing of this process and its children when they crash: they hold keys.

    One byte, not none: only this limit stops a program that `core_pattern` gives the core to, too (core(5)).
    """
    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))


def name_process(name: str) -> None:
    """Name this process for `ps` and `top` (at most 15 bytes)."""
    _libc.prctl(PR_SET_NAME, name.encode()[:15], 0, 0, 0)
