"""Priority of deliveries: what the routes and the sender ask for, and what counts."""

import itertools

import pytest

from ingest.dicom.priority import (
    HIGH,
    LOW,
    MEDIUM,
    Priority,
    admit_requested,
    decide_priority,
    find_request_priority,
)


@pytest.mark.parametrize(
    ("requested", "allows_high", "expected"),
    [(MEDIUM, True, MEDIUM), (HIGH, True, HIGH), (HIGH, False, MEDIUM), (LOW, False, LOW), (7, True, MEDIUM)],
)
def test_high_counts_only_from_a_peer_that_may_set_it(
    requested: int, allows_high: bool, expected: int
) -> None:
    assert admit_requested(requested, allows_high=allows_high) == expected


@pytest.mark.parametrize(
    ("of_routes", "requested", "expected"),
    [
        ((), MEDIUM, Priority.NORMAL),
        ((), HIGH, Priority.URGENT),
        ((), LOW, Priority.BULK),
        (("",), HIGH, Priority.URGENT),
        (("bulk",), HIGH, Priority.BULK),
        (("normal",), LOW, Priority.NORMAL),
        (("bulk", "urgent", "normal"), LOW, Priority.URGENT),
        (("", "bulk"), MEDIUM, Priority.BULK),
    ],
)
def test_priority_of_a_route_wins_and_of_several_the_most_urgent(
    of_routes: tuple[str, ...], requested: int, expected: Priority
) -> None:
    for words in itertools.permutations(of_routes):
        assert decide_priority(words, requested) is expected


def test_priority_is_passed_on_as_it_was_requested() -> None:
    for requested in (MEDIUM, HIGH, LOW):
        assert find_request_priority(decide_priority((), requested)) == requested
