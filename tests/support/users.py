"""Programs that run with the rights of another user; root alone can start them."""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

NOBODY = 65534

_UNCOVER = """
set -e
kept=$(mktemp -d)
mount --bind "$2" "$kept"
mount -t tmpfs -o mode=755 none "$1"
mkdir -p "$2"
mount --move "$kept" "$2"
rmdir "$kept"
shift 2
exec "$@"
"""
"""Replaces a folder by one that everybody can enter, with one folder in it, in this mount namespace."""


def with_reachable_python() -> tuple[str, ...]:
    """Words before a command that run it where every user can reach Python, which may be in root's home."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None or shutil.which("unshare") is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("needs root, setpriv and unshare")
    home = Path(sys.base_prefix).resolve()
    closed = next((each for each in reversed(home.parents) if not each.stat().st_mode & 0o001), None)
    if closed is None:
        return ()
    needed = closed / home.relative_to(closed).parts[0]
    return ("unshare", "--mount", "sh", "-c", _UNCOVER, "sh", str(closed), str(needed))


def as_nobody(*capabilities: str) -> tuple[str, ...]:
    """Words before a command that run it as the user nobody, with these capabilities alone."""
    before = with_reachable_python()
    given = ",".join(["-all", *(f"+{each}" for each in capabilities)])
    caps = (f"--inh-caps={given}", f"--ambient-caps={given}")
    return (*before, "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *caps, "--")


@contextlib.contextmanager
def shared_folder() -> Iterator[Path]:
    """A folder that every user can enter, in whose files every user can read until the block ends.

    pytest's own folders are for their owner alone, and other tests may have narrowed the umask.
    """
    before = os.umask(0o022)
    try:
        with tempfile.TemporaryDirectory() as folder:
            os.chmod(folder, 0o755)
            yield Path(folder)
    finally:
        os.umask(before)
