"""Locks in the run folder that show which node runs on a data folder.

A node with listeners holds an exclusive lock on `node.lock`, which contains its pid. Each supervisor that
runs only workers holds a shared lock on `workers.lock`. Both are record locks (fcntl), because a forked
child does not inherit those.
"""

import contextlib
import fcntl
import os
import socket
from pathlib import Path
from typing import Final

from ingest.errors import BootError, IngestError
from ingest.filesystem.calls import TRANSIENT_ERRNOS

NODE_LOCK: Final = "node.lock"
WORKERS_LOCK: Final = "workers.lock"


def take_node_lock(run_dir: Path) -> int:
    """Lock the data folder for one node with listeners; return the descriptor to keep open.

    Raises:
        BootError: Another node runs on this data folder.
        OSError: The lock file cannot be opened for a reason other than the disk.
    """
    try:
        fd = os.open(run_dir / NODE_LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o640)
    except OSError as error:
        if error.errno not in TRANSIENT_ERRNOS:
            raise
        return _bind_lock_name(run_dir)
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        owner = os.read(fd, 32).decode(errors="replace").strip()
        raise BootError(
            f"[node] data_dir: process {owner or 'unknown'} runs a node on {run_dir.parent}; stop it"
        ) from error
    with contextlib.suppress(OSError):  # the disk may be full
        # Write before truncating: the old content has a block already, so a full disk does not matter.
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        os.ftruncate(fd, len(f"{os.getpid()}\n"))
    return fd


def _bind_lock_name(run_dir: Path) -> int:
    """Exclude other nodes of this host when no lock file can be written.

    An abstract socket name (unix(7)) needs no file and ends with the process.
    """
    folder = run_dir.stat()
    name = socket.socket(socket.AF_UNIX)
    try:
        name.bind(f"\0dicom-ingest {folder.st_dev} {folder.st_ino}")
    except OSError as error:
        raise BootError(f"[node] data_dir: another node runs on {run_dir.parent}; stop it") from error
    return name.detach()


def share_workers_lock(run_dir: Path) -> int:
    """Show that workers run on this data folder; return the descriptor to keep open."""
    fd = os.open(run_dir / WORKERS_LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o640)
    fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return fd


def find_node_pid(run_dir: Path) -> int:
    """Return the process id of the node with listeners that runs on this folder.

    Raises:
        IngestError: No node runs there, or this user may not see it.
    """
    path, kind = run_dir / NODE_LOCK, fcntl.LOCK_EX
    try:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except PermissionError:
            # A monitoring account may only read the file. The node's lock excludes a shared lock as well.
            fd, kind = os.open(path, os.O_RDONLY | os.O_CLOEXEC), fcntl.LOCK_SH
    except FileNotFoundError:
        raise no_node_error(run_dir) from None
    except OSError as error:
        raise IngestError(f"{path}: {error.strerror}; run the command as the user of the node") from None
    try:
        with contextlib.suppress(BlockingIOError, PermissionError):
            fcntl.lockf(fd, kind | fcntl.LOCK_NB)
            raise no_node_error(run_dir)
        return int(os.read(fd, 32))
    except ValueError:
        raise no_node_error(run_dir) from None
    finally:
        os.close(fd)


def is_node_running(run_dir: Path) -> bool:
    """Return whether a node with listeners runs on this folder, as far as this user can see."""
    try:
        return bool(find_node_pid(run_dir))
    except IngestError:
        return False


def are_workers_running(run_dir: Path) -> bool:
    """Return whether workers without listeners run on this folder, on this host."""
    try:
        fd = os.open(run_dir / WORKERS_LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def no_node_error(run_dir: Path) -> IngestError:
    """Return the error that says that no node runs on this folder."""
    return IngestError(f"no node with listeners runs on {run_dir.parent}; `ingest serve` starts one")
