"""Room that is kept back on the disk of the data folder, and given up when that disk is full.

Forwarding and retention are what frees a full disk, and both write to the ledger. So a file of some MiB is
kept, which nothing else can fill. It is removed when the disk is full, and made again when there is room
twice over. Until then nothing is received: what was given up is for the ledger, not for new instances.
"""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

RESERVE_BYTES: Final = 16 << 20
"""What SQLite's write-ahead log takes between two checkpoints (4 MiB), a few times."""

SHARE: Final = 16
"""On a small disk, no more than this part of it is kept."""

LOOK_SECONDS: Final = 1.0
_BLOCK: Final = 1 << 20


class DiskReserve:
    """The reserve of one data folder, for its supervisor.

    Attributes:
        is_short: Whether the reserve is given up, or could not be made: nothing is to be received.
        reason: Why; empty otherwise.
    """

    def __init__(
        self,
        data_dir: Path,
        path: Path,
        *,
        statvfs: Callable[[Path], os.statvfs_result] = os.statvfs,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; nothing is looked at yet.

        Args:
            data_dir: `[node] data_dir`.
            path: Of the file, on the same disk.
            statvfs: How full a disk is.
            clock: Seconds of a monotonic clock.
        """
        self._data_dir = data_dir
        self._path = path
        self._statvfs = statvfs
        self._clock = clock
        self._look_at = 0.0
        self.reason = ""

    @property
    def is_short(self) -> bool:
        """Whether nothing is to be received."""
        return bool(self.reason)

    def look(self, *, at_once: bool = False) -> None:
        """Give the reserve up, or make it again, as the disk asks for; once a second, or at once."""
        now = self._clock()
        if at_once or now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            self.reason = self._settle()

    def _settle(self) -> str:
        try:
            disk = self._statvfs(self._data_dir)
        except OSError as error:
            return f"{self._data_dir} cannot be asked for its free space: {error.strerror}"
        free = disk.f_bavail * disk.f_frsize
        size = min(RESERVE_BYTES, disk.f_blocks * disk.f_frsize // SHARE)
        if free < size // 4:
            with contextlib.suppress(OSError):
                self._path.unlink()
        elif self._is_kept(size):
            return ""
        elif free >= 2 * size:
            return self._make(size)
        return f"{free} bytes free on the disk of [node] data_dir, {self._data_dir}"

    def _is_kept(self, size: int) -> bool:
        try:
            facts = self._path.stat()
        except OSError:
            return False
        return facts.st_size >= size and facts.st_blocks * 512 >= size // 2

    def _make(self, size: int) -> str:
        try:
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()
            fd = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o640)
            try:
                os.posix_fallocate(fd, 0, size)
                if not self._is_kept(size):
                    # A file system that compresses keeps nothing back for zeros.
                    for offset in range(0, size, _BLOCK):
                        os.pwrite(fd, os.urandom(min(_BLOCK, size - offset)), offset)
            finally:
                os.close(fd)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._path.unlink()
            return f"{self._data_dir} takes no file of {size} bytes: {error.strerror}"
        return ""
