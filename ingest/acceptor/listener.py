"""A listener process: accepts connections, decides about associations, and owns a spool slot.

One event loop serves all connections of the process (`Listener._run_turn`). Four things run in it: events of
sockets (`ingest.ext.event_loop`), functions to call in the next turn, timers, and the answers to committed
entries (`Listener.answer_committed`).
"""

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
from ingest.acceptor.association_id import find_id_range, make_association_id
from ingest.acceptor.caller_tally import CALLERS, REFUSALS, CallerTally, TallyKey
from ingest.acceptor.connection import Connection
from ingest.acceptor.endpoints import Endpoint
from ingest.acceptor.pending_connections import (
    WINDOW_SECONDS,
    ConnectionLimit,
    EventCounter,
    FailureLimit,
    find_client_network,
)
from ingest.acceptor.refusals import NOT_A_BALANCER, TOO_MANY_FAILURES, CallerRefusal, refuse_connection
from ingest.acceptor.scoreboard import (
    ACCEPTING,
    ACTIVE,
    BYTES,
    DRAINING,
    FULL,
    HEARTBEAT,
    INSTANCES,
    PENDING,
    REFUSED,
    STATE,
    Scoreboard,
    digest_caller,
)
from ingest.acceptor.store_scp import FullReason, ListenerServices
from ingest.alarms import Severity, clear_alarm, raise_alarm
from ingest.audit.alerts import SecurityAlerts
from ingest.clock import monotonic_ms, unix_ms
from ingest.config.model import Config
from ingest.cores import plan_listeners
from ingest.dicom.admission import (
    ANY_AE_TITLE,
    PeerRule,
    Refusal,
    RejectionCause,
    admit,
    is_address_in,
    is_same_title,
)
from ingest.dicom.negotiate import Accepted, AcceptorPolicy, Rejected, local_limit_exceeded, negotiate
from ingest.dicom.pdus import AssociateRequest
from ingest.errors import BootError, SpoolError
from ingest.ext.cstore_service import CStoreService
from ingest.ext.event_loop import READABLE, EventLoop
from ingest.ext.sinks import set_free_space_reserve
from ingest.ext.tls_connection import RECORD_BYTES
from ingest.filesystem.folder_identity import remember_spool, require_spool
from ingest.log import reopen_log
from ingest.metrics import families
from ingest.metrics.board import current_board
from ingest.metrics.families import OTHER
from ingest.queue.publisher import Publisher
from ingest.spool import store_capacity
from ingest.spool.reference import Location
from ingest.spool.refusing_spool import is_temporary, open_refusing_spool
from ingest.spool.spool import Spool, read_spool_id
from ingest.tls.identity import find_binding_fault
from ingest.tls.observed_certificates import ObservedCertificates

BUFFER: Final = 256 * 1024
"""Size of each of the two buffers that all connections share.

INVARIANT 4: memory does not grow with the image."""

GARBAGE_OBJECTS: Final = 50_000
"""Number of new objects after which the garbage collector looks for reference cycles."""

TICK_SECONDS: Final = 0.25
CLAIM_SECONDS: Final = 3.0
"""Pause between two attempts to claim a spool that cannot be used."""

UNUSABLE: Final = "spool_unusable"
"""Name of the alarm for such a spool."""

ACCEPT_PAUSE_SECONDS: Final = 0.5
HANDOFF_SECONDS: Final = 3.0

log = structlog.get_logger()


