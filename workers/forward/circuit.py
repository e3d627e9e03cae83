"""Whether a destination is asked at all: its circuit, a pure function of what happened; the ledger keeps it.

closed --- failures in a row, or a permanent rejection ---> open --- its time has come ---> half-open:
   ^                                                         ^                              one worker asks
   |                                                         +--------- no answer ---------------+
   +------------------------------ the remote is there ------------------------------------------+
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from ingest.ledger import Circuit, CircuitState
from ingest.workers.forward.retry_policy import Limits, pause_ms

OPEN_AFTER: Final = 3
"""Failures in a row after which nobody tries but one worker, by C-ECHO."""

BREAKS_MAX: Final = 8
"""Instances in a row that may each break an association while the remote answers a C-ECHO and others wait."""

BROKEN_PAUSE_MILLISECONDS: Final = 30_000
"""The longest pause of a circuit that instances have opened: the next one may be sound."""


class Trouble(Enum):
    """What ended an association, or kept it from being made."""

    UNREACHABLE = "unreachable"
    """There was none."""
    BROKEN = "broken"
    """It ended with an instance on its way, which may be to blame: others are tried first."""
    REFUSED = "refused"
    """A-ASSOCIATE-RJ, permanent."""


class Stance(Enum):
    """What may be done about a destination now."""

    GO = "go"
    PROBE = "probe"
    WAIT = "wait"


def stance(circuit: Circuit, now_ms: int) -> Stance:
    """What a worker may do at this time; a probe has to be claimed (`claimed`) first."""
    if circuit.probe_at > now_ms:
        return Stance.WAIT
    return Stance.GO if circuit.state is CircuitState.CLOSED else Stance.PROBE


def bounded(circuit: Circuit, now_ms: int, longest_ms: int) -> Circuit:
    """Without a wait that is longer than any that was ever begun: the clock was set back since.

    Args:
        circuit: As it was noted.
        now_ms: The time, in Unix milliseconds.
        longest_ms: The longest pause of the destination, or the longest claim of a probe.
    """
    return replace(circuit, probe_at=now_ms) if circuit.probe_at > now_ms + longest_ms else circuit


def claimed(circuit: Circuit, now_ms: int, claim_ms: int) -> Circuit:
    """Half-open for who comes first; others may ask once the claim of a prober that died has ended."""
    if stance(circuit, now_ms) is not Stance.PROBE:
        return circuit
    return replace(circuit, state=CircuitState.HALF_OPEN, probe_at=now_ms + claim_ms)


@dataclass(frozen=True, slots=True)
class Failure:
    """What happened to an association.

    Attributes:
        trouble: Its kind.
        reason: In words, without anything of an instance.
        at_ms: When, in Unix milliseconds.
        is_suspect: BROKEN: whether the instance had broken an association before.
        others_wait: BROKEN: whether there are instances that were not tried yet.
    """

    trouble: Trouble
    reason: str
    at_ms: int
    is_suspect: bool = False
    others_wait: bool = False


def failed(circuit: Circuit, failure: Failure, limits: Limits, rng: Callable[[], float]) -> Circuit:
    """After a failure.

    Args:
        circuit: Before it.
        failure: What happened.
        limits: Of the destination.
        rng: Gives numbers from 0 to 1, for the jitter.
    """
    trouble, now_ms = failure.trouble, failure.at_ms
    was_closed = circuit.state is CircuitState.CLOSED
    if trouble is Trouble.BROKEN:
        return _broken(circuit, failure, limits, rng)
    failures = circuit.failures + 1
    # Once several instances have broken theirs, a C-ECHO that fails as well tells that it is the remote.
    too_many = failures - circuit.breaks >= OPEN_AFTER or circuit.breaks >= OPEN_AFTER
    opens = not was_closed or trouble is Trouble.REFUSED or too_many
    pause = limits.max_ms if trouble is Trouble.REFUSED else pause_ms(failures - circuit.breaks, limits, rng)
    return replace(
        circuit,
        state=CircuitState.OPEN if opens else CircuitState.CLOSED,
        failures=failures,
        opened_at=(now_ms if was_closed else circuit.opened_at) if opens else 0,
        probe_at=now_ms + pause if pause else 0,
        permanent=trouble is Trouble.REFUSED,
        last_error=failure.reason,
        last_error_at=now_ms,
    )


def _broken(circuit: Circuit, failure: Failure, limits: Limits, rng: Callable[[], float]) -> Circuit:
    """After an association that ended with an instance in hand.

    A suspect is to blame itself, so it opens nothing, unless nothing but suspects is left of those that broke
    theirs. Other instances are to blame as long as the remote takes one of them now and then: it must break
    several in a row, and more while there are others to try than when all have had their turn.
    """
    noted = replace(circuit, last_error=failure.reason, last_error_at=failure.at_ms)
    if failure.is_suspect and circuit.breaks < OPEN_AFTER:
        # The next answer is noted (`answered`): it tells that this instance is to blame, not the remote.
        return noted if circuit.breaks else replace(noted, failures=circuit.failures + 1, breaks=1)
    breaks = circuit.breaks + 1
    most = BREAKS_MAX if failure.others_wait else OPEN_AFTER
    if circuit.state is CircuitState.CLOSED and breaks < most:
        return replace(noted, failures=circuit.failures + 1, breaks=breaks)
    pause = min(pause_ms(breaks - most + 1, limits, rng), BROKEN_PAUSE_MILLISECONDS)
    return replace(
        noted,
        state=CircuitState.OPEN,
        failures=circuit.failures + 1,
        breaks=breaks,
        opened_at=failure.at_ms if circuit.state is CircuitState.CLOSED else circuit.opened_at,
        probe_at=failure.at_ms + pause,
        permanent=False,
    )


def unclaimed(circuit: Circuit) -> Circuit:
    """After a probe that nobody learns from: another worker may ask at once."""
    if circuit.state is not CircuitState.HALF_OPEN:
        return circuit
    return replace(circuit, state=CircuitState.OPEN, probe_at=0)


def asked_anew(circuit: Circuit, since_ms: int) -> Circuit:
    """Due now where its last failure was before `since_ms`: what was configured then may no longer hold."""
    waits = circuit.probe_at > 0 and circuit.state is not CircuitState.HALF_OPEN
    return replace(circuit, probe_at=0) if waits and circuit.last_error_at < since_ms else circuit


def reached(circuit: Circuit) -> Circuit:
    """The remote took an association: it is there.

    Instances that broke theirs stay counted until it has answered for one. A remote that takes associations,
    and breaks each of them with the first instance, would otherwise be asked as often as a sound one.
    """
    return replace(
        circuit,
        state=CircuitState.CLOSED,
        failures=circuit.breaks,
        opened_at=0,
        probe_at=0,
        permanent=False,
    )


def answered(circuit: Circuit, now_ms: int) -> Circuit:
    """The remote answered for an instance, whatever it said."""
    at = now_ms if circuit.breaks else circuit.answered_at
    return replace(reached(circuit), failures=0, breaks=0, answered_at=at)


def is_cleared(circuit: Circuit, suspect_since_ms: int) -> bool:
    """Whether the remote has answered for another instance since this one broke its first association."""
    return 0 < suspect_since_ms <= circuit.answered_at
