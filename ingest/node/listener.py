"""One listener process: accepts, serves its associations, keeps its spool slot and scoreboard row."""

import asyncio
import errno
import resource
import select
import signal
import time
from dataclasses import replace
from typing import Final

import structlog
import uvloop

from ext.store import Intake
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
    BYTES,
    DRAINING,
    HEARTBEAT,
    INSTANCES,
    REFUSED,
    STATE,
    Scoreboard,
    now_ms,
)
from ingest.node.store_scp import Services
from ingest.spool.spool import Spool
from ingest.tls.identity import Identity
from ingest.tls.pump import RECORD

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
    durable = config.receive.durability == "fsync"
    try:
        spool = Spool.claim(config.spool_dir, durable=durable)
    except SpoolError as error:
        raise BootError(f"[receive] spool_dir: {error}") from error
    handoff = Handoff(config, spool)
    intake = Intake(spool.committer, spool.slot.name, board.counters(row), INSTANCES, BYTES, durable=durable)
    services = Services(spool, intake, handoff, board, row, config.receive.quarantine)
    listener = Listener(config, endpoints, services)
    loop = asyncio.get_running_loop()
    try:
        await listener.serve()
    finally:
        await loop.run_in_executor(None, spool.close)
        listener.collect()
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
        self.plaintext = memoryview(bytearray(BUFFER + 2 * RECORD))
        self.loop = asyncio.get_running_loop()
        self._endpoints = endpoints
        self._gate = AcceptGate(services.board, services.row)
        self._connections: set[Connection] = set()
        self._poller = select.epoll()
        self._watched: dict[int, Connection] = {}
        self._draining = False
        self._retiring = False
        self._deadline: float | None = None
        self._full = ""
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
        self.loop.add_signal_handler(signal.SIGTERM, self._drain)
        self.loop.add_signal_handler(signal.SIGINT, lambda: None)  # the terminal's; the supervisor sends TERM
        self.loop.add_signal_handler(signal.SIGHUP, self._retire)
        self.loop.add_signal_handler(signal.SIGUSR1, reopen_log)
        self._tick()
        self.loop.add_reader(self.services.spool.committer.wakeup, self.collect)
        self.loop.add_reader(self._poller.fileno(), self._poll)
        self.services.handoff.start()
        for endpoint in self._endpoints:
            self._watch(endpoint)
        self.services.board.set(self.services.row, STATE, ACCEPTING)
        while not self._finished():
            await asyncio.sleep(TICK_SECONDS)
            self._tick()

    # --- for connections

    def closed(self, connection: Connection) -> None:
        """Count a connection no more."""
        self._connections.discard(connection)
        if self._watched.get(connection.descriptor) is connection:
            del self._watched[connection.descriptor]
        self._count()

    def time(self) -> float:
        """The monotonic clock, seconds."""
        return time.monotonic()

    def watch(self, descriptor: int, connection: Connection, events: int) -> None:
        """From now on call `connection.ready` at these events of epoll(7) alone, and at errors."""
        if self._watched.get(descriptor) is connection:
            self._poller.modify(descriptor, events)
        else:  # a new one, perhaps with the number of one that is closed
            self._watched[descriptor] = connection
            self._poller.register(descriptor, events)

    def hand_off(self) -> None:
        """Have what was promised put on the queue."""
        intake = self.services.intake
        if intake.promised:
            for where in intake.take_promised():
                self.services.handoff.put(where)

    def collect(self) -> None:
        """Answer what has become durable."""
        for error in self.services.intake.collect():
            # A defect in answering one must not leave the others unanswered for ever.
            log.error("commit_not_answered", exc_info=error)
        self.hand_off()

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

    def _poll(self) -> None:
        """Look which connections are ready.

        Why not the loop's own readers: uvloop does not report a connection that was reset, and one call of it
        for each ready connection costs more than receiving a small instance.
        """
        for descriptor, events in self._poller.poll(0):
            connection = self._watched.get(descriptor)
            if connection is not None:
                connection.ready(events)

    # --- accepting

    def _watch(self, endpoint: Endpoint) -> None:
        if not self._retiring:
            self.loop.add_reader(endpoint.socket, self._readable, endpoint)

    def _pause(self, endpoint: Endpoint, seconds: float) -> None:
        self.loop.remove_reader(endpoint.socket)
        self.loop.call_later(seconds, self._watch, endpoint)

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
        try:
            connection = Connection(self, accepted, endpoint.context)
        except OSError as error:
            accepted.close()
            if error.errno not in {errno.ENOTCONN, errno.ECONNRESET, errno.EINVAL}:
                log.warning("connection_not_taken", error=error.strerror)
            return
        self._connections.add(connection)
        self._count()  # before the next look at the gate
        connection.start()

    # --- life

    def _count(self) -> None:
        self.services.board.set(self.services.row, ACTIVE, len(self._connections))

    def _tick(self) -> None:
        board, row, receive = self.services.board, self.services.row, self.config.receive
        board.set(row, HEARTBEAT, now_ms())
        full = self.services.spool.full(
            receive.min_free_bytes, receive.spool_max_bytes, self.services.handoff.used
        )
        if bool(full) != bool(self._full):
            log.warning("spool_full" if full else "spool_has_room", reason=full)
        self._full = full
        self.services.intake.full = bool(full)
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
            self.loop.remove_reader(endpoint.socket)
            endpoint.socket.close()
        log.info("retiring", associations=len(self._connections))

    def _finished(self) -> bool:
        if not self._connections and (self._draining or self._retiring):
            return True
        if self._deadline is not None and self.time() > self._deadline:
            log.warning("drain_deadline", associations_aborted=len(self._connections))
            for connection in list(self._connections):
                connection.abort()
                connection.close()
            return True
        return False
