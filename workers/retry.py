"""What becomes of a delivery after an attempt: delivered, tried again, or dead; pure, the ledger keeps it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

from ingest.config.model import Destination

DELIVERED: Final = frozenset({0x0000, 0x0111, 0xB000, 0xB006, 0xB007})
"""PS3.4 Table B.2-1: success and the warnings; PS3.7 C.5.7: 0111H, the remote has this instance already."""

TRANSIENT: Final = frozenset({0x0110, 0x0213, *range(0xA700, 0xA800)})
"""Processing failure, resource limitation, out of resources: another time it may go well."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The remote answered with a DIMSE status, and perhaps an Error Comment (0000,0902)."""

    status: int
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Broken:
    """The association ended before the answer: reset, late, A-ABORT; this instance may be to blame."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unreachable:
    """No association: refused, late, TLS, A-ASSOCIATE-RJ transient; no instance is to blame, ever."""

    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A-ASSOCIATE-RJ, permanent: the remote wants no association with us; no instance is to blame."""

    reason: str


@dataclass(frozen=True, slots=True)
class NotAccepted:
    """The remote accepted no presentation context for this SOP class and transfer syntax."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Our copy cannot be sent: it is gone, or not what the ledger says."""

    reason: str


@dataclass(frozen=True, slots=True)
class Away:
    """Our store is away as a whole; no instance and no remote is to blame."""

    reason: str


Outcome = Answered | Broken | Unreachable | Refused | NotAccepted | Unreadable | Away


@dataclass(frozen=True, slots=True)
class Delivered:
    """The remote has it; `remark` holds what a warning said."""

    status: int
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Retry:
    """Another time.

    Attributes:
        after_ms: From now on, in milliseconds.
        reason: Why.
        status: The DIMSE status, if there was an answer.
        counted: Whether this was an attempt; what says nothing about the instance does not bring it nearer to
            death.
    """

    after_ms: int
    reason: str
    status: int | None = None
    counted: bool = True


@dataclass(frozen=True, slots=True)
class Dead:
    """Not again, unless a person says so."""

    reason: str
    status: int | None = None


Decision = Delivered | Retry | Dead


@dataclass(frozen=True, slots=True)
class Limits:
    """How patient one destination is.

    Attributes:
        first_ms: Pause after the first failed attempt, in milliseconds; each further one is twice as long.
        max_ms: The longest pause.
        max_attempts: Attempts after which a delivery is dead.
    """

    first_ms: int
    max_ms: int
    max_attempts: int

    @classmethod
    def of(cls, destination: Destination) -> Self:
        """Those that the configuration gives a destination."""
        return cls(
            round(destination.retry_first_seconds * 1000),
            round(destination.retry_max_seconds * 1000),
            destination.max_attempts,
        )


def pause_ms(attempt: int, limits: Limits, rng: Callable[[], float]) -> int:
    """Exponential back-off with jitter, in milliseconds: between a half and the whole of the step.

    Args:
        attempt: How many attempts there were, 1 or more.
        limits: Of the destination.
        rng: Gives numbers from 0 to 1.
    """
    # Beyond 2^32 the longest pause has long been reached.
    step = min(limits.max_ms, limits.first_ms << min(max(attempt, 1) - 1, 32))
    return round(step * (0.5 + 0.5 * rng()))


def decide(outcome: Outcome, attempt: int, limits: Limits, rng: Callable[[], float]) -> Decision:
    """What becomes of a delivery.

    Args:
        outcome: What happened.
        attempt: How many attempts there were, this one included.
        limits: Of the destination.
        rng: Gives numbers from 0 to 1, for the jitter.
    """
    match outcome:
        case Answered(status, comment):
            return _answered(status, _said(status, comment), attempt, limits, rng)
        case Broken(reason):
            return _again(reason, None, attempt, limits, rng)
        case Unreachable(reason):
            return Retry(pause_ms(attempt, limits, rng), reason)
        case Refused(reason):
            return Retry(pause_ms(32, limits, rng), reason, counted=False)
        case Away(reason):
            return Retry(pause_ms(1, limits, rng), reason, counted=False)
        case NotAccepted(reason) | Unreadable(reason):
            return Dead(reason)


def _answered(status: int, said: str, attempt: int, limits: Limits, rng: Callable[[], float]) -> Decision:
    if status in DELIVERED:
        return Delivered(status, said if status else "")
    if status in TRANSIENT:
        return _again(said, status, attempt, limits, rng)
    return Dead(said, status)


def _again(
    reason: str, status: int | None, attempt: int, limits: Limits, rng: Callable[[], float]
) -> Retry | Dead:
    if attempt >= limits.max_attempts:
        return Dead(f"{reason} (attempt {attempt}, the last)", status)
    return Retry(pause_ms(attempt, limits, rng), reason, status)


def _said(status: int, comment: str) -> str:
    return f"answered {status:04X}H" + (f": {comment}" if comment else "")
