"""Making spool entries durable in groups: fdatasync of each file, rename, one fsync of the folder for all.

A few threads take whatever waits. While they sleep in fsync, more arrives, so groups grow with the load by
themselves.
"""

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

THREADS: Final = 4
GROUP: Final = 32

log = structlog.get_logger()


@dataclass(eq=False, slots=True)
class Commit:
    """One file on its way from partial to ready.

    Attributes:
        fd: The open file; closed by the committer, whatever happens.
        partial: Its name below the partial folder.
        ready: Its name below the ready folder.
        done: Called on the owner's thread with None, or with the error that kept it from being durable.
    """

    fd: int
    partial: str
    ready: str
    done: Callable[[OSError | None], None]


Post = Callable[[Callable[[], object]], object]
"""How a thread has something run on the owner's thread: `loop.call_soon_threadsafe`."""


class Committer:
    """Commits files from one folder into another, durable before `done` unless `durable` is false."""

    def __init__(self, partial_dir: int, ready_dir: int, *, durable: bool, post: Post) -> None:
        self._partial_dir = partial_dir
        self._ready_dir = ready_dir
        self._durable = durable
        self._post = post
        self._waiting: deque[Commit] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._threads: list[threading.Thread] = []

    def submit(self, commit: Commit) -> None:
        """Take over `commit.fd`; returns at once."""
        if not self._durable:
            commit.done(self._move(commit))
            return
        with self._wake:
            self._waiting.append(commit)
            # Threads start with the first work, after the fork.
            if len(self._threads) < THREADS:
                thread = threading.Thread(target=self._run, name="commit", daemon=True)
                thread.start()
                self._threads.append(thread)
            self._wake.notify()

    def close(self) -> None:
        """Finish what waits, then end the threads."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while group := self._take():
            results = self._commit(group)
            self._post(lambda group=group, results=results: _report(group, results))  # type: ignore[misc]

    def _take(self) -> list[Commit]:
        """What one thread commits next: its share of what waits; empty once closed and done."""
        with self._wake:
            while not self._waiting:
                if self._closed:
                    return []
                self._wake.wait()
            share = min(GROUP, -(-len(self._waiting) // THREADS))
            return [self._waiting.popleft() for _ in range(share)]

    def _commit(self, group: Sequence[Commit]) -> list[OSError | None]:
        results = [self._sync_and_move(commit) for commit in group]
        if any(result is None for result in results):
            try:
                os.fsync(self._ready_dir)
            except OSError as error:
                # The names are not safe. The files stay: they are whole, and the sweep hands them off; the
                # sender, which is told of a failure, sends them again, and the store finds them identical.
                return [result or error for result in results]
        return results

    def _sync_and_move(self, commit: Commit) -> OSError | None:
        try:
            os.fdatasync(commit.fd)
        except OSError as error:
            os.close(commit.fd)
            self._remove(commit)
            return error
        return self._move(commit)

    def _move(self, commit: Commit) -> OSError | None:
        try:
            os.close(commit.fd)
            os.rename(commit.partial, commit.ready, src_dir_fd=self._partial_dir, dst_dir_fd=self._ready_dir)
        except OSError as error:
            self._remove(commit)
            return error
        return None

    def _remove(self, commit: Commit) -> None:
        with contextlib.suppress(OSError):
            os.unlink(commit.partial, dir_fd=self._partial_dir)


def _report(group: Sequence[Commit], results: Sequence[OSError | None]) -> None:
    for commit, result in zip(group, results, strict=True):
        try:
            commit.done(result)
        except Exception:
            # A defect in answering one must not leave the others of its group unanswered for ever.
            log.exception("commit_not_answered")
