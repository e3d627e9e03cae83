"""One listener process: accepts, serves its associations, keeps its spool slot and scoreboard row."""

import asyncio
import errno
import resource
import signal
import socket
from dataclasses import replace
from typing import Final

import structlog
import uvloop

from ingest.config.model import Config
from ingest.dicom.negotiate import Accepted, AcceptorPolicy, Rejected, local_limit_exceeded, negotiate
from ingest.dicom.pdus import AssociateRequest
from ingest.dicom.policy import Caller, Refusal, admit
from ingest.errors import BootError, SpoolError
from ingest.handoff import Handoff
from ingest.log import reopen as reopen_log
from ingest.node.accept_gate import PASS_SECONDS, AcceptGate
from ingest.node.connection import Connection
from ingest.node.endpoints import Endpoint
from ingest.node.scoreboard import (
    ACCEPTING,
    ACTIVE,
    DRAINING,
    HEARTBEAT,
    REFUSED,
    STATE,
    Scoreboard,
    now_ms,
)
from ingest.node.store_scp import Services
from ingest.spool.spool import Spool
from ingest.tls.identity import Identity

BUFFER: Final = 256 * 1024
"""Bytes of each of the two buffers that all connections of the process share."""

TICK_SECONDS: Final = 0.25
ACCEPT_PAUSE_SECONDS: Final = 0.5
HANDOFF_SECONDS: Final = 3.0
CONNECTIONS_PER_ASSOCIATION: Final = 2
"""Connections still shaking hands count too; beyond this many for each allowed association none is taken."""

log = structlog.get_logger()


