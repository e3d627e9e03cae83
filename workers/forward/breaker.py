"""The circuit breaker of a destination: apply the decisions of `workers.forward.circuit` to the ledger."""

import contextlib
import time
from collections.abc import Callable
from typing import Final, NamedTuple

import structlog

from ingest.config.model import Destination
from ingest.dicom import uids
from ingest.errors import AssociationError, LedgerError
from ingest.ledger import Circuit, CircuitState, Ledger
from ingest.requestor.store_scu import Remote, StoreSCU, Timeouts
from ingest.workers.forward import circuit
from ingest.workers.forward.circuit import CircuitFailure, FailureKind, PermittedAction
from ingest.workers.forward.retry_policy import RetryPolicy

PROBE_MARGIN_MS: Final = 5_000
"""Extra time of the claim of a probe, beyond its deadlines, before another worker may probe."""

REFRESH_SECONDS: Final = 1.0
"""Pause after which a sending worker reads again what other workers have recorded."""

PAUSE_LOOK_MS: Final = 2_000
"""Pause before a worker looks again whether a destination is still paused by a person."""

log = structlog.get_logger()


class Hold(NamedTuple):
    """A pause for a destination.

    Attributes:
        milliseconds: Duration of the pause; 0 means that the destination may be sent to.
        unreachable: Reason why a probe did not reach the destination, or empty.
    """

    milliseconds: int
    unreachable: str = ""


