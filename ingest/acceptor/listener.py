"""One listener process: accepts, serves its associations, keeps its spool slot and scoreboard row."""

import contextlib
import errno
import gc
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final

import structlog

from ingest.acceptor.accept_gate import PASS_SECONDS, AcceptGate
from ingest.acceptor.association import Link
from ingest.acceptor.connection import Connection
from ingest.acceptor.endpoints import Endpoint
from ingest.acceptor.pending_connections import WINDOW_SECONDS, Minutes, Newcomers, holder
from ingest.acceptor.scoreboard import (
    ACCEPTING,
    ACTIVE,
    BYTES,
    DRAINING,
    HEARTBEAT,
    INSTANCES,
    NEWCOMERS,
    REFUSED,
    STATE,
    Scoreboard,
    caller_digest,
)
from ingest.acceptor.store_scp import Services
from ingest.alarms import Severity, clear_alarm, raise_alarm
from ingest.clock import monotonic_ms
from ingest.config.model import Config
from ingest.cores import usable_cores
from ingest.dicom.admission import Caller, Refusal, admit
from ingest.dicom.negotiate import Accepted, AcceptorPolicy, Rejected, local_limit_exceeded, negotiate
from ingest.dicom.pdus import AssociateRequest
from ingest.errors import BootError, SpoolError
from ingest.ext.cstore_service import Intake
from ingest.ext.event_loop import READABLE, Poller
from ingest.ext.sinks import keep_free
from ingest.ext.tls_connection import RECORD_BYTES
from ingest.filesystem.folder_identity import remember_spool, require_spool
from ingest.log import reopen as reopen_log
from ingest.queue.publisher import Publisher
from ingest.spool import store_capacity
from ingest.spool.refusing_spool import is_temporary, open_refusing_spool
from ingest.spool.spool import Spool, read_spool_id
from ingest.tls.observed_certificates import ObservedCertificates

BUFFER: Final = 256 * 1024
"""Bytes of each of the two buffers that all connections of the process share."""

GARBAGE_OBJECTS: Final = 50_000
"""Objects made and not freed before the collector looks for cycles."""

TICK_SECONDS: Final = 0.25
CLAIM_SECONDS: Final = 3.0
"""Between two looks at a spool that cannot be used."""

UNUSABLE: Final = "spool_unusable"
"""The alarm for that."""

ACCEPT_PAUSE_SECONDS: Final = 0.5
HANDOFF_SECONDS: Final = 3.0

log = structlog.get_logger()


def run(config: Config, endpoints: tuple[Endpoint, ...], board: Scoreboard, row: int) -> int:
    """Serve until told to stop; the body of a forked listener. Returns the exit code.

    Raises:
        BootError: The spool cannot be used.
    """
    # An instance allocates a few objects that are no part of a cycle; looking for cycles would cost more.
    gc.freeze()
    gc.set_threshold(GARBAGE_OBJECTS)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    durable, small = config.receive.durability == "fsync", config.receive.segment_max_bytes
    try:
        spool = _claimed(config)
    except SpoolError as error:
        if not is_temporary(error):
            raise BootError(f"[receive] spool_dir: {error}") from error
        return _refuse(config, endpoints, board, row, error)
    clear_alarm(config.run_dir, UNUSABLE)
    intake = Intake(
        spool.committer, spool.slot.name, board.counters(row), INSTANCES, BYTES, durable=durable, small=small
    )
    handoff = Publisher(config, spool, intake)
    services = _services(config, spool, intake, handoff, board=board, row=row)
    if not config.retention.refuses_when_full:
        # Listeners of the configuration before, which may be of another mind, would look at it for ever.
        with contextlib.suppress(OSError):
            store_capacity.write_store_full(config.run_dir, "")
    keep_free(config.receive.min_free_bytes, config.receive.processes or usable_cores())
    listener = Listener(config, endpoints, services)
    try:
        listener.serve()
    finally:
        spool.finish_commits()
        listener.collect()
        if handoff.close(HANDOFF_SECONDS):
            # Last of all: a successor begins with this slot at once, and nothing of ours may touch it then.
            # If the hand-off hangs, the kernel gives the slot back at the end of the process.
            spool.close()
    return 0


def _services(
    config: Config, spool: Spool, intake: Intake, handoff: Publisher, *, board: Scoreboard, row: int
) -> Services:
    receive = config.receive
    return Services(
        spool,
        intake,
        handoff,
        board,
        row,
        receive.quarantine,
        config.instance_limit,
        receive.header_max_bytes,
    )


