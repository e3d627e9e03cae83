"""Folders that this user may not enter, on the way to a path that a configuration names."""

import os
from pathlib import Path


def find_barrier(path: Path) -> Path | None:
    """Return the first folder above `path` that this user may not enter, or None.

    Below such a folder every name seems not to exist, so a message must name the folder instead.
    """
    above = reversed(path.absolute().parents)
    return next((each for each in above if os.path.isdir(each) and not os.access(each, os.X_OK)), None)
