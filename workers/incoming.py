"""Where a store copies to before a file gets its name: a folder of one process, cleared once that is dead."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from ingest.errors import StoreError

FILE_MODE: Final = 0o640
DIRECTORY_MODE: Final = 0o750

COPY_CHUNK: Final = 8 << 20
"""Bytes copied by one system call, between two reports of progress."""

SYNC_EVERY: Final = 64 << 20
"""Bytes copied before they are synced, so that the last fsync of a large file is short."""

_TRIED: Final = 64


class Incoming:
    """One locked folder below `<root>/.incoming`.

    Attributes:
        fd: The folder, open; it holds the lock.
        path: Its path.
    """

    def __init__(self, parent: Path) -> None:
        """Take the first free folder below `parent`, and empty every one that no living process holds.

        Raises:
            OSError: The folder cannot be made or written to.
        """
        parent.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
        self._serial = 0
        taken = {int(name) for name in os.listdir(parent) if name.isdecimal()}
        found: tuple[int, Path] | None = None
        for number in sorted(taken | set(range(len(taken) + _TRIED))):
            path = parent / str(number)
            if found is not None and number not in taken:
                continue
            fd = _locked(path)
            if fd is None:
                continue
            for name in os.listdir(fd):
                os.unlink(name, dir_fd=fd)
            if found is None:
                found = fd, path
            else:
                os.close(fd)
        if found is None:
            raise OSError(errno.EAGAIN, "all folders to copy to are taken", str(parent))
        self.fd, self.path = found

    def close(self) -> None:
        """Let another process have the folder."""
        os.close(self.fd)

    def new_name(self) -> str:
        """A name that nothing in the folder has."""
        self._serial += 1
        return f"{self._serial:x}"

    def create(self, name: str, mode: int) -> int:
        """A new file, open with `mode` (`os.O_RDWR` or `os.O_WRONLY`).

        Raises:
            OSError: It cannot be made.
        """
        flags = mode | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(name, flags, FILE_MODE, dir_fd=self.fd)

    def unlink(self, name: str) -> None:
        """Remove a file, if it is there and can be removed."""
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=self.fd)

    @contextlib.contextmanager
    def copied(self, source: int, size: int, *, durable: bool, progress: Callable[[], None]) -> Iterator[str]:
        """The name of a copy of `size` bytes of an open file, durable if asked for; gone afterwards.

        Raises:
            OSError: There is no room, or a disk is failing.
            StoreError: The source is shorter than `size`.
        """
        name = self.new_name()
        fd = self.create(name, os.O_WRONLY)
        try:
            try:
                _copy(source, fd, size, durable=durable, progress=progress)
            finally:
                os.close(fd)
            yield name
        finally:
            self.unlink(name)


def lock(fd: int) -> bool:
    """Lock an open file or folder for this process; False while another holds it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _locked(path: Path) -> int | None:
    path.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    if lock(fd):
        return fd
    os.close(fd)
    return None


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
