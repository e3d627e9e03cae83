"""Where a store copies to before a file gets its name: a folder of one process, which no other one uses.

```
<root>/.incoming/<owner>/        what one process is copying; `ingest.filesystem.locks.Owner` makes the name
<root>/.incoming/<owner>.lock    held by that process; its time of modification is the file system's clock
```

The store may be shared by hosts that do not see each other's processes, and whose locks may not reach each
other. So no name is ever used twice, and a folder is emptied only if its owner is certainly dead: a process
of this host that has ended, or one of another host whose lock is free and whose files are old.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from ingest.errors import StoreAwayError, StoreError
from ingest.filesystem.calls import clock_ns, name_exclusively
from ingest.filesystem.locks import Owner
from ingest.filesystem.locks import lock as lock  # noqa: PLC0414 - what locks the files beside these folders

FILE_MODE: Final = 0o640
DIRECTORY_MODE: Final = 0o750

COPY_CHUNK: Final = 8 << 20
"""Bytes copied by one system call, between two reports of progress."""

SYNC_EVERY: Final = 64 << 20
"""Bytes copied before they are synced, so that the last fsync of a large file is short."""

YOUNG_SECONDS: Final = 900.0
"""A file of another host's process that was written to more recently stays, whatever its lock says."""

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
_LOCK: Final = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


class StagingFolder:
    """This process's folder below `<root>/.incoming`.

    Attributes:
        fd: The folder, open.
        path: Its path.
    """

    def __init__(self, parent: Path) -> None:
        """Make the folder and clear away those of dead processes.

        Raises:
            OSError: The folder cannot be made or written to, or the file system has no locks.
        """
        parent.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
        self._owner = Owner.me()
        self._serial = 0
        self._left: set[str] = set()
        self._lock_path = parent / f"{self._owner}.lock"
        self.path = parent / str(self._owner)
        # The lock before the folder: a folder without a lock then belongs to nobody who lives.
        self._lock = os.open(self._lock_path, _LOCK | os.O_CREAT | os.O_EXCL, FILE_MODE)
        try:
            lock(self._lock)
            self.path.mkdir(mode=DIRECTORY_MODE)
            self.fd = os.open(self.path, _FOLDER)
        except BaseException:
            os.close(self._lock)
            self._lock_path.unlink(missing_ok=True)
            raise
        self.clear()

    def close(self) -> None:
        """Remove the folder, with what is left in it."""
        with contextlib.suppress(OSError):
            _empty(self.fd, older_than_ns=None)
            self.path.rmdir()
            self._lock_path.unlink()
        os.close(self.fd)
        os.close(self._lock)

    def clear(self) -> None:
        """Remove what dead processes left, and what this one could not remove before.

        What cannot be removed now is left for another time: it does no harm but for its space.
        """
        self.retry_removals()
        with contextlib.suppress(OSError):
            now_ns, parent = clock_ns(self._lock), self.path.parent
            names = {name.removesuffix(".lock") for name in os.listdir(parent)}
            for name in names - {str(self._owner)}:
                with contextlib.suppress(OSError):
                    _clear(parent, name, now_ns)

    def retry_removals(self) -> None:
        """Remove what this process could not remove before."""
        for name in list(self._left):
            self.unlink(name)

    def make_name(self) -> str:
        """A name that no file in any such folder has or had."""
        self._serial += 1
        return f"{self._owner.chance}-{self._serial:x}"

    def create_file(self, name: str, mode: int) -> int:
        """A new file, open with `mode` (`os.O_RDWR` or `os.O_WRONLY`).

        Raises:
            OSError: It cannot be made.
        """
        flags = mode | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(name, flags, FILE_MODE, dir_fd=self.fd)

    def unlink(self, name: str) -> None:
        """Remove a file, if it is there; if it cannot be removed now, `clear` tries again."""
        try:
            os.unlink(name, dir_fd=self.fd)
        except FileNotFoundError:
            pass
        except OSError:
            self._left.add(name)
            return
        self._left.discard(name)

    @contextlib.contextmanager
    def copy_file(
        self, source: int, size: int, *, durable: bool, progress: Callable[[], None]
    ) -> Iterator[tuple[str, int]]:
        """The name and descriptor of a copy of `size` bytes of an open file; its name is gone afterwards.

        The copy is durable if asked for.

        Raises:
            OSError: There is no room, or a disk is failing.
            StoreError: The source is shorter than `size`.
        """
        name = self.make_name()
        fd = self.create_file(name, os.O_WRONLY)
        try:
            _copy(source, fd, size, durable=durable, progress=progress)
            yield name, fd
        finally:
            os.close(fd)
            self.unlink(name)

    def move_file(self, name: str, fd: int, folder: int, target: str) -> None:
        """Move a file of this folder, open as `fd`, to a name that must be free.

        Raises:
            FileExistsError: The name is taken.
            StoreAwayError: The name does not stand for that file afterwards.
            OSError: The disk is failing, or the file system cannot give a name without replacing a file.
        """
        name_exclusively(name, target, source_dir=self.fd, target_dir=folder)
        copy = os.fstat(fd)
        if not is_name_of(target, folder, copy.st_dev, copy.st_ino):
            raise StoreAwayError(f"{target} is another file than the one that was just given this name")


