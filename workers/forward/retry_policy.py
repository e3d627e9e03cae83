"""The retry policy: decide after an attempt whether a delivery is delivered, tried again or dead.

The decisions are pure, and the ledger keeps their results. A failure of a destination as a whole, where no
instance is the cause, belongs to `ingest.workers.forward.circuit`.

An attempt that the remote accepted has failed too if the remote later does not commit to keep the instance
(`decide_uncommitted`).

Only this module has the rules. `Deliveries.expire_overdue` applies AGE to an unreachable destination.
`ingest.dicom.statuses` has the meaning of each DIMSE status.

| cause (`DeathCause`) | a delivery is dead |
|---|---|
| STATUS | after a response whose status no later attempt can change |
| CONTEXT | if the remote refuses its presentation context, even when it is proposed alone |
| FILE | if its file in the store is missing or damaged |
| REWRITE | if its data set cannot be changed as the destination asks |
| BREAKS | after it broke `INSTANCE_BREAKS_MAX` associations, while the remote accepts other instances |
| ATTEMPTS | after `max_attempts`, or after `FEW_ATTEMPTS` if the remote cannot understand the instance |
| AGE | at its first failure after `give_up_hours`, also if the remote cannot be reached (`find_expiry_ms`) |

A person can end a delivery too (`ingest deliveries drop`). Such a delivery is dropped, not dead.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Self

from ingest.config.model import Destination
from ingest.dicom.dimse import Status
from ingest.dicom.statuses import Meaning, StatusPattern, StatusRules
from ingest.errors import Cause

INSTANCE_BREAKS_MAX: Final = 5
"""Associations that one instance may break while the remote accepts others. Then it is the cause."""

FEW_ATTEMPTS: Final = 6
"""Attempts at an instance that the remote cannot understand (`Meaning.TRY_A_FEW_TIMES`)."""

_LONGEST_PAUSE: Final = 32
"""Number of attempts whose pause is `max_ms`."""

PROPOSAL_CAUSES: Final = frozenset(
    {None, Cause.CLOSED, Cause.ABORTED, Cause.REJECTED, Cause.PROTOCOL_ERROR, Cause.NO_RESPONSE}
)
"""Causes of a failed association that the proposed contexts may have caused.

A remote may abort, reject or crash at a SOP class that it does not know. Every other cause names the network,
TLS or an AE title.
"""

_HOUR_MS: Final = 3_600_000


class DeathCause(Enum):
    """Cause of a dead delivery. The table in the docstring of this module explains each."""

    STATUS = "status"
    CONTEXT = "context"
    FILE = "file"
    REWRITE = "rewrite"
    BREAKS = "breaks"
    ATTEMPTS = "attempts"
    AGE = "age"


# --- outcomes of an attempt


@dataclass(frozen=True, slots=True)
class ResponseReceived:
    """The remote sent a response.

    Attributes:
        status: DIMSE status (0000,0900).
        comment: Error Comment (0000,0902), or empty.
        is_renegotiated: Whether the context was already negotiated once more for instances of this kind.
        note: Change of the data set during transmission, or empty. The ledger keeps it with the delivery.
    """

    status: int
    comment: str = ""
    is_renegotiated: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class AssociationBroken:
    """The association ended without a response (reset, timeout, A-ABORT). This instance may be the cause.

    Attributes:
        reason: Text for a person.
        breaks: Number of associations that ended during this instance, this one included.
        others_pass: Whether the remote has answered for other instances since the first of these breaks.
    """

    reason: str
    breaks: int = 1
    others_pass: bool = False


@dataclass(frozen=True, slots=True)
class ContextNotAccepted:
    """The remote did not accept the proposed context for this SOP class and transfer syntax.

    Attributes:
        reason: Text for a person.
        is_sole: Whether no other context was proposed. Some remotes accept only a few contexts.
    """

    reason: str
    is_sole: bool


@dataclass(frozen=True, slots=True)
class FileUnusable:
    """The file in the store is missing, damaged, or not the one that the ledger describes."""

    reason: str


@dataclass(frozen=True, slots=True)
class NotRewritable:
    """The data set cannot be changed as the destination asks. The file in the store may be sound."""

    reason: str


@dataclass(frozen=True, slots=True)
class TitlesRefused:
    """The remote rejected the AE titles that were passed through from the sender."""

    reason: str


Outcome = (
    ResponseReceived | AssociationBroken | ContextNotAccepted | FileUnusable | NotRewritable | TitlesRefused
)


# --- decisions


@dataclass(frozen=True, slots=True)
class Delivered:
    """The remote has the instance. `remark` contains the text of a warning."""

    status: int
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again later.

    Attributes:
        after_ms: Pause from now on, in milliseconds.
        reason: Text for a person.
        status: DIMSE status of the response; None without one.
        breaks: Number of associations that ended during this instance; 0 after a response.
        is_attempt: Whether to count an attempt. A fault of our own disk does not count, and neither does a
            refused AE title.
    """

    after_ms: int
    reason: str
    status: int | None = None
    breaks: int = 0
    is_attempt: bool = True


