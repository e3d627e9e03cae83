"""Calls that some file systems do not have, each with a fall-back that is as safe.

| call | missing on | instead |
|---|---|---|
| link(2) | vfat, exFAT, some SMB and FUSE mounts | renameat2(2) with RENAME_NOREPLACE |
| fsync(2) of a folder | some SMB, 9p and FUSE mounts (EINVAL) | syncfs(2) |

Where the fall-back is missing, too, the error is the caller's: nothing is done with less safety.
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
"""What link(2) answers where there are no hard links, or no more of one file."""

NO_FOLDER_SYNC: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})
"""What fsync(2) of a folder answers where the file system has no such call."""

TROUBLE: Final = frozenset(
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
"""Errors of disks, mounts and resources, which are over some day. All others blame the configuration."""

_libc: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Mount:
    """Where a path lies.

    Attributes:
        kind: The file system's type as mount(8) has it, such as "ext4" or "cifs"; "unknown" without procfs.
        point: Where it is mounted.
        source: What is mounted: a device, or a server's export.
    """

    kind: str
    point: str
    source: str

    def __str__(self) -> str:
        return f"{self.kind} mounted on {self.point}"


def name_exclusively(source: str, target: str, *, source_dir: int, target_dir: int) -> None:
    """Give a file a new name, which must be free, in one step; its old name goes.

    Args:
        source: Its name in the folder `source_dir`, which no other process uses.
        target: The new name in the folder `target_dir`.
        source_dir: A descriptor of that folder.
        target_dir: A descriptor of that folder.

    Raises:
        FileExistsError: The new name is taken.
        OSError: Any other fault; EINVAL, ENOSYS or EOPNOTSUPP where the file system has neither hard links
            nor RENAME_NOREPLACE.
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
    """renameat2(2) with RENAME_NOREPLACE; arguments and errors as `name_exclusively`."""
    call = getattr(_libc, "renameat2", None)
    if call is None:  # musl before 1.2.4
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), target)
    flags = ctypes.c_uint(RENAME_NOREPLACE)
    if call(source_dir, os.fsencode(source), target_dir, os.fsencode(target), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def sync_folder_fd(fd: int) -> None:
    """Make the names in an open folder durable.

    syncfs(2) writes all of the file system, names included. It costs more, but waits for no less. On network
    file systems it may do nothing; there a name is the server's before the call that made it returns.

    Raises:
        OSError: The disk is failing.
    """
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise
        if _libc.syncfs(fd) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number)) from error


def clock_ns(fd: int) -> int:
    """The time by the file system's own clock, in Unix nanoseconds: that of the server, on a network mount.

    Ages of files are told by it alone. The clock of this host may be hours off.

    Args:
        fd: A file of ours, open for writing; its time of modification is set.

    Raises:
        OSError: The file system is failing, or mounted read-only.
    """
    os.utime(fd)  # UTIME_NOW: set where the file is, not here
    return os.fstat(fd).st_mtime_ns


def mount_of(path: Path) -> Mount:
    """The mount that a path, or the nearest folder above it that is there, lies on."""
    there = next(
        (folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists()), Path("/")
    )
    with contextlib.suppress(OSError, ValueError):
        number = os.stat(there).st_dev
        wanted, resolved, best = f"{os.major(number)}:{os.minor(number)}", str(there.resolve()), None
        for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
            # proc(5), mountinfo: id, parent, major:minor, root, mount point, options, …, "-", type, source.
            fields = line.split(" ")
            point = fields[4].encode().decode("unicode_escape")
            tail = fields[fields.index("-") + 1 :]
            below = resolved == point or resolved.startswith(point.rstrip("/") + "/")
            # btrfs and overlayfs give files other device numbers than mountinfo has: the path decides then.
            rank = (fields[2] == wanted, len(point))
            if below and (best is None or rank >= best[0]):
                best = rank, Mount(tail[0], point, tail[1])
        if best is not None:
            return best[1]
    return Mount("unknown", str(there), "")
