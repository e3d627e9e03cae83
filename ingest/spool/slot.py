"""Slots: the folders of a spool, one for each process that fills it.

INVARIANT 3: a process holds its slot by a lock. Partial files of a slot are removed only by a process that
holds that lock.

Hosts may share a spool. The lock also excludes other hosts if the file system carries locks between them. If
it does not, the lock is a lease: the owner sets the modification time of the lock file every few seconds.
Other hosts respect the lock of an owner that did so within `LEASE_SECONDS`.
"""

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

from ingest.filesystem.calls import read_clock_ns, sync_folder_fd
from ingest.filesystem.locks import Owner, try_lock
from ingest.spool import segment, segment_upkeep

FOLDER_MODE: Final = 0o750
FILE_MODE: Final = 0o640

RENEW_SECONDS: Final = 10.0
"""How often the owner of a slot renews its lease."""

LEASE_SECONDS: Final = 60.0
"""How long a slot belongs to an owner on another host after its last renewal."""

_OWNER_BYTES: Final = 96
"""Length of the text in a lock file. It is constant, so writing it never needs a new block of a full disk."""


class Slot:
    """One locked folder of the spool."""

    def __init__(self, root: Path, name: str, lock_fd: int) -> None:
        self.root = root
        self.name = name
        self.path = root / name
        self._lock = lock_fd
        self._renewed_at = -RENEW_SECONDS

    @classmethod
    def try_lock(cls, root: Path, name: str, *, leased: bool = True) -> Self | None:
        """Create and lock a slot; return None while another process holds it.

        Args:
            root: The folder of the spool.
            name: The name of the slot.
            leased: Whether to respect the lease of an owner on another host. A caller that writes or deletes
                in the slot must respect it.
        """
        path = root / name
        if path.is_symlink():
            # Workers follow no links below the spool (`ingest.filesystem.beneath`).
            raise OSError(errno.ELOOP, "is a symbolic link; make the spool itself one", str(path))
        for folder in (path, path / "partial", path / "ready", path / segment.FOLDER):
            folder.mkdir(parents=True, exist_ok=True, mode=FOLDER_MODE)
        fd = os.open(path / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, FILE_MODE)
        try:
            # INVARIANT 3: a held lock proves a live owner
            if try_lock(fd) and not (leased and _is_leased(root, fd)):
                return cls(root, name, fd)
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return None

    def record_owner(self) -> None:
        """Write the name of this process into the lock file, and renew the lease."""
        with contextlib.suppress(OSError):  # on a full disk the lock alone has to be enough
            os.pwrite(self._lock, f"{Owner.current()}\n".ljust(_OWNER_BYTES).encode(), 0)
        self.renew_lease()

    def renew_lease(self) -> None:
        """Renew the lease if the last renewal was `RENEW_SECONDS` ago; cheap enough to be called often."""
        if time.monotonic() - self._renewed_at >= RENEW_SECONDS:
            self._renewed_at = time.monotonic()
            with contextlib.suppress(OSError):
                os.utime(self._lock)

    def remove_partials(self) -> int:
        """Remove the partial files of a dead owner; return how many.

        A file that cannot be removed now only takes space. A later call removes it.

        Raises:
            OSError: The folders cannot be read.
        """
        removed = 0
        for path in list((self.path / "partial").iterdir()):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
                removed += 1
        return removed + segment_upkeep.remove_unfinished_segments(self.path)

    def release(self) -> None:
        """Unlock the slot, so that another process can have it."""
        if self._renewed_at > 0:
            with contextlib.suppress(OSError):
                os.pwrite(self._lock, b" " * _OWNER_BYTES, 0)
        os.close(self._lock)


def _is_leased(root: Path, lock_fd: int) -> bool:
    """Whether the lock file names an owner on another host that has renewed its lease lately."""
    owner = Owner.parse(os.pread(lock_fd, _OWNER_BYTES, 0).decode(errors="replace").strip())
    if owner is None or owner.is_of_this_kernel:
        return False
    # The clock of the file server is the only one that both hosts share. A file of ours shows its time.
    try:
        clock = os.open(root / "clock", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
        try:
            now_ns = read_clock_ns(clock)
        finally:
            os.close(clock)
    except OSError:  # a full disk
        now_ns = time.time_ns()
    # A renewal that lies in the future by more than a lease was made before the clock was set back.
    return abs(now_ns - os.fstat(lock_fd).st_mtime_ns) < LEASE_SECONDS * 1e9


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    with open_folder(path) as fd:
        sync_folder_fd(fd)


@contextlib.contextmanager
def open_folder(path: Path) -> Iterator[int]:
    """Open a folder and yield its descriptor."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def sync_with_parents(path: Path) -> None:
    """Make the names in a folder durable, and the names of the folder and its parents up to the mount point.

    All parents may be as new as the folder. A parent that we may not read was not created by us.
    """
    device = path.stat().st_dev
    for folder in (path, *path.absolute().parents):
        with contextlib.suppress(PermissionError):
            if folder.stat().st_dev != device:
                return
            sync_folder(folder)
