"""Checks of what exists already: folders and files that the user of the node cannot read or write.

A node that was started once by root leaves files that its own user cannot open. The user finds out when the
first image arrives, or at a restart in the night.
"""

import itertools
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ingest.checks.listening import find_user_name
from ingest.config.faults import Fault, FaultKind
from ingest.config.model import Config
from ingest.filesystem.barriers import find_barrier

MAX_ENTRIES: Final = 2000
"""Files and folders that are examined below one folder: a store may have a million studies."""

DEPTH: Final = 2
"""Levels of folders that are examined below one folder."""

_WRITTEN_FILES: Final = ("*.lock", "ledger.db", "ledger.db-wal", "ledger.db-shm")
"""Files that a node opens for writing. It creates most other files anew."""


def check_access(config: Config) -> Iterator[Fault]:
    """Yield each folder of the node with something that this user cannot use."""
    folders = {
        "node.data_dir": config.data_dir,
        "receive.spool_dir": config.spool_dir,
        "store.root": config.store_root,
    }
    yield from _check_owner(config.data_dir)
    barriers: set[Path] = set()
    for key, path in folders.items():
        barrier = find_barrier(path)
        if barrier is None:
            yield from _check_content(key, path, {each for each in folders.values() if each != path})
        elif barrier not in barriers:
            barriers.add(barrier)
            cause = f"{path} cannot be reached: this user may not enter {barrier}"
            yield Fault(key, cause, "let this user enter that folder, or name another one")
    yield from _check_log_file(config.log.file)


def _check_owner(data_dir: Path) -> Iterator[Fault]:
    """Yield a note if root checks the node of another user: root can read everything."""
    try:
        owner = data_dir.stat().st_uid
    except OSError:
        return
    if os.geteuid() == 0 and owner:
        name = find_user_name(owner)
        cause = f"{data_dir} belongs to {name}, but root has checked it, and root can read everything"
        yield Fault(
            "node.data_dir", cause, f"check as that user: `ingest check --user {name}`", kind=FaultKind.NOTE
        )


def _check_log_file(path: Path | None) -> Iterator[Fault]:
    if path is None or not os.path.isdir(path.parent):
        return  # a missing folder is a fault of the file
    target = path if os.path.exists(path) else path.parent
    if not os.access(target, os.W_OK):
        remedy = "let this user write it, or name another file"
        yield Fault("log.file", f"{target} cannot be written by this user", remedy)


def _check_content(key: str, path: Path, others: set[Path]) -> Iterator[Fault]:
    unusable = [*_find_unusable(path, others)]
    if not unusable:
        return
    first, user = unusable[0], find_user_name(os.geteuid())
    more = f", and {len(unusable) - 1} more below {path}" if len(unusable) > 1 else ""
    cause = f"{first} cannot be {_describe_use(first)} by the user {user}{more}"
    yield Fault(key, cause, f"`chown -R {user}: {path}`, or run the node as the user that owns it")


def _find_unusable(path: Path, others: set[Path]) -> Iterator[Path]:
    """Yield folders that cannot be listed or written, and files that cannot be opened.

    Args:
        path: A folder; it may be missing.
        others: Folders to leave out, because they have a key of their own.
    """
    waiting, left = deque([(path, DEPTH)]), MAX_ENTRIES
    while waiting:
        folder, depth = waiting.popleft()
        if not is_folder_usable(folder):
            yield folder
            continue
        for each in _list_entries(folder, left):
            left -= 1
            if each in others or each.is_symlink():
                continue
            if os.path.isdir(each):
                if depth:
                    waiting.append((each, depth - 1))
            elif not os.access(each, _choose_mode(each)) and os.path.lexists(each):
                yield each


def is_folder_usable(path: Path) -> bool:
    """Return whether this user may list and write a folder, as far as the modes of the folder decide."""
    try:
        is_read_only = bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError:
        return True  # it is missing, or its disk fails
    return is_read_only or not os.path.isdir(path) or os.access(path, os.R_OK | os.W_OK | os.X_OK)


def _list_entries(folder: Path, most: int) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return [Path(entry.path) for entry in itertools.islice(entries, most)]
    except OSError:
        return []  # it is missing, or its disk fails


def _choose_mode(path: Path) -> int:
    return os.R_OK | os.W_OK if any(map(path.match, _WRITTEN_FILES)) else os.R_OK


def _describe_use(path: Path) -> str:
    if os.path.isdir(path):
        return "listed and written"
    return "read and written" if _choose_mode(path) & os.W_OK else "read"