def run_listener(config: Config, endpoints: tuple[Endpoint, ...], board: Scoreboard, row: int) -> int:
    """Serve until a signal ends the process; return the exit code. This is the body of a forked listener.

    Raises:
        BootError: The spool cannot be used.
    """
    # An instance allocates a few objects, and none of them is part of a cycle. A frequent search for cycles
    # would cost more than it frees.
    gc.freeze()
    gc.set_threshold(GARBAGE_OBJECTS)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    durable, small = config.receive.durability == "fsync", config.receive.segment_max_bytes
    try:
        spool = _claim_spool(config)
    except SpoolError as error:
        if not is_temporary(error):
            raise BootError(f"[receive] spool_dir: {error}") from error
        return _run_without_spool(config, endpoints, board, row, error)
    clear_alarm(config.run_dir, UNUSABLE)
    metrics = current_board()
    cstore_service = CStoreService(
        spool.committer,
        spool.slot.name,
        board.counters(row),
        INSTANCES,
        BYTES,
        make_location=Location,
        durable=durable,
        small=small,
        metrics=metrics.words,
        receive_times=metrics.find_word(families.RECEIVE_SECONDS),
        commit_times=metrics.find_word(families.COMMIT_SECONDS),
    )
    publisher = Publisher(config, spool, cstore_service)
    services = _make_services(config, spool, cstore_service, publisher, board=board, row=row)
    if not config.retention.refuses_when_full:
        # Withdraw the report of an earlier configuration. Its listeners would obey it for ever.
        with contextlib.suppress(OSError):
            store_capacity.write_store_full(config.run_dir, "")
    set_free_space_reserve(config.receive.min_free_bytes, plan_listeners(config.receive.processes))
    listener = Listener(config, endpoints, services)
    try:
        listener.serve()
    finally:
        spool.finish_commits()
        listener.answer_committed()
        if publisher.close(HANDOFF_SECONDS):
            # Release the slot last. A successor claims it at once, and we must not touch it after that. If
            # the publisher hangs, the kernel releases the slot at the end of the process.
            spool.close()
    return 0


def _make_services(
    config: Config,
    spool: Spool,
    cstore_service: CStoreService,
    publisher: Publisher,
    *,
    board: Scoreboard,
    row: int,
) -> ListenerServices:
    receive = config.receive
    return ListenerServices(
        spool,
        cstore_service,
        publisher,
        board,
        row,
        receive.quarantine,
        config.instance_limit,
        receive.header_max_bytes,
    )


def _claim_spool(config: Config) -> Spool:
    """Claim a slot of the configured spool, if that spool is the one that was used last.

    Raises:
        SpoolError: The spool cannot be used.
    """
    root, durable = config.spool_dir, config.receive.durability == "fsync"
    # INVARIANT 13: nothing replaces a folder that is not mounted
    require_spool(root, read_spool_id(root), config.data_dir)
    spool = Spool.claim(root, durable=durable, segments=config.receive.segment_max_bytes > 0)
    remember_spool(root, spool.id, config.data_dir)
    return spool


def _run_without_spool(
    config: Config, endpoints: tuple[Endpoint, ...], board: Scoreboard, row: int, error: SpoolError
) -> int:
    """Reject every association as transient until the spool can be used; return the exit code.

    The process then ends, and the supervisor starts a listener that claims the spool.

    Raises:
        SpoolError: No folder can be written to.
    """
    remedy = "see to its disk, or mount it; meanwhile associations are rejected as transient"
    raise_alarm(config.run_dir, UNUSABLE, str(error), remedy, severity=Severity.FAILING)
    with open_refusing_spool() as spool:
        cstore_service = CStoreService(
            spool.committer,
            spool.slot.name,
            board.counters(row),
            INSTANCES,
            BYTES,
            make_location=Location,
            durable=False,
        )
        publisher = Publisher(config, spool, cstore_service)
        services = _make_services(config, spool, cstore_service, publisher, board=board, row=row)
        reason = FullReason("the spool cannot be used", str(error))
        Listener(config, endpoints, services, spool_fault=reason).serve()
    return 0


