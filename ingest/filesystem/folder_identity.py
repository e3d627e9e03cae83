"""Ids of store, quarantine and spool, so that a node notices when one of them is not mounted.

INVARIANT 13: nothing replaces a folder that is not mounted. Such a folder looks empty. A node that created
a store in it would fill the root disk, and treat every file of the real store as lost. Each folder
therefore has an id, which the node remembers elsewhere:

| folder | its id | remembered in |
|---|---|---|
| store, quarantine | `<root>/.incoming/id` | the ledger (`StoreFolders.find_folder`) |
| spool | `<spool_dir>/id` | `<data_dir>/spool.known`, if the spool is on another file system |

Conversely, the store remembers the ledger: its id, and a counter that grows in both while images are stored
(`LedgerMark`). It shows that a ledger was deleted, or restored from an older backup.
"""

import contextlib
import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ingest.errors import SpoolMissingError, StoreMissingError
from ingest.filesystem.calls import find_mount, move_exclusively, sync_folder_fd

MARKER: Final = Path(".incoming") / "id"
"""Path below the root of a store or quarantine. No store key leads there."""

LEDGER_MARK: Final = Path(".incoming") / "ledger"
"""Path below the root of a store, of the mark of its ledger."""

_FILE_MODE: Final = 0o640
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class KnownFolder:
    """A store as the ledger knows it.

    Attributes:
        id: Id of the store; None if the ledger has no id for it yet, or is from a version before ids.
        is_used: Whether the ledger has instances with files in this store.
    """

    id: str | None = None
    is_used: bool = False


@dataclass(frozen=True, slots=True)
class LedgerMark:
    """Id and age of a ledger, as its store remembers them.

    Attributes:
        id: Id of the ledger.
        count: Counter that grows while instances are stored. The ledger increments it first, and durably. If
            the store's counter is ahead, the ledger was replaced by an older one.
    """

    id: str
    count: int


def read_ledger_mark(root: Path) -> LedgerMark | None:
    """Read the mark of the ledger in a store; None if there is no readable one."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        mark = json.loads((root / LEDGER_MARK).read_bytes())
        return LedgerMark(str(mark["id"]), int(mark["count"]))
    return None


def write_ledger_mark(root: Path, mark: LedgerMark) -> None:
    """Write the mark of the ledger into the store.

    Raises:
        OSError: The disk is full or failing.
    """
    folder = (root / LEDGER_MARK).parent
    temporary = f".ledger.{uuid.uuid4().hex}"
    fd = os.open(folder, _DIRECTORY)
    try:
        try:
            _write_durably(temporary, json.dumps({"id": mark.id, "count": mark.count}), fd)
            os.rename(temporary, LEDGER_MARK.name, src_dir_fd=fd, dst_dir_fd=fd)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=fd)
            raise
    finally:
        os.close(fd)


def read_id(root: Path) -> str | None:
    """Read the id of the store with this root; None without one.

    Raises:
        OSError: The id cannot be read.
    """
    try:
        return (root / MARKER).read_text().strip() or None
    except (FileNotFoundError, NotADirectoryError):
        return None


def require_store(root: Path, known: KnownFolder) -> None:
    """Check that a folder is the store that the ledger knows.

    Raises:
        StoreMissingError: The folder is another store, or has no id although the ledger has files in it.
        OSError: The id cannot be read.
    """
    if not known.is_used:
        return
    found = read_id(root)
    # A version before ids left a folder without an id.
    has_old_store = known.id is None and (root / MARKER).parent.is_dir()
    if found is None and not has_old_store:
        raise StoreMissingError(
            f"{root} is not the store that the ledger knows: {root / MARKER} is not there "
            f"({find_mount(root)}); {_remedy(root, known.id)}"
        )
    if found is not None and known.id not in {None, found}:
        raise StoreMissingError(
            f"{root} is another store than the one that the ledger knows: its id is {found}, not {known.id} "
            f"({find_mount(root)}); {_remedy(root, known.id)}"
        )


def _remedy(root: Path, identity: str | None) -> str:
    if identity is None:
        return "mount it"
    return f"mount it; if its files are lost for good, write {identity} into {root / MARKER} to begin anew"


def ensure_id(root: Path) -> str:
    """Return the id of a store; make one durably if there is none. The folder of `MARKER` must exist.

    Raises:
        OSError: The disk is full or failing.
    """
    found = read_id(root)
    if found is not None:
        return found
    folder = (root / MARKER).parent
    temporary, identity = f".id.{uuid.uuid4().hex}", uuid.uuid4().hex
    fd = os.open(folder, _DIRECTORY)
    try:
        _write_durably(temporary, f"{identity}\n", fd)
        try:
            # The move fails if the name exists. Of two workers that start together, one decides.
            with contextlib.suppress(FileExistsError):
                move_exclusively(temporary, MARKER.name, source_dir=fd, target_dir=fd)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=fd)
        sync_folder_fd(fd)
    finally:
        os.close(fd)
    return read_id(root) or identity


def require_spool(root: Path, identity: str | None, data_dir: Path) -> None:
    """Check that a spool is the one that was used last, if that one was a separate mount.

    Args:
        root: Folder of the spool.
        identity: Id of the spool; None if it has none yet.
        data_dir: `[node] data_dir`.

    Raises:
        SpoolMissingError: The folder is another spool, or none.
    """
    known = _read_spool_memory(data_dir)
    if known.get("path") == str(root) and known.get("id") not in {None, identity}:
        raise SpoolMissingError(
            f"[receive] spool_dir: {root} is not the spool that was used last, with the id {known['id']} "
            f"({find_mount(root)}); mount it, or remove {_spool_memory(data_dir)} if it is lost for good"
        )


def remember_spool(root: Path, identity: str, data_dir: Path) -> None:
    """Remember a spool that is on another file system than `data_dir`.

    A spool on the same file system cannot be unmounted alone. On a full disk the next start tries again.
    """
    with contextlib.suppress(OSError):
        content = {"path": str(root), "id": identity}
        if root.stat().st_dev == data_dir.stat().st_dev:
            _spool_memory(data_dir).unlink(missing_ok=True)
        elif _read_spool_memory(data_dir) != content:
            new = data_dir / f".spool.known.{os.getpid()}"
            new.write_text(json.dumps(content))
            new.replace(_spool_memory(data_dir))


def _spool_memory(data_dir: Path) -> Path:
    return data_dir / "spool.known"


def _read_spool_memory(data_dir: Path) -> dict[str, str]:
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(_spool_memory(data_dir).read_bytes())
        if isinstance(known, dict):
            return known
    return {}


def _write_durably(name: str, text: str, folder: int) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE, dir_fd=folder)
    try:
        os.write(fd, text.encode())
        os.fsync(fd)
    finally:
        os.close(fd)