def _claimed(config: Config) -> Spool:
    """The spool of a configuration, if it is the one that was used last.

    Raises:
        SpoolError: It cannot be used.
    """
    root, durable = config.spool_dir, config.receive.durability == "fsync"
    require_spool(root, read_spool_id(root), config.data_dir)
    spool = Spool.claim(root, durable=durable, segments=config.receive.segment_max_bytes > 0)
    remember_spool(root, spool.id, config.data_dir)
    return spool


def _refuse(
    config: Config, endpoints: tuple[Endpoint, ...], board: Scoreboard, row: int, error: SpoolError
) -> int:
    """Answer every association with a transient rejection until the spool can be used; returns the exit code.

    The supervisor then starts a listener anew.

    Raises:
        SpoolError: Nothing can be written to anywhere.
    """
    remedy = "see to its disk, or mount it; meanwhile associations are rejected as transient"
    raise_alarm(config.run_dir, UNUSABLE, str(error), remedy, severity=Severity.FAILING)
    with open_refusing_spool() as spool:
        intake = Intake(
            spool.committer, spool.slot.name, board.counters(row), INSTANCES, BYTES, durable=False
        )
        handoff = Publisher(config, spool, intake)
        services = _services(config, spool, intake, handoff, board=board, row=row)
        Listener(config, endpoints, services, refuses=f"the spool cannot be used: {error}").serve()
    return 0


