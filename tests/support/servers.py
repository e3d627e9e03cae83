"""Servers that tests start for themselves, in short private folders: Valkey and PostgreSQL, on sockets."""

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis

from ingest.extras import lacks_libpq
from ingest.process import prepare_parent_death_signal
from ingest.queue.server_program import find_server_program
from tests.support.nodes import eventually

if TYPE_CHECKING:
    from ingest.supervisor.embedded_queue import EmbeddedQueue


def wait_for_pong(queue: "EmbeddedQueue", seconds: float) -> bool:
    """Wait until an embedded queue answers PONG; False if it ends or does not answer within `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if queue._ask(b"PING\r\n").startswith(b"+PONG"):
            return True
        if queue.process is not None and queue.process.poll() is not None:
            return False
        time.sleep(0.01)
    return False


@dataclass
class Valkey:
    """One server; `stop` and `start` at will, `kill` for the unkind way."""

    folder: Path
    process: "subprocess.Popen[bytes] | None" = None
    arguments: tuple[str, ...] = field(default=("--save", "", "--appendonly", "no"))

    @property
    def url(self) -> str:
        return f"unix://{self.folder / 's'}"

    def client(self) -> redis.Redis:
        """A client of its own; the caller closes it."""
        return redis.Redis.from_url(self.url, socket_timeout=10)

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                str(find_server_program()),
                "--port",
                "0",
                "--unixsocket",
                f"{self.folder}/s",
                "--dir",
                f"{self.folder}",
                *self.arguments,
            ],
            stdout=subprocess.DEVNULL,
            preexec_fn=prepare_parent_death_signal(signal.SIGKILL),
        )
        with contextlib.closing(self.client()) as client:
            eventually(lambda: _answers(client), 10, "valkey answers PING")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextlib.contextmanager
def recorded_commands(server: Valkey) -> Iterator[Callable[[], bytes]]:
    """Record what clients send to a server; the function returns it, with the data of jobs unpacked."""
    chunks: list[bytes] = []
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as monitor:
        monitor.connect(f"{server.folder}/s")
        monitor.sendall(b"MONITOR\r\n")
        assert monitor.recv(5) == b"+OK\r\n"
        reader = threading.Thread(target=lambda: chunks.extend(iter(lambda: monitor.recv(1 << 16), b"")))
        reader.start()
        try:
            yield lambda: _unpack(b"".join(chunks))
        finally:
            monitor.shutdown(socket.SHUT_RDWR)
            reader.join()


def _unpack(said: bytes) -> bytes:
    """Return commands that MONITOR wrote, and behind them what zlib packed into their arguments."""
    packed = []
    for quoted in re.findall(rb'"(x\\x9c(?:[^"\\]|\\.)*)"', said):
        argument = quoted.decode("unicode_escape").encode("latin-1")
        packed.append(zlib.decompress(argument))
    return b"\n".join([said, *packed])


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


@contextlib.contextmanager
def valkey() -> Iterator[Valkey]:
    """A running server without persistence; killed by its process id at the end."""
    folder = Path(tempfile.mkdtemp(prefix="vk"))
    server = Valkey(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)


def require_postgresql() -> None:
    """Skip where there is no PostgreSQL, or no client for it; fail in CI."""
    reason = "" if _postgresql_program("initdb") else "PostgreSQL's initdb is not installed"
    if importlib.util.find_spec("psycopg") is None or lacks_libpq():
        reason = "psycopg or libpq is not installed"
    if reason and os.environ.get("CI") == "true":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


def _postgresql_program(name: str) -> str | None:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name)


def _connects(folder: Path) -> bool:
    import psycopg  # an optional dependency

    try:
        psycopg.connect(f"host={folder} user=postgres dbname=postgres").close()
    except psycopg.OperationalError:
        return False
    return True


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """A running server of our own; yields an SQLAlchemy URL."""
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    # It refuses to run as root.
    as_user = {"user": "postgres"} if os.geteuid() == 0 else {}
    if as_user:
        shutil.chown(folder, "postgres")
    initdb, server = _postgresql_program("initdb"), _postgresql_program("postgres")
    assert initdb
    assert server
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    data = str(folder / "data")
    subprocess.run(
        [initdb, "-D", data, "-A", "trust", "-U", "postgres", "-N"], check=True, **quiet, **as_user
    )
    process = subprocess.Popen(
        [server, "-D", data, "-k", str(folder), "-c", "listen_addresses=", "-c", "fsync=off"],
        **quiet,
        **as_user,
    )
    try:
        eventually(lambda: _connects(folder), 30, "PostgreSQL takes connections")
        yield f"postgresql+psycopg://postgres@/postgres?host={folder}"
    finally:
        # SIGTERM would wait for clients that a failed test has left.
        process.send_signal(signal.SIGINT)
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)
