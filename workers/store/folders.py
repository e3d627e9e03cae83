"""The folders of a store batch: opened once, created where missing, and synced together."""

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
    """Open folders below one root. No call follows a symbolic link below that root."""

    def __init__(self, root: Path, durable_names: set[tuple[int, int]]) -> None:
        """Open the root, which may itself be a symbolic link.

        Args:
            root: An existing folder. INVARIANT 13: nothing replaces a folder that is not mounted.
            durable_names: Devices and inodes of folders whose own names are durable. `sync` adds to it.

        Raises:
            OSError: The root is not there, or is no folder.
        """
        self._open: dict[tuple[str, ...], int] = {
            (): os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        }
        self._used: dict[tuple[str, ...], None] = {}
        self._durable_names = durable_names

    def open_folder(self, parts: Sequence[str]) -> int:
        """Return a descriptor of the folder with these path components. A missing folder is created.

        The descriptor stays open until `close`.

        Raises:
            OSError: The folder cannot be created; ELOOP or ENOTDIR if a component is a link or a file.
        """
        path = tuple(parts)
        self._used[path] = None
        return self._open_path(path)

    def reopen_folder(self, parts: Sequence[str]) -> int:
        """Open a folder again, because it or a folder above it was removed. Raises as `open_folder`."""
        for length in range(len(parts), 0, -1):
            removed = self._open.pop(tuple(parts[:length]), None)
            if removed is not None:
                os.close(removed)
        return self.open_folder(parts)

    def sync(self) -> None:
        """Make durable the names in each used folder, and the names of these folders up to the root.

        A folder that existed before is synced too, because the process that created it may have died before
        its own sync.

        Raises:
            OSError: The disk is failing.
        """
        synced: set[tuple[str, ...]] = set()
        for path in self._used:
            self._sync_folder(path, synced)
            for length in range(len(path), 0, -1):
                status = os.fstat(self._open_path(path[:length]))
                identity = (status.st_dev, status.st_ino)
                if identity not in self._durable_names:
                    self._sync_folder(path[: length - 1], synced)
                    if len(self._durable_names) >= REMEMBERED_MAX:
                        self._durable_names.clear()
                    self._durable_names.add(identity)
        self._used.clear()

    def close(self) -> None:
        """Close all descriptors."""
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()

    def _open_path(self, path: tuple[str, ...]) -> int:
        fd = self._open.get(path)
        if fd is None:
            parent = self._open_path(path[:-1])
            try:
                fd = os.open(path[-1], _FLAGS, dir_fd=parent)
            except FileNotFoundError:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(path[-1], DIRECTORY_MODE, dir_fd=parent)
                fd = os.open(path[-1], _FLAGS, dir_fd=parent)
                status = os.fstat(fd)
                # The inode number may have belonged to a removed folder whose name was durable.
                self._durable_names.discard((status.st_dev, status.st_ino))
            self._open[path] = fd
        return fd

    def _sync_folder(self, path: tuple[str, ...], synced: set[tuple[str, ...]]) -> None:
        if path not in synced:
            sync_folder_fd(self._open_path(path))
            synced.add(path)
