"""Threads of the node. No thread that a process needs can end unnoticed.

A Python thread that raises ends silently, and its process continues. Nothing would be published, woken or
committed any more. A guarded thread ends its process instead, and the supervisor forks another one with a
growing pause. Nothing is lost, because spool and ledger are the truth (INVARIANT 2).

Every thread of `ingest` and `workers` is started here. A test checks that.
"""

import contextlib
import os
import threading
import traceback
from collections.abc import Callable
from typing import Final

import structlog

THREAD_EXIT: Final = 4
"""Exit code of a process that ended because one of its threads died."""

log = structlog.get_logger()


def start_guarded(name: str, body: Callable[[], object], may_end: Callable[[], bool]) -> threading.Thread:
    """Start a thread that the process needs. If the thread ends too early, the process ends.

    Args:
        name: Name of the thread, for the log.
        body: Function that the thread runs.
        may_end: Called when `body` has returned; says whether it was asked to. If `body` raises, or returns
            without being asked to, the process ends with `THREAD_EXIT`.

    Returns:
        The running thread, a daemon. An owner that waits for its end joins it.

    Raises:
        RuntimeError: The system allows no other thread now.
    """

    def run() -> None:
        try:
            body()
        except BaseException as error:  # also a SystemExit would end only this thread
            _end_process(name, error)
        if not may_end():
            _end_process(name, None)

    return _start(name, run)


def start_task(name: str, body: Callable[[], object]) -> threading.Thread:
    """Start a thread for one short task. An exception is logged, and the process continues.

    Args:
        name: Name of the thread, for the log.
        body: The task. It reports its result, or its failure, to its owner by itself.

    Returns:
        The running thread, a daemon.

    Raises:
        RuntimeError: The system allows no other thread now.
    """

    def run() -> None:
        try:
            body()
        except Exception as error:
            # Type and place only: the message may hold values of patients.
            place = "".join(traceback.format_tb(error.__traceback__)[-4:])
            log.error("task_failed", thread=name, error=type(error).__name__, traceback=place)

    return _start(name, run)


def _start(name: str, run: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread


def _end_process(name: str, error: BaseException | None) -> None:
    # A failing log must not keep the process alive. `os._exit` runs no exit handlers, because other threads
    # may have any lock that a handler needs.
    with contextlib.suppress(BaseException):
        log.critical(
            "thread_died",
            thread=name,
            remedy="the process ends, and is started again",
            exc_info=error,
        )
    os._exit(THREAD_EXIT)