class Listener:
    """Event loop, connections and limits of one listener process.

    Attributes:
        config: The configuration.
        services: Objects that all associations share: spool, group commit, publisher and scoreboard.
        ciphertext: The buffer that all connections read TLS records into.
        plaintext: The buffer that TLS, or a plain connection, fills for the parser. It is two records longer.
        poller: EventLoop of all sockets.
        full_reason: Why nothing more is taken now; None while there is room. Updated several times a second.
    """

    def __init__(
        self,
        config: Config,
        endpoints: tuple[Endpoint, ...],
        services: ListenerServices,
        *,
        spool_fault: FullReason | None = None,
    ) -> None:
        """Prepare. `serve` starts the loop.

        Args:
            config: The configuration.
            endpoints: Endpoints to accept on.
            services: Objects that all associations share.
            spool_fault: Why the configured spool cannot be used. The listener then rejects every association,
                and ends as soon as the spool can be used.
        """
        self.config = config
        self.services = services
        self.full_reason: FullReason | None = None
        self._spool_fault = spool_fault
        self.ciphertext = memoryview(bytearray(BUFFER))
        self.plaintext = memoryview(bytearray(BUFFER + 2 * RECORD_BYTES))
        self.poller = EventLoop()
        self._endpoints = endpoints
        self._gate = AcceptGate(services.board, services.row)
        self._connections: set[Connection] = set()
        self._calls: list[Callable[[], None]] = []  # of the next turn
        self._timers: list[tuple[float, Callable[[], None]]] = []
        self._is_draining = False
        self._is_superseded = self._is_retired = False
        self._deadline: float | None = None
        self._spool_full = ""
        receive = config.receive
        total_max, network_max = receive.max_newcomers, receive.max_newcomers_per_address
        # Pending connections have no association yet. Closing connections have none any more: they cost a
        # descriptor until the peer closes them, so the same limits apply.
        self._pending: ConnectionLimit[Connection] = ConnectionLimit(total_max, network_max)
        self._closing: ConnectionLimit[Connection] = ConnectionLimit(total_max, network_max)
        # Connections of load balancers without a complete PROXY header. The senders are not known yet, so
        # the limit of one address cannot apply.
        self._unidentified: ConnectionLimit[Connection] = ConnectionLimit(total_max, total_max)
        self._header_faults = EventCounter()
        self._failures = FailureLimit(receive.max_failures_per_minute)
        self._evictions = EventCounter()
        self._limit_rejections = EventCounter()
        self._entries: dict[Connection, int] = {}  # entries of the scoreboard's table of associations
        self._association_ids = find_id_range(config.data_dir) if config.judges_completion else None
        self._observed = ObservedCertificates(config.run_dir)
        self.security_alerts = SecurityAlerts(config)
        self._refusals = CallerTally(config.run_dir, REFUSALS, services.row, unix_ms())
        self._callers = CallerTally(config.run_dir, CALLERS, services.row, unix_ms())
        self._committing_destinations = {each.name for each in config.destinations if each.commitment}
        self._policy = AcceptorPolicy(
            ae_title=config.node.ae_title,
            check_called_ae=receive.check_called_ae,
            other_ae_titles=receive.other_ae_titles,
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
        """Accept and serve until a signal ends the process.

        SIGTERM drains. SIGHUP retires the listener, because newer ones accept now. SIGUSR2 aborts the
        associations of a retired listener. SIGUSR1 opens the log file again.
        """
        # A handler runs between any two instructions, so it only schedules a call for the next turn.
        signal.signal(signal.SIGTERM, lambda *_: self.call_soon(self._drain))
        signal.signal(signal.SIGINT, lambda *_: None)  # from the terminal; the supervisor sends SIGTERM too
        signal.signal(signal.SIGHUP, self._handle_supersession)
        signal.signal(signal.SIGUSR2, lambda *_: self.call_soon(self._end_now))
        signal.signal(signal.SIGUSR1, lambda *_: self.call_soon(reopen_log))
        self.poller.watch(self.services.spool.committer.wakeup, self.answer_committed, READABLE)
        if self._spool_fault is not None:
            self._timers.append((self.now() + CLAIM_SECONDS, self._end_when_spool_is_usable))
        else:
            self.services.publisher.start()
        self._tick()
        for endpoint in self._endpoints:
            self._watch(endpoint)
        self.services.board.set(self.services.row, STATE, ACCEPTING)
        try:
            while not self._is_finished():
                self._run_turn()
        finally:
            self.security_alerts.close()
            self._write_tallies(at_once=True)

    def _run_turn(self) -> None:
        for error in self.poller.run(min(at for at, _ in self._timers)):
            log.error("turn_failed", exc_info=error)
        calls, self._calls = self._calls, []
        now = self.now()
        calls += [function for at, function in self._timers if at <= now]
        self._timers = [timer for timer in self._timers if timer[0] > now]
        for function in calls:
            try:
                function()
            except Exception:
                log.exception("turn_failed")

    # --- called by connections and associations

    def remove_connection(self, connection: Connection) -> None:
        """Forget a connection that is closed."""
        self._connections.discard(connection)
        self._pending.remove(connection)
        self._unidentified.remove(connection)
        self._closing.remove(connection)
        self._release_entry(connection)
        self._publish_counts()

    def admit_sender(self, connection: Connection) -> bool:
        """Apply the limits of an address to a sender that a PROXY header has named; False if it is refused.

        A connection of the load balancer itself is never refused: the balancer would take this node out of
        service.
        """
        self._unidentified.remove(connection)
        if not connection.is_health_check and self._failures.is_refused(connection.address, self.now()):
            self._count_closed(connection.address, "failures")
            connection.close_now()
            return False
        self._add_pending(connection, self._pending)
        return connection.is_open

    def count_header_fault(self, connection: Connection) -> int:
        """Return how many PROXY headers of a load balancer were refused in this minute, with this one."""
        return self._header_faults.record(find_client_network(connection.address), self.now())[1]

    def begin_association(self, connection: Connection) -> None:
        """Note that the association of a connection was accepted."""
        self._pending.remove(connection)
        self._publish_counts()

    def end_association(self, connection: Connection) -> None:
        """Note that the association of a connection has ended.

        The connection stays open until the peer closes it or ARTIM expires.
        """
        self._release_entry(connection)
        if connection.is_open:
            surplus = self._closing.add(connection, connection.address)
            if surplus is not None:
                self._closing.remove(surplus)
                surplus.close_now()  # our last PDU to it was sent before
        self._publish_counts()

    def _release_entry(self, connection: Connection) -> None:
        entry = self._entries.pop(connection, None)
        if entry is not None:
            self.services.board.release_association(entry)

    def find_association_id(self, connection: Connection) -> int:
        """Return the id of the association of a connection; 0 if nothing asks for it."""
        entry = self._entries.get(connection)
        return self.services.board.find_association_id(entry) if entry is not None else 0

    def record_failure(self, connection: Connection) -> None:
        """Count a connection that came to no association, by the peer's fault or delay.

        The address of a load balancer stands for all senders behind it, so it never counts.
        """
        if connection.is_health_check or not connection.is_identified:
            return
        if self._failures.record_failure(connection.address, self.now()):
            log.warning(
                "address_refused",
                address=find_client_network(connection.address),
                seconds=WINDOW_SECONDS,
                remedy=TOO_MANY_FAILURES,
            )

    def count_caller(self, connection: Connection, calling_ae: str) -> None:
        """Count an accepted association in the tally of callers."""
        identity = connection.identity
        key = TallyKey(
            None,
            find_client_network(connection.address),
            calling_ae,
            identity.fingerprint if identity else "",
        )
        self._callers.record(key, unix_ms(), identity.subject if identity else "")

    def count_refused_caller(
        self,
        connection: Connection,
        refusal: CallerRefusal,
        *,
        calling_ae: str = "",
        subject: str = "",
        fingerprint: str = "",
    ) -> None:
        """Count a refused caller in the tally of refusals.

        Args:
            connection: The connection.
            refusal: Why the caller was refused.
            calling_ae: Calling AE title, as far as it is known.
            subject: Subject of a refused certificate. Without one, that of the verified certificate counts.
            fingerprint: The same for the fingerprint.
        """
        identity = connection.identity
        if identity is not None and not fingerprint:
            subject, fingerprint = identity.subject, identity.fingerprint
        key = TallyKey(refusal, find_client_network(connection.address), calling_ae, fingerprint)
        self._refusals.record(key, unix_ms(), subject)

    def count_refusal(self) -> None:
        """Count a refused connection on the scoreboard."""
        self.services.board.add(self.services.row, REFUSED)

    def now(self) -> float:
        """Return the monotonic clock in seconds."""
        return time.monotonic()

    def call_soon(self, function: Callable[[], None]) -> None:
        """Call a function in the next turn of the loop. Signal handlers may call this."""
        self._calls.append(function)
        self.poller.interrupt()

    def answer_committed(self) -> None:
        """Send the responses of all entries whose commit has ended."""
        for error in self.services.cstore_service.collect():
            # A defect in one answer must not keep the other answers back.
            log.error("commit_not_answered", exc_info=error)

    # --- decisions about associations

    def decide_association(self, request: AssociateRequest, connection: Connection) -> Accepted | Rejected:
        """Decide about an A-ASSOCIATE-RQ: capacity first, then admission, negotiation and limits.

        An accepted association counts from here on.
        """
        address, identity, calling_ae = connection.address, connection.identity, request.calling_ae
        if identity is not None:
            self._observed.record_caller(identity)
        if self._is_draining:
            cause = RejectionCause.DRAINING
            return self._reject_for_limit("the node is draining", calling_ae, address, cause)
        if self.full_reason is not None:
            return self._reject_for_limit(str(self.full_reason), calling_ae, address, RejectionCause.FULL)

        def find_peer_fault(peer: PeerRule) -> str | None:
            return find_binding_fault(identity, peer.certificate, peer.issuer, f"AE title {calling_ae!r}")

        ignore_case = self.config.receive.ignore_ae_title_case
        admission = admit(calling_ae, address, self.config.peers, find_peer_fault, ignore_case=ignore_case)
        if isinstance(admission, Refusal):
            self.record_failure(connection)
            self.security_alerts.report(address, calling_ae, f"association refused: {admission.reason}")
            return Rejected(admission.pdu, admission.reason, cause=admission.cause)
        if identity is not None and admission.bound_ae_title:
            self._observed.record("peer", admission.bound_ae_title, identity)
        policy = replace(
            self._policy,
            allow_store="store" in admission.allow,
            allow_echo="echo" in admission.allow,
            sop_classes=admission.sop_classes,
            # A report needs a configured destination: an observed address is not trusted.
            allow_commitment="store" in admission.allow and bool(admission.destination),
            allow_commitment_reports=admission.destination in self._committing_destinations,
        )
        answer = negotiate(request, policy)
        if isinstance(answer, Rejected):
            if answer.is_failure:
                self.record_failure(connection)
            return answer
        limit = self._claim_entry(calling_ae, connection)
        if limit:
            return self._reject_for_limit(limit, calling_ae, address)
        return replace(answer, allows_priority=admission.allows_priority)

    def _claim_entry(self, calling_ae: str, connection: Connection) -> str:
        """Count an association on the scoreboard; return the limit that it exceeds, or an empty string.

        Count first and compare afterwards. If two listeners compared first, both could accept the last
        permitted association.
        """
        board, receive = self.services.board, self.config.receive
        title = calling_ae.lower() if receive.ignore_ae_title_case else calling_ae
        caller = digest_caller(title, find_client_network(connection.address))
        entry = board.claim_association(self.services.row, caller)
        total, own = board.count_associations(caller)
        if entry is None or total > receive.max_associations:
            limit = f"[receive] max_associations is {receive.max_associations}"
        elif own > receive.associations_per_peer:
            limit = f"[receive] max_associations_per_peer is {receive.associations_per_peer}"
        else:
            self._entries[connection] = entry
            if self._association_ids is not None:
                board.name_association(entry, make_association_id(self._association_ids))
            return ""
        if entry is not None:
            board.release_association(entry)
        return limit

    def _reject_for_limit(
        self, limit: str, calling_ae: str, address: str, cause: RejectionCause = RejectionCause.LIMIT
    ) -> Rejected:
        _, count = self._limit_rejections.record(f"{find_client_network(address)} {calling_ae}", self.now())
        return local_limit_exceeded(limit, count, cause)

    def find_calling_label(self, calling_ae: str) -> str:
        """Return the AE title of `[[peers]]` that a calling AE title is; `OTHER` for all others."""
        ignore_case = self.config.receive.ignore_ae_title_case
        titles = (peer.ae_title for peer in self.config.peers if peer.ae_title != ANY_AE_TITLE)
        found = (each for each in titles if is_same_title(each, calling_ae, ignore_case=ignore_case))
        return next(found, OTHER).strip(" ")

    # --- accept

    def _watch(self, endpoint: Endpoint) -> None:
        if not self._is_retired:
            self.poller.watch(endpoint.socket.fileno(), partial(self._accept, endpoint), READABLE)

    def _pause(self, endpoint: Endpoint, seconds: float) -> None:
        self.poller.unwatch(endpoint.socket.fileno())
        self._timers.append((self.now() + seconds, partial(self._watch, endpoint)))
        self.poller.interrupt()  # the new timer may be earlier than the one that the poller waits for

    def _accept(self, endpoint: Endpoint) -> None:
        if self._is_superseded or not self._gate.may_accept():
            self._pause(endpoint, PASS_SECONDS)
            return
        try:
            accepted, address = endpoint.socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            self._gate.reset_passes()
            return
        except OSError as error:
            # EMFILE, ENFILE or ENOBUFS. The connection stays in the backlog.
            log.error("accept_failed", error=error.strerror, remedy="raise the limit of open files")
            self._pause(endpoint, ACCEPT_PAUSE_SECONDS)
            return
        if not self._may_read(endpoint, address[0]):
            accepted.close()
            return
        try:
            connection = Connection(self, accepted, endpoint)
        except OSError as error:
            accepted.close()
            if error.errno not in {errno.ENOTCONN, errno.ECONNRESET, errno.EINVAL}:
                log.warning("connection_not_taken", error=error.strerror)
            return
        self._connections.add(connection)
        current_board().add(families.CONNECTIONS)
        self._add_pending(connection, self._pending if connection.is_identified else self._unidentified)
        connection.start()

    def _may_read(self, endpoint: Endpoint, address: str) -> bool:
        """Return whether to read from a new connection; otherwise count why not."""
        if not endpoint.balancers:
            is_refused = self._failures.is_refused(address, self.now())
            if is_refused:
                self._count_closed(address, "failures")
            return not is_refused
        if is_address_in(endpoint.balancers, address):
            return True
        self._count_closed(address, "not_balancer")
        if self._header_faults.record(find_client_network(address), self.now())[1] == 1:
            log.warning("not_a_balancer", address=address, listener=str(endpoint), remedy=NOT_A_BALANCER)
        return False

    def _count_closed(self, address: str, cause: str) -> None:
        """Count a connection that is closed unread."""
        self.count_refusal()
        current_board().add(families.CONNECTIONS_CLOSED, cause)
        key = TallyKey(refuse_connection(cause), find_client_network(address))
        self._refusals.record(key, unix_ms())

    def _add_pending(self, connection: Connection, pending: ConnectionLimit[Connection]) -> None:
        """Add a connection without an association, and close the one that has to make room for it."""
        stalled = pending.add(connection, connection.address)
        if stalled is not None:
            pending.remove(stalled)
            current_board().add(families.CONNECTIONS_CLOSED, "newcomers")
            _, count = self._evictions.record(find_client_network(stalled.address), self.now())
            stalled.evict(count)
        self._publish_counts()  # before the accept gate compares them again

    # --- capacity and heartbeat

    def _publish_counts(self) -> None:
        board, row = self.services.board, self.services.row
        board.set(row, ACTIVE, len(self._connections) - len(self._closing))
        board.set(row, PENDING, len(self._pending) + len(self._unidentified))

    def _tick(self) -> None:
        board, row = self.services.board, self.services.row
        now = self.now()
        # Set the next timer first, so that the next tick comes even if a step below fails.
        self._timers.append((now + TICK_SECONDS, self._tick))
        self.full_reason = self._find_full_reason()
        board.counters(row)[FULL] = self.full_reason is not None
        board.set(row, HEARTBEAT, monotonic_ms())
        self.services.cstore_service.full = self.full_reason is not None
        self._write_tallies()
        if self._association_ids is not None and self._entries:
            board.note_progress(
                {entry: connection.progressed_ms for connection, entry in self._entries.items()}
            )
        for connection in list(self._connections):
            try:
                connection.check_deadlines(now)
            except Exception as error:
                connection.handle_exception(error)

    def _write_tallies(self, *, at_once: bool = False) -> None:
        for tally in (self._refusals, self._callers):
            tally.write_if_due(unix_ms(), at_once=at_once)

    def _find_full_reason(self) -> FullReason | None:
        """Return why nothing may be received now: the data folder, the spool or the store is full."""
        if self._spool_fault is not None:
            return self._spool_fault
        if self.services.board.is_receiving_paused:
            return FullReason("the disk of [node] data_dir is full")
        receive, retention = self.config.receive, self.config.retention
        spool = self.services.spool.find_refusal_reason(
            receive.min_free_bytes, receive.spool_max_bytes, self.services.publisher.spool_used_bytes
        )
        if bool(spool) != bool(self._spool_full):
            log.warning("spool_full" if spool else "spool_has_room", reason=spool)
        self._spool_full = spool
        if spool:
            return FullReason("the spool is full", spool)
        store = store_capacity.read_store_full(self.config.run_dir) if retention.refuses_when_full else ""
        return FullReason("the store is full", store) if store else None

    def _end_when_spool_is_usable(self) -> None:
        """End this listener as soon as the spool can be used. Its successor claims the spool."""
        try:
            _claim_spool(self.config).close()
        except SpoolError as error:
            log.debug("spool_still_unusable", error=str(error))
            self._timers.append((self.now() + CLAIM_SECONDS, self._end_when_spool_is_usable))
            return
        log.info("spool_usable_again")
        self._end_now()

    # --- the end

    def _drain(self) -> None:
        """Reject new associations, and let the established ones end until `drain_seconds` have passed."""
        if self._deadline is None:
            self._is_draining = True
            self._deadline = self.now() + self.config.node.drain_seconds
            self.services.board.set(self.services.row, STATE, DRAINING)
            log.info("draining", associations=len(self._connections))

    def _handle_supersession(self, *_: object) -> None:
        # Accept nothing from this instant. `_retire` would close such a connection in the next turn.
        self._is_superseded = True
        self.call_soon(self._retire)

    def _retire(self) -> None:
        """Leave new associations to listeners of a newer generation, and end after our last association."""
        if self._is_retired:
            return
        self._is_retired = True
        self.services.board.set(self.services.row, STATE, DRAINING)
        for endpoint in self._endpoints:
            self.poller.unwatch(endpoint.socket.fileno())
            endpoint.socket.close()
        # Close pending connections. Their A-ASSOCIATE-RQ would be decided by the old configuration.
        pending = [*self._pending, *self._unidentified]
        for connection in pending:
            connection.close()
        count = len(pending)
        log.info("retiring", associations=len(self._connections) - count, newcomers_closed=count)

    def _end_now(self) -> None:
        """Abort the remaining associations: the listener is retired, or its spool is usable again."""
        self._is_draining = True
        self._deadline = self.now()

    def _is_finished(self) -> bool:
        if not self._connections and (self._is_draining or self._is_retired):
            return True
        if self._deadline is not None and self.now() >= self._deadline:
            log.warning("drain_deadline", associations_aborted=len(self._connections))
            for connection in list(self._connections):
                connection.abort()
                connection.close()
            return True
        return False