def is_name_of(name: str, folder: int, device: int, inode: int) -> bool:
    """Whether a name in an open folder is that of the file with these numbers, as fstat(2) gives them.

    link(2) and rename(2) go by names, and names can change between two calls.
    """
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return found.st_ino == inode and found.st_dev == device


def _clear(parent: Path, name: str, now_ns: int) -> None:
    """Remove the folder with this name and its lock, if its owner is dead; what is not one is left alone.

    Raises:
        OSError: Not all of it can be removed.
    """
    owner = Owner.parse(name)
    if owner is None:
        if name.isdecimal():
            _clear_numbered(parent / name, now_ns)
        return
    if owner.is_visible:
        if owner.is_dead:
            _remove(parent, name, older_than_ns=None)
        return
    # On this kernel a free lock says enough; on another it may be that its lock does not come so far.
    young_ns = None if owner.is_of_this_kernel else now_ns - int(YOUNG_SECONDS * 1e9)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(parent / f"{name}.lock", _LOCK)
            stack.callback(os.close, fd)
            if not lock(fd) or (young_ns is not None and os.fstat(fd).st_mtime_ns > young_ns):
                return
        _remove(parent, name, older_than_ns=young_ns)


def _clear_numbered(path: Path, now_ns: int) -> None:
    """Empty a folder of a version before this one, which numbered them and locked the folder itself."""
    fd = os.open(path, _FOLDER)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _empty(fd, older_than_ns=now_ns - int(YOUNG_SECONDS * 1e9)):
            path.rmdir()
    finally:
        os.close(fd)


def _remove(parent: Path, name: str, *, older_than_ns: int | None) -> None:
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(parent / name, _FOLDER)
        try:
            if not _empty(fd, older_than_ns=older_than_ns):
                return
        finally:
            os.close(fd)
        (parent / name).rmdir()
    (parent / f"{name}.lock").unlink(missing_ok=True)


def _empty(fd: int, *, older_than_ns: int | None) -> bool:
    """Remove the files of a folder, or the old ones; whether none is left."""
    emptied = True
    for name in os.listdir(fd):
        with contextlib.suppress(FileNotFoundError):
            # Not the time of modification: a link to an old file is new, and only this tells.
            changed_ns = os.stat(name, dir_fd=fd, follow_symlinks=False).st_ctime_ns
            if older_than_ns is not None and changed_ns > older_than_ns:
                emptied = False
            else:
                os.unlink(name, dir_fd=fd)
    return emptied


def _copy(source: int, fd: int, size: int, *, durable: bool, progress: Callable[[], None]) -> None:
    done = 0
    while done < size:
        sent = os.sendfile(fd, source, done, min(COPY_CHUNK, size - done))
        if sent == 0:
            raise StoreError(f"a file of {size} bytes ended after {done} while it was copied")
        if durable and (done + sent) // SYNC_EVERY > done // SYNC_EVERY:
            os.fdatasync(fd)
        done += sent
        progress()
    if durable:
        os.fsync(fd)
