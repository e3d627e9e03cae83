"""Forking one child of the supervisor, and what it does between its birth and its own work."""

import os
import signal
from collections.abc import Callable
from typing import Final, NoReturn

import structlog

from ingest.errors import BootError, ConfigError
from ingest.log import be as log_as
from ingest.log import reopen as reopen_log
from ingest.supervisor.process import die_with_parent, name_process

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD)
"""What a supervisor handles; its children begin with the defaults."""

BOOT_EXIT: Final = 3
"""Exit code of a child that cannot start with this configuration, and of the node then."""

log = structlog.get_logger()


def fork(role: str, work: Callable[[], int]) -> int:
    """Fork a child that does `work` and ends with its result; returns the child's pid.

    Raises:
        OSError: There cannot be another process now.
    """
    arm = die_with_parent(signal.SIGKILL)
    # A signal that reached the child before it has handlers of its own would be queued in its copy of the
    # supervisor's deque, and lost: it is held back until then.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        pid = os.fork()
        if pid == 0:
            _live(role, work, arm)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _live(role: str, work: Callable[[], int], arm: Callable[[], None]) -> NoReturn:
    code = 1
    try:
        arm()
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        # Its default would end a worker, and a listener that is not up yet.
        signal.signal(signal.SIGUSR1, lambda *_: reopen_log())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        name_process(f"ingest-{role}")
        log_as(role)
        code = work()
    except (BootError, ConfigError) as error:
        log.error("cannot_boot", error=str(error))
        code = BOOT_EXIT
    except KeyboardInterrupt:
        code = 0
    except BaseException:
        log.exception("child_failed")
    finally:
        # Nothing may raise here: it would unwind into the supervisor's loop, in the child.
        os._exit(code)
