"""The circuit breaker of one destination: keep the decisions of `workers.forward.circuit` in the ledger."""

import contextlib
import time
from collections.abc import Callable
from typing import Final

import structlog

from ingest.config.model import Destination
from ingest.dicom import uids
from ingest.errors import AssociationError, LedgerError
from ingest.ledger import Circuit, CircuitState, Ledger
from ingest.requestor.store_scu import Remote, StoreSCU, Timeouts
from ingest.workers.forward import circuit
from ingest.workers.forward.circuit import Failure, Stance, Trouble
from ingest.workers.forward.retry_policy import Limits

MARGIN_MILLISECONDS: Final = 5_000
"""How much longer than its deadlines a probe is waited for, before another worker may ask."""

LOOK_SECONDS: Final = 1.0
"""How often a worker that sends looks at the circuit for what others have noted there."""

log = structlog.get_logger()


class Breaker:
    """The circuit as one turn sees it.

    Every method but `answered` raises `LedgerError` while the ledger is away.
    """

    def __init__(
        self,
        ledger: Ledger,
        destination: Destination,
        remote: Remote,
        rng: Callable[[], float],
        stopping: Callable[[], bool],
    ) -> None:
        """Describe it; nothing is asked yet.

        Args:
            ledger: Where it is kept.
            destination: What the configuration says.
            remote: Whom a probe asks.
            rng: Gives numbers from 0 to 1, for the jitter.
            stopping: Whether the worker was told to stop.
        """
        self._stopping = stopping
        self._ledger = ledger
        self._name = destination.name
        self._remote = remote
        # A remote that is there answers a C-ECHO at once: the long deadline is for images.
        answer = min(destination.response_seconds, destination.connect_seconds)
        self._timeouts = Timeouts(destination.connect_seconds, answer)
        self._limits = Limits.of(destination)
        self._rng = rng
        self._circuit = Circuit(destination=self._name)
        self._claim_ms = (
            round((self._timeouts.connect_seconds + self._timeouts.response_seconds) * 1000)
            + MARGIN_MILLISECONDS
        )
        self._look_at = 0.0

    def enter(self, on_tick: Callable[[], None]) -> tuple[int, str]:
        """Whether the destination may be sent to; a probe is made where that has to be found out.

        Args:
            on_tick: Called at least twice a second meanwhile.

        Returns:
            For how many milliseconds it is to be left alone, 0 if it may be sent to; and why a probe did
            not reach it.
        """
        self.look()
        stance = circuit.stance(self._circuit, self._ledger.unix_ms())
        if stance is Stance.PROBE:
            now = self._ledger.unix_ms()
            before, after = self._change(lambda found: circuit.claimed(found, now, self._claim_ms))
            if before != after:
                return self._probe(on_tick)
            stance = circuit.stance(after, self._ledger.unix_ms())
        if stance is Stance.GO:
            return 0, ""
        return max(1, self._circuit.probe_at - self._ledger.unix_ms()), ""

    @property
    def is_careful(self) -> bool:
        """Whether an instance broke an association, and the remote has answered for none since."""
        return self._circuit.breaks > 0

    def cleared(self, suspect_since_ms: int) -> bool:
        """Whether the remote has answered for others since an instance broke its first association.

        As of the last `look`.
        """
        return circuit.is_cleared(self._circuit, suspect_since_ms)

    def broken(
        self, reason: str, on_tick: Callable[[], None], *, is_suspect: bool, others_wait: bool
    ) -> tuple[int, str]:
        """Note that an association ended with an instance in hand, and ask the remote if that happens again.

        Args:
            reason: In words.
            on_tick: Called at least twice a second meanwhile.
            is_suspect: Whether the instance had broken an association before.
            others_wait: Whether there are instances that were not tried yet.

        Returns:
            As `enter`.
        """
        failure = Failure(
            Trouble.BROKEN, reason, self._ledger.unix_ms(), is_suspect=is_suspect, others_wait=others_wait
        )
        hold_ms = self._note(failure)
        if not hold_ms and self._circuit.breaks >= circuit.OPEN_AFTER:
            return self._probe(on_tick)
        return hold_ms, ""

    def failed(self, trouble: Trouble, reason: str) -> int:
        """Note a failure; returns for how many milliseconds the destination is to be left alone.

        A worker that is told to stop notes none: the settings that it has may be those before a reload.
        """
        if self._stopping():
            self._change(circuit.unclaimed)
            return 0
        return self._note(Failure(trouble, reason, self._ledger.unix_ms()))

    def _note(self, failure: Failure) -> int:
        reason = failure.reason
        before, after = self._change(lambda found: circuit.failed(found, failure, self._limits, self._rng))
        if after.permanent and not before.permanent:
            log.error("destination_refuses", destination=self._name, error=reason)
        elif not before.failures and failure.trouble is not Trouble.BROKEN:
            log.warning("destination_away", destination=self._name, error=reason)
        if after.state is CircuitState.OPEN and before.state is CircuitState.CLOSED:
            log.error("circuit_open", destination=self._name, failures=after.failures, error=reason)
        return max(0, after.probe_at - failure.at_ms)

    def reached(self) -> None:
        """The remote took an association."""
        if self._circuit.state is not CircuitState.CLOSED or self._circuit.probe_at:
            self._change(circuit.reached)
            log.info("destination_back", destination=self._name)

    def answered(self) -> None:
        """The remote answered for an instance."""
        with contextlib.suppress(LedgerError):  # the next answer is noted
            if not self._circuit.failures and time.monotonic() >= self._look_at:
                self.look()  # another worker's association may have broken meanwhile
            if self._circuit.failures:
                self._change(lambda found: circuit.answered(found, self._ledger.unix_ms()))

    def is_there(self, on_tick: Callable[[], None]) -> bool:
        """Whether the remote answers a C-ECHO now; nothing is noted.

        Args:
            on_tick: Called at least twice a second meanwhile.
        """
        try:
            self._echo(on_tick)
        except AssociationError:
            return False
        return True

    def look(self) -> None:
        """Read what all workers have noted."""
        self._look_at = time.monotonic() + LOOK_SECONDS
        self._circuit = self._bounded(self._ledger.circuits.read_circuit(self._name), self._ledger.unix_ms())

    def _probe(self, on_tick: Callable[[], None]) -> tuple[int, str]:
        try:
            self._echo(on_tick)
        except AssociationError as error:
            if error.permanent:
                return self.failed(Trouble.REFUSED, str(error)), ""
            return self.failed(Trouble.UNREACHABLE, str(error)), str(error)
        self.reached()
        return 0, ""

    def _echo(self, on_tick: Callable[[], None]) -> None:
        """C-ECHO (PS3.7 9.1.5): whatever the remote says to that, it is there."""
        verification = [(uids.VERIFICATION, (uids.IMPLICIT_LITTLE_ENDIAN,))]
        with StoreSCU.open(
            self._remote, verification, timeouts=self._timeouts, on_tick=on_tick
        ) as association:
            if association.accepted_context_id(uids.VERIFICATION, uids.IMPLICIT_LITTLE_ENDIAN) is not None:
                association.send_echo()

    def _change(self, change: Callable[[Circuit], Circuit]) -> tuple[Circuit, Circuit]:
        now = self._ledger.unix_ms()
        before, self._circuit = self._ledger.circuits.change_circuit(
            self._name, lambda found: change(self._bounded(found, now))
        )
        return before, self._circuit

    def _bounded(self, found: Circuit, now: int) -> Circuit:
        """The circuit, without a wait that is longer than any that was ever begun."""
        return circuit.bounded(found, now, max(self._limits.max_ms, self._claim_ms))