class Listener:
    """What all connections of this process share.

    Attributes:
        config: The configuration.
        services: Spool, hand-off and scoreboard.
        ciphertext: The one buffer for what the network gives to TLS.
        plaintext: The one buffer for what TLS, or a plain network, gives to the parser.
    """

    def __init__(
        self, config: Config, endpoints: tuple[Endpoint, ...], services: Services, *, refuses: str = ""
    ) -> None:
        """Prepare.

        Args:
            config: The configuration.
            endpoints: Where to accept.
            services: What all connections share.
            refuses: Why it can do no more than refuse, in place of a spool; it ends once there is one.
        """
        self.config = config
        self._refuses = refuses
        self.services = services
        self.ciphertext = memoryview(bytearray(BUFFER))
        self.plaintext = memoryview(bytearray(BUFFER + 2 * RECORD_BYTES))
        self.poller = Poller()
        self._endpoints = endpoints
        self._gate = AcceptGate(services.board, services.row)
        self._connections: set[Connection] = set()
        self._soon: list[Callable[[], None]] = []
        self._timers: list[tuple[float, Callable[[], None]]] = []
        self._draining = False
        self._superseded = self._retiring = False
        self._deadline: float | None = None
        self._full = self._spool_full = ""
        receive = config.receive
        self._newcomers: Newcomers[Connection] = Newcomers(
            receive.max_newcomers, receive.max_newcomers_per_address, receive.max_failures_per_minute
        )
        # Connections whose association is over, to the same bounds: they cost a descriptor each.
        self._lingering: Newcomers[Connection] = Newcomers(
            receive.max_newcomers, receive.max_newcomers_per_address, 0
        )
        self._entries: dict[Link, int] = {}  # of the scoreboard's table of associations
        self._limited = Minutes()
        self._sightings = ObservedCertificates(config.run_dir)
        self._policy = AcceptorPolicy(
            ae_title=config.node.ae_title,
            check_called_ae=receive.check_called_ae,
            max_pdu_length=receive.max_pdu_length,
            transfer_syntaxes=receive.transfer_syntaxes,
            prefer_transfer_syntaxes=receive.prefer_transfer_syntaxes,
            accept_unknown_sop_classes=receive.accept_unknown_sop_classes,
            max_operations=receive.max_operations,
            node_sop_classes=receive.sop_classes,
            rejected_sop_classes=receive.rejected_sop_classes,
            ignore_ae_title_case=receive.ignore_ae_title_case,
        )

    def serve(self) -> None:
        """Accept and serve until a signal ends it.

        TERM drains, HUP lets a newer listener take over, USR2 ends at once with what is still served then.
        """
        # In the next turn: a handler may run between any two lines of ours.
        signal.signal(signal.SIGTERM, lambda *_: self.soon(self._drain))
        signal.signal(signal.SIGINT, lambda *_: None)  # the terminal's; the supervisor sends TERM
        signal.signal(signal.SIGHUP, self._supersede)
        signal.signal(signal.SIGUSR2, lambda *_: self.soon(self._end_now))
        signal.signal(signal.SIGUSR1, lambda *_: self.soon(reopen_log))
        self.poller.watch(self.services.spool.committer.wakeup, self.collect, READABLE)
        if self._refuses:
            self._timers.append((self.time() + CLAIM_SECONDS, self._claim_again))
        else:
            self.services.handoff.start()
        self._tick()
        for endpoint in self._endpoints:
            self._watch(endpoint)
        self.services.board.set(self.services.row, STATE, ACCEPTING)
        while not self._finished():
            self._turn()

    def _turn(self) -> None:
        for error in self.poller.run(min(at for at, _ in self._timers)):
            log.error("turn_failed", exc_info=error)
        soon, self._soon = self._soon, []
        now = self.time()
        soon += [function for at, function in self._timers if at <= now]
        self._timers = [timer for timer in self._timers if timer[0] > now]
        for function in soon:
            try:
                function()
            except Exception:
                log.exception("turn_failed")

    # --- for connections

    def closed(self, connection: Connection) -> None:
        """Count a connection no more."""
        self._connections.discard(connection)
        self._newcomers.remove(connection)
        self._lingering.remove(connection)
        self._release_entry(connection)
        self._count()

    def associated(self, link: Link) -> None:
        """A connection has its association."""
        if isinstance(link, Connection):
            self._newcomers.remove(link)
            self._count()

    def dissociated(self, link: Link) -> None:
        """A connection has no association any more; it stays until the peer closes it, or ARTIM expires."""
        self._release_entry(link)
        if isinstance(link, Connection) and link.is_open:
            spare = self._lingering.add(link, link.address)
            if spare is not None:
                self._lingering.remove(spare)
                spare.cut()  # what it was to hear was sent before
        self._count()

    def _release_entry(self, link: Link) -> None:
        entry = self._entries.pop(link, None)
        if entry is not None:
            self.services.board.release_association(entry)

    def peer_failed(self, address: str) -> None:
        """A peer of this address came to no association: by a fault or delay of its own, or for who it is."""
        if self._newcomers.failed(address, self.time()):
            log.warning(
                "address_refused",
                address=holder(address),
                seconds=WINDOW_SECONDS,
                remedy="mend the peer, or raise [receive] max_failures_per_minute",
            )

    def time(self) -> float:
        """The monotonic clock, seconds."""
        return time.monotonic()

    def soon(self, function: Callable[[], None]) -> None:
        """Call a function in the next turn."""
        self._soon.append(function)
        self.poller.interrupt()

    def collect(self) -> None:
        """Answer what has become durable."""
        for error in self.services.intake.collect():
            # A defect in answering one must not leave the others unanswered for ever.
            log.error("commit_not_answered", exc_info=error)

    def why_full(self) -> str:
        """Why nothing more is taken now, or an empty string; looked at several times a second."""
        return self._full

    def decide(self, request: AssociateRequest, link: Link) -> Accepted | Rejected:
        """Admit and negotiate: whether we take any, then who calls, what it offers, how many there are."""
        address, identity = link.address, link.identity
        limit = "the node is draining" if self._draining else self._full
        if limit:
            return self._refuse(limit, request.calling_ae, address)
        caller = Caller(request.calling_ae, address, identity)
        ignore_case = self.config.receive.ignore_ae_title_case
        admission = admit(caller, self.config.peers, ignore_case=ignore_case)
        if isinstance(admission, Refusal):
            self.peer_failed(address)
            return Rejected(admission.pdu, admission.why)
        if identity is not None and admission.bound:
            self._sightings.record("peer", admission.bound, identity)
        policy = replace(
            self._policy,
            allow_store="store" in admission.allow,
            allow_echo="echo" in admission.allow,
            sop_classes=admission.sop_classes,
        )
        answer = negotiate(request, policy)
        if isinstance(answer, Rejected) and answer.is_failure:
            self.peer_failed(address)  # it does not call us, or not in DICOM's terms
        if isinstance(answer, Rejected):
            return answer
        limit = self._count_association(request.calling_ae, link)
        return self._refuse(limit, request.calling_ae, address) if limit else answer

    def _count_association(self, calling_ae: str, link: Link) -> str:
        """Count one more; the limit that does not allow it, or an empty string.

        Counted first and looked at afterwards: of two listeners that look first both could take the last.
        """
        board, receive = self.services.board, self.config.receive
        title = calling_ae.lower() if receive.ignore_ae_title_case else calling_ae
        caller = caller_digest(title, holder(link.address))
        entry = board.claim_association(self.services.row, caller)
        total, own = board.count_associations(caller)
        if entry is None or total > receive.max_associations:
            limit = f"[receive] max_associations is {receive.max_associations}"
        elif own > receive.associations_per_peer:
            limit = f"[receive] max_associations_per_peer is {receive.associations_per_peer}"
        else:
            self._entries[link] = entry
            return ""
        if entry is not None:
            board.release_association(entry)
        return limit

    def _refuse(self, limit: str, calling_ae: str, address: str) -> Rejected:
        _, count = self._limited.note(f"{holder(address)} {calling_ae}", self.time())
        return local_limit_exceeded(limit, count)

    # --- accepting

    def _watch(self, endpoint: Endpoint) -> None:
        if not self._retiring:
            self.poller.watch(endpoint.socket.fileno(), partial(self._readable, endpoint), READABLE)

    def _pause(self, endpoint: Endpoint, seconds: float) -> None:
        self.poller.unwatch(endpoint.socket.fileno())
        self._timers.append((self.time() + seconds, partial(self._watch, endpoint)))
        self.poller.interrupt()  # it may be earlier than what is waited for

    def _readable(self, endpoint: Endpoint) -> None:
        if self._superseded or not self._gate.open():
            self._pause(endpoint, PASS_SECONDS)
            return
        try:
            accepted, address = endpoint.socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            self._gate.reset()
            return
        except OSError as error:
            # EMFILE, ENFILE, ENOBUFS: the connection stays in the backlog until there is room.
            log.error("accept_failed", error=error.strerror, remedy="raise the limit of open files")
            self._pause(endpoint, ACCEPT_PAUSE_SECONDS)
            return
        if self._newcomers.refused(address[0], self.time()):
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
        stalled = self._newcomers.add(connection, connection.address)
        if stalled is not None:
            self._newcomers.remove(stalled)
            stalled.crowded_out(self._newcomers.crowded_out(stalled.address, self.time()))
        self._count()  # before the next look at the gate
        connection.start()

    # --- life

    def _count(self) -> None:
        board, row = self.services.board, self.services.row
        board.set(row, ACTIVE, len(self._connections) - len(self._lingering))
        board.set(row, NEWCOMERS, len(self._newcomers))

    def _tick(self) -> None:
        board, row = self.services.board, self.services.row
        now = self.time()
        # First of all: whatever fails below, the next tick comes.
        self._timers.append((now + TICK_SECONDS, self._tick))
        board.set(row, HEARTBEAT, monotonic_ms())
        self._full = self._look_for_room()
        self.services.intake.full = bool(self._full)
        for connection in list(self._connections):
            try:
                connection.check_deadlines(now)
            except Exception as error:
                connection.failed(error)

    def _claim_again(self) -> None:
        """End once the spool can be used: a listener that is started anew takes it."""
        try:
            _claimed(self.config).close()
        except SpoolError as error:
            log.debug("spool_still_unusable", error=str(error))
            self._timers.append((self.time() + CLAIM_SECONDS, self._claim_again))
            return
        log.info("spool_usable_again")
        self._end_now()

    def _look_for_room(self) -> str:
        if self._refuses:
            return self._refuses
        if self.services.board.is_held:
            return "the disk of [node] data_dir is full"
        receive, retention = self.config.receive, self.config.retention
        spool = self.services.spool.find_refusal_reason(
            receive.min_free_bytes, receive.spool_max_bytes, self.services.handoff.spool_used_bytes
        )
        if bool(spool) != bool(self._spool_full):
            log.warning("spool_full" if spool else "spool_has_room", reason=spool)
        self._spool_full = spool
        if spool:
            return f"the spool is full: {spool}"
        store = store_capacity.read_store_full(self.config.run_dir) if retention.refuses_when_full else ""
        return f"the store is full: {store}" if store else ""

    def _drain(self) -> None:
        """Refuse new associations, let the running ones end."""
        if self._deadline is None:
            self._draining = True
            self._deadline = self.time() + self.config.node.drain_seconds
            self.services.board.set(self.services.row, STATE, DRAINING)
            log.info("draining", associations=len(self._connections))

    def _supersede(self, *_: object) -> None:
        self._superseded = True  # from here on: who is accepted now would be closed in the next turn
        self.soon(self._retire)

    def _retire(self) -> None:
        """Leave new associations to the listeners of a newer configuration; end with the last of ours."""
        if self._retiring:
            return
        self._retiring = True
        self.services.board.set(self.services.row, STATE, DRAINING)
        for endpoint in self._endpoints:
            self.poller.unwatch(endpoint.socket.fileno())
            endpoint.socket.close()
        # What they would ask for would be decided about as the configuration was.
        newcomers = list(self._newcomers)
        for connection in newcomers:
            connection.close()
        count = len(newcomers)
        log.info("retiring", associations=len(self._connections) - count, newcomers_closed=count)

    def _end_now(self) -> None:
        """Abort what is still served: a configuration that was replaced long ago decided about it."""
        self._draining = True
        self._deadline = self.time()

    def _finished(self) -> bool:
        if not self._connections and (self._draining or self._retiring):
            return True
        if self._deadline is not None and self.time() >= self._deadline:
            log.warning("drain_deadline", associations_aborted=len(self._connections))
            for connection in list(self._connections):
                connection.abort()
                connection.close()
            return True
        return False
