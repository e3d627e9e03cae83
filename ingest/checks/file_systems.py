"""What the file systems of a node can do, looked at before anything is promised.

Each call that spool, store, quarantine and queue need is tried in a temporary folder beside the real one.
What has a fall-back that is as safe is a note; what has none is a fault, and a node does not start with it:
it would acknowledge images that it can never store. Trouble that passes (a full or failing disk, a mount
that is away) is no matter of this module.

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
import json
import mmap
import os
import select
import shutil
import signal
import socket
import tempfile
import time
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
from ingest.queue.client import SOCKET_PATH_BYTES

NAME_BYTES: Final = 255
"""The longest name that is made: of a file in quarantine."""

_LACKING: Final = NO_LINK | NO_FOLDER_SYNC | {errno.ENOLCK, errno.ENAMETOOLONG, errno.ENODEV, errno.ENXIO}
"""What calls answer that a file system does not have; every other error is trouble that passes."""

ROLES: Final = frozenset({"listen", "persist", "forward", "retain"})

_NOT_FOR_SQLITE: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "afs", "fuse.sshfs"})
"""File systems of servers. SQLite's write-ahead log needs memory that its users share."""


@dataclass(frozen=True, slots=True)
class Lack:
    """A call that a file system does not have.

    Attributes:
        cause: Which call, and what it answers.
        remedy: What to do about it.
        kind: NOTE if there is an equally safe fall-back.
    """

    cause: str
    remedy: str
    kind: FaultKind = FaultKind.FAULT


def faults(config: Config, roles: Collection[str] = ROLES) -> Iterator[Fault]:
    """What the file systems of a configuration lack, and what that means.

    Args:
        config: The configuration. Nothing of it is made; for a folder that is not there, the nearest one
            above it is looked at.
        roles: Whose folders to look at.
    """
    looked: dict[tuple[str, str], str] = {}
    for key, path, calls in _folders(config, roles):
        there = nearest(path)
        mount = find_mount(there)
        try:
            lacks = list(probe(there, calls))
        except OSError:
            continue  # full, failing or not writable: `ingest check` says so elsewhere
        for lack in lacks:
            known = looked.setdefault((str(mount), lack.cause), key)
            if known == key:
                yield Fault(key, f"{path} is on {mount}: {lack.cause}", lack.remedy, kind=lack.kind)


def faults_within(config: Config, roles: Collection[str], seconds: float) -> list[Fault]:
    """As `faults`, asked by a child of this process, which must have no threads.

    A server that does not answer holds whoever asks its mount, for hours (NFS, `hard`). It must not hold the
    node: what has not been told within `seconds` is noted, and the node starts.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        try:
            told = [asdict(fault) for fault in faults(config, roles)]
            os.write(writer, json.dumps(told).encode())
        finally:
            os._exit(0)
    os.close(writer)
    data, deadline = b"", time.monotonic() + seconds
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
            piece = pipe.read(65536)
            if not piece:
                os.waitpid(child, 0)
                found = json.loads(data or b"[]")
                return [Fault(**{**each, "kind": FaultKind(each["kind"])}) for each in found]
            data += piece
    # In a call that does not return it stays until the mount answers.
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, os.WNOHANG)
    cause = f"a folder of the node does not answer within {seconds:.0f} s, so nobody knows what it can do"
    return [Fault("node", cause, "see to its mount: spool, store or data folder", kind=FaultKind.NOTE)]


def nearest(path: Path) -> Path:
    """A folder, or the nearest one above it that is there."""
    return next((folder for folder in (path, *path.parents) if folder.is_dir()), Path("/"))


def probe(there: Path, calls: "tuple[Call, ...]") -> Iterator[Lack]:
    """Try calls in a folder, in a temporary folder that is gone afterwards.

    Raises:
        OSError: There is trouble of another kind: the folder cannot be written to, or its disk is full.
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


Call = Callable[[Path, int], Iterator[Lack]]
"""Tries one call in a folder that is open, too."""


def _folders(config: Config, roles: Collection[str]) -> Iterator[tuple[str, Path, tuple[Call, ...]]]:
    durable = (_file_sync, _folder_sync) if config.receive.durability == "fsync" else ()
    files: tuple[Call, ...] = (_rename, _name_exclusively, _lock, *durable)
    if "listen" in roles:
        shared = (_whole_file_lock,) if config.receive.segment_max_bytes else ()
        yield "receive.spool_dir", config.spool_dir, (*files, *shared)
    if "persist" in roles:
        yield "store.root", config.store_root, (*files, _link, _long_names)
        yield "node.data_dir", config.quarantine_dir, (*files, _long_names)
    yield "node.data_dir", config.run_dir, (_lock,)
    if not config.queue.url and "listen" in roles:
        yield "node.data_dir", config.data_dir / "queue", (_socket, _modes)
    if config.ledger_url.startswith("sqlite:///"):
        yield "ledger.url", Path(config.ledger_url.removeprefix("sqlite:///")).parent, (_mapping, _for_sqlite)


def _answer(error: OSError) -> str:
    """An error as people find it in manuals; raises it again if it is no lack of the file system."""
    if error.errno not in _LACKING:
        raise error
    return f"{error.strerror} ({errno.errorcode.get(error.errno or 0, '?')})"


def _rename(folder: Path, fd: int) -> Iterator[Lack]:
    (folder / "renamed from").touch()
    try:
        os.rename("renamed from", "renamed to", src_dir_fd=fd, dst_dir_fd=fd)
    except OSError as error:
        yield Lack(f"rename fails: {_answer(error)}", "name a folder on a file system that can rename")


