"""Files that leave a store, and the folders that they leave empty; no symbolic link is followed."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ingest.filesystem.calls import sync_folder_fd
from ingest.workers.store.keys import split_key

UNRECORDED_MS: Final = 60_000
"""A file that got its name less long ago may be that of a worker that has not recorded it yet."""

LINK_SLACK_MS: Final = 5_000
"""A file loses its other name, in the spool, so long after it was stored at most."""

_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


def may_be_unrecorded(changed_ms: int, stored_at: int, now_ms: int) -> bool:
    """Whether a file may be younger than the row that says it should go.

    Somebody may have removed the file of the row by hand, or a remover that died then; and a worker that
    knew nothing of either has given the free name to an instance that it is about to record.

    Args:
        changed_ms: When a name was last given to the file, or taken from it (st_ctime), in Unix milliseconds.
        stored_at: When the row's instance was stored, likewise, by the clock of a worker's host.
        now_ms: The time by the clock of `changed_ms`: that of the file system, which may be a server's.
    """
    return changed_ms > stored_at + LINK_SLACK_MS and now_ms - changed_ms < UNRECORDED_MS


class FileRemoval:
    """One batch of files that leave."""

    def __init__(self, root: Path) -> None:
        """Below that folder."""
        self._root = root
        self._touched: set[tuple[str, ...]] = set()

    def unlink(self, key: str, stored_at: int, now_ms: int) -> bool:
        """Remove a file; what is not there has left already.

        Args:
            key: Its key.
            stored_at: When it was stored, in Unix milliseconds.
            now_ms: The time by the file system's clock, likewise.

        Returns:
            False where it may be another's by now; it stays.

        Raises:
            OSError: It cannot be removed.
        """
        *parents, name = split_key(key)
        with contextlib.suppress(FileNotFoundError), self._opened(tuple(parents)) as folder:
            changed = os.stat(name, dir_fd=folder, follow_symlinks=False).st_ctime_ns // 1_000_000
            if may_be_unrecorded(changed, stored_at, now_ms):
                return False
            os.unlink(name, dir_fd=folder)
        self._touched.add(tuple(parents))
        return True

    def settle(self) -> None:
        """Remove the folders that are empty now, but not the root, and make durable what has left.

        Raises:
            OSError: The disk is failing.
        """
        left: set[tuple[str, ...]] = set()
        for path in self._touched:
            while path and self._remove_if_empty(path):
                path = path[:-1]  # noqa: PLW2901 - upwards
            left.add(path)
        for path in left:
            # One of them may have been emptied by the next: what is above it is synced then.
            with contextlib.suppress(FileNotFoundError), self._opened(path) as folder:
                sync_folder_fd(folder)
        self._touched.clear()

    def _remove_if_empty(self, path: tuple[str, ...]) -> bool:
        try:
            with self._opened(path[:-1]) as parent:
                os.rmdir(path[-1], dir_fd=parent)
        except FileNotFoundError:
            return True
        except OSError:
            # Not empty; or a link, a mount point, another's: none of that is ours to remove.
            return False
        return True

    @contextlib.contextmanager
    def _opened(self, path: tuple[str, ...]) -> Iterator[int]:
        fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in path:
                inner = os.open(part, _FLAGS, dir_fd=fd)
                os.close(fd)
                fd = inner
            yield fd
        finally:
            os.close(fd)
