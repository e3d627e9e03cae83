"""Limits on connections without an association, and on networks whose connections fail."""

import pytest

from ingest.acceptor.pending_connections import (
    NETWORKS_MAX,
    WINDOW_SECONDS,
    ConnectionLimit,
    EventCounter,
    FailureLimit,
    find_client_network,
)


def test_oldest_makes_room() -> None:
    pending: ConnectionLimit[int] = ConnectionLimit(3, 9)
    assert [pending.add(number, f"a{number}") for number in range(4)] == [None, None, None, 0]
    pending.remove(0)
    pending.remove(1)  # has its association
    assert pending.add(4, "a4") is None
    assert pending.add(5, "a5") == 2


def test_network_with_most_connections_makes_room_and_not_the_oldest_connection() -> None:
    pending: ConnectionLimit[object] = ConnectionLimit(24, 12)
    assert pending.add("sound", "10.0.0.1") is None
    for number in range(1000):  # six addresses, each below its own limit
        evicted = pending.add(number, f"10.0.1.{number % 6}")
        assert evicted != "sound"
        pending.remove(evicted)
    assert len(pending) == 24
    assert list(pending) == ["sound", *range(1000 - 23, 1000)], "of those that have most, the oldest went"


def test_one_address_makes_room_among_its_own() -> None:
    pending: ConnectionLimit[int] = ConnectionLimit(100, 2)
    assert pending.add(1, "other") is None
    assert [pending.add(number, "busy") for number in (2, 3, 4)] == [None, None, 2]
    pending.remove(2)
    pending.remove(2)
    assert len(pending) == 3
    assert pending.add(5, "busy") == 3


def test_network_that_fails_too_often_is_refused_until_the_minute_has_passed() -> None:
    failures = FailureLimit(3)
    assert [failures.record_failure("bad", at) for at in (10.0, 11.0, 12.0, 13.0)] == [
        False,
        False,
        True,
        False,
    ]
    assert failures.is_refused("bad", 14.0)
    assert not failures.is_refused("good", 14.0)
    assert not failures.is_refused("bad", 10.0 + WINDOW_SECONDS)
    assert failures.record_failure("bad", 10.0 + WINDOW_SECONDS) is False
    assert not failures.is_refused("bad", 11.0 + WINDOW_SECONDS)


def test_no_limit_refuses_nobody() -> None:
    failures = FailureLimit(0)
    assert not any(failures.record_failure("bad", 1.0) for _ in range(1000))
    assert not failures.is_refused("bad", 1.0)


def test_number_of_networks_is_bounded() -> None:
    failures = FailureLimit(1)
    for number in range(NETWORKS_MAX + 1):
        failures.record_failure(f"a{number}", 1.0)
    assert not failures.is_refused("a0", 1.0)
    assert failures.is_refused("a1", 1.0)


def test_refused_network_stays_refused_however_many_others_fail() -> None:
    failures = FailureLimit(3)
    assert [failures.record_failure("bad", 1.0) for _ in range(3)] == [False, False, True]
    for number in range(NETWORKS_MAX + 1):
        failures.record_failure(f"a{number}", 2.0)
    assert failures.is_refused("bad", 3.0)


def test_events_are_counted_by_key_and_minute() -> None:
    evictions = EventCounter()
    assert [evictions.record("a", at)[1] for at in (1.0, 2.0, 1.0 + WINDOW_SECONDS)] == [1, 2, 1]
    assert evictions.record("b", 2.0) == (2.0, 1)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_ipv6_addresses_count_by_their_network(address: str, network: str) -> None:
    assert find_client_network(address) == network


def test_addresses_of_one_ipv6_network_count_together_in_both_limits() -> None:
    pending: ConnectionLimit[int] = ConnectionLimit(9, 2)
    failures = FailureLimit(3)
    assert [pending.add(number, f"2001:db8::{number}") for number in (1, 2, 3)] == [None, None, 1]
    answers = [failures.record_failure(f"2001:db8::{number}", 1.0) for number in (4, 5, 6)]
    assert answers == [False, False, True]
    assert failures.is_refused("2001:db8::7", 2.0)
    assert not failures.is_refused("2001:db8:0:1::7", 2.0)