class CircuitBreaker:
    """The circuit of a destination during one drain.

    Every method but `record_response` and `answers_echo` raises `LedgerError` while the ledger is away.
    """

    def __init__(
        self,
        ledger: Ledger,
        destination: Destination,
        remote: Remote,
        rng: Callable[[], float],
        is_stopping: Callable[[], bool],
    ) -> None:
        """Prepare without any I/O.

        Args:
            ledger: Keeps the circuit.
            destination: Configuration of the destination.
            remote: Receiver of a probe.
            rng: Returns a number from 0 to 1, for the jitter.
            is_stopping: Returns whether the worker was asked to stop.
        """
        self._is_stopping = is_stopping
        self._ledger = ledger
        self._name = destination.name
        self._remote = remote
        # The response deadline is long because of large images. A C-ECHO needs a fraction of that.
        response_seconds = min(destination.response_seconds, destination.connect_seconds)
        self._timeouts = Timeouts(destination.connect_seconds, response_seconds)
        self._policy = RetryPolicy.from_destination(destination)
        self._rng = rng
        self._circuit = Circuit(destination=self._name)
        probe_seconds = destination.connect_seconds + response_seconds
        self._claim_ms = round(probe_seconds * 1000) + PROBE_MARGIN_MS
        self._refresh_at = 0.0

    def request_permission(self, on_tick: Callable[[], None]) -> Hold:
        """Find out whether the destination may be sent to, by a probe if needed.

        Args:
            on_tick: Called at least twice a second during a probe.
        """
        self.refresh()
        action = circuit.find_permitted_action(self._circuit, self._ledger.unix_ms())
        if action is PermittedAction.PROBE:
            unix_ms = self._ledger.unix_ms()
            before, after = self._update(lambda found: circuit.claim_probe(found, unix_ms, self._claim_ms))
            if before != after:
                return self._probe(on_tick)
            # Another worker has claimed the probe meanwhile, or has closed the circuit.
            action = circuit.find_permitted_action(after, self._ledger.unix_ms())
        if action is PermittedAction.SEND:
            return Hold(0)
        if self._circuit.is_paused:
            return Hold(PAUSE_LOOK_MS)
        return Hold(max(1, self._circuit.probe_at - self._ledger.unix_ms()))

    def find_pause(self) -> Hold:
        """Return a hold if a person has paused the destination. A ledger that is away changes nothing."""
        if time.monotonic() >= self._refresh_at:
            with contextlib.suppress(LedgerError):
                self.refresh()
        return Hold(PAUSE_LOOK_MS if self._circuit.is_paused else 0)

    @property
    def has_unanswered_break(self) -> bool:
        """Whether an instance broke an association, and the remote has responded for none since."""
        return self._circuit.breaks > 0

    def has_response_since(self, suspect_since_ms: int) -> bool:
        """Return whether the remote responded for other instances since a suspect's first break.

        The answer is as old as the last `refresh`.
        """
        return circuit.has_response_since(self._circuit, suspect_since_ms)

    def record_break(
        self, reason: str, on_tick: Callable[[], None], *, is_suspect: bool, others_wait: bool
    ) -> Hold:
        """Record that an association ended during an instance. After several breaks in a row, probe.

        Args:
            reason: Text for a person.
            on_tick: Called at least twice a second during a probe.
            is_suspect: Whether the instance had already broken an association before.
            others_wait: Whether untried instances wait.
        """
        failure = CircuitFailure(
            FailureKind.BROKEN,
            reason,
            self._ledger.unix_ms(),
            is_suspect=is_suspect,
            others_wait=others_wait,
        )
        hold_ms = self._apply_failure(failure)
        if not hold_ms and self._circuit.breaks >= circuit.OPEN_AFTER_FAILURES:
            return self._probe(on_tick)
        return Hold(hold_ms)

    def record_failure(self, kind: FailureKind, reason: str) -> int:
        """Record a failed association, and return the pause in milliseconds.

        A stopping worker records none, because its settings may be those from before a reload.
        """
        if self._is_stopping():
            self._update(circuit.release_probe)
            return 0
        return self._apply_failure(CircuitFailure(kind, reason, self._ledger.unix_ms()))

    def record_association(self) -> None:
        """Record that the remote accepted an association."""
        if self._circuit.state is not CircuitState.CLOSED or self._circuit.probe_at:
            self._update(circuit.record_association)
            log.info("destination_back", destination=self._name)

    def record_response(self) -> None:
        """Record that the remote responded for an instance."""
        with contextlib.suppress(LedgerError):  # The next response is recorded instead.
            if not self._circuit.failures and time.monotonic() >= self._refresh_at:
                self.refresh()  # An association of another worker may have broken meanwhile.
            if self._circuit.failures:
                self._update(lambda found: circuit.record_response(found, self._ledger.unix_ms()))

    def answers_echo(self, on_tick: Callable[[], None]) -> bool:
        """Return whether the remote responds to a C-ECHO now. The circuit does not change.

        Args:
            on_tick: Called at least twice a second meanwhile.
        """
        try:
            self._send_echo(on_tick)
        except AssociationError:
            return False
        return True

    def refresh(self) -> None:
        """Read the circuit, which all workers of the destination share."""
        self._refresh_at = time.monotonic() + REFRESH_SECONDS
        found = self._ledger.circuits.read_circuit(self._name)
        self._circuit = self._bound_wait(found, self._ledger.unix_ms())

    def _apply_failure(self, failure: CircuitFailure) -> int:
        reason = failure.reason
        before, after = self._update(
            lambda found: circuit.record_failure(found, failure, self._policy, self._rng)
        )
        if after.permanent and not before.permanent:
            log.error("destination_refuses", destination=self._name, error=reason)
        elif not before.failures and failure.kind is not FailureKind.BROKEN:
            log.warning("destination_away", destination=self._name, error=reason)
        if after.state is CircuitState.OPEN and before.state is CircuitState.CLOSED:
            log.error("circuit_open", destination=self._name, failures=after.failures, error=reason)
        return max(0, after.probe_at - failure.at_ms)

    def _probe(self, on_tick: Callable[[], None]) -> Hold:
        try:
            self._send_echo(on_tick)
        except AssociationError as error:
            if error.permanent:
                return Hold(self.record_failure(FailureKind.REFUSED, str(error)))
            return Hold(self.record_failure(FailureKind.UNREACHABLE, str(error)), str(error))
        self.record_association()
        return Hold(0)

    def _send_echo(self, on_tick: Callable[[], None]) -> None:
        """Send a C-ECHO (PS3.7 9.1.5). A response of any status proves that the remote is reachable."""
        verification = [(uids.VERIFICATION, (uids.IMPLICIT_LITTLE_ENDIAN,))]
        with StoreSCU.open(
            self._remote, verification, timeouts=self._timeouts, on_tick=on_tick
        ) as association:
            if association.accepted_context_id(uids.VERIFICATION, uids.IMPLICIT_LITTLE_ENDIAN) is not None:
                association.send_echo()

    def _update(self, change: Callable[[Circuit], Circuit]) -> tuple[Circuit, Circuit]:
        """Change the circuit in one transaction, and return it before and after."""
        unix_ms = self._ledger.unix_ms()
        before, self._circuit = self._ledger.circuits.change_circuit(
            self._name, lambda found: change(self._bound_wait(found, unix_ms))
        )
        return before, self._circuit

    def _bound_wait(self, found: Circuit, unix_ms: int) -> Circuit:
        return circuit.bound_wait(found, unix_ms, max(self._policy.max_ms, self._claim_ms))
