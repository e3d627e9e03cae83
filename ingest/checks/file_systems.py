"""Checks of the file systems of a node, before it acknowledges an instance.

Each call that spool, store, quarantine and queue need is tried in a temporary folder beside the real one. A
missing call with an equally safe fall-back is a note. A missing call without one is a fault, and a node does
not
start: it would acknowledge images that it can never store. This module ignores temporary trouble: a full or
failing disk, or a mount that is away.

| call | needed by | fall-back |
|---|---|---|
| rename(2), fsync(2) of a file | spool, store | none |
| link(2), or renameat2(2) with RENAME_NOREPLACE | spool, store, quarantine | one for the other |
| fsync(2) of a folder | spool, store, quarantine | syncfs(2) |
| record locks (F_OFD_SETLK) | spool, store, data_dir | none |
| names of 255 bytes, with "~" | store, quarantine | none |
| flock(2) | spool with `segment_max_bytes` | none |
| shared mappings | data_dir (SQLite's WAL) | none; with PostgreSQL it is a note |
| Unix sockets, modes | data_dir with the embedded queue | a runtime folder |
"""

import contextlib
import errno
import fcntl
import mmap
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from ingest.config.faults import Fault, FaultKind
from ingest.config.model import Config
from ingest.filesystem.calls import (
    NO_FOLDER_SYNC,
    NO_LINK,
    Mount,
    find_mount,
    rename_exclusively,
    sync_folder_fd,
)
from ingest.filesystem.locks import try_lock
from ingest.process import call_in_child
from ingest.queue.client import SOCKET_PATH_BYTES

NAME_BYTES: Final = 255
"""The longest file name that a node creates, in the quarantine."""

_MISSING_CALL_ERRORS: Final = (
    NO_LINK | NO_FOLDER_SYNC | {errno.ENOLCK, errno.ENAMETOOLONG, errno.ENODEV, errno.ENXIO}
)
"""Errors of calls that a file system does not have. Every other error is temporary trouble."""

_NO_SOCKET: Final = _MISSING_CALL_ERRORS | {errno.EIO}
"""The same for the socket of a folder that has just taken files: exFAT in user space answers EIO."""

ROLES: Final = frozenset({"listen", "persist", "forward", "retain", "monitor", "console"})

_NETWORK_FILE_SYSTEMS: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "afs", "fuse.sshfs"})
"""Network file systems. The users of SQLite's write-ahead log must share memory, so one host."""


@dataclass(frozen=True, slots=True)
class MissingCall:
    """A call that a file system does not have.

    Attributes:
        cause: The call and its error.
        remedy: What to do about it.
        kind: NOTE if there is an equally safe fall-back.
    """

    cause: str
    remedy: str
    kind: FaultKind = FaultKind.FAULT


def check_file_systems(config: Config, roles: Collection[str] = ROLES) -> Iterator[Fault]:
    """Yield a fault or a note for each missing call.

    Args:
        config: The configuration. No folder of it is created. If a folder does not exist, the nearest
            existing folder above it is checked.
        roles: The roles whose folders to check.
    """
    reported: dict[tuple[str, str], str] = {}
    for key, path, calls in _list_folders(config, roles):
        there = find_existing_folder(path)
        mount = find_mount(there)
        # A full, failing or read-only disk ends the probe, and `check_node` reports that. The calls that were
        # found missing before stay missing.
        with contextlib.suppress(OSError):
            for missing in probe_folder(there, calls):
                first_key = reported.setdefault((str(mount), missing.cause), key)
                if first_key == key:
                    cause = f"{path} is on {mount}: {missing.cause}"
                    yield Fault(key, cause, missing.remedy, kind=missing.kind)


def check_file_systems_within(config: Config, roles: Collection[str], seconds: float) -> list[Fault]:
    """Check the file systems in a child process. This process must have no threads.

    A server that does not answer blocks every process that uses its mount, for hours (NFS, `hard`). It must
    not block the node: without a result within `seconds` there is a note, and the node starts.
    """
    found = call_in_child(lambda: [asdict(fault) for fault in check_file_systems(config, roles)], seconds)
    if found is not None:
        return [Fault(**{**each, "kind": FaultKind(each["kind"])}) for each in found]
    cause = f"a folder of the node does not answer within {seconds:.0f} s, so its file system is not checked"
    return [Fault("node", cause, "check the mount of spool, store or data folder", kind=FaultKind.NOTE)]


