"""The copy of a metrics board in a file of the run folder, which other processes read.

A folder has one file for each supervisor: `node`, or the role of a supervisor that runs only workers. The
supervisor holds a record lock on its file. A file without a lock is that of a supervisor which has ended.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ingest.clock import monotonic_ms
from ingest.metrics.board import BOARD_BYTES, HEARTBEAT, MetricsBoard

FOLDER: Final = "metrics"
FILES_MAX: Final = 16
"""Supervisors of one role on one run folder that have files of their own."""

SILENT_MS: Final = 10_000
"""A supervisor without a heartbeat for this long hangs, or its machine has no time for it."""

_PAGE: Final = 4096


class BoardFile:
    """The file of one supervisor. While the disk is full or fails, it keeps older values."""

    def __init__(self, board: MetricsBoard, run_dir: Path, name: str) -> None:
        """Claim a file for a board. Without one, `write` does nothing.

        Args:
            board: The board.
            run_dir: Run folder of the node.
            name: Name of the file; a number follows it if another supervisor has the file.
        """
        self._board = board
        self._written = b""
        self._fd = -1
        with contextlib.suppress(OSError):
            folder = run_dir / FOLDER
            folder.mkdir(mode=0o750, exist_ok=True)
            for number in range(1, FILES_MAX + 1):
                if self._claim(folder / (name if number == 1 else f"{name}-{number}")):
                    break

    def _claim(self, path: Path) -> bool:
        fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o640)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The magic number of an earlier board must not stand before words of this one.
            os.ftruncate(fd, 0)
        except OSError:
            os.close(fd)
            return False
        self._fd = fd
        return True

    def write(self) -> None:
        """Set the heartbeat, and write the pages that have changed."""
        self._board.words[HEARTBEAT] = monotonic_ms()
        content = bytes(self._board.words.cast("B"))
        if self._fd < 0:
            return
        with contextlib.suppress(OSError):
            if os.fstat(self._fd).st_size != len(content):
                self._written = b""
            # The first page holds the magic number and comes last: a half-written file is no board.
            for at in range((len(content) - 1) // _PAGE * _PAGE, -1, -_PAGE):
                if content[at : at + _PAGE] != self._written[at : at + _PAGE]:
                    os.pwrite(self._fd, content[at : at + _PAGE], at)
            self._written = content

    def close(self) -> None:
        """Close the file. In a child this leaves the supervisor's lock alone."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read_boards(run_dir: Path) -> dict[str, MetricsBoard]:
    """Return the boards of all supervisors that run on a folder, by the names of their files."""
    return dict(_iterate_boards(run_dir / FOLDER))


def _iterate_boards(folder: Path) -> Iterator[tuple[str, MetricsBoard]]:
    try:
        paths = sorted(folder.iterdir())
    except OSError:
        return
    for path in paths:
        with contextlib.suppress(OSError):
            board = _read_board(path)
            if board is not None:
                yield path.name, board


def _read_board(path: Path) -> MetricsBoard | None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        with contextlib.suppress(BlockingIOError, PermissionError):
            fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
        content = os.pread(fd, BOARD_BYTES + 1, 0)
    finally:
        os.close(fd)
    board = MetricsBoard(content) if len(content) == BOARD_BYTES else None
    return board if board is not None and board.is_complete else None
