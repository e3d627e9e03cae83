"""The failure policy, by table."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.config.model import Destination
from ingest.dicom.statuses import StatusPattern, StatusRules
from ingest.workers.forward.retry_policy import (
    FEW_ATTEMPTS,
    INSTANCE_BREAKS_MAX,
    AssociationBroken,
    ContextNotAccepted,
    Dead,
    DeathCause,
    Delivered,
    DeliveryDecision,
    FileUnusable,
    NotRewritable,
    Outcome,
    Renegotiate,
    ResponseReceived,
    Retry,
    RetryPolicy,
    backoff_ms,
    decide_delivery,
    decide_uncommitted,
)

POLICY = RetryPolicy(first_ms=2_000, max_ms=300_000, max_attempts=20, give_up_ms=7_200_000)
YOUNG, OLD = 7_199_999, 7_200_000


def most() -> float:
    return 1.0


def decide(
    outcome: Outcome, attempt: int, age_ms: int = YOUNG, policy: RetryPolicy = POLICY
) -> DeliveryDecision | Renegotiate:
    return decide_delivery(outcome, attempt, age_ms, policy, most)


@pytest.mark.parametrize(
    "status", [0x0000, 0xB000, 0xB006, 0xB007, 0x0111, 0xB001, 0xB00A, 0xB100, 0xBFFF, 0x0001, 0x0107, 0x0116]
)
def test_success_warnings_and_what_the_remote_has_already_are_delivered(status: int) -> None:
    decision = decide(ResponseReceived(status, "remark"), 1)
    assert isinstance(decision, Delivered)
    assert decision.status == status
    assert (status == 0) is (decision.remark == "")


@pytest.mark.parametrize("status", [0xA700, 0xA701, 0xA7FF, 0x0110, 0x0213])
def test_transient_statuses_are_tried_again_until_the_last_attempt(status: int) -> None:
    assert decide(ResponseReceived(status), 1) == Retry(2_000, f"answered {status:04X}H", status)
    assert decide(ResponseReceived(status), 19) == Retry(300_000, f"answered {status:04X}H", status)
    assert isinstance(decide(ResponseReceived(status), 20), Dead)
    assert isinstance(decide(ResponseReceived(status), 99), Dead)


@pytest.mark.parametrize(
    "status",
    [0x0124, 0x0117, 0x0210, 0x0211, 0x0212, 0xA900, 0xA9FF, 0xD000, 0xA800, 0xFE00, 0x0106],
)
def test_every_other_status_is_dead_at_once_with_its_reason(status: int) -> None:
    assert decide(ResponseReceived(status, "why"), 1) == Dead(
        DeathCause.STATUS, f"answered {status:04X}H: why", status
    )


@pytest.mark.parametrize("status", [0xC000, 0xC211, 0xCFFF])
def test_what_the_remote_cannot_understand_is_tried_a_few_times(status: int) -> None:
    said = f"answered {status:04X}H"
    assert decide(ResponseReceived(status), 1) == Retry(2_000, said, status)
    assert isinstance(decide_delivery(ResponseReceived(status), FEW_ATTEMPTS - 1, YOUNG, POLICY, most), Retry)
    assert decide(ResponseReceived(status), FEW_ATTEMPTS) == Dead(
        DeathCause.ATTEMPTS, f"{said} (attempt {FEW_ATTEMPTS}, the last)", status
    )
    strict = replace(POLICY, max_attempts=1)
    assert isinstance(decide(ResponseReceived(status), 1, policy=strict), Dead)


def test_destination_says_which_statuses_are_tried_again_and_which_are_not() -> None:
    destination = Destination(
        name="pacs",
        ae_title="PACS",
        host="pacs",
        retry_statuses=("A900", "Cxxx", "0122"),
        dead_statuses=("C211", "A7xx"),
    )
    policy = RetryPolicy.from_destination(destination)

    def decided(status: int, attempt: int = 1, *, again: bool = False) -> Outcome:
        return type(decide(ResponseReceived(status, is_renegotiated=again), attempt, policy=policy))

    assert [decided(status) for status in (0xA900, 0xC000, 0x0122)] == [Retry] * 3
    assert [decided(status) for status in (0xC211, 0xA700)] == [Dead] * 2
    # A rule takes the few attempts away, too.
    assert decided(0xC000, FEW_ATTEMPTS) is Retry
    # That the remote has the instance is a fact.
    everything = replace(POLICY, statuses=StatusRules(dead=(StatusPattern.parse("xxxx"),)))
    assert isinstance(decide(ResponseReceived(0xB000), 1, policy=everything), Delivered)


@pytest.mark.parametrize(
    ("outcome", "cause"),
    [
        (ContextNotAccepted("no context", is_sole=True), DeathCause.CONTEXT),
        (FileUnusable("file is gone"), DeathCause.FILE),
        (NotRewritable("its text has no character set"), DeathCause.REWRITE),
    ],
)
def test_what_no_attempt_can_mend_is_dead_at_once(
    outcome: ContextNotAccepted | FileUnusable | NotRewritable, cause: DeathCause
) -> None:
    assert decide(outcome, 1) == Dead(cause, outcome.reason)


def test_broken_association_counts_as_an_attempt() -> None:
    assert decide(AssociationBroken("reset"), 1) == Retry(2_000, "reset", breaks=1)
    assert decide(AssociationBroken("reset"), 20) == Dead(
        DeathCause.ATTEMPTS, "reset (attempt 20, the last)", breaks=1
    )


def test_pause_of_one_that_breaks_associations_is_four_times_as_long_each_time() -> None:
    pauses = [decide(AssociationBroken("reset", breaks), 1).after_ms for breaks in (1, 2, 3, 4, 5)]
    assert pauses == [2_000, 8_000, 32_000, 128_000, 300_000]


def test_one_that_breaks_associations_is_dead_sooner_where_others_get_through() -> None:
    others = AssociationBroken("reset", INSTANCE_BREAKS_MAX, others_pass=True)
    assert decide(others, INSTANCE_BREAKS_MAX) == Dead(
        DeathCause.BREAKS,
        f"reset (broke {INSTANCE_BREAKS_MAX} associations while others were answered for)",
        breaks=INSTANCE_BREAKS_MAX,
    )
    assert isinstance(decide(replace(others, breaks=INSTANCE_BREAKS_MAX - 1), 9), Retry)
    # Where nobody gets through, the remote may be to blame.
    assert isinstance(decide(replace(others, others_pass=False), 19), Retry)


def test_what_was_negotiated_in_company_is_negotiated_once_more_alone() -> None:
    assert decide(ContextNotAccepted("no context", is_sole=False), 1) == Renegotiate()
    assert decide(ResponseReceived(0x0122), 99, OLD) == Renegotiate()
    assert decide(ResponseReceived(0x0122, is_renegotiated=True), 1) == Dead(
        DeathCause.CONTEXT, "answered 0122H", 0x0122
    )


@pytest.mark.parametrize("outcome", [ResponseReceived(0xA700), AssociationBroken("reset")])
def test_what_is_too_old_is_not_tried_again(outcome: Outcome) -> None:
    assert isinstance(decide(outcome, 1), Retry)
    decision = decide(outcome, 1, OLD)
    assert isinstance(decision, Dead)
    assert decision.cause is DeathCause.AGE
    assert decision.reason.endswith("(given up after 2 h)")


def test_what_is_too_old_and_arrives_is_delivered() -> None:
    assert isinstance(decide(ResponseReceived(0), 1, OLD), Delivered)


def test_pause_doubles_up_to_the_longest() -> None:
    assert [backoff_ms(attempt, POLICY, most) for attempt in (1, 2, 3, 8, 9, 10_000)] == [
        2_000,
        4_000,
        8_000,
        256_000,
        300_000,
        300_000,
    ]


def test_jitter_takes_off_up_to_a_half() -> None:
    assert backoff_ms(1, POLICY, lambda: 0.0) == 1_000
    assert backoff_ms(1, POLICY, lambda: 0.5) == 1_500


def test_limits_come_from_the_destination() -> None:
    destination = Destination(
        name="pacs",
        ae_title="PACS",
        host="pacs",
        retry_first_seconds=0.5,
        retry_max_seconds=60,
        max_attempts=3,
        give_up_hours=0.5,
    )
    assert RetryPolicy.from_destination(destination) == RetryPolicy(500, 60_000, 3, 1_800_000)


@pytest.mark.parametrize(
    ("attempt", "expected"),
    [
        (1, Retry(2_000, "not committed by the destination (0112H)")),
        (3, Retry(8_000, "not committed by the destination (0112H)")),
        (19, Retry(300_000, "not committed by the destination (0112H)")),
        (20, Dead(DeathCause.ATTEMPTS, "not committed by the destination (0112H) (attempt 20, the last)")),
    ],
)
def test_uncommitted_instance_is_sent_again_with_growing_pauses_and_an_end(
    attempt: int, expected: Retry | Dead
) -> None:
    assert decide_uncommitted(0x0112, attempt, POLICY, most) == expected


@given(st.integers(0, 0xFFFF), st.integers(1, 1000), st.floats(0, 1))
def test_uncommitted_instance_is_never_sent_again_at_once(reason: int, attempt: int, jitter: float) -> None:
    decision = decide_uncommitted(reason, attempt, POLICY, lambda: jitter)
    assert isinstance(decision, Dead) is (attempt >= POLICY.max_attempts)
    assert isinstance(decision, Dead) or decision.after_ms >= POLICY.first_ms // 2
