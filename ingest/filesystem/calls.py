"""System calls that some file systems lack, each with an equally safe fall-back.

| call | missing on | fall-back |
|---|---|---|
| link(2) | vfat, exFAT, some SMB and FUSE mounts | renameat2(2) with RENAME_NOREPLACE |
| fsync(2) of a folder | some SMB, 9p and FUSE mounts (EINVAL) | syncfs(2) |

If the fall-back is missing too, the caller gets the error. Nothing is ever done with less safety.
"""

import contextlib
import ctypes
import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

RENAME_NOREPLACE: Final = 1

NO_LINK: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL})
"""Errors of link(2) on file systems without hard links, or with too many links to one file."""

NO_FOLDER_SYNC: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})
"""Errors of fsync(2) of a folder on file systems without that call."""

TRANSIENT_ERRNOS: Final = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EIO,
        errno.EROFS,
        errno.ESTALE,
        errno.ENOTCONN,
        errno.ETIMEDOUT,
        errno.ENOLCK,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
    }
)
"""Errors of disks, mounts and resources that may pass. All other errors blame the configuration."""

_libc: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Mount:
    """The mount of a path.

    Attributes:
        kind: Type of the file system as in mount(8), such as "ext4" or "cifs"; "unknown" without procfs.
        point: Mount point.
        source: Device, or export of a server.
    """

    kind: str
    point: str
    source: str

    def __str__(self) -> str:
        return f"{self.kind} mounted on {self.point}"


def move_exclusively(source: str, target: str, *, source_dir: int, target_dir: int) -> None:
    """Move a file to a name that must be free, and never replace another file.

    Args:
        source: Name of the file in the folder `source_dir`. No other process uses this name.
        target: New name in the folder `target_dir`.
        source_dir: Descriptor of the source folder.
        target_dir: Descriptor of the target folder.

    Raises:
        FileExistsError: The new name is taken.
        OSError: Any other fault. EINVAL, ENOSYS or EOPNOTSUPP if the file system has neither hard links nor
            RENAME_NOREPLACE.
    """
    try:
        os.link(source, target, src_dir_fd=source_dir, dst_dir_fd=target_dir, follow_symlinks=False)
    except OSError as error:
        if error.errno not in NO_LINK:
            raise
        rename_exclusively(source, target, source_dir=source_dir, target_dir=target_dir)
    else:
        os.unlink(source, dir_fd=source_dir)


def rename_exclusively(source: str, target: str, *, source_dir: int, target_dir: int) -> None:
    """Call renameat2(2) with RENAME_NOREPLACE. Arguments and errors are those of `move_exclusively`."""
    call = getattr(_libc, "renameat2", None)
    if call is None:  # musl before 1.2.4
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), target)
    flags = ctypes.c_uint(RENAME_NOREPLACE)
    if call(source_dir, os.fsencode(source), target_dir, os.fsencode(target), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def sync_folder_fd(fd: int) -> None:
    """Make the names in an open folder durable.

    syncfs(2) writes the whole file system, names included. It costs more, and is as safe. On a network file
    system it may do nothing, but there a name is on the server before the call that made it returns.

    Raises:
        OSError: The disk fails.
    """
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise
        if _libc.syncfs(fd) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number)) from error


def read_clock_ns(fd: int) -> int:
    """Return the clock of the file system, in Unix nanoseconds. On a network mount it is the server's clock.

    Compare ages of files with this clock only, because the clock of this host may be hours off.

    Args:
        fd: Own file, open for writing. Its modification time is set.

    Raises:
        OSError: The file system fails, or is mounted read-only.
    """
    os.utime(fd)  # UTIME_NOW: the file system sets its own time
    return os.fstat(fd).st_mtime_ns


def find_mount(path: Path) -> Mount:
    """Return the mount of a path, or of the nearest existing folder above it."""
    nearest = next(
        (folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists()), Path("/")
    )
    with contextlib.suppress(OSError, ValueError):
        number = os.stat(nearest).st_dev
        wanted, resolved, best = f"{os.major(number)}:{os.minor(number)}", str(nearest.resolve()), None
        for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
            # proc(5), mountinfo: id, parent, major:minor, root, mount point, options, …, "-", type, source.
            fields = line.split(" ")
            point = fields[4].encode().decode("unicode_escape")
            tail = fields[fields.index("-") + 1 :]
            below = resolved == point or resolved.startswith(point.rstrip("/") + "/")
            # On btrfs and overlayfs the device numbers of files differ from mountinfo. Then the path decides.
            rank = (fields[2] == wanted, len(point))
            if below and (best is None or rank >= best[0]):
                best = rank, Mount(tail[0], point, tail[1])
        if best is not None:
            return best[1]
    return Mount("unknown", str(nearest), "")
