"""The server of the console: uvicorn in a child process of the supervisor, with bounds on everything.

The node never waits for this process. It runs at low priority, it may use a bounded amount of memory and
descriptors, and the kernel ends it first if the machine runs out of memory.
"""

import asyncio
import contextlib
import os
import resource
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Final

import structlog
import uvicorn

from ingest.alarms import raise_alarm
from ingest.config.console_rules import check_console
from ingest.config.model import Config, ConsoleSettings
from ingest.console.app import build_app, build_console
from ingest.console.auth.tokens import read_local_token
from ingest.console.certificate import build_tls_context
from ingest.console.protocol import BoundedProtocol
from ingest.console.web import Console
from ingest.errors import BootError, IngestError
from ingest.ledger.database import bound_statements
from ingest.supervisor.console_watch import CONSOLE_AWAY, ConsoleLink

NICE: Final = 10
"""Added to the priority of the process: receiving and forwarding come first."""

MEMORY_BYTES: Final = 1 << 30
"""Bound for the private memory of the process (RLIMIT_DATA).

RLIMIT_AS would also count the reserved address space of threads and mapped files, which is no memory. Beyond
the limit a request fails with MemoryError, and the process goes on or is replaced.
"""

OOM_SCORE: Final = 900
"""oom_score_adj(5): if the machine runs out of memory, the kernel ends the console and not a listener."""

STACK_BYTES: Final = 1 << 20
BIND_SECONDS: Final = 10.0
"""After a reload, the console of the earlier generation may hold the port for a moment."""

GRACEFUL_SECONDS: Final = 2
KEEP_ALIVE_SECONDS: Final = 15
HANDSHAKE_SECONDS: Final = 10.0
STATEMENT_SECONDS: Final = 30.0
"""A statement that takes longer is given up, so that a few searches cannot keep all threads."""

MAX_HEADER_BYTES: Final = 32 * 1024

log = structlog.get_logger()


def main(config: Config, stop: threading.Event, path: Path, link: ConsoleLink) -> int:
    """Run the child process until SIGTERM or SIGINT, and return its exit code.

    Raises:
        BootError: The console cannot serve with this configuration. The alarm names the cause.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    limit_process()
    bound_statements(STATEMENT_SECONDS)
    try:
        return _serve(config, stop, path, link)
    except IngestError as error:
        remedy = "correct [console] and reload; receiving and forwarding go on"
        raise_alarm(config.run_dir, CONSOLE_AWAY, f"the console cannot serve: {error}", remedy)
        raise BootError(str(error)) from error


def limit_process() -> None:
    """Bound what this process can take from the others."""
    os.nice(NICE)
    os.umask(0o077)
    threading.stack_size(STACK_BYTES)
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    limit = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE), encoding="ascii")


def _serve(config: Config, stop: threading.Event, path: Path, link: ConsoleLink) -> int:
    settings = config.console or ConsoleSettings()
    faults = [str(fault) for fault in check_console(settings, config.console_dir, config.tls)]
    if faults:
        raise BootError("\n".join(faults))
    console = build_console(config, path, link)
    if not settings.is_public and not console.users.list_users():
        read_local_token(config.console_dir)
    server = ConsoleServer(console, stop)
    listening = bind_socket(settings, stop)
    with contextlib.closing(listening):
        server.run(sockets=[listening])
    return 0


def bind_socket(settings: ConsoleSettings, stop: threading.Event) -> socket.socket:
    """Return the listening socket.

    Raises:
        BootError: The address cannot be bound within `BIND_SECONDS`.
    """
    deadline = time.monotonic() + BIND_SECONDS
    while True:
        try:
            family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
            return socket.create_server((settings.host, settings.port), family=family, backlog=128)
        except OSError as error:
            if time.monotonic() > deadline or stop.is_set():
                cause = f"{settings.host}:{settings.port} cannot be bound: {error.strerror or error}"
                raise BootError(f"[console] {cause}; choose another host or port") from error
            time.sleep(0.1)


class ConsoleServer(uvicorn.Server):
    """uvicorn with our bounds, which ends when its event is set."""

    def __init__(self, console: Console, stop: threading.Event) -> None:
        """Prepare the server of one console."""
        settings = console.settings
        super().__init__(
            uvicorn.Config(
                build_app(console),
                loop="asyncio",
                http=BoundedProtocol,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=GRACEFUL_SECONDS,
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            )
        )
        self._console = console
        self._stop = stop
        self._context = build_tls_context(console.config, settings)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve. uvicorn's own method has no deadline for TLS handshakes."""
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            raise BootError("[console] the console cannot start; see the log")
        loop = asyncio.get_running_loop()
        is_tls = self._context is not None

        def create_protocol() -> asyncio.Protocol:
            return BoundedProtocol(
                self.config, self.server_state, self.lifespan.state, max_connections=self._max_connections
            )

        self.servers = [
            await loop.create_server(
                create_protocol,
                sock=each,
                ssl=self._context,
                ssl_handshake_timeout=HANDSHAKE_SECONDS if is_tls else None,
                ssl_shutdown_timeout=GRACEFUL_SECONDS if is_tls else None,
            )
            for each in sockets or []
        ]
        self.started = True
        address = [each.getsockname()[:2] for each in sockets or []]
        log.info("console_ready", listening=address, https=is_tls)

    @property
    def _max_connections(self) -> int:
        return self._console.settings.max_connections

    async def on_tick(self, counter: int) -> bool:
        """End when the supervisor asks for it, or when it is gone."""
        return self._stop.is_set() or await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the streams first, because they would use up the time for other requests."""
        await self._console.events.close()
        await super().shutdown(sockets)