def run(config: Config, endpoints: tuple[Endpoint, ...], board: Scoreboard, row: int) -> int:
    """Serve until told to stop; the body of a forked listener. Returns the exit code.

    Raises:
        BootError: The spool cannot be used.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(config, endpoints, board, row))


async def _serve(config: Config, endpoints: tuple[Endpoint, ...], board: Scoreboard, row: int) -> int:
    loop = asyncio.get_running_loop()
    try:
        spool = Spool.claim(
            config.spool_dir,
            durable=config.receive.durability == "fsync",
            post=loop.call_soon_threadsafe,
        )
    except SpoolError as error:
        raise BootError(f"[receive] spool_dir: {error}") from error
    handoff = Handoff(config, spool)
    listener = Listener(config, endpoints, Services(spool, handoff, board, row, config.receive.quarantine))
    try:
        await listener.serve()
    finally:
        await loop.run_in_executor(None, spool.close)
        await asyncio.sleep(0)  # what the last commits posted
        await loop.run_in_executor(None, handoff.close, HANDOFF_SECONDS)
    return 0


class Listener:
    """What all connections of this process share.

    Attributes:
        config: The configuration.
        services: Spool, hand-off and scoreboard.
        ciphertext: The one buffer for what the network gives to TLS.
        plaintext: The one buffer for what TLS, or a plain network, gives to the parser.
    """

    def __init__(self, config: Config, endpoints: tuple[Endpoint, ...], services: Services) -> None:
        self.config = config
        self.services = services
        self.ciphertext = memoryview(bytearray(BUFFER))
        self.plaintext = memoryview(bytearray(BUFFER))
        self._endpoints = endpoints
        self._loop = asyncio.get_running_loop()
        self._gate = AcceptGate(services.board, services.row)
        self._connections: set[Connection] = set()
        self._arriving: set[Connection] = set()  # accepted, and not `opened` yet
        self._draining = False
        self._retiring = False
        self._deadline: float | None = None
        self._full = ""
        self._tasks: set[asyncio.Task[None]] = set()
        receive = config.receive
        self._policy = AcceptorPolicy(
            ae_title=config.node.ae_title,
            check_called_ae=receive.check_called_ae,
            max_pdu_length=receive.max_pdu_length,
            transfer_syntaxes=receive.transfer_syntaxes,
            accept_unknown_sop_classes=receive.accept_unknown_sop_classes,
            max_operations=receive.max_operations,
        )

    async def serve(self) -> None:
        """Accept and serve until a signal ends it: TERM drains, HUP lets a newer listener take over."""
        self._loop.add_signal_handler(signal.SIGTERM, self._drain)
        self._loop.add_signal_handler(
            signal.SIGINT, lambda: None
        )  # the terminal's; the supervisor sends TERM
        self._loop.add_signal_handler(signal.SIGHUP, self._retire)
        self._loop.add_signal_handler(signal.SIGUSR1, reopen_log)
        self._tick()
        self.services.handoff.start()
        for endpoint in self._endpoints:
            self._watch(endpoint)
        self.services.board.set(self.services.row, STATE, ACCEPTING)
        while not self._finished():
            await asyncio.sleep(TICK_SECONDS)
            self._tick()

    # --- for connections

    def opened(self, connection: Connection) -> None:
        """Count a connection, once: it may ask for its association before the task that made it ends."""
        self._arriving.discard(connection)
        self._connections.add(connection)
        self._count()

    def closed(self, connection: Connection) -> None:
        """Count a connection no more."""
        self._connections.discard(connection)
        self._count()

    def time(self) -> float:
        """The event loop's clock, seconds."""
        return self._loop.time()

    def soon(self, connection: Connection) -> None:
        """Have a connection go on at the loop's next turn."""
        self._loop.call_soon(connection.take_up)

    def spool_full(self) -> str:
        """Why nothing more is taken now, or an empty string; looked at several times a second."""
        return self._full

    def decide(
        self, request: AssociateRequest, address: str, identity: Identity | None
    ) -> Accepted | Rejected:
        """Admit and negotiate: local limits, then who calls, then what it offers."""
        limit = self._local_limit()
        if limit:
            return local_limit_exceeded(limit)
        admission = admit(Caller(request.calling_ae, address, identity), self.config.peers)
        if isinstance(admission, Refusal):
            return Rejected(admission.pdu, admission.why)
        policy = replace(
            self._policy, allow_store="store" in admission.allow, allow_echo="echo" in admission.allow
        )
        return negotiate(request, policy)

    def _local_limit(self) -> str:
        if self._draining:
            return "the node is draining"
        if self._full:
            return f"the spool is full: {self._full}"
        if self._gate.total() > self.config.receive.max_associations:
            return f"[receive] max_associations is {self.config.receive.max_associations}"
        return ""

    # --- accepting

    def _watch(self, endpoint: Endpoint) -> None:
        if not self._retiring:
            self._loop.add_reader(endpoint.socket, self._readable, endpoint)

    def _pause(self, endpoint: Endpoint, seconds: float) -> None:
        self._loop.remove_reader(endpoint.socket)
        self._loop.call_later(seconds, self._watch, endpoint)

    def _readable(self, endpoint: Endpoint) -> None:
        if not self._gate.open():
            self._pause(endpoint, PASS_SECONDS)
            return
        try:
            accepted, _ = endpoint.socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            self._gate.reset()
            return
        except OSError as error:
            # EMFILE, ENFILE, ENOBUFS: the connection stays in the backlog until there is room.
            log.error("accept_failed", error=error.strerror, remedy="raise the limit of open files")
            self._pause(endpoint, ACCEPT_PAUSE_SECONDS)
            return
        if len(self._connections) >= self.config.receive.max_associations * CONNECTIONS_PER_ASSOCIATION + 16:
            self.services.board.add(self.services.row, REFUSED)
            accepted.close()
            return
        connection = Connection(self, endpoint.context)
        self._arriving.add(connection)
        task = self._loop.create_task(self._connect(accepted, connection))
        self._tasks.add(task)
        task.add_done_callback(self._connected)
        self._count()  # before the next look at the gate, which may come before the transport is made

    async def _connect(self, accepted: socket.socket, connection: Connection) -> None:
        try:
            accepted.setblocking(False)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            await self._loop.connect_accepted_socket(lambda: connection, accepted)
        except OSError as error:
            accepted.close()
            if error.errno not in (errno.ENOTCONN, errno.ECONNRESET, errno.EINVAL):
                log.warning("connection_not_taken", error=error.strerror)
        finally:
            self._arriving.discard(connection)

    def _connected(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._count()

    # --- life

    def _count(self) -> None:
        self.services.board.set(self.services.row, ACTIVE, len(self._connections) + len(self._arriving))

    def _tick(self) -> None:
        board, row, receive = self.services.board, self.services.row, self.config.receive
        board.set(row, HEARTBEAT, now_ms())
        full = self.services.spool.full(
            receive.min_free_bytes, receive.spool_max_bytes, self.services.handoff.used
        )
        if bool(full) != bool(self._full):
            log.warning("spool_full" if full else "spool_has_room", reason=full)
        self._full = full
        now = self.time()
        for connection in list(self._connections):
            connection.check_deadlines(now)

    def _drain(self) -> None:
        """Refuse new associations, let the running ones end."""
        if self._deadline is None:
            self._draining = True
            self._deadline = self.time() + self.config.node.drain_seconds
            self.services.board.set(self.services.row, STATE, DRAINING)
            log.info("draining", associations=len(self._connections))

    def _retire(self) -> None:
        """Leave new connections to the listeners of a newer configuration; end with the last association."""
        if self._retiring:
            return
        self._retiring = True
        self.services.board.set(self.services.row, STATE, DRAINING)
        for endpoint in self._endpoints:
            self._loop.remove_reader(endpoint.socket)
            endpoint.socket.close()
        log.info("retiring", associations=len(self._connections))

    def _finished(self) -> bool:
        if not self._connections and not self._tasks and (self._draining or self._retiring):
            return True
        if self._deadline is not None and self.time() > self._deadline:
            log.warning("drain_deadline", associations_aborted=len(self._connections))
            for connection in list(self._connections):
                connection.abort()
                connection.close()
            return True
        return False
