"""Open and remove files below a folder by names from outside, without ever leaving the folder.

INVARIANT 12: Redis is input. A name in a reference may be hostile. openat2(2) resolves the whole name in one
call, and refuses symbolic links, `..` and absolute names (Linux 5.6). If there is no such call (ENOSYS, or
EPERM under a container's filter), the folders are opened one after the other, each with O_NOFOLLOW.
"""

import ctypes
import errno
import os
from typing import Final

from ingest.errors import PathEscapesError

_OPENAT2: Final = 437
"""Number of the system call, the same on every architecture."""

_RESOLVE_NO_SYMLINKS: Final = 0x04
_RESOLVE_BENEATH: Final = 0x08
_ESCAPE_ERRNOS: Final = frozenset({errno.ELOOP, errno.EXDEV, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EISDIR})

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_missing = False


class _OpenHow(ctypes.Structure):
    """`struct open_how` (linux/openat2.h)."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_beneath(root: str | os.PathLike[str], where: str, flags: int = os.O_RDONLY) -> int:
    """Open a file below a folder.

    Args:
        root: The folder. It may itself be reached through symbolic links.
        where: Name below the folder, with "/" between its parts.
        flags: Flags of os.open. O_CLOEXEC and O_NOFOLLOW are added.

    Returns:
        A descriptor, which the caller closes.

    Raises:
        PathEscapesError: The name leaves the folder, or passes through a symbolic link.
        FileNotFoundError: The file does not exist.
        OSError: The file cannot be opened.
    """
    parts = _parts(where)
    folder = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _open(folder, parts, flags | os.O_CLOEXEC | os.O_NOFOLLOW)
    finally:
        os.close(folder)


def unlink_beneath(root: str | os.PathLike[str], where: str) -> None:
    """Remove a file below a folder; raises as `open_beneath`."""
    *parents, name = _parts(where)
    folder = open_beneath(root, "/".join(parents), os.O_PATH | os.O_DIRECTORY) if parents else None
    try:
        os.unlink(name if folder is not None else os.path.join(root, name), dir_fd=folder)
    except OSError as error:
        raise _translate(error) from None
    finally:
        if folder is not None:
            os.close(folder)


def _parts(where: str) -> list[str]:
    parts = where.split("/")
    if "\0" in where or any(part in {"", ".", ".."} for part in parts):
        raise PathEscapesError(f"{where[:200]!r} is not a name below a folder")
    return parts


def _open(folder: int, parts: list[str], flags: int) -> int:
    global _missing  # noqa: PLW0603 - a property of the kernel
    try:
        if not _missing:
            return _openat2(folder, "/".join(parts), flags)
    except OSError as error:
        if error.errno not in {errno.ENOSYS, errno.EPERM}:
            raise _translate(error) from None
        _missing = error.errno == errno.ENOSYS
    try:
        return _open_stepwise(folder, parts, flags)
    except OSError as error:
        raise _translate(error) from None


def _translate(error: OSError) -> Exception:
    return PathEscapesError(error.strerror) if error.errno in _ESCAPE_ERRNOS else error


def _openat2(folder: int, where: str, flags: int) -> int:
    how = _OpenHow(flags, 0, _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS)
    name = os.fsencode(where)
    while True:
        found: int = _libc.syscall(
            _OPENAT2,
            ctypes.c_int(folder),
            ctypes.c_char_p(name),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        )
        if found >= 0:
            return found
        number = ctypes.get_errno()
        # EAGAIN: a folder was renamed meanwhile, so the kernel cannot decide whether the name leaves the
        # root.
        if number not in {errno.EAGAIN, errno.EINTR}:
            raise OSError(number, os.strerror(number), where)


def _open_stepwise(folder: int, parts: list[str], flags: int) -> int:
    opened = os.dup(folder)
    try:
        for part in parts[:-1]:
            steps = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            inner = os.open(part, steps, dir_fd=opened)
            os.close(opened)
            opened = inner
        return os.open(parts[-1], flags, dir_fd=opened)
    finally:
        os.close(opened)