@dataclass(frozen=True, slots=True)
class Renegotiate:
    """Try again at once, over a new association that proposes only the context of this instance."""


@dataclass(frozen=True, slots=True)
class Dead:
    """Do not try again until a person asks for it.

    Attributes:
        cause: The rule that ended the delivery.
        reason: Text for a person.
        status: As in `Retry`.
        breaks: As in `Retry`.
    """

    cause: DeathCause
    reason: str
    status: int | None = None
    breaks: int = 0


DeliveryDecision = Delivered | Retry | Dead


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Pauses and limits of one destination.

    Attributes:
        first_ms: Pause after the first failed attempt, in milliseconds. Each further pause is twice as long.
        max_ms: Longest pause.
        max_attempts: Attempts after which a delivery is dead.
        give_up_ms: Age of a delivery after which its next failure is its last.
        statuses: Meanings of statuses that differ from the table of `ingest.dicom.statuses`.
    """

    first_ms: int
    max_ms: int
    max_attempts: int
    give_up_ms: int
    statuses: StatusRules = field(default_factory=StatusRules)

    @classmethod
    def from_destination(cls, destination: Destination) -> Self:
        """Read the policy of a destination from its configuration."""
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

    def find_expiry_ms(self, unix_ms: int, clock_ahead_ms: int) -> int:
        """Return the time of creation before which a delivery to an unreachable destination is dead (AGE).

        Args:
            unix_ms: Current time.
            clock_ahead_ms: Step of the wall clock that must not count as age.
        """
        return unix_ms - self.give_up_ms - clock_ahead_ms

    def describe_expiry(self, reason: str) -> str:
        """Add to the reason of a failure that the delivery has become too old."""
        return f"{reason} (given up after {self.give_up_ms / _HOUR_MS:g} h)"


def backoff_ms(attempt: int, policy: RetryPolicy, rng: Callable[[], float]) -> int:
    """Return the pause after an attempt: exponential, with jitter between half of the step and all of it.

    Args:
        attempt: Number of attempts so far, 1 or more.
        policy: Policy of the destination.
        rng: Returns a number from 0 to 1.
    """
    # The exponent is bounded, because 2^32 steps exceed every longest pause.
    step = min(policy.max_ms, policy.first_ms << min(max(attempt, 1) - 1, 32))
    return round(step * (0.5 + 0.5 * rng()))


def decide_delivery(
    outcome: Outcome, attempt: int, age_ms: int, policy: RetryPolicy, rng: Callable[[], float]
) -> DeliveryDecision | Renegotiate:
    """Decide what becomes of a delivery after an attempt.

    Args:
        outcome: Outcome of the attempt.
        attempt: Number of attempts, this one included.
        age_ms: Age of the delivery in milliseconds.
        policy: Policy of the destination.
        rng: Returns a number from 0 to 1, for the jitter.
    """
    # INVARIANT 10: decisions are pure
    match outcome:
        case ResponseReceived():
            return _decide_response(outcome, attempt, age_ms, policy, rng)
        case AssociationBroken(reason, breaks, others_pass):
            if others_pass and breaks >= INSTANCE_BREAKS_MAX:
                said = f"broke {breaks} associations while others were answered for"
                return Dead(DeathCause.BREAKS, f"{reason} ({said})", breaks=breaks)
            # Each break makes the pause four times as long: the next attempt may bring the remote down again.
            retry = Retry(backoff_ms(2 * breaks - 1, policy, rng), reason, breaks=breaks)
            return _retry(retry, attempt, policy.max_attempts, age_ms, policy)
        case ContextNotAccepted(reason, is_sole):
            return Dead(DeathCause.CONTEXT, reason) if is_sole else Renegotiate()
        case FileUnusable(reason) | NotRewritable(reason):
            cause = DeathCause.FILE if isinstance(outcome, FileUnusable) else DeathCause.REWRITE
            return Dead(cause, reason)
        case TitlesRefused(reason):
            return _decide_refused_titles(reason, age_ms, policy, rng)


def decide_uncommitted(
    failure_reason: int, attempt: int, policy: RetryPolicy, rng: Callable[[], float]
) -> Retry | Dead:
    """Decide what becomes of a delivered instance that the remote does not commit to keep (PS3.4 J).

    Its age does not count, because the remote had accepted it.

    Args:
        failure_reason: (0008,1197) Failure Reason.
        attempt: Number of attempts so far.
        policy: Policy of the destination.
        rng: Returns a number from 0 to 1, for the jitter.
    """
    # INVARIANT 10: decisions are pure
    reason = f"not committed by the destination ({failure_reason:04X}H)"
    return _retry(Retry(backoff_ms(attempt, policy, rng), reason), attempt, policy.max_attempts, 0, policy)


def _decide_refused_titles(
    reason: str, age_ms: int, policy: RetryPolicy, rng: Callable[[], float]
) -> Retry | Dead:
    """Wait for a person, who has to change the list of the remote. Only the age ends the delivery.

    As with a remote that refuses this node, the pause is the longest one and no attempt counts.
    """
    if age_ms >= policy.give_up_ms:
        return Dead(DeathCause.AGE, policy.describe_expiry(reason))
    return Retry(backoff_ms(_LONGEST_PAUSE, policy, rng), reason, is_attempt=False)


def _decide_response(
    response: ResponseReceived,
    attempt: int,
    age_ms: int,
    policy: RetryPolicy,
    rng: Callable[[], float],
) -> DeliveryDecision | Renegotiate:
    status = response.status
    meaning = policy.statuses.find_meaning(status)
    if meaning is Meaning.STORED:
        return Delivered(status, response.note)
    reason = f"answered {status:04X}H" + (f": {response.comment}" if response.comment else "")
    match meaning:
        case Meaning.STORED_WITH_WARNING | Meaning.ALREADY_STORED:
            return Delivered(status, "; ".join(filter(None, (reason, response.note))))
        case Meaning.NEGOTIATE_AGAIN if not response.is_renegotiated:
            return Renegotiate()
        case Meaning.NEGOTIATE_AGAIN | Meaning.REFUSED:
            is_context = status == Status.SOP_CLASS_NOT_SUPPORTED
            return Dead(DeathCause.CONTEXT if is_context else DeathCause.STATUS, reason, status)
    is_few = meaning is Meaning.TRY_A_FEW_TIMES
    attempts_max = min(FEW_ATTEMPTS, policy.max_attempts) if is_few else policy.max_attempts
    retry = Retry(backoff_ms(attempt, policy, rng), reason, status)
    return _retry(retry, attempt, attempts_max, age_ms, policy)


def _retry(retry: Retry, attempt: int, attempts_max: int, age_ms: int, policy: RetryPolicy) -> Retry | Dead:
    """Return `retry`, unless this was the last attempt or the delivery is too old."""
    if attempt >= attempts_max:
        reason = f"{retry.reason} (attempt {attempt}, the last)"
        return Dead(DeathCause.ATTEMPTS, reason, retry.status, retry.breaks)
    if age_ms >= policy.give_up_ms:
        return Dead(DeathCause.AGE, policy.describe_expiry(retry.reason), retry.status, retry.breaks)
    return retry
