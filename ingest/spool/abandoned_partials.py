"""Partial files of a running listener that nobody writes to any more: removing them had failed."""

import contextlib
import os
import time
from pathlib import Path
from typing import Final

OLD_SECONDS: Final = 10.0
"""A file that was written to more recently is not looked at."""


class ForgottenPartials:
    """Finds and removes them, in the slot of this process.

    A partial file that is in use is open in this process until an instant before it gets its name in
    `ready/`. One that was not open at two looks, seconds apart, is in nobody's hands.
    """

    def __init__(self, slot: Path) -> None:
        """Of the slot in that folder, which this process holds."""
        self._folder = slot / "partial"
        self._unheld: set[str] = set()

    def remove(self) -> int:
        """Look, and remove what was not open at the look before either; returns how many."""
        old = self._old()
        held = _open_files() if old else set()
        unheld = {name for name, file in old.items() if file not in held}
        removed = 0
        for name in unheld & self._unheld:
            with contextlib.suppress(OSError):
                (self._folder / name).unlink()
                removed += 1
        self._unheld = unheld
        return removed

    def _old(self) -> dict[str, tuple[int, int]]:
        before, found = time.time() - OLD_SECONDS, {}
        with contextlib.suppress(OSError), os.scandir(self._folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    facts = entry.stat(follow_symlinks=False)
                    if facts.st_mtime < before:
                        found[entry.name] = facts.st_dev, facts.st_ino
        return found


def _open_files() -> set[tuple[int, int]]:
    """Devices and inodes of all files that are open in this process."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            facts = os.fstat(int(number))
            found.add((facts.st_dev, facts.st_ino))
    return found