def find_existing_folder(path: Path) -> Path:
    """Return a folder, or the nearest existing one above it."""
    # Not Path.is_dir: before Python 3.14 it raises PermissionError below a folder that may not be entered.
    return next((folder for folder in (path, *path.parents) if os.path.isdir(folder)), Path("/"))


def probe_folder(there: Path, calls: "tuple[Call, ...]") -> Iterator[MissingCall]:
    """Try calls in a temporary folder below `there`, and remove it afterwards.

    Raises:
        OSError: The folder cannot be written, or its disk is full.
    """
    folder = Path(tempfile.mkdtemp(prefix=".ingest-probe-", dir=there))
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for call in calls:
                yield from call(folder, fd)
        finally:
            os.close(fd)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


Call = Callable[[Path, int], Iterator[MissingCall]]
"""A function that tries one call in a folder. It gets the path and a descriptor."""


def _list_folders(config: Config, roles: Collection[str]) -> Iterator[tuple[str, Path, tuple[Call, ...]]]:
    durable = (_try_file_sync, _try_folder_sync) if config.receive.durability == "fsync" else ()
    files: tuple[Call, ...] = (_try_rename, _try_exclusive_name, _try_record_lock, *durable)
    if "listen" in roles:
        shared = (_try_file_lock,) if config.receive.segment_max_bytes else ()
        yield "receive.spool_dir", config.spool_dir, (*files, *shared)
    if "persist" in roles:
        yield "store.root", config.store_root, (*files, _try_link, _try_long_names)
        yield "node.data_dir", config.quarantine_dir, (*files, _try_long_names)
    yield "node.data_dir", config.run_dir, (_try_record_lock,)
    if not config.queue.url and "listen" in roles:
        yield "node.data_dir", config.data_dir / "queue", (_try_socket, _try_modes)
    if config.ledger_url.startswith("sqlite:///"):
        yield (
            "ledger.url",
            Path(config.ledger_url.removeprefix("sqlite:///")).parent,
            (_try_mapping, _try_sqlite_mount),
        )


def _describe_error(error: OSError, missing: Collection[int] = _MISSING_CALL_ERRORS) -> str:
    """Return the name and text of an error. Raise it again if it does not mean a missing call."""
    if error.errno not in missing:
        raise error
    return f"{error.strerror} ({errno.errorcode.get(error.errno or 0, '?')})"


def _try_rename(folder: Path, fd: int) -> Iterator[MissingCall]:
    (folder / "renamed from").touch()
    try:
        os.rename("renamed from", "renamed to", src_dir_fd=fd, dst_dir_fd=fd)
    except OSError as error:
        yield MissingCall(
            f"rename fails: {_describe_error(error)}", "name a folder on a file system that can rename"
        )


def _try_exclusive_name(folder: Path, fd: int) -> Iterator[MissingCall]:
    """Report a file system on which a file cannot get a name without replacing another file."""
    (folder / "one").touch()
    try:
        os.link("one", "linked", src_dir_fd=fd, dst_dir_fd=fd, follow_symlinks=False)
    except OSError as error:
        answer = _describe_error(error)
    else:
        return
    (folder / "taken").touch()
    fault = _find_exclusive_rename_fault(fd)
    if fault:
        yield MissingCall(
            f"it has no hard links ({answer}), and cannot rename without replacing ({fault})",
            "name a folder on a file system with one of them, such as ext4, xfs, btrfs, zfs or NFS",
        )


def _find_exclusive_rename_fault(fd: int) -> str:
    """Return why a file cannot be renamed without replacing another one; nothing if it can.

    The kernel refuses a name that is taken before it asks the file system. Only the rename to a free name
    shows whether the file system knows RENAME_NOREPLACE.
    """
    try:
        with contextlib.suppress(FileExistsError):
            rename_exclusively("one", "taken", source_dir=fd, target_dir=fd)
            return "RENAME_NOREPLACE has replaced a file"
        rename_exclusively("one", "free", source_dir=fd, target_dir=fd)
    except OSError as error:
        return f"renameat2 with RENAME_NOREPLACE: {_describe_error(error)}"
    return ""


def _try_link(folder: Path, fd: int) -> Iterator[MissingCall]:
    """Report with a note that instances must be copied."""
    (folder / "to link").touch()
    try:
        os.link("to link", "link", src_dir_fd=fd, dst_dir_fd=fd, follow_symlinks=False)
    except OSError as error:
        cause = f"it has no hard links ({_describe_error(error)}), so each instance is copied"
        yield MissingCall(
            cause,
            "name a folder on ext4, xfs, btrfs or zfs for speed; it works as it is",
            kind=FaultKind.NOTE,
        )


