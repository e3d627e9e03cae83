"""Remove files from a store, and the folders that become empty. No symbolic link is followed."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ingest.filesystem.calls import sync_folder_fd
from ingest.workers.store.keys import split_key

UNRECORDED_MS: Final = 60_000
"""Upper bound between the time when a file gets its store key and the COMMIT of its row."""

LINK_SLACK_MS: Final = 5_000
"""Upper bound between linking a file into the store and unlinking it from the spool."""

_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


def may_be_unrecorded(changed_ms: int, stored_at: int, unix_ms: int) -> bool:
    """Whether a file may be younger than the row that says it should go.

    The file of the row may have been removed by hand, or by a remover that died before it marked the row.
    Then a worker may have given the free key to another instance, whose row is still to come.

    Args:
        changed_ms: When the file last got or lost a name (st_ctime), in Unix milliseconds.
        stored_at: When the instance of the row was stored, by the clock of a worker's host.
        unix_ms: The time by the clock of the file system, which may be that of a server.
    """
    return changed_ms > stored_at + LINK_SLACK_MS and unix_ms - changed_ms < UNRECORDED_MS


class FileRemoval:
    """One batch of files to remove from a store."""

    def __init__(self, root: Path) -> None:
        """Start without files below the folder `root`."""
        self._root = root
        self._changed_folders: set[tuple[str, ...]] = set()

    def remove_file(self, key: str, stored_at: int, unix_ms: int) -> bool:
        """Remove a file. A file that is gone counts as removed.

        Args:
            key: Its store key.
            stored_at: When it was stored, in Unix milliseconds.
            unix_ms: The time by the clock of the file system, in Unix milliseconds.

        Returns:
            False if the file stays, because it may belong to another instance.

        Raises:
            OSError: The file cannot be removed.
        """
        *parents, name = split_key(key)
        with contextlib.suppress(FileNotFoundError), self._open_folder(tuple(parents)) as folder:
            changed = os.stat(name, dir_fd=folder, follow_symlinks=False).st_ctime_ns // 1_000_000
            if may_be_unrecorded(changed, stored_at, unix_ms):
                return False
            os.unlink(name, dir_fd=folder)
        self._changed_folders.add(tuple(parents))
        return True

    def sync(self) -> None:
        """Remove the folders that are empty now, except the root, and make all removals durable.

        Raises:
            OSError: The disk is failing.
        """
        remaining: set[tuple[str, ...]] = set()
        for path in self._changed_folders:
            while path and self._remove_if_empty(path):
                path = path[:-1]  # noqa: PLW2901 - upwards
            remaining.add(path)
        for path in remaining:
            # The next path may have emptied this folder. Then its parent is in the set too, and synced.
            with contextlib.suppress(FileNotFoundError), self._open_folder(path) as folder:
                sync_folder_fd(folder)
        self._changed_folders.clear()

    def _remove_if_empty(self, path: tuple[str, ...]) -> bool:
        try:
            with self._open_folder(path[:-1]) as parent:
                os.rmdir(path[-1], dir_fd=parent)
        except FileNotFoundError:
            return True
        except OSError:
            # The folder is not empty, or is a link, a mount point, or of another user. Leave it.
            return False
        return True

    @contextlib.contextmanager
    def _open_folder(self, path: tuple[str, ...]) -> Iterator[int]:
        fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in path:
                inner = os.open(part, _FLAGS, dir_fd=fd)
                os.close(fd)
                fd = inner
            yield fd
        finally:
            os.close(fd)
