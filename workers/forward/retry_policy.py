"""What becomes of a delivery after an attempt: delivered, tried again, or dead; pure, the ledger keeps it.

What happens to a destination as a whole, where no instance is to blame, is
`ingest.workers.forward.circuit`'s.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Self

from ingest.config.model import Destination
from ingest.dicom.statuses import Meaning, StatusPattern, StatusRules

BREAKS_MAX: Final = 5
"""Associations that one instance may break while the remote answers for others; then it is to blame."""

FEW_ATTEMPTS: Final = 6
"""Attempts at an instance that the remote says it cannot understand (`Meaning.TRY_A_FEW_TIMES`)."""

_HOUR_MS: Final = 3_600_000


@dataclass(frozen=True, slots=True)
class Answered:
    """The remote answered.

    Attributes:
        status: The DIMSE status (0000,0900).
        comment: The Error Comment (0000,0902), if any.
        again: Whether the context had been negotiated once more for instances of this kind.
        note: What was done to the data set on its way; it stays with a delivery.
    """

    status: int
    comment: str = ""
    again: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class Broken:
    """The association ended before the answer: reset, late, A-ABORT; this instance may be to blame.

    Attributes:
        reason: In words.
        breaks: How many associations have ended with this instance in hand, this one included.
        others_pass: Whether the remote has answered for other instances since the first of them ended.
    """

    reason: str
    breaks: int = 1
    others_pass: bool = False


@dataclass(frozen=True, slots=True)
class NotAccepted:
    """The remote was offered a context for this SOP class and transfer syntax, and did not accept it.

    Attributes:
        reason: Which.
        alone: Whether it was offered without any other: some remotes take only so many.
    """

    reason: str
    alone: bool


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Our copy cannot be sent: it is gone, or not what the ledger says."""

    reason: str


Outcome = Answered | Broken | NotAccepted | Unreadable


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
        breaks: How many associations have ended with this instance in hand; 0 if it got an answer.
        attempted: Whether it counts as an attempt; trouble of our own disk does not.
    """

    after_ms: int
    reason: str
    status: int | None = None
    breaks: int = 0
    attempted: bool = True


@dataclass(frozen=True, slots=True)
class Renegotiate:
    """Once more, now, over a new association that offers only what this instance needs."""


@dataclass(frozen=True, slots=True)
class Dead:
    """Not again, unless a person says so; the attributes are those of `Retry`."""

    reason: str
    status: int | None = None
    breaks: int = 0


Decision = Delivered | Retry | Dead


@dataclass(frozen=True, slots=True)
class Limits:
    """How patient one destination is.

    Attributes:
        first_ms: Pause after the first failed attempt, in milliseconds; each further one is twice as long.
        max_ms: The longest pause.
        max_attempts: Attempts after which a delivery is dead.
        give_up_ms: Age of a delivery from which on its next failure is its last.
        statuses: What it wants done about statuses, beside the table of `ingest.dicom.statuses`.
    """

    first_ms: int
    max_ms: int
    max_attempts: int
    give_up_ms: int
    statuses: StatusRules = field(default_factory=StatusRules)

    @classmethod
    def of(cls, destination: Destination) -> Self:
        """Those that the configuration gives a destination."""
        return cls(
            round(destination.retry_first_seconds * 1000),
            round(destination.retry_max_seconds * 1000),
            destination.max_attempts,
            round(destination.give_up_hours * _HOUR_MS),
            StatusRules(
                tuple(map(StatusPattern.parse, destination.retry_statuses)),
                tuple(map(StatusPattern.parse, destination.dead_statuses)),
            ),
        )

    def given_up(self, reason: str) -> str:
        """The reason of a delivery that has become too old."""
        return f"{reason} (given up after {self.give_up_ms / _HOUR_MS:g} h)"


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


def decide(
    outcome: Outcome, attempt: int, age_ms: int, limits: Limits, rng: Callable[[], float]
) -> Decision | Renegotiate:
    """What becomes of a delivery.

    Args:
        outcome: What happened.
        attempt: How many attempts there were, this one included.
        age_ms: For how long it has been owed, in milliseconds.
        limits: Of the destination.
        rng: Gives numbers from 0 to 1, for the jitter.
    """
    match outcome:
        case Answered(status, comment):
            if limits.statuses.find_meaning(status) is Meaning.STORED:
                return Delivered(status, outcome.note)
            said = f"answered {status:04X}H" + (f": {comment}" if comment else "")
            retry = Retry(pause_ms(attempt, limits, rng), said, status)
            return _answered(outcome, retry, attempt, age_ms, limits)
        case Broken(reason, breaks, others_pass):
            if others_pass and breaks >= BREAKS_MAX:
                said = f"broke {breaks} associations while others were answered for"
                return Dead(f"{reason} ({said})", breaks=breaks)
            # Each time four times as long: its next attempt may bring the remote down once more.
            retry = Retry(pause_ms(2 * breaks - 1, limits, rng), reason, breaks=breaks)
            return _again(retry, attempt, limits.max_attempts, age_ms, limits)
        case NotAccepted(reason, alone):
            return Dead(reason) if alone else Renegotiate()
        case Unreadable(reason):
            return Dead(reason)


def _answered(
    answer: Answered, retry: Retry, attempt: int, age_ms: int, limits: Limits
) -> Decision | Renegotiate:
    """What follows from a status; `retry` is what follows if it is tried again."""
    match limits.statuses.find_meaning(answer.status):
        case Meaning.STORED | Meaning.STORED_WITH_WARNING | Meaning.ALREADY_STORED:
            return Delivered(answer.status, "; ".join(filter(None, (retry.reason, answer.note))))
        case Meaning.NEGOTIATE_AGAIN if not answer.again:
            return Renegotiate()
        case Meaning.TRY_AGAIN:
            return _again(retry, attempt, limits.max_attempts, age_ms, limits)
        case Meaning.TRY_A_FEW_TIMES:
            return _again(retry, attempt, min(FEW_ATTEMPTS, limits.max_attempts), age_ms, limits)
        case Meaning.NEGOTIATE_AGAIN | Meaning.REFUSED:
            return Dead(retry.reason, answer.status)


def _again(retry: Retry, attempt: int, attempts_max: int, age_ms: int, limits: Limits) -> Retry | Dead:
    if attempt >= attempts_max:
        return Dead(f"{retry.reason} (attempt {attempt}, the last)", retry.status, retry.breaks)
    if age_ms >= limits.give_up_ms:
        return Dead(limits.given_up(retry.reason), retry.status, retry.breaks)
    return retry
