"""Staging folders, each of one process: a store copies a file there before the file gets its store key.

```
<root>/.incoming/<owner>/        files that one process copies; `ingest.filesystem.locks.Owner` makes the name
<root>/.incoming/<owner>.lock    locked by that process; its modification time is the clock of the file system
```

Hosts may share the store without seeing each other's processes, and their locks may not reach each other.
Therefore no name is ever used twice, and a folder is emptied only if its owner is certainly dead. A process
of this host is dead if it has ended. A process of another host counts as dead if its lock is free and its
files are old.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from ingest.errors import StoreAwayError, StoreError
from ingest.filesystem.calls import move_exclusively, read_clock_ns
from ingest.filesystem.locks import Owner, try_lock

FILE_MODE: Final = 0o640
DIRECTORY_MODE: Final = 0o750

COPY_CHUNK: Final = 8 << 20
"""Bytes that one system call copies, between two calls of `progress`."""

SYNC_EVERY: Final = 64 << 20
"""Bytes that are copied before an fdatasync, so that the last fsync of a large file is short."""

YOUNG_SECONDS: Final = 900.0
"""A younger file of a process of another host stays, even if its lock is free."""

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
_LOCK: Final = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


class StagingFolder:
    """The folder of this process below `<root>/.incoming`.

    Attributes:
        fd: Descriptor of the folder.
        path: Path of the folder.
    """

    def __init__(self, parent: Path) -> None:
        """Create the folder, and remove the folders of dead processes.

        Raises:
            OSError: The folder cannot be created or written, or the file system has no locks.
        """
        parent.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
        self._owner = Owner.current()
        self._serial = 0
        self._not_removed: set[str] = set()
        self._lock_path = parent / f"{self._owner}.lock"
        self.path = parent / str(self._owner)
        # INVARIANT 3: a held lock proves a live owner. The lock comes first, so that a folder without a
        # lock never belongs to a living process.
        self._lock = os.open(self._lock_path, _LOCK | os.O_CREAT | os.O_EXCL, FILE_MODE)
        try:
            try_lock(self._lock)
            self.path.mkdir(mode=DIRECTORY_MODE)
            self.fd = os.open(self.path, _FOLDER)
        except BaseException:
            os.close(self._lock)
            self._lock_path.unlink(missing_ok=True)
            raise
        self.clear_dead_folders()

    def close(self) -> None:
        """Remove the folder with its files."""
        with contextlib.suppress(OSError):
            _empty_folder(self.fd, older_than_ns=None)
            self.path.rmdir()
            self._lock_path.unlink()
        os.close(self.fd)
        os.close(self._lock)

    def clear_dead_folders(self) -> None:
        """Remove the folders of dead processes, and files that this process could not remove before.

        A file that cannot be removed now stays until the next call. It does no harm except for its space.
        """
        self.retry_removals()
        with contextlib.suppress(OSError):
            now_ns, parent = read_clock_ns(self._lock), self.path.parent
            names = {name.removesuffix(".lock") for name in os.listdir(parent)}
            for name in names - {str(self._owner)}:
                with contextlib.suppress(OSError):
                    _clear_if_dead(parent, name, now_ns)

    def retry_removals(self) -> None:
        """Remove files that this process could not remove before."""
        for name in list(self._not_removed):
            self.remove_file(name)

    def make_name(self) -> str:
        """Make a file name that was never used in any staging folder."""
        self._serial += 1
        return f"{self._owner.chance}-{self._serial:x}"

    def create_file(self, name: str, mode: int) -> int:
        """Create a file, and return its descriptor.

        Args:
            name: A name of `make_name`.
            mode: `os.O_RDWR` or `os.O_WRONLY`.

        Raises:
            OSError: The file cannot be created.
        """
        flags = mode | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(name, flags, FILE_MODE, dir_fd=self.fd)

    def remove_file(self, name: str) -> None:
        """Remove a file if it exists. If that fails now, `retry_removals` tries again."""
        try:
            os.unlink(name, dir_fd=self.fd)
        except FileNotFoundError:
            pass
        except OSError:
            self._not_removed.add(name)
            return
        self._not_removed.discard(name)

    @contextlib.contextmanager
    def copy_file(
        self, source: int, size: int, *, durable: bool, progress: Callable[[], None]
    ) -> Iterator[tuple[str, int]]:
        """Copy an open file, and yield name and descriptor of the copy. Afterwards that name is removed.

        Args:
            source: Descriptor of the file.
            size: Bytes to copy.
            durable: Whether to wait until the copy is on stable storage.
            progress: Called after each chunk.

        Raises:
            OSError: The disk is full or failing.
            StoreError: The file is shorter than `size`.
        """
        name = self.make_name()
        fd = self.create_file(name, os.O_WRONLY)
        try:
            _copy_bytes(source, fd, size, durable=durable, progress=progress)
            yield name, fd
        finally:
            os.close(fd)
            self.remove_file(name)

    def move_file(self, name: str, fd: int, folder: int, target: str) -> None:
        """Move a file of this folder to a name that must be free.

        Args:
            name: Its name here.
            fd: Its descriptor.
            folder: Descriptor of the target folder.
            target: The name there.

        Raises:
            FileExistsError: The name is taken.
            StoreAwayError: Afterwards the name belongs to another file.
            OSError: The disk is failing, or the file system cannot give a name without replacing a file.
        """
        move_exclusively(name, target, source_dir=self.fd, target_dir=folder)
        copy = os.fstat(fd)
        if not is_name_of(target, folder, copy.st_dev, copy.st_ino):
            raise StoreAwayError(f"{target} is another file than the one that was just given this name")


def is_name_of(name: str, folder: int, device: int, inode: int) -> bool:
    """Whether a name in an open folder belongs to the file with these numbers of fstat(2).

    link(2) and rename(2) work on names, and another process may change a name between two calls.
    """
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return found.st_ino == inode and found.st_dev == device


def _clear_if_dead(parent: Path, name: str, now_ns: int) -> None:
    """Remove a staging folder and its lock if its owner is dead. Other folders stay.

    Raises:
        OSError: Some of it cannot be removed.
    """
    owner = Owner.parse(name)
    if owner is None:
        if name.isdecimal():
            _clear_numbered(parent / name, now_ns)
        return
    if owner.is_visible:
        if owner.is_dead:
            _remove_folder(parent, name, older_than_ns=None)
        return
    # A free lock is proof on the same kernel only. Locks of other hosts may not reach this one.
    young_ns = None if owner.is_of_this_kernel else now_ns - int(YOUNG_SECONDS * 1e9)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(parent / f"{name}.lock", _LOCK)
            stack.callback(os.close, fd)
            if not try_lock(fd) or (young_ns is not None and os.fstat(fd).st_mtime_ns > young_ns):
                return
        _remove_folder(parent, name, older_than_ns=young_ns)


def _clear_numbered(path: Path, now_ns: int) -> None:
    """Empty a folder of an earlier version, which numbered its folders and locked the folder itself."""
    fd = os.open(path, _FOLDER)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _empty_folder(fd, older_than_ns=now_ns - int(YOUNG_SECONDS * 1e9)):
            path.rmdir()
    finally:
        os.close(fd)


def _remove_folder(parent: Path, name: str, *, older_than_ns: int | None) -> None:
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(parent / name, _FOLDER)
        try:
            if not _empty_folder(fd, older_than_ns=older_than_ns):
                return
        finally:
            os.close(fd)
        (parent / name).rmdir()
    (parent / f"{name}.lock").unlink(missing_ok=True)


def _empty_folder(fd: int, *, older_than_ns: int | None) -> bool:
    """Remove the files of a folder, or only the old ones. Returns whether the folder is empty then."""
    is_empty = True
    for name in os.listdir(fd):
        with contextlib.suppress(FileNotFoundError):
            # st_ctime, because a new link to an old file keeps the modification time of that file.
            changed_ns = os.stat(name, dir_fd=fd, follow_symlinks=False).st_ctime_ns
            if older_than_ns is not None and changed_ns > older_than_ns:
                is_empty = False
            else:
                os.unlink(name, dir_fd=fd)
    return is_empty


def _copy_bytes(source: int, fd: int, size: int, *, durable: bool, progress: Callable[[], None]) -> None:
    copied = 0
    while copied < size:
        # INVARIANT 4: memory does not grow with the image. The kernel copies.
        sent = os.sendfile(fd, source, copied, min(COPY_CHUNK, size - copied))
        if sent == 0:
            raise StoreError(f"a file of {size} bytes ended after {copied} while it was copied")
        if durable and (copied + sent) // SYNC_EVERY > copied // SYNC_EVERY:
            os.fdatasync(fd)
        copied += sent
        progress()
    if durable:
        os.fsync(fd)