def _try_file_sync(folder: Path, _: int) -> Iterator[MissingCall]:
    with (folder / "file").open("wb") as file:
        file.write(b"content")
        file.flush()
        for call in (os.fdatasync, os.fsync):
            try:
                call(file.fileno())
            except OSError as error:
                yield MissingCall(
                    f"{call.__name__} of a file fails: {_describe_error(error)}",
                    'name another folder, or set durability = "page-cache" and risk images in a power cut',
                )


def _try_folder_sync(_: Path, fd: int) -> Iterator[MissingCall]:
    try:
        os.fsync(fd)
    except OSError as error:
        answer = _describe_error(error)
    else:
        return
    try:
        sync_folder_fd(fd)
    except OSError as error:
        yield MissingCall(
            f"fsync of a folder fails ({answer}), and syncfs, too: {error.strerror}",
            'name another folder, or set durability = "page-cache" and risk images in a power cut',
        )
    else:
        cause = f"fsync of a folder fails ({answer}), so the whole file system is synced each time"
        yield MissingCall(
            cause, "name a folder on another file system for speed; it works as it is", kind=FaultKind.NOTE
        )


def _try_record_lock(folder: Path, _: int) -> Iterator[MissingCall]:
    fds = [os.open(folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600) for _ in range(2)]
    remedy = "mount it with locks (NFS: version 4, or 3 with rpc.statd), or name another folder"
    try:
        if not try_lock(fds[0]) or try_lock(fds[1]):
            yield MissingCall("its locks do not exclude other processes", remedy)
    except OSError as error:
        yield MissingCall(f"it has no locks: {_describe_error(error)}", remedy)
    finally:
        for fd in fds:
            os.close(fd)


def _try_file_lock(folder: Path, _: int) -> Iterator[MissingCall]:
    """Report that the lock of a segment's writer and readers is missing (`ingest.spool.segment`)."""
    fd = os.open(folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        yield MissingCall(
            f"it has no flock(2): {_describe_error(error)}",
            "set segment_max_bytes = 0, or name another folder",
        )
    finally:
        os.close(fd)


def _try_long_names(folder: Path, _: int) -> Iterator[MissingCall]:
    name = "1.2.840~" + "x" * (NAME_BYTES - len("1.2.840~.dcm")) + ".dcm"
    try:
        (folder / name).touch()
    except OSError as error:
        cause = f"it refuses names of {NAME_BYTES} bytes: {_describe_error(error)}"
        yield MissingCall(cause, "name a folder on another file system")
        return
    if name not in os.listdir(folder):
        yield MissingCall("it changes file names", "name a folder on another file system")


def _try_mapping(folder: Path, _: int) -> Iterator[MissingCall]:
    with (folder / "mapped").open("w+b") as file:
        file.write(bytes(mmap.PAGESIZE))
        file.flush()
        try:
            mmap.mmap(file.fileno(), mmap.PAGESIZE).close()
        except OSError as error:
            cause = f"it has no shared mappings, which SQLite needs: {_describe_error(error)}"
            yield MissingCall(cause, "put node.data_dir on another file system, or use PostgreSQL")


def _try_sqlite_mount(folder: Path, _: int) -> Iterator[MissingCall]:
    mount: Mount = find_mount(folder)
    if mount.kind in _NETWORK_FILE_SYSTEMS:
        cause = "SQLite is safe there only while no other host uses it"
        yield MissingCall(
            cause, "put node.data_dir on a disk of this host, or use PostgreSQL", kind=FaultKind.NOTE
        )


def _try_socket(folder: Path, fd: int) -> Iterator[MissingCall]:
    path = str(folder / "socket")
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
        path = f"/proc/self/fd/{fd}/socket"
    with socket.socket(socket.AF_UNIX) as made:
        try:
            made.bind(path)
        except OSError as error:
            answer = _describe_error(error, _NO_SOCKET)
            cause = f"it has no Unix sockets ({answer}); that of the embedded queue is in a runtime folder"
            yield MissingCall(
                cause, "nothing has to be done; run commands as the user of the node", kind=FaultKind.NOTE
            )


def _try_modes(folder: Path, _: int) -> Iterator[MissingCall]:
    with contextlib.suppress(OSError):
        folder.chmod(0o700)
    if folder.stat().st_mode & 0o077:
        cause = "it ignores modes, so other users of this host may read the files if the mount lets them"
        yield MissingCall(
            cause, "mount it with umask=077, or file_mode=0600,dir_mode=0700", kind=FaultKind.NOTE
        )