def _name_exclusively(folder: Path, fd: int) -> Iterator[Lack]:
    """Whether a file can get a name without replacing another one, by one call or the other."""
    (folder / "one").touch()
    try:
        os.link("one", "linked", src_dir_fd=fd, dst_dir_fd=fd, follow_symlinks=False)
    except OSError as error:
        answer = _answer(error)
    else:
        return
    (folder / "taken").touch()
    with contextlib.suppress(FileExistsError):
        try:
            rename_exclusively("one", "taken", source_dir=fd, target_dir=fd)
        except FileExistsError:
            rename_exclusively("one", "free", source_dir=fd, target_dir=fd)
            return
        except OSError as error:
            answer = f"{answer}, and renameat2 with RENAME_NOREPLACE: {_answer(error)}"
    yield Lack(
        f"it has no hard links ({answer}), and cannot rename without replacing",
        "name a folder on a file system with one of them, such as ext4, xfs, btrfs, zfs or NFS",
    )


def _link(folder: Path, fd: int) -> Iterator[Lack]:
    """A note where instances have to be copied."""
    (folder / "to link").touch()
    try:
        os.link("to link", "link", src_dir_fd=fd, dst_dir_fd=fd, follow_symlinks=False)
    except OSError as error:
        cause = f"it has no hard links ({_answer(error)}), so each instance is copied"
        yield Lack(
            cause,
            "name a folder on ext4, xfs, btrfs or zfs for speed; it works as it is",
            kind=FaultKind.NOTE,
        )


def _file_sync(folder: Path, _: int) -> Iterator[Lack]:
    with (folder / "file").open("wb") as file:
        file.write(b"content")
        file.flush()
        for call in (os.fdatasync, os.fsync):
            try:
                call(file.fileno())
            except OSError as error:
                yield Lack(
                    f"{call.__name__} of a file fails: {_answer(error)}",
                    'name another folder, or set durability = "page-cache" and lose images with the power',
                )


def _folder_sync(_: Path, fd: int) -> Iterator[Lack]:
    try:
        os.fsync(fd)
    except OSError as error:
        answer = _answer(error)
    else:
        return
    try:
        sync_folder_fd(fd)
    except OSError as error:
        yield Lack(
            f"fsync of a folder fails ({answer}), and syncfs, too: {error.strerror}",
            'name another folder, or set durability = "page-cache" and lose images with the power',
        )
    else:
        cause = f"fsync of a folder fails ({answer}), so all of the file system is synced each time"
        yield Lack(
            cause, "name a folder on another file system for speed; it works as it is", kind=FaultKind.NOTE
        )


def _lock(folder: Path, _: int) -> Iterator[Lack]:
    fds = [os.open(folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600) for _ in range(2)]
    remedy = "mount it with locks (NFS: version 4, or 3 with rpc.statd), or name another folder"
    try:
        if not try_lock(fds[0]) or try_lock(fds[1]):
            yield Lack("it has locks that exclude nobody", remedy)
    except OSError as error:
        yield Lack(f"it has no locks: {_answer(error)}", remedy)
    finally:
        for fd in fds:
            os.close(fd)


def _whole_file_lock(folder: Path, _: int) -> Iterator[Lack]:
    """The lock that a segment's writer and its readers hold (`ingest.spool.segment`)."""
    fd = os.open(folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        yield Lack(
            f"it has no flock(2): {_answer(error)}", "set segment_max_bytes = 0, or name another folder"
        )
    finally:
        os.close(fd)


def _long_names(folder: Path, _: int) -> Iterator[Lack]:
    name = "1.2.840~" + "x" * (NAME_BYTES - len("1.2.840~.dcm")) + ".dcm"
    try:
        (folder / name).touch()
    except OSError as error:
        cause = f"it takes no names of {NAME_BYTES} bytes: {_answer(error)}"
        yield Lack(cause, "name a folder on another file system")
        return
    if name not in os.listdir(folder):
        yield Lack("it changes names that it is given", "name a folder on another file system")


def _mapping(folder: Path, _: int) -> Iterator[Lack]:
    with (folder / "mapped").open("w+b") as file:
        file.write(bytes(mmap.PAGESIZE))
        file.flush()
        try:
            mmap.mmap(file.fileno(), mmap.PAGESIZE).close()
        except OSError as error:
            cause = f"it has no shared mappings, which SQLite needs: {_answer(error)}"
            yield Lack(cause, "put node.data_dir on another file system, or use PostgreSQL")


def _for_sqlite(folder: Path, _: int) -> Iterator[Lack]:
    mount: Mount = find_mount(folder)
    if mount.kind in _NOT_FOR_SQLITE:
        cause = "SQLite is safe there for as long as only this host uses it"
        yield Lack(cause, "put node.data_dir on a disk of this host, or use PostgreSQL", kind=FaultKind.NOTE)


def _socket(folder: Path, fd: int) -> Iterator[Lack]:
    path = str(folder / "socket")
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
        path = f"/proc/self/fd/{fd}/socket"
    with socket.socket(socket.AF_UNIX) as made:
        try:
            made.bind(path)
        except OSError as error:
            cause = f"it has no Unix sockets ({_answer(error)}); the embedded queue's is in a runtime folder"
            yield Lack(
                cause, "nothing has to be done; run commands as the user of the node", kind=FaultKind.NOTE
            )


def _modes(folder: Path, _: int) -> Iterator[Lack]:
    with contextlib.suppress(OSError):
        folder.chmod(0o700)
    if folder.stat().st_mode & 0o077:
        cause = "it keeps no modes, so that other users of this host may read what the mount lets them"
        yield Lack(cause, "mount it with umask=077, or file_mode=0600,dir_mode=0700", kind=FaultKind.NOTE)
