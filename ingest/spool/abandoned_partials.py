"""Abandoned partial files of a running listener: their removal failed, and no writer has them open."""

import contextlib
import os
import time
from pathlib import Path
from typing import Final

MIN_AGE_SECONDS: Final = 10.0
"""A file that was written to more recently is ignored."""


class AbandonedPartials:
    """Finds and removes abandoned partial files in the slot of this process.

    A partial file in use stays open in this process until just before it gets its name in `ready/`. A file
    that was not open at two checks, seconds apart, is therefore abandoned.
    """

    def __init__(self, slot: Path) -> None:
        """Prepare for the folder of a slot that this process holds."""
        self._folder = slot / "partial"
        self._candidates: set[str] = set()

    def remove(self) -> int:
        """Check the folder, and remove files that were not open at the last check either; return how many."""
        old = self._list_old()
        open_files = _list_open_files() if old else set()
        candidates = {name for name, file in old.items() if file not in open_files}
        removed = 0
        for name in candidates & self._candidates:
            with contextlib.suppress(OSError):
                (self._folder / name).unlink()
                removed += 1
        self._candidates = candidates
        return removed

    def _list_old(self) -> dict[str, tuple[int, int]]:
        before, found = time.time() - MIN_AGE_SECONDS, {}
        with contextlib.suppress(OSError), os.scandir(self._folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    if status.st_mtime < before:
                        found[entry.name] = status.st_dev, status.st_ino
        return found


def _list_open_files() -> set[tuple[int, int]]:
    """Return device and inode of each file that is open in this process."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            status = os.fstat(int(number))
            found.add((status.st_dev, status.st_ino))
    return found
