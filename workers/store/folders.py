"""The folders that a batch of files goes into: opened once, made where missing, synced together."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ingest.filesystem.calls import sync_folder_fd

DIRECTORY_MODE: Final = 0o750
REMEMBERED_MAX: Final = 10_000

_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


class BatchFolders:
    """Open folders below one root; whatever is asked of them follows no symbolic link below it."""

    def __init__(self, root: Path, durable_names: set[tuple[int, int]]) -> None:
        """Open the root, which may itself be a link.

        Args:
            root: It must be there: a store that is not mounted is not made anew.
            durable_names: Devices and inodes of folders whose own names are known to be durable; added to.

        Raises:
            OSError: The root is not there, or not a folder.
        """
        self._open: dict[tuple[str, ...], int] = {
            (): os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        }
        self._used: dict[tuple[str, ...], None] = {}
        self._durable_names = durable_names

    def open(self, parts: Sequence[str]) -> int:
        """A descriptor of the folder with these components, made where it is missing; stays ours.

        Raises:
            OSError: It cannot be made; ELOOP or ENOTDIR where a component is a link or a file.
        """
        path = tuple(parts)
        self._used[path] = None
        return self._descend(path)

    def reopen(self, parts: Sequence[str]) -> int:
        """As `open`, where the folder or one above it was removed since; raises as `open`."""
        for length in range(len(parts), 0, -1):
            gone = self._open.pop(tuple(parts[:length]), None)
            if gone is not None:
                os.close(gone)
        return self.open(parts)

    def sync(self) -> None:
        """Make durable the names in every folder that was opened for use, and their own names up to the root.

        That a folder was there already says nothing: whoever made it may not have come to sync it.

        Raises:
            OSError: The disk is failing.
        """
        done: set[tuple[str, ...]] = set()
        for path in self._used:
            self._sync(path, done)
            for length in range(len(path), 0, -1):
                facts = os.fstat(self._descend(path[:length]))
                identity = (facts.st_dev, facts.st_ino)
                if identity not in self._durable_names:
                    self._sync(path[: length - 1], done)
                    if len(self._durable_names) >= REMEMBERED_MAX:
                        self._durable_names.clear()
                    self._durable_names.add(identity)
        self._used.clear()

    def close(self) -> None:
        """Close all of them."""
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()

    def _descend(self, path: tuple[str, ...]) -> int:
        fd = self._open.get(path)
        if fd is None:
            parent = self._descend(path[:-1])
            try:
                fd = os.open(path[-1], _FLAGS, dir_fd=parent)
            except FileNotFoundError:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(path[-1], DIRECTORY_MODE, dir_fd=parent)
                fd = os.open(path[-1], _FLAGS, dir_fd=parent)
                facts = os.fstat(fd)
                # An inode number may be that of a folder that is gone.
                self._durable_names.discard((facts.st_dev, facts.st_ino))
            self._open[path] = fd
        return fd

    def _sync(self, path: tuple[str, ...], done: set[tuple[str, ...]]) -> None:
        if path not in done:
            sync_folder_fd(self._descend(path))
            done.add(path)
