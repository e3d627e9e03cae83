"""Threads of the node: none of them ends without being noticed.

A Python thread that raises ends, and the process goes on without it: nothing more would be handed off, woken
or made durable, and nobody would hear of it. A `guard`ed thread takes its process with it, and the supervisor
starts another one with a growing pause. Nothing is lost thereby: spool and ledger are the truth.

Every thread of `ingest` and `workers` is started here; a test keeps it so.
"""

import contextlib
import os
import threading
from collections.abc import Callable
from typing import Final

import structlog

THREAD_EXIT: Final = 4
"""Exit code of a process that one of its threads has ended."""

log = structlog.get_logger()


def guard(name: str, body: Callable[[], object], may_end: Callable[[], bool]) -> threading.Thread:
    """Start a thread that the process cannot do without.

    Args:
        name: Of the thread, for the log.
        body: What it does.
        may_end: Tells, when `body` has returned, whether it was told to. A `body` that raises, or that
            returns without being told to, ends the process with `THREAD_EXIT`.

    Returns:
        The running thread. It is a daemon: an owner that wants it to finish joins it.

    Raises:
        RuntimeError: There cannot be another thread now.
    """

    def run() -> None:
        try:
            body()
        except BaseException as error:  # a SystemExit, too, would end this thread alone
            _end_process(name, error)
        if not may_end():
            _end_process(name, None)

    return _started(name, run)


def once(name: str, body: Callable[[], object]) -> threading.Thread:
    """Start a thread for one short task; what it raises is logged, and the process goes on.

    Args:
        name: Of the thread, for the log.
        body: The task. An owner that waits for a result learns of a failure from `body` itself.

    Returns:
        The running thread, a daemon.

    Raises:
        RuntimeError: There cannot be another thread now.
    """

    def run() -> None:
        try:
            body()
        except Exception as error:
            log.error("task_failed", thread=name, exc_info=error)

    return _started(name, run)


def _started(name: str, run: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread


def _end_process(name: str, error: BaseException | None) -> None:
    # Nothing that may fail, such as a log, may keep the process alive. `os._exit` runs no handlers: other
    # threads may hold any lock.
    with contextlib.suppress(BaseException):
        log.critical(
            "thread_died",
            thread=name,
            remedy="the process ends, and is started again",
            exc_info=error,
        )
    os._exit(THREAD_EXIT)
