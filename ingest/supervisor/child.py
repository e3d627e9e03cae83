"""Fork one child of the supervisor, and prepare it until its own work begins."""

import os
import signal
from collections.abc import Callable
from typing import Final, NoReturn

import structlog

from ingest.errors import BootError, ConfigError
from ingest.log import reopen_log, set_log_role
from ingest.process import prepare_parent_death_signal, set_process_name

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD)
"""Signals that a supervisor handles. Its children begin with the default actions."""

BOOT_EXIT: Final = 3
"""Exit code of a child that cannot start with this configuration, and of the node in that case."""

log = structlog.get_logger()


def fork_child(role: str, work: Callable[[], int]) -> int:
    """Fork a child that calls `work` and exits with its result; return the child's pid.

    Raises:
        OSError: The system allows no other process now.
    """
    die_with_parent = prepare_parent_death_signal(signal.SIGKILL)
    # Block the signals until the child has its own handlers. Otherwise the child would queue a signal in its
    # copy of the supervisor's queue, and no thread would ever read it there.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        pid = os.fork()
        if pid == 0:
            _run_child(role, work, die_with_parent)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _run_child(role: str, work: Callable[[], int], die_with_parent: Callable[[], None]) -> NoReturn:
    code = 1
    try:
        die_with_parent()
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        # The default action of SIGUSR1 would end the process. A listener replaces this handler later.
        signal.signal(signal.SIGUSR1, lambda *_: reopen_log())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        set_process_name(f"ingest-{role}")
        set_log_role(role)
        code = work()
    except (BootError, ConfigError) as error:
        log.error("cannot_boot", error=str(error))
        code = BOOT_EXIT
    except KeyboardInterrupt:
        code = 0
    except BaseException:
        log.exception("child_failed")
    finally:
        # An exception must not leave this function: it would continue the supervisor's loop in the child.
        os._exit(code)
