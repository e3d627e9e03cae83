"""The circuit of a destination: decide whether it may be sent to. Pure functions; the ledger keeps the state.

```
closed --- failures in a row, or a permanent rejection ---> open --- end of the pause ---> half-open:
   ^                                                          ^                      one worker sends a C-ECHO
   |                                                          +------- no response ------------+
   +------------------------------ the remote responds ----------------------------------------+
```
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

# INVARIANT 10: decisions are pure. The functions below take and return values; the ledger keeps them.
from ingest.ledger import Circuit, CircuitState
from ingest.workers.forward.retry_policy import RetryPolicy, backoff_ms

OPEN_AFTER_FAILURES: Final = 3
"""Failures in a row that open the circuit. Only one worker then tries, by C-ECHO."""

OPEN_AFTER_BREAKS: Final = 8
"""Instances in a row that open it by a broken association each, while a C-ECHO succeeds and others wait."""

BREAK_PAUSE_MAX_MS: Final = 30_000
"""Longest pause of a circuit that instances have opened, because the next instance may be sound."""


class PermittedAction(Enum):
    """The action that a worker may take for a destination now."""

    SEND = "send"
    PROBE = "probe"
    WAIT = "wait"


class FailureKind(Enum):
    """Kind of a failed association."""

    UNREACHABLE = "unreachable"
    """No association was established."""
    BROKEN = "broken"
    """The association ended during an instance, which may be the cause. Other instances are tried first."""
    REFUSED = "refused"
    """The remote sent a permanent A-ASSOCIATE-RJ."""


@dataclass(frozen=True, slots=True)
class CircuitFailure:
    """One failed association.

    Attributes:
        kind: Kind of the failure.
        reason: Text for a person, without data of an instance.
        at_ms: Time of the failure, in Unix milliseconds.
        is_suspect: For BROKEN: whether the instance had already broken an association before.
        others_wait: For BROKEN: whether untried instances wait.
    """

    kind: FailureKind
    reason: str
    at_ms: int
    is_suspect: bool = False
    others_wait: bool = False


def find_permitted_action(circuit: Circuit, unix_ms: int) -> PermittedAction:
    """Return whether a worker may send, must wait, or may claim a probe (`claim_probe`)."""
    if circuit.is_paused or circuit.probe_at > unix_ms:
        return PermittedAction.WAIT
    return PermittedAction.SEND if circuit.state is CircuitState.CLOSED else PermittedAction.PROBE


def bound_wait(circuit: Circuit, unix_ms: int, longest_ms: int) -> Circuit:
    """End a wait longer than any that a worker starts. Such a wait shows that the clock was set back.

    Args:
        circuit: The circuit from the ledger.
        unix_ms: Current time.
        longest_ms: Longest pause of the destination, or longest claim of a probe.
    """
    return replace(circuit, probe_at=unix_ms) if circuit.probe_at > unix_ms + longest_ms else circuit


def claim_probe(circuit: Circuit, unix_ms: int, claim_ms: int) -> Circuit:
    """Make the circuit half-open for one worker. Its claim ends after `claim_ms`, in case the worker dies."""
    if find_permitted_action(circuit, unix_ms) is not PermittedAction.PROBE:
        return circuit
    return replace(circuit, state=CircuitState.HALF_OPEN, probe_at=unix_ms + claim_ms)


def release_probe(circuit: Circuit) -> Circuit:
    """Give up a claimed probe without a result. Another worker may probe at once."""
    if circuit.state is not CircuitState.HALF_OPEN:
        return circuit
    return replace(circuit, state=CircuitState.OPEN, probe_at=0)


def expedite_probe(circuit: Circuit, since_ms: int) -> Circuit:
    """End the wait after a failure before `since_ms`: the settings may have changed since."""
    is_waiting = circuit.probe_at > 0 and circuit.state is not CircuitState.HALF_OPEN
    return replace(circuit, probe_at=0) if is_waiting and circuit.last_error_at < since_ms else circuit


def record_failure(
    circuit: Circuit, failure: CircuitFailure, policy: RetryPolicy, rng: Callable[[], float]
) -> Circuit:
    """Return the circuit after a failure.

    Args:
        circuit: The circuit before it.
        failure: The failure.
        policy: Policy of the destination.
        rng: Returns a number from 0 to 1, for the jitter.
    """
    if failure.kind is FailureKind.BROKEN:
        return _record_break(circuit, failure, policy, rng)
    was_closed = circuit.state is CircuitState.CLOSED
    is_refused = failure.kind is FailureKind.REFUSED
    failures = circuit.failures + 1
    # Several broken associations and a failed C-ECHO together prove that the remote is the cause.
    is_too_many = failures - circuit.breaks >= OPEN_AFTER_FAILURES or circuit.breaks >= OPEN_AFTER_FAILURES
    opens = not was_closed or is_refused or is_too_many
    pause = policy.max_ms if is_refused else backoff_ms(failures - circuit.breaks, policy, rng)
    return replace(
        circuit,
        state=CircuitState.OPEN if opens else CircuitState.CLOSED,
        failures=failures,
        opened_at=(failure.at_ms if was_closed else circuit.opened_at) if opens else 0,
        probe_at=failure.at_ms + pause if pause else 0,
        permanent=is_refused,
        last_error=failure.reason,
        last_error_at=failure.at_ms,
    )


def _record_break(
    circuit: Circuit, failure: CircuitFailure, policy: RetryPolicy, rng: Callable[[], float]
) -> Circuit:
    """Return the circuit after an association that ended during an instance.

    A suspect (an instance that broke an association before) is the cause itself. It opens the circuit only if
    all others have broken their associations too. For other instances the remote may be the cause. It must
    then break several associations in a row, and more of them while untried instances wait.
    """
    noted = replace(circuit, last_error=failure.reason, last_error_at=failure.at_ms)
    if failure.is_suspect and circuit.breaks < OPEN_AFTER_FAILURES:
        # Count one break, so that the next response is recorded. It will prove that the suspect is the cause.
        return noted if circuit.breaks else replace(noted, failures=circuit.failures + 1, breaks=1)
    breaks = circuit.breaks + 1
    limit = OPEN_AFTER_BREAKS if failure.others_wait else OPEN_AFTER_FAILURES
    if circuit.state is CircuitState.CLOSED and breaks < limit:
        return replace(noted, failures=circuit.failures + 1, breaks=breaks)
    pause = min(backoff_ms(breaks - limit + 1, policy, rng), BREAK_PAUSE_MAX_MS)
    return replace(
        noted,
        state=CircuitState.OPEN,
        failures=circuit.failures + 1,
        breaks=breaks,
        opened_at=failure.at_ms if circuit.state is CircuitState.CLOSED else circuit.opened_at,
        probe_at=failure.at_ms + pause,
        permanent=False,
    )


def record_association(circuit: Circuit) -> Circuit:
    """Return the circuit after the remote has accepted an association. It is closed.

    Breaks stay counted until the remote responds for an instance. Otherwise a remote that accepts each
    association, and breaks it at the first instance, would be tried as often as a sound one.
    """
    return replace(
        circuit,
        state=CircuitState.CLOSED,
        failures=circuit.breaks,
        opened_at=0,
        probe_at=0,
        permanent=False,
    )


def record_response(circuit: Circuit, unix_ms: int) -> Circuit:
    """Return the circuit after a response for an instance, of any status."""
    answered_at = unix_ms if circuit.breaks else circuit.answered_at
    return replace(record_association(circuit), failures=0, breaks=0, answered_at=answered_at)


def has_response_since(circuit: Circuit, suspect_since_ms: int) -> bool:
    """Return whether the remote responded for another instance since this one broke its first association."""
    return 0 < suspect_since_ms <= circuit.answered_at
