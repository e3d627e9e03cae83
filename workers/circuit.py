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
from workers.retry import Limits, pause_ms

OPEN_AFTER: Final = 3
"""Failures in a row after which nobody tries but one worker, by C-ECHO."""


class Trouble(Enum):
    """What ended an association, or kept it from being made."""

    UNREACHABLE = "unreachable"
    """There was none."""
    BROKEN = "broken"
    """It ended with an instance on its way; which may be to blame, so that others are tried first."""
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
    """

    trouble: Trouble
    reason: str
    at_ms: int


def failed(circuit: Circuit, failure: Failure, limits: Limits, rng: Callable[[], float]) -> Circuit:
    """After a failure.

    Args:
        circuit: Before it.
        failure: What happened.
        limits: Of the destination.
        rng: Gives numbers from 0 to 1, for the jitter.
    """
    trouble, now_ms = failure.trouble, failure.at_ms
    failures = circuit.failures + 1
    was_closed = circuit.state is CircuitState.CLOSED
    opens = not was_closed or trouble is Trouble.REFUSED or failures >= OPEN_AFTER
    match trouble:
        case Trouble.REFUSED:
            pause = limits.max_ms
        case Trouble.UNREACHABLE:
            pause = pause_ms(failures, limits, rng)
        case Trouble.BROKEN:
            pause = pause_ms(failures - OPEN_AFTER + 1, limits, rng) if opens else 0
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


def reached(circuit: Circuit) -> Circuit:
    """The remote took an association: it is there.

    Failures stay counted until it has answered for an instance. One that takes associations, and breaks each
    of them with the first instance, would otherwise be asked as often as a sound one.
    """
    return replace(circuit, state=CircuitState.CLOSED, opened_at=0, probe_at=0, permanent=False)


def answered(circuit: Circuit) -> Circuit:
    """The remote answered for an instance, whatever it said."""
    return replace(reached(circuit), failures=0)
