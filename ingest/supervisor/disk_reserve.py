"""Reserve on the disk of the data folder, given up while that disk is full.

Forwarding and retention free a full disk, and both write to the ledger. A file of some MiB is therefore kept
in advance. It is removed when the disk is full, and made again when there is twice as much room. Meanwhile
nothing is received: the room belongs to the ledger, and not to new instances.
"""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

RESERVE_BYTES: Final = 16 << 20
"""A few times what SQLite's write-ahead log takes between two checkpoints (4 MiB)."""

SHARE: Final = 16
"""On a small disk the reserve takes at most this fraction of the disk."""

LOOK_SECONDS: Final = 1.0
_BLOCK: Final = 1 << 20


class DiskReserve:
    """The reserve of one data folder, kept by its supervisor.

    Attributes:
        reason: Why the reserve is given up or could not be made; empty while it is kept.
    """

    def __init__(
        self,
        data_dir: Path,
        path: Path,
        *,
        statvfs: Callable[[Path], os.statvfs_result] = os.statvfs,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare. `update` reads the free space of the disk.

        Args:
            data_dir: `[node] data_dir`.
            path: File of the reserve, on the same disk.
            statvfs: Returns the free space of a disk.
            clock: Returns seconds of a monotonic clock.
        """
        self._data_dir = data_dir
        self._path = path
        self._statvfs = statvfs
        self._clock = clock
        self._update_at = 0.0
        self.reason = ""

    @property
    def is_given_up(self) -> bool:
        """Whether there is no reserve, so that nothing may be received."""
        return bool(self.reason)

    def update(self, *, at_once: bool = False) -> None:
        """Give the reserve up or make it again, as the free space demands; at most once a second."""
        now = self._clock()
        if at_once or now >= self._update_at:
            self._update_at = now + LOOK_SECONDS
            self.reason = self._adjust()

    def _adjust(self) -> str:
        """Create or remove the reserve file as free space demands. Return why it is missing, or ""."""
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
            status = self._path.stat()
        except OSError:
            return False
        return status.st_size >= size and status.st_blocks * 512 >= size // 2

    def _make(self, size: int) -> str:
        try:
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()
            fd = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o640)
            try:
                os.posix_fallocate(fd, 0, size)
                if not self._is_kept(size):
                    # A file system that compresses reserves no blocks for zeros. Random bytes do not
                    # compress.
                    for offset in range(0, size, _BLOCK):
                        os.pwrite(fd, os.urandom(min(_BLOCK, size - offset)), offset)
            finally:
                os.close(fd)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._path.unlink()
            return f"{self._data_dir} takes no file of {size} bytes: {error.strerror}"
        return ""
