"""The failure policy, by table."""

from dataclasses import replace

import pytest

from ingest.config.model import Destination
from ingest.dicom.statuses import StatusPattern, StatusRules
from ingest.workers.forward.retry_policy import (
    BREAKS_MAX,
    FEW_ATTEMPTS,
    Answered,
    Broken,
    Dead,
    Delivered,
    Limits,
    NotAccepted,
    Outcome,
    Renegotiate,
    Retry,
    Unreadable,
    decide,
    pause_ms,
)

LIMITS = Limits(first_ms=2_000, max_ms=300_000, max_attempts=20, give_up_ms=7_200_000)
YOUNG, OLD = 7_199_999, 7_200_000


def most() -> float:
    return 1.0


@pytest.mark.parametrize(
    "status", [0x0000, 0xB000, 0xB006, 0xB007, 0x0111, 0xB001, 0xB00A, 0xB100, 0xBFFF, 0x0001, 0x0107, 0x0116]
)
def test_success_warnings_and_what_the_remote_has_already_are_delivered(status: int) -> None:
    decision = decide(Answered(status, "remark"), 1, YOUNG, LIMITS, most)
    assert isinstance(decision, Delivered)
    assert decision.status == status
    assert (status == 0) is (decision.remark == "")


@pytest.mark.parametrize("status", [0xA700, 0xA701, 0xA7FF, 0x0110, 0x0213])
def test_transient_statuses_are_tried_again_until_the_last_attempt(status: int) -> None:
    assert decide(Answered(status), 1, YOUNG, LIMITS, most) == Retry(2_000, f"answered {status:04X}H", status)
    assert decide(Answered(status), 19, YOUNG, LIMITS, most) == Retry(
        300_000, f"answered {status:04X}H", status
    )
    assert isinstance(decide(Answered(status), 20, YOUNG, LIMITS, most), Dead)
    assert isinstance(decide(Answered(status), 99, YOUNG, LIMITS, most), Dead)


@pytest.mark.parametrize(
    "status",
    [0x0124, 0x0117, 0x0210, 0x0211, 0x0212, 0xA900, 0xA9FF, 0xD000, 0xA800, 0xFE00, 0x0106],
)
def test_every_other_status_is_dead_at_once_with_its_reason(status: int) -> None:
    assert decide(Answered(status, "why"), 1, YOUNG, LIMITS, most) == Dead(
        f"answered {status:04X}H: why", status
    )


@pytest.mark.parametrize("status", [0xC000, 0xC211, 0xCFFF])
def test_what_the_remote_cannot_understand_is_tried_a_few_times(status: int) -> None:
    said = f"answered {status:04X}H"
    assert decide(Answered(status), 1, YOUNG, LIMITS, most) == Retry(2_000, said, status)
    assert isinstance(decide(Answered(status), FEW_ATTEMPTS - 1, YOUNG, LIMITS, most), Retry)
    assert decide(Answered(status), FEW_ATTEMPTS, YOUNG, LIMITS, most) == Dead(
        f"{said} (attempt {FEW_ATTEMPTS}, the last)", status
    )
    strict = replace(LIMITS, max_attempts=1)
    assert isinstance(decide(Answered(status), 1, YOUNG, strict, most), Dead)


def test_destination_says_which_statuses_are_tried_again_and_which_are_not() -> None:
    destination = Destination(
        name="pacs",
        ae_title="PACS",
        host="pacs",
        retry_statuses=("A900", "Cxxx", "0122"),
        dead_statuses=("C211", "A7xx"),
    )
    limits = Limits.of(destination)

    def decided(status: int, attempt: int = 1, *, again: bool = False) -> Outcome:
        return type(decide(Answered(status, again=again), attempt, YOUNG, limits, most))

    assert [decided(status) for status in (0xA900, 0xC000, 0x0122)] == [Retry] * 3
    assert [decided(status) for status in (0xC211, 0xA700)] == [Dead] * 2
    # A rule takes the few attempts away, too.
    assert decided(0xC000, FEW_ATTEMPTS) is Retry
    # That the remote has the instance is a fact.
    everything = replace(LIMITS, statuses=StatusRules(dead=(StatusPattern.parse("xxxx"),)))
    assert isinstance(decide(Answered(0xB000), 1, YOUNG, everything, most), Delivered)


@pytest.mark.parametrize("outcome", [NotAccepted("no context", alone=True), Unreadable("file is gone")])
def test_what_no_attempt_can_mend_is_dead_at_once(outcome: NotAccepted | Unreadable) -> None:
    assert decide(outcome, 1, YOUNG, LIMITS, most) == Dead(outcome.reason)


def test_broken_association_counts_as_an_attempt() -> None:
    assert decide(Broken("reset"), 1, YOUNG, LIMITS, most) == Retry(2_000, "reset", breaks=1)
    assert decide(Broken("reset"), 20, YOUNG, LIMITS, most) == Dead("reset (attempt 20, the last)", breaks=1)


def test_pause_of_one_that_breaks_associations_is_four_times_as_long_each_time() -> None:
    pauses = [decide(Broken("reset", breaks), 1, YOUNG, LIMITS, most).after_ms for breaks in (1, 2, 3, 4, 5)]
    assert pauses == [2_000, 8_000, 32_000, 128_000, 300_000]


def test_one_that_breaks_associations_is_dead_sooner_where_others_get_through() -> None:
    others = Broken("reset", BREAKS_MAX, others_pass=True)
    assert decide(others, BREAKS_MAX, YOUNG, LIMITS, most) == Dead(
        f"reset (broke {BREAKS_MAX} associations while others were answered for)", breaks=BREAKS_MAX
    )
    assert isinstance(decide(replace(others, breaks=BREAKS_MAX - 1), 9, YOUNG, LIMITS, most), Retry)
    # Where nobody gets through, the remote may be to blame.
    assert isinstance(decide(replace(others, others_pass=False), 19, YOUNG, LIMITS, most), Retry)


def test_what_was_negotiated_in_company_is_negotiated_once_more_alone() -> None:
    assert decide(NotAccepted("no context", alone=False), 1, YOUNG, LIMITS, most) == Renegotiate()
    assert decide(Answered(0x0122), 99, OLD, LIMITS, most) == Renegotiate()
    assert decide(Answered(0x0122, again=True), 1, YOUNG, LIMITS, most) == Dead("answered 0122H", 0x0122)


@pytest.mark.parametrize("outcome", [Answered(0xA700), Broken("reset")])
def test_what_is_too_old_is_not_tried_again(outcome: Outcome) -> None:
    assert isinstance(decide(outcome, 1, YOUNG, LIMITS, most), Retry)
    decision = decide(outcome, 1, OLD, LIMITS, most)
    assert isinstance(decision, Dead)
    assert decision.reason.endswith("(given up after 2 h)")


def test_what_is_too_old_and_arrives_is_delivered() -> None:
    assert isinstance(decide(Answered(0), 1, OLD, LIMITS, most), Delivered)


def test_pause_doubles_up_to_the_longest() -> None:
    assert [pause_ms(attempt, LIMITS, most) for attempt in (1, 2, 3, 8, 9, 10_000)] == [
        2_000,
        4_000,
        8_000,
        256_000,
        300_000,
        300_000,
    ]


def test_jitter_takes_off_up_to_a_half() -> None:
    assert pause_ms(1, LIMITS, lambda: 0.0) == 1_000
    assert pause_ms(1, LIMITS, lambda: 0.5) == 1_500


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
    assert Limits.of(destination) == Limits(500, 60_000, 3, 1_800_000)
