"""Ids of folders that may be mounts of their own, so that one that is not mounted is not made anew.

A folder whose file system is not mounted looks like an empty one. A node that makes its store there fills
the root disk, and takes every file of the real store for lost. So each store has an id, and who uses the
store remembers it:

| folder | its id | remembered |
|---|---|---|
| store, quarantine | `<root>/.incoming/id` | in the ledger (`StoreFolders.find_folder`) |
| spool | `<spool_dir>/id` | in `<data_dir>/spool.known`, if it lies on another file system than that |

The other way round the store remembers the ledger: its id, and a counter that both count up while images are
stored (`LedgerMark`). A ledger that was deleted, or that an older backup of was restored, is noticed by it.
"""

import contextlib
import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ingest.errors import SpoolMissingError, StoreMissingError
from ingest.filesystem.calls import mount_of, name_exclusively, sync_folder_fd

MARKER: Final = Path(".incoming") / "id"
"""Below the root of a store or quarantine; no key of an instance leads there."""

LEDGER_MARK: Final = Path(".incoming") / "ledger"
"""Below the root of a store: which ledger tells of it, and how far that was."""

_FILE_MODE: Final = 0o640
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class KnownFolder:
    """What the ledger knows of a store.

    Attributes:
        id: The store's id; None for a ledger that has not seen it, or is of a version before ids.
        is_used: Whether the ledger has instances whose files lie there.
    """

    id: str | None = None
    is_used: bool = False


@dataclass(frozen=True, slots=True)
class LedgerMark:
    """Which ledger, and how far it is.

    Attributes:
        id: The ledger's id.
        count: Grows while instances are stored. The ledger counts first, and durably: that of the store is
            never ahead, unless the ledger went back.
    """

    id: str
    count: int


def read_ledger_mark(root: Path) -> LedgerMark | None:
    """What the store with this root remembers of its ledger; None where there is nothing that can be read."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        told = json.loads((root / LEDGER_MARK).read_bytes())
        return LedgerMark(str(told["id"]), int(told["count"]))
    return None


def write_ledger_mark(root: Path, mark: LedgerMark) -> None:
    """Have the store remember its ledger.

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
    """The id of the store with this root; None where there is none.

    Raises:
        OSError: It cannot be read.
    """
    try:
        return (root / MARKER).read_text().strip() or None
    except (FileNotFoundError, NotADirectoryError):
        return None


def require_store(root: Path, known: KnownFolder) -> None:
    """Make sure that a folder is the store that the ledger means, or that there is none yet to be missed.

    Raises:
        StoreMissingError: It is another store, or none while the ledger has files there.
        OSError: It cannot be read.
    """
    if not known.is_used:
        return
    found = read_id(root)
    # A version before ids left a folder without one.
    was_made = known.id is None and (root / MARKER).parent.is_dir()
    if found is None and not was_made:
        raise StoreMissingError(
            f"{root} is not the store that the ledger knows: {root / MARKER} is not there "
            f"({mount_of(root)}); {_remedy(root, known.id)}"
        )
    if found is not None and known.id not in {None, found}:
        raise StoreMissingError(
            f"{root} is another store than the one that the ledger knows: its id is {found}, not {known.id} "
            f"({mount_of(root)}); {_remedy(root, known.id)}"
        )


def _remedy(root: Path, identity: str | None) -> str:
    if identity is None:
        return "mount it"
    return f"mount it; if its files are lost for good, write {identity} into {root / MARKER} to begin anew"


def give_id(root: Path) -> str:
    """The id of a store; makes one where there is none, durably. The folder of `MARKER` has to be there.

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
            # It fails where the name exists, so that of two workers that start together one decides.
            with contextlib.suppress(FileExistsError):
                name_exclusively(temporary, MARKER.name, source_dir=fd, target_dir=fd)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=fd)
        sync_folder_fd(fd)
    finally:
        os.close(fd)
    return read_id(root) or identity


def require_spool(root: Path, identity: str | None, data_dir: Path) -> None:
    """Make sure that a spool is the one that was used last, if that was a mount of its own.

    Args:
        root: The spool's folder.
        identity: Its id; None where it has none yet.
        data_dir: `[node] data_dir`.

    Raises:
        SpoolMissingError: It is another one, or none.
    """
    known = _remembered_spool(data_dir)
    if known.get("path") == str(root) and known.get("id") not in {None, identity}:
        raise SpoolMissingError(
            f"[receive] spool_dir: {root} is not the spool that was used last, with the id {known['id']} "
            f"({mount_of(root)}); mount it, or remove {_memory(data_dir)} if it is lost for good"
        )


def remember_spool(root: Path, identity: str, data_dir: Path) -> None:
    """Remember a spool that lies on another file system than `data_dir`.

    One on the same cannot be unmounted alone. If the disk is full, the next start remembers it.
    """
    with contextlib.suppress(OSError):
        told = {"path": str(root), "id": identity}
        if root.stat().st_dev == data_dir.stat().st_dev:
            _memory(data_dir).unlink(missing_ok=True)
        elif _remembered_spool(data_dir) != told:
            new = data_dir / f".spool.known.{os.getpid()}"
            new.write_text(json.dumps(told))
            new.replace(_memory(data_dir))


def _memory(data_dir: Path) -> Path:
    return data_dir / "spool.known"


def _remembered_spool(data_dir: Path) -> dict[str, str]:
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(_memory(data_dir).read_bytes())
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
